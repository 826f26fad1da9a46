"""The registry as a verifier reads it, over JSON-RPC and without any Ethereum library.

    reader = RegistryReader(url, Domain(chain_id=1, contract="0x..."), confirmations="finalized")
    if reader.fault_of_contract() is None:
        answer = reader.look_up(record, signature, proof)

It implements `genkd.provenance.chain.ChainReader`. Blocks are asked for by their hash, so that all
that is read at one belongs to one history even while the chain reorganises.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, NoReturn

from contracts.abi import Words, encode_call
from contracts.artifact import fault_of_code
from contracts.json_rpc import JsonRpc, printable
from genkd.errors import CannotCheck, ConfigurationError
from genkd.provenance.chain import Answer, Block, Entry, Verdict
from genkd.provenance.record import ZERO_HASH, StudentRecord
from genkd.provenance.typed_data import WORD, Domain, to_address

ZERO_ADDRESS: Final = to_address(bytes(20))
VERDICT_WORDS = 17
ENTRY_WORDS = 5
ENTRIES_AT_ONCE = 500  # three storage slots each: within the gas that endpoints grant a call
MAX_CONFIRMATIONS = 100_000

Confirmations = int | Literal["finalized", "safe"]


@dataclass(frozen=True)
class Head:
    """A block to read at.

    Attributes:
        number: Its number.
        hash: Its hash, as JSON-RPC spells it.
        timestamp: Unix seconds.
    """

    number: int
    hash: str
    timestamp: int


class RegistryReader:
    """One registry, read through one endpoint.

    Args:
        url: The endpoint, see `JsonRpc`.
        domain: The chain id and the registry's address that the caller trusts.
        confirmations: What counts as final: the chain's own `finalized` or `safe` tag, or this many
            blocks on top of a block (0: the newest block counts at once).
        timeout: Seconds for one question.

    Attributes:
        rpc: The endpoint.
        domain: As given.

    Raises:
        ConfigurationError: If the URL or the number of confirmations is out of the question.
    """

    def __init__(
        self,
        url: str,
        domain: Domain,
        *,
        confirmations: Confirmations = "finalized",
        timeout: float = 10.0,
    ) -> None:
        if isinstance(confirmations, int) and not 0 <= confirmations <= MAX_CONFIRMATIONS:
            raise ConfigurationError(
                f"{confirmations} confirmations are out of range",
                hint=f"give 0 to {MAX_CONFIRMATIONS}, or 'finalized'",
            )
        self.rpc = JsonRpc(url, timeout=timeout)
        self.domain = domain
        self._confirmations = confirmations

    def chain_id(self) -> int:
        """The chain id the endpoint itself reports."""
        return self.rpc.quantity("eth_chainId")

    def fault_of_contract(self) -> str | None:
        """One line on why the code at the address is not this project's registry; None if it is."""
        code = self.rpc.data("eth_getCode", self.domain.contract, "latest")
        return fault_of_code(code, self.domain)

    def look_up(self, record: StudentRecord, signature: bytes, proof: Sequence[bytes]) -> Answer:
        """What the registry says of a record, at the confirmed and at the newest block."""
        latest = self.head("latest")
        confirmed = self.confirmed(latest)
        call = encode_call("verify", list(vars(record).values()), signature, proof)
        newest = self._verdict(call, latest)
        if newest is None:
            raise CannotCheck(
                f"{self.rpc.name} has no registry at {self.domain.contract}",
                hint="check the registry's address and the chain it is on",
            )
        if confirmed.hash == latest.hash:
            return Answer(confirmed=newest, latest=newest)
        # Before the registry was deployed there is nothing to ask: then nothing is recorded yet.
        earlier = self._verdict(call, confirmed) or _nothing(confirmed.number, newest.record_id)
        return Answer(confirmed=earlier, latest=newest)

    def block(self, number: int) -> Block | None:
        """The block with this number on the current chain, None if there is none yet."""
        found = self.rpc.ask("eth_getBlockByNumber", hex(number), False)
        if found is None:
            return None
        head = self._as_head(found)
        hashes = found.get("transactions")
        if head.number != number or not isinstance(hashes, list):
            self.broken("a block that was not asked for")
        return Block(head.timestamp, frozenset(self.as_hash(one) for one in hashes))

    def entries(self, record_ids: Sequence[bytes]) -> list[Entry | None]:
        """What the registry says of each record id alone, at the newest block; None if unknown."""
        latest = self.head("latest")
        found: list[Entry | None] = []
        for start in range(0, len(record_ids), ENTRIES_AT_ONCE):
            found += self.entries_at(latest, record_ids[start : start + ENTRIES_AT_ONCE])
        return found

    # ------------------------------------------------------------------ at one block

    def head(self, which: str) -> Head:
        """A block by its tag or number, as JSON-RPC spells them."""
        found = self.rpc.ask("eth_getBlockByNumber", which, False)
        if found is None:
            self.broken(f"no block {which}")
        return self._as_head(found)

    def confirmed(self, latest: Head) -> Head:
        """The newest block that counts as final, when `latest` is the newest."""
        if isinstance(self._confirmations, str):
            head = self.head(self._confirmations)
        elif self._confirmations == 0:
            return latest
        else:
            head = self.head(hex(max(0, latest.number - self._confirmations)))
        # Should the chain have grown between the two questions, the older block is the safer.
        return head if head.number <= latest.number else latest

    def call(self, head: Head, function: str, *arguments: object) -> bytes:
        """What a function of the registry returns at a block; nothing before its deployment."""
        return self._call(encode_call(function, *arguments), head)

    def entries_at(self, head: Head, record_ids: Sequence[bytes]) -> list[Entry | None]:
        """`entries` at a block, at most `ENTRIES_AT_ONCE`."""
        answer = self.call(head, "entriesOf", list(record_ids))
        words = Words(answer, 2 + ENTRY_WORDS * len(record_ids))
        if (words.take("uint256"), words.take("uint256")) != (WORD, len(record_ids)):
            self.broken("a list of another length")
        return [_decode_entry(words) for _ in record_ids]

    def as_hash(self, value: object) -> bytes:
        """A hash of JSON-RPC, 32 bytes."""
        digest = self.rpc.as_data(value)
        if len(digest) != WORD:
            self.broken("a hash of another length")
        return digest

    def broken(self, what: str) -> NoReturn:
        """Refuse an answer.

        Raises:
            CannotCheck: Always.
        """
        raise CannotCheck(
            f"{self.rpc.name} answers with {printable(what)}",
            hint="it is broken or lies; ask another endpoint",
        )

    def _as_head(self, found: object) -> Head:
        if not isinstance(found, dict):
            self.broken("a block that is none")
        number = self.rpc.as_quantity(found.get("number"))
        timestamp = self.rpc.as_quantity(found.get("timestamp"))
        return Head(number, "0x" + self.as_hash(found.get("hash")).hex(), timestamp)

    def _call(self, data: bytes, head: Head) -> bytes:
        transaction = {"to": self.domain.contract, "data": "0x" + data.hex()}
        return self.rpc.data("eth_call", transaction, {"blockHash": head.hash})

    def _verdict(self, call: bytes, head: Head) -> Verdict | None:
        answer = self._call(call, head)
        return _decode_verdict(Words(answer, VERDICT_WORDS), head) if answer else None


