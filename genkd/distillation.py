"""From a teacher's file to a student's file: `genkd.distill`, which the command line calls.

    import genkd
    report = genkd.distill(teacher="model.safetensors", out="runs/first", budget="10m")
    print(report.student, report.samples)

The run directory then holds config.json, events.jsonl, checkpoint.pt, samples.npz (which stays on
the node), result.json, student.safetensors, student.json and report.html.
"""

from __future__ import annotations

import dataclasses
import io
import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from genkd import __version__
from genkd.bank import SynthesisBank, as_images
from genkd.card import InputCard, ModelCard, ModelSpec, card_to_json
from genkd.cost import (
    device_name,
    evaluation_mode,
    is_out_of_memory,
    measure_cost,
    peak_memory_bytes,
)
from genkd.device import Device, choose_device
from genkd.digest import sha256_bytes
from genkd.errors import ConfigurationError, InputFileRefused, ResourceExhausted, UsageError
from genkd.evaluate import load_student
from genkd.models import build_model
from genkd.recipe import Budget, Recipe, find_recipe
from genkd.report import write_report
from genkd.run_directory import RunDirectory
from genkd.teacher import Teacher, load_teacher
from genkd.train import Progress, Trained, train_student
from genkd.weights import model_bytes

__all__ = ["DistillReport", "Progress", "distill"]

DESCRIPTION = "distilled without data by GenKD"
SAMPLES_PER_CLASS = 32
RESULT_VERSION = 1
AGREEMENT_IMAGES = 2048
# Images at once when the finished student is measured; fewer where training had to make do.
MEASURED_BATCH = 256
MAX_SEED = 2**63 - 1


@dataclass(frozen=True)
class DistillReport:
    """Where things are, and what it took.

    Attributes:
        student: student.safetensors.
        report_data: result.json.
        seconds: Wall time of training.
        samples: Images synthesised and verified.
        teacher_passes: Images that went through the teacher.
        rounds: Rounds of the alternation.
    """

    student: Path
    report_data: Path
    seconds: float
    samples: int
    teacher_passes: int
    rounds: int


class _Normalised(nn.Module):
    """A student with the teacher's normalisation in front, so that it takes images in [0, 1]."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, card: InputCard) -> None:
        super().__init__()
        self.network = network
        shape = (1, card.channels, 1, 1)
        self.register_buffer("mean", torch.tensor(card.mean).reshape(shape))
        self.register_buffer("std", torch.tensor(card.std).reshape(shape))

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] to logits (B, K)."""
        logits: Tensor = self.network((images - self.mean) / self.std)
        return logits


