"""The release directory: a student with everything a stranger needs to check it.

    files = read_release(Path("student-0x..."))

::

    student.safetensors   the model; its metadata names chain, registry, node, run and round
    provenance.json       what it was made from (`statement`)
    model.sig             the node's signature over the two above (`bundle`)
    receipt.json          the signed record and its place on the chain (`receipt`)

Only those four, no folder, no link.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from genkd.digest import sha256_bytes, tensor_root
from genkd.durable import TEMPORARY_PREFIX, atomic_write, flush_folder, unwritable
from genkd.errors import InputFileRefused
from genkd.provenance.bundle import BUNDLE_NAME, MAX_BUNDLE_BYTES
from genkd.provenance.origin import read_origin
from genkd.provenance.receipt import MAX_RECEIPT_BYTES, Receipt
from genkd.provenance.statement import MAX_STATEMENT_BYTES, STUDENT_NAME
from genkd.provenance.typed_data import to_hex
from genkd.weights import STUDENT_FILE

STATEMENT_NAME = "provenance.json"
RECEIPT_NAME = "receipt.json"
SIZE_LIMITS: Mapping[str, int] = {
    STUDENT_NAME: STUDENT_FILE.file_bytes,
    STATEMENT_NAME: MAX_STATEMENT_BYTES,
    BUNDLE_NAME: MAX_BUNDLE_BYTES,
    RECEIPT_NAME: MAX_RECEIPT_BYTES,
}
MAX_NEIGHBOURS = 10_000  # directories looked at beside a bare file
DIRECTORY_NAME = re.compile(r"student-(0x[0-9a-f]{64})")


def directory_name(record_id: bytes) -> str:
    """`student-0x...`, the name of a release directory."""
    return f"student-{to_hex(record_id)}"


def receipt_file_name(record_id: bytes) -> str:
    """`student-0x....receipt.json`, the name of a receipt that stands for a release not at hand."""
    return f"{directory_name(record_id)}.receipt.json"


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


def read_receipt(path: Path) -> Receipt:
    """The receipt in a release directory; checks no signature.

    Raises:
        InputFileRefused: If there is none, or it is malformed.
    """
    return Receipt.from_bytes(read_bounded(path / RECEIPT_NAME, SIZE_LIMITS[RECEIPT_NAME]))


def replace_receipt(path: Path, receipt: Receipt) -> None:
    """Put another receipt into a release directory, in one step and leaving nothing else in it.

    The new bytes are written beside the directory: a temporary file inside it, left by a kill,
    would make the release one of five files, which nobody accepts.

    Raises:
        ResourceExhausted: If it cannot be written.
    """
    temporary = path.parent / f"{TEMPORARY_PREFIX}receipt-{to_hex(receipt.record_id())}"
    atomic_write(temporary, receipt.to_bytes())
    try:
        os.replace(temporary, path / RECEIPT_NAME)
        flush_folder(path)
    except OSError as error:
        raise unwritable(path / RECEIPT_NAME, error) from error


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
            # Asked of the size first, so that a huge file costs nothing; and no more is asked for,
            # because Python sets aside as much memory as it is asked to read.
            data = file.read(status.st_size + 1) if status.st_size <= limit else None
    except OSError as error:
        raise _refused(path, f"cannot be read: {error.strerror}") from error
    if data is None:
        raise _refused(path, f"is larger than {limit} bytes")
    if len(data) > status.st_size:
        raise _refused(path, "grew while it was read")
    return data


def _refused(path: Path, reason: str) -> InputFileRefused:
    return InputFileRefused(f"{path} {reason}", hint="ask the node for its release again")


def locate_release(path: Path) -> ReleaseFiles | None:
    """The release at a directory, or the one beside a bare student file.

    The student's bytes are always those of `path`, so a file that only resembles the one in a
    release beside it is refused later, by its hash.

    Returns:
        The release, or None if no release of the bare file lies beside it.

    Raises:
        InputFileRefused: As `read_release`, and if the bare file is no student of this project.
    """
    if path.is_dir():
        return read_release(path)
    if path.name == STUDENT_NAME and (path.absolute().parent / RECEIPT_NAME).exists():
        return read_release(path.absolute().parent)
    student = read_bounded(path, SIZE_LIMITS[STUDENT_NAME])
    read_origin(student)
    by_file, by_tensors = bytes.fromhex(sha256_bytes(student)), bytes.fromhex(tensor_root(student))
    similar = None
    for folder in sorted(path.absolute().parent.glob("student-0x*"))[:MAX_NEIGHBOURS]:
        try:
            record = Receipt.from_bytes(
                read_bounded(folder / RECEIPT_NAME, SIZE_LIMITS[RECEIPT_NAME])
            ).record
        except InputFileRefused:
            continue  # somebody else's folder
        if record.file_hash == by_file:
            return replace(read_release(folder), student=student)
        if record.tensor_root == by_tensors:
            similar = folder
    return None if similar is None else replace(read_release(similar), student=student)
