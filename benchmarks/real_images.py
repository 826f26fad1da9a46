"""One student of real images, as a study's trial starts it; `oracles.py` is what a person starts.

    python benchmarks/real_images.py distilled TEACHER STUDENT IMAGES BUDGET SEED OUT
    python benchmarks/real_images.py scratch   TEACHER STUDENT IMAGES BUDGET SEED OUT

"distilled": the very student loop of GenKD, over a bank of the real training set. "scratch": the
same optimiser, rate, batch and moves of the images, without blending, on the true labels; the
teacher only says the size of the images. IMAGES names the test set; the training set beside it is
read. The budget is seconds, core-seconds, or passes: images that the student learns from, which
of "distilled" the teacher answers as well. OUT gets student.safetensors and result.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional
from trials import device_for, one_line_errors, require_training_set

from genkd.augmentation import random_affine
from genkd.bank import SynthesisBank
from genkd.card import ModelCard, ModelSpec, card_to_json
from genkd.cost import peak_memory_bytes
from genkd.device import Device, choose_device
from genkd.durable import atomic_write
from genkd.images import LabelledImages, as_card_wants, read_labelled_arrays
from genkd.models import build_model
from genkd.recipe import STANDARD, Budget
from genkd.student import NormalisedStudent, StudentLearner, learning_rate
from genkd.teacher import Teacher, load_teacher
from genkd.weights import write_model


def training_images(source: str, card: ModelCard) -> LabelledImages:
    """The training set beside the test set `source`.

    Raises:
        SystemExit: If it is not there.
    """
    require_training_set(source)
    images, labels = read_labelled_arrays(source, "train")
    return as_card_wants(images, labels, card, source)


# Few steps at a time, so that budgets are kept to the second and the rate follows them.
RECIPE = dataclasses.replace(STANDARD, student_steps=12)


class ScratchLearner(StudentLearner):
    """Learns the stored labels instead of the teacher's answers."""

    def _step(self, teacher: Teacher, bank: SynthesisBank) -> dict[str, torch.Tensor]:  # type: ignore[override]
        images, labels = bank.draw(self.batch, self.random)
        images = random_affine(images, self.recipe.affine, self.random)
        with self.device.autocast():
            logits = self.student(images.contiguous(memory_format=torch.channels_last))
        loss = functional.cross_entropy(logits.float(), labels)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return {"distillation": loss.detach()}


def train(
    kind: str,
    teacher: Teacher,
    network: nn.Module,
    data: LabelledImages,
    budget: Budget,
    device: Device,
    seed: int,
) -> dict[str, object]:
    """Train `network` in place; what it took."""
    random = device.generator(seed)
    teacher.to(device.torch)
    student = NormalisedStudent(network, teacher.card.input)
    student.to(device.torch, memory_format=torch.channels_last)  # type: ignore[call-overload]
    bank = SynthesisBank(len(data), data.images.shape[1:], device.torch)
    labels = torch.from_numpy(data.labels).to(device.torch)
    images = torch.from_numpy(data.images).to(device.torch)
    bank.add(images, labels, torch.ones(len(data), device=device.torch))
    learner = (ScratchLearner if kind == "scratch" else StudentLearner)(
        student, RECIPE, device, random
    )
    if budget.unit == "samples":
        raise SystemExit("real images are not made: give a budget in core-seconds or passes")
    start, busy, rounds, passes = time.monotonic(), time.process_time(), 0, 0
    spent = 0.0
    while spent < budget.amount:
        learner.learn(teacher, bank, spent / budget.amount)
        rounds, passes = rounds + 1, passes + RECIPE.student_steps * learner.batch
        now = {"seconds": time.monotonic() - start, "core-seconds": time.process_time() - busy}
        spent = now.get(budget.unit, passes)
    learner.settle(bank)
    seconds = time.monotonic() - start
    return {
        "seconds": seconds,
        "core_seconds": time.process_time() - busy,
        "phase_seconds": {"distillation": seconds},
        "rounds": rounds,
        "samples": len(data),
        "teacher_passes": 0 if kind == "scratch" else passes,
        "peak_memory_bytes": peak_memory_bytes(device.torch),
        "final_rate": learning_rate(RECIPE.student_rate, 1.0),
    }


def new_student(
    teacher: Teacher, architecture: str, seed: int, description: str
) -> tuple[nn.Module, ModelCard]:
    """A student of fresh weights, and its card: it sees what the teacher sees."""
    seen = teacher.card
    spec = ModelSpec(architecture, seen.spec.num_classes, seen.spec.in_channels)
    network = build_model(spec, generator=torch.Generator().manual_seed(seed))
    return network, ModelCard(spec, seen.input, seen.class_names, description)


def main() -> None:
    """Train one student and write it."""
    parser = argparse.ArgumentParser(description="Train one student on real images.")
    parser.add_argument("kind", choices=["distilled", "scratch"])
    for name in ("teacher", "student", "images", "budget"):
        parser.add_argument(name)
    parser.add_argument("seed", type=int)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    teacher = load_teacher(arguments.teacher)
    made = f"{arguments.kind} on real images"
    network, card = new_student(teacher, arguments.student, arguments.seed, made)
    data = training_images(arguments.images, teacher.card)
    budget = Budget.parse(arguments.budget)
    device = choose_device(device_for(budget), "auto")
    result = train(arguments.kind, teacher, network, data, budget, device, arguments.seed)
    arguments.out.mkdir(parents=True, exist_ok=True)
    state = network.to("cpu").state_dict()
    metadata = {"v": 1, "card": card_to_json(card)}
    write_model(arguments.out / "student.safetensors", state, metadata)
    atomic_write(arguments.out / "result.json", json.dumps(result, indent=2).encode())


if __name__ == "__main__":
    with one_line_errors():
        main()
