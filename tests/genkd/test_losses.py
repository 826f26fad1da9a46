"""Every loss on numbers worked by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from genkd.losses import (
    class_cross_entropy,
    class_entropy,
    distillation_loss,
    divergence,
    effective_sample_size,
    label_log_probability,
    masked_divergence,
    maximum_likelihood_loss,
    mixup,
    self_normalised_weights,
    total_variation,
    within_class_deviation,
)

LN2, LN3 = math.log(2), math.log(3)
# softmax of (0, ln 3) is (1/4, 3/4); KL((1/4, 3/4) || (1/2, 1/2)) = 3/4 ln 3 - ln 2.
QUARTER = torch.tensor([[0.0, LN3]])
EVEN = torch.tensor([[0.0, 0.0]])
KL_QUARTER_EVEN = 0.75 * LN3 - LN2
KL_EVEN_QUARTER = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def value(tensor: Tensor) -> float:
    assert tensor.shape == ()
    return float(tensor.detach())


# -- teacher and student ---------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0, 20.0])
def test_distillation_loss_keeps_the_factor_t_squared(temperature: float) -> None:
    # Logits scaled by T have the same softened distributions, whatever T.
    loss = distillation_loss(temperature * QUARTER, temperature * EVEN, temperature)
    assert value(loss) == pytest.approx(temperature**2 * KL_QUARTER_EVEN, rel=1e-5)


def test_distillation_gradient_does_not_vanish_with_temperature() -> None:
    # Hinton et al. 2015, eq. 4: for large T, T^2 dKL/ds -> (s - t) / K for centred logits.
    teacher = torch.tensor([[1.0, -1.0]])
    student = torch.tensor([[0.5, -0.5]], requires_grad=True)
    distillation_loss(teacher, student, 100.0).backward()
    torch.testing.assert_close(student.grad, torch.tensor([[-0.25, 0.25]]), rtol=1e-3, atol=0)


def test_distillation_loss_is_a_mean_over_the_batch_not_over_classes() -> None:
    teacher, student = torch.cat((QUARTER, EVEN)), torch.cat((EVEN, EVEN))
    assert value(distillation_loss(teacher, student, 1.0)) == pytest.approx(KL_QUARTER_EVEN / 2)


def test_distillation_loss_looks_from_the_teacher() -> None:
    assert value(distillation_loss(EVEN, QUARTER, 1.0)) == pytest.approx(KL_EVEN_QUARTER, rel=1e-5)


def test_half_precision_logits_are_compared_in_float32() -> None:
    teacher = torch.tensor([[2.0, 0.0]], dtype=torch.bfloat16)
    student = torch.tensor([[2.0, 0.25]], dtype=torch.bfloat16)
    result = divergence(teacher, student)
    assert result.dtype == torch.float32
    exact = divergence(teacher.double(), student.double())
    assert value(result[0]) == pytest.approx(value(exact[0]), rel=1e-4)


def test_kl_divergence_of_each_image() -> None:
    result = divergence(torch.cat((QUARTER, EVEN)), torch.cat((EVEN, QUARTER)), "kl")
    torch.testing.assert_close(result, torch.tensor([KL_QUARTER_EVEN, KL_EVEN_QUARTER]))


def test_js_divergence_by_hand_symmetric_and_at_most_ln_2() -> None:
    # M = (3/8, 5/8) between (1/4, 3/4) and (1/2, 1/2).
    first = 0.25 * math.log(0.25 / 0.375) + 0.75 * math.log(0.75 / 0.625)
    second = 0.5 * math.log(0.5 / 0.375) + 0.5 * math.log(0.5 / 0.625)
    expected = (first + second) / 2
    assert value(divergence(QUARTER, EVEN, "js")[0]) == pytest.approx(expected, rel=1e-5)
    assert value(divergence(EVEN, QUARTER, "js")[0]) == pytest.approx(expected, rel=1e-5)
    opposite = divergence(torch.tensor([[200.0, 0.0]]), torch.tensor([[0.0, 200.0]]), "js")
    assert value(opposite[0]) == pytest.approx(LN2)


@pytest.mark.parametrize("kind", ["kl", "js"])
def test_masked_divergence_counts_only_images_both_see_alike(kind: str) -> None:
    teacher = torch.tensor([[0.0, 2.0], [0.0, 2.0]])
    student = torch.tensor([[0.0, 0.5], [0.5, 0.0]], requires_grad=True)
    result = masked_divergence(teacher, student, kind)  # type: ignore[arg-type]
    assert value(result[0]) == pytest.approx(
        value(divergence(teacher[:1], student[:1], kind)[0])  # type: ignore[arg-type]
    )
    assert value(result[0]) > 0.01
    assert value(result[1]) == 0
    result.sum().backward()
    assert student.grad is not None
    assert student.grad[0].norm() > 0
    assert student.grad[1].norm() == 0


# -- the class asked for ---------------------------------------------------------------------------


def test_class_cross_entropy_by_hand() -> None:
    logits, labels = torch.cat((QUARTER, QUARTER)), torch.tensor([0, 1])
    expected = torch.tensor([math.log(0.25), math.log(0.75)])
    torch.testing.assert_close(label_log_probability(logits, labels), expected)
    assert value(class_cross_entropy(logits, labels)) == pytest.approx(-float(expected.mean()))


@pytest.mark.parametrize(
    ("logits", "entropy"),
    [
        pytest.param([[99.0, 0.0], [0.0, 99.0]], LN2, id="sure and balanced"),
        pytest.param([[99.0, 0.0], [99.0, 0.0]], 0.0, id="one class only"),
        pytest.param([[0.0, LN3]], LN2 * 2 - 0.75 * LN3, id="one quarter"),
    ],
)
def test_class_entropy_by_hand(logits: list[list[float]], entropy: float) -> None:
    assert value(class_entropy(torch.tensor(logits))) == pytest.approx(entropy, abs=1e-6)


# -- images ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        pytest.param([[1.0, 1.0], [1.0, 1.0]], 0.0, id="flat"),
        pytest.param([[0.0, 0.0], [1.0, 1.0]], 1.0, id="one edge"),
        pytest.param([[0.0, 1.0], [1.0, 0.0]], 2.0, id="checkerboard"),
        pytest.param([[0.0, 0.5], [0.5, 0.5]], 0.5, id="one corner"),
    ],
)
def test_total_variation_by_hand(image: list[list[float]], expected: float) -> None:
    images = torch.tensor(image).expand(3, 2, 2, 2)
    assert value(total_variation(images)) == pytest.approx(expected)


def test_within_class_deviation_by_hand() -> None:
    # Class 0: pixels (0, 2) and (5, 5), deviations 1 and 0. Class 1: equal. Class 2: one sample.
    values = torch.tensor([[0.0, 5.0], [7.0, 7.0], [2.0, 5.0], [7.0, 7.0], [1.0, 1.0]])
    labels = torch.tensor([0, 1, 0, 1, 2])
    result = within_class_deviation(values.view(5, 1, 1, 2), labels, 4)
    torch.testing.assert_close(
        result, torch.tensor([0.5, 0.0, math.nan, math.nan]), equal_nan=True, atol=1e-7, rtol=0
    )


def test_within_class_deviation_has_a_finite_gradient_at_collapse() -> None:
    values = torch.ones(4, 3, requires_grad=True)
    within_class_deviation(values, torch.zeros(4, dtype=torch.int64), 1).sum().backward()
    assert values.grad is not None
    assert torch.isfinite(values.grad).all()


def test_mixup_blends_two_images_of_the_batch_by_one_share() -> None:
    # Image i is 2^i everywhere (times a pattern): a blend is a combination of two of them.
    originals = torch.eye(6).view(6, 6, 1, 1).expand(6, 6, 4, 4)
    mixed = mixup(originals, seeded(0))
    assert mixed.shape == originals.shape
    shares = mixed[:, :, 0, 0]
    assert torch.equal(mixed, shares.view(6, 6, 1, 1).expand_as(mixed))
    torch.testing.assert_close(shares.sum(1), torch.ones(6))
    assert ((shares > 0).sum(1) <= 2).all()
    assert (shares.diagonal() > 0).all()


def test_mixup_shares_are_uniform() -> None:
    images = torch.eye(2).view(2, 2, 1, 1)[torch.arange(4000) % 2]
    own = mixup(images, seeded(0))[torch.arange(4000), torch.arange(4000) % 2, 0, 0]
    blended = own[own < 1]  # a partner of another kind: about half of them
    assert len(blended) > 1500
    assert float(blended.mean()) == pytest.approx(0.5, abs=0.03)
    assert float(blended.var()) == pytest.approx(1 / 12, abs=0.01)


def test_mixup_is_deterministic_and_leaves_its_input() -> None:
    images = torch.rand(6, 3, 8, 8, generator=seeded(1))
    before = images.clone()
    runs = [mixup(images, seeded(s)) for s in (5, 5, 6)]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])
    assert torch.equal(images, before)
    assert float(runs[0].min()) >= 0
    assert float(runs[0].max()) <= 1


# -- the latent EBM --------------------------------------------------------------------------------


def test_weights_are_the_softmax_of_the_values() -> None:
    weights = self_normalised_weights(torch.tensor([0.0, 2 * LN3]), beta=2.0)
    torch.testing.assert_close(weights, torch.tensor([0.25, 0.75]))


def test_weights_within_classes_give_each_class_the_same_sum() -> None:
    values = torch.tensor([0.0, 1000.0, LN3, -500.0, 1000.0])
    labels = torch.tensor([0, 1, 0, 2, 1])
    weights = self_normalised_weights(values, 1.0, labels, num_classes=5)
    expected = torch.tensor([0.25, 0.5, 0.75, 1.0, 0.5]) / 3
    torch.testing.assert_close(weights, expected)


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ([0.25] * 4, 4.0),
        ([1.0, 0.0, 0.0, 0.0], 1.0),
        ([0.5, 0.5, 0.0, 0.0], 2.0),
        ([3.0, 1.0], 1.6),
    ],
)
def test_effective_sample_size_by_hand(weights: list[float], expected: float) -> None:
    assert value(effective_sample_size(torch.tensor(weights))) == pytest.approx(expected)


def test_maximum_likelihood_loss_by_hand() -> None:
    positive, negative = torch.tensor([1.0, 3.0]), torch.tensor([2.0, -1.0, 0.5])
    weights = torch.tensor([0.25, 0.75])
    squares = (1 + 9) / 2 + (4 + 1 + 0.25) / 3
    loss = maximum_likelihood_loss(positive, negative, weights)
    assert value(loss) == pytest.approx(-2.5 + 0.5 + 0.1 * squares)
    unweighted = maximum_likelihood_loss(positive, negative, penalty=0.0)
    assert value(unweighted) == pytest.approx(-2.0 + 0.5)


def test_maximum_likelihood_raises_f_at_positives_and_lowers_it_at_negatives() -> None:
    positive = torch.zeros(2, requires_grad=True)
    negative = torch.zeros(4, requires_grad=True)
    weights = torch.tensor([0.25, 0.75], requires_grad=True)
    maximum_likelihood_loss(positive, negative, weights).backward()
    torch.testing.assert_close(positive.grad, torch.tensor([-0.25, -0.75]))
    torch.testing.assert_close(negative.grad, torch.full((4,), 0.25))
    assert weights.grad is None


def test_maximum_likelihood_fits_the_mean_of_a_gaussian() -> None:
    # f = a z: p = N(a, 1), whose likelihood is greatest where a is the weighted mean.
    data = torch.tensor([0.0, 1.0, 4.0])
    weights = torch.tensor([0.5, 0.25, 0.25])  # mean 1.25
    a = torch.zeros((), requires_grad=True)
    noise = torch.randn(20_000, generator=seeded(0))
    for _ in range(60):
        negative = a.detach() + noise - noise.mean()
        loss = maximum_likelihood_loss(a * data, a * negative, weights, penalty=0.0)
        (gradient,) = torch.autograd.grad(loss, a)
        with torch.no_grad():
            a -= 0.3 * gradient
    assert value(a) == pytest.approx(1.25, abs=1e-3)
