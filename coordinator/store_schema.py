"""The rows of a coordinator's store: what they mean, and the tables they stand in.

The columns of a table follow the fields of its type, after an `id` that counts upward.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

VERSION: Final = 1
SCHEMA: Final = """
CREATE TABLE submissions (
    id INTEGER PRIMARY KEY,
    run_id BLOB NOT NULL,
    round INTEGER NOT NULL,
    content_hash BLOB NOT NULL,
    record_id BLOB NOT NULL,
    node TEXT NOT NULL,
    sender TEXT NOT NULL,
    accepted INTEGER NOT NULL,
    reason TEXT NOT NULL,
    received_at INTEGER NOT NULL,
    path TEXT NOT NULL,
    size INTEGER NOT NULL,
    architecture TEXT NOT NULL,
    norm REAL NOT NULL,
    UNIQUE (run_id, round, content_hash)
) STRICT;
CREATE UNIQUE INDEX one_acceptance ON submissions (record_id) WHERE accepted;
CREATE UNIQUE INDEX one_release ON submissions (run_id, round, node) WHERE accepted;
CREATE INDEX refused_of ON submissions (sender) WHERE NOT accepted;
CREATE TABLE rounds (
    id INTEGER PRIMARY KEY,
    run_id BLOB NOT NULL,
    round INTEGER NOT NULL,
    state TEXT NOT NULL,
    merged BLOB,
    aggregate_hash BLOB,
    began_at INTEGER NOT NULL,
    merged_at INTEGER,
    committed_at INTEGER,
    shared_at INTEGER,
    UNIQUE (run_id, round)
) STRICT;
CREATE TABLE nodes (
    id INTEGER PRIMARY KEY,
    node TEXT NOT NULL UNIQUE,
    sender TEXT NOT NULL,
    last_seen INTEGER NOT NULL
) STRICT;
"""


class RoundState(StrEnum):
    """How far a round has come; it only goes forward."""

    COLLECTING = "collecting"
    MERGED = "merged"
    COMMITTED = "committed"
    SHARED = "shared"


ORDER: Final = tuple(RoundState)


@dataclass(frozen=True)
class Submission:
    """A release as it was received, and what became of it.

    Attributes:
        run_id: The run it was received for, 32 bytes.
        round: The round it was received for.
        content_hash: Over the bytes of all its files, 32 bytes.
        record_id: Its record id; empty if it did not come so far as to have one.
        node: The address of the node that signed it; empty if nobody is known to have.
        sender: The Flower node that sent it.
        accepted: Whether it counts in its round.
        reason: Why it does not, one line; empty if it does.
        received_at: Unix second.
        path: Its directory; None if it was refused, for then nothing of it is kept.
        size: Bytes of all its files.
        architecture: What the student's card says; empty if it was not read.
        norm: Root mean square of the student's weights; 0 if it was not measured.
        duplicate: Whether it had been accepted before this call. Only `Intake.submit` says so.
    """

    run_id: bytes
    round: int
    content_hash: bytes
    record_id: bytes
    node: str
    sender: int
    accepted: bool
    reason: str
    received_at: int
    path: Path | None = None
    size: int = 0
    architecture: str = ""
    norm: float = 0.0
    duplicate: bool = False


@dataclass(frozen=True)
class Round:
    """A round.

    Attributes:
        run_id: 32 bytes.
        number: 0 for that of the start student.
        state: How far it has come.
        merged: The merged student's record id; None before it is merged.
        aggregate_hash: The merged student's sha256, 32 bytes; None before it is merged.
        began_at: Unix second.
        merged_at: Unix second; None before.
        committed_at: Unix second; None before.
        shared_at: Unix second; None before.
    """

    run_id: bytes
    number: int
    state: RoundState
    merged: bytes | None
    aggregate_hash: bytes | None
    began_at: int
    merged_at: int | None
    committed_at: int | None
    shared_at: int | None


@dataclass(frozen=True)
class SeenNode:
    """A node that has answered.

    Attributes:
        node: Its address.
        sender: The Flower node it answered as.
        last_seen: Unix second.
    """

    node: str
    sender: int
    last_seen: int
