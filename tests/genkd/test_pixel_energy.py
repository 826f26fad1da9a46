"""What the head on the features learns: its gradients against numbers worked out by hand."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from genkd.card import InputCard, ModelCard, ModelSpec
from genkd.features import FeatureReader
from genkd.langevin import Chain
from genkd.models import build_model
from genkd.pixel_energy import POSITIVE_BATCHES, EnergyHead, HeadLearner
from genkd.recipe import Recipe
from genkd.teacher import Teacher, load_teacher


class Slope(nn.Module):
    """h = a phi_0: what the head is replaced with where numbers are worked out by hand."""

    def __init__(self, a: float) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(a))

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        return self.a * features[:, 0]


def learner(a: float, **keys: object) -> HeadLearner:
    recipe = Recipe(**{"batch": 4, "policy_gradient": "stationary", **keys})  # type: ignore[arg-type]
    random = torch.Generator().manual_seed(0)
    made = HeadLearner(1, 2, recipe, torch.device("cpu"), random)
    made.head = Slope(a)  # type: ignore[assignment]
    made.optimizer = torch.optim.SGD(made.head.parameters(), lr=1.0)  # type: ignore[assignment]
    return made


def slope(made: HeadLearner) -> float:
    return float(made.head.get_parameter("a").detach())


def column(*values: float) -> Tensor:
    return torch.tensor(values).unsqueeze(1)


def test_the_likelihood_and_its_penalty_have_the_gradient_worked_out_by_hand() -> None:
    made = learner(0.5, positive_temperature=1.0)
    # One positive only, so that which are drawn does not matter.
    made.remember(column(3.0), torch.tensor([0]), torch.tensor([-0.1]))
    loss, gap, _ = made.likelihood(column(1.0, 2.0), torch.tensor([0, 1]))
    # h+ = 1.5, h- = 0.5 and 1: L = mean h- - h+ + 0.1 (h+^2 + mean h-^2)
    assert float(loss.detach()) == pytest.approx(0.75 - 1.5 + 0.1 * (2.25 + 0.625))
    assert float(gap.detach()) == pytest.approx(0.75)
    (gradient,) = torch.autograd.grad(loss, made.head.a)  # type: ignore[arg-type]
    # d/da: mean phi- - phi+ + 0.2 a (phi+^2 + mean phi-^2)
    assert float(gradient) == pytest.approx(1.5 - 3.0 + 0.2 * 0.5 * (9.0 + 2.5))


def test_positives_weigh_by_the_teachers_confidence_and_classes_alike() -> None:
    made = learner(1.0, positive_temperature=0.5)
    made.remember(column(1.0, 2.0), torch.tensor([0, 0]), torch.tensor([0.0, math.log(0.5)]))
    torch.manual_seed(0)
    drawn = [made.likelihood(column(0.0, 0.0), torch.tensor([0, 1])) for _ in range(40)]
    # Both drawn: weights 1 and 0.5^2, so h+ = (1 + 0.25 * 2) / 1.25; else one of them twice.
    found = sorted({round(float(gap.detach()), 4) for _, gap, _ in drawn})
    assert found == [1.0, 1.2, 2.0]


def test_the_penalty_alone_pulls_the_head_back() -> None:
    made = learner(2.0, positive_temperature=1.0, energy_steps=1)
    made.remember(column(1.0), torch.tensor([0]), torch.tensor([0.0]))
    made.learn(column(1.0, 1.0), torch.tensor([0, 0]))  # positives and negatives are the same
    assert slope(made) == pytest.approx(2.0 - 0.2 * 2.0 * 2.0)


def test_the_stationary_policy_gradient_raises_what_is_rewarded() -> None:
    made = learner(0.0, likelihood_weight=0.0, policy_weight=0.5, energy_steps=1, effective_share=0)
    made.remember(column(1.0), torch.tensor([0]), torch.tensor([0.0]))
    made.learn(column(1.0, 3.0), torch.tensor([0, 0]), torch.tensor([0.0, 4.0]))
    # advantages -1 and 1: -mean(A phi) = -1, half of it
    assert slope(made) == pytest.approx(0.5)


def test_the_policy_gradient_of_a_chain_projects_its_noise() -> None:
    made = learner(0.0, likelihood_weight=0.0, policy_weight=1.0, energy_steps=1, effective_share=0)
    made.remember(column(1.0), torch.tensor([0]), torch.tensor([0.0]))
    # grad_phi h = a; two steps, s = 0.5: L = -mean_b A_b sum_k (s / 2) J eps_k a
    noises = torch.stack((column(1.0, 2.0), column(0.5, 4.0)))
    chain = Chain(torch.zeros(3, 2, 1), noises, 0.5)
    made.learn(column(0.0, 0.0), torch.tensor([0, 0]), torch.tensor([0.0, 2.0]), chain)
    expected = 0.25 * (6.0 - 1.5) / 2
    assert slope(made) == pytest.approx(expected)


def test_below_the_floor_of_effective_share_the_policy_gradient_rests() -> None:
    keys = {"likelihood_weight": 0.0, "energy_steps": 1, "effective_share": 0.9}
    made = learner(5.0, **keys)
    made.remember(column(1.0), torch.tensor([0]), torch.tensor([0.0]))
    figures = made.learn(column(0.0, 9.0), torch.tensor([0, 0]), torch.tensor([0.0, 1.0]))
    assert float(figures["effective_share"]) == pytest.approx(0.5, abs=1e-4)  # one has it all
    assert slope(made) == 5.0


def test_a_placebo_says_nothing_on_average() -> None:
    moved = []
    for seed in range(60):
        made = learner(
            *(0.0,), likelihood_weight=0.0, policy_placebo=True, energy_steps=1, effective_share=0
        )
        made.random.manual_seed(seed)
        made.remember(column(1.0), torch.tensor([0]), torch.tensor([0.0]))
        made.learn(column(1.0, 3.0), torch.tensor([0, 0]), torch.tensor([0.0, 4.0]))
        moved.append(slope(made))
    assert {round(abs(value), 5) for value in moved} == {0.3}
    assert abs(sum(moved)) < 0.3 * 60 / 2


def test_nothing_is_learnt_before_there_is_a_positive() -> None:
    made = learner(1.0)
    made.remember(column(), torch.tensor([], dtype=torch.int64), torch.tensor([]))
    assert made.learn(column(1.0), torch.tensor([0]), torch.tensor([1.0])) == {}


def test_the_newest_positives_are_kept() -> None:
    made = learner(1.0)
    count = 4 * POSITIVE_BATCHES + 10
    values = torch.arange(float(count))
    made.remember(values.unsqueeze(1), torch.zeros(count, dtype=torch.int64), values)
    assert made.positives[2].tolist() == values[10:].tolist()
    made = learner(1.0, bank_images=64)
    made.remember(values.unsqueeze(1), torch.zeros(count, dtype=torch.int64), values)
    assert len(made.positives[0]) == 64


def test_the_likelihood_tells_positives_from_negatives() -> None:
    random = torch.Generator().manual_seed(0)
    recipe = Recipe(batch=32, energy_rate=1e-2, energy_steps=1)
    made = HeadLearner(4, 2, recipe, torch.device("cpu"), random)
    labels = torch.arange(32) % 2
    real = torch.randn(32, 4, generator=random) + torch.tensor([2.0, 0, 0, 0])
    made.remember(real, labels, torch.zeros(32))
    fake = torch.randn(32, 4, generator=random)
    gaps = [float(made.learn(fake, labels)["energy_gap"]) for _ in range(30)]
    assert gaps[0] == 0
    assert gaps[-1] > 0.5


def test_the_penalty_bounds_a_head_that_would_run_away() -> None:
    """Separable classes: without the penalty h grows for ever, with it the gap stays near 10."""
    random = torch.Generator().manual_seed(0)
    recipe = Recipe(batch=16, energy_rate=1e-2, energy_steps=400)
    made = HeadLearner(2, 1, recipe, torch.device("cpu"), random)
    labels = torch.zeros(16, dtype=torch.int64)
    made.remember(torch.tensor([[5.0, 0.0]]).repeat(16, 1), labels, torch.zeros(16))
    figures = made.learn(torch.tensor([[0.0, 5.0]]).repeat(16, 1), labels)
    # min over h+, h- of h- - h+ + 0.1 (h+^2 + h-^2): h+ = 5, h- = -5
    assert float(figures["energy_gap"]) == pytest.approx(10, abs=0.5)


def test_a_head_is_zero_first_and_the_same_for_the_same_seed() -> None:
    features, labels = torch.randn(5, 3), torch.tensor([0, 1, 2, 1, 0])
    first, second = (EnergyHead(3, 3, torch.Generator().manual_seed(0)) for _ in range(2))
    assert not bool(first(features, labels).any())
    assert torch.equal(first.hidden.weight, second.hidden.weight)


@pytest.mark.parametrize(
    ("architecture", "width"),
    [("resnet8-half", 32), ("lenet5", 84), ("torchvision:squeezenet1_1", 512)],
)
def test_features_are_what_the_last_layer_sees(architecture: str, width: int) -> None:
    spec = ModelSpec(architecture, 4, 3)
    network = build_model(spec, generator=torch.Generator().manual_seed(0))
    teacher = Teacher(
        network, ModelCard(spec, InputCard(32, 32, 3, (0.5,) * 3, (0.3,) * 3)), "0" * 64
    )
    reader = FeatureReader(teacher)
    with torch.no_grad(), reader:
        features = reader.features(teacher(torch.rand(2, 3, 32, 32)))
    assert reader.width == width
    assert features.shape == (2, width)


def test_the_last_pass_counts_and_none_outside_is_kept(tiny_teacher: Path) -> None:
    teacher = load_teacher(tiny_teacher)
    reader = FeatureReader(teacher)
    images = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), reader:
        teacher(images)
        logits = teacher(images.flip(0))
        features = reader.features(logits)
    teacher(images)
    layer = teacher.network.fc
    assert torch.allclose(layer(features), logits, atol=1e-5)  # type: ignore[operator]
    assert reader._seen is None
