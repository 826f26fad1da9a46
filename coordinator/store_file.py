"""The SQLite file under a coordinator's store: opened strictly, written in whole transactions.

    with StoreFile.open(path, schema, version=1) as file:
        with file.writing():
            file.execute("INSERT ...", values)
        for row in file.pages("SELECT id, node FROM nodes WHERE 1"):
            ...

Write-ahead logging lets other processes read while one writes (https://sqlite.org/wal.html), and
every commit is on the disk before the call returns (`synchronous = FULL`).
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from genkd.durable import unwritable
from genkd.errors import (
    ConfigurationError,
    GenKDError,
    InputFileRefused,
    ResourceExhausted,
    Stopped,
)

APPLICATION_ID: Final = 0x47454E4B  # "GENK" in the file's header: it is ours
PAGE: Final = 100  # rows
SECONDS_FOR_OTHERS: Final = 30.0  # how long to wait while another process writes

# https://sqlite.org/rescode.html
PRIMARY: Final = 0xFF  # an extended result code's lower byte
FORBIDDEN: Final = {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_CANTOPEN}
BUSY: Final = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}


class StoreFile:
    """An open database. Usable from several threads, which take turns.

    Args:
        path: The file.
        connection: To it, in autocommit mode.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self._connection = connection
        self._lock = threading.RLock()

    @classmethod
    def open(cls, path: Path, schema: str, version: int) -> Self:
        """Open a file, or make it and its folder.

        Args:
            path: The file.
            schema: The statements that make its tables.
            version: Of the schema.

        Raises:
            InputFileRefused: If the file is damaged, or no store.
            ConfigurationError: If another version of this program wrote it.
            ResourceExhausted: If it cannot be read or written.
            Stopped: If another process keeps it locked.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise unwritable(path.parent, error) from error
        with translated(path):
            connection = sqlite3.connect(
                path, timeout=SECONDS_FOR_OTHERS, isolation_level=None, check_same_thread=False
            )
        opened = cls(path, connection)
        try:
            opened._prepare(schema, version)
        except BaseException:
            connection.close()
            raise
        return opened

    def _prepare(self, schema: str, version: int) -> None:
        with translated(self.path):
            with self._transaction("DEFERRED"):  # one moment: another may make it
                there = self._require_ours(version)
            self._write_ahead()
            self.execute("PRAGMA synchronous = FULL")
            verdict = self.execute("PRAGMA quick_check(1)")[0][0]
            if verdict != "ok":
                raise sqlite3.DatabaseError(verdict)
        if there:
            return  # without a transaction, for another process may write meanwhile
        with self.writing():
            if not self._require_ours(version):  # two may have begun at once
                for statement in schema.split(";"):
                    self.execute(statement)
                self.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                self.execute(f"PRAGMA user_version = {version}")

    def _write_ahead(self) -> None:
        """Log ahead of writing; SQLite itself does not wait for another that asks for it too."""
        until = time.monotonic() + SECONDS_FOR_OTHERS
        while True:
            try:
                self.execute("PRAGMA journal_mode = WAL")
                return
            except Stopped:
                if time.monotonic() > until:
                    raise
            time.sleep(0.01)

    def _require_ours(self, version: int) -> bool:
        """Refuse a file of another kind or version; False for a new one."""
        found = [self.execute(f"PRAGMA {p}")[0][0] for p in ("application_id", "user_version")]
        tables = self.execute("SELECT count(*) FROM sqlite_master")[0][0]
        if found == [0, 0] and not tables:
            return False
        if found != [APPLICATION_ID, version]:
            raise ConfigurationError(
                f"{self.path} was written by another version of this program, or by another one",
                hint="use the version it was made with, or move the file away",
            )
        return True

    def close(self) -> None:
        """Close it; what was committed stays."""
        with self._lock:
            self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """One transaction, as a writer from its start: all or nothing, and no other meanwhile."""
        with self._transaction("IMMEDIATE"):
            yield

    @contextlib.contextmanager
    def _transaction(self, kind: str) -> Iterator[None]:
        with self._lock, translated(self.path):
            self._connection.execute(f"BEGIN {kind}")
            try:
                yield
                self._connection.execute("COMMIT")
            finally:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")

    def execute(self, statement: str, values: tuple[object, ...] = ()) -> list[tuple[Any, ...]]:
        """Run one statement; returns its rows, which are few."""
        with self._lock, translated(self.path):
            return self._connection.execute(statement, values).fetchall()

    def pages(self, query: str, values: tuple[object, ...] = ()) -> Iterator[tuple[Any, ...]]:
        """The rows of any number of a query, read a page at a time.

        Args:
            query: Its first column is `id`, and it ends in a WHERE clause.
            values: For its placeholders.
        """
        last: object = 0
        while True:
            rows = self.execute(f"{query} AND id > ? ORDER BY id LIMIT {PAGE}", (*values, last))
            yield from rows
            if len(rows) < PAGE:
                return
            last = rows[-1][0]


@contextlib.contextmanager
def translated(path: Path) -> Iterator[None]:
    """Let SQLite's exceptions out of the block as errors of this project; `path` is named."""
    try:
        yield
    except sqlite3.Error as error:
        raise _explained(path, error) from error


def _explained(path: Path, error: sqlite3.Error) -> GenKDError:
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & PRIMARY
    if code == sqlite3.SQLITE_FULL:
        return ResourceExhausted(
            f"{path} cannot be written: no space left",
            hint="free some disk space and repeat the same command: it resumes",
        )
    if code == sqlite3.SQLITE_IOERR:
        return ResourceExhausted(
            f"{path} cannot be read or written: the disk fails or is full",
            hint="check the disk, then repeat the same command: it resumes",
        )
    if code in FORBIDDEN:
        return ResourceExhausted(
            f"{path} cannot be opened or written", hint="choose a folder you may write to"
        )
    if code in BUSY:
        return Stopped(
            f"{path} is in use by another process",
            hint="wait for it to end, then repeat the same command",
        )
    return InputFileRefused(
        f"{path} is damaged, or is not a coordinator's store",
        hint="restore it from a backup, or move it away: what is on the chain stays there",
    )
