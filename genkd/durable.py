"""Durable files: after a crash at any instant a file is the old one or the new one, never torn.

    atomic_write(run / "result.json", data)

The bytes go to a temporary file in the same folder, are flushed to the disk, and replace the target
in one step; then the folder itself is flushed. A temporary file that a kill left behind begins with
`TEMPORARY_PREFIX` and is never read.
"""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from pathlib import Path

from genkd.errors import ResourceExhausted

TEMPORARY_PREFIX = ".writing-"

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
_NO_FOLDER = {errno.ENOENT, errno.ENOTDIR}


def atomic_write(
    path: str | os.PathLike[str], data: bytes | bytearray | memoryview, *, mode: int = 0o644
) -> None:
    """Write `data` to `path` so that a reader sees the old bytes or all of the new ones.

    A symbolic link at `path` is replaced, not followed.

    Args:
        path: The file; its folder must exist.
        data: All of its bytes.
        mode: Its permissions, exactly (the umask is not applied). The temporary file is 0600 until
            then, so a secret written with 0o600 is at no instant readable by others.

    Raises:
        ResourceExhausted: If the disk is full, or the folder is missing or cannot be written. The
            old file is then untouched.
    """
    target = Path(path)
    try:
        _write_and_replace(target, data, mode)
    except OSError as error:
        raise unwritable(target, error) from error


def _write_and_replace(target: Path, data: bytes | bytearray | memoryview, mode: int) -> None:
    descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=TEMPORARY_PREFIX)
    try:
        with os.fdopen(descriptor, "wb") as handle:
            handle.write(data)
            handle.flush()
            os.fchmod(handle.fileno(), mode)
            os.fsync(handle.fileno())
        os.replace(temporary, target)
    except BaseException:  # Ctrl-C too leaves nothing behind
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    flush_folder(target.parent)


def flush_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a loss of power.

    Raises:
        OSError: If it cannot be opened or flushed.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems cannot flush a folder; the rename itself has happened.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def unwritable(path: Path, error: OSError) -> ResourceExhausted:
    """The error of this project for a file or folder that could not be written.

    For writers that cannot use `atomic_write`, such as a log that is appended to.
    """
    reason = os.strerror(error.errno) if error.errno else type(error).__name__
    if error.errno in _FULL:
        hint = "free some disk space and repeat the same command: it resumes"
    elif error.errno in _FORBIDDEN:
        hint = "choose a folder you may write to"
    elif error.errno in _NO_FOLDER:
        hint = "create the folder first, or correct the path"
    else:
        hint = "check the disk, or choose another folder"
    name = str(path) if str(path).isprintable() else ascii(str(path))
    return ResourceExhausted(f"{name} cannot be written: {reason}", hint=hint)
