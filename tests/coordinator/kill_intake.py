"""Two submissions, killed at every step; what was there, and what is after the same ones again.

Started by `test_intake` in a process of its own, because it forks. A JSON line for each kill.
"""

from __future__ import annotations

import functools
import json
import os
import sys
from pathlib import Path
from typing import Any

from benchmarks.submissions import ROUND, RUN
from coordinator.store import Store
from tests.coordinator.test_intake import Files, World, build_world
from tests.kill_points import FILES_PUT_IN_PLACE, FOLDERS_CHANGED, SqlWrites, killed_at

MAX_STEPS = 400
POINTS = (*FILES_PUT_IN_PLACE, *FOLDERS_CHANGED, SqlWrites())


def main(folder: str) -> None:
    """Kill before step 0, 1, 2, ... until all is done before the step comes."""
    os.fsync = lambda descriptor: None
    first = build_world(Path(folder) / "keys")
    first.store.close()
    all_files = [first.release(), first.release(keys=first.other)]
    for step in range(MAX_STEPS):
        place = Path(folder) / str(step)
        word = place.with_suffix(".acknowledged")
        word.touch()
        submit = functools.partial(submit_all, first, place, all_files, word)
        killed = killed_at(step, submit, POINTS)
        with Store.open(place) as store:
            before = len(list(store.accepted(RUN, ROUND)))
        acknowledged = len(word.read_bytes())
        submit()
        with Store.open(place) as store:
            counted = [one.path for one in store.accepted(RUN, ROUND)]
        files = [path for path in (place / "releases").rglob("*") if path.is_file()]
        complete = [f for f in files if f.parent in counted]
        names = {"killed": killed, "acknowledged": acknowledged, "counted_before": before}
        left = [str(f) for f in files if f not in complete and f.name != ".lock"]
        result = names | {"counted": len(counted), "files": len(complete), "left": left}
        print(json.dumps(result), flush=True)
        if not killed:
            return
    sys.exit(f"still being killed after {MAX_STEPS} steps")


def submit_all(first: World, place: Path, all_files: list[Files], word: Path) -> None:
    """Submit both releases, and note each answer as one byte."""
    with Store.open(place) as store:
        world = World(place, first.chain, store, *keys_of(first), first.start)
        intake = world.intake()
        for files in all_files:
            if not intake.submit(files, 1).accepted:
                raise AssertionError("refused")
            with word.open("ab") as answers:
                answers.write(b".")


def keys_of(world: World) -> tuple[Any, Any, Any, Any]:
    return world.node, world.other, world.stranger, world.coordinator


if __name__ == "__main__":
    main(*sys.argv[1:])
