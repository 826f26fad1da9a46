"""A node is admitted, connects, and is removed: its `join` ends, and says so. Real processes."""

from __future__ import annotations

from pathlib import Path

import pytest

from coordinator.certificates import Authority
from tests.federation.real_federation import (
    PATIENCE,
    RUN,
    Program,
    children_of,
    free_port,
    make_federation,
    wait_for,
)

pytest.importorskip("flwr")


def test_join_of_a_removed_node_ends_with_9_and_one_clear_line(tmp_path: Path) -> None:
    federation = make_federation(tmp_path, nodes=1)
    (node,), folder = federation.nodes, federation.coordinator.folder
    authority = Authority.create(federation.federation)
    authority.issue(["localhost"])
    port = free_port()
    serve = Program(folder, "serve", ["genkd-coordinator", "serve", "--port", port])
    command = [
        *("genkd-node", "join", f"127.0.0.1:{port}"),
        *("--ca-fingerprint", authority.fingerprint, "--run", RUN),
    ]
    started = [serve]
    try:
        serve.says("serving")
        join = Program(node.folder, "join", command)
        started.append(join)
        join.says("waiting for the coordinator's operator")
        Program(folder, "admit", ["genkd-coordinator", "admit", node.address]).succeeds()
        join.says("connected to the coordinator")
        Program(
            folder, "remove", ["genkd-coordinator", "remove", node.address, "--from", "now"]
        ).succeeds()
        assert join.process.wait(2 * PATIENCE) == 9, join.said()
        assert "removed by the coordinator" in join.said().splitlines()[-2]
        assert "genkd-node init --keys" in join.said().splitlines()[-1]
        wait_for(lambda: not children_of(node), 15)
        again = Program(node.folder, "again", command)
        started.append(again)
        assert again.process.wait(60) == 9
        assert "removed by the coordinator" in again.said()
    finally:
        for one in started:
            one.end()
        federation.chain.down()
