"""The benchmarks start, and those of provenance and federation run through with tiny numbers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.federation_traffic import (
    CHAIN_PORT,
    COORDINATOR,
    COORDINATOR_PORT,
    NAME_SERVER,
    Packet,
    traffic,
)

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


def test_federation_benchmark_counts_submissions_and_memory(tmp_path: Path) -> None:
    few = ("--submissions", "40", "--releases", "4", "--members", "--out", str(tmp_path))
    shown = run("federation.py", "--only", "submissions", "--only", "memory", *few)
    found = json.loads((tmp_path / "federation.json").read_text())
    assert found["submissions"]["reached"] is True
    assert found["submissions"]["duplicates"] == 4
    assert found["memory"]["reached"] is True
    assert found["memory"]["releases"] == 4
    assert "| peak when trimmed |" in shown


def test_every_packet_of_a_stretch_is_counted_once_whatever_it_is_for() -> None:
    def packet(
        address: str, port: int, size: int, at: float = 1.0, protocol: str = "tcp"
    ) -> Packet:
        return Packet(at, protocol, address, port, size, max(0, size - 52), False)

    found = traffic(
        [
            packet(COORDINATOR, COORDINATOR_PORT, 1500),
            packet(COORDINATOR, COORDINATOR_PORT, 152),
            packet(COORDINATOR, COORDINATOR_PORT, 52),
            packet(COORDINATOR, CHAIN_PORT, 300),
            packet(NAME_SERVER, 53, 60, protocol="udp"),
            packet("192.0.2.1", 443, 1000),
            packet(COORDINATOR, COORDINATOR_PORT, 40, protocol="udp"),
            packet(COORDINATOR, COORDINATOR_PORT, 7000, at=2.0),  # of the next stretch
        ],
        0.0,
        2.0,
    )
    assert (found.to_coordinator, found.to_chain, found.names_asked) == (1704, 300, 1)
    assert found.elsewhere == {"tcp 192.0.2.1:443": 1000, f"udp {COORDINATOR}:9092": 40}
    assert (found.payload, found.small_payload, found.acknowledgements) == (1448, 100, 52)
    assert found.payload + found.small_payload + found.acknowledgements + found.headers == 1704
