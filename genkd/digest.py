"""Digests that identify: of bytes, of files, and of the tensors inside a model file.

    sha256_file("student.safetensors")   # the file, byte for byte
    tensor_root("student.safetensors")   # the tensors, however the file spells them

All digests are lowercase hex. SHA-256 throughout: fast, and what OpenSSF Model Signing uses.
"""

from __future__ import annotations

import hashlib
import os
import struct

from genkd.canonical import canonical_json
from genkd.safetensors_header import (
    TEACHER_FILE,
    OpenSource,
    Source,
    TensorInfo,
    changed_while_reading,
    header_of,
    open_source,
)

__all__ = ["canonical_json", "sha256_bytes", "sha256_file", "tensor_root"]

CHUNK_BYTES = 2**20
TENSOR_TAG = b"genkd tensor v1"
LEAF, INNER = b"\x00", b"\x01"


def sha256_bytes(data: bytes | bytearray | memoryview) -> str:
    """Hex SHA-256 of `data`."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: str | os.PathLike[str]) -> str:
    """Hex SHA-256 of the file at `path`, read in chunks.

    Raises:
        InputFileRefused: If it is missing, unreadable, empty or not a regular file.
    """
    with open_source(path, max_bytes=2**62) as opened:
        return hashlib.file_digest(opened.handle, "sha256").hexdigest()  # type: ignore[arg-type]


def tensor_root(source: Source) -> str:
    """Hex Merkle root over the tensors of a safetensors file, independent of how it was written.

    Sorted by name (bytes of UTF-8), with numbers big endian and lengths in front of what they
    measure, so that no two models share an encoding::

        leaf  = sha256(0x00 | u32 len, tag | u32 len, name | u32 len, dtype
                            | u32 rank, u64 each dimension | u64 len, bytes)
        inner = sha256(0x01 | left | right)

    Neighbours are paired level by level; a last one without a neighbour moves up unchanged (it is
    never doubled, so two lists of tensors cannot share a root).

    Args:
        source: A path or the file's bytes; any metadata is accepted and does not count.

    Raises:
        InputFileRefused: If it is not a valid safetensors file.
    """
    with open_source(source, TEACHER_FILE.file_bytes) as opened:
        header = header_of(opened, TEACHER_FILE)
        # Read in the order of the bytes, combine in the order of the names.
        leaves = {name: _leaf(opened, name, info) for name, info in header.tensors.items()}
    level = [leaves[name] for name in sorted(leaves)]
    while len(level) > 1:
        pairs = zip(level[::2], level[1::2], strict=False)
        above = [hashlib.sha256(INNER + left + right).digest() for left, right in pairs]
        level = above + level[len(above) * 2 :]
    return level[0].hex()


def _leaf(opened: OpenSource, name: str, info: TensorInfo) -> bytes:
    """Digest of one tensor, whose bytes are the next ones of `opened`."""
    digest = hashlib.sha256(LEAF)
    for text in (TENSOR_TAG, name.encode(), info.dtype.encode()):
        digest.update(struct.pack(">I", len(text)) + text)
    rank = len(info.shape)
    remaining = info.end - info.start
    digest.update(struct.pack(f">I{rank}QQ", rank, *info.shape, remaining))
    while remaining:
        chunk = opened.handle.read(min(CHUNK_BYTES, remaining))
        if not chunk:
            raise changed_while_reading(opened.name)
        digest.update(chunk)
        remaining -= len(chunk)
    return digest.digest()
