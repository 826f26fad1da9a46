"""The figures of the federation: how good, how much memory, each exactly once, what leaves a node.

    python benchmarks/federation.py FOLDER [--only quality|memory|submissions|traffic ...]

FOLDER holds the idx files of Fashion-MNIST (Debian: `dataset-fashion-mnist`); `quality` alone needs
it. `traffic` needs root, for network namespaces. Tables are printed; everything that was measured
stands in federation.json under --out, where a later call with other parts adds to it. An
interrupted `quality` goes on where it stopped; `--split`, `--seed` and the budgets choose a part of
it.
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
TEACHERS = ROOT / "examples" / "federation"
PARTS = ("quality", "memory", "submissions", "traffic")
SPLITS = ("disjoint", "overlapping")
RESULT = "federation.json"
STUDENT_BYTES = 1_000_000
# The coordinator may hold two students and this, the program included.
ALLOWANCE = 300 * 10**6


def peak_bytes() -> int:
    """The most memory that this process ever had resident."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc does not tell the peak of the resident memory")


def in_a_new_process(work: Callable[..., dict[str, Any]], *arguments: object) -> dict[str, Any]:
    """What a function returns in a process that did nothing before."""
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=fresh) as pool:
        return pool.submit(work, *arguments).result()


# ------------------------------------------------------------------ memory


def prepare_releases(folder: Path, count: int, student_bytes: int) -> None:
    """Signed releases of as many nodes, each in a folder that is its number."""
    from submissions import make_keys, signed_release, student_file

    for number in range(count + 1):
        place = folder / str(number)
        place.mkdir(parents=True)
        student = student_file(number, size=student_bytes)
        for name, content in signed_release(make_keys(_secret(number)), student).items():
            (place / name).write_bytes(content)


def _secret(number: int) -> int:
    return 10_000 + 10 * number


def memory_of_a_round(folder: Path, count: int) -> dict[str, Any]:
    """Take releases in as they come out of Flower's messages, and average them.

    Args:
        folder: As `prepare_releases` left it; that of number 0 is the start student's.
        count: How many.
    """
    from submissions import DOMAIN, NOW, ROUND, RUN, EnrolledNodes, make_keys

    from contracts.exchange import CollectReply
    from coordinator.intake import Intake
    from coordinator.intake_rules import IntakeRules, SharedStudent
    from coordinator.merging import MergeMethod, MergePlan, merge_releases
    from coordinator.store import Store
    from genkd.provenance.statement import STUDENT_NAME

    importlib.import_module("coordinator.server_app")  # and with it all of Flower that it needs
    found: dict[str, Any] = {"imported": peak_bytes()}
    chain = EnrolledNodes(DOMAIN)
    rules = IntakeRules(DOMAIN, RUN, ROUND, SharedStudent.read(folder / "0" / STUDENT_NAME))
    with Store.open(folder / "federation") as store:
        intake = Intake(store, folder / "federation", rules, chain, clock=lambda: NOW)
        for number in range(1, count + 1):
            keys = make_keys(_secret(number))
            chain.enrol(keys)
            files = {path.name: path.read_bytes() for path in (folder / str(number)).iterdir()}
            message = CollectReply(keys.address, files, "").to_record()
            reply = CollectReply.from_record(message)
            taken = intake.submit(reply.files or {}, sender=number)
            if not taken.accepted:
                raise SystemExit(f"release {number} was refused: {taken.reason}")
        found["taken in"] = peak_bytes()
        releases = [one.path for one in store.accepted(RUN, ROUND) if one.path is not None]
    for method in (MergeMethod.FEDAVG, MergeMethod.TRIMMED):
        merge_releases(releases, folder / method.value, MergePlan(method, None))
        found[method.value] = peak_bytes()
    return found | {"releases": len(releases), "peak": peak_bytes()}


def memory_of_a_merge(count: int, budget: str) -> dict[str, Any]:
    """Merge so many members by distilling; they are the shipped teachers, again and again."""
    from genkd.card import ModelSpec
    from genkd.merge import Claimed, merge, union_card
    from genkd.teacher import load_teacher

    paths = sorted(TEACHERS.glob("disjoint_*.safetensors"))
    teachers = [load_teacher(paths[number % len(paths)]) for number in range(count)]
    members = [
        Claimed(one, dict.fromkeys(range(one.card.spec.num_classes), 1.0)) for one in teachers
    ]
    card = union_card(members[: len(paths)])
    spec = ModelSpec("resnet8-half", card.spec.num_classes, card.spec.in_channels)
    before = peak_bytes()
    with tempfile.TemporaryDirectory() as name:
        merge(members, Path(name) / "merged", student=replace(card, spec=spec), budget=budget)
    return {"members": count, "before": before, "peak": peak_bytes()}


