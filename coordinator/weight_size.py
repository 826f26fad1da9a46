"""How large the numbers of a student are, read from its file in chunks and without torch.

    size = weight_size(Path("student.safetensors"), header)
    size.weights, size.statistics             # root mean squares

Scaling a student's weights by a thousand leaves every value finite and ruins whatever it is merged
into. Running statistics of BatchNorm are measured apart: they are as large as the activations, and
a variance below zero turns every output into NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from genkd.errors import InputFileRefused
from genkd.safetensors_header import Header, changed_while_reading, open_source

CHUNK_BYTES: Final = 2**20
MEAN, VARIANCE = "running_mean", "running_var"
FLOATS: Final = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}
BRAIN_FLOAT: Final = "BF16"  # the upper half of a float32
OTHER_FLOATS: Final = ("F8_E4M3", "F8_E5M2")


@dataclass(frozen=True)
class WeightSize:
    """The size of a student's numbers.

    Attributes:
        weights: Root mean square of all floating-point tensors but the running statistics.
        statistics: Root mean square of the running means and variances; 0 if there are none.
    """

    weights: float
    statistics: float


def weight_size(path: Path, header: Header) -> WeightSize:
    """Measure a student whose header was checked.

    Args:
        path: The file.
        header: Its header, from `read_header`.

    Raises:
        InputFileRefused: If a running variance is negative, a tensor holds floats of eight bits, or
            the file is no longer the one of `header`.
    """
    sums, counts = [0.0, 0.0], [0, 0]
    with open_source(path, header.file_size) as opened, np.errstate(over="ignore"):
        for name, info in header.tensors.items():
            if info.dtype in OTHER_FLOATS:
                raise InputFileRefused(
                    f"the tensor {name} is of {info.dtype}", hint="publish a student of float32"
                )
            if info.dtype not in FLOATS and info.dtype != BRAIN_FLOAT:
                continue
            opened.handle.seek(header.data_offset + info.start)
            kind = int(name.endswith((MEAN, VARIANCE)))
            for data in _chunks(opened.handle.read, info.end - info.start, header.source):
                values = _values(data, info.dtype)
                if name.endswith(VARIANCE) and values.min() < 0:
                    raise InputFileRefused(
                        f"the running variance {name} is negative", hint="distil the student again"
                    )
                sums[kind] += float(np.square(values).sum())
                counts[kind] += values.size
    weights, statistics = (
        (total / count) ** 0.5 if count else 0.0 for total, count in zip(sums, counts, strict=True)
    )
    return WeightSize(weights, statistics)


def _chunks(read: Callable[[int], bytes], remaining: int, source: str) -> Iterator[bytes]:
    while remaining:
        wanted = min(CHUNK_BYTES, remaining)
        data = read(wanted)
        if len(data) != wanted:
            raise changed_while_reading(source)
        yield data
        remaining -= wanted


def _values(data: bytes, dtype: str) -> npt.NDArray[np.float64]:
    """Whole elements as float64, which squares without overflow what the others hold."""
    if dtype == BRAIN_FLOAT:
        bits = np.frombuffer(data, "<u2").astype("<u4") << 16
        return bits.view("<f4").astype(np.float64)
    return np.frombuffer(data, FLOATS[dtype]).astype(np.float64)
