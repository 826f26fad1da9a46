"""What the chain costs and how long verifying takes, on a real Anvil started here.

    python benchmarks/provenance.py [--records 10000] [--round-size 10000] [--json]

Gas of every call a federation pays for; the time `verify` spends asking a chain that holds
`--records` students; `genkd-node verify` as a whole process on a student of 1 MB; and the table of
forged releases, run by pytest. Prints a markdown table, or with --json one object.

Times are wall-clock: run it on an otherwise idle machine. On a busy one, read the processor time
and the sum of the fastest questions, which stand beside them.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from full_registry import FullRegistry

from contracts.anvil import start_anvil
from contracts.chain_reader import RegistryReader
from contracts.json_rpc import JsonRpc
from genkd.provenance import Policy, verify
from genkd.provenance.statement import STUDENT_NAME

ROOT = Path(__file__).parents[1]
TOO_HEAVY = ("torch", "torchvision", "flwr", "web3")


@dataclass(frozen=True)
class Figure:
    """One line of the table.

    Attributes:
        name: What was measured.
        unit: Of `measured` and `target`.
        measured: The figure that counts.
        target: The most it may be, or the least if `at_least`; None when none was set.
        at_least: Whether more is better.
        note: How it spread.
    """

    name: str
    unit: str
    measured: float
    target: float | None = None
    at_least: bool = False
    note: str = ""

    @property
    def reached(self) -> bool | None:
        """Whether the target is reached; None without one."""
        if self.target is None:
            return None
        return self.measured >= self.target if self.at_least else self.measured <= self.target

    def row(self) -> str:
        """The line, in markdown."""
        sign = "at least" if self.at_least else "at most"
        target = "" if self.target is None else f"{sign} {_number(self.target)}"
        reached = {True: "yes", False: "NO", None: ""}[self.reached]
        measured = f"{_number(self.measured)} {self.unit}" + (
            f" ({self.note})" if self.note else ""
        )
        return f"| {self.name} | {target} | {measured} | {reached} |"


def _number(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.2f}"


class TimedRpc(JsonRpc):
    """An endpoint that keeps how many milliseconds each question took.

    Args:
        url: As `JsonRpc`.

    Attributes:
        milliseconds: One of each question, in order.
    """

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.milliseconds: list[float] = []

    def ask(self, method: str, *params: object) -> Any:
        """As `JsonRpc.ask`."""
        start = time.perf_counter()
        try:
            return super().ask(method, *params)
        finally:
            self.milliseconds.append(1000 * (time.perf_counter() - start))


# ------------------------------------------------------------------ what is measured


def chain_time(registry: FullRegistry, path: Path, repeats: int) -> list[list[float]]:
    """Milliseconds of each question that verifying a release asks the chain; a list a repeat."""
    found = []
    for _ in range(repeats + 1):
        reader = RegistryReader(registry.rpc_url, registry.domain)
        reader.rpc = rpc = TimedRpc(registry.rpc_url)
        verify(path, policy=Policy(registry.domain), chain=reader).require()
        found.append(rpc.milliseconds)
    return found[1:]  # the first one also imports and warms up


def _verify_command(registry: FullRegistry, path: Path, *interpreter: str) -> list[str]:
    code = "import sys; from node.cli import main; sys.exit(main())"
    return [
        *(sys.executable, *interpreter, "-c", code, "verify", str(path), "--rpc", registry.rpc_url),
        *(
            "--registry",
            registry.domain.contract,
            "--chain-id",
            str(registry.domain.chain_id),
            "--json",
        ),
    ]


def whole_process(
    registry: FullRegistry, path: Path, repeats: int
) -> tuple[list[float], list[float]]:
    """Wall seconds and processor seconds of `genkd-node verify`, one process each."""
    wall, processor = [], []
    for _ in range(repeats):
        start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        done = _run(_verify_command(registry, path), registry.folder)
        wall.append(time.perf_counter() - start)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        processor.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        if done.returncode != 0 or json.loads(done.stdout)["data"]["answer"] != "valid":
            raise SystemExit(f"verify did not find it valid: {done.stdout}{done.stderr}")
    return wall, processor


def heavy_modules(registry: FullRegistry, path: Path) -> list[str]:
    """Which of the heavy packages `genkd-node verify` imports, by Python's own account."""
    done = _run(_verify_command(registry, path, "-X", "importtime"), registry.folder)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    if "genkd.provenance.verifier" not in imported:
        raise SystemExit(f"Python did not tell what it imports: {done.stderr[-500:]}")
    return sorted(imported & set(TOO_HEAVY))