def memory(options: argparse.Namespace) -> dict[str, Any]:
    """The part `memory`."""
    with tempfile.TemporaryDirectory() as name:
        prepare_releases(Path(name), options.releases, STUDENT_BYTES)
        of_round = in_a_new_process(memory_of_a_round, Path(name), options.releases)
    members = [in_a_new_process(memory_of_a_merge, n, "3000passes") for n in options.members]
    bound = 2 * STUDENT_BYTES + ALLOWANCE
    return of_round | {
        "bound": bound,
        "reached": of_round["peak"] <= bound,
        "merge by distilling": members,
    }


def memory_table(found: dict[str, Any]) -> list[str]:
    """For people."""
    rows = [f"| memory, {found['releases']} students of 1 MB | MB |", "|---|---|"]
    for name in ("imported", "taken in", "fedavg", "trimmed"):
        rows.append(f"| peak when {name} | {found[name] / 1e6:.1f} |")
    verdict = "reached" if found["reached"] else "MISSED"
    rows.append(f"| allowed | {found['bound'] / 1e6:.0f}: {verdict} |")
    for one in found["merge by distilling"]:
        before = one["before"] / 1e6
        peak = f"{one['peak'] / 1e6:.0f}, before it {before:.0f}"
        rows.append(f"| merging {one['members']} by distilling | {peak} |")
    return rows


# ------------------------------------------------------------------ the other parts


def submissions(options: argparse.Namespace) -> dict[str, Any]:
    """The part `submissions`."""
    from submissions import run_submissions

    with tempfile.TemporaryDirectory() as name:
        outcome = run_submissions(Path(name) / "federation", options.submissions)
    return asdict(outcome) | {"reached": outcome.exactly_once}


def submissions_table(found: dict[str, Any]) -> list[str]:
    """For people."""
    return ["| submissions | |", "|---|---|", *(f"| {k} | {v} |" for k, v in found.items())]


def traffic(options: argparse.Namespace) -> dict[str, Any]:
    """The part `traffic`."""
    if os.geteuid() != 0:
        raise SystemExit("traffic needs root: it makes network namespaces")
    from federation_traffic import measure

    return {one: measure(one, idle=options.idle) for one in ("resnet20", "resnet8-half")}


def traffic_table(found: dict[str, Any]) -> list[str]:
    """For people."""
    from federation_traffic import table

    return [line for one in found.values() for line in (*table(one), "")]


def quality(options: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """The part `quality`, which needs torch and hours."""
    from federation_quality import Plan, checks, run_seed, table

    if options.folder is None:
        raise SystemExit("quality needs the FOLDER of the test set")
    found: dict[str, Any] = {}
    lines: list[str] = []
    for split in options.split or SPLITS:
        plan = Plan(
            images=options.folder,
            out=options.out,
            split=split,
            node_budget=options.node_budget,
            merge_budget=options.merge_budget,
            settings=dict(one.split("=", 1) for one in options.settings),
        )
        rows = [run_seed(plan, seed) for seed in options.seed or range(3)]
        found[split] = [asdict(row) | {"reached": checks(split, row)} for row in rows]
        lines += [*table(split, rows), ""]
    return found, lines


def run_part(part: str, options: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """What a part measured, and its table."""
    if part == "quality":
        return quality(options)
    measure, show = {
        "memory": (memory, memory_table),
        "submissions": (submissions, submissions_table),
        "traffic": (traffic, traffic_table),
    }[part]
    found = measure(options)
    return found, show(found)


def main() -> None:
    """Run the parts that are asked for, print their tables, keep what they found."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, nargs="?", help="where the idx files lie")
    parser.add_argument("--only", choices=PARTS, action="append", help="all if not said")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark-federation"))
    parser.add_argument("--split", choices=SPLITS, action="append", help="both if not said")
    parser.add_argument("--seed", type=int, action="append", help="0, 1 and 2 if not said")
    parser.add_argument("--node-budget", default="200000passes", help="%(default)s")
    parser.add_argument("--merge-budget", default="450000passes", help="%(default)s")
    parser.add_argument("--set", dest="settings", metavar="KEY=VALUE", action="append", default=[])
    parser.add_argument("--releases", type=int, default=200, help="for memory; %(default)s")
    parser.add_argument(
        "--members", type=int, nargs="*", default=[3, 30], help="merged by distilling, for memory"
    )
    parser.add_argument("--submissions", type=int, default=1000, help="%(default)s")
    parser.add_argument("--idle", type=float, default=60.0, help="seconds, for traffic")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    kept = options.out / RESULT
    results = json.loads(kept.read_text()) if kept.exists() else {}
    for part in options.only or PARTS:
        print(f"{part} ...", file=sys.stderr, flush=True)
        results[part], lines = run_part(part, options)
        kept.write_text(json.dumps(results, indent=1))
        print("\n".join(lines), end="\n\n", flush=True)


if __name__ == "__main__":
    main()
