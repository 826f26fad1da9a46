"""What an admitted node may push: answers of its own, so many bytes an hour, while there is disk.

    application.user_middleware.append(Middleware(NodeLimits, federation=Path("federation")))

Flower checks who calls, and not what is pushed: any admitted node could put questions to others in
the coordinator's name, and fill the disk with objects of messages that nobody fetches. This stands
innermost of Flower's own middleware, where a call is parsed and its node proven.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from genkd.canonical import canonical_json
from genkd.console import say
from genkd.weights import STUDENT_FILE

if TYPE_CHECKING:
    from coordinator.superlink_listeners import Application, Receive, Scope, Send

PUSH_MESSAGES: Final = "/v1/fleet/push-messages"
PUSH_OBJECT: Final = "/v1/fleet/push-object"
# Two of the largest students there are: a round takes one of a node.
BYTES_AN_HOUR: Final = 2 * STUDENT_FILE.file_bytes
SECONDS_OF_WINDOW: Final = 3600.0
# What Flower's database leaves for the store, the releases and the merges beside it.
FREE_BYTES: Final = 2**30
# Of a message whose run is over; a SuperNode drops what it had to say, and stays up.
STATUS: Final = 403


class NodeLimits:
    """ASGI middleware between Flower's authentication of nodes and its handlers.

    Args:
        app: What it stands before.
        federation: The folder with Flower's database.
        clock: Seconds that never go back.
    """

    def __init__(
        self, app: Application, federation: Path, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._app = app
        self._federation = federation
        self._clock = clock
        self._windows: dict[int, tuple[float, int]] = {}  # when it began, bytes since
        self._said = ""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a push that is refused, and let everything else pass."""
        reason = None
        if scope["type"] == "http" and scope["path"] in (PUSH_MESSAGES, PUSH_OBJECT):
            # The route does not handle what is not parsed.
            asked = scope.get("state", {}).get("protobuf_request")
            reason = "the call is not understood" if asked is None else self._refusal(scope, asked)
        if reason is None:
            return await self._app(scope, receive, send)
        body = canonical_json({"detail": reason})
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": STATUS, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _refusal(self, scope: Scope, asked: Any) -> str | None:
        """Why a push of an authenticated node is refused; None if it is not."""
        node = asked.node.node_id
        if scope["path"] == PUSH_MESSAGES and not _is_own_answer(asked, node):
            self._say(f"Flower node {node} pushes what is no answer of its own: refused")
            return "a node pushes answers of its own, one by one"
        size = asked.ByteSize()
        if shutil.disk_usage(self._federation).free < FREE_BYTES + size:
            self._say(f"less than {FREE_BYTES} bytes are free: what nodes push is refused")
            return "no room"
        now = self._clock()
        began, used = self._windows.get(node, (now, 0))
        if now - began >= SECONDS_OF_WINDOW:
            began, used = now, 0
        if used + size > BYTES_AN_HOUR:
            self._say(f"Flower node {node} has pushed {used} bytes within an hour: refused")
            return "too much within an hour"
        self._windows[node] = (began, used + size)
        return None

    def _say(self, line: str) -> None:
        if line != self._said:
            say(line)
        self._said = line


def _is_own_answer(asked: Any, node: int) -> bool:
    """Whether it is one message, from this node, and answers another."""
    if len(asked.messages_list) != 1 or len(asked.message_object_trees) != 1:
        return False
    metadata = asked.messages_list[0].metadata
    return metadata.src_node_id == node and bool(metadata.reply_to_message_id)
