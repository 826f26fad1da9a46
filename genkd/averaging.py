"""One student from the weights of many: the mean, the trimmed mean, or the most central ones.

    averaged = average(paths, out, "trimmed")
    averaged.used                             # which students' values are in the result

For students of one and the same card: same architecture, same classes, same input. Students that
know different classes are to be distilled into one (`genkd.merge`); averaging them fails, and the
averaged running statistics of BatchNorm do not fit the averaged weights.

- `fedavg`: the mean with equal weights (McMahan et al. 2017, arXiv:1602.05629, without the weights
  by example counts: a client claims them, and nobody can check).
- `trimmed`: of each weight, the mean without the `hostile` smallest and largest values
  (Yin et al. 2018, arXiv:1803.01498, definition 2).
- `krum`: the student nearest to its nearest `n - hostile - 2` others, or the mean of the `keep`
  best ones, "Multi-Krum" (Blanchard et al. 2017, arXiv:1703.02757).

Files are read in stretches: memory holds one student, for the result, and `BLOCK_BYTES` of values,
whatever the number of students. Equal students in any order give equal bytes (Krum alone falls back
on their order, between students of the very same score).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from genkd.alike_students import FLOATS, AlikeStudents, Block
from genkd.card import ModelCard, card_to_json
from genkd.durable import atomic_write
from genkd.errors import InputFileRefused, UsageError
from genkd.weights import MODEL_VERSION, model_layout

Method = Literal["fedavg", "trimmed", "krum"]
METHODS: tuple[str, ...] = get_args(Method)
# Where nothing is said, so many of all students may be hostile: one in five, but at least one.
HOSTILE_SHARE = 5
MAX_COMPARED = 1000  # Krum compares every student with every other
COMPARED_VALUES = 2048  # at once, so that they stay in the processor's cache


@dataclass(frozen=True)
class Averaged:
    """What an average was made of.

    Attributes:
        card: The card of the students and of the result.
        used: Positions, ascending, of the students whose values went in: all of them, or those
            that Krum chose.
        hostile: How many hostile students the method was to withstand.
    """

    card: ModelCard
    used: tuple[int, ...]
    hostile: int


def least_students(method: Method, hostile: int = 1) -> int:
    """With fewer students, the method cannot withstand that many hostile ones among them.

    One is the least for `fedavg`, which withstands none, 2f + 1 for `trimmed`, 2f + 3 for `krum`.
    """
    return {"fedavg": 1, "trimmed": 2 * hostile + 1, "krum": 2 * hostile + 3}[method]


def average(
    students: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    method: Method = "fedavg",
    *,
    hostile: int | None = None,
    keep: int = 1,
) -> Averaged:
    """Average model files of one card into another, whose bytes depend on nothing else.

    Whole numbers, such as BatchNorm's count of batches, get the lower median: it is exact, and one
    student cannot move it far.

    Args:
        students: The model files; the same weight for each.
        out: The model file to be written, in one step.
        method: `fedavg`, `trimmed` or `krum`.
        hostile: f, how many of them may be hostile, 0 to half of them; None takes a fifth, at least
            one. Not for `fedavg`.
        keep: How many students Krum keeps, 1 to n - f - 2. For `krum` only.

    Returns:
        What it was made of.

    Raises:
        UsageError: If there are too few students for the method, or an argument means nothing.
        InputFileRefused: If a file is refused, differs from the first one, or holds values that are
            not finite.
        ResourceExhausted: If `out` cannot be written.
    """
    hostile = _require_sense(len(students), method, hostile, keep)
    files = AlikeStudents(students)
    used: Sequence[int] = range(len(files))
    if method == "krum":
        used = _most_central(_distances(files), hostile, keep)
    metadata = {"v": MODEL_VERSION, "card": card_to_json(files.card)}
    beginning, tensors = model_layout(files.tensors, metadata)
    result = bytearray(len(beginning) + max(info.end for info in tensors.values()))
    result[: len(beginning)] = beginning
    cut = hostile if method == "trimmed" else 0
    for name, info in tensors.items():
        for first, block in files.blocks(name, used):
            values = _middle(block, cut) if info.dtype in FLOATS else _lower_median(block)
            _require_finite(values, name)
            start = len(beginning) + info.start + first * block.itemsize
            result[start : start + values.nbytes] = values.tobytes()
    atomic_write(out, result)
    return Averaged(files.card, tuple(used), hostile)


def _require_sense(count: int, method: str, hostile: int | None, keep: int) -> int:
    """How many hostile students to withstand, once the arguments fit together."""
    if method not in METHODS:
        raise UsageError(f"{method[:40]!r} is no way to average", hint=f"use {', '.join(METHODS)}")
    if method == "fedavg" and hostile:
        raise UsageError("the plain mean withstands no hostile student", hint="use trimmed or krum")
    if method == "fedavg":
        hostile = 0
    elif hostile is None:
        hostile = max(1, count // HOSTILE_SHARE)
    if hostile < 0:
        raise UsageError(f"{hostile} hostile students", hint="give a number from 0 on")
    needed = least_students(method, hostile)  # type: ignore[arg-type] # it is one of METHODS
    if 0 < count < needed:  # that there are none is said where they are opened
        raise UsageError(
            f"{method} needs {needed} students to withstand {hostile} hostile, there are {count}",
            hint="wait for more students, or merge by distilling",
        )
    if method == "krum" and count > MAX_COMPARED:
        raise UsageError(
            f"krum compares every student with every other: at most {MAX_COMPARED}, not {count}",
            hint="use trimmed",
        )
    most = count - hostile - 2 if method == "krum" else 1
    if not 1 <= keep <= most:
        raise UsageError(
            f"{method} cannot keep {keep} of {count} students", hint=f"keep 1 to {most}"
        )
    return hostile


def _middle(block: Block, cut: int) -> npt.NDArray[np.floating]:
    """The mean over the students without the `cut` smallest and largest, of the block's dtype.

    Sorted first, so that neither the sum nor the cut depends on the students' order. Summed in
    float64, where 200 float32 lose nothing that counts, and from 0.0 on: a mean is never -0.0.
    """
    block.sort(axis=0)
    kept = block[cut : len(block) - cut]
    with np.errstate(over="ignore"):
        mean = kept.sum(axis=0, dtype=np.float64) / len(kept)
        result: npt.NDArray[np.floating] = mean.astype(block.dtype)
    return result


def _lower_median(block: Block) -> npt.NDArray[np.integer]:
    """The lower median over the students, of the block's dtype; ordered in place."""
    block.sort(axis=0)
    median: npt.NDArray[np.integer] = block[(len(block) - 1) // 2]
    return median


def _require_finite(values: npt.NDArray[np.generic], name: str) -> None:
    if not np.isfinite(values).all():
        raise InputFileRefused(
            f"the values of {name} are too large to be averaged",
            hint="leave out the students with huge weights, or use krum",
        )


def _distances(files: AlikeStudents) -> npt.NDArray[np.float64]:
    """Squared Euclidean distances between all students' floating-point values, (n, n).

    From the differences themselves: by |x|^2 + |y|^2 - 2xy, students that began from the same
    weights would differ by rounding errors only.
    """
    count = len(files)
    distances = np.zeros((count, count))
    for name, (dtype, _) in files.tensors.items():
        if dtype not in FLOATS:
            continue
        for _, block in files.blocks(name, range(count)):
            for start in range(0, block.shape[1], COMPARED_VALUES):
                _add_distances(block[:, start : start + COMPARED_VALUES], distances)
    return distances + distances.T


def _add_distances(values: Block, distances: npt.NDArray[np.float64]) -> None:
    """Add the squared distances of each student to all after it."""
    wide = values.astype(np.float64)
    with np.errstate(over="ignore"):  # infinitely far away is far enough
        for i in range(len(wide) - 1):
            apart = wide[i + 1 :] - wide[i]
            distances[i, i + 1 :] += np.einsum("ij,ij->i", apart, apart)


def _most_central(distances: npt.NDArray[np.float64], hostile: int, keep: int) -> tuple[int, ...]:
    """Krum: the `keep` students with the least sum of distances to their n - f - 2 nearest."""
    count = len(distances)
    others = distances.copy()
    np.fill_diagonal(others, np.inf)
    nearest = np.sort(others, axis=1)[:, : count - hostile - 2]
    order = np.argsort(nearest.sum(axis=1), kind="stable")
    return tuple(sorted(order[:keep].tolist()))
