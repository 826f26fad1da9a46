"""A merged student is kept if everything about it proves true, in one step; nothing else is."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from contracts.exchange import ShareRequest
from genkd.errors import (
    CannotCheck,
    GenKDError,
    InputFileRefused,
    RefusedByPolicy,
    ResourceExhausted,
    VerificationFailed,
)
from genkd.provenance import Policy as Trust
from genkd.provenance import verify
from genkd.provenance.receipt import Inclusion, Receipt
from genkd.provenance.record import Revocation, RevocationReason, run_id_of
from genkd.provenance.typed_data import Domain
from node import inbox
from node.policy import Policy
from tests.federation.memory_federation import (
    MemberNode,
    MemoryFederation,
    Signer,
    files_of,
    in_memory,
    make_federation,
    model_file,
    node_keys,
    receipt_of,
)
from tests.kill_points import Call, killed_at


@pytest.fixture
def members(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MemoryFederation:
    return in_memory(tmp_path, monkeypatch)


@dataclass
class Round:
    """A round that is ready to be shared with the first node.

    Attributes:
        members: The federation.
        releases: The nodes' releases.
        complete: Their receipts with proofs.
        merged: The merged release.
    """

    members: MemoryFederation
    releases: list[Path]
    complete: list[Receipt]
    merged: Path

    @property
    def node(self) -> MemberNode:
        return self.members.nodes[0]

    def share(self, **changes: object) -> ShareRequest:
        values = {
            "receipt": self.complete[0].to_bytes(),
            "acknowledgement": self.members.acknowledge(self.releases[0]),
        }
        request = self.members.share(self.merged, self.complete)
        return replace(request, **(values | changes))  # type: ignore[arg-type]

    def keep(self, share: ShareRequest) -> Path:
        return inbox.keep(
            share,
            self.node.membership,
            Policy.load(self.node.membership),
            self.members.domain,
            self.members.chain,
        )

    def kept(self) -> list[inbox.SharedStudent]:
        return inbox.shared_students(self.node.membership)


def play(members: MemoryFederation, round_number: int = 1, **changes: object) -> Round:
    releases = [node.publish(round_number) for node in members.nodes]
    complete = list(members.commit_round(*releases, round_number=round_number).values())
    return Round(members, releases, complete, members.merge(complete, round_number, **changes))


@pytest.fixture
def played(members: MemoryFederation) -> Round:
    return play(members)


def untouched(played: Round) -> None:
    """Nothing is kept, nothing is left over, the own receipt is the old one."""
    assert played.kept() == []
    shared = played.node.membership / "shared"
    assert [p for p in shared.rglob("*") if p.is_file() and p.name != ".inbox.lock"] == []
    assert receipt_of(played.releases[0]).inclusion is None


def test_the_start_student_has_no_parents_and_is_kept(members: MemoryFederation) -> None:
    start = members.merge([], round_number=0)
    played = Round(members, [], [], start)
    kept = played.keep(members.share(start, []))
    assert files_of(kept) == files_of(start)
    assert [one.round for one in played.kept()] == [0]


def test_rounds_are_listed_by_number_the_newest_last(members: MemoryFederation) -> None:
    students = {}
    for number in (2, 10, 1):  # a node that was away gets an old one later
        played = play(members, number)
        played.keep(played.share())
        students[number] = files_of(played.merged)["student.safetensors"]
    assert [one.round for one in played.kept()] == [1, 2, 10]
    assert [one.student.read_bytes() for one in played.kept()] == [
        students[number] for number in (1, 2, 10)
    ]


def test_the_own_receipt_becomes_the_one_with_the_proof(played: Round) -> None:
    assert receipt_of(played.releases[0]).inclusion is None
    played.keep(played.share())
    assert receipt_of(played.releases[0]) == played.complete[0]
    assert sorted(os.listdir(played.releases[0])) == sorted(files_of(played.releases[0]))


def test_a_release_that_its_owner_moved_away_is_no_obstacle(played: Round) -> None:
    share = played.share()
    shutil.rmtree(played.releases[0])
    played.keep(share)
    assert len(played.kept()) == 1


# ------------------------------------------------------------------ hostile or mistaken


def flip(data: bytes) -> bytes:
    return data[:-2] + bytes([data[-2] ^ 1]) + data[-1:]


def changed(
    label: str, name: str, change: Callable[[bytes], bytes]
) -> Callable[[Round], ShareRequest]:
    def make(played: Round) -> ShareRequest:
        files = files_of(played.merged)
        return played.share(files={**files, name: change(files[name])})

    make.__name__ = label
    return make


def unrecorded(played: Round) -> ShareRequest:
    ids = tuple(sorted(one.record_id() for one in played.complete))
    signer = played.members.coordinator
    played.merged = signer.sign(played.members.folder / "unrecorded", parents=ids)
    return played.share()


def revoked(played: Round) -> ShareRequest:
    keys = played.members.coordinator.keys
    record_id = receipt_of(played.merged).record_id()
    message = Revocation(record_id, RevocationReason.DEFECTIVE, keys.address)
    signature = keys.sign(message, played.members.domain)
    played.members.coordinator.client.revoke(message, signature)
    return played.share()


def parent_revoked(played: Round) -> ShareRequest:
    record_id = played.complete[1].record_id()
    played.members.coordinator.client.revoke_as_owner(record_id, RevocationReason.DEFECTIVE)
    return played.share()


def signed_by_a_node(played: Round) -> ShareRequest:
    """An enrolled node plays the coordinator."""
    attacker = played.members.nodes[1]
    ids = tuple(sorted(one.record_id() for one in played.complete))
    played.merged = attacker.register(attacker.sign(played.node.folder / "m", parents=ids))
    return played.share()


def signed_by_a_stranger(played: Round) -> ShareRequest:
    stranger = Signer(node_keys(0xBAD), played.members.chain, played.members.run_id)
    ids = tuple(sorted(one.record_id() for one in played.complete))
    played.merged = stranger.sign(played.node.folder / "m", parents=ids)
    return played.share()


def another_registry(played: Round) -> ShareRequest:
    other = make_federation(played.members.folder / "other")
    other.chain.domain = Domain(5, other.domain.contract)
    signer = Signer(other.coordinator.keys, other.chain, other.run_id)
    played.merged = signer.sign(played.node.folder / "m")
    return played.share(parents={})


def another_run(played: Round) -> ShareRequest:
    signer = played.members.coordinator
    signer.client.open_run(run_id_of("autumn"), signer.address, bytes(32))
    played.merged = signer.register(
        signer.sign(played.members.folder / "m", run_id=run_id_of("autumn"))
    )
    return played.share(parents={}, run_id=run_id_of("spring"))


def run_not_allowed(played: Round) -> ShareRequest:
    played.node.write_policy(runs=["autumn"])
    return played.share()


def larger_than_allowed(played: Round) -> ShareRequest:
    played.node.write_policy(max_release_bytes=100)
    return played.share()


def older_in_place_of_the_new(played: Round) -> ShareRequest:
    return played.share(round=2)


def another_nodes_receipt(played: Round) -> ShareRequest:
    return played.share(receipt=played.complete[1].to_bytes())


def receipt_with_a_false_proof(played: Round) -> ShareRequest:
    inclusion = played.complete[0].inclusion
    assert inclusion is not None
    false = Inclusion(inclusion.transaction, inclusion.block, (bytes(32),))
    return played.share(receipt=replace(played.complete[0], inclusion=false).to_bytes())


def receipt_with_another_signature(played: Round) -> ShareRequest:
    false = replace(played.complete[0], signature=played.complete[1].signature)
    return played.share(receipt=false.to_bytes())


def without_a_parent(played: Round) -> ShareRequest:
    share = played.share()
    first = next(iter(share.parents))
    return replace(share, parents={first: share.parents[first]})


def with_a_parent_too_many(played: Round) -> ShareRequest:
    more = receipt_of(played.members.nodes[1].publish(2))
    share = played.share()
    return replace(share, parents={**share.parents, more.record_id(): more.to_bytes()})


def parent_of_a_later_round(played: Round) -> ShareRequest:
    later = play(played.members, 5)
    played.merged = played.members.merge([*played.complete, later.complete[0]])
    played.complete.append(later.complete[0])
    return played.share()


def no_parent_of_its_round(played: Round) -> ShareRequest:
    """A coordinator jumps to a round that nobody took part in."""
    played.merged = played.members.merge(played.complete, 4_000_000_000)
    return played.share(acknowledgement=None)


def parent_not_recorded(played: Round) -> ShareRequest:
    bare = [receipt_of(release) for release in played.releases]
    return played.share(parents={one.record_id(): one.to_bytes() for one in bare})


def acknowledged_by_another(played: Round) -> ShareRequest:
    keys = played.members.nodes[1].keys
    return played.share(acknowledgement=played.members.acknowledge(played.releases[0], keys))


def acknowledged_for_another(played: Round) -> ShareRequest:
    return played.share(acknowledgement=played.members.acknowledge(played.releases[1]))


def not_finite() -> bytes:
    return model_file(values=np.array([1.0, np.nan], dtype="<f4"))


@pytest.mark.parametrize(
    ("attack", "error"),
    [
        (changed("a_bit_of_the_student", "student.safetensors", flip), VerificationFailed),
        (changed("truncated", "student.safetensors", lambda data: data[:-4]), VerificationFailed),
        (
            changed("only_five_bytes", "student.safetensors", lambda data: data[:5]),
            VerificationFailed,
        ),
        (changed("not_finite", "student.safetensors", lambda _: not_finite()), VerificationFailed),
        (
            changed("another_student", "student.safetensors", lambda _: model_file(9)),
            VerificationFailed,
        ),
        (changed("a_bit_of_the_statement", "provenance.json", flip), VerificationFailed),
        (changed("a_bit_of_the_signature", "model.sig", flip), VerificationFailed),
        (changed("receipt_truncated", "receipt.json", lambda data: data[:-1]), InputFileRefused),
        (unrecorded, VerificationFailed),
        (revoked, VerificationFailed),
        (parent_revoked, VerificationFailed),
        (signed_by_a_node, VerificationFailed),
        (signed_by_a_stranger, VerificationFailed),
        (another_registry, VerificationFailed),
        (another_run, InputFileRefused),
        (run_not_allowed, RefusedByPolicy),
        (larger_than_allowed, RefusedByPolicy),
        (older_in_place_of_the_new, InputFileRefused),
        (another_nodes_receipt, InputFileRefused),
        (receipt_with_a_false_proof, VerificationFailed),
        (receipt_with_another_signature, InputFileRefused),
        (without_a_parent, (CannotCheck, InputFileRefused)),
        (with_a_parent_too_many, InputFileRefused),
        (parent_of_a_later_round, (InputFileRefused, VerificationFailed)),
        (no_parent_of_its_round, InputFileRefused),
        (parent_not_recorded, VerificationFailed),
        (acknowledged_by_another, VerificationFailed),
        (acknowledged_for_another, InputFileRefused),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_what_must_not_be_kept_is_refused_and_leaves_nothing(
    attack: Callable[[Round], ShareRequest],
    error: type[GenKDError] | tuple[type[GenKDError], ...],
    played: Round,
) -> None:
    share = attack(played)
    with pytest.raises(error) as refused:
        played.keep(share)
    untouched(played)
    # What a coordinator will read names nothing of this machine.
    assert str(played.node.folder) not in refused.value.message
    assert "\n" not in refused.value.message


def test_a_run_that_the_registry_does_not_know_has_no_coordinator(played: Round) -> None:
    played.members.chain._states[-1].runs.clear()
    with pytest.raises(VerificationFailed, match="no such run"):
        played.keep(played.share())
    untouched(played)


def test_another_student_for_a_round_is_refused_once_one_is_kept(played: Round) -> None:
    first = played.keep(played.share())
    before = files_of(first)
    second = played.members.merge(played.complete)
    with pytest.raises(VerificationFailed, match="another student of this round"):
        played.keep(played.members.share(second, played.complete))
    assert files_of(first) == before
    assert len(played.kept()) == 1


def test_a_student_damaged_on_the_disk_is_not_called_kept(played: Round) -> None:
    kept = played.keep(played.share())
    (kept / "student.safetensors").write_bytes(b"torn")
    with pytest.raises(InputFileRefused, match="damaged"):
        played.keep(played.share())
    (kept / "student.safetensors").unlink()
    with pytest.raises(InputFileRefused, match="damaged"):
        played.keep(played.share())
    shutil.rmtree(kept.parent)
    played.keep(played.share())
    assert files_of(kept) == files_of(played.merged)


# ------------------------------------------------------------------ chains that are no help


def test_a_chain_of_another_kind_is_not_believed(
    played: Round, monkeypatch: pytest.MonkeyPatch
) -> None:
    share = played.share()
    monkeypatch.setattr(played.members.chain, "chain_id", lambda: 5)
    with pytest.raises(CannotCheck):
        played.keep(share)
    monkeypatch.undo()
    monkeypatch.setattr(
        played.members.chain, "fault_of_contract", lambda: "the code there is another's"
    )
    with pytest.raises(CannotCheck, match="another's"):
        played.keep(share)
    untouched(played)


@pytest.mark.parametrize("question", ["run", "look_up", "block"])
def test_a_chain_that_falls_silent_leaves_nothing_and_a_repeat_succeeds(
    question: str, played: Round, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent(*_: object) -> None:
        raise CannotCheck("the endpoint does not answer", hint="")

    share = played.share()
    with monkeypatch.context() as patch:
        patch.setattr(played.members.chain, question, silent)
        with pytest.raises(CannotCheck):
            played.keep(share)
    untouched(played)
    played.keep(share)
    assert len(played.kept()) == 1


def test_what_is_not_confirmed_yet_is_kept_later(members: MemoryFederation) -> None:
    played = play(members)
    members.chain.confirmations = 2
    with pytest.raises(CannotCheck, match="not confirmed yet"):
        played.keep(played.share())
    members.chain.mine()
    members.chain.mine()
    played.keep(played.share())


def test_after_a_reorganisation_the_new_place_on_the_chain_is_taken_over(played: Round) -> None:
    kept = played.keep(played.share())
    members, old = played.members, receipt_of(kept)
    members.chain.reorganise(2)  # the round's root and the merged student are gone
    played.complete = list(members.commit_round(*played.releases).values())
    members.coordinator.register(played.merged)
    assert receipt_of(played.merged) != old
    assert played.keep(played.share()) == kept
    assert receipt_of(kept) == receipt_of(played.merged)
    assert receipt_of(played.releases[0]) == played.complete[0]
    registry = members.chain
    verification = verify(kept, policy=Trust(registry.domain), chain=registry)
    assert verification.summary == "valid"  # so its parents' receipts name the new place, too


# ------------------------------------------------------------------ kills, full disks, two at once


STEPS = ("atomic_write", "verify", "flush_folder", "replace_receipt", "rename")


@pytest.mark.parametrize("step", STEPS)
def test_a_kill_at_any_step_leaves_all_or_nothing_and_a_repeat_ends_it(
    step: str, played: Round
) -> None:
    share = played.share()
    point = Call(inbox.os if step == "rename" else inbox, step)
    for count in range(20):
        killed = killed_at(count, lambda: played.keep(share), [point])
        kept = played.kept()
        if kept:
            assert files_of(kept[0].path) == files_of(played.merged)
            assert len(list((kept[0].path.parent / "parents").iterdir())) == 2
        assert receipt_of(played.releases[0]) in (
            played.complete[0],
            replace(played.complete[0], inclusion=None),
        )
        if not killed:
            break
    assert count > 0, "the step was never reached"
    played.keep(share)
    (only,) = played.kept()
    assert receipt_of(played.releases[0]) == played.complete[0]
    assert [path.name for path in only.path.parent.parent.iterdir()] == ["round-000001"]


@pytest.mark.parametrize("where", ["rename", "write", "mkdir"])
def test_a_full_disk_leaves_nothing_and_a_repeat_succeeds(
    where: str, played: Round, monkeypatch: pytest.MonkeyPatch
) -> None:
    share = played.share()

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        if where == "rename":
            patch.setattr(inbox.os, "rename", full)
        elif where == "write":
            patch.setattr("os.replace", full)
        else:
            patch.setattr(inbox.tempfile, "mkdtemp", full)
        with pytest.raises(ResourceExhausted):
            played.keep(share)
    untouched(played)
    played.keep(share)
    assert len(played.kept()) == 1


def test_names_in_the_folder_that_are_none_of_ours_are_not_listed(played: Round) -> None:
    kept = played.keep(played.share())
    run = kept.parent.parent
    for name in ("round-1", "round-00000x", ".writing-x"):
        shutil.copytree(kept.parent, run / name)
    shutil.copytree(run, run.parent / "0xabc")
    assert [one.path for one in played.kept()] == [kept]
