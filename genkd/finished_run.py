"""What a finished distillation left for publishing: its student, its teacher's hash, its figures.

finished = read_finished_run(Path("runs/first"))
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from genkd.canonical import parse_json
from genkd.digest import sha256_bytes
from genkd.errors import ConfigurationError, InputFileRefused
from genkd.provenance.release import SIZE_LIMITS, read_bounded
from genkd.provenance.statement import (
    STUDENT_NAME,
    RecipeValue,
    competence_figure,
    decimal_string,
)
from genkd.provenance.typed_data import MAX_SAFE_INTEGER

RESULT_FILE = "result.json"
EVALUATION_FILE = "evaluation.json"
MAX_RESULT_BYTES = 2**24

# Figures of the private teacher, not of the student that leaves.
KEPT_BACK = frozenset({"teacher_top1"})


@dataclass(frozen=True)
class FinishedRun:
    """What a run directory says of its student.

    Attributes:
        student: The model file's bytes.
        teacher_sha256: 32 bytes.
        recipe: The settings of the distillation, as a provenance statement holds them.
        evaluation: Figures, decimal strings.
    """

    student: bytes
    teacher_sha256: bytes
    recipe: Mapping[str, RecipeValue]
    evaluation: Mapping[str, str]


def read_finished_run(run: Path) -> FinishedRun:
    """Read what a distillation left.

    Raises:
        ConfigurationError: If it is not finished.
        InputFileRefused: If a file is damaged, or the student is not the run's.
    """
    if not (run / RESULT_FILE).exists() or not (run / STUDENT_NAME).exists():
        raise ConfigurationError(
            f"{run} holds no finished run",
            hint="repeat its distill command to finish it, or name another run directory",
        )
    result = _read_json(run / RESULT_FILE)
    student = read_bounded(run / STUDENT_NAME, SIZE_LIMITS[STUDENT_NAME])
    try:
        teacher_sha256 = bytes.fromhex(result["teacher"]["sha256"])  # type: ignore[index]
        student_sha256 = result["student"]["sha256"]  # type: ignore[index]
        recipe = dict(result["recipe"])  # type: ignore[call-overload]
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(run / RESULT_FILE) from error
    if len(teacher_sha256) != 32:
        raise _damaged(run / RESULT_FILE)
    if sha256_bytes(student) != student_sha256:
        raise InputFileRefused(
            f"{run / STUDENT_NAME} is not the student that {RESULT_FILE} tells of",
            hint="distil again with --fresh; what is published must be what the run made",
        )
    recipe["seed"] = result.get("seed")
    evaluation = run / EVALUATION_FILE
    figures = _read_json(evaluation) if evaluation.exists() else {}
    return FinishedRun(
        student,
        teacher_sha256,
        {name: _setting(value) for name, value in recipe.items()},
        {
            name: decimal_string(value)
            for name, value in (_claims(run, result) | figures).items()
            if isinstance(value, float) and name not in KEPT_BACK
        },
    )


def _claims(run: Path, result: Mapping[str, object]) -> dict[str, object]:
    """What whoever merges students asks of each: which classes it knows, and how well."""
    agreement = result.get("agreement_per_class")
    if not isinstance(agreement, list):
        return {}  # a run of an earlier version; a merge says that it cannot use it
    # A class without images has no figure: the student does not know it.
    return {competence_figure(label): value for label, value in enumerate(agreement)}


def _setting(value: object) -> RecipeValue:
    """A value of a recipe as a statement holds it: no fractions, no long integers."""
    if isinstance(value, float):
        return decimal_string(value)
    if value is None or (isinstance(value, int) and abs(value) <= MAX_SAFE_INTEGER):
        return value
    return str(value)


def _read_json(path: Path) -> dict[str, object]:
    try:
        value = parse_json(_read(path), allow_floats=True)
    except ValueError as error:
        raise _damaged(path) from error
    if not isinstance(value, dict):
        raise _damaged(path)
    return value


def _read(path: Path) -> bytes:
    return read_bounded(path, MAX_RESULT_BYTES)


def _damaged(path: Path) -> InputFileRefused:
    return InputFileRefused(f"{path} is damaged", hint="distil again with --fresh")
