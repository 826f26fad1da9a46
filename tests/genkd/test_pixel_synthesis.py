"""The pixel-space EBM: it walks uphill within bounds, learns what it should, resumes exactly."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from genkd import cost, pixel_synthesis
from genkd.bank import as_images
from genkd.card import InputCard, ModelCard, ModelSpec
from genkd.device import Device
from genkd.distillation import Progress, distill
from genkd.errors import ConfigurationError, InputFileRefused
from genkd.methods import make_synthesiser
from genkd.models import build_model
from genkd.pixel_synthesis import PixelSynthesiser
from genkd.recipe import find_recipe, resolve
from genkd.safetensors_header import read_header
from genkd.teacher import Teacher, load_teacher
from genkd.weights import load_tensors

TINY = {"method": "genkd-pixel", "batch": "24", "langevin_steps": "3", "effective_share": "0"}
FEW = {"bank_images": "64", "student_steps": "2", "student_batch": "16"}
POLICIES = ("none", "stationary", "chain")


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
    teacher: Teacher, seed: int = 0, precision: str = "fp32", **keys: object
) -> PixelSynthesiser:
    recipe = resolve("quick", {**TINY, **{k: str(v) for k, v in keys.items()}})
    place = Device(torch.device("cpu"), precision)  # type: ignore[arg-type]
    made = make_synthesiser(teacher, recipe, place, place.generator(seed))
    assert isinstance(made, PixelSynthesiser)
    return made


def without_batch_norm() -> Teacher:
    spec = ModelSpec("lenet5", 4, 3)
    network = build_model(spec, generator=torch.Generator().manual_seed(0))
    card = ModelCard(spec, InputCard(20, 16, 3, (0.5,) * 3, (0.3,) * 3))
    return Teacher(network, card, "0" * 64)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_two_rounds_give_images_that_the_teacher_confirms(
    teacher: Teacher, policy: str, precision: str
) -> None:
    method = make(teacher, precision=precision, policy_gradient=policy)
    for steer in (False, True):
        batch = method.synthesise(pupil(teacher), steer=steer)
        assert batch.images.dtype is torch.uint8
        assert batch.images.shape[1:] == (1, 16, 16)
        assert len(batch.images) == len(batch.labels) == len(batch.confidence) > 0
        with torch.no_grad():
            logits = teacher(as_images(batch.images))
        if precision == "fp32":
            assert torch.equal(logits.argmax(1), batch.labels)
        for figure in (*batch.losses.values(), *batch.health.values()):
            assert figure.shape == ()
            assert not figure.requires_grad
            assert bool(figure.isfinite())
        assert ("policy_gradient" in batch.losses) == (steer and policy != "none")


@pytest.mark.parametrize("kind", ["with BatchNorm", "without"])
def test_two_rounds_lower_its_own_loss(teacher: Teacher, kind: str) -> None:
    teacher = teacher if kind == "with BatchNorm" else without_batch_norm()
    reached = []
    for steps in (1, 20):
        method = make(teacher, langevin_steps=steps)
        for _ in range(2):
            batch = method.synthesise(pupil(teacher), steer=True)
        reached.append(float(batch.losses["objective"]))
    assert reached[1] < reached[0] - 0.05 * abs(reached[0]), reached
    statistics = float(batch.losses["statistics"])
    assert (statistics == 0) == (kind == "without")


def test_no_pixel_moves_further_than_the_clamp_allows(
    teacher: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pixel_synthesis, "GRADIENT_CLAMP", 0.01)
    # The weight makes every gradient huge; almost no noise, so that only the drift is seen.
    method = make(
        teacher,
        generator_rate=0.5,
        langevin_step_size=1e-4,
        langevin_steps=1,
        smoothness_weight=1e6,
    )
    labels = torch.arange(24) % 3
    start = method._clip(torch.zeros(24, 1, 16, 16) + torch.linspace(-0.5, 0.5, 16))
    walk = method._walk(start, labels, keep_chain=False)
    moved = (walk.pixels - start).abs()
    assert float(moved.max()) <= 0.5 * 0.01 + 1e-3
    assert float(moved.max()) >= 0.5 * 0.01 - 1e-3


def test_chains_stay_within_the_pixels_of_an_image(teacher: Teacher) -> None:
    method = make(teacher, langevin_step_size=1.9, langevin_steps=2)
    method.synthesise(pupil(teacher), steer=True)
    labels = torch.arange(24) % 3
    stored, _ = method.buffer.draw(labels, method.random)
    walk = method._walk(method._clip(stored.view(24, 1, 16, 16)), labels, keep_chain=False)
    images = method._images(walk.pixels)
    assert float(images.min()) >= -1e-6
    assert float(images.max()) <= 1 + 1e-6


class Linear(nn.Module):
    """t(x) = W x: every gradient can be told by hand."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)  # (K, C H W)

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight.T


