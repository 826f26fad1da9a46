"""Parents whose file is not at hand: what their receipts prove, and what they do not."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from genkd.errors import CannotCheck
from genkd.provenance import verifier as verifier_module
from genkd.provenance import verify
from genkd.provenance.chain import Answer
from genkd.provenance.lineage import lineage_of, render_text
from genkd.provenance.lineage_picture import render_svg
from genkd.provenance.receipt import Inclusion, Receipt
from genkd.provenance.record import Revocation
from genkd.provenance.release import receipt_file_name
from genkd.provenance.secp256k1 import sign_digest
from genkd.provenance.typed_data import Domain
from genkd.provenance.verification import Status

Workshop = Any  # conftest.Workshop


def round_of(w: Workshop, count: int = 3) -> list[Path]:
    """Releases that the registry knows by their round's root alone."""
    paths = [w.sign(w.other if i % 2 else w.node) for i in range(count)]
    w.commit_round(*paths)
    return paths


def merged_from(w: Workshop, *parents: Path) -> Path:
    ids = tuple(w.receipt(path).record_id() for path in parents)
    child: Path = w.publish(parents=ids)
    return child


def leave_receipt(w: Workshop, parent: Path, folder: Path | None = None) -> Path:
    """Take a parent's release away and leave its receipt only."""
    receipt = w.receipt(parent)
    target = (folder or w.folder / "parents") / receipt_file_name(receipt.record_id())
    target.parent.mkdir(exist_ok=True)
    target.write_bytes(receipt.to_bytes())
    shutil.rmtree(parent)
    return target


def replace_in(path: Path, **changes: Any) -> None:
    receipt = Receipt.from_bytes(path.read_bytes())
    path.write_bytes(replace(receipt, **changes).to_bytes())


@pytest.mark.parametrize("where", ["parents", "", "../elsewhere"])
def test_a_round_s_parents_are_proved_by_their_receipts(workshop: Workshop, where: str) -> None:
    parents = round_of(workshop)
    child = merged_from(workshop, *parents)
    folder = workshop.folder / where
    for parent in parents:
        leave_receipt(workshop, parent, folder)
    around = [folder] if where.startswith("..") else []
    found = verify(child, policy=workshop.policy, chain=workshop.chain, parents_in=around)
    assert found.status is Status.VALID, found.summary
    assert found.checks[9].detail == "3 parents, 3 of them recorded with the file not at hand"
    assert all(parent.receipt is not None for parent in found.parents)
    assert {parent.recorded_at for parent in found.parents} == {found.recorded_at - 1}


def test_it_holds_on_a_real_chain(anvil_workshop: Workshop) -> None:
    parents = round_of(anvil_workshop)
    child = merged_from(anvil_workshop, *parents)
    for parent in parents:
        leave_receipt(anvil_workshop, parent)
    found = verify(child, policy=anvil_workshop.policy, chain=anvil_workshop.chain)
    assert found.status is Status.VALID, found.summary


def test_a_self_registered_parent_is_proved_by_its_receipt_too(workshop: Workshop) -> None:
    parent = workshop.publish()
    child = merged_from(workshop, parent)
    leave_receipt(workshop, parent)
    found = verify(child, policy=workshop.policy, chain=workshop.chain)
    assert found.status is Status.VALID, found.summary
    assert found.parents[0].entry is None


def test_a_release_at_hand_is_checked_in_full_and_its_receipt_is_not_asked_for(
    workshop: Workshop,
) -> None:
    (parent,) = round_of(workshop, 1)
    child = merged_from(workshop, parent)
    kept = workshop.folder / "kept"
    shutil.copytree(parent, kept)
    receipt = leave_receipt(workshop, parent)
    receipt.write_bytes(b"{")
    kept.rename(parent)
    found = verify(child, policy=workshop.policy, chain=workshop.chain)
    assert found.status is Status.VALID, found.summary
    assert found.parents[0].verification is not None


def test_without_a_chain_a_signed_receipt_proves_no_record(workshop: Workshop) -> None:
    (parent,) = round_of(workshop, 1)
    child = merged_from(workshop, parent)
    leave_receipt(workshop, parent)
    found = verify(child)
    assert found.status is Status.CANNOT_CHECK
    assert "no endpoint was asked" in found.checks[9].detail
    assert lineage_of(found).parents[0].state == "cannot_check"


def test_a_record_that_is_not_confirmed_yet_cannot_be_checked(
    new_workshop: Callable[..., Workshop],
) -> None:
    workshop = new_workshop(confirmations=3)
    (parent,) = round_of(workshop, 1)
    child = merged_from(workshop, parent)
    leave_receipt(workshop, parent)
    found = verify(child, policy=workshop.policy, chain=workshop.chain)
    assert found.status is Status.CANNOT_CHECK
    assert "not confirmed yet" in found.checks[9].detail


