"""Whatever stands in a file of a release, reading it ends in one kind of error and in no other."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genkd.errors import InputFileRefused, KeyOrSignatureError
from genkd.provenance.bundle import check_bundle
from genkd.provenance.origin import Origin
from genkd.provenance.profile import NodeProfile
from genkd.provenance.receipt import Receipt
from genkd.provenance.statement import Statement

(RELEASE,) = (Path(__file__).parents[2] / "vectors").glob("student-0x*")
FILES = {name: (RELEASE / name).read_bytes() for name in ("receipt.json", "provenance.json")}
BUNDLE = (RELEASE / "model.sig").read_bytes()
RECEIPT = Receipt.from_bytes(FILES["receipt.json"])

ORIGIN = Origin(
    RECEIPT.domain, RECEIPT.record.node, RECEIPT.record.run_id, RECEIPT.record.round
).to_json()

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["0x" + "0" * 64, "0x" + "1" * 40, "", "\x00", "\ud800", 2**53, -1, 1.5]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value inside a parsed JSON document."""
    found = [path]
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            found += places(inner, (*path, key))
    return found


@st.composite
def mutants(draw: Any, data: bytes) -> Any:
    """A document with one value replaced by another JSON value, or removed, or doubled."""
    value = json.loads(data)
    path = draw(st.sampled_from(places(value)))
    if not path:
        return draw(JSON)
    changed = copy.deepcopy(value)
    parent = changed
    for key in path[:-1]:
        parent = parent[key]
    action = draw(st.sampled_from(["replace", "remove", "add"]))
    if action == "replace":
        parent[path[-1]] = draw(JSON)
    elif action == "remove":
        del parent[path[-1]]
    elif isinstance(parent, dict):
        parent[draw(st.text(max_size=8))] = draw(JSON)
    else:
        parent.append(draw(JSON))
    return changed


def check_bundle_of(data: bytes) -> None:
    check_bundle(data, RELEASE.name, {}, RECEIPT.profile, RECEIPT.profile.check())


READERS: dict[str, tuple[bytes, Callable[[bytes], object]]] = {
    "receipt": (FILES["receipt.json"], Receipt.from_bytes),
    "statement": (FILES["provenance.json"], Statement.from_bytes),
    "bundle": (BUNDLE, check_bundle_of),
    "profile": (
        json.dumps(json.loads(FILES["receipt.json"])["profile"]).encode(),
        lambda data: NodeProfile.from_json(json.loads(data)).check(),
    ),
    "origin": (
        json.dumps(ORIGIN).encode(),
        lambda data: Origin.from_json(json.loads(data)),
    ),
}


@pytest.mark.parametrize("name", READERS)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_mutant_is_refused_in_an_orderly_way(name: str, data: Any) -> None:
    original, read = READERS[name]
    mutant = data.draw(mutants(original))
    text = json.dumps(mutant, sort_keys=True, separators=(",", ":")).encode()
    try:
        accepted = read(text)
    except (InputFileRefused, KeyOrSignatureError):
        return
    if isinstance(accepted, Origin):
        return  # another origin is an origin too; it is compared with the record
    if isinstance(accepted, Statement | Receipt):
        assert accepted.to_bytes() == text, "what is accepted has one spelling"
    else:
        assert json.loads(text) == json.loads(original), "a mutant was accepted"


@pytest.mark.parametrize("name", READERS)
@settings(max_examples=100, deadline=None)
@given(noise=st.binary(max_size=200))
def test_noise_is_refused_in_an_orderly_way(name: str, noise: bytes) -> None:
    _, read = READERS[name]
    if name in ("profile", "origin"):
        return  # these are handed parsed JSON
    with pytest.raises(InputFileRefused):
        read(noise)
