"""A release on its own: checks 1 to 5 of `verifier`, which need nothing but its files.

Each check uses what the ones before it established, so they are made in order.
"""

from __future__ import annotations

from pathlib import Path

from genkd.digest import sha256_bytes, tensor_root
from genkd.errors import VerificationFailed
from genkd.provenance.bundle import check_bundle
from genkd.provenance.origin import read_origin
from genkd.provenance.receipt import Receipt
from genkd.provenance.record import StudentRecord, parents_root
from genkd.provenance.release import (
    DIRECTORY_NAME,
    STATEMENT_NAME,
    ReleaseFiles,
    directory_name,
    locate_release,
)
from genkd.provenance.secp256k1 import recover_address
from genkd.provenance.statement import STUDENT_NAME, Statement
from genkd.provenance.typed_data import Domain, to_hex
from genkd.weights import STUDENT_FILE, read_card, read_header


class Unmade(Exception):
    """A check could not be made, for a reason that is nobody's fault."""


class SignedRelease:
    """A release under examination.

    Args:
        path: The directory, or a bare student file.
        trusted: The registry it must be for; None takes the one it names.

    Attributes:
        files: Its stored bytes, from check 1 on.
        receipt: Its receipt, from check 1 on.
        record: The receipt's record, from check 1 on.
        record_id: The record's id for the trusted registry, from check 1 on.
        architecture: What the student's card says, from check 1 on.
        statement: Its provenance statement, from check 4 on.
    """

    files: ReleaseFiles
    receipt: Receipt
    record: StudentRecord
    record_id: bytes
    architecture: str
    statement: Statement

    def __init__(self, path: Path, trusted: Domain | None) -> None:
        self.path = path
        self.trusted = trusted

    def check_1(self) -> str:
        """Exactly the four files, within their bounds; the student strict; the receipt parsed."""
        files = locate_release(self.path)
        if files is None:
            raise Unmade("no release of this file lies beside it: nothing says who made it")
        self.files = files
        self.origin = read_origin(self.files.student)
        card = read_card(read_header(self.files.student, STUDENT_FILE))
        self.architecture = "" if card is None else card.spec.architecture
        self.receipt = Receipt.from_bytes(self.files.receipt)
        self.record = self.receipt.record
        self.domain = self.trusted or self.receipt.domain
        self.record_id = self.record.digest(self.domain)
        return f"four files, the student of {len(self.files.student)} bytes"

    def check_2(self) -> str:
        """The student's bytes and its tensors are the recorded ones."""
        same_tensors = tensor_root(self.files.student) == self.record.tensor_root.hex()
        if sha256_bytes(self.files.student) != self.record.file_hash.hex():
            extra = ", though its tensors are: it has another header" if same_tensors else ""
            raise refused(f"the student is not the recorded file{extra}")
        if not same_tensors:
            raise refused("the record's tensor root is not the student's")
        return f"sha256 {self.record.file_hash.hex()}"

    def check_3(self) -> str:
        """The profile is genuine and the recording node's, and its P-256 key signed the files."""
        profile = self.receipt.profile
        key = profile.check()
        if profile.node != self.record.node:
            raise refused("the profile is another node's")
        digests = {
            STUDENT_NAME: sha256_bytes(self.files.student),
            STATEMENT_NAME: sha256_bytes(self.files.statement),
        }
        name = directory_name(self.receipt.record_id())
        check_bundle(self.files.bundle, name, digests, profile, key)
        return f"P-256 key {profile.message.signing_key.hex()[:16]} of {profile.node}"

    def check_4(self) -> str:
        """The statement's bytes are the recorded ones; only then is it read and compared."""
        if sha256_bytes(self.files.statement) != self.record.metadata_hash.hex():
            raise refused("provenance.json is not the recorded statement")
        statement = Statement.from_bytes(self.files.statement)
        differing = _differences(statement, self.record, self.receipt.profile.profile_hash())
        if differing:
            raise refused(f"provenance.json and the record differ in {', '.join(differing)}")
        self.statement = statement
        return f"{len(statement.parents)} parents, {len(statement.evaluation)} figures"

    def check_5(self) -> str:
        """The node signed the record for the trusted registry, and the file says the same."""
        if self.receipt.domain != self.domain:
            claimed = self.receipt.domain
            raise refused(
                f"it is signed for chain {claimed.chain_id}, registry {claimed.contract}, which is "
                "not the trusted one"
            )
        if recover_address(self.record_id, self.receipt.signature) != self.record.node:
            raise refused(f"{self.record.node} did not sign the record")
        said = (self.origin.domain, self.origin.node, self.origin.run_id, self.origin.round)
        signed = (self.domain, self.record.node, self.record.run_id, self.record.round)
        if said != signed:
            raise refused("the student file names another chain, registry, node, run or round")
        match = DIRECTORY_NAME.fullmatch(self.files.path.name)
        if match and match[1] != to_hex(self.record_id):
            raise refused("the directory is named after another record")
        return f"{self.record.node} signed {to_hex(self.record_id)}"


def refused(reason: str) -> VerificationFailed:
    """The error for a release of which a check failed."""
    return VerificationFailed(reason, hint="do not use it; ask the node for its release again")


def _differences(statement: Statement, record: StudentRecord, profile_hash: bytes) -> list[str]:
    """The names of what a statement and a record, signed together, say differently."""
    pairs = {
        "the file": (statement.file_hash, record.file_hash),
        "the tensors": (statement.tensor_root, record.tensor_root),
        "the teacher": (statement.teacher_commitment, record.teacher_commitment),
        "the parents": (parents_root(statement.parents), record.parents_root),
        "the run": (statement.run_id, record.run_id),
        "the round": (statement.round, record.round),
        "the node": (statement.node, record.node),
        "the profile": (statement.profile_hash, profile_hash),
    }
    return [name for name, (said, recorded) in pairs.items() if said != recorded]
