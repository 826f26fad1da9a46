"""The strict reading of a safetensors header, before any library sees a byte of the file.

    header = read_header("student.safetensors")          # a file from somebody
    header = read_header("mine.safetensors", TEACHER_FILE)

The format (https://huggingface.co/docs/safetensors): 8 bytes with the header's length, little
endian; a JSON object naming dtype, shape and offsets of each tensor; the tensors' bytes. The
library accepts duplicate keys and headers of 100 MB that cost seconds and gigabytes. Here a file
that is not exactly what it should be is refused from its header alone, within a bounded cost.

A source is a path or the bytes themselves. A path can be swapped between two calls; bytes cannot.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import BinaryIO, TypeGuard

from genkd.canonical import parse_json
from genkd.errors import InputFileRefused
from genkd.foreign_formats import describe_format

Source = str | os.PathLike[str] | bytes | bytearray | memoryview

# Bytes per element. What this project can check for finiteness and load; nothing below a byte.
DTYPE_BYTES: Mapping[str, int] = {
    **{"BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1},
    **{"U16": 2, "I16": 2, "F16": 2, "BF16": 2},
    **{"U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8},
}
METADATA_KEY = "__metadata__"
OUR_METADATA = "genkd"
MAX_RANK = 8
MAX_DIMENSION = 2**40
TENSOR_NAME = re.compile(r"[A-Za-z0-9._-]{1,256}")
TENSOR_FIELDS = {"dtype", "shape", "data_offsets"}


@dataclass(frozen=True)
class FileLimits:
    """What a file may be at most.

    Attributes:
        header_bytes: Length of the JSON header, bytes.
        tensors: Number of tensors.
        file_bytes: Length of the whole file, bytes.
        metadata_keys: The exact set of metadata keys, or None for any.
    """

    header_bytes: int
    tensors: int
    file_bytes: int
    metadata_keys: frozenset[str] | None


# A file from somebody: a student as this project writes it.
STUDENT_FILE = FileLimits(2**20, 4096, 2**31, frozenset({OUR_METADATA}))
# The user's own file, written by any tool.
TEACHER_FILE = FileLimits(2**23, 65536, 2**36, None)


@dataclass(frozen=True)
class TensorInfo:
    """One tensor: dtype name, shape, and the half-open byte range within the data section."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Header:
    """What a checked header says.

    Attributes:
        tensors: Entry of each tensor by name, in the order of their bytes.
        metadata: The file's free-text metadata.
        data_offset: Where the data section begins, bytes from the start of the file.
        file_size: Length of the file, bytes.
        sha256: Hex digest of the bytes before the data section; tells whether a later reading of
            the same path still sees this header.
        source: How messages call the file.
    """

    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]
    data_offset: int
    file_size: int
    sha256: str
    source: str

    @property
    def parameters(self) -> int:
        """Number of elements of all tensors together."""
        return sum(prod(info.shape) for info in self.tensors.values())


@dataclass(frozen=True)
class OpenSource:
    """A source opened for reading: the handle, its length in bytes, and its name for messages."""

    handle: BinaryIO
    size: int
    name: str


def source_name(source: Source) -> str:
    """How messages call `source`: one line without control characters."""
    if isinstance(source, bytes | bytearray | memoryview):
        return "the received file"
    name = os.fspath(source)
    return name if name.isprintable() and len(name) < 512 else ascii(name[-256:])


