"""From a teacher's file to a student's file: `genkd.distill`, which the command line calls.

    import genkd
    report = genkd.distill(teacher="model.safetensors", out="runs/first", budget="10m")
    print(report.student, report.samples)

The run directory then holds config.json, events.jsonl, checkpoint.pt, samples.npz (which stays on
the node), result.json, student.safetensors, student.json and report.html.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from genkd import __version__
from genkd.baselines.nayer import read_label_embeddings
from genkd.card import InputCard, ModelCard, ModelSpec, card_to_json
from genkd.cost import evaluation_mode, is_out_of_memory
from genkd.device import Device, choose_device
from genkd.ensemble import Ensemble, TeacherWithMemory
from genkd.errors import InputFileRefused, ResourceExhausted, UsageError
from genkd.evaluate import load_student
from genkd.frozen_prior import method_of, require_prior_fits
from genkd.generative_model import GenerativeModel, load_generative_model
from genkd.methods import require_embeddings_fit
from genkd.models import build_model
from genkd.recipe import Budget, Recipe, find_budget, find_recipe
from genkd.report import write_report
from genkd.results import write_results
from genkd.run_directory import RunDirectory
from genkd.student import NormalisedStudent
from genkd.teacher import Teacher, load_teacher
from genkd.train import Progress, train_student

__all__ = ["DistillReport", "Progress", "distill"]

DESCRIPTION = "distilled without data by GenKD"
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


@contextmanager
def memory_errors() -> Iterator[None]:
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


@memory_errors()
def distill(
    *,
    teacher: str | Path,
    out: str | Path,
    student: str = "resnet8-half",
    recipe: str = "standard",
    budget: str | None = None,
    method: str | None = None,
    label_embeddings: str | Path | None = None,
    prior: str | Path | None = None,
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
        teacher: A safetensors or ONNX file; how its architecture is found, see `genkd.teacher`.
        out: The run directory.
        student: The student's architecture, a name that `genkd.models` knows.
        recipe: "quick", "standard" or "thorough".
        budget: As `Budget.parse` takes it; None: as the recipe says.
        method: How images come about, the recipe key of that name: "genkd", or one of the field's
            methods (see `genkd.baselines`) with its paper's values; None: as the recipe says.
        label_embeddings: A safetensors file with one float32 tensor (K, e), embeddings of the
            classes' names for the method "nayer"; None: the teacher's last layer stands in.
        prior: A public generative model to draw on, as `genkd-prior train` writes it; then the
            method is "frozen-prior", which asks the teacher by forward passes only.
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
    chosen = find_recipe(recipe, with_method(overrides or {}, method_of(method, prior)))
    require_embeddings_fit(chosen, label_embeddings is not None)
    limit = find_budget(chosen, overrides or {}, budget)
    chosen = chosen.within(limit)
    check_seed(seed)
    where = choose_device(device, precision)
    loaded = load_teacher(
        teacher,
        architecture=architecture,
        num_classes=num_classes,
        input_card=input_card,
        factory=factory,
        allow_local_code=allow_local_code,
    )
    drawn_on = None if prior is None else load_generative_model(prior)
    require_prior_fits(chosen, drawn_on, loaded)
    earlier = None if init_student is None else load_student(init_student)
    card = _student_card(student, loaded.card, earlier)
    taught: Teacher | Ensemble = loaded
    if card.class_names != loaded.card.class_names and card.class_names is not None:
        taught = loaded = loaded.among(card.class_names)
        # A federation's start student has fresh weights: there is nothing to remember.
        knows_more = earlier is not None and set(earlier.known) > set(loaded.known)
        if earlier is not None and knows_more and earlier.remembers_images:
            taught = TeacherWithMemory(loaded, earlier)
    table, table_sha256 = None, None
    if label_embeddings is not None:
        table, table_sha256 = read_label_embeddings(label_embeddings, loaded.card.spec.num_classes)
    network = new_student(card, earlier, seed)
    configuration = {
        "teacher_sha256": loaded.sha256,
        "teacher_architecture": loaded.card.spec.architecture,
        "teacher_input": card_to_json(loaded.card)["input"],
        "student": student,
        "init_student_sha256": None if earlier is None else earlier.sha256,
        "label_embeddings_sha256": table_sha256,
        "prior_sha256": drawn_on and drawn_on.sha256,
        "seed": seed,
        "budget": str(limit),
        "device": where.torch.type,
        "precision": where.precision,
        "recipe": dataclasses.asdict(chosen),
        "version": __version__,
    }
    return train_in(
        out,
        configuration,
        teacher=taught,
        network=network,
        card=card,
        recipe=chosen,
        budget=limit,
        device=where,
        seed=seed,
        fresh=fresh,
        export_onnx=export_onnx,
        on_progress=on_progress,
        label_embeddings=table,
        prior=drawn_on,
    )


def with_method(overrides: Mapping[str, str], method: str | None) -> dict[str, str]:
    """The overrides of a recipe, the method among them.

    Raises:
        UsageError: If they name another method already.
    """
    if method is None:
        return dict(overrides)
    if overrides.get("method", method) != method:
        raise UsageError(
            f"the method is both {method} and the recipe key {overrides['method'][:40]}",
            hint="give it once",
        )
    return {**overrides, "method": method}


def train_in(
    out: str | Path,
    configuration: Mapping[str, object],
    *,
    teacher: Teacher | Ensemble,
    network: nn.Module,
    card: ModelCard,
    recipe: Recipe,
    budget: Budget,
    device: Device,
    seed: int,
    fresh: bool,
    export_onnx: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
    label_embeddings: Tensor | None = None,
    prior: GenerativeModel | None = None,
) -> DistillReport:
    """Train a student in a run directory and write everything that the run leaves.

    Args:
        out: The run directory.
        configuration: By which a run is resumed or refused.
        teacher: On the CPU; may be an ensemble.
        network: The student, in its initial state, on the CPU.
        card: The student's.
        recipe: What to do.
        budget: When to stop.
        device: Where.
        seed: Of everything that is drawn.
        fresh: Delete an earlier run and start anew.
        export_onnx: Write student.onnx too.
        on_progress: Called once a round.
        label_embeddings: float32 (K, e), for the method that takes them.
        prior: For the method that draws on it.

    Raises:
        ConfigurationError: If the run directory is another run's, or training diverges.
        ResourceExhausted: If memory or disk runs out.
    """
    with RunDirectory.open(out, configuration, fresh=fresh) as run:
        teacher.to(device.torch, memory_format=torch.channels_last)  # type: ignore[call-overload]
        model = NormalisedStudent(network, card.input)
        model.to(device.torch, memory_format=torch.channels_last)  # type: ignore[call-overload]
        trained = train_student(
            teacher, model, recipe, budget, device, seed, run, on_progress, label_embeddings, prior
        )
        write_results(run, teacher, model, card, trained, recipe, device, seed, prior)
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


def check_seed(seed: int) -> None:
    """Refuse what is no seed.

    Raises:
        UsageError: If it is outside 0..2^63 - 1.
    """
    if not 0 <= seed <= MAX_SEED:
        raise UsageError(f"{seed} is not a seed", hint=f"use a whole number from 0 to {MAX_SEED}")


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


def new_student(card: ModelCard, earlier: Teacher | None, seed: int) -> nn.Module:
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
