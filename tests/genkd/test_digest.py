"""Digests: known values, one spelling per value, and a tensor root that only tensors change."""

import hashlib
import json
import struct
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genkd.canonical import MAX_INTEGER, canonical_json, parse_json
from genkd.digest import sha256_bytes, sha256_file, tensor_root
from genkd.errors import InputFileRefused

Entry = tuple[str, str, list[int], bytes]  # name, dtype, shape, bytes


def file_of(entries: list[Entry], metadata: dict[str, str] | None = None, pad: int = 0) -> bytes:
    """A safetensors file with its tensors in the order given."""
    fields: dict[str, object] = {} if metadata is None else {"__metadata__": metadata}
    position = 0
    for name, dtype, shape, data in entries:
        offsets = [position, position + len(data)]
        fields[name] = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
        position = offsets[1]
    header = json.dumps(fields).encode() + b" " * pad
    return len(header).to_bytes(8, "little") + header + b"".join(e[3] for e in entries)


A: Entry = ("a", "F32", [2], struct.pack("<2f", 1.0, 2.0))
B: Entry = ("b", "U8", [3], b"\x01\x02\x03")
C: Entry = ("c", "F16", [], b"\x00\x3c")


def test_sha256_of_bytes_and_file_are_the_known_value(tmp_path: Path) -> None:
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, "abc"
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256_bytes(b"abc") == known
    assert sha256_file(tmp_path / "abc") == known


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputFileRefused, match="does not exist"):
        sha256_file(tmp_path / "no")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"b": 1, "a": [True, None, "é"]}, '{"a":[true,null,"é"],"b":1}'),
        ((1, -2), "[1,-2]"),
        ({}, "{}"),
        (MAX_INTEGER, "9007199254740991"),
        ('"\\\n', '"\\"\\\\\\n"'),
    ],
)
def test_canonical_json_is_one_spelling(value: object, text: str) -> None:
    assert canonical_json(value) == text.encode()


def _nested(depth: int) -> object:
    value: object = 0
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "value",
    [
        0.5,
        float("nan"),
        {1: 2},
        {"a": {0.5}},
        b"x",
        MAX_INTEGER + 1,
        10**400,
        "\ud800",
        _nested(40),
    ],
    ids=["float", "nan", "int key", "set", "bytes", "2^53", "10^400", "surrogate", "deep"],
)
def test_values_without_a_canonical_form_are_refused(value: object) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # many kinds, one type
        canonical_json(value)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-MAX_INTEGER, MAX_INTEGER)
    | st.text(st.characters(codec="utf-8"), max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(json_values)
@settings(max_examples=60, deadline=None)
def test_canonical_json_parses_back_to_the_same_value(value: object) -> None:
    data = canonical_json(value)
    assert parse_json(data) == value
    assert canonical_json(parse_json(data)) == data


@pytest.mark.parametrize("text", ["[" * 10**6, '{"a":' * 10**5, "[" * 33 + "]" * 33])
def test_deep_json_does_not_end_the_process_whatever_the_recursion_limit(text: str) -> None:
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(100_000)  # as Ethereum's Python libraries do when they are imported
    try:
        with pytest.raises(ValueError, match="nested too deeply"):
            parse_json(text)
    finally:
        sys.setrecursionlimit(before)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('["' + "[" * 99 + '"]', ["[" * 99]),
        (r'["\"[{{{{"]', ['"[{{{{']),
        (r'["\\","["]', ["\\", "["]),
        ("[" * 32 + "]" * 32, None),
    ],
    ids=["brackets", "quote", "backslash", "at the limit"],
)
def test_brackets_in_texts_are_not_depth(text: str, value: object) -> None:
    parsed = parse_json(text)
    assert value is None or parsed == value


@pytest.mark.parametrize(
    "text",
    [
        *('{"a":1,"a":2}', '[{"x":{"y":1,"y":1}}]', "1.5", "1e5", "NaN", "Infinity", "-Infinity"),
        *(
            "{",
            "",
            "[1,]",
            "[" * 5000,
            "9" * 5000,
            '{"' + r"\"" * 10**6,
            b'"\xff"',
            "{'a':1}",
            "1 2",
        ),
    ],
)
def test_hostile_json_is_refused_in_one_short_line(text: str | bytes) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011  # many kinds, one type
        parse_json(text)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


def test_floats_are_read_only_when_allowed() -> None:
    assert parse_json("[0.5]", allow_floats=True) == [0.5]
    with pytest.raises(ValueError, match="NaN"):
        parse_json("[NaN]", allow_floats=True)


def test_tensor_root_of_one_tensor_is_the_formula() -> None:
    tag = b"genkd tensor v1"
    leaf = hashlib.sha256(
        b"\x00"
        + struct.pack(">I", len(tag))
        + tag
        + b"\x00\x00\x00\x01a"
        + b"\x00\x00\x00\x03F32"
        + struct.pack(">IQ", 1, 2)
        + struct.pack(">Q", 8)
        + A[3]
    )
    assert tensor_root(file_of([A])) == leaf.hexdigest()


def test_odd_leaf_moves_up_unchanged() -> None:
    a, b, c = (bytes.fromhex(tensor_root(file_of([entry]))) for entry in (A, B, C))
    left = hashlib.sha256(b"\x01" + a + b).digest()
    assert tensor_root(file_of([A, B, C])) == hashlib.sha256(b"\x01" + left + c).hexdigest()


def test_tensor_root_survives_another_order_header_and_metadata(tmp_path: Path) -> None:
    root = tensor_root(file_of([A, B, C]))
    other = file_of([C, B, A], {"made by": "somebody", "x": "y"}, pad=13)
    (tmp_path / "file").write_bytes(other)
    assert tensor_root(other) == root
    assert tensor_root(tmp_path / "file") == root


@pytest.mark.parametrize(
    "altered",
    [
        [("a", "F32", [2], struct.pack("<2f", 1.0, 2.5)), B, C],
        [("z", "F32", [2], A[3]), B, C],
        [("a", "I32", [2], A[3]), B, C],
        [("a", "F32", [2, 1], A[3]), B, C],
        [A, B],
        [A, B, C, ("d", "U8", [1], b"\0")],
        [A, B, C, ("d", "U8", [0], b"")],
        [("b", "F32", [2], A[3]), ("a", "U8", [3], B[3]), C],
    ],
    ids=["value", "name", "dtype", "shape", "removed", "added", "empty added", "names swapped"],
)
def test_any_change_of_a_tensor_changes_the_root(altered: list[Entry]) -> None:
    assert tensor_root(file_of(altered)) != tensor_root(file_of([A, B, C]))


def test_tensor_root_of_a_broken_file_is_refused() -> None:
    with pytest.raises(InputFileRefused, match="truncated"):
        tensor_root(file_of([A, B])[:-1])
