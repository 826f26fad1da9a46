"""What a valid release is, and what is said of one that cannot be checked fully."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from genkd.errors import CannotCheck, InputFileRefused, UsageError, VerificationFailed
from genkd.provenance import Policy, verify
from genkd.provenance.verification import Outcome, Status

Workshop = Any  # conftest.Workshop


def single(w: Workshop) -> Path:
    return w.publish()


def in_a_round(w: Workshop) -> Path:
    releases = [w.sign() for _ in range(5)]
    w.commit_round(*releases)
    return releases[3]


def alone_in_a_round(w: Workshop) -> Path:
    release = w.sign()
    w.commit_round(release)
    return release


def registered_and_in_a_round(w: Workshop) -> Path:
    release = w.publish()
    w.commit_round(release, w.sign())
    return release


def receipt_from_before_the_transaction(w: Workshop) -> Path:
    release = w.publish()
    w.rewrite(release, replace(w.receipt(release), inclusion=None))
    return release


def bare_file_beside_its_release(w: Workshop) -> Path:
    release = w.publish()
    w.publish()
    bare = release.parent / "my-student.safetensors"
    shutil.copy(release / "student.safetensors", bare)
    return bare


def file_inside_its_release(w: Workshop) -> Path:
    return w.publish() / "student.safetensors"


def renamed_directory(w: Workshop) -> Path:
    return w.publish().rename(w.folder / "downloaded")


def with_its_parents(w: Workshop) -> Path:
    parents = tuple(w.receipt(w.publish(keys)).record_id() for keys in (w.node, w.other))
    return w.publish(parents=parents)


def parents_known_by_their_record_alone(w: Workshop) -> Path:
    parent = w.publish()
    record_id = w.receipt(parent).record_id()
    shutil.rmtree(parent)
    return w.publish(parents=(record_id,))


def made_before_the_node_was_removed(w: Workshop) -> Path:
    release = w.publish()
    w.chain.mine(100)
    w.chain.remove_node(w.node.address, w.chain.now)
    return release


def made_before_the_key_was_rotated(w: Workshop) -> Path:
    release = w.publish()
    w.rotate_node()
    return release


def made_after_the_key_was_rotated(w: Workshop) -> Path:
    return w.publish(w.rotate_node(), teacher_commitment=w.commitment(w.node))


CONTROLS = [
    single,
    in_a_round,
    alone_in_a_round,
    registered_and_in_a_round,
    receipt_from_before_the_transaction,
    bare_file_beside_its_release,
    file_inside_its_release,
    renamed_directory,
    with_its_parents,
    parents_known_by_their_record_alone,
    made_before_the_node_was_removed,
    made_before_the_key_was_rotated,
    made_after_the_key_was_rotated,
]


@pytest.mark.parametrize("make", CONTROLS, ids=lambda make: make.__name__)
def test_an_honest_release_is_valid(make: Callable[[Workshop], Path], workshop: Workshop) -> None:
    verification = verify(make(workshop), policy=workshop.policy, chain=workshop.chain)
    assert verification.status is Status.VALID, verification.summary
    assert [check.number for check in verification.checks] == list(range(11))
    assert verification.require() is verification


@pytest.mark.parametrize("make", CONTROLS, ids=lambda make: make.__name__)
def test_an_honest_release_is_valid_on_a_real_chain(
    make: Callable[[Workshop], Path], anvil_workshop: Workshop
) -> None:
    path = make(anvil_workshop)
    verification = verify(path, policy=anvil_workshop.policy, chain=anvil_workshop.chain)
    assert verification.status is Status.VALID, verification.summary


def test_without_a_chain_it_is_signed_and_not_recorded(workshop: Workshop) -> None:
    verification = verify(workshop.sign())
    assert verification.status is Status.CANNOT_CHECK
    assert verification.summary.startswith("signed, not recorded")
    outcomes = [check.outcome for check in verification.checks]
    assert outcomes[1:6] == [Outcome.PASSED] * 5
    assert outcomes[6:9] == [Outcome.NOT_CHECKED] * 3
    with pytest.raises(CannotCheck):
        verification.require()


def test_a_trusted_registry_counts_without_a_chain_too(workshop: Workshop) -> None:
    elsewhere = Policy(replace(workshop.chain.domain, chain_id=1))
    verification = verify(workshop.sign(), policy=elsewhere)
    assert verification.failed is not None
    assert verification.failed.number == 5


def test_a_record_is_not_valid_before_it_is_confirmed(
    new_workshop: Callable[..., Workshop],
) -> None:
    workshop = new_workshop(confirmations=3)
    for _ in range(3):
        workshop.chain.mine()
    release = workshop.publish()
    verification = verify(release, policy=workshop.policy, chain=workshop.chain)
    assert verification.status is Status.CANNOT_CHECK
    assert "not confirmed yet" in verification.summary
    for _ in range(3):
        workshop.chain.mine()
    assert verify(release, policy=workshop.policy, chain=workshop.chain).status is Status.VALID


def test_a_revocation_counts_before_it_is_confirmed(new_workshop: Callable[..., Workshop]) -> None:
    workshop = new_workshop(confirmations=3)
    for _ in range(3):
        workshop.chain.mine()
    release = workshop.publish()
    for _ in range(5):
        workshop.chain.mine()
    workshop.chain.revoke_as_owner(workshop.receipt(release).record_id(), 2)
    verification = verify(release, policy=workshop.policy, chain=workshop.chain)
    assert verification.failed is not None
    assert verification.failed.number == 8


def test_a_bare_file_without_a_release_cannot_be_checked(workshop: Workshop) -> None:
    release = workshop.publish()
    bare = workshop.folder / "alone.safetensors"
    shutil.move(release / "student.safetensors", bare)
    shutil.rmtree(release)
    verification = verify(bare, policy=workshop.policy, chain=workshop.chain)
    assert verification.status is Status.CANNOT_CHECK
    assert "nothing says who made it" in verification.summary


def test_a_missing_parent_cannot_be_checked(workshop: Workshop) -> None:
    parents = [workshop.sign(), workshop.sign()]
    workshop.commit_round(*parents)  # no entry of their own: only the release shows the proof
    ids = tuple(workshop.receipt(path).record_id() for path in parents)
    child = workshop.publish(parents=ids)
    assert verify(child, policy=workshop.policy, chain=workshop.chain).status is Status.VALID
    kept = workshop.folder.parent / "kept"
    kept.mkdir()
    shutil.move(parents[0], kept)
    verification = verify(child, policy=workshop.policy, chain=workshop.chain)
    assert verification.status is Status.CANNOT_CHECK
    assert "not at hand" in verification.summary
    found = verify(child, policy=workshop.policy, chain=workshop.chain, parents_in=[kept])
    assert found.status is Status.VALID


def test_a_chain_without_a_trusted_registry_is_refused(workshop: Workshop) -> None:
    with pytest.raises(UsageError):
        verify(workshop.sign(), chain=workshop.chain)


@pytest.mark.parametrize("name", ["nothing", "nothing/at/all", "nul\0byte", "x" * 5000])
def test_nothing_at_the_path_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputFileRefused, match="nothing to read"):
        verify(tmp_path / name)


def test_a_student_behind_its_policy_is_not_valid(workshop: Workshop) -> None:
    release = workshop.publish()
    verification = verify(
        release,
        policy=replace(workshop.policy, nodes=frozenset({workshop.other.address})),
        chain=workshop.chain,
    )
    with pytest.raises(VerificationFailed, match="check 10"):
        verification.require()


def test_the_answer_as_json_names_every_check(workshop: Workshop) -> None:
    release = workshop.publish()
    answer = verify(release, policy=workshop.policy, chain=workshop.chain).to_json()
    assert answer["answer"] == "valid"
    assert answer["failed"] is None
    assert answer["recordId"] == release.name.removeprefix("student-")
    assert [check["number"] for check in answer["checks"]] == list(range(11))
