"""Signing a release: from a distilled student to its release directory.

    path = build_release(folder, draft, keys)            # folder / "student-0x<record id>"

Building is deterministic: the same draft and keys give the same bytes, so a repeat after an
interruption arrives at the same directory.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from genkd.digest import sha256_bytes, tensor_root
from genkd.durable import TEMPORARY_PREFIX, atomic_write, flush_folder, unwritable
from genkd.provenance.bundle import BUNDLE_NAME, sign_directory
from genkd.provenance.node_keys import NodeKeys
from genkd.provenance.origin import Origin, read_origin, stamp
from genkd.provenance.receipt import Receipt
from genkd.provenance.record import StudentRecord, parents_root
from genkd.provenance.release import RECEIPT_NAME, STATEMENT_NAME, directory_name
from genkd.provenance.statement import STUDENT_NAME, RecipeValue, Statement
from genkd.provenance.typed_data import Domain


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
        # Before it is recorded: a chain must know no release that a power cut can take.
        flush_folder(folder)
        flush_folder(folder.parent)
    except OSError as error:
        raise unwritable(target, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target
