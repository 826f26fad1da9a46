"""What the coordinator keeps of joins, and what it asks of the SuperLink for them."""

from __future__ import annotations

import itertools
import multiprocessing
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from contracts.enrolment import JoinRequest
from coordinator import joins as joins_module
from coordinator import supernodes
from coordinator.joins import Join, Joins, LetIn, TooManyJoins
from coordinator.superlink import SuperNode
from genkd.errors import ConfigurationError, CoordinatorUnreachable, ResourceExhausted
from tests.coordinator.enrolment_server import CARD, keys_of, supernode_key

ALICE, BOB = keys_of(0xA11CE), keys_of(0xB0B)
AUTHORITY = bytes(32)


def request(keys=ALICE, key: str | None = None) -> JoinRequest:  # type: ignore[no-untyped-def]
    return JoinRequest.make(keys, key or supernode_key(), CARD.domain, AUTHORITY)


@dataclass
class SuperLink:
    """In memory, with Flower's rule: a key that was unregistered is never taken again."""

    nodes: list[SuperNode] = field(default_factory=list)
    used: set[bytes] = field(default_factory=set)
    up: bool = True
    numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(2**63))

    def list(self, _folder: Path) -> list[SuperNode]:
        if not self.up:
            raise CoordinatorUnreachable("it is down", hint="start it")
        return list(self.nodes)

    def register(self, _folder: Path, key: bytes, name: str) -> int:
        if key in self.used:
            raise ConfigurationError("refused", hint="another key")
        self.used.add(key)
        self.nodes.append(SuperNode(next(self.numbers), key, name, False, None))
        return self.nodes[-1].node_id

    def unregister(self, _folder: Path, key: bytes) -> bool:
        self.nodes = [node for node in self.nodes if node.public_key != key]
        return True

    def names(self) -> list[str]:
        return [node.name for node in self.nodes]

    def keys(self) -> list[str]:
        return [node.public_key.decode() for node in self.nodes]


@pytest.fixture
def superlink(monkeypatch: pytest.MonkeyPatch) -> SuperLink:
    fake = SuperLink()
    monkeypatch.setattr(supernodes, "list_supernodes", fake.list)
    monkeypatch.setattr(supernodes, "register_supernode", fake.register)
    monkeypatch.setattr(supernodes, "unregister_supernode", fake.unregister)
    return fake


@pytest.fixture
def joins(tmp_path: Path) -> Joins:
    return Joins(tmp_path)


def line_up(joins: Joins) -> dict[str, str]:
    return supernodes.bring_in_line(joins.folder.parent, joins)


def state(joins: Joins) -> str | None:
    answer = joins.answer(ALICE.address)
    return answer.state if answer else None


def test_a_request_waits_for_a_person(joins: Joins, superlink: SuperLink) -> None:
    assert joins.answer(ALICE.address) is None
    assert joins.receive(request()).state == "pending"
    assert line_up(joins) == {}
    assert superlink.nodes == []


def test_a_node_is_told_that_it_is_admitted_once_its_supernode_can_connect(
    joins: Joins, superlink: SuperLink
) -> None:
    asked = request()
    joins.receive(asked)
    joins.decide(ALICE.address, "admitted")
    assert state(joins) == "pending"
    line_up(joins)
    assert state(joins) == "admitted"
    assert superlink.keys() == [asked.supernode_key]
    assert joins.supernodes() == {superlink.nodes[0].node_id: ALICE.address}


def test_the_same_request_again_changes_nothing(joins: Joins, superlink: SuperLink) -> None:
    asked = request()
    joins.receive(asked)
    joins.decide(ALICE.address, "admitted")
    line_up(joins)
    before = joins.get(ALICE.address)
    assert joins.receive(asked).state == "admitted"
    assert joins.get(ALICE.address) == before


def admitted(joins: Joins, keys=ALICE) -> JoinRequest:  # type: ignore[no-untyped-def]
    asked = request(keys)
    joins.receive(asked)
    joins.decide(keys.address, "admitted")
    line_up(joins)
    return asked


def test_another_supernode_key_waits_again_while_the_admitted_one_goes_on(
    joins: Joins, superlink: SuperLink
) -> None:
    first = admitted(joins)
    second = request()
    assert joins.receive(second).state == "pending"
    line_up(joins)
    assert superlink.keys() == [first.supernode_key]
    joins.decide(ALICE.address, "admitted")
    line_up(joins)
    assert superlink.keys() == [second.supernode_key]
    assert state(joins) == "admitted"


