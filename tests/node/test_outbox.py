"""Only a node's own releases leave it, whole, and only those that its owner allows."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from genkd.errors import InputFileRefused, RefusedByPolicy
from genkd.provenance.record import run_id_of
from genkd.provenance.typed_data import Domain
from node.outbox import FoundRelease, find_release, read_outgoing, release_directory
from node.policy import Policy
from tests.federation.memory_federation import (
    MemberNode,
    MemoryFederation,
    files_of,
    in_memory,
    model_file,
    receipt_of,
)


@pytest.fixture
def members(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MemoryFederation:
    return in_memory(tmp_path, monkeypatch)


@pytest.fixture
def node(members: MemoryFederation) -> MemberNode:
    return members.nodes[0]


def find(node: MemberNode, round_number: int = 1) -> FoundRelease | None:
    policy = Policy.load(node.membership)
    return find_release(policy, node.chain.domain, node.run_id, round_number)


def test_the_release_of_the_round_is_found_and_read_whole(node: MemberNode) -> None:
    node.publish(round_number=2)
    release = node.publish()
    found = find(node)
    assert found is not None
    assert (found.path, found.record_id) == (release, receipt_of(release).record_id())
    assert read_outgoing(found, Policy.load(node.membership)) == files_of(release)
    assert release_directory(Policy.load(node.membership), found.record_id) == release


def test_the_newest_counts_whatever_order_they_lie_in(node: MemberNode) -> None:
    deadline = receipt_of(node.publish()).record.deadline
    newest = node.publish(deadline=deadline + 9)
    node.publish(deadline=deadline + 5)
    found = find(node)
    assert found is not None
    assert found.path == newest


def elsewhere(node: MemberNode, release: Path) -> None:
    shutil.move(release.parents[1], node.folder)


def unfinished(node: MemberNode, release: Path) -> None:
    release.rename(release.parent / ".writing-x")


def renamed(node: MemberNode, release: Path) -> None:
    release.rename(release.parent / "student-0x12")


def no_receipt(node: MemberNode, release: Path) -> None:
    (release / "receipt.json").unlink()


def torn_receipt(node: MemberNode, release: Path) -> None:
    (release / "receipt.json").write_bytes((release / "receipt.json").read_bytes()[:-1])


def linked_receipt(node: MemberNode, release: Path) -> None:
    (release / "receipt.json").rename(node.folder / "r")
    (release / "receipt.json").symlink_to(node.folder / "r")


@pytest.mark.parametrize(
    "hide", [elsewhere, unfinished, renamed, no_receipt, torn_receipt, linked_receipt]
)
def test_what_is_no_finished_release_is_not_found(
    hide: Callable[[MemberNode, Path], None], node: MemberNode
) -> None:
    hide(node, node.publish())
    assert find(node) is None


def test_releases_of_others_are_not_found(members: MemoryFederation, node: MemberNode) -> None:
    other = members.nodes[1]
    other.sign(node.runs / "run-x" / "release")
    node.publish(domain=Domain(5, node.chain.domain.contract))
    node.publish(run_id=run_id_of("autumn"))
    assert find(node) is None
    other_run = run_id_of("autumn")
    with pytest.raises(RefusedByPolicy, match="no part in the run"):
        find_release(Policy.load(node.membership), node.chain.domain, other_run, 1)


def test_a_release_past_its_deadline_is_kept_back_unless_it_is_recorded(node: MemberNode) -> None:
    release = node.publish(deadline=node.chain.now + 3600)  # the chain's clock is years behind
    with pytest.raises(RefusedByPolicy, match="deadline"):
        find(node)
    node.register(release)
    assert find(node) is not None


def flip(name: str) -> Callable[[Path], None]:
    def apply(release: Path) -> None:
        data = bytearray((release / name).read_bytes())
        data[-2] ^= 1
        (release / name).write_bytes(bytes(data))

    return apply


@pytest.mark.parametrize(
    "spoil",
    [
        flip("student.safetensors"),
        flip("provenance.json"),
        flip("model.sig"),
        lambda release: (release / "student.safetensors").write_bytes(model_file(99)),
        lambda release: (release / "model.sig").unlink(),
        lambda release: (release / "notes.txt").write_text("mine"),
        lambda release: (release / "student.safetensors").write_bytes(b""),
        shutil.rmtree,
    ],
    ids=["student", "statement", "bundle", "exchanged", "unsigned", "fifth", "empty", "removed"],
)
def test_what_was_changed_since_it_was_signed_stays_here(
    spoil: Callable[[Path], object], node: MemberNode
) -> None:
    release = node.publish()
    found = find(node)
    assert found is not None
    spoil(release)
    with pytest.raises(InputFileRefused):
        read_outgoing(found, Policy.load(node.membership))


def test_a_release_larger_than_the_owner_allows_stays_here(node: MemberNode) -> None:
    release = node.publish()
    found = find(node)
    assert found is not None
    size = sum(map(len, files_of(release).values()))
    policy = Policy.load(node.membership)
    assert read_outgoing(found, replace(policy, max_release_bytes=size))
    with pytest.raises(RefusedByPolicy, match="larger than"):
        read_outgoing(found, replace(policy, max_release_bytes=size - 1))


def test_folders_that_are_not_there_hold_nothing(node: MemberNode, tmp_path: Path) -> None:
    node.write_policy(releases=[tmp_path / "nowhere"])
    assert find(node) is None
