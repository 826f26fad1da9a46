"""A stretch of distillation: the rate, the steps, and who may change."""

from __future__ import annotations

import copy
import dataclasses
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from genkd.bank import SynthesisBank, quantise
from genkd.card import InputCard, ModelCard, ModelSpec
from genkd.device import Device
from genkd.models import build_model
from genkd.recipe import Recipe
from genkd.student import StudentLearner, learning_rate
from genkd.teacher import Teacher, load_teacher

DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA here")
    ),
]
TINY = ModelSpec("lenet5-bn-quarter", 3, 1)
RECIPE = Recipe(student_steps=3, student_batch=16, student_rate=0.05)


@pytest.mark.parametrize(
    ("progress", "rate"),
    [
        (0.0, 0.0001),  # the lowest
        (0.00001, 0.0001),
        (0.0125, 0.025),  # a quarter of the warm-up
        (0.025, 0.05),
        (0.05, 0.1),  # the peak
        (0.2875, 0.0853553),  # (1 + cos 45 degrees) / 2
        (0.525, 0.05),  # half-way down
        (0.7625, 0.0146447),
        (1.0, 0.0001),
        (1.5, 0.0001),  # the last round may go beyond the budget
    ],
)
def test_the_one_cycle_rate_by_hand(progress: float, rate: float) -> None:
    assert learning_rate(0.1, progress) == pytest.approx(rate, rel=1e-5)


def test_the_rate_rises_and_then_falls() -> None:
    rates = [learning_rate(1.0, i / 1000) for i in range(1001)]
    top = rates.index(max(rates))
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert max(abs(a - b) for a, b in pairwise(rates)) < 0.03


class Counted(nn.Module):
    """The teacher, noting what passes."""

    def __init__(self, teacher: Teacher) -> None:
        super().__init__()
        self.teacher, self.card, self.batches = teacher, teacher.card, list[int]()

    def forward(self, images: Tensor) -> Tensor:
        self.batches.append(len(images))
        assert float(images.min()) >= 0
        assert float(images.max()) <= 1 + 1e-6
        logits: Tensor = self.teacher(images)
        return logits


def bank_of(device: str, count: int = 48) -> SynthesisBank:
    """Stripes that the tiny teacher tells apart."""
    random = torch.Generator().manual_seed(0)
    wave = torch.sin(torch.arange(16) * 1.2 + 6 * torch.rand(count, 1, 1, 1, generator=random))
    images = (0.5 + 0.4 * wave).expand(count, 1, 16, 16)
    images = torch.where(torch.arange(count).view(-1, 1, 1, 1) % 2 == 0, images, images.mT)
    bank = SynthesisBank(64, (1, 16, 16), torch.device(device))
    bank.add(
        quantise(images).to(device),
        torch.arange(count, device=device) % 2,
        torch.ones(count, device=device),
    )
    return bank


def learner_of(device: str = "cpu", precision: str = "fp32", **keys: object) -> StudentLearner:
    recipe = dataclasses.replace(RECIPE, **keys)  # type: ignore[arg-type]
    network = build_model(TINY, generator=torch.Generator().manual_seed(5)).to(device).eval()
    place = Device(torch.device(device), precision)  # type: ignore[arg-type]
    return StudentLearner(network, recipe, place, place.generator(0))


def weights(learner: StudentLearner) -> Tensor:
    values = [v.flatten().float().cpu() for v in learner.student.state_dict().values()]
    return torch.cat(values)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("device", DEVICES)
def test_the_student_comes_nearer_to_the_teacher(
    tiny_teacher: Path, device: str, precision: str
) -> None:
    teacher, bank = load_teacher(tiny_teacher).to(device), bank_of(device)
    keys = {"student_rate": 0.01, "mixed_share": 0.0, "affine": 0.0, "texture": 0.0}
    learner = learner_of(device, precision, student_steps=8, **keys)
    losses = []
    for _ in range(6):
        figures, _ = learner.learn(teacher, bank, progress=0.1)
        losses.append(float(figures["distillation"]))
    assert losses[-1] < 0.3 * losses[0]
    assert {value.dtype for value in learner.student.parameters()} == {torch.float32}


def test_only_the_student_changes(tiny_teacher: Path) -> None:
    teacher, bank, learner = load_teacher(tiny_teacher), bank_of("cpu"), learner_of()
    before = copy.deepcopy(teacher.state_dict())
    stored = bank.state_dict()["images"]
    assert isinstance(stored, Tensor)
    images, own, world = stored.clone(), weights(learner), torch.get_rng_state()
    learner.learn(teacher, bank, progress=0.5)
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
    assert all(value.grad is None for value in teacher.parameters())
    assert torch.equal(stored, images)
    assert torch.equal(torch.get_rng_state(), world)
    assert not torch.equal(weights(learner), own)
    assert not any(module.training for module in learner.student.modules())


def test_steps_batches_and_figures_are_what_the_recipe_says(tiny_teacher: Path) -> None:
    teacher, learner = Counted(load_teacher(tiny_teacher)), learner_of(student_steps=5)
    figures, rate = learner.learn(teacher, bank_of("cpu"), progress=0.525)  # type: ignore[arg-type]
    assert teacher.batches == [16] * 5
    assert rate == pytest.approx(0.025)
    assert {group["lr"] for group in learner.optimizer.param_groups} == {rate}
    assert set(figures) == {"distillation", "agreement"}
    assert 0 <= float(figures["agreement"]) <= 1
    assert not any(value.requires_grad for value in figures.values())


