"""The store: each release once, rounds only forward, one clear error whatever is wrong with it."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from coordinator.store import MAX_REFUSED, STORE_NAME, RoundState, Store, Submission
from coordinator.store_file import PAGE, StoreFile
from genkd.errors import (
    ConfigurationError,
    GenKDError,
    InputFileRefused,
    ResourceExhausted,
    Stopped,
)

ROOT = Path(__file__).parents[2]
RUN, OTHER_RUN = b"r" * 32, b"o" * 32


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "federation") as opened:
        opened.begin_round(RUN, 1)
        yield opened


def submission(number: int = 0, **changes: object) -> Submission:
    one = Submission(
        run_id=RUN,
        round=1,
        content_hash=number.to_bytes(32, "big"),
        record_id=(1000 + number).to_bytes(32, "big"),
        node=f"0x{number:040x}",
        sender=2**64 - 1 - number,  # beyond what SQLite's integers hold
        accepted=False,
        reason="",
        received_at=1_800_000_000,
        size=10,
        architecture="resnet8-half",
        norm=0.125,
    )
    return replace(one, **changes)  # type: ignore[arg-type]


def placed(store: Store, number: int = 0) -> Submission:
    return submission(number, path=store.folder / "releases" / f"student-{number}")


def nothing() -> None:
    pass


def test_what_was_accepted_is_there_when_it_is_opened_again(store: Store) -> None:
    accepted = store.accept(placed(store), nothing)
    store.close()
    with Store.open(store.folder) as again:
        assert list(again.accepted(RUN, 1)) == [accepted]
        assert accepted == replace(placed(store), accepted=True)


def test_a_moved_federation_folder_finds_its_releases(store: Store, tmp_path: Path) -> None:
    store.accept(placed(store), nothing)
    store.close()
    moved = (tmp_path / "federation").rename(tmp_path / "elsewhere")
    with Store.open(moved) as again:
        (found,) = again.accepted(RUN, 1)
        assert found.path == moved / "releases" / "student-0"


def test_the_same_record_twice_is_a_duplicate_whatever_its_other_bytes(store: Store) -> None:
    first = store.accept(placed(store), nothing)
    other_bytes = replace(placed(store), content_hash=b"x" * 32, received_at=5)
    assert store.accept(other_bytes, nothing) == replace(first, duplicate=True)
    assert len(list(store.submissions(RUN, 1))) == 1


def test_a_second_release_of_a_node_in_a_round_is_refused(store: Store) -> None:
    first = store.accept(placed(store), nothing)
    moved: list[str] = []
    second = replace(placed(store, 1), node=first.node)
    refused = store.accept(second, lambda: moved.append("moved"))
    assert not refused.accepted
    assert refused.reason.startswith("its node has another release in this round: 0x")
    assert not moved
    store.begin_round(RUN, 2)
    assert store.accept(replace(second, round=2), nothing).accepted  # another round, another chance


@pytest.mark.parametrize("state", list(RoundState)[1:])
def test_a_round_that_is_no_longer_collecting_takes_nothing(
    store: Store, state: RoundState
) -> None:
    first = store.accept(placed(store), nothing)
    store.advance(RUN, 1, state)
    refused = store.accept(placed(store, 1), nothing)
    assert (refused.accepted, refused.reason) == (
        False,
        f"round 1 is {state.value}: it takes no releases",
    )
    assert store.accept(placed(store), nothing) == replace(first, duplicate=True)


def test_a_round_that_has_not_begun_takes_nothing(store: Store) -> None:
    refused = store.accept(replace(placed(store), round=7), nothing)
    assert refused.reason == "round 7 has not begun: it takes no releases"


def test_when_the_files_cannot_be_moved_nothing_is_accepted(store: Store) -> None:
    def fail() -> None:
        raise ResourceExhausted("no space", hint="")

    with pytest.raises(ResourceExhausted):
        store.accept(placed(store), fail)
    assert list(store.submissions(RUN, 1)) == []
    assert store.accept(placed(store), nothing).accepted


def test_a_refusal_gives_way_to_an_acceptance_of_the_same_bytes_and_never_the_reverse(
    store: Store,
) -> None:
    store.refuse(submission(reason="its node is not enrolled"))
    accepted = store.accept(placed(store), nothing)
    assert list(store.submissions(RUN, 1)) == [accepted]
    assert store.refuse(submission(reason="late")) == replace(accepted, duplicate=True)
    assert list(store.accepted(RUN, 1)) == [accepted]


def test_what_is_withdrawn_counts_no_longer_and_leaves_its_place_to_another(store: Store) -> None:
    first = store.accept(placed(store), nothing)
    assert store.withdraw(first.record_id, "out of proportion")
    (kept,) = store.submissions(RUN, 1)
    assert (kept.accepted, kept.reason, kept.path) == (False, "out of proportion", None)
    assert not store.withdraw(first.record_id, "again")
    assert store.accept(replace(placed(store, 1), node=first.node), nothing).accepted


def test_nothing_is_withdrawn_from_a_round_that_has_closed(store: Store) -> None:
    first = store.accept(placed(store), nothing)
    store.advance(RUN, 1, RoundState.MERGED)
    assert not store.withdraw(first.record_id, "too late")
    assert list(store.accepted(RUN, 1)) == [first]


def test_a_hostile_sender_cannot_fill_the_store(store: Store) -> None:
    kept = store.accept(placed(store, 10_000), nothing)
    for number in range(MAX_REFUSED + 20):
        store.refuse(submission(number, sender=666, node="", reason="garbage"))
    rows = list(store.submissions(RUN, 1))
    assert len(rows) == MAX_REFUSED + 1
    assert rows[0] == kept
    assert rows[-1].content_hash == (MAX_REFUSED + 19).to_bytes(32, "big")  # the newest stay


def test_queries_are_read_in_pages_and_miss_nothing(store: Store) -> None:
    numbers = range(2 * PAGE + 3)
    for number in numbers:
        store.accept(placed(store, number), nothing)
    found = store.accepted(RUN, 1)
    assert next(found).record_id == submission(0).record_id
    # A row that comes while a reader is on its first page is on the reader's last one.
    store.accept(placed(store, 5000), nothing)
    rest = [one.record_id for one in found]
    assert rest == [submission(n).record_id for n in (*numbers[1:], 5000)]


# ------------------------------------------------------------------ rounds and nodes


def test_a_round_goes_forward_only_and_repeating_a_step_changes_nothing(store: Store) -> None:
    merged = store.advance(RUN, 1, RoundState.MERGED)
    assert (merged.state, merged.merged) == (RoundState.MERGED, None)
    committed = store.advance(RUN, 1, RoundState.COMMITTED)
    assert store.advance(RUN, 1, RoundState.MERGED) == committed
    assert store.begin_round(RUN, 1) == committed
    shared = store.advance(RUN, 1, RoundState.SHARED, merged=b"m" * 32, aggregate_hash=b"a" * 32)
    assert store.advance(RUN, 1, RoundState.SHARED, merged=b"m" * 32) == shared
    assert (shared.merged, shared.aggregate_hash) == (b"m" * 32, b"a" * 32)
    assert shared.merged_at is not None
    assert shared.committed_at is not None
    assert shared.shared_at is not None


def test_steps_that_were_jumped_over_have_their_times(store: Store) -> None:
    shared = store.advance(RUN, 1, RoundState.SHARED)
    assert shared.merged_at == shared.committed_at == shared.shared_at


def test_a_round_never_shares_two_merged_students(store: Store) -> None:
    store.advance(RUN, 1, RoundState.COMMITTED, merged=b"m" * 32)
    store.advance(RUN, 1, RoundState.SHARED, merged=b"n" * 32)  # a parent was revoked meanwhile
    with pytest.raises(ConfigurationError, match="has shared another merged student already"):
        store.advance(RUN, 1, RoundState.SHARED, merged=b"m" * 32)
    found = store.round(RUN, 1)
    assert found is not None
    assert found.merged == b"n" * 32


def test_a_round_that_has_not_begun_cannot_advance(store: Store) -> None:
    with pytest.raises(ConfigurationError, match="round 2 of this run has not begun"):
        store.advance(RUN, 2, RoundState.MERGED)


def test_rounds_are_told_apart_by_run(store: Store) -> None:
    store.begin_round(OTHER_RUN, 1)
    assert [one.run_id for one in store.rounds()] == [RUN, OTHER_RUN]
    assert [one.run_id for one in store.rounds(OTHER_RUN)] == [OTHER_RUN]
    assert store.round(OTHER_RUN, 2) is None


def test_the_newest_sight_of_a_node_counts(store: Store) -> None:
    store.saw("0xA", 2**64 - 1, 100)
    store.saw("0xA", 3, 300)
    store.saw("0xA", 2, 200)
    assert [(one.node, one.sender, one.last_seen) for one in store.nodes()] == [("0xA", 3, 300)]


# ------------------------------------------------------------------ several processes, kills


def test_another_process_reads_while_one_writes(store: Store) -> None:
    def read_from_outside() -> None:
        script = (
            "import sys; from pathlib import Path; from coordinator.store import Store\n"
            "with Store.open(Path(sys.argv[1])) as store:\n"
            f"    print(len(list(store.accepted({RUN!r}, 1))))"
        )
        done = subprocess.run(
            [sys.executable, "-c", script, str(store.folder)],
            capture_output=True,
            text=True,
            cwd=ROOT,
            check=False,
        )
        assert (done.stdout.strip(), done.stderr) == ("1", "")

    store.accept(placed(store), nothing)
    store.accept(placed(store, 1), read_from_outside)  # in the middle of a transaction


def test_a_store_that_another_process_keeps_locked_is_one_clear_error(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coordinator.store_file.SECONDS_FOR_OTHERS", 0.05)
    with Store.open(store.folder) as other:

        def write_too() -> None:
            with pytest.raises(Stopped, match=r"store\.sqlite is in use by another process"):
                other.saw("0xA", 1, 1)

        store.accept(placed(store), write_too)


KILLED_WRITER = """
import os, signal, sys
from pathlib import Path
from tests.coordinator.test_store import RUN, placed
from coordinator.store import Store

