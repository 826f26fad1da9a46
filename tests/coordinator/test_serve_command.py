"""From `init` to a node that is let in and shut out again: the real server, chain and SuperLink."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from contracts.app_bundle import app_bundle_sha256
from contracts.enrolment import FederationCard, JoinRequest
from contracts.registry_state import RegistryState
from coordinator import cli
from coordinator.joins import Joins
from genkd.canonical import canonical_json
from genkd.provenance import keystore
from genkd.provenance.typed_data import Domain, parse_address
from node.enrolment import ask_state, enrol
from tests.coordinator.enrolment_server import CARD, keys_of, supernode_key

ROOT = Path(__file__).parents[2]
PATIENCE = 120.0  # on a machine that does other things as well


@dataclass(frozen=True)
class Home:
    """A working folder of a coordinator, and its program."""

    path: Path

    @property
    def environment(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("GENKD_", "FLWR_"))}
        return kept | {
            "HOME": str(self.path),
            "XDG_CONFIG_HOME": str(self.path / ".config"),
            "PYTHONPATH": str(ROOT),
            "GENKD_COORDINATOR_KEY_PASSWORD_FILE": str(self.path / "passphrase"),
        }

    def run(self, *arguments: str, code: int = 0) -> Any:
        """A command in this process: for those that ask no SuperLink: flwr stays out."""
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as out:
            for name in [name for name in os.environ if name.startswith("GENKD_")]:
                patch.delenv(name)
            for name, value in self.environment.items():
                patch.setenv(name, value)
            patch.setattr(keystore, "SCRYPT_N", 2**12)
            patch.chdir(self.path)
            ended = cli.main([*arguments, "--json"])
        return result(out.getvalue(), ended, code)

    def run_apart(self, *arguments: str, code: int = 0) -> Any:
        """A command in a process of its own."""
        command = [sys.executable, "-m", "coordinator.cli", *arguments, "--json"]
        done = subprocess.run(
            command, cwd=self.path, env=self.environment, stdout=subprocess.PIPE, text=True
        )
        return result(done.stdout, done.returncode, code)

    @contextmanager
    def serving(self, end: signal.Signals = signal.SIGTERM) -> Iterator[str]:
        """The server; ended by a signal. Yields where nodes reach it."""
        command = [sys.executable, "-m", "coordinator.cli", "serve", "--port", "0"]
        with (self.path / "serve.log").open("wb") as log:
            process = subprocess.Popen(
                command, cwd=self.path, env=self.environment, stdout=log, stderr=log
            )
        try:
            # It says so last, once nodes are let in.
            until(lambda: "nodes join by" in self.log, process)
            yield self.superlink_of(process.pid)["public"]
            process.send_signal(end)
            code = process.wait(30)
            assert code == (0 if end is signal.SIGTERM else -end), self.log
            assert (self.path / "federation/superlink.json").exists() is (end is signal.SIGKILL)
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()

    def superlink_of(self, pid: int) -> Any:
        path = self.path / "federation" / "superlink.json"
        value = json.loads(path.read_bytes()) if path.exists() else {}
        return value if value.get("pid") == pid else None

    @property
    def log(self) -> str:
        return (self.path / "serve.log").read_text()


def result(text: str, ended: int, expected: int) -> Any:
    assert ended == expected, text
    value = json.loads(text)
    return value["data"] if value["status"] == "ok" else value["error"]


def until(condition: Callable[[], bool], process: subprocess.Popen[bytes] | None = None) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert process is None or process.poll() is None, "it ended"
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    made = Home(tmp_path_factory.mktemp("coordinator"))
    (made.path / "passphrase").write_text("correct horse battery")
    (made.path / "passphrase").chmod(0o600)
    (made.path / "genkd.toml").write_text('[coordinator]\nhost = "127.0.0.1"\n')
    try:
        yield made
    finally:
        made.run("chain", "down")


def test_from_init_to_a_node_that_is_let_in_and_shut_out(home: Home, tmp_path: Path) -> None:
    done = home.run("init", "--host", "localhost")
    fingerprint, coordinator = done["ca_fingerprint"], done["address"]
    assert f"--ca-fingerprint {fingerprint}" in done["join"]
    home.run("serve", code=3)  # which registry counts is not said yet
    home.run("chain", "up", "--port", "0")
    home.run("open-run", "spring")
    keys, key = keys_of(0xA11CE), supernode_key()
    joins = Joins(home.path / "federation")

    def join(address: str, supernode: str = key) -> str:
        return enrol(address, fingerprint, keys.profile, keys, supernode, tmp_path).state

    # Asked and admitted while the server runs; the server is killed.
    with home.serving(signal.SIGKILL) as address:
        assert f"genkd-node join {address} --ca-fingerprint {fingerprint} --run spring" in home.log
        assert join(address) == "pending"
        card = FederationCard.from_bytes((tmp_path / "federation.json").read_bytes())
        assert parse_address(coordinator) == card.coordinator
        assert (card.runs, card.app_sha256) == (("spring",), app_bundle_sha256())
        assert card.rpc_url is not None, "this federation is on one machine"
        assert [row["node"] for row in home.run("admit")["pending"]] == [keys.address]
        first = home.run_apart("admit", keys.address)
        assert first["supernode"] is not None
        again = home.run_apart("admit", keys.address)
        assert (again["before"], again["supernode"]) == (True, first["supernode"])
        assert ask_state(address, tmp_path, keys.address).state == "admitted"
        assert home.run("admit")["pending"] == []

    # Another SuperNode is let in only by a new admit, and that while the server is down.
    other = supernode_key()
    with home.serving() as address:
        assert join(address, other) == "pending"
        assert joins.supernodes() == {int(first["supernode"]): keys.address}
    assert home.run("admit", keys.address)["supernode"] == first["supernode"], "not yet"
    with home.serving() as address:
        until(lambda: ask_state(address, tmp_path, keys.address).state == "admitted")
        assert int(first["supernode"]) not in joins.supernodes()

    # Removed while the server is down, which shuts the SuperNode out when it is up again.
    assert home.run("remove", keys.address, "--from", "now")["until"] > 0
    assert list(joins.supernodes()) != []
    with home.serving() as address:
        until(lambda: joins.supernodes() == {})
        assert join(address, other) == "refused"
        assert home.run_apart("remove", keys.address, "--from", "now")["node"] == keys.address
        assert "takes no key back" in home.run("admit", keys.address, code=9)["message"]


def test_init_again_changes_the_servers_names_and_nothing_that_nodes_rely_on(home: Home) -> None:
    before = (home.path / "federation/ca.pem").read_bytes()
    assert home.run("init", code=7)["code"] == "key_or_signature"
    done = home.run("init", "--host", "federation.example", "--host", "10.0.0.7")
    assert done["names"][:2] == ["federation.example", "10.0.0.7"]
    assert (home.path / "federation/ca.pem").read_bytes() == before
    assert home.run("init", "--host", "https://x", code=2)["code"] == "usage"


def test_who_never_asked_is_not_admitted_by_address(home: Home) -> None:
    assert "has not asked" in home.run("admit", keys_of(5).address, code=2)["message"]


def test_a_request_nobody_wants_is_refused_without_the_chain(home: Home) -> None:
    keys, joins = keys_of(6), Joins(home.path / "federation")
    joins.receive(JoinRequest.make(keys, supernode_key(), CARD.domain, bytes(32)))
    # It was made for another registry and another authority: nobody can admit it.
    assert home.run("admit", keys.address, code=7)["code"] == "key_or_signature"
    assert home.run("remove", keys.address, "--from", "now")["until"] == 0
    answer = joins.answer(keys.address)
    assert answer is not None
    assert answer.state == "refused"


def test_two_nodes_do_not_share_a_supernode(home: Home) -> None:
    joins, shared = Joins(home.path / "federation"), supernode_key()
    status = home.run("chain", "status")
    domain = Domain(status["chain_id"], status["registry"])
    authority = bytes.fromhex(home.run("init", "--host", "localhost")["ca_fingerprint"])
    for secret, code in ((11, 0), (12, 9)):
        keys = keys_of(secret)
        joins.receive(JoinRequest.make(keys, shared, domain, authority))
        answer = home.run("admit", keys.address, code=code)
    assert keys_of(11).address in answer["message"]
    state = RegistryState(status["rpc_url"], domain, confirmations=0)
    assert state.node(keys.address).since == 0, "refused before the chain is written to"


def test_a_profile_other_than_the_one_that_asked_is_refused(home: Home) -> None:
    """Both signed by the same node, which must say which one it means."""
    joins, keys = Joins(home.path / "federation"), keys_of(13)
    joins.receive(JoinRequest.make(keys, supernode_key(), CARD.domain, bytes(32)))
    profile = home.path / "profile.json"
    profile.write_bytes(canonical_json(keys_of(13).profile.to_json()))
    assert "another profile" in home.run("admit", "profile.json", code=4)["message"]