def linear_teacher(weight: Tensor) -> Teacher:
    side = math.isqrt(weight.shape[1])
    card = ModelCard(ModelSpec("x", len(weight), 1), InputCard(side, side, 1, (0.5,), (0.25,)))
    return Teacher(Linear(weight), card, "0" * 64)


def test_the_score_is_the_gradient_of_the_log_density_worked_out_by_hand() -> None:
    weight = torch.tensor([[1.0, 0, 0, 0], [0, -2, 0, 0]])
    method = make(linear_teacher(weight), batch=4, smoothness_weight=2)
    pixels = torch.tensor([[0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]).view(2, 1, 2, 2)
    score = method._score(pixels, torch.tensor([0, 1]))
    # The head is zero. Of the first image, u = ((0, 1), (0, 0)): horizontal |u1 - u0| and vertical
    # |u3 - u1| fall with u1; each is 0.25 of |du| and a mean over 2 images of 2 differences.
    # -B lambda' dTV/du1 = -2 * 2 * (0.25 / 4 + 0.25 / 4) = -0.5; u0 and u3 gain 0.25 each.
    expected = torch.tensor([[1 + 0.25, -0.5, 0.0, 0.25], [0, -2.0, 0, 0]]).view(2, 1, 2, 2)
    assert torch.allclose(score.gradient, expected)
    assert torch.equal(score.features, score.logits)  # no layer is found: the logits serve
    # energy = 2 TV - mean t(x)[y], TV = (0.25 + 0.25) / 4, t = 0 and 0
    assert float(score.losses["objective"]) == pytest.approx(0.25)


def test_a_tangent_is_how_features_move_with_the_noise(teacher: Teacher) -> None:
    method = make(teacher)
    random = torch.Generator().manual_seed(0)
    pixels, noise = (torch.randn(5, 1, 16, 16, generator=random).double() for _ in range(2))
    teacher.double()
    labels = torch.arange(5) % 3
    tangent = method._tangent(pixels, noise)
    step = 1e-4
    moved = method._score(pixels + step * noise, labels).features.double()
    before = method._score(pixels - step * noise, labels).features.double()
    assert tangent.shape == (5, method.reader.width)
    assert float(tangent.abs().max()) > 0.01
    # features() gives float32, which bounds what a difference can tell
    assert torch.allclose(tangent.double(), (moved - before) / (2 * step), atol=0.02)


def test_the_chain_of_features_gives_the_gradient_of_the_chain_of_pixels(
    teacher: Teacher,
) -> None:
    """<eps, grad_u h(phi(u))> through the teacher, against <J eps, grad_phi h> without it."""
    method = make(teacher, policy_gradient="chain", langevin_steps=2)
    head = method.learner.head
    nn.init.normal_(head.output.weight, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(6) % 3
    random = torch.Generator().manual_seed(0)
    pixels, noise = (torch.randn(6, 1, 16, 16, generator=random) for _ in range(2))
    u = pixels.clone().requires_grad_()
    with method.reader:
        features = method.reader.features(teacher(method._images(u)))
    (slope,) = torch.autograd.grad(head(features, labels).sum(), u, create_graph=True)
    by_pixels = torch.autograd.grad((noise * slope).sum(), head.hidden.weight)[0]
    phi = features.detach().requires_grad_()
    (slope,) = torch.autograd.grad(head(phi, labels).sum(), phi, create_graph=True)
    tangent = method._tangent(pixels, noise)
    by_features = torch.autograd.grad((tangent * slope).sum(), head.hidden.weight)[0]
    assert float(by_pixels.abs().max()) > 1e-3
    assert torch.allclose(by_pixels, by_features, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("policy", ["stationary", "chain"])
def test_the_policy_gradient_moves_the_head(teacher: Teacher, policy: str) -> None:
    method = make(teacher, policy_gradient=policy, likelihood_weight=0, langevin_steps=5)
    student = pupil(teacher)
    # The likelihood moves nothing here, and a head of zeros starts.
    method.synthesise(student, steer=False)
    assert not bool(method.learner.head.output.weight.any())
    method.synthesise(student, steer=True)
    assert bool(method.learner.head.output.weight.any())


def test_without_energy_the_head_stays_zero(teacher: Teacher) -> None:
    method = make(teacher, energy="no")
    batch = method.synthesise(pupil(teacher), steer=True)
    assert "mle" not in batch.losses
    assert not bool(method.learner.head.output.weight.any())


def test_the_same_seed_gives_the_same_images_whatever_the_global_one(teacher: Teacher) -> None:
    batches = []
    for seed, of_all in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(of_all)
        method = make(teacher, seed, policy_gradient="chain")
        for _ in range(2):
            images = method.synthesise(pupil(teacher), steer=True).images
        batches.append(images)
    assert torch.equal(batches[0], batches[1])
    assert batches[0].shape != batches[2].shape or not torch.equal(batches[0], batches[2])


@pytest.mark.parametrize("policy", POLICIES)
def test_a_checkpoint_continues_bit_for_bit(teacher: Teacher, policy: str) -> None:
    student = pupil(teacher)
    first, second = (make(copy.deepcopy(teacher), s, policy_gradient=policy) for s in (0, 1))
    first.halve_batch()
    first.synthesise(student, steer=True)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    second.random.set_state(first.random.get_state())
    assert (second.batch, second.teacher_passes) == (12, first.teacher_passes)
    for _ in range(2):
        one, other = (each.synthesise(student, steer=True) for each in (first, second))
        assert torch.equal(one.images, other.images)
        assert all(torch.equal(value, other.losses[name]) for name, value in one.losses.items())


def test_checkpoints_of_others_are_refused(teacher: Teacher) -> None:
    method = make(teacher)
    recipe = find_recipe("quick", {"method": "deepinversion", "batch": "24"})
    place = Device(torch.device("cpu"), "fp32")
    other = make_synthesiser(teacher, recipe, place, place.generator(0))
    with pytest.raises(InputFileRefused, match="of another method"):
        method.load_state_dict(other.state_dict())
    state = copy.deepcopy(method.state_dict())
    state["learner"]["positives"][0] = torch.zeros(2, 5)
    with pytest.raises(InputFileRefused, match="another teacher"):
        method.load_state_dict(state)


@pytest.mark.parametrize("policy", POLICIES)
def test_every_image_that_passes_through_the_teacher_is_counted(
    teacher: Teacher, policy: str
) -> None:
    method, student, seen = make(teacher, policy_gradient=policy), pupil(teacher), []
    teacher.network.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    counted = sum(method.synthesise(student, steer=s).teacher_passes for s in (False, True))
    assert counted == sum(seen) == method.teacher_passes > 0


def test_a_round_changes_neither_teacher_nor_student(teacher: Teacher) -> None:
    student = build_model(ModelSpec("resnet8-quarter", 3, 1)).eval()
    before = copy.deepcopy((teacher.state_dict(), student.state_dict()))
    make(teacher, policy_gradient="chain").synthesise(student, steer=True)
    for old, model in zip(before, (teacher, student), strict=True):
        assert all(torch.equal(value, old[name]) for name, value in model.state_dict().items())
        assert all(value.grad is None for value in model.parameters())
    assert all(value.requires_grad for value in student.parameters())


def test_closing_takes_the_hooks_off_the_teacher(teacher: Teacher) -> None:
    method = make(teacher)
    assert any(module._forward_pre_hooks for module in teacher.modules())
    method.close()
    assert not any(module._forward_pre_hooks for module in teacher.modules())


def test_memory_that_runs_out_half_way_leaves_a_method_that_works(teacher: Teacher) -> None:
    method, student, calls = make(teacher), pupil(teacher), []

    def fail(module: nn.Module, inputs: object) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("can't allocate memory")

    hook = teacher.network.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        method.synthesise(student, steer=True)
    hook.remove()
    assert method.halve_batch() == 12
    assert len(method.synthesise(student, steer=True).images) > 0


@pytest.mark.parametrize("policy", POLICIES)
def test_a_teacher_without_batch_norm_or_last_layer_serves_too(policy: str) -> None:
    pooled = nn.Sequential(nn.AdaptiveAvgPool2d((1, 3)), nn.Flatten())
    card = ModelCard(ModelSpec("pool", 3, 1), InputCard(16, 16, 1, (0.5,), (0.3,)))
    for teacher in (without_batch_norm(), Teacher(pooled, card, "0" * 64)):
        method = make(teacher, policy_gradient=policy)
        batch = method.synthesise(pupil(teacher), steer=True)
        assert float(batch.losses["statistics"]) == 0
        assert all(bool(value.isfinite()) for value in batch.losses.values())


def test_nothing_is_asked_of_classes_that_the_teacher_does_not_know(teacher: Teacher) -> None:
    method = make(teacher.knowing([0, 2]), policy_gradient="chain")
    for _ in range(2):
        batch = method.synthesise(pupil(teacher), steer=True)
    assert set(batch.labels.tolist()) <= {0, 2}
    assert all(float(value.abs()) < 1e3 for value in batch.losses.values()), batch.losses


@pytest.mark.parametrize("policy", ["greedy", "pathwise"])
def test_a_policy_gradient_that_pixels_do_not_have_is_refused_before_anything_is_written(
    tiny_teacher: Path, tmp_path: Path, policy: str
) -> None:
    with pytest.raises(ConfigurationError, match=f"no policy gradient '{policy}'"):
        distill(
            teacher=tiny_teacher,
            out=tmp_path / "run",
            method="genkd-pixel",
            overrides={"policy_gradient": policy},
        )
    assert not (tmp_path / "run").exists()


# -- whole runs ------------------------------------------------------------------------------------


@pytest.fixture
def _quick_to_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "LATENCY_CALLS", (1, 1))


@pytest.mark.usefixtures("_quick_to_measure")
def test_a_stopped_run_resumes_to_the_same_student(tiny_teacher: Path, tmp_path: Path) -> None:
    def stop(progress: Progress) -> None:
        if progress.round == 1:
            raise KeyboardInterrupt

    def run(name: str, on_progress: object = None) -> Path:
        overrides = {k: v for k, v in TINY.items() if k != "method"}
        return distill(
            teacher=tiny_teacher,
            out=tmp_path / name,
            student="lenet5-bn-quarter",
            budget="600 passes",
            device="cpu",
            precision="fp32",
            method="genkd-pixel",
            overrides={
                **overrides,
                "bank_images": "64",
                "student_steps": "2",
                "student_batch": "16",
            },
            on_progress=on_progress,  # type: ignore[arg-type]
        ).student

    with pytest.raises(KeyboardInterrupt):
        run("stopped", stop)
    students = []
    for name in ("stopped", "through"):
        path = run(name)
        students.append(load_tensors(path, read_header(path)))
    assert all(torch.equal(value, students[1][key]) for key, value in students[0].items())
    written = json.loads((tmp_path / "through" / "result.json").read_text())
    assert written["recipe"]["method"] == "genkd-pixel"
    assert "mle" in written["final"]
