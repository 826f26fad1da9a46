"""Arrays out of `.npz` and idx files that are not trusted.

A header is believed only as far as the file bears it out: pickles are never unpacked, sizes are
bounded before memory is taken, and a file that is truncated or goes on too long is refused.
"""

from __future__ import annotations

import gzip
import io
import lzma
import math
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

import numpy as np
from numpy.typing import NDArray

from genkd.errors import InputFileRefused

# What one data set may take in memory; more is evaluated in parts.
MAX_DATA_BYTES = 8 * 2**30
# Deflate cannot shrink more than 1032 to 1, so a gzip file this many times smaller lies.
MAX_DEFLATE_RATIO = 1032
# How the arrays of an .npz file are called: by us, by Keras, by MedMNIST, and in short.
NPZ_NAMES = (
    ("images", "labels"),
    ("x_test", "y_test"),
    ("test_images", "test_labels"),
    ("x", "y"),
)
Part = Literal["test", "train"]
IDX_UNSIGNED_BYTE = 0x08
MAX_NPY_HEADER = 10_000
# What zipfile, gzip, zlib, Pillow and numpy's parser of headers raise over a broken file.
BROKEN_FILE = (
    *(OSError, EOFError, ValueError, RuntimeError, NotImplementedError, SyntaxError),
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error),
)


def refuse_too_large(size: int, where: str, max_bytes: int = MAX_DATA_BYTES) -> None:
    """Raise InputFileRefused if `size` bytes are more than `max_bytes`."""
    if size > max_bytes:
        raise InputFileRefused(
            f"{where}: the data would take {size // 2**30:,} GiB of memory",
            hint=f"give a part of them, of at most {max_bytes / 2**30:g} GiB",
        )


def _read_exactly(stream: BinaryIO, size: int, where: str) -> NDArray[np.uint8]:
    """The next `size` bytes of `stream`, which must then be at its end; uint8 (size,)."""
    data = np.empty(size, np.uint8)
    view, filled = data.data, 0
    while filled < size:
        # In pieces of a MiB: a lying header costs the memory of what is really there, no more.
        count = cast(Any, stream).readinto(view[filled : filled + 2**20])
        if not count:
            raise InputFileRefused(
                f"{where} is truncated: {filled} bytes of data where its header says {size}",
                hint="fetch the file again",
            )
        filled += count
    if stream.read(1):
        raise InputFileRefused(
            f"{where} goes on after the data that its header tells of", hint="fetch the file again"
        )
    return data


# --- .npz -----------------------------------------------------------------------------------------


def read_npz(path: Path) -> tuple[NDArray[Any], NDArray[Any]]:
    """The images and the labels of an `.npz` file, as they are: any shape, any kind of number.

    Raises:
        InputFileRefused: If the file is broken, or holds no such arrays of numbers.
    """
    present = _names_in(path)
    for names in NPZ_NAMES:
        if set(names) <= present:
            images, labels = read_arrays(path, names).values()
            return images, labels
    raise InputFileRefused(
        f"{path} holds no arrays `images` and `labels` (it holds {listing(sorted(present))})",
        hint="name them images and labels, x_test and y_test, or x and y",
    )


def read_arrays(
    path: Path, names: Sequence[str], max_bytes: int = MAX_DATA_BYTES
) -> dict[str, NDArray[Any]]:
    """Those of the arrays `names` that an `.npz` file holds, in the order of `names`.

    Args:
        path: The file.
        names: What the arrays are called.
        max_bytes: How much memory one of them may take.

    Raises:
        InputFileRefused: If the file is broken, or an array is too large or not of numbers.
    """
    present = _names_in(path)
    with _opened(path) as archive:
        return {n: _read_npy(archive, n, path, max_bytes) for n in names if n in present}


def _names_in(path: Path) -> set[str]:
    with _opened(path) as archive:
        return {n.removesuffix(".npy") for n in archive.namelist() if n.endswith(".npy")}


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except BROKEN_FILE as error:
        raise InputFileRefused(
            f"{path} is not an intact .npz file: {reason(error)}",
            hint="save it again with numpy.savez(path, images=..., labels=...)",
        ) from error


