"""What happened in a run, line by line in `events.jsonl`, and its numbers for TensorBoard.

    log = EventLog(Path("runs/first"))
    log.append("round", {"round": 0, "losses": {"kd": 0.3}})
    mark = log.mark()       # durable up to here
    log.cut(mark)           # after a crash: forget what came after the mark

A line is written unbuffered and whole, so what was reported survives a kill of the process.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from genkd.durable import unwritable
from genkd.errors import ResourceExhausted
from genkd.json_values import finite, numbers

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

EVENTS_FILE = "events.jsonl"
TENSORBOARD_FOLDER = "tensorboard"
TENSORBOARD_FILES = "events.out.tfevents.*"


@dataclass(frozen=True)
class Mark:
    """A place in the log.

    Attributes:
        length: Bytes of `events.jsonl` before it.
        next_round: One more than the last round before it; 0 at the start.
    """

    length: int = 0
    next_round: int = 0


class EventLog:
    """The log of the run directory `folder`, opened at the first event.

    Args:
        folder: The run directory, which exists.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / EVENTS_FILE
        self._tensorboard_path = folder / TENSORBOARD_FOLDER
        self._file: io.FileIO | None = None
        self._tensorboard: SummaryWriter | None = None
        self._tensorboard_missing = False
        self._next_round = 0

    def append(self, name: str, values: Mapping[str, object]) -> None:
        """Write one event, as `RunDirectory.event` describes it.

        Raises:
            ResourceExhausted: If the disk is full or the folder cannot be written.
            TypeError: If JSON cannot hold a value.
        """
        time = datetime.now(UTC).isoformat(timespec="milliseconds")
        event = finite({"event": name, "time": time, **values})
        line = json.dumps(event, ensure_ascii=False).encode() + b"\n"
        try:
            written = self._open().write(line)
            if written != len(line):
                raise ResourceExhausted(
                    f"{self._path} cannot be written: the disk is full",
                    hint="free some disk space and repeat the same command: it resumes",
                )
            step = values.get("round")
            if isinstance(step, int):
                self._write_scalars(step, values)
                self._next_round = max(self._next_round, step + 1)
        except OSError as error:
            raise unwritable(self._path, error) from error

    def mark(self) -> Mark:
        """The present end of the log, after making sure that it outlives a loss of power.

        Raises:
            ResourceExhausted: If the disk is full or the folder cannot be written.
        """
        try:
            file = self._open()
            os.fsync(file.fileno())
            if self._tensorboard is not None:
                self._tensorboard.flush()
            return Mark(os.fstat(file.fileno()).st_size, self._next_round)
        except OSError as error:
            raise unwritable(self._path, error) from error

    def cut(self, mark: Mark) -> None:
        """Forget what comes after `mark`; to be called before the first event.

        TensorBoard's files are deleted if nothing is left. Otherwise they are kept, and TensorBoard
        itself drops the rounds that will be repeated.

        Raises:
            ResourceExhausted: If the folder cannot be written.
        """
        self._next_round = mark.next_round
        try:
            # Never longer: truncating upwards would fill the file with NULs.
            if self._path.exists() and self._path.stat().st_size > mark.length:
                os.truncate(self._path, mark.length)
            if mark.next_round == 0:
                delete_tensorboard(self._tensorboard_path)
        except OSError as error:
            raise unwritable(self._path, error) from error

    def close(self) -> None:
        """Close the files. Harmless when repeated."""
        if self._tensorboard is not None:
            self._tensorboard.close()
            self._tensorboard = None
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open(self) -> io.FileIO:
        if self._file is None:
            self._file = io.FileIO(self._path, "a")
        return self._file

    def _write_scalars(self, step: int, values: Mapping[str, object]) -> None:
        if self._tensorboard is None and not self._tensorboard_missing:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                # The numbers are in events.jsonl too, so its absence stops nothing.
                self._tensorboard_missing = True
                return
            self._tensorboard = SummaryWriter(
                str(self._tensorboard_path), purge_step=self._next_round or None
            )
        if self._tensorboard is not None:
            for name, number in numbers(values):
                if name != "round":
                    self._tensorboard.add_scalar(name, number, step)


def delete_tensorboard(folder: Path) -> None:
    """Delete TensorBoard's own files in `folder`; a link to elsewhere is left alone."""
    if folder.is_dir() and not folder.is_symlink():
        for file in folder.glob(TENSORBOARD_FILES):
            file.unlink()
