"""The same apps on a stock SuperLink, started by a stock `flwr run`: with stock SuperNodes, and in
Flower's simulation, where Ray's workers are the nodes.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from contracts.app_bundle import app_project
from contracts.flower_environment import flower_environment
from tests.federation.real_federation import (
    PATIENCE,
    RUN,
    STUDENT,
    Program,
    RealFederation,
    environment_of,
    free_port,
    make_federation,
    wait_for,
)

pytest.importorskip("flwr")
BIN = Path(sys.executable).parent
PLAN = f"""\
run = "{RUN}"
nodes = 2
quorum = 2
wait = "10m"
merge = "fedavg"
student = "{STUDENT[1]}"
classes = "{STUDENT[3]}"
image = "{STUDENT[5]}"
"""


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealFederation]:
    made = make_federation(tmp_path_factory.mktemp("stock"))
    app = made.folder / "app"
    app.mkdir()
    (app / "pyproject.toml").write_text(app_project())
    yield made
    made.chain.down()


def flower(folder: Path) -> dict[str, str]:
    """The safe environment, which a person would set by hand."""
    wanted = flower_environment(folder / "flwr-home")
    return {name: value for name, value in wanted.items() if name.startswith("FLWR_")}


@contextmanager
def superlink(federation: RealFederation, *options: str, **environment: str) -> Iterator[str]:
    """A stock SuperLink in the coordinator's folder; its address."""
    folder, address = federation.coordinator.folder, f"127.0.0.1:{(port := free_port())}"
    command = [BIN / "flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", port]
    program = Program(folder, "superlink", command + list(options), **flower(folder), **environment)
    try:
        program.says("Application startup complete")
        yield address
    finally:
        program.end()


@contextmanager
def supernodes(federation: RealFederation, address: str) -> Iterator[None]:
    """A stock SuperNode in each node's folder."""
    with ExitStack() as started:
        programs = []
        for node in federation.nodes:
            command = [
                *(BIN / "flower-supernode", "--insecure", "--superlink", address),
                *("--node-config", f'membership="{node.membership}"', "--port", free_port()),
            ]
            programs.append(Program(node.folder, "supernode", command, **flower(node.folder)))
            started.callback(programs[-1].end)
        for one in programs:
            one.says("SuperNode ID:")
        yield


def flwr_run(federation: RealFederation, address: str, rounds: int, *options: str) -> None:
    """What a person types, once the connection stands in Flower's configuration."""
    folder = federation.folder
    environment = environment_of(folder) | flower(folder)
    plan = folder / "plan.toml"
    plan.write_text(f"rounds = {rounds}\n{PLAN}")
    connection = f'[superlink.here]\naddress = "{address}"\ninsecure = true\n'
    (folder / "flwr-home" / "config.toml").write_text(connection)
    config = ["--run-config", f'plan="{plan}"', *options, "--format", "json"]
    started = subprocess.run(
        [BIN / "flwr", "run", "app", "here", *config],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        cwd=folder,
        env=environment,
    )
    assert started.returncode == 0, started.stdout + started.stderr
    assert json.loads(started.stdout)["success"], started.stdout


def assert_next_round(federation: RealFederation, number: int) -> None:
    """The nodes train and publish; the round ends right."""

    def said() -> str:
        folders = [party.folder for party in (federation.coordinator, *federation.nodes)]
        return "\n".join(p.read_text()[-6000:] for f in folders for p in f.glob("super*.txt"))

    for node in federation.nodes:
        wait_for(lambda node=node: node.kept(number - 1), 2 * PATIENCE, said)  # type: ignore[misc]
        node.publish(number)
    wait_for(lambda: all(node.kept(number) for node in federation.nodes), 2 * PATIENCE, said)
    federation.assert_round(number)


def next_number(federation: RealFederation) -> int:
    """The rounds of this file follow each other, whichever of its tests are run."""
    return len(list((federation.nodes[0].folder / "runs").iterdir())) + 1


def test_a_round_of_flwr_run_on_stock_supernodes(federation: RealFederation) -> None:
    number = next_number(federation)
    with superlink(federation) as address, supernodes(federation, address):
        flwr_run(federation, address, number)
        assert_next_round(federation, number)


def test_a_round_of_flwr_run_in_simulation(federation: RealFederation) -> None:
    pytest.importorskip("ray", reason="needs flwr[simulation]")
    number = next_number(federation)
    memberships = federation.folder / "memberships"
    memberships.mkdir()
    for index, node in enumerate(federation.nodes):
        (memberships / str(index)).symlink_to(node.membership)
    simulating = superlink(federation, "--simulation", GENKD_MEMBERSHIP=str(memberships))
    resources = "num-supernodes=2 client-resources-num-cpus=1 init-args-num-cpus=2"
    with simulating as address:
        flwr_run(federation, address, number, "--federation-config", resources)
        assert_next_round(federation, number)
