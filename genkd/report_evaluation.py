"""The part of the report that shows evaluation.json: figures, calibration, confusion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from genkd.report_data import Record
from genkd.report_figures import number

# A matrix of more classes is no picture any more; the commonest mistakes are listed for any number.
MAX_MATRIX_CLASSES = 30
MAX_CLASSES_WITH_COUNTS = 12
MISTAKES_LISTED = 6
TITLES = {
    "top1": "top-1 accuracy",
    "top5": "top-5 accuracy",
    "teacher_top1": "top-1 accuracy of the teacher",
    "agreement": "agreement with the teacher",
    "ece": "expected calibration error",
    "nll": "negative log-likelihood",
}
PROPORTIONS = {"top1", "top5", "teacher_top1", "agreement"}


@dataclass(frozen=True)
class Cell:
    """One field of the confusion matrix: where it is, what it counts, its part of the row."""

    row: int
    column: int
    count: int
    part: float


@dataclass(frozen=True)
class EvaluationView:
    """What the template shows.

    Attributes:
        images: How many images were classified.
        figures: Title and value; a proportion is in [0, 1] and is marked as one.
        bins: Index and accuracy of each calibration bin with images, and its part of them.
        bin_count: How many bins there are in all.
        classes: K of the matrix.
        cells: The fields of the confusion matrix that are not empty; none if it is too large.
        with_counts: Whether the counts fit into the fields.
        mistakes: True class, predicted class, count; the commonest first.
        notes: What was done to the images.
        device: Where it ran.
    """

    images: int
    figures: tuple[tuple[str, float, bool], ...]
    bins: tuple[tuple[int, float, float], ...]
    bin_count: int
    classes: int
    cells: tuple[Cell, ...]
    with_counts: bool
    mistakes: tuple[tuple[int, int, int], ...]
    notes: tuple[str, ...]
    device: str


def evaluation_view(evaluation: Record) -> EvaluationView | None:
    """What to show of an evaluation as `Evaluation.as_json` wrote it; None without one."""
    images = evaluation.get("images")
    if not isinstance(images, int) or images < 1:
        return None
    matrix = _matrix(evaluation.get("confusion"))
    counted = [(r, c, n) for r, row in enumerate(matrix) for c, n in enumerate(row) if n]
    small = len(matrix) <= MAX_MATRIX_CLASSES
    totals = [sum(row) for row in matrix]
    wrong = sorted((n, r, c) for r, c, n in counted if r != c)
    notes = evaluation.get("notes")
    bins = evaluation.get("calibration")
    bins = bins if isinstance(bins, list) else []
    return EvaluationView(
        images=images,
        figures=tuple(
            (title, float(evaluation[name]), name in PROPORTIONS)
            for name, title in TITLES.items()
            if number(evaluation.get(name)) is not None
        ),
        bins=tuple(_bins(bins, images)),
        bin_count=len(bins),
        classes=len(matrix),
        cells=tuple(Cell(r, c, n, n / totals[r]) for r, c, n in counted) if small else (),
        with_counts=len(matrix) <= MAX_CLASSES_WITH_COUNTS,
        mistakes=tuple((r, c, n) for n, r, c in wrong[: -MISTAKES_LISTED - 1 : -1]),
        notes=tuple(str(note) for note in notes) if isinstance(notes, list) else (),
        device=str(evaluation.get("device", "")),
    )


def _matrix(value: object) -> Sequence[Sequence[int]]:
    """The confusion matrix if it is one: square, of counts."""
    if not isinstance(value, list) or not all(
        isinstance(row, list) and len(row) == len(value) for row in value
    ):
        return ()
    good = all(isinstance(n, int) and 0 <= n < 2**53 for row in value for n in row)
    return value if good else ()


def _bins(bins: Sequence[Any], images: int) -> list[tuple[int, float, float]]:
    """Index, accuracy, and part of all images, of each bin that has images."""
    made = []
    for index, one in enumerate(bins):
        if isinstance(one, dict):
            count, accuracy = number(one.get("count")), number(one.get("accuracy"))
            if count and accuracy is not None:
                made.append((index, accuracy, count / images))
    return made
