"""One round on the coordinator's disk: which releases it takes, its merge, its merged release.

    place = RoundFolder.of(federation, run_id, 1)
    place.decide(Decision(((a, b, c),), (a, b, c)))     # from now on these, whatever comes later

::

    merged/0x.../round-000001/
        decision.json         which releases are merged, and which were sent to the chain
        work/                 the merge: a run directory
        student-0x.../        the merged student, signed
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from genkd.canonical import canonical_json, parse_json
from genkd.durable import TEMPORARY_PREFIX, atomic_write, flush_folder, unwritable
from genkd.errors import InputFileRefused
from genkd.provenance.receipt import Receipt
from genkd.provenance.release import DIRECTORY_NAME, read_bounded, read_receipt
from genkd.provenance.typed_data import parse_bytes32, to_hex

DECISION = "decision.json"
VERSION = 1
MAX_DECISION_BYTES = 2**24


def folder_of_round(top: Path, run_id: bytes, number: int) -> Path:
    """`top/0x.../round-000001`."""
    return top / to_hex(run_id) / f"round-{number:06d}"


@dataclass(frozen=True)
class Decision:
    """Which releases a round takes.

    Attributes:
        sent: The sets of record ids whose root was, perhaps, sent to the chain, the newest last.
            The chain keeps one of them for ever, and after a kill only it knows which.
        parents: The record ids of those that are merged, sorted.
    """

    sent: tuple[tuple[bytes, ...], ...]
    parents: tuple[bytes, ...]


@dataclass(frozen=True)
class RoundFolder:
    """The folder of one round.

    Attributes:
        path: The folder.
    """

    path: Path

    @classmethod
    def of(cls, federation: Path, run_id: bytes, number: int) -> RoundFolder:
        """The folder of a round, made if it is not there.

        Raises:
            ResourceExhausted: If it cannot be made.
        """
        path = folder_of_round(federation / "merged", run_id, number)
        try:
            path.mkdir(parents=True, exist_ok=True)
            for left in path.glob(f"{TEMPORARY_PREFIX}*"):
                shutil.rmtree(left) if left.is_dir() else left.unlink()
        except OSError as error:
            raise unwritable(path, error) from error
        return cls(path)

    @property
    def work(self) -> Path:
        """Where its students are merged."""
        return self.path / "work"

    def decision(self) -> Decision | None:
        """Which releases it takes; None while that is open.

        Raises:
            InputFileRefused: If the file is damaged.
        """
        path = self.path / DECISION
        if not path.exists():
            return None
        try:
            value = parse_json(read_bounded(path, MAX_DECISION_BYTES))
            if not isinstance(value, dict) or value.get("v") != VERSION:
                raise ValueError("it is of another version")
            sent = tuple(tuple(parse_bytes32(one) for one in ids) for ids in value["sent"])
            return Decision(sent, tuple(parse_bytes32(one) for one in value["parents"]))
        except (ValueError, KeyError, TypeError) as error:
            raise InputFileRefused(
                f"{path} is damaged", hint="restore it from a backup; it is written in one step"
            ) from error

    def decide(self, decision: Decision) -> None:
        """Keep a decision, in one step.

        Raises:
            ResourceExhausted: If it cannot be written.
        """
        value = {
            "v": VERSION,
            "sent": [[to_hex(one) for one in ids] for ids in decision.sent],
            "parents": [to_hex(one) for one in decision.parents],
        }
        atomic_write(self.path / DECISION, canonical_json(value))

    def discard_work(self) -> None:
        """Delete a merge whose students are no longer the ones to be merged.

        Raises:
            ResourceExhausted: If it cannot be deleted.
        """
        if not self.work.exists():
            return
        aside = self.path / f"{TEMPORARY_PREFIX}work"
        try:
            self.work.rename(aside)
            flush_folder(self.path)
            shutil.rmtree(aside)
        except OSError as error:
            raise unwritable(self.work, error) from error

    def releases(self) -> Iterator[tuple[Path, Receipt]]:
        """The signed merged students in it; more than one only where a parent was revoked late."""
        for path in sorted(self.path.iterdir()):
            if DIRECTORY_NAME.fullmatch(path.name):
                with suppress(InputFileRefused):
                    yield path, read_receipt(path)
