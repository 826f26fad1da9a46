"""The two conversations between a coordinator and its nodes, as Flower messages.

    message = Message(CollectRequest(run_id, 1, wait=240).to_record(), node_id, COLLECT)
    reply = CollectReply.from_record(answer.content)

A coordinator **collects** a node's finished release and later **shares** the merged one. Nothing
else is ever said over Flower: nodes distil on their own schedule and record their students
themselves.

The files of a release travel as Flower arrays of plain bytes (`packed_files`), which it sends byte
for byte and in chunks; the same bytes in a `ConfigRecord` take it minutes and gigabytes. What
controls the conversation is canonical JSON of at most 64 KiB. `from_record` believes nothing:
whatever is not exactly what `to_record` writes is refused. That a message is well-formed says
nothing about the release in it, which is verified by its signatures (`genkd.provenance`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import ClassVar, Final, cast

from flwr.app import ConfigRecord, RecordDict

from contracts.acknowledgement import MAX_ACKNOWLEDGEMENT_BYTES, SignedAcknowledgement
from contracts.packed_files import Malformed, pack, unpack
from genkd.canonical import canonical_json, parse_json
from genkd.errors import InputFileRefused
from genkd.provenance.receipt import MAX_RECEIPT_BYTES, Receipt
from genkd.provenance.release import SIZE_LIMITS
from genkd.provenance.statement import MAX_PARENTS, STUDENT_NAME
from genkd.provenance.typed_data import parse_address, parse_bytes32, to_hex

PROTOCOL: Final = 1
COLLECT: Final = "query.collect"
SHARE: Final = "query.share"

MAX_CONTROL_BYTES = 64 * 1024
MAX_REFUSED = 40  # in one request: what 64 KiB hold
MAX_REASON = 300  # characters
MAX_WAIT = 3600  # seconds
MAX_PARENTS_BYTES = 2**26  # 10,000 receipts, each with its Merkle proof

CONTROL, FILES = "control", "files"
STUDENT = f"release/{STUDENT_NAME}"
RELEASE_LIMITS: Mapping[str, int] = {f"release/{name}": n for name, n in SIZE_LIMITS.items()}
OWN, PARENTS, ACKNOWLEDGEMENT = "own", "parents", "acknowledgement"
SHARE_LIMITS: Mapping[str, int] = {
    **RELEASE_LIMITS,
    OWN: MAX_RECEIPT_BYTES,
    PARENTS: MAX_PARENTS_BYTES,
    ACKNOWLEDGEMENT: MAX_ACKNOWLEDGEMENT_BYTES,
}


def one_line(reason: str) -> str:
    """`reason` as it may travel: printable, at most `MAX_REASON` characters."""
    text = "".join(c if c.isprintable() else " " for c in reason).strip()
    return text if len(text) <= MAX_REASON else f"{text[: MAX_REASON - 1]}…"


@dataclass(frozen=True)
class CollectRequest:
    """A coordinator asks a node for its release of a round.

    Attributes:
        run_id: The run, 32 bytes.
        round: The round, 0 to 2^32 - 1.
        refused: Why the coordinator does not take releases of this node that it has seen, one line
            each, by their record ids; they are not sent again. At most `MAX_REFUSED`.
        wait: For so many seconds the node may keep the question until it has a release to give, 0
            to `MAX_WAIT`. Asking again and again would cost it more bytes than the answer.

    Raises:
        InputFileRefused: If a value does not fit.
    """

    KIND: ClassVar[str] = "collect"
    run_id: bytes
    round: int
    refused: Mapping[bytes, str] = field(default_factory=dict)
    wait: int = 0

    def __post_init__(self) -> None:
        _check_place(self.run_id, self.round)
        if len(self.refused) > MAX_REFUSED or any(len(one) != 32 for one in self.refused):
            raise _refused(
                f"it names more than {MAX_REFUSED} refused releases, or none of 32 bytes"
            )
        if not 0 <= self.wait <= MAX_WAIT:
            raise _refused(f"its wait is not 0 to {MAX_WAIT} seconds")
        reasons = {one: one_line(reason) for one, reason in sorted(self.refused.items())}
        object.__setattr__(self, "refused", MappingProxyType(reasons))

    def to_record(self) -> RecordDict:
        """The content of a message of type `COLLECT`."""
        refused = {to_hex(one): reason for one, reason in self.refused.items()}
        control = {**_place(self.run_id, self.round), "refused": refused, "wait": self.wait}
        return _record(self.KIND, control)

    @classmethod
    def from_record(cls, record: RecordDict) -> CollectRequest:
        """The inverse of `to_record`.

        Raises:
            InputFileRefused: If it is anything else.
        """
        control = _control(record, cls.KIND, {"run", "round", "refused", "wait"})
        refused, wait = control["refused"], control["wait"]
        if not isinstance(refused, dict) or len(refused) > MAX_REFUSED:
            raise _refused(f"it does not name at most {MAX_REFUSED} refused releases")
        if type(wait) is not int:
            raise _refused("its wait is not a number")
        reasons = {parse_bytes32(one): _parse_line(text) for one, text in refused.items()}
        return cls(*_parse_place(control), reasons, wait)


@dataclass(frozen=True)
class CollectReply:
    """A node's answer: its release, or why there is none.

    Attributes:
        node: The address the node goes by. Its release says it with a signature.
        files: The four files by name; None if there is none to send.
        reason: Why there is none, one line; empty if there is one.

    Raises:
        InputFileRefused: If a value does not fit.
    """

    KIND: ClassVar[str] = "collected"
    node: str
    files: Mapping[str, bytes] | None = field(repr=False)
    reason: str = ""

    def __post_init__(self) -> None:
        if parse_address(self.node) != self.node:
            raise _refused("its node is not an address in checksum form")
        object.__setattr__(self, "reason", one_line(self.reason))
        if (self.files is None) == (self.reason == ""):
            raise _refused("it holds either a release or a reason")
        if self.files is not None:
            object.__setattr__(self, "files", _checked_files(self.files))

    def to_record(self) -> RecordDict:
        """The content of the reply to a message of type `COLLECT`."""
        control = {"node": self.node, "reason": self.reason}
        return _record(self.KIND, control, _as_files(self.files or {}))

    @classmethod
    def from_record(cls, record: RecordDict) -> CollectReply:
        """The inverse of `to_record`.

        Raises:
            InputFileRefused: If it is anything else.
        """
        control = _control(record, cls.KIND, {"node", "reason", FILES}, FILES)
        files = _as_release(_files(record, control, RELEASE_LIMITS))
        # Whatever it is, it is checked as the address of the reply.
        return cls(cast(str, control["node"]), files or None, _parse_reason(control))


@dataclass(frozen=True)
class ShareRequest:
    """A coordinator hands a node the student that it merged from a round.

    Attributes:
        run_id: The run, 32 bytes.
        round: The round whose students were merged, 0 to 2^32 - 1.
        files: The merged release, four files by name.
        parents: The receipts of the releases it was merged from, by record id.
        receipt: The receipt of the node's own release in that round, with its Merkle proof; None
            if it had none.
        acknowledgement: The coordinator's signed word that it got the node's release
            (`contracts.acknowledgement`, canonical JSON); None if it got none.

    Raises:
        InputFileRefused: If a value does not fit.
    """

    KIND: ClassVar[str] = "share"
    run_id: bytes
    round: int
    files: Mapping[str, bytes] = field(repr=False)
    parents: Mapping[bytes, bytes] = field(repr=False)
    receipt: bytes | None = field(default=None, repr=False)
    acknowledgement: bytes | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        _check_place(self.run_id, self.round)
        object.__setattr__(self, "files", _checked_files(self.files))
        if len(self.parents) > MAX_PARENTS:
            raise _refused(f"it names more than {MAX_PARENTS} parents")
        for record_id, data in self.parents.items():
            if Receipt.from_bytes(data).record_id() != record_id:
                raise _refused("the receipt of a parent is another's")
        if self.receipt is not None:
            Receipt.from_bytes(self.receipt)
        if self.acknowledgement is not None:
            SignedAcknowledgement.from_bytes(self.acknowledgement)
        object.__setattr__(self, "parents", MappingProxyType(dict(sorted(self.parents.items()))))

    def to_record(self) -> RecordDict:
        """The content of a message of type `SHARE`."""
        # A receipt is canonical JSON, in which no line ends.
        parts = {
            OWN: self.receipt,
            PARENTS: b"\n".join(self.parents.values()),
            ACKNOWLEDGEMENT: self.acknowledgement,
        }
        papers = {name: data for name, data in parts.items() if data}
        files = _as_files(self.files) | papers
        return _record(self.KIND, _place(self.run_id, self.round), files)

    @classmethod
    def from_record(cls, record: RecordDict) -> ShareRequest:
        """The inverse of `to_record`.

        Raises:
            InputFileRefused: If it is anything else.
        """
        control = _control(record, cls.KIND, {"run", "round", FILES}, FILES)
        files = _files(record, control, SHARE_LIMITS)
        return cls(
            *_parse_place(control),
            _as_release(files),
            _parse_parents(files.get(PARENTS, b"")),
            files.get(OWN),
            files.get(ACKNOWLEDGEMENT),
        )


@dataclass(frozen=True)
class ShareReply:
    """Whether a node keeps the merged student, and if not, why.

    Attributes:
        kept: Whether it verified and lies on the node's disk.
        reason: Why not, one line; empty if it is kept.

    Raises:
        InputFileRefused: If a value does not fit.
    """

    KIND: ClassVar[str] = "shared"
    kept: bool
    reason: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "reason", one_line(self.reason))
        if self.kept == bool(self.reason):
            raise _refused("it is kept, or there is a reason")

    def to_record(self) -> RecordDict:
        """The content of the reply to a message of type `SHARE`."""
        return _record(self.KIND, {"kept": self.kept, "reason": self.reason})

    @classmethod
    def from_record(cls, record: RecordDict) -> ShareReply:
        """The inverse of `to_record`.

        Raises:
            InputFileRefused: If it is anything else.
        """
        control = _control(record, cls.KIND, {"kept", "reason"})
        if not isinstance(control["kept"], bool):
            raise _refused("whether it is kept is not said")
        return cls(control["kept"], _parse_reason(control))


# ------------------------------------------------------------------ writing


def _place(run_id: bytes, round_number: int) -> dict[str, object]:
    return {"run": to_hex(run_id), "round": round_number}


def _record(
    kind: str, control: Mapping[str, object], files: Mapping[str, bytes] | None = None
) -> RecordDict:
    """A message; `files` is None for a kind that holds none."""
    arrays, sizes = pack(files or {}, large=STUDENT)
    said = {} if files is None else {FILES: sizes}
    data = canonical_json({"v": PROTOCOL, "kind": kind, **control, **said})
    record = RecordDict({CONTROL: ConfigRecord({"json": data})})
    if arrays is not None:
        record[FILES] = arrays
    return record


def _as_files(release: Mapping[str, bytes]) -> dict[str, bytes]:
    return {f"release/{name}": data for name, data in release.items()}


# ------------------------------------------------------------------ reading


def _control(record: RecordDict, kind: str, members: set[str], *arrays: str) -> dict[str, object]:
    """What a message says, with exactly the members of its kind; `arrays` may stand beside."""
    if not {CONTROL} <= set(record) <= {CONTROL, *arrays}:
        raise _refused("it does not hold exactly the expected records")
    config = record[CONTROL]
    data = config.get("json") if isinstance(config, ConfigRecord) and len(config) == 1 else None
    if not isinstance(data, bytes) or len(data) > MAX_CONTROL_BYTES:
        raise _refused(f"its control record is not JSON of at most {MAX_CONTROL_BYTES} bytes")
    try:
        value = parse_json(data)
        canonical = canonical_json(value)
    except ValueError as error:
        raise _refused(f"its control record is {error}") from error
    if not isinstance(value, dict) or canonical != data:
        raise _refused("its control record is not canonical JSON")
    if type(value.get("v")) is not int or value["v"] != PROTOCOL:
        raise InputFileRefused(
            f"a message is not of protocol {PROTOCOL}",
            hint="coordinator and nodes need versions of this program that fit",
        )
    if value.get("kind") != kind or set(value) != {"v", "kind", *members}:
        raise _refused(f"it is no message of the kind {kind}, or has other members")
    return value


def _files(
    record: RecordDict, control: Mapping[str, object], limits: Mapping[str, int]
) -> dict[str, bytes]:
    """The files in a message, each within its limit; empty if there are none."""
    try:
        return unpack(record.get(FILES), control[FILES], limits, large=STUDENT)
    except Malformed as error:
        raise _refused(str(error)) from error


def _as_release(files: Mapping[str, bytes]) -> dict[str, bytes]:
    return {name: files[f"release/{name}"] for name in SIZE_LIMITS if f"release/{name}" in files}


def _checked_files(files: Mapping[str, bytes]) -> Mapping[str, bytes]:
    if set(files) != set(SIZE_LIMITS):
        raise _refused("it does not hold exactly the four files of a release")
    if not all(0 < len(files[name]) <= limit for name, limit in SIZE_LIMITS.items()):
        raise _refused("a file of its release is empty or too large")
    return MappingProxyType({name: files[name] for name in SIZE_LIMITS})


def _check_place(run_id: bytes, round_number: int) -> None:
    if len(run_id) != 32 or not 0 <= round_number < 2**32:
        raise _refused("its run or its round is out of range")


def _parse_place(control: Mapping[str, object]) -> tuple[bytes, int]:
    round_number = control["round"]
    if type(round_number) is not int:
        raise _refused("its round is not a number")
    return parse_bytes32(control["run"]), round_number


def _parse_reason(control: Mapping[str, object]) -> str:
    return _parse_line(control["reason"])


def _parse_line(reason: object) -> str:
    if not isinstance(reason, str) or one_line(reason) != reason:
        raise _refused(f"its reason is not one printable line of {MAX_REASON} characters")
    return reason


def _parse_parents(data: bytes) -> dict[bytes, bytes]:
    """The receipts, one a line, by the record ids they are of."""
    lines = data.split(b"\n", MAX_PARENTS) if data else []
    if len(lines) > MAX_PARENTS:
        raise _refused(f"it names more than {MAX_PARENTS} parents")
    parents = {Receipt.from_bytes(line).record_id(): line for line in lines}
    if list(parents) != sorted(parents) or len(parents) != len(lines):
        raise _refused("the receipts of its parents are not sorted, or one stands twice")
    return parents


def _refused(reason: str) -> InputFileRefused:
    return InputFileRefused(
        f"a message of the federation is refused: {reason}",
        hint="the other side runs another version of this program, or is hostile",
    )
