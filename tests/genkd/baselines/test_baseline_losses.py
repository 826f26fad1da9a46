"""Each method's terms against numbers worked out by hand, and their sum against its weights."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from genkd.baselines.adversarial import logit_distance
from genkd.baselines.dafl import activation_loss
from genkd.baselines.deepinversion import competition_loss, directional_variation
from genkd.baselines.dfq import instance_entropy
from genkd.baselines.fastdfkd import inversion_losses, reptile_step
from genkd.baselines.nayer import apply_layers, normalise, read_label_embeddings
from genkd.baselines.noise import ColouredNoise, Noise
from genkd.card import InputCard, ModelCard, ModelSpec
from genkd.device import Device
from genkd.errors import ConfigurationError, InputFileRefused
from genkd.methods import make_synthesiser
from genkd.models import build_model
from genkd.recipe import Recipe, find_recipe
from genkd.teacher import Teacher, load_teacher

CPU = Device(torch.device("cpu"), "fp32")


def test_variation_in_four_directions() -> None:
    image = torch.tensor([[[[0.0, 3.0], [4.0, 0.0]]]])
    # right (3, -4): 5; down (4, -3): 5; down right 0; down left 4 - 3 = 1
    assert float(directional_variation(image)) == pytest.approx(11, abs=1e-5)
    flat = torch.ones(2, 1, 3, 3, requires_grad=True)
    (gradient,) = torch.autograd.grad(directional_variation(flat), flat)
    assert bool(gradient.isfinite().all())


def test_competition_is_one_less_the_jensen_shannon_divergence() -> None:
    sure = torch.tensor([[50.0, -50.0]])
    assert float(competition_loss(sure, sure)) == pytest.approx(1)
    assert float(competition_loss(sure, -sure)) == pytest.approx(1 - math.log(2))


def test_activation_is_minus_the_mean_magnitude() -> None:
    assert float(activation_loss(torch.tensor([[1.0, -3.0], [2.0, 0.0]]))) == -1.5


def test_logit_distance_is_the_mean_absolute_difference() -> None:
    first, second = torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[0.0, 4.0], [0.0, -1.0]])
    assert float(logit_distance(first, second)) == 1


def test_instance_entropy_is_that_of_each_image_alone() -> None:
    logits = torch.tensor([[0.0, 0.0], [80.0, -80.0]])
    assert float(instance_entropy(logits)) == pytest.approx(math.log(2) / 2)


@pytest.mark.parametrize(("step", "value"), [(0.0, 1.0), (0.5, 3.0), (1.0, 5.0)])
def test_reptile_goes_a_share_of_the_way(step: float, value: float) -> None:
    adapted = torch.tensor([5.0])
    reptile_step([adapted], [torch.tensor([1.0])], step)
    assert float(adapted) == value


@pytest.mark.parametrize("steer", [False, True])
def test_inversion_sums_its_three_terms(steer: bool) -> None:
    teacher, student = torch.tensor([[math.log(3), 0.0]]), torch.tensor([[math.log(1.5), 0.0]])
    recipe = Recipe(statistics_weight=10.0, label_loss_weight=0.5, adversarial_weight=1.33)
    method: Any = SimpleNamespace(
        recipe=recipe,
        measure=lambda images: (teacher, torch.tensor(0.3)),
        ask=lambda model, images: student,
    )
    images, labels = torch.zeros(1, 1, 2, 2), torch.tensor([0])
    objective, losses = inversion_losses(method, images, labels, torch.nn.Identity(), steer)
    # T = (3/4, 1/4), S = (3/5, 2/5), both say 0
    divergence = 0.75 * math.log(0.75 / 0.6) + 0.25 * math.log(0.25 / 0.4)
    wanted = -0.5 * math.log(0.75) + 10 * 0.3 - (1.33 * divergence if steer else 0)
    assert float(objective) == pytest.approx(wanted)
    assert ("adversarial" in losses) == steer


def test_one_noisy_layer_makes_one_latent_of_each_class() -> None:
    weight = torch.tensor([[[1.0, 0.0], [0.0, 2.0]], [[0.0, 0.0], [1.0, 1.0]]])  # (L, e, d)
    bias = torch.tensor([[0.0, 0.0], [10.0, 20.0]])
    inputs = torch.tensor([[1.0, 2.0], [3.0, 4.0]])  # (K, e)
    latents = apply_layers(weight, bias, inputs)
    assert latents.tolist() == [[[1, 4], [3, 8]], [[12, 22], [14, 24]]]


def test_embeddings_are_normalised_over_classes() -> None:
    got = normalise(torch.tensor([[0.0, 7.0], [2.0, 7.0]]))
    assert got[:, 0].tolist() == pytest.approx([-1, 1], abs=1e-4)
    assert got[:, 1].tolist() == [0, 0]
    assert normalise(torch.ones(1, 2)).tolist() == [[1, 1]]


# -- noise -----------------------------------------------------------------------------------------


def test_noise_is_white_before_anything_is_learnt() -> None:
    white = torch.randn(2, 3, 12, 10, generator=torch.Generator().manual_seed(0))
    assert torch.equal(ColouredNoise(3)(white), white[:, :, 2:-2, 2:-2])


def test_noise_keeps_an_even_share_of_each_class(tiny_teacher: Path) -> None:
    recipe = find_recipe("quick", {"method": "noise"})
    noise = Noise(load_teacher(tiny_teacher), recipe, CPU, CPU.generator(0))
    kept = noise._accept(torch.tensor([0, 0, 0, 1, 2, 0]))
    assert kept.tolist() == [True, True, False, True, True, False]


# -- sums ------------------------------------------------------------------------------------------

WEIGHTS = {
    "noise": {"statistics": 1.0},
    "deepinversion": {"statistics": 10.0, "label": 1.0, "image_prior": 1.0, "competition": 10.0},
    "dafl": {"label": 1.0, "activation": 0.1, "entropy": 5.0 / math.log(10)},
    "dfad": {"adversarial": -1.0},
    "zskt": {"adversarial": -1.0},
    "dfq": {
        "statistics": 1.0,
        "instance_entropy": 1.0,
        "batch_entropy": -1.0,
        "adversarial": -1.0,
    },
    "fastdfkd": {"statistics": 10.0, "label": 0.5, "adversarial": -1.33},
    "nayer": {"statistics": 10.0, "label": 0.5, "adversarial": -1.33},
}


@pytest.mark.parametrize("method", list(WEIGHTS))
def test_the_objective_is_the_sum_with_the_papers_weights(tiny_teacher: Path, method: str) -> None:
    teacher = load_teacher(tiny_teacher)
    keys = {"method": method, "batch": "12", "generator_steps": "1"}
    if method == "deepinversion":
        keys["adversarial_weight"] = "10"
    recipe = find_recipe("quick", keys)
    student = build_model(
        ModelSpec("resnet8-quarter", 3, 1), generator=torch.Generator().manual_seed(5)
    ).eval()
    made = make_synthesiser(teacher, recipe, CPU, CPU.generator(0))
    losses = made.synthesise(student, steer=True).losses
    parts = WEIGHTS[method]
    assert losses.keys() == {"objective", *parts}
    wanted = sum(weight * float(losses[name]) for name, weight in parts.items())
    assert float(losses["objective"]) == pytest.approx(wanted, rel=1e-4)


# -- label embeddings ------------------------------------------------------------------------------


def nayer(tiny_teacher: Path, table: Tensor | None) -> Tensor:
    keys = {"method": "nayer", "batch": "12", "generator_steps": "1", "generator_channels": "4"}
    teacher, recipe = load_teacher(tiny_teacher), find_recipe("quick", {**keys, "latent_dim": "8"})
    made = make_synthesiser(teacher, recipe, CPU, CPU.generator(0), table)
    return made.synthesise(teacher.network.requires_grad_(True), steer=False).images


def test_a_file_of_label_embeddings_takes_the_place_of_the_last_layer(
    tiny_teacher: Path, tmp_path: Path
) -> None:
    path = tmp_path / "texts.safetensors"
    save_file({"texts": torch.randn(3, 5, generator=torch.Generator().manual_seed(1))}, path)
    table, digest = read_label_embeddings(path, 3)
    assert table.shape == (3, 5)
    assert len(digest) == 64
    assert not torch.equal(nayer(tiny_teacher, table), nayer(tiny_teacher, None))


@pytest.mark.parametrize(
    "tensors",
    [
        {"a": torch.zeros(4, 5)},
        {"a": torch.zeros(3)},
        {"a": torch.zeros(3, 5, dtype=torch.float64)},
        {"a": torch.zeros(3, 5, dtype=torch.int64)},
        {"a": torch.zeros(3, 5), "b": torch.zeros(3, 5)},
        {"a": torch.zeros(3, 0)},
        {"a": torch.full((3, 5), math.nan)},
    ],
    ids=["rows", "no table", "double", "integers", "two", "no columns", "not a number"],
)
def test_a_file_of_other_things_is_refused(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    path = tmp_path / "texts.safetensors"
    save_file(tensors, path)
    with pytest.raises(InputFileRefused) as caught:
        read_label_embeddings(path, 3)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputFileRefused, match="does not exist"):
        read_label_embeddings(tmp_path / "absent.safetensors", 3)


def test_embeddings_for_a_method_that_takes_none_are_refused() -> None:
    spec = ModelSpec("lenet5", 3, 1)
    card = ModelCard(spec, InputCard(16, 16, 1, (0.5,), (0.3,)))
    teacher = Teacher(build_model(spec), card, "0" * 64)
    with pytest.raises(ConfigurationError, match="dafl takes no file of label embeddings"):
        make_synthesiser(
            teacher,
            find_recipe("quick", {"method": "dafl"}),
            CPU,
            CPU.generator(0),
            torch.ones(3, 2),
        )