def _run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    # In a folder without a genkd.toml, and without settings from outside.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GENKD_")}
    environment |= {"XDG_CONFIG_HOME": str(folder)}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def forgeries(folder: Path) -> list[Figure]:
    """Run the tables of forged and of honest releases by pytest, and count."""
    report = folder / "forgeries.xml"
    tests = ROOT / "tests" / "genkd" / "provenance"
    command = [sys.executable, "-m", "pytest", "-q", f"--junitxml={report}"]
    command += ["-k", "is_refused or honest_release", "-p", "no:cacheprovider"]
    files = [str(tests / name) for name in ("test_forgeries.py", "test_verifier.py")]
    done = subprocess.run([*command, *files], cwd=ROOT, capture_output=True, text=True, check=False)
    if not report.exists():
        raise SystemExit(f"pytest did not run: {done.stdout[-500:]}{done.stderr[-500:]}")
    run, passed = Counter[str](), Counter[str]()
    for case in ElementTree.parse(report).iter("testcase"):  # noqa: S314 (pytest wrote it just now)
        test = case.attrib["name"].partition("[")[0]
        run[test] += 1
        passed[test] += len(case) == 0  # a failure, an error or a skip is an element within
    tables = {
        "forged releases": "test_a_forgery_is_refused",
        "forged, on a real chain": "test_what_the_chain_shows_is_refused_on_a_real_one",
        "forged, without a chain": "test_what_the_files_alone_show_is_refused_without_a_chain",
        "flipped bits": "test_any_flipped_bit_anywhere_is_refused",
    }
    figures = []
    for name, test in tables.items():
        least = 60 if name == "forged releases" else None
        figures.append(Figure(name, "", run[test], least, at_least=True))
        not_refused = run[test] - passed[test]
        figures.append(Figure(f"{name}: not refused at the right check", "", not_refused, 0))
    for where in ("", "_on_a_real_chain"):
        test = f"test_an_honest_release_is_valid{where}"
        name = f"honest releases found valid{where.replace('_', ' ')}"
        note = f"of {run[test]}"
        figures.append(Figure(name, "", passed[test], max(5, run[test]), at_least=True, note=note))
    return figures


def gas_figures(registry: FullRegistry, arguments: argparse.Namespace, mean: float) -> list[Figure]:
    """What each call costs."""
    gas, size = registry.gas, arguments.round_size
    relayed = ", sent by a relayer"
    return [
        Figure("addNode", "gas", gas["addNode"]),
        Figure("openRun", "gas", gas["openRun"]),
        Figure(f"commitTeacher{relayed}", "gas", gas["commitTeacher"]),
        Figure(f"register{relayed}", "gas", gas["register"], 75_000),
        Figure(f"register, sent by its node, mean of {arguments.records:,}", "gas", mean, 75_000),
        Figure(f"revokeFor{relayed}", "gas", gas["revokeFor"]),
        Figure(f"commitRound of {size:,} students", "gas", gas["commitRound"], 80_000),
        Figure(f"commitRound of {size:,}, a student", "gas", gas["commitRound"] / size, 8),
    ]


