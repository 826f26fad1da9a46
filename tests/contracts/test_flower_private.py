"""What we rely on in Flower beyond its public surface: a new version passes or says what moved."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path

import httpx
import pytest

from contracts import flower_private as flower

ROOT = Path(__file__).parents[2]
PUBLIC = {"app", "clientapp", "serverapp", "simulation"}
USERS = {
    *("coordinator/superlink.py", "coordinator/superlink_calls.py", "coordinator/flower_run.py"),
    *("coordinator/superlink_application.py", "coordinator/long_poll.py"),
    *("node/executor.py", "node/supernode_process.py"),
}
FOLDERS = ("genkd", "contracts", "node", "coordinator", "benchmarks", "examples")


def sources() -> Iterator[Path]:
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            if "node_modules" not in path.parts:
                yield path


def imported(path: Path) -> set[str]:
    found = set()
    for statement in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(statement, ast.Import):
            found |= {alias.name for alias in statement.names}
        elif isinstance(statement, ast.ImportFrom) and statement.module:
            found.add(statement.module)
            found |= {f"{statement.module}.{alias.name}" for alias in statement.names}
    return found


def is_private(module: str) -> bool:
    parts = module.split(".")
    return parts[0] == "flwr" and (len(parts) > 3 or (parts[1:2] != [] and parts[1] not in PUBLIC))


def test_the_version_is_the_one_that_was_read() -> None:
    assert version("flwr") == "1.41.0"


def test_private_modules_are_named_in_one_file() -> None:
    strange = {
        f"{path.relative_to(ROOT)}: {module}"
        for path in sources()
        if path != ROOT / "contracts" / "flower_private.py"
        for module in imported(path)
        if is_private(module)
    }
    assert strange == set()


def test_the_check_knows_private_from_public() -> None:
    assert is_private("flwr.common.constant")
    assert is_private("flwr.superlink.main")
    assert not is_private("flwr")
    assert not is_private("flwr.app.Message")
    assert not is_private("flwr.serverapp.strategy")


def test_only_those_that_must_use_private_names() -> None:
    users = {
        str(path.relative_to(ROOT))
        for path in sources()
        if any(module.startswith("contracts.flower_private") for module in imported(path))
    }
    assert users <= USERS


@pytest.mark.parametrize("name", flower.__all__)
def test_each_name_is_there(name: str) -> None:
    assert getattr(flower, name) is not None


@pytest.mark.parametrize(
    ("call", "parameters"),
    [
        (flower.create_app, {"config", "superlink_lifespan_class"}),
        (flower.SuperLinkLifespan, {"config", "state_factory"}),
        (flower.HttpGrid, {"runtime_api_address", "insecure", "token"}),
        (
            flower.RuntimeHttpClient.from_server_address,
            {"server_address", "insecure", "root_certificates", "interceptors"},
        ),
        (
            flower.ControlHttpClient.from_server_address,
            {"server_address", "insecure", "root_certificates", "interceptors"},
        ),
        (flower.SuperExecAuthHttpInterceptor, {"master_secret", "protected_methods"}),
        (flower.RuntimeVersionHttpInterceptor, {"component_name"}),
        (flower.RuntimeTokenHttpInterceptor, {"token"}),
        (flower.Fab, {"hash_str", "content", "verifications"}),
        (flower.pull_task_input, {"client"}),
        (flower.message_from_proto, {"message_proto"}),
        (flower.iterate_object_tree, {"tree"}),
        (
            flower.pull_objects,
            {"object_ids", "pull_object_fn", "initial_backoff", "backoff_cap"},
        ),
        (flower.inflate_object_from_contents, {"object_id", "object_contents"}),
        (flower.make_pull_object_fn_protobuf, {"pull_object_protobuf", "node", "run_id"}),
        (
            flower.make_confirm_message_received_fn_protobuf,
            {"confirm_message_received_protobuf", "node", "run_id"},
        ),
        (flower.push_message, {"client", "message", "context"}),
        (flower.push_task_output, {"client", "context", "sub_status", "details"}),
        (
            flower.FleetHttpClient,
            {"base_url", "interceptors", "verify", "timeout", "retry_invoker"},
        ),
        (flower.NodeAuthHttpInterceptor, {"private_key", "public_key"}),
    ],
    ids=lambda value: getattr(value, "__qualname__", ""),
)
def test_the_calls_we_make_are_understood(call: object, parameters: set[str]) -> None:
    assert parameters <= set(inspect.signature(call).parameters)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("message", "names"),
    [
        (flower.StartRunRequest, {"fab"}),
        (flower.StartRunResponse, {"run_id"}),
        (flower.ListRunsRequest, {"limit"}),
        (flower.ListRunsResponse, {"run_dict"}),
        (flower.StopRunRequest, {"run_id"}),
        (flower.RegisterNodeRequest, {"public_key", "name"}),
        (flower.RegisterNodeResponse, {"node_id"}),
        (flower.UnregisterNodeRequest, {"node_id"}),
        (flower.ListNodesResponse, {"nodes_info"}),
        (flower.AcquireTaskRequest, {"supported_task_types"}),
        (flower.AcquireTaskResponse, {"task", "token"}),
        (flower.PullTaskInputResponse, {"task_id", "run", "context", "fab"}),
        (flower.PullAppMessagesResponse, {"messages_list", "message_object_trees"}),
        (flower.PushTaskOutputRequest, {"sub_status", "details"}),
        (flower.PullMessagesRequest, {"node"}),
        (flower.PushAppMessagesRequest, {"messages_list"}),
        (flower.DeactivateNodeRequest, {"node_id"}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_the_messages_have_the_fields_we_use(message: type, names: set[str]) -> None:
    assert names <= set(message.DESCRIPTOR.fields_by_name)  # type: ignore[attr-defined]


def test_what_is_told_of_a_node_has_the_fields_we_use() -> None:
    node = flower.ListNodesResponse.DESCRIPTOR.fields_by_name["nodes_info"].message_type
    used = {"node_id", "public_key", "name", "status", "online_until", "heartbeat_interval"}
    assert used <= set(node.fields_by_name)


def test_every_setting_of_a_superlink_is_one_we_have_decided_on() -> None:
    """A new one may open a door: `coordinator.superlink_application` fills them all by name."""
    assert {item.name for item in fields(flower.SuperLinkLifespanConfig)} == {
        *("control_address", "health_server_address", "host", "port", "insecure", "certificates"),
        *("superexec_auth_secret", "authn_plugin", "event_log_plugin", "fleet_event_log_plugin"),
        *("enable_event_log", "artifact_provider", "enable_supernode_auth", "fleet_api_type"),
        *("fleet_api_address", "simulation", "ssl_ca_certfile", "ssl_certfile", "ssl_keyfile"),
        *("database", "isolation", "runtime_dependency_install"),
    }


def test_the_public_listener_opens_the_routes_that_were_read_and_no_other() -> None:
    """Each of these was read: who calls it shows a registered key, or is refused."""
    paths = set(flower.create_app().openapi()["paths"])
    names = (
        *("register-node", "activate-node", "deactivate-node", "unregister-node"),
        *("send-node-heartbeat", "pull-messages", "push-messages", "get-run", "get-fab"),
        *("push-object", "pull-object", "confirm-message-received"),
    )
    fleet = {path for path in paths if path.startswith("/v1/fleet/")}
    assert fleet == {f"/v1/fleet/{name}" for name in names}
    others = {path for path in paths - fleet if not path.startswith("/v1/")}
    assert others == {"/health"}


def test_the_telemetry_is_off_even_if_flwr_was_there_first() -> None:
    script = (
        "import os; os.environ.pop('FLWR_TELEMETRY_ENABLED', None)\n"
        "import flwr.app, flwr.supercore.telemetry as telemetry\n"
        "assert telemetry.FLWR_TELEMETRY_ENABLED == '1'\n"
        "import contracts.flower_private\n"
        "assert telemetry.create_event(telemetry.EventType.PING, None) == 'disabled'\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_grid_speaks_through_the_client_it_is_given() -> None:
    class Answer:
        nodes = ()

    class Client:
        def GetNodes(self, _request: object) -> Answer:  # noqa: N802 (Flower's)
            return Answer()

    grid = flower.grid_over(Client(), flower.Run.create_empty(7), "token")  # type: ignore[arg-type]
    assert list(grid.get_node_ids()) == []
    assert grid.run.run_id == 7


def test_a_quiet_supernode_lets_its_request_for_messages_wait() -> None:
    """What is changed in Flower's modules is what they use; the rest of it stays as it was."""
    script = (
        "import inspect\n"
        "from flwr.supercore import heartbeat\n"
        "from flwr.supernode import fleet_http_connection as connection\n"
        "for function, name in (\n"
        "    (heartbeat.HeartbeatSender._run, 'HEARTBEAT_DEFAULT_INTERVAL'),\n"
        "    (connection.http_request_response, 'FleetHttpClient'),\n"
        "):\n"
        "    assert name in function.__wrapped__.__code__.co_names if hasattr(\n"
        "        function, '__wrapped__') else name in function.__code__.co_names\n"
        "assert connection.HEARTBEAT_DEFAULT_INTERVAL == 30\n"
        "from contracts import flower_private as flower\n"
        "assert connection.HEARTBEAT_DEFAULT_INTERVAL == 30\n"
        "flower.quieten_supernode()\n"
        "assert connection.HEARTBEAT_DEFAULT_INTERVAL == 120\n"
        "assert heartbeat.HEARTBEAT_DEFAULT_INTERVAL == 120\n"
        "assert connection.FleetHttpClient is flower.QuietFleetClient\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_request_for_messages_waits_unless_the_one_before_failed() -> None:
    asked: list[tuple[str, str | None, float]] = []
    answers = iter([200, 200, 200, 503, 200, 200])

    def answer(request: httpx.Request) -> httpx.Response:
        timeout = request.extensions["timeout"]["read"]
        asked.append((request.url.path, request.headers.get("prefer"), timeout))
        assert set(request.headers) <= {"host", "content-type", "content-length", "prefer"}
        return httpx.Response(next(answers))

    version = flower.RuntimeVersionHttpInterceptor(component_name="SuperNode")
    with flower.QuietFleetClient("http://127.0.0.1:9", interceptors=[version]) as client:
        client._client.close()
        client._client = httpx.Client(transport=httpx.MockTransport(answer), timeout=30.0)
        client.PullMessages(flower.PullMessagesRequest())
        client.DeactivateNode(flower.DeactivateNodeRequest(node_id=1))
        client.PullMessages(flower.PullMessagesRequest())
        with pytest.raises(httpx.HTTPStatusError):
            client.PullMessages(flower.PullMessagesRequest())
        client.PullMessages(flower.PullMessagesRequest())
        client.PullMessages(flower.PullMessagesRequest())
    pull, waits = "/v1/fleet/pull-messages", ("wait=100", 120.0)
    assert asked == [
        (pull, None, 30.0),
        ("/v1/fleet/deactivate-node", None, 30.0),
        (pull, *waits),
        (pull, *waits),
        (pull, None, 30.0),
        (pull, *waits),
    ]
