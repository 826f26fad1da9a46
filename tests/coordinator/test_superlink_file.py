"""The file that says where the SuperLink runs: what is in it, and what is not believed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from coordinator.superlink_file import (
    FILE,
    RunningSuperLink,
    find_superlink,
    remove_superlink_file,
    write_superlink_file,
)
from genkd.errors import CoordinatorUnreachable

RUNNING = RunningSuperLink("node.example:9092", "127.0.0.1:40001", 4711, "5a" * 32)


def test_what_is_written_is_found_and_only_its_owner_may_read_it(tmp_path: Path) -> None:
    write_superlink_file(tmp_path, RUNNING)
    assert find_superlink(tmp_path) == RUNNING
    assert (tmp_path / FILE).stat().st_mode & 0o777 == 0o600
    remove_superlink_file(tmp_path)
    remove_superlink_file(tmp_path)
    with pytest.raises(CoordinatorUnreachable):
        find_superlink(tmp_path)


def test_the_token_is_in_no_repr() -> None:
    assert RUNNING.token not in repr(RUNNING)
    assert RUNNING.token not in f"{RUNNING}"


def changed(**values: object) -> bytes:
    fields = {"public": "a:1", "private": "127.0.0.1:2", "pid": 1, "token": "5a" * 32}
    return json.dumps(fields | values).encode()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff",
        b"[" * 4000,
        changed(more=1),
        changed(private="10.0.0.7:80"),
        changed(private="127.0.0.1:80/x"),
        changed(private="127.0.0.1:0"),
        changed(private=1),
        changed(pid=True),
        changed(pid="1"),
        changed(token="5a"),
        changed(token="5a" * 31 + "\\n!"),
        changed(public="x" * 5000),
    ],
    ids=lambda content: content[:40].decode("ascii", "replace") or "empty",
)
def test_a_damaged_file_is_no_superlink(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(CoordinatorUnreachable, match="no SuperLink serves") as caught:
        find_superlink(tmp_path)
    assert "genkd-coordinator serve" in caught.value.hint
