"""The checks of `genkd-node doctor` that need PyTorch: it computes, and so does a teacher file."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from genkd.card import ModelSpec
from genkd.device import choose_device
from genkd.errors import ConfigurationError, InputFileRefused
from genkd.losses import distillation_loss
from genkd.models import build_model
from genkd.teacher import load_teacher
from node.doctor import Found, in_gib
from node.teacher_options import TeacherOptions

STUDENT = "resnet8-quarter"
BATCH = 8
TEMPERATURE = 4.0


def check_threads(cores: float) -> Found:
    """PyTorch computes with as many threads as there are cores."""
    threads = torch.get_num_threads()
    detail = f"{threads} thread(s) on {cores:g} core(s)"
    if threads > cores:
        return Found(detail, f"too many slow it down: set OMP_NUM_THREADS={max(1, int(cores))}")
    if threads < int(cores):
        return Found(detail, f"cores lie idle: set OMP_NUM_THREADS={int(cores)}")
    return Found(detail)


def check_devices() -> Found:
    """Which devices PyTorch finds."""
    names = ["cpu"]
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            names.append(f"cuda {properties.name} {in_gib(properties.total_memory)}")
    if torch.backends.mps.is_available():
        names.append("mps")
    return Found(", ".join(names))


def check_precision(device: str, precision: str) -> Found:
    """A convolution computes forward and backward in this precision, with finite results."""
    chosen = choose_device(device, precision)
    place = chosen.torch
    generator = torch.Generator().manual_seed(0)
    layer = nn.Conv2d(3, 8, 3)
    images = torch.rand((BATCH, 3, 16, 16), generator=generator).to(place)
    try:
        layer.to(place)
        with chosen.autocast():
            loss = layer(images).square().mean()
        loss.backward()
    except RuntimeError as error:
        raise ConfigurationError(
            f"{precision} does not work on {place}: {_first_line(error)}",
            hint="use --precision fp32" if precision == "bf16" else "use --device cpu",
        ) from error
    gradient = layer.weight.grad
    if gradient is None or not (_finite(loss) and _finite(gradient)):
        raise ConfigurationError(
            f"{precision} on {place} gives numbers that are not finite",
            hint="update the driver and PyTorch, or use --device cpu",
        )
    automatic = choose_device(device, "auto").precision == precision
    return Found(f"works on {place}" + (", and is what auto takes" if automatic else ""))


def check_teacher(path: Path, options: TeacherOptions, device: str) -> Found:
    """The teacher loads, classifies a batch of noise, and a student learns one step from it."""
    teacher = load_teacher(
        path,
        architecture=options.architecture,
        num_classes=options.num_classes,
        input_card=options.input_card,
        factory=options.factory,
        allow_local_code=options.allow_local_code,
    )
    place = choose_device(device, "fp32").torch
    teacher.to(place)
    card = teacher.card
    generator = torch.Generator().manual_seed(0)
    shape = (BATCH, card.input.channels, card.input.height, card.input.width)
    images = torch.rand(shape, generator=generator).to(place)
    with torch.no_grad():
        logits = teacher(images)
    if logits.shape != (BATCH, card.spec.num_classes) or not _finite(logits):
        raise InputFileRefused(
            f"{path} does not classify noise: logits of shape {tuple(logits.shape)}, "
            f"{'' if _finite(logits) else 'not '}finite",
            hint="check the architecture, the number of classes and the input card",
        )
    spec = ModelSpec(STUDENT, card.spec.num_classes, card.input.channels)
    student = build_model(spec, generator=generator).to(place)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    loss = distillation_loss(logits, student(images), TEMPERATURE)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    if not all(_finite(weight) for weight in student.parameters()):
        raise InputFileRefused(
            f"one step of distillation from {path} is not finite",
            hint="check the mean and std of the input card",
        )
    size = f"{card.input.channels}x{card.input.height}x{card.input.width}"
    return Found(
        f"{card.spec.architecture}, {card.spec.num_classes} classes, images {size}: "
        "loads, classifies, and a student learns from it"
    )


def _finite(values: Tensor) -> bool:
    return bool(torch.isfinite(values).all())


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
