"""A membership on a real SuperLink: what is run, what comes back after a kill, what ends when.

One SuperLink with TLS and node authentication, and `genkd-node join` as a person starts it. All on
loopback, on free ports.
"""

from __future__ import annotations

import io
import os
import re
import signal
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from contracts.app_bundle import app_bundle, app_bundle_sha256
from contracts.flower_environment import flower_environment
from coordinator import flower_run
from coordinator.certificates import Authority
from coordinator.superlink import list_supernodes, register_supernode
from genkd.provenance.keys import KeyFolder
from genkd.provenance.record import run_id_of
from node.answers import AnswerLog
from node.membership import Joined, Membership
from node.policy import default_policy_text

pytest.importorskip("flwr")
ROOT = Path(__file__).parents[2]
RUN = "spring"
PATIENCE = 180.0  # seconds, on a busy machine

SERVE = """
import sys
from pathlib import Path
from coordinator.superlink import SuperLinkConfig, serve
serve(SuperLinkConfig(Path(sys.argv[1]), "127.0.0.1", int(sys.argv[2])),
      on_ready=lambda running: print("ready", flush=True))
"""


def wait_for(what: Callable[[], Any], seconds: float = PATIENCE) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := what():
            return value
        time.sleep(0.1)
    raise AssertionError(f"did not happen within {seconds} s")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