# --- hostile receipts, each of which refuses the child ---


def of_another_registry(w: Workshop, path: Path) -> None:
    replace_in(path, domain=Domain(31337, w.other.address))


def of_another_chain(w: Workshop, path: Path) -> None:
    domain = Domain(1, w.chain.domain.contract)
    record = Receipt.from_bytes(path.read_bytes()).record
    replace_in(path, domain=domain, signature=w.node.sign(record, domain))


def of_another_record(w: Workshop, path: Path) -> None:
    path.write_bytes(w.receipt(w.publish()).to_bytes())


def of_a_changed_record(w: Workshop, path: Path) -> None:
    record = Receipt.from_bytes(path.read_bytes()).record
    replace_in(path, record=replace(record, round=record.round + 1))


def signed_by_another_node(w: Workshop, path: Path) -> None:
    record_id = Receipt.from_bytes(path.read_bytes()).record_id()
    replace_in(path, signature=sign_digest(0xB0B, record_id))


def with_a_signature_of_zeros(w: Workshop, path: Path) -> None:
    replace_in(path, signature=bytes(65))


def with_another_node_s_profile(w: Workshop, path: Path) -> None:
    replace_in(path, profile=w.other.profile)


def with_a_profile_never_enrolled(w: Workshop, path: Path) -> None:
    replace_in(path, profile=w.node_with_another_signing_key().profile)


def with_a_profile_its_keys_did_not_sign(w: Workshop, path: Path) -> None:
    forged = replace(w.node.profile, p256_signature=w.other.profile.p256_signature)
    replace_in(path, profile=forged)


def with_another_proof(w: Workshop, path: Path) -> None:
    inclusion = Receipt.from_bytes(path.read_bytes()).inclusion
    assert inclusion is not None
    replace_in(path, inclusion=replace(inclusion, proof=(bytes(32),)))


def without_its_proof(w: Workshop, path: Path) -> None:
    replace_in(path, inclusion=None)


def with_another_block(w: Workshop, path: Path) -> None:
    inclusion = Receipt.from_bytes(path.read_bytes()).inclusion
    assert inclusion is not None
    number = inclusion.block - 1
    other = Inclusion(w.chain.transaction(number), number, inclusion.proof)
    replace_in(path, inclusion=other)


def of_a_revoked_record(w: Workshop, path: Path) -> None:
    record_id = Receipt.from_bytes(path.read_bytes()).record_id()
    revocation = Revocation(record_id, 1, w.node.address)
    w.chain.revoke(revocation, w.node.sign(revocation, w.chain.domain))


def of_a_record_the_owner_revoked(w: Workshop, path: Path) -> None:
    w.chain.revoke_as_owner(Receipt.from_bytes(path.read_bytes()).record_id(), 2)


def of_a_node_removed_before(w: Workshop, path: Path) -> None:
    w.chain.remove_node(w.node.address, 1)


def a_link_to_the_right_one(w: Workshop, path: Path) -> None:
    path.rename(path.parent / "real.json")
    path.symlink_to(path.parent / "real.json")


def a_link_to_nothing(w: Workshop, path: Path) -> None:
    path.unlink()
    path.symlink_to("nothing")


