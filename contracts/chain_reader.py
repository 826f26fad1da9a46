"""The registry as a verifier reads it: over JSON-RPC, without web3 and its two seconds of import.

    reader = RegistryReader(url, Domain(chain_id=1, contract="0x..."), confirmations="finalized")
    if reader.fault_of_contract() is None:
        answer = reader.look_up(record, signature, proof)

It implements `genkd.provenance.chain.ChainReader`. Blocks are asked for by their hash, so that all
that is read belongs to one history even while the chain reorganises.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

from contracts.artifact import fault_of_code, selector
from contracts.json_rpc import JsonRpc, printable
from genkd.errors import CannotCheck, ConfigurationError
from genkd.provenance.chain import Answer, Block, Entry, Verdict
from genkd.provenance.record import ZERO_HASH, StudentRecord
from genkd.provenance.typed_data import Domain, encode_word, members, to_address

WORD = 32
ZERO_ADDRESS = to_address(bytes(20))
VERDICT_WORDS = 17
ENTRY_WORDS = 5
ENTRIES_AT_ONCE = 500  # three storage slots each: within the gas that endpoints grant a call
MAX_CONFIRMATIONS = 100_000

Confirmations = int | Literal["finalized", "safe"]


@dataclass(frozen=True)
class _Head:
    """A block to read at."""

    number: int
    hash: str
    timestamp: int


class _Words:
    """The words of an ABI-encoded answer, taken one after the other and checked for their type."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._next = 0

    def take(self, kind: str) -> Any:
        word = self._data[self._next : self._next + WORD]
        self._next += WORD
        if kind == "bytes32":
            return word
        bits = {"address": 160, "bool": 1}.get(kind) or int(kind.removeprefix("uint"))
        number = int.from_bytes(word, "big")
        if len(word) != WORD or number >> bits:
            raise _malformed()
        if kind == "address":
            return to_address(word[12:])
        return bool(number) if kind == "bool" else number


class RegistryReader:
    """One registry, read through one endpoint.

    Args:
        url: The endpoint, see `JsonRpc`.
        domain: The chain id and the registry's address that the caller trusts.
        confirmations: What counts as final: the chain's own `finalized` or `safe` tag, or this many
            blocks on top of a block (0: the newest block counts at once).
        timeout: Seconds for one question.

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
        self.confirmations = confirmations

    def chain_id(self) -> int:
        """The chain id the endpoint itself reports."""
        return self.rpc.quantity("eth_chainId")

    def fault_of_contract(self) -> str | None:
        """One line on why the code at the address is not this project's registry; None if it is."""
        code = self.rpc.data("eth_getCode", self.domain.contract, "latest")
        return fault_of_code(code, self.domain)

    def look_up(self, record: StudentRecord, signature: bytes, proof: Sequence[bytes]) -> Answer:
        """What the registry says of a record, at the confirmed and at the newest block."""
        latest = self._head("latest")
        confirmed = self._confirmed(latest)
        call = encode_verify(record, signature, proof)
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
            self._broken("a block that was not asked for")
        return Block(head.timestamp, frozenset(self._as_hash(one) for one in hashes))

    def entries(self, record_ids: Sequence[bytes]) -> list[Entry | None]:
        """What the registry says of each record id alone, at the newest block; None if unknown."""
        latest = self._head("latest")
        found: list[Entry | None] = []
        for start in range(0, len(record_ids), ENTRIES_AT_ONCE):
            found += self._entries(record_ids[start : start + ENTRIES_AT_ONCE], latest)
        return found

    def confirmed_entry(self, record_id: bytes) -> Entry | None:
        """What the registry says of a record id alone, at the confirmed block; None if unknown."""
        head = self._confirmed(self._head("latest"))
        return self._entries([record_id], head)[0] if self.code_at(head) else None

    # ------------------------------------------------------------------ blocks

    def _head(self, which: str) -> _Head:
        found = self.rpc.ask("eth_getBlockByNumber", which, False)
        if found is None:
            self._broken(f"no block {which}")
        return self._as_head(found)

    def _confirmed(self, latest: _Head) -> _Head:
        if isinstance(self.confirmations, str):
            head = self._head(self.confirmations)
        elif self.confirmations == 0:
            head = latest
        else:
            head = self._head(hex(max(0, latest.number - self.confirmations)))
        if head.number > latest.number:
            # The chain grew between the two questions: what is true at the older block holds.
            return latest
        return head

    def _as_head(self, found: object) -> _Head:
        if not isinstance(found, dict):
            self._broken("a block that is none")
        number = self.rpc.as_quantity(found.get("number"))
        timestamp = self.rpc.as_quantity(found.get("timestamp"))
        digest = "0x" + self._as_hash(found.get("hash")).hex()
        return _Head(number, digest, timestamp)

    def _as_hash(self, value: object) -> bytes:
        digest = self.rpc.as_data(value)
        if len(digest) != WORD:
            self._broken("a hash of another length")
        return digest

    # ------------------------------------------------------------------ calls

    def code_at(self, head: _Head) -> bytes:
        """The code at the registry's address at a block, empty before its deployment."""
        return self.rpc.data("eth_getCode", self.domain.contract, {"blockHash": head.hash})

    def _call(self, data: bytes, head: _Head) -> bytes:
        transaction = {"to": self.domain.contract, "data": "0x" + data.hex()}
        return self.rpc.data("eth_call", transaction, {"blockHash": head.hash})

    def _verdict(self, call: bytes, head: _Head) -> Verdict | None:
        answer = self._call(call, head)
        if not answer:
            return None  # a call to an address without code answers with nothing
        if len(answer) != VERDICT_WORDS * WORD:
            raise _malformed()
        return _decode_verdict(_Words(answer), head)

    def _entries(self, record_ids: Sequence[bytes], head: _Head) -> list[Entry | None]:
        count = len(record_ids)
        call = selector("entriesOf") + _uint(WORD) + _uint(count) + b"".join(record_ids)
        answer = self._call(call, head)
        if len(answer) != (2 + ENTRY_WORDS * count) * WORD:
            raise _malformed()
        words = _Words(answer)
        if (words.take("uint256"), words.take("uint256")) != (WORD, count):
            raise _malformed()
        return [_decode_entry(words) for _ in record_ids]

    def _broken(self, what: str) -> NoReturn:
        raise CannotCheck(
            f"{self.rpc.name} answers with {printable(what)}",
            hint="it is broken or lies; ask another endpoint",
        )


