"""Many students of one card, read together a few megabytes at a time.

    students = AlikeStudents(paths)
    for first, block in students.blocks("fc.weight", range(len(students))):
        ...                                   # block: (students, values), the file's dtype

Each file is opened anew for each reading, so thousands of them need one descriptor, and memory does
not grow with their number but for a path each.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from genkd.card import ModelCard
from genkd.errors import InputFileRefused, UsageError
from genkd.safetensors_header import (
    STUDENT_FILE,
    Header,
    OpenSource,
    TensorInfo,
    changed_while_reading,
    header_of,
    open_source,
)
from genkd.weights import read_card

BLOCK_BYTES = 16 * 2**20  # values of all students that are in memory at once

FLOATS: Mapping[str, str] = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}
COUNTS: Mapping[str, str] = {
    **{"BOOL": "u1", "U8": "u1", "U16": "<u2", "U32": "<u4", "U64": "<u8"},
    **{"I8": "i1", "I16": "<i2", "I32": "<i4", "I64": "<i8"},
}
DTYPES = {**FLOATS, **COUNTS}

Block = np.ndarray[tuple[int, int], np.dtype[Any]]  # Any: of any dtype above


@dataclass(frozen=True)
class _File:
    """One student: where it lies, which file that was, and where its tensors are."""

    path: Path
    identity: tuple[int, int, int, int]
    data_offset: int
    tensors: Mapping[str, TensorInfo]


class AlikeStudents:
    """Model files with the same spec, classes, input card and tensors.

    Args:
        paths: At least one.

    Attributes:
        card: Their card; it keeps the description only if all have the same one.
        tensors: dtype name and shape of each tensor.

    Raises:
        InputFileRefused: If one is not a student file, or differs from the first; the message names
            it and says in what.
        UsageError: If there is none, or the same file is named twice.
    """

    def __init__(self, paths: Sequence[str | os.PathLike[str]]) -> None:
        if not paths:
            raise UsageError("there are no students", hint="name at least one")
        if sys.byteorder != "little":
            raise InputFileRefused(
                "safetensors files are little endian, this machine is not",
                hint="use another machine",
            )
        self._files: list[_File] = []
        seen: set[tuple[int, int]] = set()
        for path in map(Path, paths):
            file, card = _open(path)
            if not self._files:
                self.card = card
                self.tensors = {name: (i.dtype, i.shape) for name, i in file.tensors.items()}
            file = self._as_the_first(file, card)
            if file.identity[:2] in seen:
                raise UsageError(f"{path} is named twice", hint="name every student once")
            seen.add(file.identity[:2])
            self._files.append(file)

    def __len__(self) -> int:
        return len(self._files)

    def _as_the_first(self, file: _File, card: ModelCard) -> _File:
        """The file, if it is like the first; sharing its table of tensors, if that is the same."""
        first = self._files[0] if self._files else file
        kinds = {name: (info.dtype, info.shape) for name, info in file.tensors.items()}
        differing = [
            what
            for what, differs in (
                ("is of another architecture", card.spec != self.card.spec),
                ("takes other images", card.input != self.card.input),
                ("knows other classes", card.class_names != self.card.class_names),
                ("has other tensors", kinds != self.tensors),
            )
            if differs
        ]
        if differing:
            raise InputFileRefused(
                f"{file.path} {differing[0]} than {first.path}",
                hint="only students of one card can be averaged; distil the others into one",
            )
        if card.description != self.card.description:
            self.card = ModelCard(self.card.spec, self.card.input, self.card.class_names)
        if file.tensors == first.tensors:
            return _File(file.path, file.identity, file.data_offset, first.tensors)
        return file

    def blocks(self, name: str, members: Sequence[int]) -> Iterator[tuple[int, Block]]:
        """The values of one tensor in some students, a stretch of it at a time.

        Args:
            name: The tensor.
            members: Positions of the students, at least one.

        Yields:
            The position of the stretch's first value in the flattened tensor, and the values, of
            shape (members, values): finite, of the file's dtype, the caller's to change until the
            next stretch.

        Raises:
            InputFileRefused: If a value is not finite, or a file is no longer the one it was.
        """
        kind, shape = self.tensors[name]
        dtype = np.dtype(DTYPES[kind])
        size = prod(shape)
        most = max(1, BLOCK_BYTES // (len(members) * dtype.itemsize))
        room = np.empty((len(members), min(most, size)), dtype)
        for first in range(0, size, most):
            count = min(most, size - first)
            block = room[:, :count]
            for row, member in zip(block, members, strict=True):
                self._read(self._files[member], name, first, row)
            yield first, block

    def _read(self, file: _File, name: str, first: int, row: npt.NDArray[Any]) -> None:
        """Fill a row with the values of a tensor from the `first` on."""
        info = file.tensors[name]
        with open_source(file.path, STUDENT_FILE.file_bytes) as opened:
            if _identity(opened) != file.identity:
                raise changed_while_reading(opened.name)
            opened.handle.seek(file.data_offset + info.start + first * row.itemsize)
            # `readinto` of a buffered file fills the buffer or meets the end of the file.
            count = opened.handle.readinto(row.view("u1"))  # type: ignore[attr-defined]
            if count != row.nbytes:
                raise changed_while_reading(opened.name)
            _require_sound(row, info.dtype, name, opened.name)


def _open(path: Path) -> tuple[_File, ModelCard]:
    """The checked header of a student file, and its card."""
    with open_source(path, STUDENT_FILE.file_bytes) as opened:
        header = header_of(opened, STUDENT_FILE)
        identity = _identity(opened)
    card = _card(header)
    for name, info in header.tensors.items():
        if info.dtype not in DTYPES:
            raise InputFileRefused(
                f"the tensor {name} of {header.source} is {info.dtype}, which cannot be averaged",
                hint="averages need F16, F32 or F64; distil such students into one",
            )
    return _File(path, identity, header.data_offset, header.tensors), card


def _card(header: Header) -> ModelCard:
    card = read_card(header)
    if card is None:  # the limits on a student file demand its metadata
        raise InputFileRefused(f"{header.source} has no model card", hint="ask for the file again")
    return card


def _identity(opened: OpenSource) -> tuple[int, int, int, int]:
    """What stays the same as long as nobody replaces or writes to the file."""
    status = os.fstat(opened.handle.fileno())
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _require_sound(row: npt.NDArray[Any], dtype: str, name: str, source: str) -> None:
    if dtype in FLOATS and not np.isfinite(row).all():
        raise InputFileRefused(
            f"{source}: the tensor {name} holds NaN or infinite values",
            hint="leave this student out",
        )
    if dtype == "BOOL" and row.max(initial=0) > 1:
        raise InputFileRefused(
            f"{source}: the boolean tensor {name} holds other bytes than 0 and 1",
            hint="leave this student out",
        )
