"""A release comes in: checked, put into its place, and counted exactly once, or refused with why.

    intake = Intake(store, Path("federation"), rules, chain)
    submission = intake.submit(reply.files, sender=node_id)
    submission.accepted, submission.duplicate, submission.reason

It may be killed anywhere and asked again: what is accepted is so by its content, the files move
into place and the row is written in one step, and what a kill left half-written is swept away by
the next submission. A release that was refused is looked at anew when it comes again, for its node
may have been enrolled meanwhile; one that was accepted is not.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from coordinator.intake_rules import IntakeRules, outliers
from coordinator.recordable import fault_of_place, fault_of_record, fault_of_registry
from coordinator.round_folder import folder_of_round
from coordinator.store import Store, Submission
from genkd.durable import TEMPORARY_PREFIX, atomic_write, flush_folder, unwritable
from genkd.errors import (
    CannotCheck,
    GenKDError,
    ResourceExhausted,
    Stopped,
    VerificationFailed,
)
from genkd.provenance import Policy, verify
from genkd.provenance.chain import ChainReader
from genkd.provenance.receipt import Receipt
from genkd.provenance.release import RECEIPT_NAME, SIZE_LIMITS, directory_name
from genkd.provenance.statement import STUDENT_NAME
from genkd.provenance.typed_data import to_hex

RELEASES: Final = "releases"
MERGED: Final = "merged"
LOCK_NAME: Final = ".lock"
MAX_REASON: Final = 300  # characters
# These are no fault of the release: nothing is said about it then, and it is asked for again.
NOT_ITS_FAULT: Final = (CannotCheck, ResourceExhausted, Stopped)


@dataclass(frozen=True)
class _Signed:
    """A release on the disk that its node has signed."""

    path: Path
    receipt: Receipt
    parents: tuple[bytes, ...]


class Intake:
    """Takes the releases of one round.

    Args:
        store: The federation's store; the round is begun in it.
        folder: The federation folder.
        rules: What counts in this round.
        chain: The registry, at one endpoint.
        clock: Unix seconds.
    """

    def __init__(
        self,
        store: Store,
        folder: Path,
        rules: IntakeRules,
        chain: ChainReader,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._releases = folder / RELEASES
        self._merged = folder / MERGED
        self._rules = rules
        self._chain = chain
        self._clock = clock
        self._registry_checked = False
        store.begin_round(rules.run_id, rules.round)

    def submit(self, files: Mapping[str, bytes], sender: int) -> Submission:
        """Take a release in, or refuse it.

        At most one more copy of the student than the caller's is in memory.

        Args:
            files: The files of a release by their names, as they came.
            sender: The Flower node they came from.

        Returns:
            What became of it. However hostile, a bad release is an answer and not an exception.

        Raises:
            CannotCheck: If the chain does not answer. Nothing is said about the release then, as
                with the others: submit it again.
            ResourceExhausted: If the disk is full.
            Stopped: If another process keeps the store locked.
        """
        rules = self._rules
        content = _content_hash(files)
        found = self._store.find(rules.run_id, rules.round, content)
        if found is not None and found.accepted:
            return replace(found, duplicate=True)
        submission = Submission(
            *(rules.run_id, rules.round, content, b"", "", sender, False, ""),
            received_at=int(self._clock()),
            size=sum(map(len, files.values())),
        )
        with self._working_folder() as working:
            try:
                signed = self._signed(files, working)
                node, record_id = signed.receipt.record.node, signed.receipt.record_id()
                submission = replace(submission, node=node, record_id=record_id)
                facts = rules.check(signed.path / STUDENT_NAME)
                self._check_parents(signed.parents)
                self._check_on_chain(signed.receipt)
            except NOT_ITS_FAULT:
                raise
            except GenKDError as error:
                reason = _one_line(error.message, working)
                result = self._store.refuse(replace(submission, reason=reason))
            else:
                place = folder_of_round(self._releases, rules.run_id, rules.round)
                place /= signed.path.name
                result = self._store.accept(
                    replace(submission, path=place, **vars(facts)),
                    lambda: _move(signed.path, place),
                )
        if result.node:
            self._store.saw(result.node, sender, submission.received_at)
        return result

    def refuse_outliers(self) -> list[Submission]:
        """Refuse accepted releases whose weights are far from the median's, now that all are here.

        Returns:
            Those that count no longer. Without three releases there is no median, and none.
        """
        rules = self._rules
        accepted = self._store.accepted(rules.run_id, rules.round)
        refused = []
        for record_id, reason in outliers((one.record_id, one.norm) for one in accepted):
            found = self._store.accepted_record(record_id)
            if found is not None and self._store.withdraw(record_id, reason):
                refused.append(replace(found, accepted=False, reason=reason, path=None))
        return refused

    def _signed(self, files: Mapping[str, bytes], working: Path) -> _Signed:
        """Write a release of this round to the disk, and check that its node signed it."""
        rules = self._rules
        _require_release(files, rules.max_release_bytes)
        receipt = Receipt.from_bytes(files[RECEIPT_NAME])
        _require_none(fault_of_place(receipt.record, rules.run_id, rules.round))
        path = working / directory_name(receipt.record_id())
        path.mkdir()
        for name, data in files.items():
            atomic_write(path / name, data)
        verification = verify(path, policy=Policy(rules.domain, nodes=rules.nodes))
        if not verification.signed or verification.failed or verification.statement is None:
            raise _refused(verification.summary.removeprefix("not valid: "))
        return _Signed(path, receipt, verification.statement.parents)

    def _check_parents(self, parents: Sequence[bytes]) -> None:
        """Only students this run has merged: whatever else is named would void the merged one."""
        rules = self._rules
        earlier = [folder_of_round(self._merged, rules.run_id, n) for n in range(rules.round)]
        for parent in parents:
            name = directory_name(parent)
            if not any((folder / name).is_dir() for folder in earlier):
                raise _refused(f"its parent {to_hex(parent)} is no student merged in this run")

    def _check_on_chain(self, receipt: Receipt) -> None:
        if not self._registry_checked:
            fault = fault_of_registry(self._chain, self._rules.domain)
            if fault is not None:
                raise CannotCheck(fault, hint="name an endpoint of the trusted chain")
            self._registry_checked = True
        _require_none(fault_of_record(self._chain, receipt))

    @contextmanager
    def _working_folder(self) -> Iterator[Path]:
        """A folder of one's own beside the releases, alone: one release at a time is taken in."""
        try:
            self._releases.mkdir(parents=True, exist_ok=True)
            with (self._releases / LOCK_NAME).open("wb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                for left in self._releases.glob(f"{TEMPORARY_PREFIX}*"):
                    shutil.rmtree(left)
                working = Path(tempfile.mkdtemp(dir=self._releases, prefix=TEMPORARY_PREFIX))
                try:
                    yield working
                finally:
                    shutil.rmtree(working, ignore_errors=True)
        except OSError as error:
            raise unwritable(self._releases, error) from error


def _require_release(files: Mapping[str, bytes], max_bytes: int) -> None:
    """Exactly the four files, within their bounds, before any of them is written."""
    for name in sorted(files.keys() ^ SIZE_LIMITS.keys()):
        lacking = name in SIZE_LIMITS
        raise _refused(
            f"it lacks {name}" if lacking else f"it holds the foreign file {name[:80]!a}"
        )
    for name, limit in SIZE_LIMITS.items():
        if len(files[name]) > limit:
            raise _refused(f"{name} is larger than {limit} bytes")
    if sum(map(len, files.values())) > max_bytes:
        raise _refused(f"it is larger than {max_bytes} bytes")


def _content_hash(files: Mapping[str, bytes]) -> bytes:
    """sha256 over names and bytes, each with its length before it."""
    digest = hashlib.sha256()
    for name in sorted(files):
        for part in (name.encode("utf-8", "surrogatepass"), files[name]):
            digest.update(len(part).to_bytes(8, "big"))
            digest.update(part)
    return digest.digest()


def _move(path: Path, place: Path) -> None:
    """Move a release into its place, in one step that survives a loss of power."""
    try:
        missing = [folder for folder in place.parents if not folder.exists()]
        place.parent.mkdir(parents=True, exist_ok=True)
        for folder in missing:
            flush_folder(folder.parent)
        if place.exists():  # without a row, so a kill left it before its row was written
            shutil.rmtree(place)
        os.rename(path, place)
        flush_folder(place.parent)
    except OSError as error:
        raise unwritable(place, error) from error


def _one_line(message: str, working: Path) -> str:
    """A reason for people and for the node: one line, nothing of this machine's folders in it."""
    text = re.sub(re.escape(f"{working}/") + r"(student-0x[0-9a-f]{64}/)?", "", message)
    text = "".join(c if c.isprintable() else " " for c in text)
    return text if len(text) <= MAX_REASON else f"{text[: MAX_REASON - 1]}…"


def _require_none(fault: str | None) -> None:
    if fault is not None:
        raise _refused(fault)


def _refused(reason: str) -> VerificationFailed:
    return VerificationFailed(reason, hint="ask its node for another release")
