"""How good a student is, measured on labelled images. Training never calls this.

    student = load_student("runs/first/student.safetensors")
    data = read_images("test.npz", student.card)
    evaluation = evaluate(student, data, student.card, teacher=load_teacher("teacher.safetensors"))
    print(evaluation.top1, evaluation.agreement)

Training has no say in what is measured, and what is measured has no say in training: no checkpoint
is chosen by it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from genkd.calibration import CalibrationBin, calibration_error
from genkd.card import card_from_json
from genkd.cost import (
    LATENCY_BATCHES,
    Cost,
    device_name,
    evaluation_mode,
    is_out_of_memory,
    measure_cost,
    peak_memory_bytes,
    reset_peak_memory,
)
from genkd.errors import InputFileRefused, ResourceExhausted, UsageError
from genkd.fingerprint import COUNTER, expected_by, require_match
from genkd.models import build_model
from genkd.teacher import Teacher
from genkd.weights import STUDENT_FILE, read_metadata, read_tensors

if TYPE_CHECKING:
    from genkd.card import ModelCard
    from genkd.images import LabelledImages

EVALUATION_VERSION = 1
# A confusion matrix of a million numbers is all that anybody can want to read.
MAX_CONFUSION_CLASSES = 1000


@dataclass(frozen=True)
class Evaluation:
    """What was measured. Proportions are in [0, 1].

    Attributes:
        images: N, how many images.
        top1: Part of the images whose likeliest class is the true one.
        top5: Part whose true class is among the five likeliest; None with five classes or fewer.
        nll: Mean negative log-likelihood of the true class, in nats.
        ece: Expected calibration error.
        calibration: The bins behind `ece`, from the least confident on.
        accuracy_per_class: Part of the images of each class that is classified rightly (recall);
            None for a class without images.
        confusion: Row: true class; column: predicted class; None beyond 1,000 classes.
        agreement: Part of the images to which teacher and student give the same class, right or
            wrong; None without a teacher, like the rest that concerns it.
        agreement_per_class: The same for the images that the teacher puts into each class.
        teacher_top1: The teacher's own accuracy.
        student: What the student costs.
        teacher: What the teacher costs.
        peak_memory_bytes: Peak of the accelerator's memory while evaluating; on a CPU, peak of the
            resident memory of the whole process so far, which includes the data and torch itself.
        device: Where it ran.
        threads: CPU threads used.
        torch: Version of torch.
        notes: What was done to the images to fit the model's input.
    """

    images: int
    top1: float
    top5: float | None
    nll: float
    ece: float
    calibration: tuple[CalibrationBin, ...]
    accuracy_per_class: tuple[float | None, ...]
    confusion: tuple[tuple[int, ...], ...] | None
    agreement: float | None
    agreement_per_class: tuple[float | None, ...] | None
    teacher_top1: float | None
    student: Cost
    teacher: Cost | None
    peak_memory_bytes: int
    device: str
    threads: int
    torch: str
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, object]:
        """The same as plain JSON values, with `schema_version`."""
        costs = {
            "student": self.student.as_json(),
            "teacher": None if self.teacher is None else self.teacher.as_json(),
        }
        return {"schema_version": EVALUATION_VERSION, **asdict(self), **costs}


@dataclass(frozen=True)
class _Answers:
    """What a model says of each image.

    Attributes:
        predicted: int64 (N,), the likeliest class.
        in_top5: bool (N,), whether the true class is among the five likeliest.
        confidence: float64 (N,), the probability of the likeliest class.
        nll: float64 (N,), minus the log-probability of the true class.
    """

    predicted: Tensor
    in_top5: Tensor
    confidence: Tensor
    nll: Tensor


def load_student(path: str | Path) -> Teacher:
    """Load a student that this project wrote, as strictly as a file from anybody.

    Only the card inside the file counts: it is covered by the file's signature, a card beside it is
    not.

    Returns:
        The student, frozen, with its normalisation inside, in float32 on the CPU. It is the same
        kind of thing as a teacher, and can become the teacher of the next student.

    Raises:
        InputFileRefused: If the file is broken, carries no card, or holds other tensors than the
            architecture in its card needs.
    """
    loaded = read_tensors(path, STUDENT_FILE)
    source = loaded.header.source
    card = card_from_json(read_metadata(loaded.header).get("card"))
    spec = card.spec
    try:
        expected = expected_by(spec)
        network = build_model(spec, generator=torch.Generator().manual_seed(0))
    except UsageError as error:
        raise InputFileRefused(f"{source}: {error.message}", hint=error.hint) from error
    require_match(expected, loaded.header, f"{spec.architecture} with {spec.num_classes} classes")
    differences = network.load_state_dict(loaded.tensors, strict=False)
    missing = [name for name in differences.missing_keys if not name.endswith(COUNTER)]
    if missing or differences.unexpected_keys:
        raise InputFileRefused(
            f"{source} does not name its tensors as this project does",
            hint="give the student.safetensors of a run",
        )
    return Teacher(network, card, loaded.sha256)


def evaluate(
    model: nn.Module,
    data: LabelledImages,
    card: ModelCard,
    teacher: nn.Module | None = None,
    *,
    device: str | torch.device = "cpu",
    batch_size: int = 256,
    on_progress: Callable[[float], None] | None = None,
) -> Evaluation:
    """Measure `model` on `data`, in float32.

    Args:
        model: Maps float32 images (B, C, H, W) in [0, 1] to logits (B, K); its normalisation is
            part of it. Moved to `device`; its training or eval mode is as before afterwards.
        data: Images of the size of `card`, labels in 0..K-1; from `read_images`.
        card: The model's card.
        teacher: A model of the same images and classes, to compare with.
        device: Where to run.
        batch_size: Images a call, at least 1.
        on_progress: Called with the fraction that is done, in [0, 1].

    Raises:
        UsageError: If the data, the model and the teacher do not belong together.
        InputFileRefused: If a model answers with NaN or infinity.
        ResourceExhausted: If memory runs out.
    """
    _require_fit(data, card, teacher)
    device, classes = torch.device(device), card.spec.num_classes
    models = [model] if teacher is None else [model, teacher]
    answers, costs = [], []
    reset_peak_memory(device)
    with _memory_errors(batch_size):
        timed_on = _timing_images(data, batch_size, device)
        for index, network in enumerate(models):

            def report(done: float, index: int = index) -> None:
                if on_progress is not None:
                    on_progress((index + done) / len(models))

            with evaluation_mode(network.to(device)):
                answers.append(_ask(network, data, classes, device, batch_size, report))
            costs.append(measure_cost(network, timed_on))
    labels, student = torch.tensor(data.labels), answers[0]
    taught = answers[1].predicted if teacher is not None else None
    same = None if taught is None else student.predicted == taught
    right = student.predicted == labels
    ece, bins = calibration_error(student.confidence, right)
    return Evaluation(
        images=len(data),
        top1=_mean(right),
        top5=_mean(student.in_top5) if classes > 5 else None,
        nll=_mean(student.nll),
        ece=ece,
        calibration=bins,
        accuracy_per_class=_mean_per_class(right, labels, classes),
        confusion=confusion_matrix(labels, student.predicted, classes),
        agreement=None if same is None else _mean(same),
        agreement_per_class=None
        if same is None or taught is None
        else _mean_per_class(same, taught, classes),
        teacher_top1=None if taught is None else _mean(taught == labels),
        student=costs[0],
        teacher=costs[1] if teacher is not None else None,
        peak_memory_bytes=peak_memory_bytes(device),
        device=device_name(device),
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        notes=data.notes,
    )


def _require_fit(data: LabelledImages, card: ModelCard, teacher: nn.Module | None) -> None:
    size = (card.input.channels, card.input.height, card.input.width)
    if len(data) == 0 or data.images.shape[1:] != size:
        raise UsageError(
            f"images of shape {data.images.shape} for a model that takes {size}",
            hint="read them with genkd.images.read_images(path, card)",
        )
    if isinstance(teacher, Teacher):
        other = teacher.card
        teacher_size = (other.input.channels, other.input.height, other.input.width)
        if (teacher_size, other.spec.num_classes) != (size, card.spec.num_classes):
            raise UsageError(
                f"the teacher has {other.spec.num_classes} classes and takes {teacher_size}, "
                f"the student {card.spec.num_classes} and {size}",
                hint="give the teacher that the student was distilled from",
            )


# --- Figures --------------------------------------------------------------------------------------


def confusion_matrix(
    labels: Tensor, predicted: Tensor, num_classes: int
) -> tuple[tuple[int, ...], ...] | None:
    """How many images of each true class (row) were put into each class (column).

    Args:
        labels: int64 (N,) in 0..K-1.
        predicted: int64 (N,) in 0..K-1.
        num_classes: K. Beyond 1,000 there is no matrix, and None is returned.
    """
    if num_classes > MAX_CONFUSION_CLASSES:
        return None
    counts = torch.bincount(labels * num_classes + predicted, minlength=num_classes**2)
    return tuple(tuple(row) for row in counts.view(num_classes, num_classes).tolist())


def _mean(values: Tensor) -> float:
    return float(values.double().mean())


def _mean_per_class(values: Tensor, classes: Tensor, num_classes: int) -> tuple[float | None, ...]:
    """Mean of `values` (N,) over the images of each class; None for a class without images."""
    count = torch.bincount(classes, minlength=num_classes)
    total = torch.zeros(num_classes, dtype=torch.float64).index_add_(0, classes, values.double())
    return tuple(t / n if n else None for t, n in zip(total.tolist(), count.tolist(), strict=True))


# --- Running a model ------------------------------------------------------------------------------


@torch.inference_mode()
def _ask(
    model: nn.Module,
    data: LabelledImages,
    num_classes: int,
    device: torch.device,
    batch_size: int,
    report: Callable[[float], None],
) -> _Answers:
    """The answers of `model` to all images, on the CPU."""
    parts: list[tuple[Tensor, ...]] = []
    for start in range(0, len(data), batch_size):
        end = min(start + batch_size, len(data))
        labels = torch.tensor(data.labels[start:end])
        logits = model(_as_input(data.images[start:end], device))
        if logits.shape != (end - start, num_classes):
            raise UsageError(
                f"the model answers with shape {tuple(logits.shape)} where "
                f"{(end - start, num_classes)} is expected",
                hint="do teacher and student have the same classes?",
            )
        # MPS has no float64, so the CPU computes what is more exact than the model.
        log_p = F.log_softmax(logits.float().cpu().double(), dim=1)
        top = log_p.topk(min(5, num_classes), dim=1)
        nll = -log_p.gather(1, labels[:, None])[:, 0]
        in_top5 = (top.indices == labels[:, None]).any(dim=1)
        parts.append((top.indices[:, 0], in_top5, top.values[:, 0].exp(), nll))
        report(end / len(data))
    answers = _Answers(*(torch.cat(column) for column in zip(*parts, strict=True)))
    if not answers.nll.isfinite().all():
        raise InputFileRefused(
            "the model answers with NaN or infinity",
            hint="its weights are broken: fetch or train it again",
        )
    return answers


def _as_input(images: NDArray[np.uint8], device: torch.device) -> Tensor:
    """uint8 (B, C, H, W) in 0..255 as float32 in [0, 1] on `device`."""
    return torch.tensor(images).to(device).float() / 255


def _timing_images(data: LabelledImages, batch_size: int, device: torch.device) -> Tensor:
    """As many images as measuring latency wants, again and again if the data are few."""
    wanted = min(batch_size, max(LATENCY_BATCHES))
    rows = np.arange(wanted) % len(data)
    return _as_input(data.images[rows], device)


@contextmanager
def _memory_errors(batch_size: int) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, MemoryError) as error:  # torch.OutOfMemoryError is a RuntimeError
        if not is_out_of_memory(error):
            raise
        raise ResourceExhausted(
            f"memory ran out while evaluating in batches of {batch_size}",
            hint=f"evaluate with --batch-size {max(1, batch_size // 4)}",
        ) from error
