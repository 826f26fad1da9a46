"""Model files: strict reading of safetensors from anybody, and writing with deterministic bytes.

    header = read_header("student.safetensors")         # structure, without reading a tensor
    check_finite("student.safetensors", header)         # every value, without torch
    state = load_tensors("student.safetensors", header) # needs torch
    write_model("out.safetensors", model.state_dict(), {"v": 1, "card": card_to_json(card)})

Every function that takes a path and a header refuses a file whose header is no longer that one, and
`load_tensors` checks the very bytes it returns. To check and load bytes that nobody can swap in
between, read the file once and pass the bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from genkd.canonical import canonical_json, parse_json
from genkd.card import ModelCard, card_from_json
from genkd.durable import atomic_write
from genkd.errors import InputFileRefused
from genkd.safetensors_header import (
    DTYPE_BYTES,
    METADATA_KEY,
    OUR_METADATA,
    STUDENT_FILE,
    TEACHER_FILE,
    TENSOR_NAME,
    FileLimits,
    Header,
    OpenSource,
    Source,
    TensorInfo,
    changed_while_reading,
    header_of,
    open_source,
    read_header,
)

if TYPE_CHECKING:
    import torch

__all__ = [
    "STUDENT_FILE",
    "TEACHER_FILE",
    "FileLimits",
    "Header",
    "LoadedTensors",
    "TensorInfo",
    "check_finite",
    "load_tensors",
    "model_bytes",
    "model_layout",
    "read_card",
    "read_header",
    "read_metadata",
    "read_tensors",
    "write_model",
]

MODEL_VERSION = 1
CHUNK_BYTES = 2**20

# A value is finite unless these bits are all set: the exponent of IEEE 754 (and bfloat16, E5M2)
# formats. E4M3 has no infinity and one NaN, all exponent and mantissa bits set (arXiv:2209.05433).
NOT_FINITE: Mapping[str, tuple[str, int]] = {
    "F64": ("<u8", 0x7FF0_0000_0000_0000),
    "F32": ("<u4", 0x7F80_0000),
    "F16": ("<u2", 0x7C00),
    "BF16": ("<u2", 0x7F80),
    "F8_E5M2": ("u1", 0x7C),
    "F8_E4M3": ("u1", 0x7F),
}
TORCH_NAMES: Mapping[str, str] = {
    **{"BOOL": "bool", "U8": "uint8", "I8": "int8", "I16": "int16", "I32": "int32", "I64": "int64"},
    **{"U16": "uint16", "U32": "uint32", "U64": "uint64"},
    **{"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"},
    **{"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"},
}


@dataclass(frozen=True)
class LoadedTensors:
    """What one consistent reading of a file gave.

    Attributes:
        header: Its checked header.
        tensors: Each tensor, on the CPU, in the file's dtype; all values are finite.
        sha256: Hex digest of exactly the bytes that were read.
    """

    header: Header
    tensors: dict[str, torch.Tensor]
    sha256: str


def read_metadata(header: Header) -> dict[str, object]:
    """The JSON object under the one metadata key of this project.

    Raises:
        InputFileRefused: If there is none, or it is not a JSON object of a known version.
    """
    text = header.metadata.get(OUR_METADATA)
    if text is None:
        raise InputFileRefused(
            f"{header.source} has no metadata of this project",
            hint="only models written by this project carry it",
        )
    try:
        value = parse_json(text, allow_floats=True)
    except ValueError as error:
        raise InputFileRefused(
            f"the metadata of {header.source} is not valid: {error}", hint="ask for the file again"
        ) from error
    version = value.get("v") if isinstance(value, dict) else None
    if not isinstance(value, dict) or type(version) is not int or version != MODEL_VERSION:
        raise InputFileRefused(
            f"the metadata of {header.source} is of an unknown version",
            hint="update this program, or ask for the file again",
        )
    return value


def read_card(header: Header) -> ModelCard | None:
    """The model card in the file's metadata, or None if the file has no metadata of this project.

    Raises:
        InputFileRefused: If the metadata or the card in it is not valid.
    """
    if OUR_METADATA not in header.metadata:
        return None
    metadata = read_metadata(header)
    if "card" not in metadata:
        raise InputFileRefused(
            f"the metadata of {header.source} has no model card", hint="ask for the file again"
        )
    return card_from_json(metadata["card"])


def check_finite(source: Source, header: Header) -> None:
    """Check every value of a file in chunks, without torch and in a few megabytes.

    Args:
        source: A path or the file's bytes.
        header: Its header, from `read_header`.

    Raises:
        InputFileRefused: If a number is NaN or infinite, a boolean is neither 0 nor 1, or the file
            is no longer the one of `header`.
    """
    with open_source(source, header.file_size) as opened:
        _skip_same_header(opened, header)
        for name, info in header.tensors.items():
            remaining = info.end - info.start
            while remaining:
                chunk = bytearray(min(CHUNK_BYTES, remaining))
                _fill(opened, chunk)
                _check_values(chunk, info.dtype, name, header.source)
                remaining -= len(chunk)


def load_tensors(source: Source, header: Header) -> dict[str, torch.Tensor]:
    """The tensors of a file whose header was checked, on the CPU, in the file's dtypes.

    Args:
        source: A path or the file's bytes.
        header: Its header, from `read_header`.

    Raises:
        InputFileRefused: As `check_finite`, which it includes.
    """
    with open_source(source, header.file_size) as opened:
        _skip_same_header(opened, header)
        return _load(opened, header, hashlib.sha256())


def read_tensors(source: Source, limits: FileLimits = STUDENT_FILE) -> LoadedTensors:
    """Check, digest and load a file in one reading: what is returned is what was checked.

    Raises:
        InputFileRefused: As `read_header` and `check_finite`.
    """
    with open_source(source, limits.file_bytes) as opened:
        header = header_of(opened, limits)
        opened.handle.seek(0)
        digest = hashlib.sha256(opened.handle.read(header.data_offset))
        if digest.hexdigest() != header.sha256:
            raise changed_while_reading(opened.name)
        tensors = _load(opened, header, digest)
        return LoadedTensors(header, tensors, digest.hexdigest())


def _skip_same_header(opened: OpenSource, header: Header) -> None:
    """Move to the data section, if the file still has the header that was checked."""
    raw = opened.handle.read(header.data_offset)
    if opened.size != header.file_size or hashlib.sha256(raw).hexdigest() != header.sha256:
        raise changed_while_reading(opened.name)


def _fill(opened: OpenSource, buffer: bytearray) -> None:
    """Fill `buffer` with the next bytes."""
    view = memoryview(buffer)
    while view:
        count = opened.handle.readinto(view)  # type: ignore[attr-defined]
        if not count:
            raise changed_while_reading(opened.name)
        view = view[count:]


def _check_values(data: bytearray, dtype: str, name: str, source: str) -> None:
    """Refuse values a network cannot hold; `data` is a whole number of elements."""
    if dtype == "BOOL":
        if max(data, default=0) > 1:
            raise InputFileRefused(
                f"{source}: the boolean tensor {name} holds other bytes than 0 and 1",
                hint="the file is damaged; ask for it again",
            )
    elif dtype in NOT_FINITE:
        kind, bits = NOT_FINITE[dtype]
        values = np.frombuffer(data, dtype=kind)
        mask = values.dtype.type(bits)
        if ((values & mask) == mask).any():
            raise InputFileRefused(
                f"{source}: the tensor {name} holds NaN or infinite values",
                hint="the model diverged while it was trained; use an earlier checkpoint",
            )


def _load(opened: OpenSource, header: Header, digest: hashlib._Hash) -> dict[str, torch.Tensor]:
    """Read the tensors from the data section on, feeding `digest` with the same bytes."""
    import torch

    if sys.byteorder != "little":
        raise InputFileRefused(
            "safetensors files are little endian, this machine is not", hint="use another machine"
        )
    tensors: dict[str, torch.Tensor] = {}
    for name, info in header.tensors.items():
        # A buffer per tensor: aligned for its dtype, and freed with it.
        data = bytearray(info.end - info.start)
        _fill(opened, data)
        digest.update(data)
        for start in range(0, len(data), CHUNK_BYTES):
            _check_values(data[start : start + CHUNK_BYTES], info.dtype, name, header.source)
        dtype: torch.dtype = getattr(torch, TORCH_NAMES[info.dtype])
        flat = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
        tensors[name] = flat.reshape(info.shape)
    return tensors


def model_bytes(state: Mapping[str, torch.Tensor], metadata: Mapping[str, object]) -> bytes:
    """The bytes of a model file; equal states and metadata give equal bytes, on any machine.

    Tensors are ordered by element size, largest first, then by name: every tensor is aligned, and
    the reference library writes the same order.

    Args:
        state: Tensors by name, any device; written in their own dtype.
        metadata: Plain values without floats, at least {"v": 1, "card": ...}.

    Raises:
        InputFileRefused: If a value is not finite, or a name or dtype cannot be written.
        ValueError: If `metadata` has no canonical form.
    """
    dtype_names = {f"torch.{torch_name}": name for name, torch_name in TORCH_NAMES.items()}
    arrays: dict[str, bytes] = {}
    kinds: dict[str, tuple[str, tuple[int, ...]]] = {}
    for name, tensor in state.items():
        dtype = dtype_names.get(str(tensor.dtype))
        if dtype is None or not TENSOR_NAME.fullmatch(name):
            raise InputFileRefused(
                f"the tensor {name[:64]!a} of {tensor.dtype} cannot be written",
                hint="name tensors with letters, digits, '.', '_' and '-'; use float32",
            )
        data = _bytes_of(tensor)
        _check_values(bytearray(data), dtype, name, "the model to be written")
        arrays[name], kinds[name] = data, (dtype, tuple(tensor.shape))
    beginning, tensors = model_layout(kinds, metadata)
    return b"".join([beginning, *(arrays[name] for name in tensors)])


def model_layout(
    tensors: Mapping[str, tuple[str, tuple[int, ...]]], metadata: Mapping[str, object]
) -> tuple[bytes, dict[str, TensorInfo]]:
    """The beginning of a model file, and where each tensor's bytes belong after it.

    Args:
        tensors: dtype name and shape of each tensor.
        metadata: As for `model_bytes`.

    Returns:
        The bytes before the data section; the entry of each tensor, in the order of its bytes.

    Raises:
        ValueError: If `metadata` has no canonical form.
    """
    fields: dict[str, object] = {
        METADATA_KEY: {OUR_METADATA: canonical_json(metadata).decode("utf-8")}
    }
    entries: dict[str, TensorInfo] = {}
    position = 0
    order = sorted(tensors.items(), key=lambda item: (-DTYPE_BYTES[item[1][0]], item[0]))
    for name, (dtype, shape) in order:
        end = position + prod(shape) * DTYPE_BYTES[dtype]
        fields[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, end]}
        entries[name] = TensorInfo(dtype, shape, position, end)
        position = end
    header = json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header, entries


def _bytes_of(tensor: torch.Tensor) -> bytes:
    import torch

    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def write_model(
    path: str | os.PathLike[str],
    state: Mapping[str, torch.Tensor],
    metadata: Mapping[str, object],
) -> None:
    """Write a model file atomically; the bytes are those of `model_bytes`.

    Raises:
        InputFileRefused: As `model_bytes`.
        ResourceExhausted: If the file cannot be written.
        ValueError: If `metadata` has no canonical form.
    """
    atomic_write(path, model_bytes(state, metadata))