def test_going_back_to_the_admitted_key_needs_nobody(joins: Joins, superlink: SuperLink) -> None:
    first = admitted(joins)
    joins.receive(request())
    assert joins.receive(first).state == "admitted"
    line_up(joins)
    assert superlink.keys() == [first.supernode_key]


def test_a_key_that_was_shut_out_is_not_taken_again_and_the_node_is_told(
    joins: Joins, superlink: SuperLink
) -> None:
    first = admitted(joins)
    second = request()
    joins.receive(second)
    joins.decide(ALICE.address, "admitted")
    line_up(joins)
    joins.receive(first)
    joins.decide(ALICE.address, "admitted")
    assert list(line_up(joins)) == [ALICE.address]
    answer = joins.answer(ALICE.address)
    assert answer is not None
    assert answer.state == "pending"
    assert "supernode.key" in answer.reason
    assert superlink.keys() == [second.supernode_key], "what it had goes on"
    assert line_up(joins) == {}


def test_a_removed_node_is_disconnected_and_stays_out(joins: Joins, superlink: SuperLink) -> None:
    asked = admitted(joins)
    joins.decide(ALICE.address, "refused", "removed")
    line_up(joins)
    assert superlink.nodes == []
    for again in (asked, request()):
        answer = joins.receive(again)
        assert (answer.state, answer.reason) == ("refused", "removed")
    line_up(joins)
    assert superlink.nodes == []


def test_a_removal_while_the_superlink_is_down_is_made_good(
    joins: Joins, superlink: SuperLink
) -> None:
    admitted(joins)
    superlink.up = False
    joins.decide(ALICE.address, "refused")
    with pytest.raises(CoordinatorUnreachable):
        line_up(joins)
    superlink.up = True
    line_up(joins)
    assert superlink.nodes == []


