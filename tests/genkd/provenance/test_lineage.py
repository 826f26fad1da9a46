"""The tree of parents, as text, JSON and a picture."""

from __future__ import annotations

import json
import shutil
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from genkd.provenance import verifier as verifier_module
from genkd.provenance import verify
from genkd.provenance.lineage import Lineage, lineage_of, render_text
from genkd.provenance.lineage_picture import render_svg
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


SVG = "{http://www.w3.org/2000/svg}"


def boxes_of(tree: Lineage) -> dict[str, tuple[float, float, list[str]]]:
    """What the picture shows, by the record id in the box's title: its corner and its lines."""
    root = ElementTree.fromstring(render_svg(tree))  # noqa: S314 - our own text
    found = {}
    for box in root.iter(f"{SVG}g"):
        title, rect = box.find(f"{SVG}title"), box.find(f"{SVG}rect")
        assert title is not None
        assert title.text is not None
        assert rect is not None
        record_id = title.text.split()[0]
        assert record_id not in found, "drawn twice"
        words = [one.text or "" for one in box.iter(f"{SVG}text")]
        found[record_id] = (float(rect.attrib["x"]), float(rect.attrib["y"]), words)
    return found


def test_each_box_says_who_when_and_whether_it_is_valid(workshop: Workshop) -> None:
    parent, absent = workshop.publish(), workshop.publish(workshop.other)
    child = child_of(workshop, parent, absent)
    shutil.rmtree(absent)
    tree = tree_of(workshop, child)
    boxes = boxes_of(tree)
    assert len(boxes) == 3
    for one in (tree, *tree.parents):
        text = "\n".join(boxes[one.record_id][2])
        assert f"{one.node[:6]}…{one.node[-4:]}" in text
        assert time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(one.recorded_at)) in text
        assert ("recorded, file" if one.state == "recorded" else one.state) in text
    record = workshop.receipt(child).record
    assert f"round {record.round}" in boxes[tree.record_id][2][0]
    run_id = f"0x{record.run_id.hex()}"
    assert f"run {run_id[:6]}…{run_id[-4:]}" in boxes[tree.record_id][2][1]


def test_a_shared_ancestor_is_drawn_once_to_the_right_of_all_its_children(
    workshop: Workshop,
) -> None:
    root = workshop.publish()
    left = child_of(workshop, root)
    right = child_of(workshop, left, root)
    tree = tree_of(workshop, child_of(workshop, left, right, root))
    boxes = boxes_of(tree)
    assert len(boxes) == 4
    x = {path: boxes[f"0x{workshop.receipt(path).record_id().hex()}"][0] for path in (root, left)}
    assert x[root] > x[left] > boxes[f"0x{workshop.receipt(right).record_id().hex()}"][0]
    places = [(x, y) for x, y, _ in boxes.values()]
    assert len(set(places)) == len(places)


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
