"""The benchmarks start, and the one of provenance runs through with tiny numbers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"
# What a user starts: every script with a main of its own.
SCRIPTS = sorted(p.name for p in FOLDER.glob("*.py") if '"__main__"' in p.read_text("utf-8"))


def run(script: str, *arguments: str) -> str:
    command = [sys.executable, str(FOLDER / script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("script", SCRIPTS)
def test_benchmark_says_what_it_does(script: str) -> None:
    assert run(script, "--help").startswith("usage:")


def test_provenance_benchmark_measures_on_a_real_chain() -> None:
    numbers = ("--records", "3", "--round-size", "3", "--repeats", "1", "--processes", "0")
    answer = json.loads(run("provenance.py", *numbers, "--skip-forgeries", "--json"))
    figures = {figure["name"]: figure for figure in answer["figures"]}
    # Gas does not depend on the machine: what the issue asks for holds in every run.
    for name in ("register, sent by a relayer", "commitRound of 3 students"):
        assert figures[name]["reached"] is True
    chain_times = [name for name in figures if name.startswith("verify, chain time")]
    assert len(chain_times) == 4  # for each path onto the chain: the median, and the least
    assert all(figures[name]["measured"] > 0 for name in chain_times)
