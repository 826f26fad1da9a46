"""A real SuperLink: who reaches what, what survives a kill, how it ends."""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from contracts.app_bundle import app_bundle, app_bundle_sha256, app_project
from contracts.flower_environment import flower_environment
from coordinator import superlink
from coordinator.superlink import (
    SuperLinkConfig,
    list_supernodes,
    register_supernode,
    serve,
    unregister_supernode,
)
from coordinator.superlink_calls import SuperLinkCalls, control_client
from coordinator.superlink_file import FILE
from genkd.errors import ConfigurationError, CoordinatorUnreachable, KeyOrSignatureError

ROOT = Path(__file__).parents[2]


def runs_of(served: Any) -> dict[int, str]:
    from contracts.flower_private import ListRunsRequest

    with control_client(SuperLinkCalls(served.folder, patience=5)) as control:
        runs = control.ListRuns(ListRunsRequest(limit=100)).run_dict
    return {run_id: run.status.status for run_id, run in runs.items()}


def start_run(served: Any) -> int:
    from contracts.flower_private import Fab, StartRunRequest, fab_to_proto

    fab = fab_to_proto(Fab(app_bundle_sha256(), app_bundle(), {}))
    with control_client(SuperLinkCalls(served.folder, patience=5)) as control:
        return int(control.StartRun(StartRunRequest(fab=fab)).run_id)


@contextmanager
def client_of(client_type: Any, served: Any, *interceptors: object) -> Iterator[Any]:
    """A client of Flower's that has nothing but the authority's certificate."""
    with client_type.from_server_address(
        served.public,
        insecure=False,
        root_certificates=(served.folder / "ca.pem").read_bytes(),
        interceptors=list(interceptors),
    ) as client:
        yield client


# What somebody with only the CA file can do


