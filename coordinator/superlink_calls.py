"""Calls of this process to the running SuperLink's loopback listener, over its restarts.

    calls = SuperLinkCalls(federation, patience=60)
    with control_client(calls) as control:
        control.ListNodes(...)

Flower's clients are given one address for life. A SuperLink that was killed comes back with another
port and another token, so each attempt of each call reads where it is now; an attempt that meets
nobody is repeated until the patience is over.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from coordinator.superlink_file import SERVE_HINT, find_superlink
from coordinator.superlink_listeners import CHALLENGE
from genkd.errors import ConfigurationError, CoordinatorUnreachable, GenKDError

if TYPE_CHECKING:
    from contracts.flower_private import ControlHttpClient

# Flower's clients want an address; every call is directed anew.
NOWHERE = "127.0.0.1:9"
RUNTIME = "/v1/runtime/"
# Its answers while it starts and ends.
AWAY = (502, 503, 504)
RUN_IS_OVER = (401, 403)
SECONDS_BETWEEN = 0.25
SECONDS_BETWEEN_AT_MOST = 2.0


class RunLost(CoordinatorUnreachable):
    """The SuperLink has given up this Flower run: it heard nothing of it for a minute."""


class SuperLinkCalls:
    """Directs each call of one of Flower's clients to the SuperLink as it runs now.

    An interceptor of Flower's HTTP clients. It stands last, because it may repeat a call and the
    others add headers that must be there once.

    Args:
        federation: The folder that the SuperLink serves.
        patience: Seconds for which a call waits for a SuperLink that is away; it may be changed.
    """

    def __init__(self, federation: Path, *, patience: float) -> None:
        self.federation = federation
        self.patience = patience

    def intercept(self, context: Any, call_next: Any) -> httpx.Response:
        """Make the call; Flower's clients call this.

        Raises:
            CoordinatorUnreachable: If nobody answers for `patience` seconds.
            RunLost: If the SuperLink no longer takes calls for this run.
        """
        began = time.monotonic()
        pause = SECONDS_BETWEEN
        while True:
            try:
                return self._attempt(context, call_next)
            except CoordinatorUnreachable as error:
                # Read anew: a run that ends waits no longer, in none of its threads.
                is_over = time.monotonic() + pause > began + self.patience
                if is_over or isinstance(error, RunLost):
                    raise
            time.sleep(pause)
            pause = min(2 * pause, SECONDS_BETWEEN_AT_MOST)

    def _attempt(self, context: Any, call_next: Any) -> httpx.Response:
        running = find_superlink(self.federation)
        host, port = running.private.rsplit(":", 1)
        request: httpx.Request = context.request
        request.url = request.url.copy_with(scheme="http", host=host, port=int(port))
        request.headers["host"] = running.private
        request.headers["authorization"] = f"Bearer {running.token}"
        try:
            response: httpx.Response = call_next(context)
        except httpx.TransportError as error:
            raise CoordinatorUnreachable(
                f"the SuperLink does not answer: {type(error).__name__}", hint=SERVE_HINT
            ) from error
        if response.status_code in AWAY or _is_challenge(response):
            raise CoordinatorUnreachable("the SuperLink is starting or ending", hint=SERVE_HINT)
        if response.status_code in RUN_IS_OVER and request.url.path.startswith(RUNTIME):
            raise RunLost(
                "the SuperLink has given up this run: it was away, or stopped it",
                hint="repeat the same command: it goes on from what is stored",
            )
        return response


def _is_challenge(response: httpx.Response) -> bool:
    """Whether the token was refused: the file was of the one before, the port is of this one."""
    return response.status_code == 401 and response.headers.get("www-authenticate") == CHALLENGE


@contextmanager
def control_client(calls: SuperLinkCalls) -> Iterator[ControlHttpClient]:
    """A client of the Control API: runs and registered keys.

    Raises:
        CoordinatorUnreachable: In the block, if no SuperLink runs.
        ConfigurationError: In the block, if the SuperLink refuses what it is asked.
    """
    from contracts.flower_private import ControlHttpClient, RuntimeVersionHttpInterceptor

    client = ControlHttpClient.from_server_address(
        NOWHERE,
        insecure=True,
        root_certificates=None,
        interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr-cli"), calls],
    )
    try:
        with client:
            yield client
    except httpx.HTTPStatusError as error:
        raise refused(error) from error


def refused(error: httpx.HTTPStatusError) -> GenKDError:
    """A refusal of the SuperLink as an error of this project."""
    path = error.request.url.path
    return ConfigurationError(
        f"the SuperLink refuses {path.rsplit('/', 1)[-1]}: status {error.response.status_code}",
        hint="see what 'genkd-coordinator serve' says",
    )
