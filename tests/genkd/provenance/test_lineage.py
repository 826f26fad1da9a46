"""The tree of parents, as text, JSON and a picture."""

from __future__ import annotations

import json
import shutil
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from genkd.provenance import verifier as verifier_module
from genkd.provenance import verify
from genkd.provenance.lineage import Lineage, lineage_of, render_svg, render_text
from genkd.provenance.verification import Status

Workshop = Any  # conftest.Workshop


def child_of(w: Workshop, *parents: Path) -> Path:
    ids = tuple(w.receipt(path).record_id() for path in parents)
    child: Path = w.publish(parents=ids)
    return child


def tree_of(w: Workshop, path: Path) -> Lineage:
    return lineage_of(verify(path, policy=w.policy, chain=w.chain))


def test_every_ancestor_has_its_state(workshop: Workshop) -> None:
    grandparent = workshop.publish(workshop.other)
    parent, absent = child_of(workshop, grandparent), workshop.publish()
    child = child_of(workshop, parent, absent, grandparent)
    shutil.rmtree(absent)
    tree = tree_of(workshop, child)
    assert tree.state == "valid"
    states = sorted(one.state for one in tree.parents)
    assert states == ["recorded", "valid", "valid"] or states == ["above", "recorded", "valid"]
    names = {one.record_id for one in tree.parents}
    assert names == {
        f"0x{workshop.receipt(p).record_id().hex()}" for p in (parent, grandparent)
    } | {absent.name.removeprefix("student-")}


def test_a_shared_ancestor_is_shown_once(workshop: Workshop) -> None:
    root = workshop.publish()
    left, right = child_of(workshop, root), child_of(workshop, root)
    tree = tree_of(workshop, child_of(workshop, left, right))
    assert sorted(one.parents[0].state for one in tree.parents) == ["above", "valid"]


def test_the_state_of_a_bad_parent_is_shown(workshop: Workshop) -> None:
    parent = workshop.publish()
    child = child_of(workshop, parent)
    workshop.chain.revoke_as_owner(workshop.receipt(parent).record_id(), 2)
    tree = tree_of(workshop, child)
    assert (tree.state, tree.parents[0].state) == ("not_valid", "not_valid")
    shutil.rmtree(parent)
    assert tree_of(workshop, child).parents[0].detail.startswith("revoked")


def test_a_missing_parent_is_unknown(workshop: Workshop) -> None:
    parent = workshop.publish()
    child = child_of(workshop, parent)
    shutil.rmtree(parent)
    tree = lineage_of(verify(child))
    assert tree.parents[0].state == "unknown"


def test_text_json_and_picture_tell_the_same(workshop: Workshop) -> None:
    root = workshop.publish()
    tree = tree_of(workshop, child_of(workshop, child_of(workshop, root), root))
    ids = set()

    def walk(one: Lineage) -> None:
        ids.add(one.record_id)
        for parent in one.parents:
            walk(parent)

    walk(tree)
    text, picture, data = render_text(tree), render_svg(tree), json.dumps(tree.to_json())
    for one in ids:
        assert one[:18] in text
        assert one in picture
        assert one in data


def test_the_picture_is_well_formed_and_has_no_scripts(workshop: Workshop) -> None:
    tree = Lineage('<script>"&', "valid", "<b>", "'x'", 1, (Lineage("", "unknown", "?"),))
    root = ElementTree.fromstring(render_svg(tree))  # noqa: S314 - our own text
    tags = {element.tag.rpartition("}")[2] for element in root.iter()}
    assert tags <= {"svg", "g", "title", "rect", "text", "path"}


def test_a_release_that_cannot_be_read_has_a_tree_too(workshop: Workshop) -> None:
    path = workshop.publish()
    (path / "receipt.json").write_bytes(b"{")
    tree = tree_of(workshop, path)
    assert tree.state == "not_valid"
    assert "(unread)" in render_text(tree)


def test_a_lineage_without_end_cannot_be_checked(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verifier_module, "MAX_DEPTH", 3)
    path = workshop.publish()
    for _ in range(3):
        path = child_of(workshop, path)
    assert verify(path, policy=workshop.policy, chain=workshop.chain).status is Status.VALID
    path = child_of(workshop, path)
    verification = verify(path, policy=workshop.policy, chain=workshop.chain)
    assert verification.status is Status.CANNOT_CHECK
    assert "generations" in verification.summary


def test_a_crowd_of_parents_cannot_be_checked(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verifier_module, "MAX_LINEAGE", 2)
    parents = [workshop.publish() for _ in range(3)]
    child = child_of(workshop, *parents)
    verification = verify(child, policy=workshop.policy, chain=workshop.chain)
    assert verification.status is Status.CANNOT_CHECK
