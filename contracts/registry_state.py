"""What the registry holds, for those who write to it: keys, runs, rounds, and where they lie.

state = RegistryState(url, domain)
state.node("0x...").until
state.registration(record_id).transaction
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from contracts.abi import Words
from contracts.artifact import event_topic
from contracts.chain_reader import Head, RegistryReader
from genkd.provenance.record import ZERO_HASH
from genkd.provenance.typed_data import encode_word

NEVER: Final = 2**48 - 1  # `until` of a key that nothing ends


@dataclass(frozen=True)
class Node:
    """A key as the registry knows it.

    Attributes:
        identity: The first key of its node; the zero address for a key never enrolled.
        since: From when on it counts, Unix seconds, inclusive.
        until: Up to when it counts, exclusive; `NEVER` while nothing ends it.
        profile_hash: Hash of the profile enrolled with it, 32 bytes.
    """

    identity: str
    since: int
    until: int
    profile_hash: bytes


@dataclass(frozen=True)
class Run:
    """A run as the owner opened it.

    Attributes:
        coordinator: Who commits its rounds; the zero address if there is no such run.
        opened_at: Unix seconds.
        config_hash: SHA-256 of its configuration, 32 bytes.
    """

    coordinator: str
    opened_at: int
    config_hash: bytes


@dataclass(frozen=True)
class Round:
    """A round's root.

    Attributes:
        root: 32 bytes, zero if it is not committed.
        recorded_at: Unix seconds, 0 if it is not committed.
        count: How many students, as the coordinator says.
    """

    root: bytes
    recorded_at: int
    count: int


@dataclass(frozen=True)
class Placement:
    """Where something was put on the chain.

    Attributes:
        transaction: The hash of the transaction, 32 bytes.
        block: Its block's number.
    """

    transaction: bytes
    block: int


class RegistryState(RegistryReader):
    """A `RegistryReader` that also tells what writers ask; at the newest block unless said."""

    def owner(self) -> str:
        """Who enrols nodes and opens runs."""
        return str(self._words(self.head("latest"), 1, "owner").take("address"))

    def node(self, key: str) -> Node:
        """A key."""
        head = self.head("latest")
        words = self._words(head, 3, "nodeOf", key)
        identity, since, until = words.take("address"), words.take("uint48"), words.take("uint48")
        profile_hash = self._words(head, 1, "profileHashOf", key).take("bytes32")
        return Node(identity, since, until, profile_hash)

    def next_key_hash(self, identity: str) -> bytes:
        """The commitment to an identity's next key, 32 bytes; zero if there is none."""
        words = self._words(self.head("latest"), 1, "nextKeyHashOf", identity)
        return bytes(words.take("bytes32"))

    def teacher_committed_at(self, commitment: bytes, identity: str) -> int:
        """When an identity committed to a teacher, Unix seconds; 0 if it did not."""
        head = self.head("latest")
        return int(self._words(head, 1, "teacherCommittedAt", commitment, identity).take("uint48"))

    def run(self, run_id: bytes) -> Run:
        """A run."""
        words = self._words(self.head("latest"), 3, "runOf", run_id)
        return Run(words.take("address"), words.take("uint48"), words.take("bytes32"))

    def round(self, run_id: bytes, number: int, *, confirmed: bool = False) -> Round:
        """A round, at the newest or at the confirmed block."""
        head = self._at(confirmed)
        if head is None:
            return Round(ZERO_HASH, 0, 0)
        words = self._words(head, 3, "roundOf", run_id, number)
        return Round(words.take("bytes32"), words.take("uint48"), words.take("uint32"))

    def is_registered(self, record_id: bytes, *, confirmed: bool = False) -> bool:
        """Whether a student was registered by itself, at the newest or at the confirmed block."""
        head = self._at(confirmed)
        return head is not None and self.entries_at(head, [record_id])[0] is not None

    # ------------------------------------------------------------------ where things were put

    def registration(self, record_id: bytes) -> Placement:
        """Where a student was registered by itself.

        Raises:
            CannotCheck: If it was not, or the endpoint keeps no logs of that time.
        """
        entry = self.entries([record_id])[0]
        time = entry.recorded_at if entry else 0
        return self._placement(time, event_topic("StudentRegistered"), record_id)

    def round_placement(self, run_id: bytes, number: int) -> Placement:
        """Where a round's root was committed.

        Raises:
            CannotCheck: If it was not, or the endpoint keeps no logs of that time.
        """
        time = self.round(run_id, number).recorded_at
        topic = event_topic("RoundCommitted")
        return self._placement(time, topic, run_id, encode_word("uint32", number))

    def _placement(self, time: int, *topics: bytes) -> Placement:
        """Find a log by its block's time: endpoints search a few blocks at once, not a chain."""
        latest = self.head("latest")
        first = self._first_block_at(time, latest.number)
        last = self._first_block_at(time + 1, latest.number) - 1
        wanted = {
            "address": self.domain.contract,
            "fromBlock": hex(first),
            "toBlock": hex(last),
            "topics": ["0x" + topic.hex() for topic in topics],
        }
        logs = self.rpc.ask("eth_getLogs", wanted) if first <= last else []
        if not isinstance(logs, list) or len(logs) != 1 or not isinstance(logs[0], dict):
            self.broken("no log of what the registry should hold")
        block = self.rpc.as_quantity(logs[0].get("blockNumber"))
        if not first <= block <= last:
            self.broken("a log that was not asked for")
        return Placement(self.as_hash(logs[0].get("transactionHash")), block)

    def _first_block_at(self, time: int, newest: int) -> int:
        """The number of the first block that is not earlier than `time`; newest + 1 if all are."""
        low, high = 0, newest + 1
        while low < high:
            middle = (low + high) // 2
            if self.head(hex(middle)).timestamp < time:
                low = middle + 1
            else:
                high = middle
        return low

    def _at(self, confirmed: bool) -> Head | None:
        """The newest or the confirmed block, None if the registry was not there yet."""
        head = self.head("latest")
        if confirmed:
            head = self.confirmed(head)
        code = self.rpc.data("eth_getCode", self.domain.contract, {"blockHash": head.hash})
        return head if code else None

    def _words(self, head: Head, count: int, function: str, *arguments: object) -> Words:
        return Words(self.call(head, function, *arguments), count)
