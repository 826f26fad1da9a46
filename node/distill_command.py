"""`genkd-node distill`: a private teacher becomes a student, with no data."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from genkd.console import Answer, AsJson, columns, say
from genkd.recipe import Method, parse_overrides
from genkd.signals import stop_signals
from node.evaluation import (
    ModelFile,
    evaluate_files,
    record_evaluation,
    require_there,
    summary,
)
from node.progress import duration, progress_display
from node.settings import DeviceFlag, Precision, RecipeName, load_settings
from node.teacher_options import (
    AllowLocalCode,
    Architecture,
    Factory,
    InputSize,
    Mean,
    NumClasses,
    Std,
    teacher_options,
)

if TYPE_CHECKING:
    from genkd.distillation import DistillReport, Progress
    from genkd.evaluate import Evaluation

app = typer.Typer()


@app.command(
    epilog="The same command on the same --out resumes. Ctrl-C and SIGTERM keep the checkpoint."
)
def distill(
    teacher: Annotated[
        Path, typer.Option(help="The teacher: a safetensors file, or with --prior an ONNX file.")
    ],
    student: Annotated[
        str | None, typer.Option(help="Its architecture.", show_default="resnet8-half")
    ] = None,
    recipe: Annotated[
        RecipeName | None, typer.Option(help="How thorough to be.", show_default="standard")
    ] = None,
    method: Annotated[
        Method | None,
        typer.Option(
            help="How images come about: ours (genkd-pixel: in pixels, dear), or the field's.",
            show_default="genkd",
        ),
    ] = None,
    label_embeddings: Annotated[
        Path | None,
        typer.Option(help="For nayer: text embeddings of the class names, a safetensors file."),
    ] = None,
    prior: Annotated[
        Path | None,
        typer.Option(help="A public generative model to draw on: see genkd-prior train."),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(help="What to spend: 10m, 600core-seconds, 2e6passes, 20000samples."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="The run directory.", show_default="runs/TEACHER-STUDENT-SEED"),
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh/--resume", help="Start anew, or go on with what is in --out.")
    ] = False,
    eval_data: Annotated[
        str | None, typer.Option(help="Images to evaluate on, after training: see evaluate.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Of everything that is drawn.", show_default="0")
    ] = None,
    device: DeviceFlag = None,
    precision: Annotated[
        Precision | None, typer.Option(help="Of forward passes.", show_default="auto")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a recipe key.")
    ] = None,
    init_student: Annotated[
        Path | None, typer.Option(help="Start from this student's weights.")
    ] = None,
    export: Annotated[
        Literal["onnx"] | None, typer.Option(help="Write the student in this format too.")
    ] = None,
    arch: Architecture = None,
    num_classes: NumClasses = None,
    input_size: InputSize = None,
    mean: Mean = None,
    std: Std = None,
    factory: Factory = None,
    allow_local_code: AllowLocalCode = False,
    as_json: AsJson = False,
) -> Answer:
    """Turn a teacher into a smaller student that imitates it, with no data.

    \b
    genkd-node distill --teacher model.safetensors
    genkd-node distill --teacher model.safetensors --student resnet20 --recipe thorough
    genkd-node distill --teacher model.safetensors --budget 10m --out runs/first
    genkd-node distill --teacher black-box.onnx --prior vae.safetensors
    genkd-node distill --teacher bare.safetensors --arch torchvision:resnet18
        --num-classes 10 --input-size 32x32 --mean 0.5,0.5,0.5 --std 0.2,0.2,0.2
    """  # noqa: D301 (click wants the \b itself)
    options = teacher_options(arch, num_classes, input_size, mean, std, factory, allow_local_code)
    settings = load_settings(
        student=student, recipe=recipe, budget=budget, seed=seed, device=device, precision=precision
    )
    recipe_keys = parse_overrides(overrides or [])
    if out is None:
        out = settings.runs / run_name(teacher, settings.student, settings.seed)
    if eval_data is not None:
        require_there(eval_data)  # not an hour later
    from genkd.distillation import distill as run_distill

    say(f"run directory  {out}")
    with progress_display() as show, stop_signals(say) as check:

        def on_progress(progress: Progress) -> None:
            show(progress)
            check()

        report = run_distill(
            teacher=teacher,
            student=settings.student,
            out=out,
            recipe=settings.recipe,
            method=method,
            label_embeddings=label_embeddings,
            prior=prior,
            budget=settings.budget,
            seed=settings.seed,
            device=settings.device,
            precision=settings.precision,
            fresh=fresh,
            architecture=options.architecture,
            num_classes=options.num_classes,
            input_card=options.input_card,
            factory=options.factory,
            allow_local_code=options.allow_local_code,
            overrides=recipe_keys,
            export_onnx=export == "onnx",
            init_student=init_student,
            on_progress=on_progress,
        )
    evaluation = None
    if eval_data is not None:
        say(f"evaluating on {eval_data}")
        taught_by = ModelFile(teacher, options)
        with stop_signals(say):
            evaluation = evaluate_files(
                ModelFile(report.student), eval_data, taught_by, settings.device
            )
            record_evaluation(out, evaluation)
    return _answer(out, report, evaluation)


def run_name(teacher: Path, student: str, seed: int) -> str:
    """The name of a run directory: `teacher-resnet8-half-0`."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", f"{teacher.stem}-{student}-{seed}")


def _answer(out: Path, report: DistillReport, evaluation: Evaluation | None) -> Answer:
    data: dict[str, object] = {
        "run_directory": out,
        "student": report.student,
        "report": out / "report.html",
        "seconds": report.seconds,
        "samples": report.samples,
        "evaluation": None if evaluation is None else evaluation.as_json(),
    }
    rows: dict[str, object] = {
        "student": report.student,
        "time": duration(report.seconds),
        "samples": f"{report.samples:,} synthetic images, kept in {out}",
    }
    if evaluation is not None:
        rows |= summary(evaluation)
    return Answer(data, columns({**rows, "report": out / "report.html"}))