class SuperLink:
    """A SuperLink that can be killed and started again at the same address."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        authority = Authority.create(folder)
        authority.issue(["localhost"])
        self.fingerprint = authority.fingerprint
        self.process: subprocess.Popen[str] | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVE, str(self.folder), str(self.port)],
            stdout=subprocess.PIPE, text=True, cwd=ROOT,
        )  # fmt: skip
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def end(self, number: int = signal.SIGTERM) -> None:
        if self.process is not None:
            self.process.send_signal(number)
            self.process.communicate(timeout=30)
        self.process = None

    def online(self) -> list[int]:
        return [node.node_id for node in list_supernodes(self.folder) if node.online]


class Node:
    """`genkd-node join`, after a coordinator has admitted the node."""

    def __init__(self, folder: Path, keys: Path, superlink: SuperLink) -> None:
        self.folder, self.keys, self.superlink = folder, keys, superlink
        self.membership = Membership.open(folder / "a membership")
        address = KeyFolder(keys).profile().node
        self.membership.make_secrets()
        self.membership.remember(
            Joined(superlink.address, superlink.fingerprint, address, (RUN,), "admitted")
        )
        self.membership.ca.write_bytes((superlink.folder / "ca.pem").read_bytes())
        text = default_policy_text(
            node=address, runs=[RUN], app_sha256=app_bundle_sha256(), releases=[folder / "runs"]
        )
        self.membership.policy.write_text(text)
        self.said = folder / "said.txt"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        superlink = self.superlink
        command = [
            *(sys.executable, "-m", "node.cli", "join", superlink.address),
            *("--ca-fingerprint", superlink.fingerprint, "--keys", str(self.keys)),
            *("--membership", str(self.membership.folder), "--rpc", "http://127.0.0.1:9"),
            *("--chain-id", "31337", "--registry", "0x" + "11" * 20),
        ]
        # A person's environment may hold anything.
        environment = os.environ | {"FLWR_TELEMETRY_ENABLED": "1", "PYTHONPATH": str(ROOT)}
        with self.said.open("wb") as said:
            self.process = subprocess.Popen(command, stderr=said, cwd=self.folder, env=environment)

    def register(self) -> int:
        from contracts.enrolment import supernode_key_pem

        pem = supernode_key_pem(self.membership.supernode_public_key()).encode()
        return register_supernode(self.superlink.folder, pem, "node")

    def lines(self) -> list[str]:
        """What people were told, but that this SuperLink, without enrolment, has no request."""
        lines = self.said.read_text().splitlines()
        return [line for line in lines if "has no request" not in line]

    def says_connected(self) -> bool:
        """Whether the last that people were told is that it is connected."""
        return any(line.startswith("connected") for line in self.lines()[-1:])

    def children(self) -> dict[str, int]:
        """The running processes of this membership, by their module."""
        found = {}
        ps = ["ps", "-eww", "-o", "pid=,stat=,args="]
        listed = subprocess.run(ps, capture_output=True, text=True)
        for line in listed.stdout.splitlines():
            pid, state, arguments = line.split(None, 2)
            module = re.search(r"-m (node\.(?:executor|supernode_process)) ", arguments)
            if module and str(self.membership.folder) in arguments and state[0] != "Z":
                found[module[1]] = int(pid)
        return found

    def end(self) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=30)

    def clean_up(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        wait_for(lambda: not self.children(), 15)


@pytest.fixture(scope="module")
def superlink(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SuperLink]:
    before = dict(os.environ)
    found = SuperLink(tmp_path_factory.mktemp("federation"))
    found.start()
    yield found
    found.end()
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def idle_node(superlink: SuperLink, tmp_path: Path, made_keys: Path) -> Iterator[Node]:
    """One of its own, not started."""
    node = Node(tmp_path, made_keys, superlink)
    yield node
    node.clean_up()


@pytest.fixture(scope="module")
def same_node(
    superlink: SuperLink, tmp_path_factory: pytest.TempPathFactory, made_keys: Path
) -> Iterator[Node]:
    node = Node(tmp_path_factory.mktemp("node"), made_keys, superlink)
    yield node
    node.clean_up()


@pytest.fixture
def node(same_node: Node) -> Node:
    """One that is connected; started anew if a test before ended it."""
    node_id = same_node.register()
    if same_node.process is None or same_node.process.poll() is not None:
        same_node.start()
    wait_for(lambda: node_id in same_node.superlink.online() and len(same_node.children()) == 2)
    # The SuperLink may count it in before it has told people so.
    wait_for(same_node.says_connected)
    return same_node


def ask(superlink: SuperLink, node_id: int, bundle: bytes | None = None) -> Any:
    """Submit a run with a bundle, ask the node for a release, and return its reply."""
    import hashlib

    from flwr.app import Message

    from contracts.exchange import COLLECT, CollectRequest

    def main(grid: Any, context: Any) -> Any:
        record = CollectRequest(run_id_of(RUN), 1).to_record()
        (asked,) = grid.push_messages([Message(record, node_id, COLLECT, ttl=PATIENCE)])
        assert asked
        (reply,) = wait_for(lambda: list(grid.pull_messages([asked])))
        return reply

    with pytest.MonkeyPatch.context() as patch:
        if bundle is not None:
            patch.setattr(flower_run, "app_bundle", lambda: bundle)
            digest = hashlib.sha256(bundle).hexdigest()
            patch.setattr(flower_run, "app_bundle_sha256", lambda: digest)
        return flower_run.run_server_app(superlink.folder, main)


def hostile_bundle(marker: Path) -> bytes:
    """The bundle of the federation with an app of its own, which leaves a trace when imported."""
    code = (
        f"open({str(marker)!r}, 'w').close()\n"
        "from flwr.clientapp import ClientApp\napp = ClientApp()\n"
    )
    with zipfile.ZipFile(io.BytesIO(app_bundle())) as honest:
        project = honest.read("pyproject.toml").decode()
    files = {
        "pyproject.toml": project.replace("node.client_app:app", "hostile.app:app").encode(),
        "hostile/__init__.py": b"",
        "hostile/app.py": code.encode(),
    }
    return bundle_of(files)


def bundle_of(files: dict[str, bytes]) -> bytes:
    import hashlib

    contents = [f"{n},{hashlib.sha256(d).hexdigest()},{len(d) * 8}" for n, d in files.items()]
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as bundle:
        for name, data in (*files.items(), (".info/CONTENT", "\n".join(contents).encode())):
            bundle.writestr(name, data)
    return archive.getvalue()


def test_a_hostile_bundle_is_run_by_nobody_and_the_honest_one_is_answered(
    node: Node, tmp_path: Path
) -> None:
    from contracts.exchange import CollectReply

    marker = tmp_path / "marker"
    node_id = node.register()
    refused = ask(node.superlink, node_id, hostile_bundle(marker))
    assert refused.has_error()
    assert refused.error.reason == "this node does not run this app"
    assert not marker.exists()
    assert not list(node.membership.folder.rglob("hostile*"))  # nor unpacked
    log = node.membership.folder / "executor.log"
    wait_for(lambda: "policy.toml does not allow" in log.read_text())
    reply = CollectReply.from_record(ask(node.superlink, node_id).content)
    assert reply.node == KeyFolder(node.keys).profile().node
    assert reply.files is None


def test_the_same_bundle_is_run_by_a_stock_supernode(idle_node: Node, tmp_path: Path) -> None:
    """What the executor is there for; and the test above could have failed."""
    marker, superlink, membership = tmp_path / "marker", idle_node.superlink, idle_node.membership
    node_id = idle_node.register()
    command = [
        *(Path(sys.executable).with_name("flower-supernode"), "--superlink", superlink.address),
        *("--root-certificates", membership.ca, "--auth-supernode-private-key", membership.key),
        *("--port", str(free_port())),
    ]
    environment = flower_environment(membership.flower_home)
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    with (tmp_path / "log").open("wb") as log:
        stock = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    try:
        wait_for(lambda: node_id in superlink.online())
        ask(superlink, node_id, hostile_bundle(marker))
        assert marker.exists()
    finally:
        stock.terminate()
        stock.wait(30)


def test_no_process_of_a_node_can_reach_a_telemetry_host(node: Node) -> None:
    """The caller's environment switches it on."""
    for pid in node.children().values():
        path = Path(f"/proc/{pid}/environ")
        if not path.exists():
            pytest.skip("this system shows no environments")
        environment = dict(
            entry.split("=", 1) for entry in path.read_text().split("\0") if "=" in entry
        )
        assert environment["FLWR_TELEMETRY_ENABLED"] == "0"
        assert environment["FLWR_DISABLE_UPDATE_CHECK"] == "1"
        assert environment["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] == "1"
        assert Path(environment["FLWR_HOME"]) == node.membership.flower_home


def test_sigterm_ends_all_of_it_in_order(node: Node) -> None:
    node_id = node.register()
    assert len(node.children()) == 2
    started = time.monotonic()
    assert node.end() == 0
    assert time.monotonic() - started < 20  # it allows itself 8.5, and Python ends then
    assert node.children() == {}
    assert not node.membership.is_running()
    assert node_id not in node.superlink.online()  # it has said goodbye


def test_the_executor_comes_back_after_a_kill_and_answers(node: Node) -> None:
    node_id, before, said = node.register(), node.children(), len(node.lines())
    os.kill(before["node.executor"], signal.SIGKILL)
    after = wait_for(lambda: len(now := node.children()) == 2 and now != before and now)
    # The SuperNode may have waited for an answer that died.
    assert not set(after.values()) & set(before.values())
    wait_for(lambda: node_id in node.superlink.online())
    wait_for(node.says_connected)
    assert not ask(node.superlink, node_id).has_error()
    assert sum("executor ended" in line for line in node.lines()[said:]) == 1


def test_a_killed_supernode_comes_back_with_the_same_key(node: Node) -> None:
    node_id, before, said = node.register(), node.children(), len(node.lines())
    os.kill(before["node.supernode_process"], signal.SIGKILL)
    # The SuperLink would take the dead one for present for four minutes, and refuse its successor.
    wait_for(lambda: any(line.startswith("connected") for line in node.lines()[said:]))
    assert node_id in node.superlink.online()
    # It might have kept a question for the one that was killed.
    assert node.children()["node.executor"] != before["node.executor"]
    assert len(node.lines()[said:]) < 6, node.lines()[said:]


def sigterm(node: Node) -> None:
    started = time.monotonic()
    assert node.end() == 0
    assert time.monotonic() - started < 20  # it allows itself 8.5, and Python ends then


def kill_executor(node: Node) -> None:
    os.kill(node.children()["node.executor"], signal.SIGKILL)


def kill_supernode(node: Node) -> None:
    os.kill(node.children()["node.supernode_process"], signal.SIGKILL)


@pytest.mark.parametrize("end", [kill_executor, kill_supernode, sigterm])
def test_who_asked_learns_soon_that_a_kept_question_is_lost(
    end: Callable[[Node], None], node: Node
) -> None:
    from flwr.app import Message

    from contracts.exchange import COLLECT, CollectRequest

    log = AnswerLog(node.membership.folder)
    noted = log.recent(1)
    node_id = node.register()

    def main(grid: Any, context: Any) -> Any:
        record = CollectRequest(run_id_of(RUN), 1, wait=300).to_record()
        (asked,) = grid.push_messages([Message(record, node_id, COLLECT, ttl=600.0)])
        wait_for(lambda: log.recent(1) != noted)
        end(node)
        (reply,) = wait_for(lambda: list(grid.pull_messages([asked])))
        return reply

    assert flower_run.run_server_app(node.superlink.folder, main).has_error()


def test_both_end_when_their_keeper_is_killed(node: Node) -> None:
    assert node.process is not None
    assert len(node.children()) == 2
    node.process.kill()
    node.process.wait()
    wait_for(lambda: not node.children(), 10)
    assert not node.membership.is_running()


def test_a_superlink_that_is_killed_and_comes_back_is_two_lines(node: Node) -> None:
    node_id, before, said = node.register(), node.children(), len(node.lines())
    node.superlink.end(signal.SIGKILL)
    wait_for(lambda: any("does not answer" in line for line in node.lines()[said:]))
    time.sleep(5)
    node.superlink.start()
    wait_for(node.says_connected)
    assert node.children() == before
    assert [line.split(" ")[0] for line in node.lines()[said:]] == ["the", "connected"]
    assert node_id in node.superlink.online()
    assert not ask(node.superlink, node_id).has_error()


def test_a_superlink_that_is_away_at_the_start_is_one_line(idle_node: Node) -> None:
    idle_node.register()
    idle_node.superlink.end()
    try:
        idle_node.start()
        wait_for(lambda: any("does not answer" in line for line in idle_node.lines()))
        time.sleep(8)
        assert sum("does not answer" in line for line in idle_node.lines()) == 1
        assert len(idle_node.lines()) == 2
        log = (idle_node.membership.folder / "supernode.log").read_text()
        assert log.count("Connection attempt failed") <= 2
        running = idle_node.membership.running()
        assert running is not None
        assert running.supernode == "away"
    finally:
        idle_node.superlink.start()
    wait_for(idle_node.says_connected)
    assert idle_node.end() == 0


def test_a_node_that_was_never_admitted_says_so_and_keeps_asking(idle_node: Node) -> None:
    idle_node.start()
    wait_for(lambda: any("SuperNode ended" in line for line in idle_node.lines()))
    time.sleep(5)
    # On a slow machine the watch of the request has spoken since, too.
    assert any("does not know its key" in line for line in idle_node.lines()), idle_node.lines()
    assert sum("SuperNode ended" in line for line in idle_node.lines()) == 1, idle_node.lines()
    assert idle_node.end() == 0


def test_a_second_keeper_of_the_same_membership_is_refused(node: Node) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "node.cli", "join", node.superlink.address),
            *("--ca-fingerprint", node.superlink.fingerprint, "--keys", str(node.keys)),
            *("--membership", str(node.membership.folder)),
        ],
        capture_output=True, text=True, timeout=60, cwd=node.folder,
    )  # fmt: skip
    assert done.returncode == 3
    assert "is running already" in done.stderr
