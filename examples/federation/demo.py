"""A whole federation on one machine: three nodes with private teachers, a coordinator, a chain.

    python examples/federation/demo.py                       # or: make demo-federation
    python examples/federation/demo.py --split overlapping
    python examples/federation/demo.py --images FOLDER       # the whole test set of Fashion-MNIST

No node's teacher knows all classes. In each round every node distils its teacher, with no data,
into a student that starts from what the federation knows; the coordinator verifies the students,
merges them, with no data either, and shares the merged one, which the nodes verify. Each party is a
set of processes of its own, in a folder of its own, running the commands that stand in the output:
what is done here by one person on one machine is typed by several people on several machines. Real
are the SuperLink, the SuperNodes, TLS and the chain; they listen on this machine only.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import json
import re
import secrets
import shlex
import shutil
import signal
import sys
import tomllib
from collections.abc import Coroutine, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from parties import DemoFailed, Narrator, Party, Processes, Service

from contracts import development_chain
from genkd.card import ModelCard
from genkd.errors import GenKDError
from genkd.provenance.record import run_id_of
from genkd.provenance.typed_data import to_hex
from genkd.weights import TEACHER_FILE as TEACHER_LIMITS
from genkd.weights import read_card, read_header

T = TypeVar("T")

# What may be spent, in images shown to a teacher: by each node's first distillation; by each of
# its later ones, which start from the merged student; by the coordinator's merge.
FIRST_BUDGET = "120000passes"
LATER_BUDGET = "60000passes"
MERGE_BUDGET = "160000passes"
ROUNDS = 2
STUDENT = "resnet8-half"
# How long the coordinator waits for the students of a round: longer than any machine needs.
WAIT = "2h"
SECONDS_BETWEEN_LOOKS = 0.5

HERE = Path(__file__).parent
TABLE = HERE / "table.py"
SPLITS = ("disjoint", "overlapping")
RUN = "demo"
RUN_ID = to_hex(run_id_of(RUN))
DEMO_FILE, LOCK_FILE = "demo.json", "demo.lock"
TABLE_FILE, LINEAGE_FILE = "table.json", "lineage.svg"
SETTINGS_FILE, TEACHER_FILE = "genkd.toml", "teacher.safetensors"
NODE_SETTINGS = f"""\
keys = "keys"
key_password_file = "passphrase.txt"
run = "{RUN}"
"""
# On one machine it listens there only, on any free port.
COORDINATOR_SETTINGS = """\
[coordinator]
keys = "keys"
key_password_file = "passphrase.txt"
host = "127.0.0.1"
port = 0
"""

JOIN_LINE = re.compile(r"(genkd-node join .*)")
ASKS_TO_JOIN = re.compile(r"genkd-coordinator admit (0x[0-9a-fA-F]{40})")
CONNECTED = re.compile(r"connected to the coordinator")
# A node does not know of it, and would not send another: the round would wait for hours.
REFUSED = re.compile(r"release (refused|no longer counts): .*")


@dataclass(frozen=True)
class Plan:
    """What is shown.

    Attributes:
        folder: Where everything lies.
        teachers: One model file for each node; their cards name their classes.
        student: The federation's student: an architecture.
        first_budget: What a node's first distillation may spend.
        later_budget: What its later ones may.
        merge_budget: What a merge may.
        images: Test images for the table; None takes the shipped ones.
        settings: Recipe keys, KEY=VALUE, of distillations and merges.
    """

    folder: Path
    teachers: tuple[Path, ...]
    student: str = STUDENT
    first_budget: str = FIRST_BUDGET
    later_budget: str = LATER_BUDGET
    merge_budget: str = MERGE_BUDGET
    images: Path | None = None
    settings: tuple[str, ...] = ()

    def recipe(self) -> list[str]:
        """The settings as flags."""
        return [word for setting in self.settings for word in ("--set", setting)]


class Demo:
    """One run of the demo.

    Args:
        plan: What to show.

    Attributes:
        ending: Whether its processes are being ended, which must not be interrupted.
    """

    def __init__(self, plan: Plan) -> None:
        self.ending = False
        self._plan = plan
        self._cards = [_card_of(teacher) for teacher in plan.teachers]
        self._narrator = Narrator()
        self._processes = Processes()
        self._one_at_a_time = asyncio.Lock()
        # One thread each: a network as small as these gains little from a second one, and on a
        # machine that is busy, threads that wait for each other cost it seven times as long.
        make = (self._narrator, self._processes, 1)
        self._coordinator = Party("coordinator", plan.folder / "coordinator", *make)
        self._nodes = [
            Party(f"node-{number}", plan.folder / f"node-{number}", *make)
            for number in range(1, len(plan.teachers) + 1)
        ]

    async def run(self) -> None:
        """Everything; whatever happens, no process is left.

        Raises:
            DemoFailed: If a party could not do its part.
            asyncio.CancelledError: If it was stopped.
        """
        try:
            serving, join_line = await self._set_up_coordinator()
            await together(*map(self._set_up_node, self._nodes, self._plan.teachers))
            self._write_down()
            joined = await together(*(self._join(node, join_line) for node in self._nodes))
            releases = await self._rounds([serving, *joined])
            kept = await self._prove(releases)
        finally:
            self.ending = True
            await self._end()
        self._narrator.tell("demo", "asking all students about test images")
        await self._table()
        self._say_what_is_left(kept)

    # ------------------------------------------------------------------ setting up

    async def _set_up_coordinator(self) -> tuple[Service, list[str]]:
        """Keys, authority, chain, run, and the server; what its nodes have to type."""
        party = self._coordinator
        _write_passphrase(party.folder)
        (party.folder / SETTINGS_FILE).write_text(COORDINATOR_SETTINGS)
        made = await party.run("genkd-coordinator", "init", "--host", "localhost")
        self._narrator.names[made["address"]] = "coordinator"
        await party.run("genkd-coordinator", "chain", "up", "--port", 0, hasty=True)
        await party.run("genkd-coordinator", "open-run", RUN)
        serving = await party.start("genkd-coordinator", "serve")
        return serving, shlex.split((await serving.expect(JOIN_LINE))[1])

    async def _set_up_node(self, party: Party, teacher: Path) -> None:
        """A node's keys; which registry it trusts, its operator was told by the coordinator's."""
        shutil.copyfile(teacher, party.folder / TEACHER_FILE)
        _write_passphrase(party.folder)
        settings = self._coordinator.folder / SETTINGS_FILE
        chain = settings.read_text(encoding="utf-8").partition("[")[0]
        (party.folder / SETTINGS_FILE).write_text(NODE_SETTINGS + chain, encoding="utf-8")
        made = await party.run("genkd-node", "init")
        self._narrator.names[made["node"]] = party.name

    async def _join(self, party: Party, join_line: list[str]) -> Service:
        """A node asks to be let in, the coordinator's operator admits it."""
        service = await party.start(*join_line)
        asking = await service.expect(ASKS_TO_JOIN)
        async with self._one_at_a_time:
            await self._coordinator.run("genkd-coordinator", "admit", asking[1])
        await service.expect(CONNECTED)
        return service

    def _write_down(self) -> None:
        """Who is who, for the table."""
        addresses = {name: address for address, name in self._narrator.names.items()}
        nodes = [
            {"name": party.name, "address": addresses[party.name], "classes": card.class_names}
            for party, card in zip(self._nodes, self._cards, strict=True)
        ]
        values = {"run": RUN, "run_id": RUN_ID, "rounds": ROUNDS, "nodes": nodes}
        (self._plan.folder / DEMO_FILE).write_text(json.dumps(values, indent=1), encoding="utf-8")

    # ------------------------------------------------------------------ the rounds

    async def _rounds(self, services: Sequence[Service]) -> list[Path]:
        """All rounds; the release directories of the merged students, that of the start first."""
        running = await self._coordinator.start("genkd-coordinator", "run", *self._run_flags())
        try:
            async with asyncio.TaskGroup() as group:
                watching = [group.create_task(_must_go_on(one)) for one in services]
                watching.append(group.create_task(_must_not_refuse(running)))
                nodes = [group.create_task(self._take_part(node)) for node in self._nodes]
                answer = await running.answer()
                for node in nodes:
                    await node
                for watcher in watching:
                    watcher.cancel()
        except BaseExceptionGroup as group_error:
            raise group_error.exceptions[0] from None
        return [self._coordinator.folder / one["release"] for one in answer["rounds"]]

    def _run_flags(self) -> list[str]:
        names = dict.fromkeys(name for card in self._cards for name in card.class_names or ())
        image = self._cards[0].input
        return [
            *("--run", RUN, "--rounds", str(ROUNDS), "--nodes", str(len(self._nodes))),
            *("--merge", "distill", "--student", self._plan.student, "--classes", ",".join(names)),
            *("--image", f"{image.channels}x{image.height}x{image.width}"),
            *("--budget", self._plan.merge_budget, "--wait", WAIT, *self._plan.recipe()),
        ]

    async def _take_part(self, party: Party) -> None:
        """A node's part in every round, as `genkd-node status` tells it."""
        for number in range(1, ROUNDS + 1):
            await _shared(party, number - 1)
            status = await party.run("genkd-node", "status")
            distill, publish = (shlex.split(line) for line in status["runs"][0]["next"])
            distill[distill.index("TEACHER")] = TEACHER_FILE
            budget = self._plan.first_budget if number == 1 else self._plan.later_budget
            await party.run(*distill, "--budget", budget, *self._plan.recipe())
            await party.run(*publish)
        await _shared(party, ROUNDS)

    # ------------------------------------------------------------------ the end

    async def _prove(self, releases: Sequence[Path]) -> Path:
        """Verify the last student at a node, and draw where it comes from."""
        node, last = self._nodes[0], len(releases) - 1
        (kept,) = node.folder.glob(f"membership/shared/{RUN_ID}/round-{last:06d}/student-0x*")
        await node.run("genkd-node", "verify", kept)
        node.tell(f"the student of round {last} is valid: all ten checks")
        federation = self._coordinator.folder / "federation"
        folders = [path.parent for path in releases[:-1]]
        folders += [federation / "releases" / RUN_ID / f"round-{n:06d}" for n in range(1, last + 1)]
        parents = [word for folder in folders for word in ("--parents-in", str(folder))]
        drawing = self._plan.folder / LINEAGE_FILE
        await self._coordinator.run(
            "genkd-node", "lineage", releases[-1], "--svg", drawing, *parents
        )
        return kept

    async def _end(self) -> None:
        self._narrator.tell("demo", "ending all processes")
        await self._processes.end_all()
        if (self._coordinator.folder / "chain").exists():
            await self._coordinator.run("genkd-coordinator", "chain", "down", hasty=True)

    async def _table(self) -> None:
        images = [] if self._plan.images is None else ["--images", str(self._plan.images)]
        measuring = await asyncio.create_subprocess_exec(
            sys.executable, TABLE, self._plan.folder, *images, stdin=asyncio.subprocess.DEVNULL
        )
        try:
            code = await measuring.wait()
        except asyncio.CancelledError:
            with contextlib.suppress(ProcessLookupError):
                measuring.kill()
            await measuring.wait()
            raise
        if code != 0:
            raise DemoFailed("the table could not be made; the federation is done")

    def _say_what_is_left(self, kept: Path) -> None:
        folder, node = self._plan.folder, self._nodes[0].folder
        settings = tomllib.loads((node / SETTINGS_FILE).read_text(encoding="utf-8"))
        port = settings["rpc_url"].rpartition(":")[2]
        path = "" if shutil.which("genkd-node") else f"  PATH={Path(sys.executable).parent}:$PATH\n"
        print(
            f"\nthe table      {folder / TABLE_FILE}"
            f"\nthe lineage    {folder / LINEAGE_FILE}"
            f"\nthe student    {kept}"
            "\n\nAll processes have ended, the chain's state is kept. To verify that student:"
            f"\n{path}"
            f"  (cd {folder / 'coordinator'} && genkd-coordinator chain up --port {port})\n"
            f"  (cd {node} && genkd-node verify {kept.relative_to(node)})\n"
            f"  (cd {folder / 'coordinator'} && genkd-coordinator chain down)"
        )


