"""The release directory: a student with everything a stranger needs to check it.

    path = build_release(folder, draft, keys)            # folder / "student-0x<record id>"
    files = read_release(path)

::

    student.safetensors   the model; its metadata names chain, registry, node, run and round
    provenance.json       what it was made from (`statement`)
    model.sig             the node's signature over the two above (`bundle`)
    receipt.json          the signed record and its place on the chain (`receipt`)

Only those four, no folder, no link. Building is deterministic: the same draft and keys give the
same bytes, and the directory appears in one step.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from genkd.canonical import canonical_json
from genkd.digest import sha256_bytes, tensor_root
from genkd.durable import TEMPORARY_PREFIX, atomic_write, unwritable
from genkd.errors import InputFileRefused
from genkd.provenance.bundle import BUNDLE_NAME, MAX_BUNDLE_BYTES, sign_directory
from genkd.provenance.keys import NodeKeys
from genkd.provenance.receipt import MAX_RECEIPT_BYTES, Receipt
from genkd.provenance.record import StudentRecord, parents_root
from genkd.provenance.statement import (
    MAX_STATEMENT_BYTES,
    STUDENT_NAME,
    RecipeValue,
    Statement,
)
from genkd.provenance.typed_data import Domain, parse_address, parse_bytes32, to_hex
from genkd.safetensors_header import METADATA_KEY, OUR_METADATA
from genkd.weights import STUDENT_FILE, check_finite, read_card, read_header, read_metadata

STATEMENT_NAME = "provenance.json"
RECEIPT_NAME = "receipt.json"
SIGNED_NAMES = (STATEMENT_NAME, STUDENT_NAME)
SIZE_LIMITS: Mapping[str, int] = {
    STUDENT_NAME: STUDENT_FILE.file_bytes,
    STATEMENT_NAME: MAX_STATEMENT_BYTES,
    BUNDLE_NAME: MAX_BUNDLE_BYTES,
    RECEIPT_NAME: MAX_RECEIPT_BYTES,
}
DIRECTORY_NAME = re.compile(r"student-(0x[0-9a-f]{64})")
ORIGIN_KEY = "provenance"


def directory_name(record_id: bytes) -> str:
    """`student-0x...`, the name of a release directory."""
    return f"student-{to_hex(record_id)}"


@dataclass(frozen=True)
class Origin:
    """Where a bare student file says it comes from, so that its release can be looked for.

    Attributes:
        domain: The registry of its federation.
        node: The node that made it.
        run_id: The run, 32 bytes.
        round: The round.
    """

    domain: Domain
    node: str
    run_id: bytes
    round: int

    def to_json(self) -> dict[str, str | int]:
        """Plain values for the file's metadata."""
        return {
            "chainId": self.domain.chain_id,
            "registry": self.domain.contract,
            "node": self.node,
            "runId": to_hex(self.run_id),
            "round": self.round,
        }

    @classmethod
    def from_json(cls, value: object) -> Origin:
        """The inverse of `to_json`.

        Raises:
            InputFileRefused: If it is anything else.
        """
        wanted = {"chainId", "registry", "node", "runId", "round"}
        if not isinstance(value, Mapping) or set(value) != wanted:
            raise _no_origin("does not name chain, registry, node, run and round")
        if type(value["chainId"]) is not int or type(value["round"]) is not int:
            raise _no_origin("names a chain or a round that is not a number")
        domain = Domain(value["chainId"], parse_address(value["registry"]))
        run_id = parse_bytes32(value["runId"])
        return cls(domain, parse_address(value["node"]), run_id, value["round"])


def _no_origin(reason: str) -> InputFileRefused:
    return InputFileRefused(
        f"the student file {reason}", hint="only a published student carries its provenance"
    )


def stamp(student: bytes, origin: Origin) -> bytes:
    """A student file with its origin in the metadata; card and tensors stay as they are.

    Args:
        student: The bytes of a model file of this project.
        origin: Replaces an origin that is there.

    Raises:
        InputFileRefused: If it is no such file.
    """
    header = read_header(student, STUDENT_FILE)
    metadata = canonical_json({**read_metadata(header), ORIGIN_KEY: origin.to_json()})
    fields: dict[str, object] = {METADATA_KEY: {OUR_METADATA: metadata.decode("utf-8")}}
    for name, info in header.tensors.items():
        fields[name] = {
            "dtype": info.dtype,
            "shape": list(info.shape),
            "data_offsets": [info.start, info.end],
        }
    text = json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + student[header.data_offset :]


def read_origin(student: bytes) -> Origin:
    """Check a student file strictly and return where it says it comes from.

    Raises:
        InputFileRefused: If the file is hostile, damaged, holds values that are not finite, has no
            model card, or does not say where it comes from.
    """
    header = read_header(student, STUDENT_FILE)
    check_finite(student, header)
    read_card(header)
    return Origin.from_json(read_metadata(header).get(ORIGIN_KEY))


