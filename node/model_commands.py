"""`genkd-node inspect | evaluate | report | doctor`: one call each, and its answer for people."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from genkd.console import Answer, AsJson, columns
from genkd.errors import InputFileRefused
from node.evaluation import BATCH_SIZE, ModelFile, evaluate_files, require_there, summary
from node.settings import DeviceFlag, load_settings
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
    from genkd.inspection import Inspection

app = typer.Typer()


@app.command()
def inspect(
    file: Annotated[Path, typer.Argument(help="A safetensors or ONNX file.", show_default=False)],
    arch: Architecture = None,
    num_classes: NumClasses = None,
    input_size: InputSize = None,
    mean: Mean = None,
    std: Std = None,
    as_json: AsJson = False,
) -> Answer:
    """Say what a model file is, from its header, and what is missing to use it.

    \b
    genkd-node inspect model.safetensors
    genkd-node inspect model.safetensors --arch torchvision:resnet18 --num-classes 10
    """  # noqa: D301 (click wants the \b itself)
    options = teacher_options(arch, num_classes, input_size, mean, std)
    from genkd.inspection import inspect_file

    found = inspect_file(
        file,
        architecture=options.architecture,
        num_classes=options.num_classes,
        input_card=options.input_card,
    )
    return Answer(found.as_json(), columns(_rows(found)))


def _rows(found: Inspection) -> Mapping[str, object]:
    image = found.input
    by_dtype = ", ".join(f"{count} {dtype}" for dtype, count in found.dtypes.items())
    looks_like = "looks like" if found.found_in == "names and shapes" else "architecture"
    size = image and f"{image.channels}x{image.height}x{image.width}"
    return {
        "file": f"{found.path}, {found.bytes:,} bytes",
        "sha256": found.sha256,
        "tensors": f"{found.tensors} ({by_dtype}), {found.parameters:,} values",
        looks_like: found.architecture and f"{found.architecture} (by {found.found_in})",
        "classes": found.num_classes,
        "images": image
        and f"{size}, mean {_list(image.mean)}, std {_list(image.std)} (by {found.input_found_in})",
        "class names": found.class_names and ", ".join(found.class_names),
        "description": found.description or None,
        "does not fit": found.problem,
        "still to say": " ".join(found.missing) or None,
    }


def _list(values: tuple[float, ...]) -> str:
    return ",".join(f"{value:g}" for value in values)


@app.command()
def evaluate(
    student: Annotated[Path, typer.Argument(help="A safetensors file.", show_default=False)],
    data: Annotated[
        str,
        typer.Option(
            help="Labelled images: an .npz, a folder with a folder per class, idx files, or "
            "torchvision:NAME:FOLDER that lies on this disk."
        ),
    ],
    teacher: Annotated[
        Path | None, typer.Option(help="A model to compare it with; may be an ONNX file.")
    ] = None,
    device: DeviceFlag = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images a call.")] = BATCH_SIZE,
    arch: Architecture = None,
    num_classes: NumClasses = None,
    input_size: InputSize = None,
    mean: Mean = None,
    std: Std = None,
    factory: Factory = None,
    allow_local_code: AllowLocalCode = False,
    as_json: AsJson = False,
) -> Answer:
    """Measure a student: accuracy, agreement, calibration, latency, memory.

    \b
    genkd-node evaluate runs/first/student.safetensors --data test.npz
    genkd-node evaluate student.safetensors --data photos/ --teacher teacher.safetensors
    genkd-node evaluate student.safetensors --data torchvision:CIFAR10:/data

    --arch and the options after it describe the teacher; without one, the student.
    """  # noqa: D301 (click wants the \b itself)
    options = teacher_options(arch, num_classes, input_size, mean, std, factory, allow_local_code)
    settings = load_settings(device=device)
    require_there(data)
    if teacher is None:
        model, compared = ModelFile(student, options), None
    else:
        model, compared = ModelFile(student), ModelFile(teacher, options)
    evaluation = evaluate_files(model, data, compared, settings.device, batch_size)
    return Answer(evaluation.as_json(), columns(summary(evaluation)))


@app.command()
def report(
    run_directory: Annotated[Path, typer.Argument(help="Of a finished run.", show_default=False)],
    as_json: AsJson = False,
) -> Answer:
    """Write report.html of a run anew: one file, to be opened in a browser.

    \b
    genkd-node report runs/first
    """  # noqa: D301 (click wants the \b itself)
    if not run_directory.is_dir():
        raise InputFileRefused(
            f"{run_directory} is not a run directory", hint="give the --out of a distillation"
        )
    from genkd.report import write_report

    path = write_report(run_directory)
    return Answer({"report": path}, [f"report  {path}"])


@app.command()
def doctor(
    teacher: Annotated[
        Path | None, typer.Option(help="A model to load and to distil one step from.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Where runs are to be written.", show_default="runs")
    ] = None,
    device: DeviceFlag = None,
    arch: Architecture = None,
    num_classes: NumClasses = None,
    input_size: InputSize = None,
    mean: Mean = None,
    std: Std = None,
    factory: Factory = None,
    allow_local_code: AllowLocalCode = False,
    as_json: AsJson = False,
) -> Answer:
    """Check that a run would work here, by trying out what it needs.

    \b
    genkd-node doctor
    genkd-node doctor --teacher model.safetensors --out /data/runs
    """  # noqa: D301 (click wants the \b itself)
    options = teacher_options(arch, num_classes, input_size, mean, std, factory, allow_local_code)
    settings = load_settings(device=device, runs=out)
    from node.doctor import preflight

    checks = list(preflight(settings.runs, settings.device, teacher, options))
    lines = []
    for check in checks:
        lines.append(f"{check.outcome:<8} {check.name}: {check.detail}")
        if check.hint:
            lines.append(f"{'':<8} hint: {check.hint}")
    failed = [check for check in checks if check.outcome == "failed"]
    return Answer(
        {"checks": [asdict(check) for check in checks]},
        lines,
        status="failed" if failed else "ok",
        exit_code=failed[0].exit_code if failed else 0,
    )