@contextmanager
def _memory_errors() -> Iterator[None]:
    """Memory that runs out where no smaller batch would help."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise ResourceExhausted(
            "memory ran out",
            hint="close other programs and repeat the same command: it resumes",
        ) from error


@_memory_errors()
def distill(
    *,
    teacher: str | Path,
    out: str | Path,
    student: str = "resnet8-half",
    recipe: str = "standard",
    budget: str | None = None,
    seed: int = 0,
    device: str = "auto",
    precision: str = "auto",
    fresh: bool = False,
    architecture: str | None = None,
    num_classes: int | None = None,
    input_card: InputCard | None = None,
    factory: str | None = None,
    allow_local_code: bool = False,
    overrides: Mapping[str, str] | None = None,
    export_onnx: bool = False,
    init_student: str | Path | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> DistillReport:
    """Turn a teacher into a student, with no data. The same call resumes an unfinished run.

    Args:
        teacher: A safetensors file; how its architecture is found, see `genkd.teacher`.
        out: The run directory.
        student: The student's architecture, a name that `genkd.models` knows.
        recipe: "quick", "standard" or "thorough".
        budget: As `Budget.parse` takes it; None: as the recipe says.
        seed: Of everything that is drawn, 0..2^63 - 1.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps".
        precision: "auto", "fp32" or "bf16".
        fresh: Delete an earlier run in `out` and start anew.
        architecture: Of the teacher, where its file does not say.
        num_classes: Likewise.
        input_card: Likewise.
        factory: "module:function" that builds the teacher.
        allow_local_code: Whether `factory` may run.
        overrides: Recipe keys as text.
        export_onnx: Write student.onnx too, checked against torch.
        init_student: A student's file to start from.
        on_progress: Called once a round.

    Raises:
        InputFileRefused: If the teacher's or a student's file is refused.
        ConfigurationError: If a setting, a recipe key or the run directory does not fit.
        UsageError: If an architecture, a budget or a seed means nothing.
        ResourceExhausted: If memory or disk runs out.
    """
    chosen = find_recipe(recipe, overrides or {})
    limit = Budget.parse(chosen.budget if budget is None else budget)
    if not 0 <= seed <= MAX_SEED:
        raise UsageError(f"{seed} is not a seed", hint=f"use a whole number from 0 to {MAX_SEED}")
    where = choose_device(device, precision)
    loaded = load_teacher(
        teacher,
        architecture=architecture,
        num_classes=num_classes,
        input_card=input_card,
        factory=factory,
        allow_local_code=allow_local_code,
    )
    earlier = None if init_student is None else load_student(init_student)
    card = _student_card(student, loaded.card, earlier)
    if card.class_names != loaded.card.class_names and card.class_names is not None:
        loaded = loaded.among(card.class_names)
    network = _student_network(card, earlier, seed)
    configuration = {
        "teacher_sha256": loaded.sha256,
        "teacher_architecture": loaded.card.spec.architecture,
        "teacher_input": card_to_json(loaded.card)["input"],
        "student": student,
        "init_student_sha256": None if earlier is None else earlier.sha256,
        "seed": seed,
        "budget": str(limit),
        "device": where.torch.type,
        "precision": where.precision,
        "recipe": dataclasses.asdict(chosen),
        "version": __version__,
    }
    with RunDirectory.open(out, configuration, fresh=fresh) as run:
        loaded.to(where.torch, memory_format=torch.channels_last)  # type: ignore[call-overload]
        model = _Normalised(network, card.input)
        model.to(where.torch, memory_format=torch.channels_last)  # type: ignore[call-overload]
        trained = train_student(loaded, model, chosen, limit, where, seed, run, on_progress)
        _write_results(run, loaded, model, card, trained, chosen, where, seed)
        run.event("end", rounds=trained.rounds, seconds=trained.seconds)
        if export_onnx:
            from genkd.export import export_onnx as write_onnx

            write_onnx(load_student(run.path / "student.safetensors"), run.path / "student.onnx")
        write_report(run.path)
        return DistillReport(
            run.path / "student.safetensors",
            run.path / "result.json",
            trained.seconds,
            trained.samples,
            trained.teacher_passes,
            trained.rounds,
        )


def _student_card(student: str, teacher: ModelCard, earlier: Teacher | None) -> ModelCard:
    """The student sees what the teacher sees, unless it starts from an earlier one.

    A federation's student may know more classes than this teacher, and has its own normalisation;
    what it knows of other classes is for other teachers to say.

    Raises:
        InputFileRefused: If the earlier student takes other images, or is another network.
    """
    if earlier is None:
        spec = ModelSpec(student, teacher.spec.num_classes, teacher.spec.in_channels)
        return ModelCard(spec, teacher.input, teacher.class_names, DESCRIPTION)
    card = replace(earlier.card, description=DESCRIPTION)
    wanted, found = _size(teacher.input), _size(card.input)
    if wanted != found:
        raise InputFileRefused(
            f"the earlier student takes images of {found}, the teacher of {wanted}",
            hint="start from a student of this teacher's kind, or from none",
        )
    if card.spec.architecture != student:
        raise InputFileRefused(
            f"the earlier student is a {card.spec.architecture}, not a {student}",
            hint="give --student the architecture of that file",
        )
    if card.class_names is None and card.spec.num_classes != teacher.spec.num_classes:
        raise InputFileRefused(
            f"the earlier student has {card.spec.num_classes} classes without names, "
            f"the teacher {teacher.spec.num_classes}",
            hint="start from a student whose card names its classes, or from none",
        )
    return card


def _size(image: InputCard) -> str:
    return f"{image.channels}x{image.height}x{image.width}"


def _student_network(card: ModelCard, earlier: Teacher | None, seed: int) -> nn.Module:
    """A fresh network, or one with the weights of an earlier student."""
    random = torch.Generator().manual_seed(seed)
    network = build_model(card.spec, generator=random)
    _try_out(network, card)
    if earlier is not None:
        network.load_state_dict(earlier.network.state_dict())
    return network


def _try_out(network: nn.Module, card: ModelCard) -> None:
    """Pass two black images, so that a student too deep for them fails before any training."""
    image = card.input
    try:
        with torch.no_grad(), evaluation_mode(network):
            network(torch.zeros(2, image.channels, image.height, image.width))
    except Exception as error:  # libraries' networks assert and raise whatever they like
        if is_out_of_memory(error):
            raise
        reason = str(error).partition("\n")[0][:200]
        raise UsageError(
            f"a student {card.spec.architecture} cannot take images of "
            f"{image.channels}x{image.height}x{image.width}: {reason}",
            hint="choose another --student, for example resnet8-half",
        ) from error


def _write_results(
    run: RunDirectory,
    teacher: Teacher,
    model: _Normalised,
    card: ModelCard,
    trained: Trained,
    recipe: Recipe,
    device: Device,
    seed: int,
) -> None:
    """Everything of the run directory but the report, the student's file last of its pair."""
    state = model.network.state_dict()
    if not all(bool(torch.isfinite(value).all()) for value in state.values()):
        raise ConfigurationError(
            "the student diverged: its weights are not finite",
            hint=f"start anew: --fresh --set student_rate={recipe.student_rate / 3:.1g}",
        )
    metadata = {"v": 1, "card": card_to_json(card)}
    data = model_bytes(state, metadata)
    run.write_json("student.json", metadata["card"])
    run.write_bytes("student.safetensors", data)
    run.write_bytes("samples.npz", _samples(trained.bank, card.spec.num_classes))
    image = card.input
    batch = min(MEASURED_BATCH, trained.batch)
    images = torch.zeros(batch, image.channels, image.height, image.width, device=device.torch)
    cost = {name: measure_cost(m, images) for name, m in (("teacher", teacher), ("student", model))}
    shas = {"teacher": teacher.sha256, "student": sha256_bytes(data)}
    names = {"teacher": teacher.card.spec.architecture, "student": card.spec.architecture}
    run.write_json(
        "result.json",
        {
            "schema_version": RESULT_VERSION,
            "seed": seed,
            "recipe": dataclasses.asdict(recipe),
            "versions": {
                "genkd-node": __version__,
                "torch": torch.__version__,
                "python": platform.python_version(),
            },
            "machine": {
                "system": platform.platform(),
                "device": device_name(device.torch),
                "precision": device.precision,
                "threads": torch.get_num_threads(),
            },
            "seconds": trained.seconds,
            "phase_seconds": trained.phase_seconds,
            "phase_memory_bytes": trained.phase_memory_bytes,
            "peak_memory_bytes": peak_memory_bytes(device.torch),
            "rounds": trained.rounds,
            "samples": trained.samples,
            "teacher_passes": trained.teacher_passes,
            **{
                name: {"architecture": names[name], "sha256": shas[name], **cost[name].as_json()}
                for name in ("teacher", "student")
            },
            "class_names": card.class_names,
            "energy": _energy(model, teacher.known, trained.bank, device, batch),
            "agreement_per_class": _agreement_per_class(
                teacher, model, trained.bank, device, batch
            ),
            "final": trained.figures,
        },
    )


