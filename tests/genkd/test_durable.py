"""A durable file is the old one or the new one, never torn, and never readable too early."""

import errno
import multiprocessing
import os
import signal
import stat
import time
from pathlib import Path

import pytest

from genkd.durable import TEMPORARY_PREFIX, atomic_write
from genkd.errors import ResourceExhausted


def test_new_file_holds_the_bytes_with_the_mode_asked_for(tmp_path: Path) -> None:
    target = tmp_path / "key"
    before = os.umask(0o077)
    try:
        atomic_write(target, b"secret", mode=0o640)
    finally:
        os.umask(before)
    assert target.read_bytes() == b"secret"
    assert stat.S_IMODE(target.stat().st_mode) == 0o640


def test_old_file_is_replaced_and_nothing_else_is_left(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_bytes(b"old")
    atomic_write(target, memoryview(b"new"))
    assert target.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["file"]


def test_file_is_flushed_before_it_is_renamed_and_the_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    fsync, replace = os.fsync, os.replace

    def watch_fsync(descriptor: int) -> None:
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        steps.append("flush folder" if is_folder else "flush file")
        fsync(descriptor)

    def watch_replace(source: str, target: Path) -> None:
        steps.append("replace")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", watch_fsync)
    monkeypatch.setattr(os, "replace", watch_replace)
    atomic_write(tmp_path / "file", b"new")
    assert steps == ["flush file", "replace", "flush folder"]


def test_secret_is_never_readable_by_others_while_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    fchmod = os.fchmod

    def watch(descriptor: int, mode: int) -> None:
        seen.append(stat.S_IMODE(os.fstat(descriptor).st_mode))
        fchmod(descriptor, mode)

    monkeypatch.setattr(os, "fchmod", watch)
    atomic_write(tmp_path / "key", b"secret", mode=0o600)
    assert seen == [0o600]


def test_link_is_replaced_and_its_target_untouched(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(b"theirs")
    link = tmp_path / "link"
    link.symlink_to(other)
    atomic_write(link, b"mine")
    assert other.read_bytes() == b"theirs"
    assert not link.is_symlink()


@pytest.mark.parametrize("failing", ["fsync", "replace", "fchmod"])
@pytest.mark.parametrize(
    ("code", "hint"),
    [
        (errno.ENOSPC, "free some disk space"),
        (errno.EDQUOT, "free some disk space"),
        (errno.EROFS, "choose a folder you may write to"),
        (errno.EIO, "check the disk"),
    ],
    ids=lambda value: errno.errorcode[value] if isinstance(value, int) else "",
)
def test_failure_at_any_step_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str, code: int, hint: str
) -> None:
    target = tmp_path / "file"
    target.write_bytes(b"old")

    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, failing, fail)
    with pytest.raises(ResourceExhausted) as caught:
        atomic_write(target, b"new")
    assert hint in caught.value.hint
    assert "\n" not in str(caught.value)
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_ctrl_c_leaves_no_temporary_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        atomic_write(tmp_path / "file", b"new")
    assert os.listdir(tmp_path) == []


def test_missing_folder_is_said(tmp_path: Path) -> None:
    with pytest.raises(ResourceExhausted, match="No such file or directory") as caught:
        atomic_write(tmp_path / "no" / "file", b"x")
    assert "create the folder" in caught.value.hint


def test_folder_in_place_of_the_file_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").mkdir()
    with pytest.raises(ResourceExhausted, match="directory"):
        atomic_write(tmp_path / "file", b"x")
    assert os.listdir(tmp_path) == ["file"]


def _rewrite_forever(target: Path) -> None:
    while True:
        for letter in (b"a", b"b"):
            atomic_write(target, letter * 300_000)


def test_kill_at_any_instant_leaves_one_whole_version(tmp_path: Path) -> None:
    target = tmp_path / "file"
    atomic_write(target, b"a" * 300_000)
    for delay in (0.005, 0.011, 0.017, 0.023):
        writer = multiprocessing.get_context("fork").Process(
            target=_rewrite_forever, args=(target,)
        )
        writer.start()
        time.sleep(delay)
        assert writer.pid is not None
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        assert target.read_bytes() in (b"a" * 300_000, b"b" * 300_000)
    leftovers = [name for name in os.listdir(tmp_path) if name != "file"]
    assert all(name.startswith(TEMPORARY_PREFIX) for name in leftovers)
