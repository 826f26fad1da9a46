"""Where a running SuperLink is found: the file `superlink.json` in the federation's folder.

    running = find_superlink(federation)
    running.private, running.token

`serve` writes it when both listeners take connections and removes it when it ends. After a kill -9
the file of the dead one is left: nobody answers there, or somebody who is shown a token that has
opened nothing since.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from genkd.durable import atomic_write
from genkd.errors import CoordinatorUnreachable
from genkd.json_values import encode

FILE = "superlink.json"
MAX_FILE_BYTES = 4096
SERVE_HINT = "start 'genkd-coordinator serve' and repeat the same command"

_LOOPBACK = re.compile(r"127\.0\.0\.1:[1-9][0-9]{0,4}")
_TOKEN = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class RunningSuperLink:
    """The SuperLink that serves a federation's folder.

    Attributes:
        public: Where nodes reach it, `host:port`, TLS.
        private: Its loopback listener, `127.0.0.1:port`, plain HTTP.
        pid: Its process.
        token: What its loopback listener wants to be shown, 64 hexadecimal digits; new at each
            start. No repr shows it.
    """

    public: str
    private: str
    pid: int
    token: str

    def __repr__(self) -> str:
        return f"RunningSuperLink({self.public!r}, {self.private!r}, pid={self.pid})"


def find_superlink(federation: Path) -> RunningSuperLink:
    """The SuperLink that serves this folder, as it says itself.

    Raises:
        CoordinatorUnreachable: If none does.
    """
    path = federation / FILE
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise _not_running(federation) from error
    try:
        values = json.loads(data)
        running = RunningSuperLink(**values)
    except (ValueError, TypeError, RecursionError) as error:
        raise _not_running(federation) from error
    fits = (
        len(data) <= MAX_FILE_BYTES
        and isinstance(running.public, str)
        and isinstance(running.private, str)
        and _LOOPBACK.fullmatch(running.private)
        and type(running.pid) is int
        and isinstance(running.token, str)
        and _TOKEN.fullmatch(running.token)
    )
    if not fits:
        raise _not_running(federation)
    return running


def _not_running(federation: Path) -> CoordinatorUnreachable:
    return CoordinatorUnreachable(f"no SuperLink serves {federation}", hint=SERVE_HINT)


def write_superlink_file(federation: Path, running: RunningSuperLink) -> None:
    """Say where it runs; for the owner of the folder only.

    Raises:
        ResourceExhausted: If it cannot be written.
    """
    atomic_write(federation / FILE, encode(asdict(running)), mode=0o600)


def remove_superlink_file(federation: Path) -> None:
    """Say that it runs no more. That the file is gone already is no error."""
    (federation / FILE).unlink(missing_ok=True)