@dataclass(frozen=True)
class Draft:
    """Everything a release says, before it is signed.

    Attributes:
        student: The distilled model file, bytes.
        domain: The registry it is for.
        run_id: The run, 32 bytes.
        round: The round.
        parents: Record ids of the students it was made from.
        teacher_commitment: `record.commit_to_teacher`.
        recipe: As in `Statement`.
        evaluation: As in `Statement`.
        version: Version of this program.
        deadline: The last Unix second at which it may be put on the chain.
    """

    student: bytes
    domain: Domain
    run_id: bytes
    round: int
    parents: tuple[bytes, ...]
    teacher_commitment: bytes
    recipe: Mapping[str, RecipeValue]
    evaluation: Mapping[str, str]
    version: str
    deadline: int


def sign_draft(draft: Draft, keys: NodeKeys) -> dict[str, bytes]:
    """The four files of a release, by name; the receipt says nothing of the chain yet.

    Raises:
        InputFileRefused: If the student or a value of the draft is refused.
    """
    origin = Origin(draft.domain, keys.address, draft.run_id, draft.round)
    student = stamp(draft.student, origin)
    read_origin(student)  # what nobody would accept is not signed either
    file_hash = bytes.fromhex(sha256_bytes(student))
    root = bytes.fromhex(tensor_root(student))
    statement = Statement(
        file_hash=file_hash,
        tensor_root=root,
        teacher_commitment=draft.teacher_commitment,
        parents=tuple(sorted(draft.parents)),
        run_id=draft.run_id,
        round=draft.round,
        node=keys.address,
        profile_hash=keys.profile.profile_hash(),
        version=draft.version,
        recipe=draft.recipe,
        evaluation=draft.evaluation,
    ).to_bytes()
    record = StudentRecord(
        file_hash=file_hash,
        tensor_root=root,
        metadata_hash=bytes.fromhex(sha256_bytes(statement)),
        teacher_commitment=draft.teacher_commitment,
        run_id=draft.run_id,
        parents_root=parents_root(draft.parents),
        node=keys.address,
        round=draft.round,
        deadline=draft.deadline,
    )
    receipt = Receipt(draft.domain, record, keys.sign(record, draft.domain), keys.profile)
    digests = {STUDENT_NAME: file_hash.hex(), STATEMENT_NAME: record.metadata_hash.hex()}
    return {
        STUDENT_NAME: student,
        STATEMENT_NAME: statement,
        BUNDLE_NAME: sign_directory(directory_name(receipt.record_id()), digests, keys),
        RECEIPT_NAME: receipt.to_bytes(),
    }


def build_release(folder: Path, draft: Draft, keys: NodeKeys) -> Path:
    """Sign a draft and write its release directory in one step.

    A directory that is there already is left as it is: its name is the digest of all that is
    signed, and its receipt may say more by now.

    Args:
        folder: Where the directory appears.
        draft: What to release.
        keys: The node's keys.

    Raises:
        InputFileRefused: As `sign_draft`.
        ResourceExhausted: If the folder cannot be written.
    """
    files = sign_draft(draft, keys)
    target = folder / directory_name(Receipt.from_bytes(files[RECEIPT_NAME]).record_id())
    if target.is_dir():
        return target
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=folder, prefix=TEMPORARY_PREFIX))
    except OSError as error:
        raise unwritable(target, error) from error
    try:
        for name, data in files.items():
            atomic_write(temporary / name, data)
        temporary.chmod(0o755)
        os.rename(temporary, target)
    except OSError as error:
        raise unwritable(target, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


@dataclass(frozen=True)
class ReleaseFiles:
    """The stored bytes of a release, read once: what is checked is what is returned.

    Attributes:
        path: The directory.
        student: student.safetensors, or the bare file that was given.
        statement: provenance.json.
        bundle: model.sig.
        receipt: receipt.json.
    """

    path: Path
    student: bytes
    statement: bytes
    bundle: bytes
    receipt: bytes


def read_release(path: Path) -> ReleaseFiles:
    """Read the four files of a release directory.

    Raises:
        InputFileRefused: If one is missing, too large, a link or no regular file, or there is
            anything else in the directory.
    """
    try:
        found = set(os.listdir(path))
    except OSError as error:
        raise _refused(path, f"cannot be listed: {error.strerror}") from error
    for name in sorted(set(SIZE_LIMITS) ^ found):
        reason = f"lacks {name}" if name in SIZE_LIMITS else f"holds the foreign file {name[:80]!a}"
        raise _refused(path, reason)
    read = {name: read_bounded(path / name, limit) for name, limit in SIZE_LIMITS.items()}
    return ReleaseFiles(
        path, read[STUDENT_NAME], read[STATEMENT_NAME], read[BUNDLE_NAME], read[RECEIPT_NAME]
    )


def read_bounded(path: Path, limit: int) -> bytes:
    """The bytes of a regular file, not followed through a link, not waited for.

    Raises:
        InputFileRefused: If it is anything else, or larger than `limit` bytes.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise _refused(path, "is no regular file")
            # Asked of the size first, so that a huge file costs nothing.
            data = file.read(limit + 1) if status.st_size <= limit else None
    except OSError as error:
        raise _refused(path, f"cannot be read: {error.strerror}") from error
    if data is None or len(data) > limit:
        raise _refused(path, f"is larger than {limit} bytes")
    return data


def _refused(path: Path, reason: str) -> InputFileRefused:
    return InputFileRefused(f"{path} {reason}", hint="ask the node for its release again")