with Store.open(Path(sys.argv[1])) as store:
    store.accept(placed(store, 1), lambda: None)
    store.accept(placed(store, 2), lambda: os.kill(os.getpid(), signal.SIGKILL))
"""


def test_a_writer_killed_in_the_middle_leaves_all_of_what_it_finished_and_nothing_else(
    store: Store,
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED_WRITER, str(store.folder)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    with Store.open(store.folder) as again:
        assert [one.record_id for one in again.submissions(RUN, 1)] == [submission(1).record_id]
        assert again.accept(placed(again, 2), nothing).accepted


# ------------------------------------------------------------------ what is wrong with the file


def damage(path: Path) -> None:
    path.write_bytes(b"\x00" * 4096)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5000])


def scribble(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[4096 : 4096 + 2000] = b"\xff" * 2000
    path.write_bytes(bytes(data))


def no_database(path: Path) -> None:
    path.write_text("this is no database, whatever it is called; " * 50)


def newer(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()


def of_another_program(path: Path) -> None:
    path.unlink()
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE bookmarks (url TEXT)")
    connection.close()


@pytest.mark.parametrize(
    ("harm", "kind", "message"),
    [
        (damage, InputFileRefused, "is damaged"),
        (cut, InputFileRefused, "is damaged"),
        (scribble, InputFileRefused, "is damaged"),
        (no_database, InputFileRefused, "is damaged, or is not a coordinator's store"),
        (newer, ConfigurationError, "was written by another version"),
        (of_another_program, ConfigurationError, "was written by another version"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_a_store_that_is_not_in_order_is_one_line_and_stays_as_it_is(
    store: Store, harm: object, kind: type[GenKDError], message: str
) -> None:
    for number in range(30):
        store.accept(placed(store, number), nothing)
    store.close()
    path = store.folder / STORE_NAME
    harm(path)  # type: ignore[operator]
    before = path.read_bytes()
    with pytest.raises(kind) as caught:
        Store.open(store.folder)
    assert message in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.hint
    assert path.read_bytes() == before


def test_a_folder_in_place_of_the_store_is_one_line(tmp_path: Path) -> None:
    (tmp_path / STORE_NAME).mkdir()
    with pytest.raises(ResourceExhausted, match="cannot be opened or written"):
        Store.open(tmp_path)


def test_a_file_in_place_of_the_federation_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "federation").write_text("")
    with pytest.raises(ResourceExhausted, match="federation cannot be written"):
        Store.open(tmp_path / "federation")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_is_one_line(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(ResourceExhausted):
            Store.open(tmp_path)
    finally:
        tmp_path.chmod(0o700)


def test_a_full_disk_is_one_line_and_nothing_half_written(store: Store) -> None:
    """SQLite's own bound on the file's size ends in the same error as a full disk."""
    first = store.accept(placed(store), nothing)
    file = store._file
    pages = file.execute("PRAGMA page_count")[0][0]
    file.execute(f"PRAGMA max_page_count = {pages}")

    def fill() -> None:
        for number in range(1, 200):
            store.refuse(submission(number, reason="x" * 300, sender=number))

    with pytest.raises(ResourceExhausted, match="cannot be written: no space left") as caught:
        fill()
    assert "repeat the same command" in caught.value.hint
    file.execute("PRAGMA max_page_count = 1000000")
    assert store.accept(placed(store, 999), nothing).accepted
    assert next(store.accepted(RUN, 1)) == first


def test_two_that_open_a_new_store_at_once_agree(tmp_path: Path) -> None:
    def opened(path: Path) -> int:
        with StoreFile.open(path, "CREATE TABLE t (id INTEGER)", 1) as file:
            return int(file.execute("SELECT count(*) FROM t")[0][0])

    with ThreadPoolExecutor(8) as pool:
        for new in range(20):  # one alone hides a race most of the time
            assert list(pool.map(opened, [tmp_path / str(new)] * 16)) == [0] * 16
