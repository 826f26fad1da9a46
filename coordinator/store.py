"""What a coordinator remembers of its rounds: which releases came, which count, how far each is.

    with Store.open(Path("federation")) as store:
        store.begin_round(run_id, 1)
        store.accept(submission, move_files_into_place)
        store.advance(run_id, 1, RoundState.MERGED, merged=record_id, aggregate_hash=digest)

The students lie in folders beside it. Each call is one transaction, so that after a kill at any
instant the store is as before the call or as after it; one process writes while others read.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from coordinator.store_file import StoreFile
from coordinator.store_schema import SCHEMA, VERSION, Round, RoundState, SeenNode, Submission
from genkd.errors import ConfigurationError

__all__ = ["STORE_NAME", "Round", "RoundState", "SeenNode", "Store", "Submission"]

STORE_NAME: Final = "store.sqlite"
# Refusals that are remembered of one sender: a hostile one must not fill the disk.
MAX_REFUSED: Final = 100


class Store:
    """The open store of a federation folder. Usable from several threads, which take turns.

    Args:
        folder: The federation folder; paths in the store are relative to it.
        file: Its database.
    """

    def __init__(self, folder: Path, file: StoreFile) -> None:
        self.folder = folder
        self._file = file

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Open the store of a folder; both are made if they are not there.

        Raises:
            InputFileRefused, ConfigurationError, ResourceExhausted, Stopped: As `StoreFile.open`;
                every method raises the first and the last two likewise.
        """
        return cls(folder, StoreFile.open(folder / STORE_NAME, SCHEMA, VERSION))

    def close(self) -> None:
        """Close it; what was committed stays."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()

    # ------------------------------------------------------------------ submissions

    def accept(self, submission: Submission, move: Callable[[], object]) -> Submission:
        """Let a checked release count in its round, unless that is no longer possible.

        Its files are moved into place and its row is written in one transaction, so that no other
        process comes between. A kill in the middle leaves at most files without a row, which the
        next attempt replaces.

        Args:
            submission: The release, all checks of its own passed; its `path` is where it will lie.
            move: Puts its files there.

        Returns:
            What stands in the store now: it, or the acceptance that was there before (a
            `duplicate`), or its refusal because the round is closed or its node has another release
            in it.
        """
        with self._file.writing():
            present = self.accepted_record(submission.record_id)
            if present is not None:
                return replace(present, duplicate=True)
            reason = self._hindrance(submission)
            if reason:
                return self._insert(replace(submission, accepted=False, reason=reason, path=None))
            move()
            return self._insert(replace(submission, accepted=True, reason=""))

    def refuse(self, submission: Submission) -> Submission:
        """Remember why a release does not count; an acceptance of the same bytes stays.

        Returns:
            What stands in the store now.
        """
        with self._file.writing():
            found = self.find(submission.run_id, submission.round, submission.content_hash)
            if found is not None and found.accepted:
                return replace(found, duplicate=True)
            return self._insert(replace(submission, accepted=False, path=None))

    def withdraw(self, record_id: bytes, reason: str) -> bool:
        """Let an accepted release count no longer; False if its round has closed, or it does not.

        Its files stay where they are.
        """
        with self._file.writing():
            found = self.accepted_record(record_id)
            if found is None or self._closed(found.run_id, found.round):
                return False
            self._insert(replace(found, accepted=False, reason=reason, path=None))
            return True

    def find(self, run_id: bytes, number: int, content_hash: bytes) -> Submission | None:
        """What became of these very bytes in a round."""
        where = "run_id = ? AND round = ? AND content_hash = ?"
        return next(self._submissions(where, run_id, number, content_hash), None)

    def accepted_record(self, record_id: bytes) -> Submission | None:
        """The acceptance of a record."""
        return next(self._submissions("accepted AND record_id = ?", record_id), None)

    def accepted(self, run_id: bytes, number: int) -> Iterator[Submission]:
        """The releases that count in a round, in the order in which they came."""
        return self._submissions("accepted AND run_id = ? AND round = ?", run_id, number)

    def submissions(self, run_id: bytes, number: int) -> Iterator[Submission]:
        """All releases received for a round, the refused ones too."""
        return self._submissions("run_id = ? AND round = ?", run_id, number)

    def counts(self, run_id: bytes, number: int) -> tuple[int, int]:
        """How many releases of a round count, and how many were refused."""
        ((accepted, all_of_them),) = self._file.execute(
            "SELECT coalesce(sum(accepted), 0), count(*) FROM submissions"
            " WHERE run_id = ? AND round = ?",
            (run_id, number),
        )
        return accepted, all_of_them - accepted

    def _hindrance(self, submission: Submission) -> str:
        """Why a round does not take a release that is in order itself; empty if it does."""
        closed = self._closed(submission.run_id, submission.round)
        if closed:
            return closed
        where = "accepted AND run_id = ? AND round = ? AND node = ?"
        place = (submission.run_id, submission.round, submission.node)
        other = next(self._submissions(where, *place), None)
        if other is None:
            return ""
        return f"its node has another release in this round: 0x{other.record_id.hex()}"

    def _closed(self, run_id: bytes, number: int) -> str:
        found = self.round(run_id, number)
        if found is not None and found.state is RoundState.COLLECTING:
            return ""
        state = "has not begun" if found is None else f"is {found.state.value}"
        return f"round {number} {state}: it takes no releases"

    def _insert(self, submission: Submission) -> Submission:
        """Write a row in place of an earlier refusal of the same bytes."""
        path = "" if submission.path is None else str(submission.path.relative_to(self.folder))
        place = (submission.run_id, submission.round, submission.content_hash)
        self._file.execute(
            "DELETE FROM submissions WHERE run_id = ? AND round = ? AND content_hash = ?", place
        )
        self._file.execute(
            "INSERT INTO submissions VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                *place,
                *(submission.record_id, submission.node, str(submission.sender)),
                *(int(submission.accepted), submission.reason, submission.received_at, path),
                *(submission.size, submission.architecture, submission.norm),
            ),
        )
        if not submission.accepted:
            self._file.execute(
                "DELETE FROM submissions WHERE id IN (SELECT id FROM submissions WHERE NOT accepted"
                " AND sender = ? ORDER BY id DESC LIMIT -1 OFFSET ?)",
                (str(submission.sender), MAX_REFUSED),
            )
        return submission

    def _submissions(self, where: str, *values: object) -> Iterator[Submission]:
        query = f"SELECT * FROM submissions WHERE {where}"  # noqa: S608 (all of it is this file's)
        for _, *row in self._file.pages(query, values):
            run_id, number, content, record_id, node, sender, accepted, reason, when = row[:9]
            path, size, architecture, norm = row[9:]
            yield Submission(
                *(run_id, number, content, record_id, node, int(sender), bool(accepted), reason),
                *(when, self.folder / path if path else None, size, architecture, norm),
            )

    # ------------------------------------------------------------------ rounds

    def begin_round(self, run_id: bytes, number: int) -> Round:
        """A round, begun if it was not: from then on it takes releases."""
        with self._file.writing():
            self._file.execute(
                "INSERT OR IGNORE INTO rounds (run_id, round, state, began_at) VALUES (?, ?, ?, ?)",
                (run_id, number, RoundState.COLLECTING.value, int(time.time())),
            )
            return self._begun(run_id, number)

    def advance(
        self,
        run_id: bytes,
        number: int,
        state: RoundState,
        *,
        merged: bytes | None = None,
        aggregate_hash: bytes | None = None,
    ) -> Round:
        """Note that a round has come as far as `state`; a repeat changes nothing.

        Args:
            run_id: The run.
            number: The round, which has begun.
            state: How far it has come.
            merged: The merged student's record id, once it has one; None keeps what is noted.
            aggregate_hash: The merged student's sha256, likewise.

        Raises:
            ConfigurationError: If it has not begun, or has shared another merged student.
        """
        with self._file.writing():
            found = self._begun(run_id, number)
            kept = (merged or found.merged, aggregate_hash or found.aggregate_hash)
            if found.state is RoundState.SHARED and kept != (found.merged, found.aggregate_hash):
                raise ConfigurationError(
                    f"round {number} has shared another merged student already",
                    hint="if two coordinators work on one folder, end one of them",
                )
            where = "WHERE run_id = ? AND round = ?"
            self._file.execute(
                f"UPDATE rounds SET merged = ?, aggregate_hash = ? {where}",  # noqa: S608
                (*kept, run_id, number),
            )
            order = tuple(RoundState)
            for passed in order[order.index(found.state) + 1 : order.index(state) + 1]:
                self._file.execute(
                    f"UPDATE rounds SET state = ?, {passed.value}_at = ? {where}",  # noqa: S608
                    (passed.value, int(time.time()), run_id, number),
                )
            return self._begun(run_id, number)

    def round(self, run_id: bytes, number: int) -> Round | None:
        """A round, None if it has not begun."""
        return next(self._rounds("run_id = ? AND round = ?", run_id, number), None)

    def rounds(self, run_id: bytes | None = None) -> Iterator[Round]:
        """The rounds of a run, or of all, in the order in which they began."""
        return self._rounds("1") if run_id is None else self._rounds("run_id = ?", run_id)

    def _begun(self, run_id: bytes, number: int) -> Round:
        found = self.round(run_id, number)
        if found is None:
            raise ConfigurationError(
                f"round {number} of this run has not begun",
                hint="check the run and the federation folder",
            )
        return found

    def _rounds(self, where: str, *values: object) -> Iterator[Round]:
        query = f"SELECT * FROM rounds WHERE {where}"  # noqa: S608 (all of it is this file's)
        for _, run_id, number, state, *rest in self._file.pages(query, values):
            yield Round(run_id, number, RoundState(state), *rest)

    # ------------------------------------------------------------------ nodes

    def saw(self, node: str, sender: int, when: int) -> None:
        """Note that a node answered, at a Unix second."""
        with self._file.writing():
            self._file.execute(
                "INSERT INTO nodes (node, sender, last_seen) VALUES (?, ?, ?) ON CONFLICT (node)"
                " DO UPDATE SET sender = excluded.sender, last_seen = excluded.last_seen"
                " WHERE excluded.last_seen >= last_seen",
                (node, str(sender), when),
            )

    def nodes(self) -> Iterator[SeenNode]:
        """The nodes that have ever answered."""
        for _, node, sender, last_seen in self._file.pages("SELECT * FROM nodes WHERE 1"):
            yield SeenNode(node, int(sender), last_seen)