# ------------------------------------------------------------------ small parts


async def together(*work: Coroutine[Any, Any, T]) -> list[T]:
    """The results of all; the first failure cancels the others, and is raised."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one) for one in work]
    except BaseExceptionGroup as error:
        raise error.exceptions[0] from None
    return [task.result() for task in tasks]


async def _must_go_on(service: Service) -> None:
    await service.answer()
    raise DemoFailed(f"'{service.shown}' ended before the rounds did")


async def _must_not_refuse(running: Service) -> None:
    refusal = await running.line(REFUSED)
    if refusal is not None:
        raise DemoFailed(refusal[0])


async def _shared(party: Party, number: int) -> None:
    """Wait until a node keeps the student of a round."""
    pattern = f"membership/shared/{RUN_ID}/round-{number:06d}/student-0x*"
    while not any(party.folder.glob(pattern)):
        await asyncio.sleep(SECONDS_BETWEEN_LOOKS)
    party.tell(f"keeps the federation's student of round {number}, verified")


def _card_of(teacher: Path) -> ModelCard:
    card = read_card(read_header(teacher, TEACHER_LIMITS))
    if card is None or card.class_names is None:
        raise DemoFailed(f"{teacher} has no card that names its classes")
    return card


def _write_passphrase(folder: Path) -> None:
    path = folder / "passphrase.txt"
    path.touch(mode=0o600)
    path.write_text(secrets.token_hex(16))


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[None]:
    """Hold the folder for one demo, emptied of an earlier one.

    Raises:
        DemoFailed: If it holds something else, or another demo runs in it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()) and not (folder / DEMO_FILE).exists():
        raise DemoFailed(f"{folder} is not empty, and no demo's: name another with --out")
    (folder / DEMO_FILE).touch()
    with (folder / LOCK_FILE).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DemoFailed(f"another demo runs in {folder}") from None
        if (folder / "coordinator" / "chain").exists():
            development_chain.down(folder / "coordinator" / "chain")  # of one that was killed
        for path in folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
        yield


