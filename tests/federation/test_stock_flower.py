"""The same apps on a stock SuperLink and stock SuperNodes, started by a stock `flwr run`."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
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
rounds = 1
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
    (made.coordinator.folder / "plan.toml").write_text(PLAN)
    yield made
    made.chain.down()


def flower(folder: Path) -> dict[str, str]:
    """The safe environment, which a person would set by hand."""
    wanted = flower_environment(folder / "flwr-home")
    return {name: value for name, value in wanted.items() if name.startswith("FLWR_")}


def app_folder(federation: RealFederation, address: str) -> Path:
    """What a person types `flwr run` on, and the connection's place in Flower's configuration."""
    app = federation.folder / "app"
    app.mkdir()
    (app / "pyproject.toml").write_text(app_project())
    (federation.folder / "flwr-home").mkdir()
    connection = f'address = "{address}"\ninsecure = true\n'
    (federation.folder / "flwr-home" / "config.toml").write_text(
        f'[superlink]\ndefault = "here"\n\n[superlink.here]\n{connection}'
    )
    return app


@pytest.fixture(scope="module")
def superlink(federation: RealFederation) -> Iterator[str]:
    """A stock SuperLink in the coordinator's folder, and a stock SuperNode in each node's."""
    folder, port = federation.coordinator.folder, free_port()
    started = [
        Program(
            folder,
            "superlink",
            [BIN / "flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", port],
            **flower(folder),
        )
    ]
    try:
        for node in federation.nodes:
            command = [
                *(BIN / "flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{port}"),
                *("--node-config", f'membership="{node.membership}"', "--port", free_port()),
            ]
            started.append(Program(node.folder, "supernode", command, **flower(node.folder)))
        for one in started[1:]:
            one.says("SuperNode ID:")
        yield f"127.0.0.1:{port}"
    finally:
        for one in reversed(started):
            one.end()


def test_a_round_of_flwr_run_is_recorded_and_kept(
    federation: RealFederation, superlink: str
) -> None:
    app = app_folder(federation, superlink)
    plan = federation.coordinator.folder / "plan.toml"
    started = subprocess.run(
        [BIN / "flwr", "run", app, "here", "--run-config", f'plan="{plan}"', "--format", "json"],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        cwd=federation.folder,
        env=environment_of(federation.folder) | flower(federation.folder),
    )
    assert started.returncode == 0, started.stdout + started.stderr
    assert json.loads(started.stdout)["success"], started.stdout
    logs = [party.folder for party in (federation.coordinator, *federation.nodes)]

    def said() -> str:
        return "\n".join(p.read_text()[-6000:] for folder in logs for p in folder.glob("su*.txt"))

    for node in federation.nodes:
        wait_for(lambda node=node: node.kept(0), 2 * PATIENCE, said)  # type: ignore[misc]
        node.publish(1)
    wait_for(lambda: all(node.kept(1) for node in federation.nodes), 2 * PATIENCE, said)
    federation.assert_round(1)