def chain_figures(
    registry: FullRegistry, paths: dict[str, Path], arguments: argparse.Namespace
) -> list[Figure]:
    """What verifying costs with the chain as full as it is."""
    figures = []
    for name, path in paths.items():
        asked = chain_time(registry, path, arguments.repeats)
        found = [sum(questions) for questions in asked]
        note = f"median of {len(found)}, {_spread(found)}, {len(asked[0])} questions"
        name = f"verify, chain time with {arguments.records:,} records, {name}"
        figures.append(Figure(name, "ms", statistics.median(found), 50, note=note))
        # On a busy machine no repeat gets through undisturbed, but each question does once.
        least = sum(min(times) for times in zip(*asked, strict=True))
        figures.append(Figure(f"{name}: the fastest of each question, in all", "ms", least))
    found = [_milliseconds_of_a_question(registry) for _ in range(arguments.repeats)]
    name = "one question that reads nothing (eth_chainId), for comparison"
    figures.append(Figure(name, "ms", statistics.median(found), note=_spread(found)))
    return figures


def process_figures(
    registry: FullRegistry, path: Path, arguments: argparse.Namespace
) -> list[Figure]:
    """What an auditor waits for."""
    wall, processor = whole_process(registry, path, arguments.processes)
    heavy = heavy_modules(registry, path)
    size = (path / STUDENT_NAME).stat().st_size / 1e6
    name = f"genkd-node verify, whole process, student of {size:.2f} MB"
    return [
        Figure(f"{name}, wall", "s", min(wall), 0.5, note=f"best of {len(wall)}, {_spread(wall)}"),
        Figure(f"{name}, processor", "s", statistics.median(processor), note=_spread(processor)),
        Figure("heavy packages it imports", "", len(heavy), 0, note=", ".join(heavy)),
    ]


def _milliseconds_of_a_question(registry: FullRegistry) -> float:
    start = time.perf_counter()
    registry.rpc.ask("eth_chainId")
    return 1000 * (time.perf_counter() - start)


def _spread(values: Sequence[float]) -> str:
    middle = statistics.median(values)
    return f"min {min(values):.2f}, median {middle:.2f}, max {max(values):.2f}"


def measure(arguments: argparse.Namespace) -> list[Figure]:
    """All figures, in the order of the table."""
    with (
        tempfile.TemporaryDirectory() as name,
        # A block counts as final two blocks later: what is confirmed is asked for apart.
        start_anvil(slots_in_an_epoch=1) as anvil,
    ):
        folder = Path(name)
        registry = FullRegistry(anvil.rpc_url, anvil.chain_id, folder)
        start = time.perf_counter()
        gas = registry.fill(arguments.records)
        _say(f"{arguments.records:,} records in {time.perf_counter() - start:.0f} s")
        paths = {
            "registered by itself": registry.publish(),
            f"one of a round of {arguments.round_size:,}": registry.publish_in_round(
                arguments.round_size
            ),
        }
        registry.revoke_one()
        registry.mine(4)
        figures = gas_figures(registry, arguments, gas / arguments.records)
        figures += chain_figures(registry, paths, arguments)
        if arguments.processes:
            figures += process_figures(registry, paths["registered by itself"], arguments)
        if not arguments.skip_forgeries:
            _say("running the tables of forged and of honest releases")
            figures += forgeries(folder)
    return figures


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Benchmark provenance on a real Anvil.")
    parser.add_argument("--records", type=int, default=10_000, help="students on the chain")
    parser.add_argument("--round-size", type=int, default=10_000, help="students in the round")
    parser.add_argument("--repeats", type=int, default=20, help="verifications in this process")
    parser.add_argument("--processes", type=int, default=5, help="runs of genkd-node; 0: none")
    parser.add_argument("--skip-forgeries", action="store_true", help="do not run pytest")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    if min(arguments.records, arguments.round_size, arguments.repeats) < 1:
        parser.error("records, round size and repeats are at least 1")
    figures = measure(arguments)
    load = os.getloadavg()[0]
    if arguments.json:
        rows = [{**asdict(one), "reached": one.reached} for one in figures]
        print(json.dumps({"figures": rows, "cores": os.cpu_count(), "load": load}))
        return
    print("| figure | target | measured | reached |\n|---|---|---|---|")
    for one in figures:
        print(one.row())
    print(f"\n{os.cpu_count()} cores, load average of the last minute {load:.1f}")


if __name__ == "__main__":
    main()
