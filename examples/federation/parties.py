"""The parties of the demo: each has a folder, and runs the command lines in it as processes.

    processes, narrator = Processes(), Narrator()
    node = Party("node-1", folder, narrator, processes)
    answer = await node.run("genkd-node", "init")             # to its end; what --json answers
    service = await node.start("genkd-node", "join", ...)     # runs on
    await service.expect(re.compile("connected"))
    await processes.end_all()

A party sees nothing of the others but what goes over the network, nor anything of the person's who
runs the demo: its home is its folder, and settings in the environment are not passed on.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import re
import shlex
import signal
import sys
import time
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Iterable
from pathlib import Path
from typing import Any

LOG = "log.txt"
# Of the settings in the environment, a party keeps how errors are shown and where Anvil is.
KEPT_SETTINGS = ("GENKD_DEBUG", "GENKD_ANVIL")
SECONDS_TO_END = 20.0
SECONDS_BETWEEN_PROGRESS = 15.0
MAX_LINE_BYTES = 1 << 20
LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
PR_SET_PDEATHSIG = 1
PROGRESS = re.compile(r"\d%")
LONG_HEX = re.compile(r"(0x)?([0-9a-f]{8})[0-9a-f]{56}")


class DemoFailed(Exception):
    """A command did not do its part; the message says which, and why."""


class Narrator:
    """Writes one line for each event: when, whose, what.

    Attributes:
        names: What stands for a long text, such as a node's address, in the lines.
    """

    def __init__(self) -> None:
        self.names: dict[str, str] = {}
        self._started = time.monotonic()

    def tell(self, who: str, line: str) -> None:
        """Write a line; long names and hashes are shortened, the log has them in full."""
        for long, short in self.names.items():
            line = line.replace(long, short)
        line = LONG_HEX.sub(r"\1\2...", line)
        minutes, seconds = divmod(round(time.monotonic() - self._started), 60)
        print(f"{minutes:02}:{seconds:02}  {who:<11}  {line}".rstrip(), flush=True)


class Service:
    """A process that was started, and what it says on standard error, line by line."""

    def __init__(self, party: Party, shown: str, process: Process, hasty: bool) -> None:
        self.shown = shown
        self.process = process
        self.hasty = hasty
        self._party = party
        self._lines: list[str] = []
        self._silent = False
        self._news = asyncio.Event()
        self._answer = b""
        self._readers = (
            asyncio.create_task(self._read_lines()),
            asyncio.create_task(self._read_answer()),
        )

    async def line(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        """The first line that matches, once it is there; None if the process ends without."""
        while True:
            if match := next(filter(None, map(pattern.search, self._lines)), None):
                return match
            if self._silent:
                return None
            self._news.clear()
            await self._news.wait()

    async def expect(self, pattern: re.Pattern[str]) -> re.Match[str]:
        """As `line`.

        Raises:
            DemoFailed: If the process ends without.
        """
        found = await self.line(pattern)
        if found is None:
            await self.answer()
            raise DemoFailed(f"{self._party.name}: '{self.shown}' ended too early")
        return found

    async def answer(self) -> dict[str, Any]:
        """What it answers at its end, the `data` of its `--json`.

        Raises:
            DemoFailed: If it ended with an error.
        """
        await asyncio.wait(self._readers)
        code = await self.process.wait()
        self._party.processes.ended(self)
        try:
            said = json.loads(self._answer)
        except ValueError:
            said = {}
        if code == 0 and isinstance(said.get("data"), dict):
            data: dict[str, Any] = said["data"]
            return data
        error = said.get("error") or {"message": f"exit code {code}", "hint": "read its log"}
        raise DemoFailed(
            f"{self._party.name}: '{self.shown}' failed: {error['message']}\n"
            f"hint: {error['hint']}\nlog: {self._party.folder / LOG}"
        )

    async def _read_lines(self) -> None:
        stream = self.process.stderr
        while stream is not None and (line := await stream.readline()):
            text = line.decode(errors="replace").rstrip()
            self._lines.append(text)
            self._news.set()
            self._party.hear(text)
        self._silent = True
        self._news.set()

    async def _read_answer(self) -> None:
        if self.process.stdout is not None:
            self._answer = await self.process.stdout.read()
        self._party.write(self._answer.decode(errors="replace").rstrip())


class Processes:
    """All processes that run, so that none is left behind."""

    def __init__(self) -> None:
        self._running: list[Service] = []

    def began(self, service: Service) -> None:
        """Remember a process."""
        self._running.append(service)

    def ended(self, service: Service) -> None:
        """Forget one that has ended."""
        if service in self._running:
            self._running.remove(service)

    async def end_all(self) -> None:
        """End the processes in order, the first of them, which serves the others, at last."""
        await self._end(self._running[1:])
        await self._end(self._running[:1])

    async def _end(self, services: Iterable[Service]) -> None:
        services = list(services)
        for service in services:
            if service.process.returncode is None and not service.hasty:
                service.process.send_signal(signal.SIGTERM)
        waiting = [asyncio.create_task(service.process.wait()) for service in services]
        if waiting:
            await asyncio.wait(waiting, timeout=SECONDS_TO_END)
        for service in services:
            if service.process.returncode is None:
                os.killpg(service.process.pid, signal.SIGKILL)
                await service.process.wait()
            self.ended(service)


def _end_with_demo() -> None:
    """In the child: be sent SIGTERM when the demo is gone, by kill -9 too (Linux)."""
    if LIBC is not None:
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


class Party:
    """One party of the federation, in a folder of its own.

    Args:
        name: What people call it.
        folder: Its folder; made.
        narrator: Is told what it does.
        processes: Where its processes are remembered.
        threads: Of the processor, for what it computes.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        narrator: Narrator,
        processes: Processes,
        threads: int = 1,
    ) -> None:
        self.name = name
        self.folder = folder
        self.processes = processes
        self._narrator = narrator
        self._last_progress = 0.0
        folder.mkdir(parents=True)
        kept = {
            key: value
            for key, value in os.environ.items()
            if key in KEPT_SETTINGS or not key.startswith(("GENKD_", "XDG_", "FLWR_"))
        }
        self._environment = kept | {"HOME": str(folder), "OMP_NUM_THREADS": str(threads)}

    async def run(self, program: str, *arguments: object, hasty: bool = False) -> dict[str, Any]:
        """Run a command to its end and return its answer.

        Args:
            program: `genkd-node` or `genkd-coordinator`.
            *arguments: Its arguments.
            hasty: It ends soon, and is not ended before: it would leave something behind.

        Raises:
            DemoFailed: If it fails.
        """
        return await (await self.start(program, *arguments, hasty=hasty)).answer()

    async def start(self, program: str, *arguments: object, hasty: bool = False) -> Service:
        """Start a command; as `run`."""
        words = [str(one) for one in arguments]
        shown = shlex.join([program, *words]).replace(f"{self.folder}/", "")
        self.tell(f"$ {shown}")
        process = await asyncio.create_subprocess_exec(
            Path(sys.executable).parent / program,
            *words,
            "--json",
            cwd=self.folder,
            env=self._environment,
            stdin=DEVNULL,
            stdout=PIPE,
            stderr=PIPE,
            limit=MAX_LINE_BYTES,
            # Ctrl-C is for the demo, which ends its processes in order.
            start_new_session=True,
            preexec_fn=_end_with_demo,
        )
        service = Service(self, shown, process, hasty)
        self.processes.began(service)
        return service

    def tell(self, line: str) -> None:
        """Say a line in this party's name."""
        self.write(line)
        self._narrator.tell(self.name, line)

    def hear(self, line: str) -> None:
        """Pass on what one of its processes said; of progress, a line now and then."""
        self.write(line)
        if PROGRESS.search(line):
            now = time.monotonic()
            if now - self._last_progress < SECONDS_BETWEEN_PROGRESS:
                return
            self._last_progress = now
        if line:
            self._narrator.tell(self.name, line)

    def write(self, line: str) -> None:
        """Add a line to this party's log."""
        with (self.folder / LOG).open("a", encoding="utf-8") as log:
            log.write(f"{time.strftime('%H:%M:%S')} {line}\n")