def _decode_verdict(words: Words, head: Head) -> Verdict:
    """`IStudentRegistry.Verdict`, its members in order."""
    record_id, profile_hash = words.take("bytes32"), words.take("bytes32")
    identity, since, until = (words.take(kind) for kind in ("address", "uint48", "uint48"))
    registered_at, committed_at = words.take("uint48"), words.take("uint48")
    teacher_at, recorded_at = words.take("uint48"), words.take("uint48")
    in_order = words.take("bool")
    by_node = [words.take(kind) for kind in ("address", "uint48", "uint8")]
    by_owner = [words.take(kind) for kind in ("address", "uint48", "uint8")]
    valid = words.take("bool")
    revoked = bool(by_node[1] or by_owner[1])
    times = (registered_at, committed_at, teacher_at, by_node[1], by_owner[1])
    if valid != (in_order and not revoked) or max(times) > head.timestamp:
        raise CannotCheck(
            "the endpoint's answer about the record contradicts itself",
            hint="it is broken or lies; ask another endpoint",
        )
    return Verdict(
        block=head.number,
        record_id=record_id,
        profile_hash=profile_hash,
        identity=identity,
        enrolled_since=since,
        enrolled_until=until,
        registered_at=registered_at,
        committed_at=committed_at,
        teacher_committed_at=teacher_at,
        recorded_at=recorded_at,
        in_order=in_order,
        revoked_by_node=by_node[1],
        revoked_by_owner=by_owner[1],
        reason=by_node[2] if by_node[1] else by_owner[2],
    )


def _decode_entry(words: Words) -> Entry | None:
    node, recorded_at = words.take("address"), words.take("uint48")
    words.take("uint32")  # the round, which the record itself tells
    counted, revoked = words.take("bool"), words.take("bool")
    if not recorded_at:
        return None
    return Entry(node=node, recorded_at=recorded_at, node_counted=counted, revoked=revoked)


def _nothing(block: int, record_id: bytes) -> Verdict:
    """What a registry that does not exist yet would say."""
    return Verdict(block, record_id, ZERO_HASH, ZERO_ADDRESS, 0, 0, 0, 0, 0, 0, False, 0, 0, 0)