@torch.no_grad()
def _energy(
    model: nn.Module, known: tuple[int, ...], bank: SynthesisBank, device: Device, batch: int
) -> dict[str, float]:
    """Mean and deviation of the student's energy -LogSumExp over the known classes, in nats.

    Liu et al. 2020 (arXiv:2010.03759, eq. 4, temperature 1). Of the bank's images, so that whoever
    asks several students can tell whose images an image resembles; see `genkd.ensemble`.
    """
    classes = len(known)
    images, _, _ = bank.samples(max(1, AGREEMENT_IMAGES // classes), int(max(known)) + 1)
    model.eval()
    places = torch.tensor(known, device=device.torch)
    energies = torch.cat(
        [
            -model(as_images(part.to(device.torch))).float()[:, places].logsumexp(1)
            for part in torch.split(images, batch)
        ]
    )
    return {"mean": energies.mean().item(), "deviation": energies.std(correction=0).item()}


@torch.no_grad()
def _agreement_per_class(
    teacher: Teacher, model: nn.Module, bank: SynthesisBank, device: Device, batch: int
) -> list[float | None]:
    """Of an even selection of the bank, as stored: how often the student agrees, by class."""
    classes = teacher.card.spec.num_classes
    images, labels, _ = bank.samples(max(1, AGREEMENT_IMAGES // classes), classes)
    agreed = torch.zeros(classes)
    count = torch.bincount(labels, minlength=classes)
    model.eval()
    for part, label in zip(torch.split(images, batch), torch.split(labels, batch), strict=True):
        x = as_images(part.to(device.torch))
        same = (model(x).argmax(1) == teacher(x).argmax(1)).float().cpu()
        agreed.index_add_(0, label, same)
    return [float(a / n) if n else None for a, n in zip(agreed, count, strict=True)]


def _samples(bank: SynthesisBank, num_classes: int) -> bytes:
    images, labels, confidence = bank.samples(SAMPLES_PER_CLASS, num_classes)
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer, images=images.numpy(), labels=labels.numpy(), confidence=confidence.numpy()
    )
    return buffer.getvalue()