def a_named_pipe(w: Workshop, path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def a_folder(w: Workshop, path: Path) -> None:
    path.unlink()
    path.mkdir()


def huge(w: Workshop, path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(2**40)


def followed_by_spaces(w: Workshop, path: Path) -> None:
    path.write_bytes(path.read_bytes() + b" ")


def cut_short(w: Workshop, path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def empty(w: Workshop, path: Path) -> None:
    path.write_bytes(b"")


def deep(w: Workshop, path: Path) -> None:
    path.write_bytes(b"[" * 60_000)


def with_an_unknown_field(w: Workshop, path: Path) -> None:
    value = json.loads(path.read_bytes()) | {"x": 1}
    path.write_bytes(json.dumps(value, sort_keys=True, separators=(",", ":")).encode())


HOSTILE: dict[Callable[[Workshop, Path], None], str] = {
    of_another_registry: "another chain or registry",
    of_another_chain: "another chain or registry",
    of_another_record: "another record's",
    of_a_changed_record: "another record's",
    signed_by_another_node: "did not sign its receipt",
    with_a_signature_of_zeros: "signature",
    with_another_node_s_profile: "another node's",
    with_a_profile_never_enrolled: "not the one the node was enrolled with",
    with_a_profile_its_keys_did_not_sign: "not genuine",
    with_another_proof: "does not hold it",
    without_its_proof: "does not hold it",
    with_another_block: "a block that did not record it",
    of_a_revoked_record: "its node revoked it",
    of_a_record_the_owner_revoked: "the registry's owner revoked it",
    of_a_node_removed_before: "not enrolled when it was recorded",
    a_link_to_the_right_one: "cannot be read",
    a_link_to_nothing: "cannot be read",
    a_named_pipe: "is no regular file",
    a_folder: "cannot be read",
    huge: "is larger than",
    followed_by_spaces: "it was rewritten",
    cut_short: "not JSON",
    empty: "not JSON",
    deep: "nested too deeply",
    with_an_unknown_field: "exactly the expected members",
}


def spoiled(w: Workshop, spoil: Callable[[Workshop, Path], None]) -> Path:
    """A merged student, still enrolled itself, one of whose parents left a hostile receipt."""
    parents = round_of(w)
    child: Path = w.publish(w.other, parents=tuple(w.receipt(path).record_id() for path in parents))
    receipts = [leave_receipt(w, parent) for parent in parents]
    spoil(w, receipts[0])
    return child


@pytest.mark.parametrize("spoil", HOSTILE, ids=lambda spoil: spoil.__name__)
def test_a_hostile_receipt_is_refused(
    spoil: Callable[[Workshop, Path], None], workshop: Workshop
) -> None:
    child = spoiled(workshop, spoil)
    found = verify(child, policy=workshop.policy, chain=workshop.chain)
    assert found.status is Status.NOT_VALID, found.summary
    assert found.failed is not None
    assert found.failed.number == 9
    assert HOSTILE[spoil] in found.failed.detail
    assert {one.state for one in lineage_of(found).parents} == {"not_valid", "recorded"}


NEEDS_NO_CHAIN = [
    spoil
    for spoil in HOSTILE
    if HOSTILE[spoil] not in ("does not hold it", "a block that did not record it")
    and "revoked" not in HOSTILE[spoil]
    and "enrolled" not in HOSTILE[spoil]
]


@pytest.mark.parametrize("spoil", NEEDS_NO_CHAIN, ids=lambda spoil: spoil.__name__)
def test_what_the_receipt_alone_shows_is_refused_without_a_chain(
    spoil: Callable[[Workshop, Path], None], workshop: Workshop
) -> None:
    found = verify(spoiled(workshop, spoil), policy=workshop.policy)
    assert found.failed is not None
    assert found.failed.number == 9


def test_a_parent_recorded_after_its_child_is_refused(workshop: Workshop) -> None:
    parent = workshop.sign()
    child = merged_from(workshop, parent)
    workshop.commit_round(parent)
    leave_receipt(workshop, parent)
    found = verify(child, policy=workshop.policy, chain=workshop.chain)
    assert found.failed is not None
    assert "recorded after it" in found.failed.detail


def test_a_silent_endpoint_is_waited_for_once(workshop: Workshop) -> None:
    parents = round_of(workshop)
    child = merged_from(workshop, *parents)
    ids = {workshop.receipt(parent).record_id() for parent in parents}
    for parent in parents:
        leave_receipt(workshop, parent)
    asked = 0

    class SilentAboutParents:
        def __getattr__(self, name: str) -> Any:
            return getattr(workshop.chain, name)

        def look_up(self, record: Any, signature: bytes, proof: Any) -> Answer:
            nonlocal asked
            if record.digest(workshop.chain.domain) in ids:
                asked += 1
                raise CannotCheck("the endpoint does not answer", hint="ask another")
            answer: Answer = workshop.chain.look_up(record, signature, proof)
            return answer

    found = verify(child, policy=workshop.policy, chain=SilentAboutParents())
    assert found.status is Status.CANNOT_CHECK
    assert asked == 1


def test_a_crowd_of_receipts_cannot_be_checked(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verifier_module, "MAX_LINEAGE", 4)
    left, right = round_of(workshop, 3), workshop.publish()
    outer = merged_from(workshop, merged_from(workshop, *left), right)
    for parent in left:
        leave_receipt(workshop, parent)
    found = verify(outer, policy=workshop.policy, chain=workshop.chain)
    assert found.status is Status.VALID, found.summary
    monkeypatch.setattr(verifier_module, "MAX_LINEAGE", 3)
    found = verify(outer, policy=workshop.policy, chain=workshop.chain)
    assert found.status is Status.CANNOT_CHECK
    assert "exceeds" in found.summary


def test_text_json_and_picture_show_a_parent_without_its_file(workshop: Workshop) -> None:
    (parent,) = round_of(workshop, 1)
    child = merged_from(workshop, parent)
    record_id = parent.name.removeprefix("student-")
    leave_receipt(workshop, parent)
    tree = lineage_of(verify(child, policy=workshop.policy, chain=workshop.chain))
    (shown,) = tree.parents
    assert (shown.record_id, shown.state, shown.node, shown.round) == (
        *(record_id, "recorded", workshop.node.address, 1),
    )
    for form in (render_text(tree), render_svg(tree), json.dumps(tree.to_json())):
        assert record_id[:18] in form
        assert "its file is not at hand" in form
        assert workshop.node.address in form