# ------------------------------------------------------------------ ABI


def _uint(value: int) -> bytes:
    return encode_word("uint256", value)


def encode_student(record: StudentRecord) -> bytes:
    """A record as the ABI's static tuple: nine words."""
    kinds = [kind for kind, _ in members(StudentRecord.TYPE)]
    pairs = zip(kinds, vars(record).values(), strict=True)
    return b"".join(encode_word(kind, value) for kind, value in pairs)


def encode_verify(record: StudentRecord, signature: bytes, proof: Sequence[bytes]) -> bytes:
    """The call data of `verify(student, signature, proof)`.

    Raises:
        ValueError: If a sibling of the proof has not 32 bytes.
    """
    if any(len(sibling) != WORD for sibling in proof):
        raise ValueError("a Merkle proof is a list of 32-byte hashes")
    student = encode_student(record)
    tail = _uint(len(signature)) + signature.ljust(-(-len(signature) // WORD) * WORD, b"\0")
    start = len(student) + 2 * WORD
    offsets = _uint(start) + _uint(start + len(tail))
    return selector("verify") + student + offsets + tail + _uint(len(proof)) + b"".join(proof)


def _decode_verdict(words: _Words, head: _Head) -> Verdict:
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


def _decode_entry(words: _Words) -> Entry | None:
    node, recorded_at = words.take("address"), words.take("uint48")
    words.take("uint32")  # the round, which the record itself tells
    counted, revoked = words.take("bool"), words.take("bool")
    if not recorded_at:
        return None
    return Entry(node=node, recorded_at=recorded_at, node_counted=counted, revoked=revoked)


def _nothing(block: int, record_id: bytes) -> Verdict:
    """What a registry that does not exist yet would say."""
    return Verdict(block, record_id, ZERO_HASH, ZERO_ADDRESS, 0, 0, 0, 0, 0, 0, False, 0, 0, 0)


def _malformed() -> CannotCheck:
    return CannotCheck(
        "the endpoint's answer is not one of this version's registry",
        hint="check the registry's address and the chain it is on, or ask another endpoint",
    )