def test_one_sgd_step_by_hand() -> None:
    """A linear student of one pixel, whose step can be computed with a pencil."""

    class Fixed(Teacher):
        def __init__(self) -> None:
            card = ModelCard(ModelSpec("fixed", 2, 1), InputCard(1, 1, 1, (0.0,), (1.0,)), None, "")
            super().__init__(nn.Identity(), card, "")

        def forward(self, images: Tensor) -> Tensor:
            return torch.tensor([[0.0, 2.0]]).expand(len(images), 2)

    student = nn.Sequential(nn.Flatten(), nn.Linear(1, 2, bias=False))
    nn.init.zeros_(student[1].weight)  # type: ignore[arg-type]
    unchanged = {"affine": 0.0, "texture": 0.0, "mixed_share": 0.0}
    keys = {"student_steps": 1, "temperature": 2.0, **unchanged}
    recipe = dataclasses.replace(RECIPE, student_decay=0.0, **keys)  # type: ignore[arg-type]
    place = Device(torch.device("cpu"), "fp32")
    learner = StudentLearner(student, recipe, place, place.generator(0))
    bank = SynthesisBank(4, (1, 1, 1), place.torch)
    bank.add(torch.full((1, 1, 1, 1), 255, dtype=torch.uint8), torch.zeros(1).long(), torch.ones(1))
    learner.learn(Fixed(), bank, progress=0.05)
    # dL/ds = T (softmax(s / T) - softmax(t / T)); Nesterov's first step is 1 + 0.9 of it.
    target = torch.tensor([0.0, 1.0]).softmax(0)
    gradient = 2 * (torch.tensor([0.5, 0.5]) - target)
    expected = -0.05 * 1.9 * gradient
    assert torch.allclose(student[1].weight.flatten(), expected, atol=1e-6)  # type: ignore[operator]


def test_same_random_state_same_student_and_another_another(tiny_teacher: Path) -> None:
    results = []
    for seed in (0, 0, 1):
        learner = learner_of()
        learner.random = torch.Generator().manual_seed(seed)
        learner.learn(load_teacher(tiny_teacher), bank_of("cpu"), progress=0.5)
        results.append(weights(learner))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_dropout_follows_from_the_learners_own_random_state(tiny_teacher: Path) -> None:
    teacher, bank = load_teacher(tiny_teacher), bank_of("cpu")
    learners = [learner_of() for _ in range(2)]
    for seed, learner in enumerate(learners):
        learner.student = nn.Sequential(learner.student, nn.Dropout(0.5))
        torch.manual_seed(seed)  # the global state, which is not to matter
        before = torch.get_rng_state()
        learner.learn(teacher, bank, 0.5)
        assert torch.equal(torch.get_rng_state(), before)
    first, second = map(weights, learners)
    assert torch.equal(first, second)
    learners[0].learn(teacher, bank, 0.5)
    assert not torch.equal(weights(learners[0]), first)


def test_the_batch_is_halved_down_to_two_and_no_further() -> None:
    learner = learner_of(student_batch=9)
    assert [learner.halve_batch() for _ in range(4)] == [4, 2, 0, 0]
    assert learner.batch == 2


def test_a_halved_batch_is_what_is_learned_from(tiny_teacher: Path) -> None:
    teacher, learner = Counted(load_teacher(tiny_teacher)), learner_of()
    learner.halve_batch()
    learner.learn(teacher, bank_of("cpu"), progress=0.5)  # type: ignore[arg-type]
    assert teacher.batches == [8] * 3


def test_a_checkpoint_continues_bit_for_bit(tiny_teacher: Path) -> None:
    teacher, bank = load_teacher(tiny_teacher), bank_of("cpu")
    first, second = learner_of(), learner_of(student_batch=12)
    first.halve_batch()
    first.learn(teacher, bank, progress=0.3)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert second.batch == 8
    for learner in (first, second):
        learner.random = torch.Generator().manual_seed(9)
        learner.learn(teacher, bank, progress=0.4)
    assert torch.equal(weights(first), weights(second))


@pytest.mark.parametrize(("affine", "as_stored"), [(0.0, True), (0.25, False)])
def test_batchnorm_settles_on_stored_images_moved_as_much_as_the_recipe_says(
    affine: float, as_stored: bool
) -> None:
    learner, bank = learner_of(affine=1.0, settling_affine=affine), bank_of("cpu")
    shown: list[Tensor] = []
    learner.student.register_forward_pre_hook(lambda _, given: shown.append(given[0]))
    weights_before = {k: v.clone() for k, v in learner.student.named_parameters()}
    norm = next(m for m in learner.student.modules() if isinstance(m, nn.BatchNorm2d))
    momentum, inputs = norm.momentum, list[Tensor]()
    norm.register_forward_pre_hook(lambda _, given: inputs.append(given[0].detach().clone()))
    learner.settle(bank)
    stored = {image.numpy().tobytes() for image in bank.samples(48, 2)[0]}
    found = [quantise(image).numpy().tobytes() in stored for image in torch.cat(shown)]
    assert all(found) if as_stored else sum(found) < len(found) / 10
    assert norm.momentum == momentum
    assert not learner.student.training
    assert norm.running_mean is not None
    mean = torch.stack([batch.mean((0, 2, 3)) for batch in inputs]).mean(0)
    torch.testing.assert_close(norm.running_mean, mean, atol=1e-4, rtol=1e-4)
    assert all(torch.equal(v, weights_before[k]) for k, v in learner.student.named_parameters())