def _read_npy(archive: zipfile.ZipFile, name: str, path: Path, max_bytes: int) -> NDArray[Any]:
    """One array of numbers."""
    where = f"{path} ({name})"
    with archive.open(f"{name}.npy") as opened:
        member = cast(BinaryIO, opened)
        shape, fortran_order, dtype = _npy_header(member)
        # Objects are pickles: never unpacked. The kinds below are numbers of a fixed size.
        if dtype.kind not in "biuf" or any(side < 0 for side in shape):
            raise InputFileRefused(
                f"{where} is not an array of numbers", hint="images are uint8, labels int64"
            )
        size = math.prod(shape) * dtype.itemsize
        refuse_too_large(size, where, max_bytes)
        if size > archive.getinfo(f"{name}.npy").file_size:
            raise InputFileRefused(
                f"{where} says it is of shape {shape}, more than the file holds",
                hint="fetch the file again",
            )
        data = _read_exactly(member, size, where)
    return data.view(dtype).reshape(shape, order="F" if fortran_order else "C")


def _npy_header(member: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether it is in Fortran's order, and dtype."""
    version = np.lib.format.read_magic(member)
    try:
        if version == (1, 0):
            return np.lib.format.read_array_header_1_0(member)
        if version == (2, 0):
            # numpy reads a header whole before it finds it too long.
            length = member.read(4)
            if int.from_bytes(length, "little") > MAX_NPY_HEADER:
                raise ValueError(f"its header is longer than {MAX_NPY_HEADER} bytes")
            header = length + member.read(int.from_bytes(length, "little"))
            return np.lib.format.read_array_header_2_0(io.BytesIO(header))
    except MemoryError as error:  # what Python's parser says of a header nested too deeply
        raise ValueError("its header is nested too deeply") from error
    raise ValueError(f"an array format {version[0]}.{version[1]} holds no plain numbers")


# --- idx, the format of MNIST ---------------------------------------------------------------------


def idx_images_in(folder: Path, part: Part = "test") -> list[Path]:
    """The images of that part among the files of `folder`; the unpacked file first."""
    prefix = "train" if part == "train" else "t10k"
    found = [path for path in folder.glob(f"{prefix}-images*") if path.is_file()]
    return sorted(found, key=lambda path: (path.suffix == ".gz", path.name))


def read_idx_pair(images: Path) -> tuple[NDArray[Any], NDArray[Any]]:
    """The images of an idx file, and the labels of the file that lies beside it.

    Args:
        images: The images file, called as MNIST calls its own: the labels file has "labels" in the
            place of "images". Either may be gzipped.

    Returns:
        uint8 (N, H, W) or (N, H, W, C) and uint8 (N,), if the headers are to be believed.

    Raises:
        InputFileRefused: If one of them is missing or broken.
    """
    name = images.name.removesuffix(".gz").replace("images", "labels").replace("idx3", "idx1")
    for labels in (images.with_name(name), images.with_name(f"{name}.gz")):
        if labels.is_file():
            return _read_idx(images), _read_idx(labels)
    raise InputFileRefused(
        f"{images} has no labels file beside it", hint=f"put {name} into the same folder"
    )


def _read_idx(path: Path) -> NDArray[np.uint8]:
    """One idx file of unsigned bytes: 0, 0, type, rank, sides as big-endian uint32, data."""
    try:
        packed = path.suffix == ".gz"
        bound = path.stat().st_size * (MAX_DEFLATE_RATIO if packed else 1)
        with gzip.open(path) if packed else path.open("rb") as opened:
            stream = cast(BinaryIO, opened)
            start = stream.read(4)
            if len(start) < 4 or start[:2] != b"\0\0" or start[2] != IDX_UNSIGNED_BYTE:
                raise InputFileRefused(
                    f"{path} is not an idx file of unsigned bytes",
                    hint="MNIST calls such files t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte",
                )
            rank = start[3]
            sides = struct.unpack(f">{rank}I", stream.read(4 * rank))
            size = math.prod(sides)
            if not 1 <= rank <= 4 or size > bound:
                raise InputFileRefused(
                    f"{path} says it is of shape {sides}, more than the file can hold",
                    hint="fetch the file again",
                )
            refuse_too_large(size, str(path))
            return _read_exactly(stream, size, str(path)).reshape(sides)
    except BROKEN_FILE as error:
        raise InputFileRefused(
            f"{path} is not an intact idx file: {reason(error)}", hint="fetch the file again"
        ) from error


def reason(error: BaseException) -> str:
    """The first line of what a library said, or the name of the error where it said nothing."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = str(error).splitlines()
    return lines[0][:200] if lines else type(error).__name__


def listing(names: Sequence[str]) -> str:
    """Names for a message: the first few, whatever a file calls its entries."""
    shown = ", ".join(repr(name[:40]) for name in names[:6])
    return f"{shown}, and {len(names) - 6} more" if len(names) > 6 else shown or "nothing"