async def show(plan: Plan) -> int:
    """Run the demo until its end, or a signal; returns the exit code."""
    demo = Demo(plan)
    showing = asyncio.create_task(demo.run())
    arrived: list[int] = []

    def stop(number: int) -> None:
        if not arrived and not demo.ending:
            showing.cancel()
        arrived.append(number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, stop, number)
    try:
        await showing
    except asyncio.CancelledError:
        print("stopped", file=sys.stderr)
        return 128 + arrived[0]
    return 0


def main() -> int:
    """Read the command line, run, return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--split", choices=SPLITS, default=SPLITS[0], help="which teachers")
    parser.add_argument("--out", type=Path, default=Path("demo-federation"), help="the folder")
    parser.add_argument(
        "--images", type=Path, help="test images for the table, as genkd-node evaluate takes them"
    )
    parser.add_argument(
        "--budget", default=FIRST_BUDGET, help="of a node's first distillation; %(default)s"
    )
    parser.add_argument("--later-budget", default=LATER_BUDGET, help="of a later one; %(default)s")
    parser.add_argument("--merge-budget", default=MERGE_BUDGET, help="of a merge; %(default)s")
    parser.add_argument("--student", default=STUDENT, help="its architecture; %(default)s")
    parser.add_argument(
        "--teachers", type=Path, nargs="+", help="your own, in place of a split; with --images"
    )
    parser.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[], help="change a recipe key"
    )
    given = parser.parse_args()
    if given.teachers and not given.images:
        parser.error("--teachers without --images: the table needs images of their classes")
    shipped = [HERE / f"{given.split}_{number}.safetensors" for number in (1, 2, 3)]
    plan = Plan(
        folder=given.out.absolute(),
        teachers=tuple(path.absolute() for path in given.teachers or shipped),
        student=given.student,
        first_budget=given.budget,
        later_budget=given.later_budget,
        merge_budget=given.merge_budget,
        images=given.images,
        settings=tuple(given.set),
    )
    try:
        with new_folder(plan.folder):
            return asyncio.run(show(plan))
    except (DemoFailed, GenKDError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
