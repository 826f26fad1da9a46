"""Keep one Anvil: start it, drain its output, stop it in order, and let it outlive nobody.

    python -I -S anvil_guard.py [FOLDER CHAIN_ID] -- ANVIL ARGUMENTS...

A process of its own, for two reasons. Linux ends a child with the *thread* that started it, so
only a program with one thread can promise that Anvil dies with it. And Anvil blocks once nobody
reads its output. Standard library only: it is run by its path.

One JSON line on standard output says how the start went: {"listening": "127.0.0.1:8545"},
or {"failed": "what Anvil said"}, or {"locked": true}. From then on:

- with a folder it runs until SIGTERM, SIGINT or SIGHUP. It holds two locks there, which the system
  takes from it however it ends: on `anvil.json`, so that whoever sees it taken knows that the
  process named in it is this one; and, together with Anvil, on `anvil.lock`, so that no second
  Anvil starts on the same state before the first has saved it;
- without, it ends also when its standard input does: when the process that started it is gone.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import re
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Final

LOCK_FILE: Final = "anvil.lock"
RECORD_FILE: Final = "anvil.json"
PR_SET_PDEATHSIG = 1
LISTENING = re.compile(rb"Listening on (\S+)")
SECONDS_TO_SAVE = 20.0  # Anvil writes its state when it is asked to end
KEPT_OUTPUT = 8192


def die_with_parent() -> None:
    """In the child, before Anvil: be sent SIGTERM when the guard ends, however it ends (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def wait_until_it_heeds_sigterm(pid: int) -> None:
    """Anvil says that it listens a few milliseconds before it can be ended with its state saved."""
    status = Path(f"/proc/{pid}/status")
    if not status.exists():  # no Linux: then a moment must do
        time.sleep(0.2)
        return
    for _ in range(5000):
        caught = re.search(r"^SigCgt:\s*([0-9a-f]+)", status.read_text(), re.MULTILINE)
        if caught is None or int(caught[1], 16) >> (signal.SIGTERM - 1) & 1:
            return
        time.sleep(0.001)


def say(**values: object) -> None:
    """One line to the process that waits for the start; it may be gone already."""
    with contextlib.suppress(OSError):
        os.write(1, json.dumps(values).encode() + b"\n")


def hold(path: Path) -> int | None:
    """Take the lock on a file, and keep it as long as this process lives; None if it is taken.

    Who only looks whether it is taken holds it for a moment: so try for longer than that.
    """
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    for _ in range(40):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            time.sleep(0.05)
        else:
            return lock
    return None


def record(folder: Path, chain_id: int, address: str) -> None:
    """Write down how to reach this chain and how to end it: whole, and locked, or not at all."""
    values = {"rpc_url": f"http://{address}", "chain_id": chain_id, "pid": os.getpid()}
    temporary = folder / f"{RECORD_FILE}.new"
    temporary.unlink(missing_ok=True)
    hold(temporary)
    temporary.write_text(json.dumps(values), encoding="utf-8")
    temporary.replace(folder / RECORD_FILE)


def watch(
    anvil: subprocess.Popen[bytes],
    started: Callable[[str], None],
    *,
    until_input_ends: bool,
    wake: int,
) -> None:
    """Read Anvil's output until it ends, or until it is time to end it.

    Args:
        anvil: The process.
        started: Called with the address it listens on.
        until_input_ends: Whether the end of standard input is a reason to end.
        wake: A descriptor that becomes readable when a signal came.
    """
    output: IO[bytes] | None = anvil.stdout
    if output is None:
        raise ValueError("Anvil's output is not piped")
    selector = selectors.DefaultSelector()
    selector.register(output, selectors.EVENT_READ)
    selector.register(wake, selectors.EVENT_READ)
    if until_input_ends:
        selector.register(0, selectors.EVENT_READ)
    said, seen = False, b""
    while True:
        for key, _ in selector.select():
            if key.fd != output.fileno():
                if key.fd == wake or not os.read(0, 1):
                    return
                continue
            chunk = os.read(output.fileno(), 65536)
            if not chunk:
                if not said:
                    say(failed=seen.decode(errors="replace"))
                return
            if not said:
                seen = (seen + chunk)[-KEPT_OUTPUT:]
                if found := LISTENING.search(seen):
                    said = True
                    wait_until_it_heeds_sigterm(anvil.pid)
                    started(found[1].decode())


def stop(anvil: subprocess.Popen[bytes]) -> None:
    """Let it save its state; what then still runs is killed. Its output is read to the end."""
    anvil.terminate()
    try:
        anvil.communicate(timeout=SECONDS_TO_SAVE)
    except subprocess.TimeoutExpired:
        anvil.kill()
        anvil.communicate()


def main(arguments: list[str]) -> int:
    """Run; returns Anvil's exit status, 75 if another guard holds the lock."""
    split = arguments.index("--")
    options, command = arguments[:split], arguments[split + 1 :]
    folder = Path(options[0]) if options else None
    inherited: tuple[int, ...] = ()
    if folder is not None:
        if os.fork():
            return 0  # nobody's child, so that no zombie is left to whoever started this
        lock = hold(folder / LOCK_FILE)
        if lock is None:
            say(locked=True)
            return 75
        inherited = (lock,)

    def started(address: str) -> None:
        if folder is not None:
            record(folder, int(options[1]), address)
        say(listening=address)

    # A signal must not fall between looking and sleeping: it writes to a pipe that is waited for.
    wake, signalled = os.pipe()
    os.set_blocking(signalled, False)
    signal.set_wakeup_fd(signalled)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    anvil = subprocess.Popen(  # noqa: S603 (the caller found and checked this program)
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        pass_fds=inherited,
        preexec_fn=die_with_parent,  # safe: this program has one thread
    )
    try:
        watch(anvil, started, until_input_ends=folder is None, wake=wake)
    finally:
        stop(anvil)
        if folder is not None:
            (folder / RECORD_FILE).unlink(missing_ok=True)
    return anvil.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