def test_two_that_admit_at_once_ask_the_superlink_for_each_key_once(
    joins: Joins, superlink: SuperLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = []

    def register(folder: Path, key: bytes, name: str) -> int:
        time.sleep(0.05)  # a question to a real SuperLink
        if key in superlink.used:
            refused.append(name)
        return superlink.register(folder, key, name)

    monkeypatch.setattr(supernodes, "register_supernode", register)
    for keys in (ALICE, BOB):
        joins.receive(request(keys))
        joins.decide(keys.address, "admitted")
    with ThreadPoolExecutor(4) as pool:
        problems = list(pool.map(line_up, [joins] * 4))
    assert problems == [{}] * 4
    assert refused == []
    assert sorted(superlink.names()) == sorted([ALICE.address, BOB.address])


def test_a_kill_between_registering_and_noting_it_is_made_good(
    joins: Joins, superlink: SuperLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = request()
    joins.receive(asked)
    joins.decide(ALICE.address, "admitted")
    with monkeypatch.context() as patch:
        patch.setattr(Joins, "let_in", killed)
        with pytest.raises(KeyboardInterrupt):
            line_up(joins)
    line_up(joins)
    assert superlink.keys() == [asked.supernode_key]
    assert state(joins) == "admitted"


def test_a_kill_between_registering_and_a_removal_leaves_no_supernode(
    joins: Joins, superlink: SuperLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    joins.receive(request())
    joins.decide(ALICE.address, "admitted")
    with monkeypatch.context() as patch:
        patch.setattr(Joins, "let_in", killed)
        with pytest.raises(KeyboardInterrupt):
            line_up(joins)
    joins.decide(ALICE.address, "refused")
    line_up(joins)
    assert superlink.nodes == []


def killed(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_lost_database_of_the_superlink_is_filled_again(
    joins: Joins, superlink: SuperLink
) -> None:
    asked = admitted(joins)
    superlink.nodes.clear()
    superlink.used.clear()
    line_up(joins)
    assert superlink.keys() == [asked.supernode_key]
    assert joins.supernodes() == {superlink.nodes[0].node_id: ALICE.address}


def test_lost_joins_shut_nobody_out(joins: Joins, superlink: SuperLink) -> None:
    """A key that is shut out never comes back: what is not known to be refused is left alone."""
    admitted(joins)
    (joins.folder / f"{ALICE.address}.json").unlink()
    line_up(joins)
    assert superlink.names() == [ALICE.address]


def test_nobody_gets_another_nodes_supernode(joins: Joins, superlink: SuperLink) -> None:
    first = admitted(joins)
    joins.receive(request(BOB, first.supernode_key))
    joins.decide(BOB.address, "admitted")
    assert list(line_up(joins)) == [BOB.address]
    assert superlink.names() == [ALICE.address]
    assert state(joins) == "admitted"


def test_what_is_kept_survives_a_restart(joins: Joins, superlink: SuperLink) -> None:
    admitted(joins)
    again = Joins(joins.folder.parent)
    assert again.all() == joins.all()
    assert all(Join.from_bytes(join.to_bytes()) == join for join in again.all())
    assert isinstance(again.all()[0].supernode, LetIn)


# --- bounds ---


def fill(joins: Joins, count: int) -> list[str]:
    """Undecided requests, by writing their files: a signature takes too long for many."""
    joins.receive(request())
    text = (joins.folder / f"{ALICE.address}.json").read_text()
    addresses = [f"0x{number:040d}" for number in range(count - 1)]
    for address in addresses:
        (joins.folder / f"{address}.json").write_text(text.replace(ALICE.address, address))
    return addresses


def test_strangers_cannot_fill_the_disk(joins: Joins, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joins_module, "MAX_UNDECIDED", 20)
    fill(joins, 20)
    for _ in range(3):
        with pytest.raises(TooManyJoins):
            joins.receive(request(keys_of(0xBAD)))
    assert len(joins.all()) == 20
    assert joins.receive(request()).state == "pending", "who is known may still ask"


def test_a_node_that_was_admitted_first_gets_in_past_a_flood(
    joins: Joins, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(joins_module, "MAX_UNDECIDED", 20)
    joins.decide(BOB.address, "admitted")
    assert joins.answer(BOB.address) is None
    fill(joins, 20)
    assert joins.receive(request(BOB)).state == "pending"


def test_undecided_requests_of_long_ago_make_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(joins_module, "MAX_UNDECIDED", 20)
    times = [0.0]
    joins = Joins(tmp_path, clock=lambda: times[0])
    fill(joins, 20)
    joins.decide(f"0x{0:040d}", "refused")
    times[0] += joins_module.UNDECIDED_SECONDS + 1
    assert joins.receive(request(BOB)).state == "pending"
    assert len(joins.all()) == 2, "a decision is kept"


def test_admitted_nodes_do_not_count_as_waiting(
    joins: Joins, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(joins_module, "MAX_UNDECIDED", 20)
    for address in fill(joins, 20):
        joins.decide(address, "admitted")
    assert joins.receive(request(BOB)).state == "pending"


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"v":1}', "[" * 100_000, '{"v":2}'])
def test_a_damaged_file_is_named(joins: Joins, text: str) -> None:
    (joins.folder / f"{ALICE.address}.json").write_text(text)
    with pytest.raises(ConfigurationError, match=ALICE.address):
        joins.all()


def test_a_file_of_another_node_is_not_believed(joins: Joins) -> None:
    joins.receive(request())
    path = joins.folder / f"{ALICE.address}.json"
    path.rename(joins.folder / f"{BOB.address}.json")
    with pytest.raises(ConfigurationError):
        joins.get(BOB.address)


@pytest.mark.parametrize("address", ["../ca", "0x12", "", f"../{ALICE.address}"])
def test_only_an_address_names_a_file(joins: Joins, address: str) -> None:
    with pytest.raises(ValueError, match="address"):
        joins.get(address)


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "joins").write_text("in the way")
    with pytest.raises(ResourceExhausted):
        Joins(tmp_path)


def decide_often(folder: str) -> None:
    joins = Joins(Path(folder))
    for _ in range(50):
        joins.decide(ALICE.address, "admitted")


def test_a_decision_is_not_lost_to_a_request_of_the_same_moment(joins: Joins) -> None:
    """`admit` decides in one process while `serve` takes requests in another."""
    joins.receive(asked := request())
    other = multiprocessing.get_context("spawn").Process(
        target=decide_often, args=(str(joins.folder.parent),)
    )
    other.start()
    numbers = itertools.count(1)
    while other.is_alive():
        joins.let_in(ALICE.address, LetIn(asked.supernode_key, next(numbers)))
    other.join()
    assert other.exitcode == 0
    join = joins.get(ALICE.address)
    assert join is not None
    assert (join.state, join.supernode) == (
        "admitted",
        LetIn(asked.supernode_key, next(numbers) - 1),
    )
