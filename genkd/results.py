"""What a finished training leaves in its run directory: the student, its figures, some samples.

    write_results(run, teacher, model, card, trained, recipe, device, seed)

student.json, student.safetensors, samples.npz (which stays on the node) and result.json, from which
the report is drawn and the release's statement takes its figures.
"""

from __future__ import annotations

import dataclasses
import io
import platform

import numpy as np
import torch
from torch import nn

from genkd import __version__
from genkd.bank import SynthesisBank, as_images
from genkd.card import ModelCard, card_to_json
from genkd.cost import device_name, measure_cost, peak_memory_bytes
from genkd.device import Device
from genkd.digest import sha256_bytes
from genkd.ensemble import Ensemble
from genkd.errors import ConfigurationError
from genkd.generative_model import GenerativeModel
from genkd.recipe import Recipe
from genkd.run_directory import RunDirectory
from genkd.student import NormalisedStudent
from genkd.teacher import Teacher
from genkd.train import Trained
from genkd.weights import model_bytes

SAMPLES_PER_CLASS = 32
RESULT_VERSION = 1
AGREEMENT_IMAGES = 2048
# Images at once when the finished student is measured; fewer where training had to make do.
MEASURED_BATCH = 256


def write_results(
    run: RunDirectory,
    teacher: Teacher | Ensemble,
    model: NormalisedStudent,
    card: ModelCard,
    trained: Trained,
    recipe: Recipe,
    device: Device,
    seed: int,
    prior: GenerativeModel | None = None,
) -> None:
    """Everything of the run directory but the report, the student's file last of its pair.

    Raises:
        ConfigurationError: If the student's weights are not finite.
        ResourceExhausted: If the disk is full.
    """
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
    names = {"teacher": teacher.architecture, "student": card.spec.architecture}
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
            "core_seconds": trained.core_seconds,
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
            "prior": prior and {"family": prior.card.family, "sha256": prior.sha256},
            "class_names": card.class_names,
            "agreement_per_class": _agreement_per_class(
                teacher, model, trained.bank, device, batch
            ),
            "final": trained.figures,
        },
    )


@torch.no_grad()
def _agreement_per_class(
    teacher: Teacher | Ensemble, model: nn.Module, bank: SynthesisBank, device: Device, batch: int
) -> list[float | None]:
    """Of an even selection of the bank, as stored: how often the student agrees, by class.

    None for a class without images, and for one that is not this teacher's to teach.
    """
    classes = teacher.card.spec.num_classes
    images, labels, _ = bank.samples(max(1, AGREEMENT_IMAGES // classes), classes)
    agreed = torch.zeros(classes)
    count = torch.bincount(labels, minlength=classes)
    model.eval()
    for part, label in zip(torch.split(images, batch), torch.split(labels, batch), strict=True):
        x = as_images(part.to(device.torch))
        same = (model(x).argmax(1) == teacher(x).argmax(1)).float().cpu()
        agreed.index_add_(0, label, same)
    return [
        float(agreed[label] / count[label]) if count[label] and label in teacher.credited else None
        for label in range(classes)
    ]


def _samples(bank: SynthesisBank, num_classes: int) -> bytes:
    images, labels, confidence = bank.samples(SAMPLES_PER_CLASS, num_classes)
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer, images=images.numpy(), labels=labels.numpy(), confidence=confidence.numpy()
    )
    return buffer.getvalue()
