"""A local Ethereum test chain that lives as long as this process: find Anvil, start it, stop it.

    with start_anvil() as chain:
        print(chain.rpc_url)                    # http://127.0.0.1:45123

Always on the loopback interface, and closed to web pages (no CORS): its accounts are known to all.
The native binary is started, never the npm wrapper, which takes two seconds and leaves orphans.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import selectors
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from genkd.errors import ConfigurationError

GUARD: Final = Path(__file__).with_name("anvil_guard.py")
# The rules Ethereum's main network has lived by since December 2025. Left open, they would change
# with Anvil's version, and gas figures with them.
HARDFORK: Final = "osaka"
DEVELOPMENT_CHAIN_ID: Final = 31337
SECONDS_TO_START = 30.0
SECONDS_TO_STOP = 30.0
INSTALL_HINT = "run `npm ci --ignore-scripts` in contracts/, or name the program in GENKD_ANVIL"

PREVIOUS_FILE = "state.previous.json"


# ------------------------------------------------------------------ finding it


def find_anvil(start: Path | None = None) -> Path:
    """The native Anvil of this machine.

    Looked for in this order: `GENKD_ANVIL`, `node_modules` beside this package and above, then in
    `start` and above, `~/.foundry/bin`, PATH.

    Args:
        start: A folder, the current one if not given.

    Raises:
        ConfigurationError: If there is none, or the one in `GENKD_ANVIL` is none.
    """
    named = os.environ.get("GENKD_ANVIL")
    if named:
        path = Path(named).expanduser()
        if not _is_anvil(path):
            raise ConfigurationError(
                f"GENKD_ANVIL names {path}, which is not Anvil's native program",
                hint="name the binary itself; or unset GENKD_ANVIL to have it looked for",
            )
        return path
    for path in _candidates(start or Path.cwd()):
        if _is_anvil(path):
            return path
    raise ConfigurationError("Anvil is not installed here", hint=INSTALL_HINT)


def _candidates(start: Path) -> Iterator[Path]:
    for folder in (Path(__file__).parent, start.resolve()):
        for parent in (folder, *folder.parents):
            yield parent / "node_modules" / "@foundry-rs" / _package() / "bin" / "anvil"
    yield Path.home() / ".foundry" / "bin" / "anvil"
    if found := shutil.which("anvil"):
        yield Path(found)


def _package() -> str:
    machine = platform.machine().lower()
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine)
    return f"anvil-{sys.platform}-{machine}"


def _is_anvil(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            if file.read(2) == b"#!":
                return False  # the npm wrapper, a script
        done = subprocess.run(  # noqa: S603
            [path, "--version"], capture_output=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0 and done.stdout.startswith(b"anvil Version:")


# ------------------------------------------------------------------ keeping it


class Guard:
    """The process that keeps one Anvil, see `anvil_guard.py`.

    Args:
        options: The guard's own options.
        command: Anvil and its arguments.
        follows_us: Whether it ends with this process.
    """

    def __init__(self, options: list[str], command: list[str], *, follows_us: bool) -> None:
        self._process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-I", "-S", str(GUARD), *options, "--", *command],
            stdin=subprocess.PIPE if follows_us else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            # A session of its own: Ctrl-C is for us, who then end Anvil in order.
            start_new_session=True,
        )

    def first_words(self) -> dict[str, Any]:
        """What it says of the start: `listening`, or `locked`.

        Raises:
            ConfigurationError: If Anvil did not start. The guard has ended then.
        """
        try:
            said: dict[str, Any] = json.loads(self._first_line())
            if "failed" in said:
                raise did_not_start(_last_line(said["failed"]))
        except BaseException:
            self.end()
            raise
        return said

    def _first_line(self) -> bytes:
        line, deadline = b"", time.monotonic() + SECONDS_TO_START
        output = self._process.stdout
        with selectors.DefaultSelector() as selector:
            selector.register(output, selectors.EVENT_READ)  # type: ignore[arg-type]  # it is piped
            while not line.endswith(b"\n"):
                ready = selector.select(deadline - time.monotonic())
                if not ready:
                    raise did_not_start(f"it said nothing for {SECONDS_TO_START:g} s")
                chunk = os.read(ready[0][0].fd, 65536)
                if not chunk:
                    raise did_not_start("it ended at once")
                line += chunk
        return line

    def end(self) -> None:
        """Let Anvil save its state and end; wait for it. May be called again."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        else:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGTERM)
        try:
            self._process.wait(SECONDS_TO_STOP)
        except subprocess.TimeoutExpired:
            self._process.kill()  # the system then asks Anvil to end
            self._process.wait()
        self._close_output()

    def leave_alone(self) -> None:
        """Let it run on after this process."""
        self._process.wait()  # of two processes the first, which ends at once
        self._close_output()

    def _close_output(self) -> None:
        if self._process.stdout is not None:
            self._process.stdout.close()


