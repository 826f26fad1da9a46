"""The one file that names private modules of Flower.

Flower's public surface (`flwr.app`, `flwr.clientapp`, `flwr.serverapp`, `flwr.simulation`) is
enough for the apps. It is not enough for a SuperLink with two listeners, for a ServerApp that runs
in the coordinator's own process, where the keys are, for an executor that never unpacks what a
SuperLink sends, and for a SuperNode that costs its line little. What these need is imported here
and nowhere else; flwr is pinned to one version, and `tests/contracts/test_flower_private.py` checks
every name and signature, so a new version either passes or says what moved.

Without private names there is a fallback: stock `flower-superlink`, `flower-supernode` and
`flwr run`, see CONTRIBUTING.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import httpx
from flwr.common.constant import ISOLATION_MODE_PROCESS as ISOLATION_BY_PROCESS
from flwr.common.constant import TRANSPORT_TYPE_GRPC_RERE as GRPC_RERE
from flwr.common.constant import ErrorCode, Status, SubStatus
from flwr.common.serde import (
    context_from_proto,
    context_to_proto,
    fab_from_proto,
    fab_to_proto,
    message_from_proto,
    run_from_proto,
)
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListNodesResponse,
    ListRunsRequest,
    ListRunsResponse,
    RegisterNodeRequest,
    RegisterNodeResponse,
    StartRunRequest,
    StartRunResponse,
    StopRunRequest,
    StopRunResponse,
    UnregisterNodeRequest,
    UnregisterNodeResponse,
)
from flwr.proto.fleet_pb2 import DeactivateNodeRequest, PullMessagesRequest
from flwr.proto.message_pb2 import ObjectTree
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import (
    AcquireTaskRequest,
    AcquireTaskResponse,
    PullAppMessagesRequest,
    PullAppMessagesResponse,
    PullTaskInputRequest,
    PullTaskInputResponse,
    PushAppMessagesRequest,
    PushTaskOutputRequest,
    PushTaskOutputResponse,
    SendTaskHeartbeatRequest,
)
from flwr.supercore import heartbeat as _heartbeat
from flwr.supercore import telemetry as _telemetry
from flwr.supercore.constant import TaskType
from flwr.supercore.control.control_http_client import ControlHttpClient
from flwr.supercore.fab import Fab
from flwr.supercore.heartbeat import HeartbeatSender, make_task_heartbeat_fn_http
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_confirm_message_received_fn_protobuf,
    make_pull_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import (
    inflate_object_from_contents,
    pull_objects,
)
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.retry import RetryInvoker, exponential, make_simple_http_retry_invoker
from flwr.supercore.run import Run
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.auth_plugin import NoOpControlAuthnPlugin
from flwr.superlink.cli.flower_superlink import SuperLinkLifespan
from flwr.superlink.config_loader import SuperLinkLifespanConfig
from flwr.superlink.grid.http_grid import HttpGrid
from flwr.superlink.main import create_app
from flwr.supernode import fleet_http_connection as _fleet_http_connection
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor
from flwr.supernode.runtime.run_clientapp import pull_task_input, push_message, push_task_output

# Read from the environment when flwr is first imported, which an app may have done before us.
_telemetry.FLWR_TELEMETRY_ENABLED = "0"

# The one call of a SuperLink's Runtime API that the shared secret of its executors protects.
ACQUIRE_TASK = "/flwr.proto.Runtime/AcquireTask"
PULL_MESSAGES = "/flwr.proto.Fleet/PullMessages"
# Headers by which no SuperLink does anything; a quarter of a request. It compares versions, but
# turns no SuperNode away for them.
UNREAD = (
    *("accept", "accept-encoding", "connection", "user-agent"),
    *("flwr-package-name", "flwr-package-version", "flwr-component-name"),
)

# Of a connection that is not used, a request for messages that waits, and what keeps a node online.
SECONDS_TO_KEEP_CONNECTION = 140.0
SECONDS_TO_WAIT = 100
SECONDS_OF_GRACE = 20.0
SECONDS_BETWEEN_HEARTBEATS = 120

__all__ = [
    "ACQUIRE_TASK",
    "GRPC_RERE",
    "ISOLATION_BY_PROCESS",
    "AcquireTaskRequest",
    "AcquireTaskResponse",
    "ControlHttpClient",
    "DeactivateNodeRequest",
    "ErrorCode",
    "Fab",
    "FleetHttpClient",
    "HeartbeatSender",
    "HttpGrid",
    "ListNodesRequest",
    "ListNodesResponse",
    "ListRunsRequest",
    "ListRunsResponse",
    "NoOpControlAuthnPlugin",
    "Node",
    "NodeAuthHttpInterceptor",
    "ObjectTree",
    "PullAppMessagesRequest",
    "PullAppMessagesResponse",
    "PullMessagesRequest",
    "PullTaskInputRequest",
    "PullTaskInputResponse",
    "PushAppMessagesRequest",
    "PushTaskOutputRequest",
    "PushTaskOutputResponse",
    "QuietFleetClient",
    "RegisterNodeRequest",
    "RegisterNodeResponse",
    "RetryInvoker",
    "Run",
    "RuntimeHttpClient",
    "RuntimeTokenHttpInterceptor",
    "RuntimeVersionHttpInterceptor",
    "SendTaskHeartbeatRequest",
    "StartRunRequest",
    "StartRunResponse",
    "Status",
    "StopRunRequest",
    "StopRunResponse",
    "SubStatus",
    "SuperExecAuthHttpInterceptor",
    "SuperLinkLifespan",
    "SuperLinkLifespanConfig",
    "TaskIdentity",
    "TaskType",
    "UnregisterNodeRequest",
    "UnregisterNodeResponse",
    "context_from_proto",
    "context_to_proto",
    "create_app",
    "exponential",
    "fab_from_proto",
    "fab_to_proto",
    "grid_over",
    "inflate_object_from_contents",
    "iterate_object_tree",
    "make_confirm_message_received_fn_protobuf",
    "make_pull_object_fn_protobuf",
    "make_simple_http_retry_invoker",
    "make_task_heartbeat_fn_http",
    "message_from_proto",
    "pull_objects",
    "pull_task_input",
    "push_message",
    "push_task_output",
    "quieten_supernode",
    "run_from_proto",
]


def grid_over(client: RuntimeHttpClient, run: Run, token: str) -> HttpGrid:
    """A grid that speaks through our client of the Runtime API instead of one of its own.

    Its own would repeat calls for ever, and end this process by SIGINT when a run is over.

    Args:
        client: A client that shows the task's token; it is closed by who made it.
        run: The run whose nodes the grid reaches.
        token: The task's.
    """
    grid = HttpGrid("127.0.0.1:9", insecure=True, token=token)
    grid._client = client
    grid.set_run(run)
    return grid


class _Quiet:
    """Leaves out of a request what nobody reads, and lets the one for messages wait for one.

    It waits (RFC 7240, `wait`) unless it is the first, or the one before failed: Flower says that
    it is connected when it is answered.
    """

    def __init__(self) -> None:
        self._is_connected = False

    def intercept(self, context: Any, call_next: Any) -> httpx.Response:
        request: httpx.Request = context.request
        for name in UNREAD:
            request.headers.pop(name, None)
        answer: httpx.Response
        if context.rpc_method != PULL_MESSAGES:
            answer = call_next(context)
            return answer
        if self._is_connected:
            request.headers["prefer"] = f"wait={SECONDS_TO_WAIT}"
            request.extensions["timeout"] |= {"read": SECONDS_TO_WAIT + SECONDS_OF_GRACE}
        self._is_connected = False
        answer = call_next(context)
        self._is_connected = answer.is_success
        return answer


class QuietFleetClient(FleetHttpClient):
    """A SuperNode's client that says little: short requests that wait, connections that last.

    Flower's asks for messages every three seconds, 1.2 kB each time, on connections that it closes
    after five seconds of silence. A SuperLink that knows nothing of waiting answers this one, too.

    Args:
        base_url: The SuperLink.
        interceptors: As Flower's.
        verify: Likewise.
        timeout: Likewise, in seconds.
        retry_invoker: Likewise.
    """

    def __init__(
        self,
        base_url: str,
        *,
        interceptors: Sequence[Any] = (),
        verify: Any = True,
        timeout: float = 30.0,
        retry_invoker: RetryInvoker | None = None,
    ) -> None:
        super().__init__(
            base_url,
            interceptors=(*interceptors, _Quiet()),
            verify=verify,
            timeout=timeout,
            retry_invoker=retry_invoker,
        )
        self._client.close()
        self._client = httpx.Client(
            verify=verify,
            timeout=timeout,
            limits=httpx.Limits(keepalive_expiry=SECONDS_TO_KEEP_CONNECTION),
        )


def quieten_supernode() -> None:
    """Let a SuperNode that is started in this process afterwards use few bytes of its line.

    While nothing happens these are a request for messages and a heartbeat each, every 100 seconds
    or so. A node that vanishes without a word is missed after `2 * SECONDS_BETWEEN_HEARTBEATS`.
    """
    for module in (_heartbeat, _fleet_http_connection):
        vars(module)["HEARTBEAT_DEFAULT_INTERVAL"] = SECONDS_BETWEEN_HEARTBEATS
    vars(_fleet_http_connection)["FleetHttpClient"] = QuietFleetClient
