"""`genkd-coordinator status`: what it tells of rounds and nodes, and that it changes nothing."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from contracts.enrolment import JoinRequest
from coordinator import cli, superlink
from coordinator.federation_card import note_run
from coordinator.joins import Joins
from coordinator.store import RoundState, Store, Submission
from coordinator.superlink import SuperNode
from coordinator.superlink_file import RunningSuperLink, write_superlink_file
from genkd.errors import CoordinatorUnreachable
from genkd.provenance.record import run_id_of
from tests.coordinator.enrolment_server import CARD, keys_of, supernode_key

RUN, AUTUMN = run_id_of("spring"), run_id_of("autumn")
ALICE, BOB, CAROL = (keys_of(secret).address for secret in (0xA11CE, 0xB0B, 0xCA401))
NOW = int(time.time())


@pytest.fixture
def federation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / ".config"))
    folder = tmp_path / "federation"
    folder.mkdir()
    note_run(folder, "spring")
    return folder


def submission(folder: Path, number: int, node: str, **changes: object) -> Submission:
    record_id = bytes([number]) * 32
    one = Submission(
        *(RUN, 1, bytes([number]) * 32, record_id, node, 2**63 + number, False, "", NOW - 60),
        path=folder / "releases" / f"student-{number}",
        size=1000,
    )
    return replace(one, **changes)  # type: ignore[arg-type]


@pytest.fixture
def busy(federation: Path) -> Path:
    """Round 0 is shared, round 1 collects: Alice counts, Bob is refused, somebody forges."""
    joins = Joins(federation)
    for secret, state in ((0xA11CE, "admitted"), (0xB0B, "admitted"), (0xCA401, "pending")):
        keys = keys_of(secret)
        joins.receive(JoinRequest.make(keys, supernode_key(), CARD.domain, bytes(32)))
        if state == "admitted":
            joins.decide(keys.address, "admitted")
    with Store.open(federation) as store:
        store.begin_round(RUN, 0)
        store.advance(RUN, 0, RoundState.SHARED, merged=b"m" * 32)
        store.begin_round(RUN, 1)
        store.accept(submission(federation, 1, ALICE), lambda: None)
        store.refuse(submission(federation, 2, BOB, reason="its deadline has passed"))
        forged = submission(federation, 3, "", record_id=b"", reason="check 5 failed: forged")
        store.refuse(forged)
        store.saw(ALICE, 2**63 + 1, NOW - 7200)
    return federation


@pytest.fixture
def ask(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, Any]]:
    def asked(*arguments: str) -> tuple[int, Any]:
        capsys.readouterr()
        code = cli.main(["status", *arguments, "--json"])
        value = json.loads(capsys.readouterr().out)
        return code, value["data"] if value["status"] == "ok" else value["error"]

    return asked


def test_it_tells_rounds_and_each_node_and_why_it_was_refused(
    busy: Path, ask: Callable[..., tuple[int, Any]]
) -> None:
    code, data = ask()
    assert code == 0
    assert [(r["run"], r["round"], r["state"]) for r in data["rounds"]] == [
        ("spring", 0, "shared"),
        ("spring", 1, "collecting"),
    ]
    assert data["rounds"][0]["merged"] == "0x" + "6d" * 32
    assert (data["rounds"][1]["accepted"], data["rounds"][1]["refused"]) == (1, 2)
    nodes = {one["node"]: one for one in data["nodes"]}
    assert {node: one["join"] for node, one in nodes.items()} == {
        **{ALICE: "admitted", BOB: "admitted"},
        CAROL: "pending",
    }
    (accepted,) = nodes[ALICE]["submissions"]
    assert (accepted["accepted"], accepted["record_id"]) == (True, "0x" + "01" * 32)
    assert accepted["sender"] == str(2**63 + 1)
    (refused,) = nodes[BOB]["submissions"]
    assert (refused["accepted"], refused["reason"]) == (False, "its deadline has passed")
    assert nodes[ALICE]["last_seen"] == NOW - 7200
    assert (nodes[BOB]["last_seen"], nodes[CAROL]["submissions"]) == (None, [])
    assert [one["reason"] for one in data["unsigned"]] == ["check 5 failed: forged"]
    assert (data["superlink"], nodes[ALICE]["connected"]) == (None, None)


def test_people_read_the_same(busy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["status"]) == 0
    said = capsys.readouterr().err
    for line in (
        "spring, round 1: collecting since ",
        ", 1 accepted, 2 refused",
        f"merged student 0x{'6d' * 32}",
        f"{ALICE}  seen 2 h ago\n  spring, round 1: accepted 0x{'01' * 32}\n",
        f"{BOB}  never seen\n  spring, round 1: refused: its deadline has passed\n",
        f"{CAROL}  pending, never seen\n",
        f"from Flower node {2**63 + 3}, signed by nobody: spring, round 1: refused: check 5",
    ):
        assert line in said


def test_a_node_that_sent_nothing_is_said_so(
    busy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Store.open(busy) as store:
        store.begin_round(RUN, 2)
    assert cli.main(["status"]) == 0
    assert f"{BOB}  never seen\n  spring, round 2: nothing sent\n" in capsys.readouterr().err


def test_the_superlink_tells_who_is_connected(
    busy: Path, ask: Callable[..., tuple[int, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    running = RunningSuperLink("10.0.0.7:9092", "127.0.0.1:4711", 1, "ab" * 32)
    write_superlink_file(busy, running)
    there = [
        SuperNode(1, b"", ALICE, True, NOW - 5.5),
        SuperNode(2, b"", BOB, False, NOW - 600.0),
        SuperNode(3, b"", CAROL, False, None),
    ]
    monkeypatch.setattr(superlink, "list_supernodes", lambda folder: there)
    _, data = ask()
    assert data["superlink"] == "10.0.0.7:9092"
    assert [(n["node"], n["connected"], n["last_seen"]) for n in data["nodes"]] == sorted(
        [(ALICE, True, NOW - 6), (BOB, False, NOW - 600), (CAROL, False, None)]
    )
    assert "ab" * 32 not in json.dumps(data)  # the token opens the loopback listener


def test_a_superlink_that_was_killed_is_none(
    busy: Path, ask: Callable[..., tuple[int, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_superlink_file(busy, RunningSuperLink("h:1", "127.0.0.1:9", 1, "ab" * 32))

    def away(folder: Path) -> list[SuperNode]:
        raise CoordinatorUnreachable("gone", hint="")

    monkeypatch.setattr(superlink, "list_supernodes", away)
    code, data = ask()
    assert (code, data["superlink"]) == (0, None)


def test_a_run_and_a_round_can_be_asked_for(
    busy: Path, ask: Callable[..., tuple[int, Any]]
) -> None:
    with Store.open(busy) as store:
        store.begin_round(AUTUMN, 1)
        other = replace(submission(busy, 9, ALICE), run_id=AUTUMN)
        store.accept(other, lambda: None)
        store.begin_round(RUN, 2)
    _, everything = ask()
    assert {one["run"] for one in everything["rounds"]} == {"spring", None}
    _, data = ask("--run", "autumn")
    assert [(one["run"], one["round"]) for one in data["rounds"]] == [("autumn", 1)]
    alice = next(one for one in data["nodes"] if one["node"] == ALICE)
    assert [one["record_id"] for one in alice["submissions"]] == ["0x" + "09" * 32]
    _, data = ask("--run", "spring", "--round", "1")
    alice = next(one for one in data["nodes"] if one["node"] == ALICE)
    assert [one["record_id"] for one in alice["submissions"]] == ["0x" + "01" * 32]


def test_of_many_refusals_people_see_the_newest(
    busy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Store.open(busy) as store:
        for number in range(10, 16):
            store.refuse(submission(busy, number, BOB, reason=f"reason {number}"))
    assert cli.main(["status"]) == 0
    said = capsys.readouterr().err
    assert "reason 15" in said
    assert "reason 14" in said
    assert "reason 13" not in said
    assert "and 5 more refused" in said


def test_a_hostile_reason_is_shown_and_not_obeyed(
    busy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Store.open(busy) as store:
        store.refuse(submission(busy, 20, BOB, reason="\x1b[2Jgone"))
    assert cli.main(["status"]) == 0
    assert "\x1b" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--run", "winter"], "no round of this run has begun here"),
        (["--round", "7"], "no round 7 has begun here"),
    ],
)
def test_what_has_not_begun_is_a_usage_error(
    busy: Path, ask: Callable[..., tuple[int, Any]], arguments: list[str], message: str
) -> None:
    code, error = ask(*arguments)
    assert (code, error["code"], error["message"]) == (2, "usage", message)


def test_before_the_first_round_there_is_nothing_to_tell_and_nothing_is_written(
    federation: Path, ask: Callable[..., tuple[int, Any]]
) -> None:
    before = sorted(federation.rglob("*"))
    code, data = ask()
    assert code == 0
    assert data == {"superlink": None, "rounds": [], "nodes": [], "unsigned": []}
    assert sorted(federation.rglob("*")) == before


def test_no_federation_is_a_configuration_error(
    federation: Path, ask: Callable[..., tuple[int, Any]]
) -> None:
    code, error = ask("--federation", "elsewhere")
    assert (code, error["code"]) == (3, "configuration")
    assert error["message"] == "there is no federation in elsewhere"
    assert not Path("elsewhere").exists()


def test_a_damaged_store_is_one_line(busy: Path, ask: Callable[..., tuple[int, Any]]) -> None:
    (busy / "store.sqlite").write_bytes(b"no database" * 1000)
    code, error = ask()
    assert (code, error["code"]) == (4, "input_file_refused")
    assert "is damaged" in error["message"]
