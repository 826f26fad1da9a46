"""The folder of one distillation run: its configuration, its events, its checkpoint, its results.

    with RunDirectory.open("runs/first", {"seed": 0, "recipe": {"rounds": 20}}) as run:
        state = run.load_checkpoint()           # None: nothing to resume from
        for round in range(0 if state is None else state["round"] + 1, 20):
            run.event("round", round=round, losses={"kd": 0.3})
            run.save_checkpoint({"round": round})

The same command on the same folder resumes. One process at a time holds a folder: the lock dies
with its process, however that ends. A checkpoint remembers how long `events.jsonl` was, and
loading it cuts off what came later, so that a resumed run tells each event once.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from genkd.canonical import parse_json
from genkd.durable import TEMPORARY_PREFIX, atomic_write, unwritable
from genkd.errors import ConfigurationError, InputFileRefused
from genkd.event_log import EVENTS_FILE, TENSORBOARD_FOLDER, EventLog, Mark, delete_tensorboard
from genkd.json_values import difference, encode, finite, plain

# Its presence says that a folder is a run directory; it stays in place so that a lock always has
# the same inode to hold on to.
LOCK_FILE = "genkd-run.lock"
CONFIGURATION_FILE = "config.json"
CHECKPOINT_FILE = "checkpoint.pt"
ZIP_MAGIC = b"PK\x03\x04"
# What distilling writes, and so what a fresh start may delete. Nothing else is ever deleted.
RESULT_FILES = (
    *("samples.npz", "result.json", "student.safetensors", "student.json", "student.onnx"),
    *("evaluation.json", "report.html"),
)
# What training a prior writes: the last model, and numbered ones on the way.
PRIOR_FILES = ("prior.safetensors", "prior-[0-9][0-9][0-9].safetensors")
# A published run: its release is signed, and perhaps recorded, so its student must not change.
RELEASE_FOLDER = "release"


class RunDirectory:
    """An open, locked run directory. Made by `open`, not by the constructor.

    Attributes:
        path: The folder.
    """

    def __init__(self, path: Path, lock: BinaryIO, configuration: dict[str, object]) -> None:
        self.path = path
        self._lock = lock
        self._fingerprint = hashlib.sha256(encode(configuration)).hexdigest()
        self._log = EventLog(path)

    @classmethod
    def open(
        cls, path: str | Path, configuration: Mapping[str, object], *, fresh: bool = False
    ) -> RunDirectory:
        """Create a run directory, or open the one that is there to resume it.

        Args:
            path: The folder; made with its parents if it is missing.
            configuration: All that decides the outcome of the run: JSON values, `Path`s, and
                mappings and sequences of them.
            fresh: Delete what an earlier run wrote there and start anew.

        Raises:
            ConfigurationError: If the folder holds a run of another configuration, a published
                release that `fresh` would contradict, or files that are no run; or if another
                process works in it.
            InputFileRefused: If `config.json` cannot be read.
            ResourceExhausted: If the folder cannot be made or written.
        """
        path = Path(path)
        wanted = plain(configuration)
        if not isinstance(wanted, dict):
            raise TypeError(f"a configuration is a mapping, not {type(configuration).__name__}")
        _claim(path)
        lock = _lock(path)
        try:
            _delete_temporaries(path)
            if fresh:
                _delete_run(path)
            known = _read_configuration(path)
            if known is None:
                atomic_write(path / CONFIGURATION_FILE, encode(wanted))
            elif known != wanted:
                raise ConfigurationError(
                    f"{path} holds a run of another configuration: {difference(known, wanted)}",
                    hint="repeat the command of that run to resume it, choose another --out, "
                    "or start anew with --fresh",
                )
        except BaseException:
            lock.close()
            raise
        return cls(path, lock, wanted)

    def event(self, name: str, **values: object) -> None:
        """Append one line to `events.jsonl`, and its numbers to TensorBoard.

        Args:
            name: What happened: start, round, student_alone, warning, resume, end.
            **values: JSON values, and mappings of them. NaN and infinity are written as null.
                Numbers go to TensorBoard at the step `round`, under names such as `losses/kd`.

        Raises:
            ResourceExhausted: If the disk is full or the folder cannot be written.
        """
        self._log.append(name, values)

    def save_checkpoint(self, state: dict[str, Any]) -> None:
        """Replace the checkpoint by `state`.

        Args:
            state: Tensors, numbers, strings, and dicts, lists and tuples of them: what
                `torch.load(..., weights_only=True)` reads back.

        Raises:
            ResourceExhausted: If the disk is full; the checkpoint before it is kept.
        """
        import torch

        # First, so that the mark never outlives the lines it counts.
        mark = self._log.mark()
        buffer = io.BytesIO()
        torch.save(
            {
                "configuration": self._fingerprint,
                "events_length": mark.length,
                "next_round": mark.next_round,
                "state": state,
            },
            buffer,
        )
        atomic_write(self.path / CHECKPOINT_FILE, buffer.getbuffer())

    def load_checkpoint(self) -> dict[str, Any] | None:
        """The state last saved, with tensors on the CPU, or None if there is none.

        To be called before the first `event`: it cuts `events.jsonl` back to what was there when
        the checkpoint was saved, to nothing if there is no checkpoint.

        Raises:
            InputFileRefused: If the checkpoint is broken, or of another configuration.
        """
        path = self.path / CHECKPOINT_FILE
        saved = _read_checkpoint(path)
        if saved is None:
            self._log.cut(Mark())
            return None
        if saved["configuration"] != self._fingerprint:
            raise InputFileRefused(
                f"{path} is the checkpoint of a run of another configuration",
                hint="put the right file back, or start anew with --fresh",
            )
        self._log.cut(Mark(saved["events_length"], saved["next_round"]))
        state: dict[str, Any] = saved["state"]
        return state

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write one of `RESULT_FILES`, whole or not at all.

        Raises:
            ValueError: If `name` is not among them, so that a fresh start would not delete it.
            ResourceExhausted: If the disk is full or the folder cannot be written.
        """
        if name not in RESULT_FILES:
            raise ValueError(f"{name!r} is no file of a run directory; add it to RESULT_FILES")
        atomic_write(self.path / name, data)

    def write_json(self, name: str, obj: object) -> None:
        """Write `obj` as indented JSON; NaN and infinity become null. Raises as `write_bytes`."""
        text = json.dumps(finite(obj), indent=2, ensure_ascii=False)
        self.write_bytes(name, text.encode() + b"\n")

    def close(self) -> None:
        """Finish the logs and let go of the lock. Harmless when repeated."""
        self._log.close()
        self._lock.close()

    def __enter__(self) -> RunDirectory:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _claim(path: Path) -> None:
    """Make sure that `path` is a folder which is empty or a run directory."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        names = {entry.name for entry in path.iterdir()}
    except (FileExistsError, NotADirectoryError) as error:
        raise ConfigurationError(
            f"{path} is not a folder", hint="choose another --out, or move that file away"
        ) from error
    except OSError as error:
        raise unwritable(path, error) from error
    if names and LOCK_FILE not in names:
        raise ConfigurationError(
            f"{path} is not empty and is not a run directory",
            hint="choose another --out: a run never touches the files of others",
        )


def _lock(path: Path) -> BinaryIO:
    """Take the run directory for this process, and write down which process that is."""
    try:
        # "a", not "w": the number of the process that holds it must survive our failing.
        lock = open(path / LOCK_FILE, "a+b", buffering=0)  # noqa: SIM115 (held until close())
    except OSError as error:
        raise unwritable(path, error) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n".encode())
    except BlockingIOError as error:
        lock.seek(0)
        holder = lock.read(32).decode("ascii", "replace").strip()
        lock.close()
        raise ConfigurationError(
            f"{path} is in use by another process ({holder or 'unknown'})",
            hint="wait for it, stop it, or choose another --out",
        ) from error
    except OSError as error:
        lock.close()
        raise unwritable(path, error) from error
    return lock


def _delete_run(path: Path) -> None:
    """Delete what an earlier run wrote in `path`, the checkpoint first."""
    if (path / RELEASE_FOLDER).exists():
        raise ConfigurationError(
            f"{path} was published: its release would no longer match a fresh student",
            hint="choose another --out",
        )
    try:
        # The configuration goes last: a fresh start killed on the way is still a run directory.
        for name in (CHECKPOINT_FILE, *RESULT_FILES, EVENTS_FILE):
            (path / name).unlink(missing_ok=True)
        for pattern in PRIOR_FILES:
            for file in path.glob(pattern):
                file.unlink(missing_ok=True)
        delete_tensorboard(path / TENSORBOARD_FOLDER)
        (path / CONFIGURATION_FILE).unlink(missing_ok=True)
    except OSError as error:
        raise unwritable(path, error) from error


def _delete_temporaries(path: Path) -> None:
    """Delete what a kill left half-written; the lock is held, so nobody is writing it."""
    try:
        for file in path.glob(f"{TEMPORARY_PREFIX}*"):
            file.unlink(missing_ok=True)
    except OSError as error:
        raise unwritable(path, error) from error


def _read_configuration(path: Path) -> dict[str, object] | None:
    file = path / CONFIGURATION_FILE
    try:
        known = parse_json(file.read_bytes(), allow_floats=True)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise InputFileRefused(
            f"{file} cannot be read: {error}",
            hint="start anew with --fresh, or choose another --out",
        ) from error
    if not isinstance(known, dict):
        raise InputFileRefused(
            f"{file} does not hold a configuration",
            hint="start anew with --fresh, or choose another --out",
        )
    return known


def _read_checkpoint(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    import torch

    try:
        with path.open("rb") as file:
            if file.read(4) != ZIP_MAGIC:  # keeps PyTorch's old, pure pickle format out
                raise ValueError("not a zip archive")
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, KeyError, EOFError, pickle.UnpicklingError) as error:
        raise InputFileRefused(
            f"{path} is broken and cannot be resumed from", hint="start anew with --fresh"
        ) from error
    expected = {"configuration", "events_length", "next_round", "state"}
    if (
        not isinstance(saved, dict)
        or set(saved) != expected
        or not isinstance(saved["events_length"], int)
        or not isinstance(saved["next_round"], int)
    ):
        raise InputFileRefused(
            f"{path} is not a checkpoint of this package", hint="start anew with --fresh"
        )
    return saved
