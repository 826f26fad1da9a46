"""The files of a message, packed into two Flower arrays: the large one, and all the small ones.

    arrays, sizes = pack(files, large="student.safetensors")
    files = unpack(arrays, sizes, limits, large="student.safetensors")

Flower fetches each array with two requests of six hundred bytes, one for it and one for what is in
it. So what is small travels as one array, whose sizes stand in the message's control data; what is
large has one to itself and is not copied.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from flwr.app import Array, ArrayRecord

LARGE, SMALL = "large", "small"
DTYPE, STYPE = "uint8", "bytes"
MAX_FILES: Final = 100


class Malformed(ValueError):
    """What came is not what `pack` makes."""


def pack(files: Mapping[str, bytes], *, large: str) -> tuple[ArrayRecord | None, dict[str, int]]:
    """Pack files.

    Args:
        files: By name; none of them is empty.
        large: The one that has an array to itself, if it is among them.

    Returns:
        The arrays, None for no files; and the sizes of all but the large file, by name.
    """
    small = {name: data for name, data in sorted(files.items()) if name != large}
    parts = {SMALL: b"".join(small.values()), LARGE: files.get(large, b"")}
    arrays = {key: Array(DTYPE, (len(one),), STYPE, one) for key, one in parts.items() if one}
    return ArrayRecord(arrays) if arrays else None, {name: len(one) for name, one in small.items()}


def unpack(
    arrays: object, sizes: object, limits: Mapping[str, int], *, large: str
) -> dict[str, bytes]:
    """The inverse of `pack`, which believes nothing.

    Args:
        arrays: What came as the arrays; None if nothing did.
        sizes: What came as the sizes.
        limits: The most bytes that each file may have; other files are refused.
        large: As `pack`.

    Raises:
        Malformed: If it is anything else.
    """
    parts = {} if arrays is None else _parts(arrays)
    if not isinstance(sizes, dict) or len(sizes) > MAX_FILES or not set(sizes) <= set(limits):
        raise Malformed("it holds other files than the expected ones")
    for name, size in sizes.items():
        if name == large or type(size) is not int or not 0 < size <= limits[name]:
            raise Malformed(f"its {name} is empty, or larger than {limits[name]} bytes")
    small = parts.get(SMALL, b"")
    if len(small) != sum(sizes.values()):
        raise Malformed("its files are not of the sizes that it says")
    files, at = {}, 0
    for name in sorted(sizes):
        files[name] = small[at : at + sizes[name]]
        at += sizes[name]
    if LARGE in parts:
        if large not in limits or len(parts[LARGE]) > limits[large]:
            raise Malformed(f"its {large} is larger than it may be")
        files[large] = parts[LARGE]
    return files


def _parts(arrays: object) -> dict[str, bytes]:
    if not isinstance(arrays, ArrayRecord) or not arrays or not set(arrays) <= {LARGE, SMALL}:
        raise Malformed("its files are not in the expected arrays")
    for key, array in arrays.items():
        said = (array.dtype, tuple(array.shape), array.stype)
        data = array.data
        if not isinstance(data, bytes) or not data or said != (DTYPE, (len(data),), STYPE):
            raise Malformed(f"its {key} files do not travel as bytes")
    return {key: array.data for key, array in arrays.items()}
