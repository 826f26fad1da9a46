"""Is a node whose SuperNode is turned away still a member? The coordinator is asked beside it.

    watch = RemovalWatch(membership, joined)
    with watch:
        run_membership(membership.folder, settings)
    watch.require_member()

A SuperNode whose key the SuperLink does not know ends and is started again, for ever: it cannot
tell a coordinator that is starting from one that removed the node. Only the coordinator's own word
ends it, given over TLS to this node's address; one that is away or busy is waited for.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

from genkd.console import printable, say
from genkd.errors import GenKDError, RefusedByPolicy, ResourceExhausted, Stopped
from node.enrolment import ask_state
from node.membership import Joined, Membership

# The SuperNode's state is a small file; the coordinator is asked at most every half a minute.
SECONDS_TO_START, SECONDS_BETWEEN_LOOKS = 10.0, 2.0
SECONDS_BETWEEN_QUESTIONS = 30.0
NEW_KEYS = (
    "ask its operator; a removed key never counts again: 'genkd-node init --keys FOLDER' makes "
    "others, to join with --keys FOLDER --membership ANOTHER"
)


def refusal(reason: str) -> RefusedByPolicy:
    """The error that says that a coordinator refuses this node."""
    return RefusedByPolicy(
        f"the coordinator refuses this node: {printable(reason) or 'no reason given'}",
        hint=NEW_KEYS,
    )


class RemovalWatch:
    """Ends `run_membership`, as a closed terminal would, once the coordinator refuses the node.

    To be entered in the main thread.

    Args:
        membership: The membership that this process runs.
        joined: What is known of it.
    """

    def __init__(self, membership: Membership, joined: Joined) -> None:
        self._membership = membership
        self._joined = joined
        self._verdict: GenKDError | None = None
        self._said = ""
        self._over = threading.Event()
        self._turn = threading.Lock()  # no signal is sent once the block has ended
        self._handler_before: Any = None

    def __enter__(self) -> Self:
        # One that is sent as `run_membership` returns must not end the process.
        self._handler_before = signal.signal(signal.SIGHUP, _ignore)
        threading.Thread(target=self._watch, name="removal", daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        with self._turn:
            self._over.set()
        signal.signal(signal.SIGHUP, self._handler_before)

    def require_member(self) -> None:
        """Raise what the coordinator said, if that is why it ended.

        Raises:
            RefusedByPolicy: If it refuses the node.
        """
        if self._verdict is not None:
            raise self._verdict

    def _watch(self) -> None:
        pause = SECONDS_TO_START
        while not self._over.wait(pause):
            pause = SECONDS_BETWEEN_LOOKS
            if not self._is_turned_away():
                continue
            pause = SECONDS_BETWEEN_QUESTIONS
            try:
                self._ask()
            except Stopped as error:  # it knows nothing of us: restored from an old backup
                self._say_once(f"{error.message}; end this, and {error.hint}")
            except GenKDError:
                continue  # it is away, or busy, or another answers in its place: the SuperNode says

    def _is_turned_away(self) -> bool:
        """Whether this process's SuperNode reached the coordinator, or might have, and ended."""
        running = self._membership.running()
        return (
            running is not None
            and running.pid == os.getpid()
            and running.supernode in ("starting", "stopped")
            and bool(running.reason)
        )

    def _ask(self) -> None:
        joined = self._joined
        answer = ask_state(joined.coordinator, self._membership.folder, joined.node)
        if answer.state == "refused":
            self._end(refusal(answer.reason))
        elif answer.state == "pending":
            reason = printable(answer.reason) or "no reason given"
            self._say_once(f"the coordinator has not let this SuperNode in yet: {reason}")

    def _say_once(self, line: str) -> None:
        if line != self._said:
            say(line)
        self._said = line

    def _end(self, verdict: GenKDError) -> None:
        with self._turn:
            if self._over.is_set():
                return
            self._verdict = verdict
            self._over.set()
            with contextlib.suppress(ResourceExhausted):  # then the next join is told the same
                self._membership.remember(self._joined.with_state("refused"))
            os.kill(os.getpid(), signal.SIGHUP)


def _ignore(_number: int, _frame: FrameType | None) -> None:
    """What a signal does that comes before or after what it was for."""
