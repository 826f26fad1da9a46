"""What this node answered its coordinators, kept on its own disk.

    log = AnswerLog(membership)
    wait = log.reserve(answer, seconds=10)          # 0: it may go out now, and is noted
    log.note(answer)
    log.recent(20)

Flower keeps nothing for a node: whatever it must remember between two messages lies here. SQLite
makes two messages that arrive at once wait for each other, and survives a kill at any instant. The
log is bounded, and a question asked again and again with the same outcome is one entry.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from genkd.errors import ConfigurationError, ResourceExhausted

ANSWERS_FILE: Final = "answers.sqlite"
KEPT = 1000  # entries with a release, and as many without
PATIENCE = 10.0  # seconds to wait for another process that writes

SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (
    id INTEGER PRIMARY KEY,
    at INTEGER NOT NULL,
    times INTEGER NOT NULL,
    kind TEXT NOT NULL,
    run BLOB NOT NULL,
    round INTEGER NOT NULL,
    record BLOB NOT NULL,
    sent_bytes INTEGER NOT NULL,
    outcome TEXT NOT NULL
)"""
COLUMNS = "kind, run, round, record, sent_bytes, outcome"


@dataclass(frozen=True)
class Answer:
    """One answer.

    Attributes:
        kind: `collect` or `share`.
        run_id: The run that was asked about, 32 bytes.
        round: The round.
        record_id: Of the release that went out, was kept, or did not go out because the
            coordinator refuses it; empty if there was none.
        sent_bytes: The size of the release that went out; 0 if none did.
        outcome: One line: what was answered.
        at: Unix seconds of the last time.
        times: How often in succession.
    """

    kind: str
    run_id: bytes
    round: int
    record_id: bytes
    sent_bytes: int
    outcome: str
    at: int = 0
    times: int = 1

    def _key(self) -> tuple[object, ...]:
        return (
            self.kind,
            self.run_id,
            self.round,
            self.record_id,
            self.sent_bytes,
            self.outcome,
        )


class AnswerLog:
    """The answers of one membership.

    Args:
        membership: The folder of the membership; the log is made in it when first written.
    """

    def __init__(self, membership: Path) -> None:
        self.path = membership / ANSWERS_FILE

    def reserve(self, answer: Answer, *, seconds: int) -> int:
        """Note that a release goes out, unless one did so too recently.

        Of two processes that ask at once, one gets the permission.

        Args:
            answer: What would go out.
            seconds: What must lie between two releases.

        Returns:
            0 if it may go out now, else the seconds to wait, from 1 to `seconds`.

        Raises:
            ConfigurationError: If the log is damaged.
            ResourceExhausted: If it cannot be written; nothing may go out then.
        """
        with self._writing() as database:
            (last,) = database.execute(
                "SELECT max(at) FROM answers WHERE sent_bytes > 0"
            ).fetchone()
            now = int(time.time())
            # A clock that was set back must not silence the node until it has caught up.
            if last is not None and last <= now < last + seconds:
                return int(last + seconds - now)
            _insert(database, answer, now)
        return 0

    def note(self, answer: Answer) -> None:
        """Note an answer.

        Raises:
            ConfigurationError, ResourceExhausted: As `reserve`.
        """
        with self._writing() as database:
            now = int(time.time())
            newest = database.execute(
                f"SELECT id, {COLUMNS} FROM answers ORDER BY id DESC LIMIT 1"  # noqa: S608
            ).fetchone()
            if newest is not None and newest[1:] == answer._key():
                database.execute(
                    "UPDATE answers SET at = ?, times = times + 1 WHERE id = ?", (now, newest[0])
                )
            else:
                _insert(database, answer, now)

    def recent(self, count: int) -> list[Answer]:
        """The newest answers, the newest first; none if nothing was ever answered.

        Raises:
            ConfigurationError: If the log is damaged.
            ResourceExhausted: If it cannot be read.
        """
        if not self.path.exists():
            return []
        with self._writing() as database:
            rows = database.execute(
                f"SELECT {COLUMNS}, at, times FROM answers ORDER BY id DESC LIMIT ?",  # noqa: S608
                (count,),
            ).fetchall()
        return [Answer(*row) for row in rows]

    def refusal(self, run_id: bytes, round_number: int) -> Answer | None:
        """What was noted of a refused release, if nothing was given out in the round since.

        An answer with a record and no bytes: the release was there, and the coordinator had said
        that it does not take it.

        Raises:
            ConfigurationError, ResourceExhausted: As `recent`.
        """
        if not self.path.exists():
            return None
        with self._writing() as database:
            row = database.execute(
                f"SELECT {COLUMNS}, at, times FROM answers"  # noqa: S608
                " WHERE kind = 'collect' AND run = ? AND round = ? AND length(record) > 0"
                " ORDER BY id DESC LIMIT 1",
                (run_id, round_number),
            ).fetchone()
        found = None if row is None else Answer(*row)
        return found if found is not None and found.sent_bytes == 0 else None

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction, in which nobody else writes."""
        try:
            database = sqlite3.connect(self.path, timeout=PATIENCE, isolation_level=None)
            with contextlib.closing(database):
                database.execute("PRAGMA synchronous = FULL")
                database.execute("BEGIN IMMEDIATE")
                database.execute(SCHEMA)
                yield database
                database.execute("COMMIT")
        except sqlite3.OperationalError as error:
            raise ResourceExhausted(
                f"{self.path} cannot be written: {error}",
                hint="free some disk space, and let only this node's user write there",
            ) from error
        except (sqlite3.DatabaseError, TypeError) as error:
            raise ConfigurationError(
                f"{self.path} is damaged: {error}",
                hint="move it away: it says what was answered, and a new one is made",
            ) from error


def _insert(database: sqlite3.Connection, answer: Answer, now: int) -> None:
    database.execute(
        f"INSERT INTO answers (at, times, {COLUMNS}) VALUES (?, 1, ?, ?, ?, ?, ?, ?)",  # noqa: S608
        (now, *answer._key()),
    )
    for sent in (0, 1):
        database.execute(
            "DELETE FROM answers WHERE (sent_bytes > 0) = ? AND id NOT IN (SELECT id FROM answers"
            " WHERE (sent_bytes > 0) = ? ORDER BY id DESC LIMIT ?)",
            (sent, sent, KEPT),
        )