@contextlib.contextmanager
def open_source(source: Source, max_bytes: int) -> Iterator[OpenSource]:
    """Open a regular file, or wrap bytes, for one consistent reading.

    Args:
        source: A path or the bytes.
        max_bytes: The largest length accepted.

    Yields:
        The open source, positioned at its start.

    Raises:
        InputFileRefused: If it is missing, unreadable, not a regular file, empty or too large; also
            if reading fails later, inside the block.
    """
    name = source_name(source)
    if isinstance(source, bytes | bytearray | memoryview):
        size = memoryview(source).nbytes
        _check_size(name, size, max_bytes)
        yield OpenSource(io.BytesIO(source), size, name)
        return
    try:
        # Non-blocking, so that opening a named pipe cannot hang.
        descriptor = os.open(source, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        raise _unreadable(name, error) from error
    try:
        status = os.fstat(descriptor)
        _check_kind(name, status.st_mode)
        _check_size(name, status.st_size, max_bytes)
        with os.fdopen(descriptor, "rb", closefd=False) as handle:
            yield OpenSource(handle, status.st_size, name)
    except OSError as error:
        raise _unreadable(name, error) from error
    finally:
        os.close(descriptor)


def _check_kind(name: str, mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise InputFileRefused(f"{name} is a folder", hint="give the .safetensors file inside it")
    if not stat.S_ISREG(mode):
        raise InputFileRefused(
            f"{name} is not a regular file", hint="copy it to a file on the disk first"
        )


def _unreadable(name: str, error: OSError | ValueError) -> InputFileRefused:
    if isinstance(error, FileNotFoundError):
        return InputFileRefused(f"{name} does not exist", hint="check the path")
    code = error.errno if isinstance(error, OSError) else None
    reason = os.strerror(code) if code else "not a valid path"
    return InputFileRefused(
        f"{name} cannot be read: {reason}", hint="check the path and the file's permissions"
    )


def _check_size(name: str, size: int, max_bytes: int) -> None:
    if size == 0:
        raise InputFileRefused(f"{name} is empty", hint="copy or download the file again")
    if size > max_bytes:
        raise InputFileRefused(
            f"{name} has {size} bytes, more than the {max_bytes} allowed",
            hint="this is too large for a model of this kind; check that it is the right file",
        )


def read_header(source: Source, limits: FileLimits = STUDENT_FILE) -> Header:
    """Read and check the header of a safetensors file; no tensor is read.

    Args:
        source: A path or the file's bytes.
        limits: `STUDENT_FILE` for files from others, `TEACHER_FILE` for the user's own.

    Raises:
        InputFileRefused: If the file is not exactly a safetensors file within the limits.
    """
    with open_source(source, limits.file_bytes) as opened:
        return header_of(opened, limits)


def header_of(opened: OpenSource, limits: FileLimits) -> Header:
    """As `read_header`, on an open source; leaves it positioned at the data section."""
    raw = _raw_header(opened, limits)
    data_offset = 8 + len(raw)
    try:
        fields = parse_json(raw)
        if not isinstance(fields, dict):
            raise ValueError("the header is not a JSON object")
        metadata = _metadata(fields.pop(METADATA_KEY, {}), limits)
        tensors = _tensors(fields, limits, opened.size - data_offset)
    except ValueError as error:
        raise InputFileRefused(
            f"{opened.name} is not a valid safetensors file: {error}",
            hint="ask for the file again, or write it anew with safetensors.torch.save_file",
        ) from error
    length = len(raw).to_bytes(8, "little")
    digest = hashlib.sha256(length + raw).hexdigest()
    return Header(tensors, metadata, data_offset, opened.size, digest, opened.name)


def _raw_header(opened: OpenSource, limits: FileLimits) -> bytes:
    """The header's JSON bytes, after making sure that this is a safetensors file at all."""
    beginning = opened.handle.read(512)
    length = int.from_bytes(beginning[:8], "little")
    if beginning[8:9] != b"{":
        what, hint = describe_format(beginning)
        raise InputFileRefused(f"{opened.name} {what}", hint=hint)
    if length > limits.header_bytes:
        raise InputFileRefused(
            f"{opened.name} has a header of {length} bytes, more than {limits.header_bytes}",
            hint="a model's header is a few kilobytes; do not trust this file",
        )
    if 8 + length > opened.size:
        raise InputFileRefused(
            f"{opened.name} is truncated: its header alone needs {8 + length} of its "
            f"{opened.size} bytes",
            hint="copy or download the file again",
        )
    opened.handle.seek(8)
    raw = opened.handle.read(length)
    if len(raw) != length:
        raise changed_while_reading(opened.name)
    # A tensor needs three brackets, four colons and at most eleven commas. Hundreds of thousands
    # are an attack on the JSON parser's time and memory; the allowance is for JSON in metadata.
    structure = sum(raw.count(mark) for mark in (b"{", b"[", b":"))
    if structure > 8 * limits.tensors + 1024 or raw.count(b",") > 16 * limits.tensors:
        raise InputFileRefused(
            f"{opened.name} is not a valid safetensors file: its header has too many fields",
            hint="a model's header is a few kilobytes; do not trust this file",
        )
    return raw


def changed_while_reading(name: str) -> InputFileRefused:
    """The error for a file that is not the one that was checked."""
    return InputFileRefused(
        f"{name} changed while it was being read",
        hint="wait until nothing writes to the file, then repeat",
    )


def _metadata(value: object, limits: FileLimits) -> dict[str, str]:
    if not isinstance(value, dict):
        raise ValueError("its metadata is not an object")
    metadata: dict[str, str] = {}
    for key, text in value.items():
        if not isinstance(text, str):
            raise ValueError(f"the metadata {key[:64]!a} is not a string")
        (key + text).encode("utf-8")  # a lone surrogate raises UnicodeEncodeError, a ValueError
        metadata[key] = text
    if limits.metadata_keys is not None and metadata.keys() != limits.metadata_keys:
        wanted = ", ".join(sorted(limits.metadata_keys))
        raise ValueError(f"its metadata must be exactly {wanted!r}, as this project writes it")
    return metadata


def _tensors(
    fields: dict[str, object], limits: FileLimits, data_bytes: int
) -> dict[str, TensorInfo]:
    """The checked entries, which must cover `data_bytes` exactly, without gap or overlap."""
    if not fields:
        raise ValueError("it holds no tensors")
    if len(fields) > limits.tensors:
        raise ValueError(f"it holds {len(fields)} tensors, more than {limits.tensors}")
    entries = [(name, _tensor(name, entry)) for name, entry in fields.items()]
    entries.sort(key=lambda item: (item[1].start, item[1].end))
    position = 0
    for name, info in entries:
        if info.start != position:
            kind = "overlaps another" if info.start < position else "leaves a gap before it"
            raise ValueError(f"the tensor {name} {kind}")
        position = info.end
    if position > data_bytes:
        raise ValueError(f"truncated: {data_bytes} of {position} bytes of tensors are there")
    if position < data_bytes:
        raise ValueError(f"{data_bytes - position} bytes follow the last tensor")
    return dict(entries)


def _tensor(name: str, entry: object) -> TensorInfo:
    if not TENSOR_NAME.fullmatch(name):
        raise ValueError(f"the tensor name {name[:64]!a} is not allowed")
    if not isinstance(entry, dict) or entry.keys() != TENSOR_FIELDS:
        raise ValueError(f"the entry of {name} needs exactly dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        raise ValueError(f"the dtype of {name} is unknown: {ascii(dtype)[:32]}")
    if not _counts(shape, MAX_DIMENSION) or len(shape) > MAX_RANK:
        raise ValueError(f"the shape of {name} is not a list of at most {MAX_RANK} lengths")
    if not _counts(offsets, 2**62) or len(offsets) != 2:
        raise ValueError(f"the offsets of {name} are not two positions")
    start, end = offsets
    if end - start != prod(shape) * DTYPE_BYTES[dtype]:
        raise ValueError(f"{name} has {end - start} bytes, not what its shape and dtype need")
    return TensorInfo(dtype, tuple(shape), start, end)


def _counts(value: object, maximum: int) -> TypeGuard[list[int]]:
    """Whether `value` is a list of integers (no booleans) from 0 to `maximum`."""
    return isinstance(value, list) and all(
        type(item) is int and 0 <= item <= maximum for item in value
    )
