"""What a coordinator says to its nodes: here is the last student, may I have yours?

    talk = Conversation(messages, store, intake)
    talk.collect(1, shared, until=deadline, enough=lambda: ...)
    talk.share(merged, until=deadline)

A node that was away is offered the last shared student when it is back, before it is asked for its
own. It keeps the question until it has a release, for some minutes, and is then asked again; a
release that was refused is not sent again, and the next question tells its node why. Whatever a
node answers, be it nonsense, ends in one line for people and another question later, the pauses
growing.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from contracts.acknowledgement import SignedAcknowledgement
from contracts.exchange import (
    COLLECT,
    MAX_REFUSED,
    SHARE,
    CollectReply,
    CollectRequest,
    ShareReply,
    ShareRequest,
)
from coordinator.intake import Intake
from coordinator.node_messages import Answered, NodeMessages
from coordinator.store import RoundState, Store, Submission
from genkd.console import say
from genkd.errors import CannotCheck, GenKDError, InputFileRefused
from genkd.provenance.node_keys import NodeKeys
from genkd.provenance.record import Acknowledgement
from genkd.provenance.release import SIZE_LIMITS, read_bounded
from genkd.provenance.typed_data import Domain

FIRST_PAUSE, GROWTH = 1.0, 1.6
# Between two looks at what has come: short while there is something, longer while there is nothing.
SHORTEST_LOOK, LONGEST_LOOK = 0.1, 2.0
SECONDS_BEFORE_REFUSED_AGAIN = 3600
# How long a node may keep a question. Asking once costs it some 6 kB; while it keeps a question, it
# hears nothing else, such as that the round is over. Well below what a message has to live.
SECONDS_TO_KEEP = 300
SECONDS_TO_ANSWER = 15.0  # after that


@dataclass(frozen=True)
class Handout:
    """A student that every node is to have.

    Attributes:
        run_id: Its run, 32 bytes.
        number: Its round.
        path: Its release directory.
        parents: The receipts of the releases it was made from, by record id.
        submissions: The releases that count in its round, by their nodes' addresses.
    """

    run_id: bytes
    number: int
    path: Path
    parents: Mapping[bytes, bytes] = field(default_factory=dict, repr=False)
    submissions: Mapping[str, Submission] = field(default_factory=dict, repr=False)

    def request_for(self, node: str | None, keys: NodeKeys, domain: Domain) -> ShareRequest:
        """The message to one node, with what it is owed: its own proof, and a signed word."""
        own = self.submissions.get(node or "")
        receipt = acknowledgement = None
        if own is not None:
            # One that was left out of the merge, because it was revoked, has nothing to prove.
            receipt = self.parents.get(own.record_id)
            word = Acknowledgement(own.record_id, own.run_id, own.round, own.received_at)
            acknowledgement = SignedAcknowledgement.sign(word, keys, domain).to_bytes()
        files = {name: read_bounded(self.path / name, limit) for name, limit in SIZE_LIMITS.items()}
        return ShareRequest(self.run_id, self.number, files, self.parents, receipt, acknowledgement)


@dataclass
class _Peer:
    """What is known of a connected node."""

    has: int = -1  # the round of the newest student it keeps
    next_offer: float = 0.0
    next_question: float = 0.0
    keeps_until: float = 0.0  # the question it was asked last
    pause: float = 0.0
    told: str = ""  # the last line about it, which is not said twice


class Conversation:
    """All that is said during one run of the coordinator.

    Args:
        messages: To the nodes.
        store: Keeps who answered when.
        keys: The coordinator's, which acknowledge releases.
        domain: The federation's registry.
        longest_pause: Seconds between two questions to one node, at most.
        speaks_for: The address of the node that each Flower node was let in for, as far as known.
        clock: Seconds that never go back.
        sleep: Waits so many seconds.
    """

    def __init__(
        self,
        messages: NodeMessages,
        store: Store,
        keys: NodeKeys,
        domain: Domain,
        *,
        longest_pause: float,
        speaks_for: Callable[[], Mapping[int, str]] = dict,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._messages = messages
        self._store = store
        self._keys = keys
        self._domain = domain
        self._longest_pause = longest_pause
        self._speaks_for = speaks_for
        self._clock = clock
        self._sleep = sleep
        self._peers: dict[int, _Peer] = {}
        self._addresses = {seen.sender: seen.node for seen in store.nodes()}

    def collect(
        self,
        number: int,
        shared: Handout,
        intake: Intake,
        *,
        until: float,
        enough: Callable[[], bool],
    ) -> None:
        """Ask every connected node for its release of a round, until there are enough.

        Args:
            number: The round.
            shared: The student that the round starts from; offered first.
            intake: Takes what comes.
            until: When to give up, by the clock.
            enough: Whether there are enough releases; asked after each one that is accepted.
        """
        for peer in self._peers.values():
            peer.next_question = peer.pause = 0.0
        look = SHORTEST_LOOK
        while not enough() and self._clock() < until:
            self._speak(number, shared)
            self._sleep(min(look, max(0.0, until - self._clock())))
            look = min(look * GROWTH, LONGEST_LOOK, self._longest_pause)
            for answer in self._messages.answers():
                look = SHORTEST_LOOK
                if answer.kind == SHARE:
                    self._offered(answer, shared)
                else:
                    self._given(answer, intake)

    def share(self, shared: Handout, *, until: float) -> tuple[int, int]:
        """Offer a student to every connected node, and wait for their answers.

        A node that keeps a question is offered it after that, and waited for so long.

        Returns:
            How many nodes keep it, and how many are connected and do not.
        """
        offered: set[int] = set()
        look = SHORTEST_LOOK
        while True:
            online = self._messages.online()
            lacking = [n for n in online if self._peer(n).has < shared.number]
            for node_id in lacking:
                if node_id not in offered and not self._messages.is_busy(node_id):
                    offered.add(node_id)
                    self._offer(node_id, shared)
            waiting = [n for n in lacking if n not in offered or self._messages.is_busy(n)]
            until = max([until, *map(self._keeps_until, waiting)])
            if not waiting or self._clock() >= until:
                return len(online) - len(lacking), len(lacking)
            self._sleep(min(look, max(0.0, until - self._clock())))
            look = min(look * GROWTH, LONGEST_LOOK, self._longest_pause)
            for answer in self._messages.answers():
                look = SHORTEST_LOOK
                if answer.kind == SHARE:
                    self._offered(answer, shared)
                else:  # a release that comes now is of a round that is closed
                    self._peer(answer.node_id).keeps_until = 0.0

    # ------------------------------------------------------------------ speaking

    def _speak(self, number: int, shared: Handout) -> None:
        """Say to each connected node what there is to say to it now."""
        here = list(self._store.accepted(shared.run_id, number))
        senders, nodes = {s.sender for s in here}, {s.node for s in here}
        now = self._clock()
        for node_id in self._messages.online():
            peer = self._peer(node_id)
            if self._messages.is_busy(node_id):
                continue
            given = node_id in senders or self._addresses.get(node_id) in nodes
            if peer.has < shared.number and now >= peer.next_offer:
                self._offer(node_id, shared)
            elif not given and now >= peer.next_question:
                peer.pause = min(max(FIRST_PAUSE, peer.pause * GROWTH), self._longest_pause)
                peer.next_question = now + peer.pause
                peer.keeps_until = now + SECONDS_TO_KEEP
                refused = self._refused(node_id, shared.run_id, number)
                request = CollectRequest(shared.run_id, number, refused, SECONDS_TO_KEEP)
                self._messages.send(node_id, COLLECT, request.to_record())

    def _keeps_until(self, node_id: int) -> float:
        """Until when a node may hear nothing, and answer: 0 for one that keeps no question."""
        until = self._peer(node_id).keeps_until
        return until + SECONDS_TO_ANSWER if until > self._clock() else 0.0

    def _refused(self, node_id: int, run_id: bytes, number: int) -> dict[bytes, str]:
        """Why releases of a node are not wanted again: those refused in the last hour.

        Not for ever: what was wrong may be put right, a node admitted, a teacher committed.
        """
        since = time.time() - SECONDS_BEFORE_REFUSED_AGAIN
        found = {
            one.record_id: one.reason
            for one in self._store.submissions(run_id, number)
            if not one.accepted
            and one.record_id
            and one.received_at > since
            and one.sender == node_id
        }
        return dict(list(found.items())[-MAX_REFUSED:])

    def _peer(self, node_id: int) -> _Peer:
        return self._peers.setdefault(node_id, _Peer())

    def _offer(self, node_id: int, shared: Handout) -> None:
        peer = self._peers[node_id]
        peer.next_offer = self._clock() + self._longest_pause
        request = shared.request_for(self._addresses.get(node_id), self._keys, self._domain)
        self._messages.send(node_id, SHARE, request.to_record())

    # ------------------------------------------------------------------ listening

    def _offered(self, answer: Answered, shared: Handout) -> None:
        """Take a node's answer to an offer."""
        peer = self._peer(answer.node_id)
        kept, reason = False, answer.error
        if answer.content is not None:
            try:
                reply = ShareReply.from_record(answer.content)
                kept, reason = reply.kept, reply.reason
            except InputFileRefused as error:
                reason = f"it answers nonsense: {error.message}"
        student = f"the student of round {shared.number}"
        if kept:
            peer.has = shared.number
            peer.next_question = peer.pause = 0.0
            self._store.advance(shared.run_id, shared.number, RoundState.SHARED)
            self._tell(answer.node_id, f"keeps {student}")
        else:
            self._tell(answer.node_id, f"does not keep {student}: {reason}")

    def _given(self, answer: Answered, intake: Intake) -> None:
        """Take a node's answer to the question for its release."""
        self._peer(answer.node_id).keeps_until = 0.0
        if answer.content is None:
            self._tell(answer.node_id, answer.error)
            return
        try:
            reply = CollectReply.from_record(answer.content)
        except InputFileRefused as error:
            self._tell(answer.node_id, f"answers nonsense: {error.message}")
            return
        if self._speaks_for().get(answer.node_id, reply.node) != reply.node:
            self._tell(answer.node_id, f"calls itself {reply.node}, which it was not let in for")
            return
        self._addresses[answer.node_id] = reply.node
        self._store.saw(reply.node, answer.node_id, int(time.time()))
        if reply.files is None:
            self._tell(answer.node_id, reply.reason)
            return
        try:
            submission = intake.submit(reply.files, answer.node_id)
        except CannotCheck as error:  # nothing is said about the release: it is asked for again
            self._tell(answer.node_id, f"release not taken yet: {error.message}")
            return
        except (GenKDError, OSError, sqlite3.Error):
            raise
        except Exception as error:  # a defect of ours that a node has found ends nobody's round
            self._tell(answer.node_id, f"release cannot be read: {type(error).__name__}")
            return
        if submission.accepted:
            again = ", again" if submission.duplicate else ""
            self._tell(answer.node_id, f"release 0x{submission.record_id.hex()} accepted{again}")
        else:
            self._tell(answer.node_id, f"release refused: {submission.reason}")

    def _tell(self, node_id: int, line: str) -> None:
        """One line for people about a node, unless it was the last one about it."""
        peer = self._peer(node_id)
        if peer.told != line:
            peer.told = line
            say(f"{self._addresses.get(node_id, f'Flower node {node_id}')}: {line}")
