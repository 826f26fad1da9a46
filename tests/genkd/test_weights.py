"""Model files: every hostile file is refused cheaply and clearly; good files survive exactly."""

import errno
import io
import json
import os
import pickle
import struct
import subprocess
import sys
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from genkd import weights
from genkd.canonical import canonical_json
from genkd.card import InputCard, ModelCard, ModelSpec, card_to_json
from genkd.digest import sha256_bytes
from genkd.errors import InputFileRefused, ResourceExhausted
from genkd.models import build_model
from genkd.weights import (
    STUDENT_FILE,
    TEACHER_FILE,
    check_finite,
    load_tensors,
    model_bytes,
    read_card,
    read_header,
    read_metadata,
    read_tensors,
    write_model,
)

CARD = ModelCard(ModelSpec("resnet8-quarter", 3, 1), InputCard(32, 32, 1, (0.5,), (0.5,)))
METADATA = {"v": 1, "card": card_to_json(CARD)}
OURS = {"genkd": canonical_json(METADATA).decode()}


def raw(header: bytes, payload: bytes = b"") -> bytes:
    return len(header).to_bytes(8, "little") + header + payload


def file_of(fields: dict[str, object], payload: bytes = b"\0" * 8) -> bytes:
    """A file with our metadata and these tensors' entries, over 8 bytes unless told."""
    return raw(json.dumps({"__metadata__": OURS, **fields}).encode(), payload)


def entry(
    shape: object = (2,), offsets: object = (0, 8), dtype: object = "F32", **more: object
) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}


def with_text(header: str, payload: bytes = b"\0" * 8) -> bytes:
    """A file with this very header; META and TENSOR stand for good entries."""
    tensor = '{"dtype":"F32","shape":[2],"data_offsets":[0,8]}'
    header = header.replace("META", json.dumps(OURS)).replace("TENSOR", tensor)
    return raw(header.encode(), payload)


ATTACK = 2**20 - 64  # bytes of a header that the limit still lets through

