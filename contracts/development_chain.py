"""A development chain that outlives the command that starts it, and keeps its state in a folder.

    chain = up(folder, port=8545)               # or the one that runs there
    fund(chain.rpc_url, address)                # test ether
    running(folder)                             # the same, from any process
    down(folder)

The folder holds::

    anvil.json     the process that keeps the chain, and its endpoint; locked by it while it lives
    anvil.lock     locked by that process and Anvil while either lives
    state.json     the chain, written by Anvil every second and at its end
    state.previous.json   the chain as it was at the last start

What Anvil had no time to write is forgotten: a SIGKILL to Anvil itself, or a power cut, costs up to
a second of transactions; one to the process that keeps it costs none.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from contracts.anvil import (
    DEVELOPMENT_CHAIN_ID,
    PREVIOUS_FILE,
    SECONDS_TO_START,
    SECONDS_TO_STOP,
    Guard,
    anvil_command,
    did_not_start,
)
from contracts.anvil_guard import LOCK_FILE, RECORD_FILE
from contracts.json_rpc import JsonRpc
from genkd.durable import atomic_write
from genkd.errors import ConfigurationError, ResourceExhausted

STATE_FILE: Final = "state.json"
WEI_PER_ETHER: Final = 10**18


@dataclass(frozen=True)
class RunningChain:
    """A development chain that runs on after the command that started it.

    Attributes:
        rpc_url: Its endpoint.
        chain_id: Its chain id.
        pid: The process to end it by.
    """

    rpc_url: str
    chain_id: int
    pid: int


def up(folder: Path, *, chain_id: int = DEVELOPMENT_CHAIN_ID, port: int = 0) -> RunningChain:
    """Start a chain that keeps its state in `folder`, or find the one that runs there.

    Args:
        folder: Made if it does not exist. One chain at a time runs in it.
        chain_id: The chain's id.
        port: 0 for any free one.

    Raises:
        ConfigurationError: If Anvil does not start, or the chain there has another id.
        ResourceExhausted: If the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceExhausted(
            f"{folder} cannot be made: {error.strerror}", hint="choose another folder"
        ) from error
    found = running(folder)
    if found is None:
        found = _start_in(folder, chain_id, port)
    if found.chain_id != chain_id:
        raise ConfigurationError(
            f"the chain that runs in {folder} has the id {found.chain_id}, not {chain_id}",
            hint="stop it first, or use its id",
        )
    return found


def _start_in(folder: Path, chain_id: int, port: int) -> RunningChain:
    deadline = time.monotonic() + SECONDS_TO_STOP
    while _locked(folder / LOCK_FILE):  # one that is just ending may have its state half written
        if found := running(folder):
            return found
        if time.monotonic() > deadline:
            raise did_not_start(f"another process holds {folder / LOCK_FILE}")
        time.sleep(0.05)
    state = folder / STATE_FILE
    command = anvil_command(state, chain_id, port)
    if state.exists():
        atomic_write(folder / PREVIOUS_FILE, state.read_bytes())
    guard = Guard([str(folder), str(chain_id)], command, follows_us=False)
    if "locked" in guard.first_words():  # somebody else is starting it just now
        guard.end()
    else:
        guard.leave_alone()
    return _until_recorded(folder)


def _until_recorded(folder: Path) -> RunningChain:
    deadline = time.monotonic() + SECONDS_TO_START
    while time.monotonic() < deadline:
        if chain := running(folder):
            return chain
        time.sleep(0.05)
    raise did_not_start(f"another process holds {folder / LOCK_FILE}")


def running(folder: Path) -> RunningChain | None:
    """The chain that runs in a folder, None if none does, or if it is starting or ending."""
    path = folder / RECORD_FILE
    try:
        content = path.read_bytes()
        return RunningChain(**json.loads(content)) if _locked(path) else None
    except FileNotFoundError:
        return None


def down(folder: Path) -> bool:
    """End the chain that runs in a folder, its state saved.

    Returns:
        False if none ran.

    Raises:
        ResourceExhausted: If it does not end.
    """
    chain = running(folder)
    if chain is None:
        return False
    # The record is locked: the process that it names lives, and is no later one of that number.
    with contextlib.suppress(ProcessLookupError):
        os.kill(chain.pid, signal.SIGTERM)
    deadline = time.monotonic() + SECONDS_TO_STOP
    while _locked(folder / LOCK_FILE):
        if time.monotonic() > deadline:
            raise ResourceExhausted(
                f"the chain at {chain.rpc_url} does not end",
                hint=f"end the process that holds {folder / LOCK_FILE}",
            )
        time.sleep(0.02)
    return True


def _locked(path: Path) -> bool:
    try:
        with path.open("rb+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def fund(rpc_url: str, address: str, ether: int = 1000) -> None:
    """Give an account of a development chain so much test ether.

    Raises:
        CannotCheck: If the endpoint does not answer, or is no Anvil.
    """
    rpc = JsonRpc(rpc_url)
    rpc.ask("anvil_setBalance", address, hex(ether * WEI_PER_ETHER))
