"""How good the first student is: shipped teacher, half-width student, a budget of wall time.

    python benchmarks/first_student.py FOLDER [--seeds 3] [--budget 600s] [--set KEY=VALUE ...]

FOLDER holds the idx files of Fashion-MNIST (Debian: `dataset-fashion-mnist`). For each seed it runs
`genkd-node distill` in a process of its own and then `genkd-node evaluate` on all 10,000 test
images: the last step of a fixed budget, never the best on the test set. Runs are kept under --out
and not repeated, so an interrupted benchmark goes on where it stopped. Prints a table and writes
first_student.json there.

Run it on an otherwise idle machine: the budget is wall time.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
TEACHER = ROOT / "examples" / "fashion_mnist" / "teacher.safetensors"


def command(*arguments: str) -> tuple[dict[str, object], float, float]:
    """Run genkd-node; its JSON data, the wall seconds and the processor seconds it took."""
    start = time.monotonic()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    code = "import sys; from node.cli import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments, "--json"], stdout=subprocess.PIPE, check=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    data: dict[str, object] = json.loads(done.stdout)["data"]
    return data, time.monotonic() - start, spent


def run_seed(seed: int, arguments: argparse.Namespace) -> dict[str, object]:
    """Distil and evaluate once, or read what was found before."""
    folder = arguments.out / f"seed-{seed}"
    kept = arguments.out / f"seed-{seed}.json"
    if kept.exists():
        row: dict[str, object] = json.loads(kept.read_text())
        return row
    overrides = [part for text in arguments.overrides for part in ("--set", text)]
    _, wall_seconds, core_seconds = command(
        *("distill", "--teacher", str(TEACHER), "--student", "resnet8-half"),
        *("--budget", arguments.budget, "--seed", str(seed), "--out", str(folder), *overrides),
    )
    student = str(folder / "student.safetensors")
    answer, _, _ = command(
        "evaluate", student, "--data", str(arguments.folder), "--teacher", str(TEACHER)
    )
    result = json.loads((folder / "result.json").read_text())
    row = {
        "seed": seed,
        "top1": answer["top1"],
        "agreement": answer["agreement"],
        "calibration_error": answer["ece"],
        "seconds": result["seconds"],
        "wall_seconds": wall_seconds,
        "core_seconds": core_seconds,
        "samples": result["samples"],
        "teacher_passes": result["teacher_passes"],
        "peak_memory_bytes": result["peak_memory_bytes"],
    }
    kept.write_text(json.dumps(row, indent=2))
    return row


def main() -> None:
    """Run all seeds and print the table."""
    parser = argparse.ArgumentParser(description="Benchmark the first student.")
    parser.add_argument("folder", type=Path, help="where the idx files lie")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--budget", default="600s")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark-first-student"))
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows = [run_seed(seed, arguments) for seed in range(arguments.seeds)]
    top1 = [float(str(row["top1"])) for row in rows]
    print("| seed | top-1 | agreement | wall s | core s | images | peak MiB |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['seed']} | {row['top1']:.2%} | {row['agreement']:.2%} "
            f"| {row['wall_seconds']:.0f} "
            f"| {row['core_seconds']:.0f} | {row['samples']:,} "
            f"| {int(str(row['peak_memory_bytes'])) / 2**20:.0f} |"
        )
    deviation = statistics.stdev(top1) if len(top1) > 1 else 0.0
    print(f"\nmean {statistics.mean(top1):.2%}, deviation {deviation:.2%}, {os.cpu_count()} cores")
    (arguments.out / "first_student.json").write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