HOSTILE: dict[str, tuple[bytes, str]] = {
    # not safetensors at all
    "empty": (b"", "is empty"),
    "one byte": (b"\x01", "too short"),
    "eight bytes": (b"\0" * 8, "too short"),
    "zeros": (b"\0" * 4096, "not a safetensors file"),
    "pickle protocol 2": (pickle.dumps({"a": [1] * 20}, protocol=2), "is a pickle file"),
    "pickle protocol 4": (pickle.dumps({"a": [1] * 20}, protocol=4), "is a pickle file"),
    "torch zip": (b"PK\x03\x04" + b"\0" * 60, "zip archive"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + b"\0" * 60, "HDF5"),
    "ONNX": (b"\x08\x08\x12\x07pytorch\x1a\x053.0.0", "ONNX"),
    "TensorFlow Lite": (b"\x1c\0\0\0TFL3" + b"\0" * 60, "TensorFlow Lite"),
    "NumPy": (b"\x93NUMPY\x01\0" + b"\0" * 60, "NumPy"),
    "GGUF": (b"GGUF" + b"\0" * 60, "GGUF"),
    "gzip": (b"\x1f\x8b\x08" + b"\0" * 60, "gzip"),
    "tar": (b"model.pt" + b"\0" * 249 + b"ustar\0" + b"\0" * 300, "tar archive"),
    "LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS"),
    "web page": (b"<!DOCTYPE html><html></html>", "web page"),
    "index": (b'{"metadata": {}, "weight_map": {}}', "JSON file"),
    # the header as a whole
    "header of 97 MB": ((97_000_000).to_bytes(8, "little") + b"{" + b" " * 100, "has a header of"),
    "header of 2^64": (b"\xff" * 8 + b"{" + b" " * 100, "has a header of"),
    "header cut off": (raw(b'{"a":1}' + b" " * 90)[:40], "is truncated"),
    "no JSON": (raw(b"{not json at all"), "not JSON"),
    "two values": (raw(b"{} {}"), "not JSON"),
    "not UTF-8": (raw(b'{"\xff":1}'), "not UTF-8"),
    "begins with a space": (raw(b' {"a":{}}'), "not a safetensors file"),
    "no tensors": (file_of({}, b""), "no tensors"),
    "nested": (raw(b'{"a":' + b"[" * 30_000 + b"}"), "nested too deeply"),
    # names
    "tensor twice": (with_text('{"__metadata__":META,"a":TENSOR,"a":TENSOR}'), "stands twice"),
    "metadata twice": (with_text('{"__metadata__":META,"__metadata__":META}'), "stands twice"),
    "field twice": (
        with_text('{"__metadata__":META,"a":{"dtype":"F32","dtype":"F32"}}'),
        "stands twice",
    ),
    "path as a name": (file_of({"../../etc/passwd": entry()}), "name .* is not allowed"),
    "no name": (file_of({"": entry()}), "name '' is not allowed"),
    "newline in a name": (file_of({"a\n": entry()}), "is not allowed"),
    "escape in a name": (file_of({"\x1b[2J": entry()}), "is not allowed"),
    "lone surrogate": (with_text('{"__metadata__":META,"\\ud800":TENSOR}'), "is not allowed"),
    "long name": (file_of({"a" * 257: entry()}), "is not allowed"),
    "4097 tensors": (
        file_of({f"t{i}": entry([0], [0, 0]) for i in range(4097)}, b""),
        "4097 tensors|too many fields",
    ),
    # entries
    "entry no object": (file_of({"a": [1]}), "needs exactly"),
    "field missing": (file_of({"a": {"dtype": "F32", "shape": [2]}}), "needs exactly"),
    "field unknown": (file_of({"a": entry(extra=1)}), "needs exactly"),
    "dtype unknown": (file_of({"a": entry(dtype="F4")}), "dtype of a is unknown"),
    "dtype no text": (file_of({"a": entry(dtype=["F32"])}), "dtype of a is unknown"),
    "rank 9": (file_of({"a": entry([1] * 8 + [2])}), "shape of a"),
    "shape no list": (file_of({"a": entry(2)}), "shape of a"),
    "shape negative": (file_of({"a": entry([-1, -2])}), "shape of a"),
    "shape boolean": (file_of({"a": entry([2, True])}), "shape of a"),
    "shape float": (file_of({"a": entry([2.0])}), "number 2.0 is not allowed"),
    "shape huge": (file_of({"a": entry([2**62, 4])}), "shape of a"),
    "product overflows": (file_of({"a": entry([2**32, 2**32, 2**32])}), "has 8 bytes, not"),
    "bytes unlike shape": (file_of({"a": entry([3])}), "has 8 bytes, not"),
    # offsets
    "three offsets": (file_of({"a": entry(offsets=[0, 8, 8])}), "offsets of a"),
    "negative offset": (file_of({"a": entry(offsets=[-8, 0])}), "offsets of a"),
    "offsets reversed": (file_of({"a": entry(offsets=[8, 0])}), "has -8 bytes"),
    "offset huge": (file_of({"a": entry(offsets=[2**70, 2**70 + 8])}), "offsets of a"),
    "overlap": (file_of({"a": entry(), "b": entry()}), "overlaps"),
    "overlap in part": (
        file_of({"a": entry(), "b": entry(offsets=[4, 12])}, b"\0" * 12),
        "overlaps",
    ),
    "gap": (file_of({"a": entry(offsets=[8, 16])}, b"\0" * 16), "gap"),
    "truncated by a byte": (file_of({"a": entry()}, b"\0" * 7), "truncated: 7 of 8"),
    "truncated to its header": (file_of({"a": entry()}, b""), "truncated"),
    "a byte too many": (file_of({"a": entry()}, b"\0" * 9), "1 bytes follow"),
    # metadata
    "no metadata": (raw(json.dumps({"a": entry()}).encode(), b"\0" * 8), "metadata must be"),
    "second metadata key": (
        raw(json.dumps({"__metadata__": {**OURS, "x": ""}, "a": entry()}).encode(), b"\0" * 8),
        "metadata must be",
    ),
    "metadata no object": (
        raw(json.dumps({"__metadata__": [], "a": entry()}).encode(), b"\0" * 8),
        "metadata is not an object",
    ),
    "metadata no text": (
        raw(json.dumps({"__metadata__": {"genkd": 1}, "a": entry()}).encode(), b"\0" * 8),
        "is not a string",
    ),
    "metadata no Unicode": (
        with_text('{"__metadata__":{"genkd":"\\ud800"},"a":TENSOR}'),
        "not a valid safetensors file",
    ),
    # attacks on time and memory, within the header's limit
    "empty lists": (raw(b'{"a":[' + b"[]," * (ATTACK // 3) + b"[]]}"), "too many fields"),
    "empty objects": (raw(b'{"a":[' + b"{}," * (ATTACK // 3) + b"{}]}"), "too many fields"),
    "keys": (raw(b"{" + b",".join(b'"%x":0' % i for i in range(90_000)) + b"}"), "too many"),
    "numbers": (raw(b'{"a":[' + b"0," * (ATTACK // 2 - 8) + b"0]}"), "too many fields"),
    "texts": (raw(b'{"a":[' + b'"",' * (ATTACK // 3 - 8) + b'""]}'), "too many fields"),
    "long numbers": (
        raw(b'{"a":[' + (b"9" * 4000 + b",") * (ATTACK // 4001 - 1) + b"0]}"),
        "number 9{32} is not allowed",
    ),
    "number too long": (raw(b'{"a":' + b"9" * 5000 + b"}"), "not a valid safetensors file"),
}


@pytest.mark.parametrize(("data", "message"), HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_file_is_refused_in_one_line_with_a_hint(
    tmp_path: Path, data: bytes, message: str
) -> None:
    path = tmp_path / "student.safetensors"
    path.write_bytes(data)
    for source in (path, str(path), data, bytearray(data), memoryview(data)):
        with pytest.raises(InputFileRefused, match=message) as caught:
            read_header(source)
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 300 + len(str(path))
        assert caught.value.hint.isprintable()


@pytest.mark.parametrize("data", [data for data, _ in HOSTILE.values()], ids=HOSTILE.keys())
def test_hostile_file_is_refused_without_much_work(data: bytes) -> None:
    tracemalloc.start()
    start = time.process_time()
    with pytest.raises(InputFileRefused):
        read_header(data)
    seconds = time.process_time() - start
    largest = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seconds < 1  # not a figure: these take milliseconds, work by the square many seconds
    assert largest < 64 * 2**20


def _refused(path: Path) -> str:
    with pytest.raises(InputFileRefused) as caught:
        read_header(path)
    assert str(caught.value).isprintable()
    return str(caught.value)


def test_what_is_no_readable_file_is_said(tmp_path: Path) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    huge = tmp_path / "huge"
    with huge.open("wb") as handle:
        handle.truncate(STUDENT_FILE.file_bytes + 1)
    assert "does not exist" in _refused(tmp_path / "missing")
    assert "is a folder" in _refused(tmp_path)
    assert "symbolic links" in _refused(loop)
    assert "not a regular file" in _refused(pipe)
    assert "more than" in _refused(huge)
    assert "not a regular file" in _refused(Path("/dev/zero"))
    assert "not a valid path" in _refused(tmp_path / "zero\0byte")
    assert "too long" in _refused(tmp_path / ("x" * 300))
    assert "does not exist" in _refused(tmp_path / "two\nlines")


def test_unreadable_file_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:  # as the system does; root, who may run this, reads everything
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "open", refuse)
    assert "Permission denied" in _refused(tmp_path / "file")


def test_refusing_leaks_no_open_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"PK\x03\x04" + b"\0" * 60)
    before = len(os.listdir("/proc/self/fd"))
    for source in (path, tmp_path) * 5:
        _refused(source)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("save", ["torch zip", "torch legacy", "numpy zip"])
def test_files_of_other_libraries_are_named(tmp_path: Path, save: str) -> None:
    path = tmp_path / "model.pt"
    if save == "numpy zip":
        with path.open("wb") as handle:
            np.savez(handle, a=np.zeros(3))
    else:
        torch.save({"a": torch.zeros(3)}, path, _use_new_zipfile_serialization=save == "torch zip")
    with pytest.raises(InputFileRefused, match="pickle") as caught:
        read_header(path, TEACHER_FILE)
    assert "save_file" in caught.value.hint


def test_every_prefix_of_a_file_is_refused() -> None:
    data = model_bytes({"a": torch.ones(3), "b": torch.ones(2, dtype=torch.int64)}, METADATA)
    read_tensors(data)
    for length in range(len(data)):
        with pytest.raises(InputFileRefused):
            read_tensors(data[:length])


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_damaged_bytes_are_read_or_refused_and_nothing_else(data: st.DataObject) -> None:
    good = bytearray(model_bytes({"a": torch.ones(3), "b.c": torch.ones(2, 2)}, METADATA))
    for _ in range(data.draw(st.integers(1, 3))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    try:
        read_metadata(read_tensors(bytes(good)).header)
    except InputFileRefused as error:
        assert str(error).isprintable()  # noqa: PT017  # both outcomes are right


# ---------------------------------------------------------------- values

BAD_VALUES: dict[str, tuple[str, int, bytes]] = {
    "F32 NaN": ("F32", 4, struct.pack("<f", float("nan"))),
    "F32 signalling NaN": ("F32", 4, (0xFF800001).to_bytes(4, "little")),
    "F32 -inf": ("F32", 4, struct.pack("<f", float("-inf"))),
    "F64 NaN": ("F64", 8, struct.pack("<d", float("nan"))),
    "F64 inf": ("F64", 8, struct.pack("<d", float("inf"))),
    "F16 NaN": ("F16", 2, struct.pack("<e", float("nan"))),
    "F16 -inf": ("F16", 2, (0xFC00).to_bytes(2, "little")),
    "BF16 NaN": ("BF16", 2, (0x7FC0).to_bytes(2, "little")),
    "BF16 inf": ("BF16", 2, (0x7F80).to_bytes(2, "little")),
    "F8_E5M2 inf": ("F8_E5M2", 1, b"\x7c"),
    "F8_E5M2 NaN": ("F8_E5M2", 1, b"\xff"),
    "F8_E4M3 NaN": ("F8_E4M3", 1, b"\xff"),
    "BOOL 2": ("BOOL", 1, b"\x02"),
}


@pytest.mark.parametrize(("dtype", "size", "bad"), BAD_VALUES.values(), ids=BAD_VALUES.keys())
@pytest.mark.parametrize("position", ["first", "last of many chunks"])
def test_value_that_is_not_finite_is_refused(
    dtype: str, size: int, bad: bytes, position: str
) -> None:
    count = 3 if position == "first" else 2**21 // size + 5
    payload = bytearray(count * size)
    payload[slice(0, size) if position == "first" else slice(-size, None)] = bad
    data = file_of({"a": entry([count], [0, len(payload)], dtype)}, bytes(payload))
    header = read_header(data)
    for reading in (lambda: check_finite(data, header), lambda: read_tensors(data)):
        with pytest.raises(InputFileRefused, match=r"tensor a holds"):
            reading()


def test_every_finite_value_of_the_small_formats_is_accepted() -> None:
    """The bit tricks agree with torch on every 8- and 16-bit pattern."""
    for dtype, torch_dtype, kind in (
        ("F16", torch.float16, np.uint16),
        ("BF16", torch.bfloat16, np.uint16),
        ("F8_E5M2", torch.float8_e5m2, np.uint8),
        ("F8_E4M3", torch.float8_e4m3fn, np.uint8),
    ):
        patterns = np.arange(np.iinfo(kind).max + 1, dtype=np.int64).astype(kind)
        finite = torch.from_numpy(patterns.copy()).view(torch_dtype).float().isfinite().numpy()
        good = patterns[finite].tobytes()
        shape = [int(finite.sum())]
        check = file_of({"a": entry(shape, [0, len(good)], dtype)}, good)
        check_finite(check, read_header(check))
        for pattern in patterns[~finite]:
            one = pattern.tobytes()
            bad = file_of({"a": entry([1], [0, len(one)], dtype)}, one)
            with pytest.raises(InputFileRefused, match="NaN"):
                check_finite(bad, read_header(bad))


def test_checking_a_large_file_takes_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "large"
    count = 24 * 2**18  # 24 MiB
    header_bytes = file_of({"a": entry([count], [0, 4 * count])}, b"")
    path.write_bytes(header_bytes)
    os.truncate(path, len(header_bytes) + 4 * count)
    tracemalloc.start()
    check_finite(path, read_header(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * 2**20


# ---------------------------------------------------------------- swaps


@pytest.mark.parametrize("read", [check_finite, load_tensors])
def test_file_swapped_after_its_header_was_checked_is_refused(
    tmp_path: Path, read: Callable[[Path, object], object]
) -> None:
    path = tmp_path / "file"
    write_model(path, {"a": torch.ones(2)}, METADATA)
    header = read_header(path)
    write_model(path, {"b": torch.ones(2)}, METADATA)
    with pytest.raises(InputFileRefused, match="changed while it was being read"):
        read(path, header)


@pytest.mark.parametrize("read", [check_finite, load_tensors])
def test_file_that_grew_after_its_header_was_checked_is_refused(
    tmp_path: Path, read: Callable[[Path, object], object]
) -> None:
    path = tmp_path / "file"
    write_model(path, {"a": torch.ones(2)}, METADATA)
    header = read_header(path)
    path.write_bytes(path.read_bytes() + b"more")
    with pytest.raises(InputFileRefused):
        read(path, header)


def test_values_swapped_after_the_check_are_checked_again_when_loaded(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_model(path, {"a": torch.ones(2)}, METADATA)
    header = read_header(path)
    check_finite(path, header)
    path.write_bytes(path.read_bytes()[:-4] + struct.pack("<f", float("nan")))
    with pytest.raises(InputFileRefused, match="NaN"):
        load_tensors(path, header)


def test_file_cut_while_it_is_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_model(path, {"a": torch.ones(2**19)}, METADATA)
    size = path.stat().st_size
    check = weights._check_values

    def cut_and_check(data: bytearray, dtype: str, name: str, source: str) -> None:
        os.truncate(path, size - 2**20)
        check(data, dtype, name, source)

    header = read_header(path)
    monkeypatch.setattr("genkd.weights._check_values", cut_and_check)
    with pytest.raises(InputFileRefused, match="changed while it was being read"):
        check_finite(path, header)


# ---------------------------------------------------------------- round trips

DTYPES = [
    *(torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.float8_e5m2),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.bool),
]
names = st.text("abcXYZ019._-", min_size=1, max_size=12)


@st.composite
def states(draw: st.DrawFn) -> dict[str, torch.Tensor]:
    state = {}
    for name in draw(st.sets(names, min_size=1, max_size=5)):
        shape = draw(st.lists(st.integers(0, 4), max_size=4))
        dtype = draw(st.sampled_from(DTYPES))
        generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
        values = torch.randint(0, 2, shape, generator=generator)
        state[name] = values.to(dtype)
    return state


@given(states())
@settings(max_examples=80, deadline=None)
def test_any_state_survives_exactly(state: dict[str, torch.Tensor]) -> None:
    data = model_bytes(state, METADATA)
    loaded = read_tensors(data)
    assert loaded.sha256 == sha256_bytes(data)
    assert loaded.tensors.keys() == state.keys()
    for name, tensor in state.items():
        assert loaded.tensors[name].dtype == tensor.dtype
        assert loaded.tensors[name].shape == tensor.shape
        assert torch.equal(loaded.tensors[name].float(), tensor.float())
    assert read_card(loaded.header) == CARD
    assert model_bytes(loaded.tensors, METADATA) == data


def test_bytes_do_not_depend_on_the_order_or_memory_layout_of_the_state() -> None:
    state = build_model(CARD.spec).state_dict()
    permuted = {name: state[name] for name in reversed(state)}
    last = "layer3.0.conv1.weight"
    permuted[last] = state[last].contiguous(memory_format=torch.channels_last)
    assert model_bytes(permuted, METADATA) == model_bytes(state, METADATA)


def test_the_reference_library_reads_and_writes_the_same_bytes(tmp_path: Path) -> None:
    state = build_model(CARD.spec).state_dict()
    path = tmp_path / "student.safetensors"
    write_model(path, state, METADATA)
    assert path.read_bytes() == safetensors.torch.save(state, OURS)
    with safe_open(path, framework="pt") as opened:
        assert opened.metadata() == OURS
    for name, tensor in safetensors.torch.load_file(path).items():
        assert torch.equal(tensor, state[name])


def test_tensors_that_share_memory_with_nothing_can_be_changed() -> None:
    data = model_bytes({"a": torch.ones(2)}, METADATA)
    loaded = load_tensors(data, read_header(data))
    loaded["a"] += 1
    assert load_tensors(data, read_header(data))["a"].tolist() == [1, 1]


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"a": torch.tensor([1.0, float("nan")])}, "NaN"),
        ({"a/b": torch.ones(1)}, "cannot be written"),
        ({"a": torch.ones(1, dtype=torch.complex64)}, "cannot be written"),
    ],
    ids=["NaN", "name", "dtype"],
)
def test_state_that_could_not_be_read_again_is_not_written(
    tmp_path: Path, state: dict[str, torch.Tensor], message: str
) -> None:
    with pytest.raises(InputFileRefused, match=message):
        write_model(tmp_path / "out", state, METADATA)
    assert list(tmp_path.iterdir()) == []


def test_metadata_with_a_float_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="float"):
        write_model(tmp_path / "out", {"a": torch.ones(1)}, {"v": 1, "x": 0.5})
    assert list(tmp_path.iterdir()) == []


def test_unwritable_folder_is_said(tmp_path: Path) -> None:
    with pytest.raises(ResourceExhausted, match="cannot be written"):
        write_model(tmp_path / "no" / "out", {"a": torch.ones(1)}, METADATA)


# ---------------------------------------------------------------- metadata


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("not json", "not valid"),
        ('{"v":1,"v":1}', "stands twice"),
        ("[1]", "unknown version"),
        ('{"v":2}', "unknown version"),
        ('{"v":true}', "unknown version"),
        ("{}", "unknown version"),
        ('{"v":1}', "no model card"),
        ('{"v":1,"card":{}}', "card is not valid"),
    ],
)
def test_metadata_that_is_not_ours_is_refused(text: str, message: str) -> None:
    fields = {"__metadata__": {"genkd": text}, "a": entry()}
    header = read_header(raw(json.dumps(fields).encode(), b"\0" * 8))
    with pytest.raises(InputFileRefused, match=message):
        read_card(header)


def test_a_persons_own_file_may_have_any_metadata_and_no_card() -> None:
    fields = {"__metadata__": {"format": "pt", "epoch": "9"}, "a": entry()}
    data = raw(json.dumps(fields).encode(), b"\0" * 8)
    header = read_header(data, TEACHER_FILE)
    assert header.metadata == {"format": "pt", "epoch": "9"}
    assert read_card(header) is None
    with pytest.raises(InputFileRefused, match="no metadata of this project"):
        read_metadata(header)


def test_reading_headers_and_values_needs_no_torch() -> None:
    code = (
        "import sys, io\n"
        "from genkd import card, digest, durable, errors, weights\n"
        "data = sys.stdin.buffer.read()\n"
        "weights.check_finite(data, weights.read_header(data)); digest.tensor_root(data)\n"
        "sys.exit('torch' in sys.modules)\n"
    )
    data = model_bytes({"a": torch.ones(2)}, METADATA)
    assert subprocess.run([sys.executable, "-c", code], input=data, check=False).returncode == 0


def test_zip_with_a_safetensors_file_in_it_is_still_a_zip() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("model.safetensors", model_bytes({"a": torch.ones(2)}, METADATA))
    with pytest.raises(InputFileRefused, match="zip archive"):
        read_header(buffer.getvalue())
