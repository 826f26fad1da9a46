"""What every baseline does: makes images, lowers its own loss, changes nobody, resumes exactly."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from genkd.bank import as_images
from genkd.baselines.baseline import Baseline
from genkd.baselines.deepinversion import DeepInversion
from genkd.baselines.nayer import Nayer
from genkd.card import InputCard, ModelCard, ModelSpec
from genkd.device import Device
from genkd.errors import ConfigurationError, InputFileRefused
from genkd.methods import BASELINES, make_synthesiser
from genkd.models import build_model
from genkd.recipe import Method, find_recipe
from genkd.synthesis import Synthesiser
from genkd.teacher import Teacher, load_teacher

METHODS = list(BASELINES)
WITH_GENERATOR = [name for name in METHODS if name not in ("noise", "deepinversion")]


@pytest.fixture
def teacher(tiny_teacher: Path) -> Teacher:
    return load_teacher(tiny_teacher)


def pupil(teacher: Teacher) -> nn.Module:
    """A student that mostly agrees with its teacher."""
    student = copy.deepcopy(teacher.network)
    random = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for value in student.parameters():
            value.add_(0.1 * value.std(correction=0) * torch.randn(value.shape, generator=random))
    return student.requires_grad_(True).eval()


def make(
    method: str, teacher: Teacher, seed: int = 0, precision: str = "fp32", **keys: object
) -> Baseline:
    keys = {"batch": 24, "generator_steps": 2, **keys}
    if method in WITH_GENERATOR:
        keys = {"generator_channels": 4, "latent_dim": 8, **keys}
    recipe = find_recipe("quick", {"method": method, **{k: str(v) for k, v in keys.items()}})
    place = Device(torch.device("cpu"), precision)  # type: ignore[arg-type]
    made = make_synthesiser(teacher, recipe, place, place.generator(seed))
    assert isinstance(made, Baseline)
    return made


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(model.state_dict())


def same(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(value, second[name]) for name, value in first.items()
    )


def test_every_method_of_a_recipe_can_be_made(teacher: Teacher) -> None:
    assert {"genkd", "genkd-pixel", "frozen-prior", *METHODS} == set(get_args(Method))
    place = Device(torch.device("cpu"), "fp32")
    recipe = find_recipe("quick", {})
    made = make_synthesiser(teacher, recipe, place, place.generator(0))
    assert isinstance(made, Synthesiser)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_two_rounds_give_images_labelled_by_the_teacher(
    teacher: Teacher, method: str, precision: str
) -> None:
    baseline = make(method, teacher, precision=precision)
    for steer in (False, True):
        batch = baseline.synthesise(pupil(teacher), steer=steer)
        assert batch.images.dtype is torch.uint8
        assert batch.images.shape[1:] == (1, 16, 16)
        kept = len(batch.images)
        assert (8 <= kept <= 24) if method == "noise" else kept == 24
        assert len(batch.labels) == len(batch.confidence) == kept
        with torch.no_grad():
            probability = teacher(as_images(batch.images)).softmax(1)
        claimed = probability.gather(1, batch.labels.unsqueeze(1)).squeeze(1)
        assert torch.allclose(claimed, batch.confidence, atol=0.05)
        for figure in (*batch.losses.values(), *batch.health.values()):
            assert figure.shape == ()
            assert not figure.requires_grad
            assert bool(figure.isfinite())


@pytest.mark.parametrize("method", METHODS)
def test_two_rounds_lower_the_methods_own_loss(teacher: Teacher, method: str) -> None:
    reached = []
    rate = {"deepinversion": 0.1, "noise": 0.03}.get(method, 0.01)
    for steps in (1, 20):
        baseline = make(method, teacher, generator_steps=steps, generator_rate=rate)
        for _ in range(2):
            batch = baseline.synthesise(pupil(teacher), steer=True)
        reached.append(float(batch.losses["objective"]))
    assert reached[1] < reached[0] - 0.02 * abs(reached[0]), reached


@pytest.mark.parametrize("method", METHODS)
def test_the_same_seed_gives_the_same_images_whatever_the_global_one(
    teacher: Teacher, method: str
) -> None:
    batches = []
    for seed, of_all in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(of_all)
        batches.append(make(method, teacher, seed).synthesise(pupil(teacher), steer=True).images)
    assert torch.equal(batches[0], batches[1])
    assert batches[0].shape != batches[2].shape or not torch.equal(batches[0], batches[2])
    assert len(torch.unique(batches[0].flatten(1), dim=0)) > 1


@pytest.mark.parametrize("method", METHODS)
def test_a_round_changes_neither_teacher_nor_student(teacher: Teacher, method: str) -> None:
    student = build_model(ModelSpec("resnet8-quarter", 3, 1)).eval()
    before = snapshot(teacher), snapshot(student)
    make(method, teacher).synthesise(student, steer=True)
    assert same(snapshot(teacher), before[0])
    assert same(snapshot(student), before[1])
    assert all(value.grad is None for value in (*teacher.parameters(), *student.parameters()))
    assert all(value.requires_grad for value in student.parameters())


@pytest.mark.parametrize("method", ["fastdfkd", "nayer"])
def test_images_are_shown_shifted_while_they_are_made_and_kept_as_they_are(
    teacher: Teacher, method: str
) -> None:
    baseline, student, drawn, shown = make(method, teacher), pupil(teacher), [], []
    network = baseline.network  # type: ignore[attr-defined]
    network.register_forward_hook(lambda _, __, images: drawn.append(images))
    student.register_forward_pre_hook(lambda _, inputs: shown.append(inputs[0]))
    kept = baseline.synthesise(student, steer=True).images
    for images, seen in zip(drawn[:2], shown[:2], strict=True):  # two steps, then what is kept
        as_drawn = (seen == images).flatten(1).all(1)
        assert float(as_drawn.float().mean()) < 0.5
    assert torch.equal(as_images(kept), shown[2])
    assert float((as_images(kept) - drawn[2]).abs().max()) <= 0.5 / 255 + 1e-6


@pytest.mark.parametrize("steps", [1, 3, 200])
def test_deepinversion_rolls_the_batch_by_a_few_pixels_in_each_step(
    teacher: Teacher, steps: int
) -> None:
    baseline = make("deepinversion", teacher, generator_steps=steps)
    assert isinstance(baseline, DeepInversion)
    one_by_one = torch.Generator().manual_seed(0)
    one_by_one.set_state(baseline.random.get_state())
    shifts = baseline._shifts()
    # All at once, but the numbers of one step after the other: runs of before stay what they were.
    for shift in shifts:
        assert shift == torch.randint(-2, 3, (2,), generator=one_by_one).tolist()
    assert torch.equal(one_by_one.get_state(), baseline.random.get_state())
    if steps == 200:
        assert {tuple(shift) for shift in shifts} == {
            (y, x) for y in range(-2, 3) for x in range(-2, 3)
        }


def test_deepinversion_sees_the_batch_rolled(teacher: Teacher) -> None:
    baseline, student, seen = make("deepinversion", teacher), pupil(teacher), []
    assert isinstance(baseline, DeepInversion)
    baseline._shifts = lambda: [[0, 0], [2, 1], [0, 0]]  # type: ignore[method-assign]
    baseline.recipe = dataclasses.replace(baseline.recipe, generator_rate=1e-7)
    teacher.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    baseline.synthesise(student, steer=False)
    torch.testing.assert_close(seen[1], seen[2].roll((2, 1), dims=(2, 3)))  # 0 is not clamped


@pytest.mark.parametrize("method", METHODS)
def test_every_image_that_passes_through_the_teacher_is_counted(
    teacher: Teacher, method: str
) -> None:
    baseline, student, seen = make(method, teacher), pupil(teacher), []
    teacher.network.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    counted = sum(baseline.synthesise(student, steer=s).teacher_passes for s in (False, True))
    assert counted == sum(seen) == baseline.teacher_passes > 0


@pytest.mark.parametrize("method", METHODS)
def test_a_checkpoint_continues_bit_for_bit(teacher: Teacher, method: str) -> None:
    student = pupil(teacher)
    first, second = (make(method, copy.deepcopy(teacher), seed) for seed in (0, 1))
    first.halve_batch()
    first.synthesise(student, steer=True)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    second.random.set_state(first.random.get_state())
    assert (second.batch, second.teacher_passes) == (12, first.teacher_passes)
    for _ in range(2):
        one, other = (each.synthesise(student, steer=True) for each in (first, second))
        assert torch.equal(one.images, other.images)
        assert same(one.losses, other.losses)
        assert same(one.health, other.health)


def test_nayers_generator_starts_anew_every_so_many_rounds_also_after_a_checkpoint(
    teacher: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    anew: list[int] = []
    monkeypatch.setattr(
        "genkd.generator.Generator.reinitialise", lambda network, random: anew.append(1)
    )
    student = pupil(teacher)
    first, second = (make("nayer", copy.deepcopy(teacher), generator_rounds=2) for _ in range(2))
    anew.clear()  # building one draws its weights
    counted = []
    for baseline in (first, first, first, second, second):
        if baseline is second and second.rounds == 0:
            second.load_state_dict(copy.deepcopy(first.state_dict()))
        baseline.synthesise(student, steer=True)
        counted.append(len(anew))
    assert counted == [1, 1, 2, 2, 3]  # before rounds 0, 2 and 4


def test_the_checkpoint_of_another_method_is_refused(teacher: Teacher) -> None:
    with pytest.raises(InputFileRefused, match="of another method"):
        make("fastdfkd", teacher).load_state_dict(make("deepinversion", teacher).state_dict())


@pytest.mark.parametrize("method", METHODS)
def test_the_batch_is_halved_as_long_as_it_makes_sense(teacher: Teacher, method: str) -> None:
    baseline = make(method, teacher)
    assert [baseline.halve_batch() for _ in range(4)] == [12, 6, 0, 0]
    assert 0 < len(baseline.synthesise(pupil(teacher), steer=True).images) <= 6


@pytest.mark.parametrize("method", METHODS)
def test_closing_takes_the_hooks_off_the_teacher(teacher: Teacher, method: str) -> None:
    baseline = make(method, teacher)
    assert any(module._forward_pre_hooks for module in teacher.modules())
    baseline.close()
    assert not any(module._forward_pre_hooks for module in teacher.modules())


@pytest.mark.parametrize("method", METHODS)
def test_memory_that_runs_out_half_way_leaves_a_method_that_works(
    teacher: Teacher, method: str
) -> None:
    baseline, student = make(method, teacher), pupil(teacher)
    calls = []

    def fail(module: nn.Module, inputs: object) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("can't allocate memory")

    hook = teacher.network.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        baseline.synthesise(student, steer=True)
    hook.remove()
    assert all(value.requires_grad for value in student.parameters())
    assert len(baseline.synthesise(student, steer=True).images) > 0


# -- teachers of other kinds -----------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_a_teacher_without_batch_norm_serves_too(method: str) -> None:
    spec = ModelSpec("lenet5", 4, 3)
    network = build_model(spec, generator=torch.Generator().manual_seed(0))
    card = ModelCard(spec, InputCard(20, 16, 3, (0.5,) * 3, (0.3,) * 3))
    teacher = Teacher(network, card, "0" * 64)
    baseline = make(method, teacher)
    batch = baseline.synthesise(pupil(teacher), steer=True)
    assert batch.images.shape[1:] == (3, 20, 16)
    assert float(batch.losses.get("statistics", torch.zeros(()))) == 0
    assert all(bool(value.isfinite()) for value in batch.losses.values())
    reads = method in ("noise", "deepinversion", "dfq", "fastdfkd", "nayer")
    assert len(batch.warnings) == reads  # what is without effect is told
    assert all("no BatchNorm" in warning for warning in batch.warnings)
    assert not baseline.synthesise(pupil(teacher), steer=True).warnings  # once


@pytest.mark.parametrize("method", METHODS)
def test_nothing_is_asked_of_classes_that_the_teacher_does_not_know(
    teacher: Teacher, method: str
) -> None:
    partial = teacher.knowing([0, 2])
    batch = make(method, partial).synthesise(pupil(teacher), steer=True)
    assert set(batch.labels.tolist()) <= {0, 2}
    assert all(bool(value.isfinite()) for value in batch.losses.values())
    assert all(float(value.abs()) < 1e3 for value in batch.losses.values()), batch.losses


def test_a_teacher_without_a_last_layer_has_one_hot_classes_for_nayer() -> None:
    made = make("nayer", pooling())
    assert isinstance(made, Nayer)
    assert made.inputs.shape == (3, 3)


def pooling() -> Teacher:
    network = nn.Sequential(nn.AdaptiveAvgPool2d((1, 3)), nn.Flatten())
    card = ModelCard(ModelSpec("pool", 3, 1), InputCard(16, 16, 1, (0.5,), (0.3,)))
    return Teacher(network, card, "0" * 64)


def test_a_teacher_without_a_last_layer_is_refused_by_dafl_which_needs_one() -> None:
    with pytest.raises(ConfigurationError, match="last layer with 3 outputs") as caught:
        make("dafl", pooling())
    assert "\n" not in str(caught.value) + caught.value.hint
