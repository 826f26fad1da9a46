"""A model file measured on labelled images, from reading both to what is said of it.

    evaluation = evaluate_files(ModelFile(Path("student.safetensors")), "test.npz", None, "auto")

Training never comes here: `distill --eval-data` calls it once the student is finished.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from genkd.durable import atomic_write
from genkd.errors import InputFileRefused, UsageError
from genkd.json_values import finite
from node.teacher_options import TeacherOptions

if TYPE_CHECKING:
    from genkd.evaluate import Evaluation
    from genkd.teacher import Teacher

EVALUATION_FILE = "evaluation.json"
BATCH_SIZE = 256
NOTHING_SAID = TeacherOptions()


@dataclass(frozen=True)
class ModelFile:
    """A classifier on disk.

    Attributes:
        path: The safetensors file.
        options: What the command line says of it; nothing, if a card does.
    """

    path: Path
    options: TeacherOptions = NOTHING_SAID

    def load(self) -> Teacher:
        """Read it; a student too becomes a frozen classifier that carries its normalisation.

        Raises:
            GenKDError: As `genkd.teacher.load_teacher`.
        """
        from genkd.teacher import load_teacher

        return load_teacher(
            self.path,
            architecture=self.options.architecture,
            num_classes=self.options.num_classes,
            input_card=self.options.input_card,
            factory=self.options.factory,
            allow_local_code=self.options.allow_local_code,
        )


def require_there(data: str) -> None:
    """Refuse data that is not there, before anything expensive is begun.

    Raises:
        InputFileRefused: If its path does not exist.
        UsageError: If it names no known torchvision data set.
    """
    if data.startswith("torchvision:"):
        from genkd.images import torchvision_set

        torchvision_set(data)
    elif not Path(data).exists():
        raise InputFileRefused(f"{data} does not exist", hint="check the path given as data")


def evaluate_files(
    model: ModelFile,
    data: str,
    teacher: ModelFile | None,
    device: str,
    batch_size: int = BATCH_SIZE,
) -> Evaluation:
    """Measure `model` on `data`, beside `teacher` if there is one.

    Args:
        model: What to measure.
        data: As `genkd.images.read_images`.
        teacher: What to compare with; of the same images and classes.
        device: auto, cpu, cuda or mps.
        batch_size: Images a call, at least 1.

    Raises:
        GenKDError: As `load_teacher`, `read_images` and `evaluate`; `UsageError` if the two models
            have other images or classes.
    """
    from genkd.device import choose_device
    from genkd.evaluate import evaluate
    from genkd.images import read_images

    student = model.load()
    taught_by = None if teacher is None else teacher.load()
    card = student.card
    if taught_by is not None and (
        taught_by.card.spec.num_classes != card.spec.num_classes
        or _size(taught_by) != _size(student)
    ):
        raise UsageError(
            f"{model.path} and {taught_by.card.spec.architecture} differ in classes or images",
            hint="compare a student with the teacher it was distilled from",
        )
    images = read_images(data, card)
    place = choose_device(device, "fp32").torch
    return evaluate(student, images, card, taught_by, device=place, batch_size=batch_size)


def record_evaluation(run_directory: Path, evaluation: Evaluation) -> None:
    """Write `evaluation.json` into a run directory, and the report anew with it.

    Raises:
        ResourceExhausted: If they cannot be written.
    """
    from genkd.report import write_report

    text = json.dumps(finite(evaluation.as_json()), indent=2)
    atomic_write(run_directory / EVALUATION_FILE, text.encode() + b"\n")
    write_report(run_directory)


def summary(evaluation: Evaluation) -> dict[str, object]:
    """The figures of an evaluation that people ask for first, as rows for `columns`."""
    compared = evaluation.agreement is not None
    latency = ", ".join(
        f"{milliseconds:.2f} ms for {batch}"
        for batch, milliseconds in evaluation.student.latency_ms.items()
    )
    return {
        "images": f"{evaluation.images:,}",
        "top-1": _percent(evaluation.top1),
        "top-5": _percent(evaluation.top5),
        "teacher top-1": _percent(evaluation.teacher_top1) if compared else None,
        "agreement": _percent(evaluation.agreement),
        "calibration": f"{evaluation.ece:.3f} expected error",
        "size": f"{evaluation.student.parameters:,} parameters",
        "latency": latency,
        "peak memory": f"{evaluation.peak_memory_bytes / 2**20:.0f} MiB, {evaluation.device}",
        "images were": "; ".join(evaluation.notes) or None,
    }


def _percent(part: float | None) -> str | None:
    return None if part is None else f"{part:.2%}"


def _size(model: Teacher) -> tuple[int, int, int]:
    image = model.card.input
    return image.channels, image.height, image.width
