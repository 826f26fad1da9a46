"""The demo's processes: what they say is heard, and none is left, however they behave."""

from __future__ import annotations

import asyncio
import fcntl
import importlib
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

EXAMPLE = Path(__file__).parents[1] / "examples" / "federation"
ANSWER = """printf '{"status": "ok", "data": {"said": "%s"}}'"""


@pytest.fixture(scope="module")
def parties() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLE)
        return importlib.import_module("parties")


class Shell:
    """A party whose command lines are a shell's."""

    def __init__(self, parties: ModuleType, folder: Path) -> None:
        self.processes = parties.Processes()
        self.narrator = parties.Narrator()
        self.party = parties.Party("node-1", folder / "node-1", self.narrator, self.processes, 1)

    async def start(self, script: str, **how: bool):  # type: ignore[no-untyped-def]
        return await self.party.start("/bin/sh", "-c", script, **how)

    async def run(self, script: str) -> dict[str, object]:
        data: dict[str, object] = await self.party.run("/bin/sh", "-c", script)
        return data


@pytest.fixture
def shell(parties: ModuleType, tmp_path: Path) -> Shell:
    return Shell(parties, tmp_path)


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def await_end(pids: list[int]) -> bool:
    """Whether all are gone within seconds: somebody else must reap them."""
    deadline = time.monotonic() + 10
    while any(map(is_running, pids)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not any(map(is_running, pids))


def test_a_command_answers_what_it_prints_as_json(shell: Shell) -> None:
    assert asyncio.run(shell.run(ANSWER % "yes")) == {"said": "yes"}


@pytest.mark.parametrize(
    ("script", "told"),
    [
        (
            """printf '{"error": {"message": "no such run", "hint": "open it"}}'; exit 3""",
            r"no such run\nhint: open it",
        ),
        ("exit 70", "exit code 70"),
        ("echo nonsense", "exit code 0"),
        ("kill -KILL $$", "exit code -9"),
    ],
    ids=["error", "silent error", "nonsense", "killed"],
)
def test_a_command_that_fails_says_why_and_where_its_log_is(
    shell: Shell, parties: ModuleType, script: str, told: str
) -> None:
    with pytest.raises(parties.DemoFailed, match=told) as failed:
        asyncio.run(shell.run(script))
    assert f"log: {shell.party.folder / 'log.txt'}" in str(failed.value)


def test_lines_are_heard_as_they_come(shell: Shell) -> None:
    async def listen() -> tuple[str, bool]:
        service = await shell.start("echo 'port 4711' >&2; exec sleep 60")
        found = await service.expect(re.compile(r"port (\d+)"))
        runs = service.process.returncode is None
        await shell.processes.end_all()
        return found[1], runs

    assert asyncio.run(listen()) == ("4711", True)


def test_a_line_that_never_comes_is_a_failure_once_the_process_has_ended(
    shell: Shell, parties: ModuleType
) -> None:
    async def listen() -> None:
        service = await shell.start(f"echo something >&2; {ANSWER % ''}")
        assert await service.line(re.compile("else")) is None
        await service.expect(re.compile("else"))

    with pytest.raises(parties.DemoFailed, match="ended too early"):
        asyncio.run(listen())


def test_the_process_that_serves_the_others_ends_last(shell: Shell, tmp_path: Path) -> None:
    order = tmp_path / "order"
    script = "trap 'sleep {}; echo {} >> {}; exit' TERM; echo up >&2; while :; do sleep 0.02; done"

    async def end() -> None:
        for name, seconds in (("server", 0), ("node", 0.3)):
            service = await shell.start(script.format(seconds, name, order))
            await service.expect(re.compile("up"))
        await shell.processes.end_all()

    asyncio.run(end())
    assert order.read_text().split() == ["node", "server"]


def test_who_does_not_heed_sigterm_is_killed_and_its_children_with_it(
    shell: Shell, parties: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parties, "SECONDS_TO_END", 0.2)

    async def end() -> list[int]:
        service = await shell.start("trap '' TERM; sleep 60 & echo child $! >&2; wait; sleep 60")
        found = await service.expect(re.compile(r"child (\d+)"))
        await shell.processes.end_all()
        return [service.process.pid, int(found[1])]

    assert await_end(asyncio.run(end()))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child")
def test_a_demo_that_is_killed_takes_its_processes_with_it(tmp_path: Path) -> None:
    script = f"""
import asyncio, pathlib, sys
sys.path.insert(0, {str(EXAMPLE)!r})
from parties import *
async def main():
    party = Party("p", pathlib.Path({str(tmp_path / "p")!r}), Narrator(), Processes())
    service = await party.start("/bin/sh", "-c", "exec sleep 60")
    print(service.process.pid, flush=True)
    await service.process.wait()
asyncio.run(main())
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as demo:
        assert demo.stdout is not None
        said = [demo.stdout.readline() for _ in range(2)]  # what it starts, and the number
        demo.kill()
    pid = int(said[1])
    assert await_end([pid])


def test_what_ends_soon_by_itself_is_not_interrupted(shell: Shell, tmp_path: Path) -> None:
    async def end() -> None:
        await shell.start(f"sleep 0.3; touch {tmp_path / 'done'}", hasty=True)
        await shell.processes.end_all()

    asyncio.run(end())
    assert (tmp_path / "done").exists()


def test_a_party_sees_nothing_of_the_persons_own_settings(
    parties: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("GENKD_KEYS", "GENKD_COORDINATOR_KEYS", "XDG_CONFIG_HOME", "FLWR_HOME"):
        monkeypatch.setenv(name, "mine")
    monkeypatch.setenv("GENKD_ANVIL", "kept")
    shell = Shell(parties, tmp_path)
    asyncio.run(shell.run(f"env >&2; {ANSWER % ''}"))
    seen = shell.party.folder.joinpath("log.txt").read_text()
    assert f"HOME={shell.party.folder}\n" in seen
    assert "OMP_NUM_THREADS=1\n" in seen
    assert "GENKD_ANVIL=kept" in seen
    assert "=mine" not in seen


def test_progress_is_shown_now_and_then_and_logged_always(
    shell: Shell, capsys: pytest.CaptureFixture[str]
) -> None:
    asyncio.run(shell.run(f'for i in 1 2 3; do echo " $i%  round $i" >&2; done; {ANSWER % ""}'))
    shown = capsys.readouterr().out.partition("; done")[2]
    assert re.findall(r"\d%  round \d", shown) == ["1%  round 1"]
    logged = shell.party.folder.joinpath("log.txt").read_text()
    assert len(re.findall(r"^\d\d:\d\d:\d\d  \d%", logged, re.MULTILINE)) == 3


def test_long_names_are_shown_short_and_logged_in_full(
    shell: Shell, capsys: pytest.CaptureFixture[str]
) -> None:
    address, digest = "0x" + "Ab" * 20, "ab" * 32
    shell.narrator.names[address] = "node-1"
    shell.party.tell(f"{address} gave 0x{digest}")
    assert "node-1 gave 0xabababab..." in capsys.readouterr().out
    assert f"{address} gave 0x{digest}" in shell.party.folder.joinpath("log.txt").read_text()


def demo(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLE / "demo.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("arguments", [["--teachers", "a"], ["--split", "none"]], ids=str)
def test_the_demo_refuses_what_means_nothing(arguments: list[str], tmp_path: Path) -> None:
    assert demo("--out", tmp_path / "x", *arguments).returncode == 2
    assert not (tmp_path / "x").exists()


def test_the_demo_empties_no_folder_but_its_own(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    done = demo("--out", tmp_path)
    assert (done.returncode, list(tmp_path.iterdir())) == (1, [tmp_path / "thesis"])
    assert "is not empty, and no demo's" in done.stderr


def test_two_demos_do_not_share_a_folder(tmp_path: Path) -> None:
    (tmp_path / "demo.json").touch()
    (tmp_path / "node-1").mkdir()
    with (tmp_path / "demo.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = demo("--out", tmp_path)
    assert (done.returncode, (tmp_path / "node-1").exists()) == (1, True)
    assert "another demo runs" in done.stderr