@pytest.mark.parametrize(
    "command",
    [
        ["run", "{project}", "outsider"],
        ["supernode", "register", "{key}", "outsider"],
        ["supernode", "ls", "outsider"],
        ["ls", "outsider"],
    ],
    ids=["submit-a-run", "register-a-key", "list-nodes", "list-runs"],
)
def test_flowers_own_client_with_only_the_ca_file_can_do_nothing(
    served: Any, make_node_key: Callable[[], Any], tmp_path: Path, command: list[str]
) -> None:
    home, project, key = tmp_path / "home", tmp_path / "project", make_node_key()
    environment = flower_environment(home)
    project.mkdir()
    (project / "pyproject.toml").write_text(app_project())
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "outsider"\n[superlink.outsider]\naddress = "{served.public}"\n'
        f'root-certificates = "{served.folder / "ca.pem"}"\n'
    )
    runs, nodes = runs_of(served), list_supernodes(served.folder)
    names = {"project": str(project), "key": str(key.path.with_suffix(".pub"))}
    done = subprocess.run(
        [Path(sys.executable).parent / "flwr", *(word.format(**names) for word in command)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=180,
    )
    said = done.stdout + done.stderr
    assert done.returncode != 0, said
    # It has come through TLS to the server, and was told that there is no such thing.
    assert "404" in said, said
    assert runs_of(served) == runs
    assert list_supernodes(served.folder) == nodes


def test_the_private_calls_are_not_there_in_public_even_with_the_token(served: Any) -> None:
    from contracts.flower_private import ControlHttpClient, ListRunsRequest

    class ShowToken:
        def intercept(self, context: Any, call_next: Any) -> Any:
            context.request.headers["authorization"] = f"Bearer {served.running.token}"
            return call_next(context)

    with (
        client_of(ControlHttpClient, served, ShowToken()) as control,
        pytest.raises(httpx.HTTPStatusError) as caught,
    ):
        control.ListRuns(ListRunsRequest())
    assert caught.value.response.status_code == 404


def test_a_key_that_is_not_registered_is_no_node(
    served: Any, make_node_key: Callable[[], Any], tmp_path: Path
) -> None:
    key, port = make_node_key(), free_port()
    done = subprocess.run(
        [
            *(Path(sys.executable).parent / "flower-supernode", "--superlink", served.public),
            *("--root-certificates", served.folder / "ca.pem", "--port", str(port)),
            *("--auth-supernode-private-key", key.path, "--isolation", "process"),
        ],
        env=flower_environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode != 0
    assert list_supernodes(served.folder) == []


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_node_cannot_let_itself_in(served: Any, make_node_key: Callable[[], Any]) -> None:
    """By the Fleet API, as the stock SuperNode without authentication does."""
    script = (
        "import sys\n"
        "from flwr.supernode.fleet_http_client import FleetHttpClient\n"
        "from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor\n"
        "from flwr.supercore.primitives.asymmetric import generate_key_pairs, public_key_to_bytes\n"
        "from flwr.proto.fleet_pb2 import RegisterNodeFleetRequest\n"
        "private, public = generate_key_pairs()\n"
        "client = FleetHttpClient.from_server_address(sys.argv[1], False, sys.argv[2],\n"
        "    interceptors=[NodeAuthHttpInterceptor(private, public)])\n"
        "client.RegisterNode(RegisterNodeFleetRequest(public_key=public_key_to_bytes(public)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, served.public, str(served.folder / "ca.pem")],
        env=flower_environment(served.home / "outsider"),
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert "HTTPStatusError" in done.stderr
    assert list_supernodes(served.folder) == []


def test_who_does_not_trust_our_authority_does_not_connect(served: Any) -> None:
    with pytest.raises(httpx.ConnectError, match="certificate"):
        httpx.get(f"https://{served.public}/health")


@pytest.mark.parametrize(
    ("ciphers", "speaks"),
    [("ECDHE-ECDSA-AES128-GCM-SHA256", True), ("ECDHE-ECDSA-AES128-SHA", False)],
)
def test_tls_1_2_is_spoken_only_with_authenticated_encryption(
    served: Any, ciphers: str, speaks: bool
) -> None:
    context = ssl.create_default_context(cafile=str(served.folder / "ca.pem"))
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(ciphers)
    with socket.create_connection(("127.0.0.1", served.port), timeout=10) as plain:
        if speaks:
            with context.wrap_socket(plain, server_hostname="127.0.0.1") as wrapped:
                assert wrapped.version() == "TLSv1.2"
        else:
            with pytest.raises(ssl.SSLError):  # the server hangs up
                context.wrap_socket(plain, server_hostname="127.0.0.1")


def test_enrolment_is_served_beside_the_fleet(served: Any) -> None:
    context = ssl.create_default_context(cafile=str(served.folder / "ca.pem"))
    answer = httpx.get(f"https://{served.public}/genkd/join/0x5a", verify=context)
    assert (answer.status_code, answer.text) == (200, "/genkd/join/0x5a")
    assert httpx.get(f"https://{served.public}/health", verify=context).status_code == 200
    assert "server" not in answer.headers


# What another user of this machine can do


@pytest.mark.parametrize(
    "path", ["/v1/control/start-run", "/v1/control/register-node", "/v1/runtime/acquire-task"]
)
def test_another_user_of_the_machine_is_refused_on_loopback(served: Any, path: str) -> None:
    answer = httpx.post(f"http://{served.running.private}{path}", content=b"")
    assert answer.status_code == 401


def test_the_loopback_port_is_not_on_another_interface(served: Any) -> None:
    port = int(served.running.private.rsplit(":", 1)[1])
    addresses = {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None)}
    for address in addresses - {"127.0.0.1", "127.0.1.1", "::1"}:
        with pytest.raises(OSError, match="refused"):
            socket.create_connection((address, port), timeout=2)


def test_a_run_s_task_wants_the_secret_beside_the_token(served: Any) -> None:
    from contracts.flower_private import (
        AcquireTaskRequest,
        RuntimeHttpClient,
        RuntimeVersionHttpInterceptor,
        TaskType,
    )
    from coordinator.superlink_calls import RunLost

    start_run(served)
    calls = SuperLinkCalls(served.folder, patience=1)
    version = RuntimeVersionHttpInterceptor(component_name="flwr-serverapp")
    with (
        RuntimeHttpClient.from_server_address(
            "127.0.0.1:9", insecure=True, root_certificates=None, interceptors=[version, calls]
        ) as client,
        pytest.raises(RunLost),
    ):
        client.AcquireTask(AcquireTaskRequest(supported_task_types=[TaskType.SERVER_APP.value]))


def test_what_it_keeps_is_for_its_owner(served: Any) -> None:
    names = {path.name: path.stat().st_mode & 0o777 for path in served.folder.iterdir()}
    assert served.folder.stat().st_mode & 0o777 == 0o700
    for name in ("superlink.sqlite", "superlink.secret", FILE, "server.key"):
        assert names[name] == 0o600, name
    assert served.running.token not in served.said


def test_a_thousand_nodes_find_a_free_file_descriptor(served: Any) -> None:
    limits = Path(f"/proc/{served.process.pid}/limits").read_text()
    (line,) = (line for line in limits.splitlines() if line.startswith("Max open files"))
    soft, hard = line.split()[3:5]
    assert int(soft) >= min(8192, int(hard))


# Nodes


def test_a_node_is_let_in_once_and_shut_out_for_good(
    served: Any, make_node_key: Callable[[], Any]
) -> None:
    key = make_node_key()
    node_id = register_supernode(served.folder, key.public, "0xA11CE")
    assert register_supernode(served.folder, key.public, "0xA11CE") == node_id
    found = {node.node_id: node for node in list_supernodes(served.folder)}[node_id]
    assert (found.public_key, found.name) == (key.public, "0xA11CE")
    assert (found.online, found.last_seen) == (False, None)

    assert unregister_supernode(served.folder, key.public)
    assert not unregister_supernode(served.folder, key.public)
    assert node_id not in {node.node_id for node in list_supernodes(served.folder)}
    with pytest.raises(ConfigurationError, match="0xA11CE") as caught:
        register_supernode(served.folder, key.public, "0xA11CE")
    assert "supernode.key" in caught.value.hint


def test_a_registration_whose_answer_was_lost_is_found_again(
    served: Any, make_node_key: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    key = make_node_key()
    answers: list[list[superlink.SuperNode]] = [[]]
    node_id = register_supernode(served.folder, key.public, "0xB0B")
    looked_up = superlink.list_supernodes

    def not_yet_there(federation: Path) -> list[superlink.SuperNode]:
        return answers.pop() if answers else looked_up(federation)

    monkeypatch.setattr(superlink, "list_supernodes", not_yet_there)
    assert register_supernode(served.folder, key.public, "0xB0B") == node_id
    assert answers == []


def test_what_is_no_key_is_refused(served: Any) -> None:
    with pytest.raises(ConfigurationError):
        register_supernode(served.folder, b"-----BEGIN NOTHING-----", "0xB0B")


# Kill and restart


def test_killed_and_restarted_it_knows_its_runs_and_nodes(
    served: Any, make_node_key: Callable[[], Any]
) -> None:
    key = make_node_key()
    run_id, node_id = start_run(served), register_supernode(served.folder, key.public, "0xCA11")
    before = served.running
    served.kill()
    assert served.running == before  # the file of the dead one is left
    with pytest.raises(CoordinatorUnreachable):
        runs_with_patience(served, 0)
    served.start()
    assert served.running.token != before.token
    assert runs_of(served)[run_id] == "pending"
    assert node_id in {node.node_id for node in list_supernodes(served.folder)}


def runs_with_patience(served: Any, patience: float) -> None:
    from contracts.flower_private import ListRunsRequest

    with control_client(SuperLinkCalls(served.folder, patience=patience)) as control:
        control.ListRuns(ListRunsRequest())


def test_the_port_of_a_dead_one_gets_a_token_that_opens_nothing(served: Any) -> None:
    """Another user of the machine takes the port over after a kill, and listens."""
    before = served.running
    served.kill()
    with socket.create_server(("127.0.0.1", int(before.private.rsplit(":", 1)[1]))) as impostor:
        impostor.settimeout(10)
        with pytest.raises(CoordinatorUnreachable):
            runs_with_patience_and_impostor(served, impostor)
        served.start()
    answer = httpx.post(
        f"http://{served.running.private}/v1/control/list-runs",
        headers={"authorization": f"Bearer {before.token}"},
    )
    assert answer.status_code == 401


def runs_with_patience_and_impostor(served: Any, impostor: socket.socket) -> None:
    import threading

    def listen() -> None:
        connection, _ = impostor.accept()
        with connection:
            assert b"Bearer" in connection.recv(65536)

    listening = threading.Thread(target=listen)
    listening.start()
    try:
        runs_with_patience(served, 0)
    finally:
        listening.join()


def test_sigterm_ends_it_cleanly(served: Any) -> None:
    assert served.stop() == 0
    assert served.said.endswith("ended\n")
    assert not (served.folder / FILE).exists()
    with pytest.raises(CoordinatorUnreachable, match="no SuperLink serves") as caught:
        runs_with_patience(served, 0)
    assert "genkd-coordinator serve" in caught.value.hint
    served.start()


def test_it_has_asked_no_other_host_for_anything(served: Any) -> None:
    runs_of(served)
    assert served.outside == ""


# What keeps it from starting


def test_a_second_one_on_the_same_folder_is_refused(served: Any) -> None:
    with pytest.raises(ConfigurationError, match="another SuperLink serves"):
        serve(SuperLinkConfig(served.folder, host="127.0.0.1", port=0))
    assert served.running.pid == served.process.pid


def test_a_port_that_is_taken_is_said_in_one_line(served: Any, tmp_path: Path) -> None:
    (tmp_path / "server.key").write_text("")
    with pytest.raises(ConfigurationError, match="cannot be listened on"):
        serve(SuperLinkConfig(tmp_path, host="127.0.0.1", port=served.port))


@pytest.mark.parametrize("port", [-1, 65536])
def test_a_port_that_is_none_is_said_in_one_line(tmp_path: Path, port: int) -> None:
    (tmp_path / "server.key").write_text("")
    with pytest.raises(ConfigurationError, match="cannot be listened on"):
        serve(SuperLinkConfig(tmp_path, host="127.0.0.1", port=port))


def test_a_folder_without_certificate_is_no_federation(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no server certificate") as caught:
        serve(SuperLinkConfig(tmp_path, host="127.0.0.1", port=0))
    assert "init" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_a_database_that_is_none_is_said_in_one_line(served: Any, tmp_path: Path) -> None:
    for name in ("server.key", "server.pem"):
        (tmp_path / name).write_bytes((served.folder / name).read_bytes())
    (tmp_path / "superlink.sqlite").write_bytes(b"no database" * 1000)
    script = (
        "import sys; from pathlib import Path\n"
        "from coordinator.superlink import SuperLinkConfig, serve\n"
        "serve(SuperLinkConfig(Path(sys.argv[1]), host='127.0.0.1', port=0))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert "ConfigurationError" in done.stderr.splitlines()[-1]
    assert "superlink.sqlite cannot be used" in done.stderr.splitlines()[-1]


def test_a_certificate_that_is_none_is_said_in_one_line(served: Any, tmp_path: Path) -> None:
    (tmp_path / "server.key").write_text("no key")
    (tmp_path / "server.pem").write_text("no certificate")
    environment = dict(os.environ)
    try:
        with pytest.raises(KeyOrSignatureError, match="certificate cannot be used"):
            serve(SuperLinkConfig(tmp_path, host="127.0.0.1", port=0))
    finally:
        os.environ.clear()
        os.environ.update(environment)
    assert not (tmp_path / FILE).exists()