def did_not_start(reason: str) -> ConfigurationError:
    """The error for an Anvil that does not run."""
    return ConfigurationError(
        f"Anvil did not start: {reason}",
        hint="another program may have the port: choose another, or 0 for any free one",
    )


def _last_line(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    text = lines[-1] if lines else "it said nothing"
    return "".join(c for c in text if c.isprintable())[:200]


class Anvil:
    """A running Anvil, ended by `stop`, by leaving the `with` block, or with this process.

    Attributes:
        rpc_url: Its endpoint.
        chain_id: Its chain id.
    """

    def __init__(self, guard: Guard, rpc_url: str, chain_id: int) -> None:
        self._guard = guard
        self.rpc_url = rpc_url
        self.chain_id = chain_id

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End it, its state saved. May be called again."""
        self._guard.end()


def start_anvil(
    *,
    state: Path | None = None,
    chain_id: int = DEVELOPMENT_CHAIN_ID,
    port: int = 0,
    slots_in_an_epoch: int | None = None,
) -> Anvil:
    """Start Anvil until this process ends or `stop` is called.

    Args:
        state: A file to load the chain from, if it exists, and to keep it in.
        chain_id: The chain's id.
        port: 0 for any free one.
        slots_in_an_epoch: How fast blocks become `finalized`: two epochs after they were made.

    Raises:
        ConfigurationError: If Anvil is missing, the port is taken, or the state file is damaged.
    """
    command = anvil_command(state, chain_id, port)
    if slots_in_an_epoch is not None:
        command += ["--slots-in-an-epoch", str(slots_in_an_epoch)]
    guard = Guard([], command, follows_us=True)
    return Anvil(guard, f"http://{guard.first_words()['listening']}", chain_id)


def anvil_command(state: Path | None, chain_id: int, port: int) -> list[str]:
    """Anvil and its arguments.

    Raises:
        ConfigurationError: If Anvil is missing, or the state file is damaged.
    """
    command = [str(find_anvil()), "--host", "127.0.0.1", "--port", str(port), "--no-cors"]
    command += ["--chain-id", str(chain_id), "--hardfork", HARDFORK]
    if state is not None:
        _require_whole(state)
        # Every second, too: SIGKILL and a power cut give it no time to save.
        command += ["--state", str(state), "--state-interval", "1"]
    return command


def _require_whole(state: Path) -> None:
    """Anvil does not replace its file, it writes over it: a power cut may leave half of it.

    Raises:
        ConfigurationError: If the file is no JSON object.
    """
    try:
        whole = isinstance(json.loads(state.read_bytes()), dict)
    except FileNotFoundError:
        return
    except (ValueError, RecursionError):
        whole = False
    except OSError as error:
        raise ConfigurationError(
            f"{state} cannot be read: {error.strerror}", hint="check the folder's permissions"
        ) from error
    if not whole:
        raise ConfigurationError(
            f"the chain's state in {state} is damaged",
            hint=f"copy {PREVIOUS_FILE} over it if it lies beside it, or remove it to begin anew",
        )
