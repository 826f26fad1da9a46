"""Who asked to join, what became of it, and which SuperNode speaks for whom.

    joins = Joins(federation)
    joins.receive(request)                  # -> JoinAnswer; checked by the caller
    joins.all()                             # what a person decides about
    joins.decide(address, "admitted")

One small file a node, `joins/0xADDR.json`, written whole. `serve` writes what nodes ask, `admit`
and `remove` what a person decided; a lock on the folder keeps them apart. The files say what is
wanted; that the SuperLink lets in just these SuperNodes is seen to by `coordinator.supernodes`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

from contracts.enrolment import MAX_REASON_CHARACTERS, JoinAnswer, JoinRequest
from coordinator.certificates import make_private_folder
from genkd.canonical import canonical_json, parse_json
from genkd.durable import atomic_write, unwritable
from genkd.errors import ConfigurationError, GenKDError, RefusedByPolicy
from genkd.provenance.typed_data import ADDRESS

FOLDER: Final = "joins"
LOCK, SUPERLINK_LOCK = ".lock", ".superlink.lock"
VERSION = 1
MAX_FILE_BYTES = 64 * 1024
# A request takes 1 kB and a stranger some milliseconds: what nobody decided is bounded.
MAX_UNDECIDED: Final = 1000
UNDECIDED_SECONDS: Final = 30 * 24 * 3600
# How long "too many" is believed before the files are counted again.
FULL_SECONDS: Final = 5.0
SUPERLINK_COMES: Final = "admitted; its SuperNode is let in as soon as the SuperLink is up"

State = Literal["expected", "pending", "admitted", "refused"]
STATES: Final = ("expected", "pending", "admitted", "refused")


class TooManyJoins(RefusedByPolicy):
    """More nodes wait for a decision than are kept."""


@dataclass(frozen=True)
class LetIn:
    """A SuperNode that the SuperLink lets in.

    Attributes:
        key: Its public key, PEM text.
        identity: The SuperLink's number for it, a `node_id` of Flower.
    """

    key: str
    identity: int


@dataclass(frozen=True)
class Join:
    """How it stands with one node.

    Attributes:
        node: Its address.
        state: Of the newest request; `expected` if it was admitted before it asked.
        reason: Why it was refused.
        request: The newest one, None if it has not asked.
        supernode: The SuperNode that is let in for it, which may be the one of an earlier request.
        since: When the newest request came, Unix seconds.
    """

    node: str
    state: State
    reason: str
    request: JoinRequest | None
    supernode: LetIn | None
    since: int

    @property
    def supernode_key(self) -> str | None:
        """The key of the SuperNode that is let in, PEM text."""
        return self.supernode.key if self.supernode else None

    @property
    def wanted_key(self) -> str | None:
        """The SuperNode key that the SuperLink should know for this node, PEM text."""
        if self.state == "admitted" and self.request is not None:
            return self.request.supernode_key
        # Until a person decides about another one, the one that was admitted counts.
        return self.supernode_key if self.state == "pending" else None

    def answer(self) -> JoinAnswer | None:
        """What the node is told, None if it never asked."""
        if self.request is None or self.state == "expected":
            return None
        if self.state != "admitted":
            return JoinAnswer(self.state, self.reason)
        if self.supernode_key != self.request.supernode_key:
            return JoinAnswer("pending", SUPERLINK_COMES)
        return JoinAnswer("admitted")

    def to_bytes(self) -> bytes:
        """Canonical JSON."""
        supernode = self.supernode
        return canonical_json(
            {
                "v": VERSION,
                "node": self.node,
                "state": self.state,
                "reason": self.reason,
                "request": parse_json(self.request.to_bytes()) if self.request else None,
                # Flower's numbers go beyond what JSON reads exactly.
                "supernode": supernode
                and {"key": supernode.key, "identity": str(supernode.identity)},
                "since": self.since,
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> Join:
        """The inverse of `to_bytes`.

        Raises:
            ValueError, InputFileRefused: If the bytes are anything else.
        """
        value: Any = parse_json(data)
        if not isinstance(value, dict) or value.get("v") != VERSION:
            raise ValueError("it is of another version")
        if value["state"] not in STATES:
            raise ValueError("its state is none there is")
        request, supernode = value["request"], value["supernode"]
        return cls(
            node=str(value["node"]),
            state=value["state"],
            reason=str(value["reason"]),
            request=None if request is None else JoinRequest.from_bytes(canonical_json(request)),
            supernode=supernode and LetIn(str(supernode["key"]), int(supernode["identity"])),
            since=int(value["since"]),
        )


class Joins:
    """The joins of a federation.

    Args:
        federation: The federation's folder; that of the joins is made in it.
        clock: Unix seconds.

    Raises:
        ResourceExhausted: If the folder cannot be made.
    """

    def __init__(self, federation: Path, *, clock: Callable[[], float] = time.time) -> None:
        self.folder = federation / FOLDER
        make_private_folder(self.folder)
        self._clock = clock
        self._full_until = 0.0

    def receive(self, request: JoinRequest) -> JoinAnswer:
        """Keep a request that was checked, and say how it stands with it.

        The same request may come again and again. Another one of an admitted node, that is, with
        another SuperNode, waits for a decision like the first; the admitted SuperNode goes on.

        Raises:
            TooManyJoins: If no more undecided ones are kept.
            ResourceExhausted: If it cannot be written.
        """
        with self._locked():
            before = self.get(request.node)
            if before is None:
                self._require_room()
                before = Join(request.node, "pending", "", None, None, 0)
            join = self._with(before, request)
            if join != before:
                self._write(join)
            return join.answer() or JoinAnswer("pending")

    def _with(self, before: Join, request: JoinRequest) -> Join:
        if before.request == request:
            return before
        if before.state != "refused" and before.supernode_key == request.supernode_key:
            return replace(before, state="admitted", reason="", request=request)
        # Who was refused may ask again, and stays refused until a person says otherwise.
        state: State = "refused" if before.state == "refused" else "pending"
        return replace(before, state=state, request=request, since=int(self._clock()))

    def answer(self, address: str) -> JoinAnswer | None:
        """What a node is told that asks how it stands, None if it never asked to join."""
        join = self.get(address)
        return join.answer() if join else None

    def get(self, address: str) -> Join | None:
        """What is known of a node.

        Args:
            address: In checksum form.

        Raises:
            ConfigurationError: If its file cannot be read.
        """
        path = self._path(address)
        try:
            with path.open("rb") as file:
                join = Join.from_bytes(file.read(MAX_FILE_BYTES))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, GenKDError) as error:
            raise ConfigurationError(
                f"{path} cannot be read: {error}", hint="delete it; the node then joins again"
            ) from error
        if join.node != address:
            raise ConfigurationError(
                f"{path} is about another node", hint="delete it; the node then joins again"
            )
        return join

    def all(self) -> list[Join]:
        """What is known of every node, by address.

        Raises:
            ConfigurationError: If a file cannot be read.
        """
        found = (self.get(address) for address in self._addresses())
        return [join for join in found if join is not None]

    def supernodes(self) -> dict[int, str]:
        """The address of the node that each SuperNode speaks for, by Flower's `node_id`."""
        return {join.supernode.identity: join.node for join in self.all() if join.supernode}

    def decide(self, address: str, state: State, reason: str = "") -> Join:
        """Note what a person decided about a node.

        Raises:
            ResourceExhausted: If it cannot be written.
        """
        with self._locked():
            join = self.get(address) or Join(address, state, "", None, None, int(self._clock()))
            if state == "admitted" and join.request is None:
                state = "expected"
            decided = replace(join, state=state, reason=reason[:MAX_REASON_CHARACTERS])
            self._write(decided)
            return decided

    def let_in(self, address: str, supernode: LetIn | None) -> None:
        """Note which SuperNode the SuperLink lets in for a node.

        Raises:
            ResourceExhausted: If it cannot be written.
        """
        with self._locked():
            join = self.get(address)
            if join is not None and join.supernode != supernode:
                self._write(replace(join, supernode=supernode))

    @contextlib.contextmanager
    def one_at_a_time(self) -> Iterator[None]:
        """Let one process at a time bring the SuperLink in line with what is wanted.

        Raises:
            ResourceExhausted: If the folder cannot be written.
        """
        with self._locked(SUPERLINK_LOCK):
            yield

    # ------------------------------------------------------------------ files

    def _path(self, address: str) -> Path:
        if not ADDRESS.fullmatch(address):
            raise ValueError("an address names the file")
        return self.folder / f"{address}.json"

    def _addresses(self) -> list[str]:
        return sorted(p.stem for p in self.folder.glob("0x*.json") if ADDRESS.fullmatch(p.stem))

    def _write(self, join: Join) -> None:
        atomic_write(self._path(join.node), join.to_bytes(), mode=0o600)

    def _require_room(self) -> None:
        """Refuse one more undecided request where there are too many; forget those of long ago."""
        addresses = self._addresses() if self._clock() >= self._full_until else None
        if addresses is not None and len(addresses) < MAX_UNDECIDED:
            return
        if addresses is not None and self._count_undecided() < MAX_UNDECIDED:
            return
        if addresses is not None:
            self._full_until = self._clock() + FULL_SECONDS
        raise TooManyJoins(
            "too many nodes wait to be admitted",
            hint="ask the coordinator to admit your profile.json first, then join",
        )

    def _count_undecided(self) -> int:
        count = 0
        oldest = self._clock() - UNDECIDED_SECONDS
        for join in self.all():
            if join.state != "pending" or join.supernode is not None:
                continue
            if join.since < oldest:
                self._path(join.node).unlink(missing_ok=True)
            else:
                count += 1
        return count

    @contextlib.contextmanager
    def _locked(self, name: str = LOCK) -> Iterator[None]:
        path = self.folder / name
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise unwritable(path, error) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)
