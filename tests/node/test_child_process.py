"""Processes that are kept: their logs are bounded, and they outlive nobody."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from node import child_process
from node.child_process import BoundedLog, ChildProcess

ROOT = Path(__file__).parents[2]
KEPT = """
import sys, time
sys.path.insert(0, {root!r})
from node.child_process import end_with_parent
end_with_parent()
{more}
print("ready", flush=True)
time.sleep(600)
"""
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)"
KEEPER = """
import sys, time
sys.path.insert(0, {root!r})
from pathlib import Path
from node.child_process import BoundedLog, ChildProcess
child = ChildProcess("x", [sys.executable, "-c", {kept!r}], {{}}, BoundedLog(Path({log!r})))
while not list(child.lines()):
    time.sleep(0.05)
print(child.pid, flush=True)
time.sleep(600)
"""


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True)
    return state.stdout.strip()[:1] not in ("", "Z")


def kept(more: str = "", seconds: float = 7.0) -> str:
    code = KEPT.format(root=str(ROOT), more=more)
    return code.replace(
        "end_with_parent()\n", f"C.SECONDS_TO_END = {seconds}\nend_with_parent()\n", 1
    ).replace("import end_with_parent", "import end_with_parent; import node.child_process as C")


def child_of(folder: Path, code: str) -> ChildProcess:
    child = ChildProcess(
        "x", [sys.executable, "-c", code], dict(os.environ), BoundedLog(folder / "x.log")
    )
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and "ready" not in list(child.lines()):
        time.sleep(0.05)
    return child


@pytest.mark.parametrize("more", ["", STUBBORN], ids=["obedient", "ignores SIGTERM"])
def test_a_child_ends_when_its_keeper_is_killed(more: str, tmp_path: Path) -> None:
    log = str(tmp_path / "x.log")
    code = KEEPER.format(root=str(ROOT), kept=kept(more, seconds=1.0), log=log)
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as keeper:
        assert keeper.stdout is not None
        pid = int(keeper.stdout.readline())
        assert alive(pid)
        keeper.kill()
        deadline = time.monotonic() + 20
        while alive(pid) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not alive(pid)


@pytest.mark.parametrize("more", ["", STUBBORN], ids=["obedient", "ignores SIGTERM"])
def test_ending_a_child_takes_no_longer_than_it_may(more: str, tmp_path: Path) -> None:
    child = child_of(tmp_path, kept(more))
    started = time.monotonic()
    child.end(seconds=1.0)
    assert time.monotonic() - started < 10
    expected = -signal.SIGKILL if more else -signal.SIGTERM
    assert child.exit_status() == expected
    assert not alive(child.pid)


def test_a_child_that_talks_while_it_ends_is_heard_to_its_end(tmp_path: Path) -> None:
    """More than a pipe holds: it would wait for a reader for ever."""
    more = (
        "import signal, sys\n"
        "def talk(*_):\n"
        "    for n in range(20000): print(chr(97 + n % 26) * 20)\n"
        "    print('the end', flush=True)\n"
        "    sys.exit(3)\n"
        "signal.signal(signal.SIGTERM, talk)"
    )
    child = child_of(tmp_path, kept(more))
    child.end(seconds=20.0)
    assert child.exit_status() == 3
    assert "the end" in child.log.path.read_text()


def test_output_is_read_by_lines_without_colours_and_control_characters_of_a_terminal(
    tmp_path: Path,
) -> None:
    code = r"print('\x1b[92mINFO\x1b[0m: up'); print('x' * 10000); print('last', end='')"
    child = ChildProcess("x", [sys.executable, "-c", code], {}, BoundedLog(tmp_path / "x.log"))
    lines: list[str] = []
    while not child.silent:
        lines += child.lines()
        time.sleep(0.01)
    child.close()
    assert lines[0] == "INFO: up"
    assert lines[-1] == "last"
    assert max(map(len, lines)) <= child_process.MAX_LINE_BYTES
    assert child.exit_status() == 0


# -- the log ---------------------------------------------------------------------------------------


def test_a_line_that_differs_only_in_numbers_is_counted_not_written(tmp_path: Path) -> None:
    log = BoundedLog(tmp_path / "log")
    for second in range(1000):
        log.write(f"attempt failed, retrying in {second}.25 seconds")
    log.write("connected")
    lines = (tmp_path / "log").read_text().splitlines()
    assert [line.split(" ", 1)[1] for line in lines] == [
        "attempt failed, retrying in 0.25 seconds",
        "(999 more like it)",
        "connected",
    ]


def test_a_log_keeps_two_files_of_bounded_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child_process, "MAX_LOG_BYTES", 1000)
    log = BoundedLog(tmp_path / "log")
    for n in range(500):
        log.write("abcdefghij"[n % 10] * 40)
    log.write("the newest")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "log.1"]
    assert all(path.stat().st_size < 1200 for path in tmp_path.iterdir())
    assert "the newest" in (tmp_path / "log").read_text()


def test_a_log_that_cannot_be_written_loses_lines_and_says_why(tmp_path: Path) -> None:
    log = BoundedLog(tmp_path / "missing" / "log")
    log.write("lost")
    assert "cannot be written" in log.fault
    (tmp_path / "missing").mkdir()
    log.write("kept")
    assert log.fault == ""
    assert log.path.read_text().endswith(" kept\n")


# -- Flower's SuperNode in such a process ----------------------------------------------------------

STOCK = """
import sys, threading, time
sys.path.insert(0, {root!r})
from node import supernode_process

class Command:
    def load(self):
        def main():
            threading.Thread(target=time.sleep, args=(600,)).start()  # as its HTTP server
            {ends}
        return main

supernode_process.entry_points = lambda **_: (Command(),)
supernode_process.main()
"""


@pytest.mark.parametrize(
    ("ends", "status"),
    [("return", 1), ("raise RuntimeError('x')", 1), ("sys.exit(0)", 0), ("sys.exit(7)", 7)],
    ids=["its loop ends", "it fails", "it is stopped", "it says why"],
)
def test_a_supernode_whose_work_is_over_ends_whatever_threads_it_has(
    ends: str, status: int
) -> None:
    code = STOCK.format(root=str(ROOT), ends=ends)
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) as process:
        assert process.wait(30) == status
