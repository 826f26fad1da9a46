"""Both policy gradients against exact gradients.

The toy: f = a z, start N(0, 1), reward R = -(z - c)^2. With r = 1 - s^2 / 2 a Langevin step is
z' = r z + (s^2 / 2) a + s eps, so z_k is Gaussian with mean m_k = a (1 - r^k) and a variance that
does not depend on a. Hence

    d/da E[R(z_K)]  = 2 (c - m_K) (1 - r^K)                      = 2.587
    immediate reward: sum_k d/da of the k-th step's own mean    = sum_k 2 (c - m_k) s^2 / 2 = 5.546
    stationary, p = N(a, 1): d/da E_p[R] = Cov_p(R, z)           = 2 (c - a)                 = 3
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from genkd.energy import LatentEnergy
from genkd.langevin import Chain, LangevinSampler
from genkd.policy_gradient import (
    chain_loss,
    immediate_reward,
    pathwise_loss,
    permute_within_class,
    reward_to_go,
    scale_within_class,
    standardise_within_class,
    stationary_loss,
)

STEPS, STEP_SIZE, SLOPE, TARGET = 20, 0.4, 0.5, 2.0
SAMPLER = LangevinSampler(steps=STEPS, step_size=STEP_SIZE)
DECAY = 1 - STEP_SIZE**2 / 2
MEANS = [SLOPE * (1 - DECAY**k) for k in range(STEPS + 1)]
EXACT = 2 * (TARGET - MEANS[-1]) * (1 - DECAY**STEPS)
GREEDY = sum(2 * (TARGET - mean) * STEP_SIZE**2 / 2 for mean in MEANS[1:])
BATCHES, BATCH = 24, 8000


class Slope:
    """f = a z in one dimension, float64."""

    def __init__(self, a: float = SLOPE) -> None:
        self.a = torch.tensor(a, dtype=torch.float64, requires_grad=True)

    def __call__(self, z: Tensor, condition: Tensor) -> Tensor:
        return self.a * z[:, 0]

    def gradient_of(self, loss: Tensor) -> float:
        (gradient,) = torch.autograd.grad(loss, self.a)
        return float(gradient)


def reward(z: Tensor) -> Tensor:
    return -(z[..., 0] - TARGET).square()


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def toy_chain(f: Slope, seed: int) -> tuple[Chain, Tensor]:
    generator = seeded(seed)
    labels = torch.zeros(BATCH, dtype=torch.int64)
    start = torch.randn(BATCH, 1, generator=generator, dtype=torch.float64)
    return SAMPLER.chain(f, start, labels, generator), labels


def centred(rewards: Tensor) -> Tensor:
    return rewards - rewards.mean(-1, keepdim=True)


def mean_and_error(estimates: list[float]) -> tuple[float, float]:
    """The mean of independent estimates and its standard error."""
    values = torch.tensor(estimates, dtype=torch.float64)
    return float(values.mean()), float(values.std() / len(values) ** 0.5)


def toy_gradients(advantages_of: object) -> tuple[float, float]:
    """Minus the gradient of chain_loss, i.e. the estimate of d/da E[R]."""
    estimates = []
    for seed in range(BATCHES):
        f = Slope()
        chain, labels = toy_chain(f, seed)
        advantages = advantages_of(reward(chain.states), seed)  # type: ignore[operator]
        estimates.append(-f.gradient_of(chain_loss(f, chain, labels, advantages)))
    return mean_and_error(estimates)


def test_toy_has_the_published_values() -> None:
    assert pytest.approx(2.587, abs=1e-3) == EXACT
    assert pytest.approx(5.546, abs=1e-3) == GREEDY


def test_chain_states_have_the_mean_the_toy_derives() -> None:
    chain, _ = toy_chain(Slope(), 0)
    for state, mean in zip(chain.states, MEANS, strict=True):
        assert float(state.mean()) == pytest.approx(mean, abs=5 / BATCH**0.5)


@pytest.mark.parametrize(
    "advantages_of",
    [
        pytest.param(lambda rewards, _: reward_to_go(rewards), id="reward to go"),
        pytest.param(lambda rewards, _: centred(reward_to_go(rewards)), id="centred"),
        pytest.param(lambda rewards, _: reward_to_go(rewards[::5], stride=5), id="stride 5"),
        pytest.param(lambda rewards, _: centred(rewards[-1]), id="terminal reward for all steps"),
    ],
)
def test_chain_estimator_matches_the_exact_gradient(advantages_of: object) -> None:
    estimate, error = toy_gradients(advantages_of)
    assert error < 0.02 * EXACT
    assert abs(estimate - EXACT) < 4 * error


def test_finite_differences_with_common_random_numbers_match_the_exact_gradient() -> None:
    h = 1e-3
    up, down = (reward(toy_chain(Slope(SLOPE + d), 0)[0].states[-1]).mean() for d in (h, -h))
    # Per sample this is 2 (c - z_K) (1 - r^K): its error is that of the mean of z_K.
    assert float(up - down) / (2 * h) == pytest.approx(EXACT, abs=4 * 2 / BATCH**0.5)


def test_immediate_rewards_have_the_documented_bias() -> None:
    estimate, error = toy_gradients(lambda rewards, _: immediate_reward(rewards))
    assert error < 0.02 * GREEDY
    assert abs(estimate - GREEDY) < 4 * error


@pytest.mark.parametrize("rewards_of", [reward_to_go, lambda rewards: rewards[-1]])
def test_permuted_rewards_give_zero_within_noise(rewards_of: object) -> None:
    labels = torch.zeros(BATCH, dtype=torch.int64)

    def placebo(rewards: Tensor, seed: int) -> Tensor:
        advantages = centred(rewards_of(rewards))  # type: ignore[operator]
        return permute_within_class(advantages, labels, seeded(1000 + seed))

    estimate, error = toy_gradients(placebo)
    assert error < 0.02 * EXACT
    assert abs(estimate) < 4 * error


def test_the_pathwise_gradient_matches_the_exact_gradient() -> None:
    estimates = []
    for seed in range(BATCHES):
        f = Slope()
        chain, labels = toy_chain(f, seed)
        slope = -2 * (chain.states[-1] - TARGET)  # grad_z R at z_K
        estimates.append(-f.gradient_of(pathwise_loss(f, chain, labels, slope)))
    estimate, error = mean_and_error(estimates)
    assert error < 0.02 * EXACT
    assert abs(estimate - EXACT) < 4 * error


def test_the_pathwise_walk_ends_where_the_chain_ended() -> None:
    energy = LatentEnergy(3, torch.eye(2), generator=seeded(0)).eval()
    labels = torch.tensor([0, 1, 0, 1])
    chain = SAMPLER.chain(energy, torch.randn(4, 3, generator=seeded(1)), labels, seeded(2))
    loss = pathwise_loss(energy, chain, labels, torch.ones(4, 3))
    assert float(loss.detach()) == pytest.approx(-float(chain.states[-1].sum(1).mean()), rel=1e-4)


def test_the_scale_within_a_class_is_one_over_its_deviation() -> None:
    rewards = torch.tensor([1.0, 3.0, 5.0, 5.0, 7.0])
    labels = torch.tensor([0, 0, 1, 1, 2])  # deviations 1, none, and a class of one
    assert scale_within_class(rewards, labels, 3).tolist() == [1, 1, 0, 0, 0]


@pytest.mark.parametrize("placebo", [False, True], ids=["true rewards", "permuted rewards"])
def test_stationary_estimator_matches_the_covariance(placebo: bool) -> None:
    exact = 0.0 if placebo else 2 * (TARGET - SLOPE)
    estimates = []
    for seed in range(BATCHES):
        f, generator = Slope(), seeded(seed)
        z = SLOPE + torch.randn(BATCH, 1, generator=generator, dtype=torch.float64)
        labels = torch.zeros(BATCH, dtype=torch.int64)
        advantages = centred(reward(z))
        if placebo:
            advantages = permute_within_class(advantages, labels, generator)
        estimates.append(-f.gradient_of(stationary_loss(f(z, labels), advantages)))
    estimate, error = mean_and_error(estimates)
    assert error < 0.03
    assert abs(estimate - exact) < 4 * error


def test_stationary_gradient_of_an_mlp_matches_numerical_integration() -> None:
    grid = torch.linspace(-8, 8, 4001, dtype=torch.float64).unsqueeze(1)
    labels = torch.zeros(len(grid), dtype=torch.int64)
    f = tiny_energy(latent_dim=1)
    direction = random_direction(f)

    def probability() -> Tensor:
        return (f(grid, labels) - grid[:, 0].square() / 2).softmax(0)

    def expected_reward(shift: float) -> float:
        with shifted(f, direction, shift), torch.no_grad():
            return float((probability() * wavy_reward(grid)).sum())

    exact = (expected_reward(1e-4) - expected_reward(-1e-4)) / 2e-4
    with torch.no_grad():
        drawn = torch.multinomial(probability(), 400_000, replacement=True, generator=seeded(3))
    z = grid[drawn]
    loss = stationary_loss(f(z, labels[drawn]), centred(wavy_reward(z)))
    assert -along(f, loss, direction) == pytest.approx(exact, rel=0.05)
    assert abs(exact) > 1e-2


def test_chain_gradient_of_an_mlp_matches_finite_differences() -> None:
    f = tiny_energy(latent_dim=2)
    sampler = LangevinSampler(steps=3, step_size=0.6)
    direction = random_direction(f)
    labels = torch.arange(100_000) % 2

    def chain(seed: int) -> Chain:
        generator = seeded(seed)
        start = torch.randn(len(labels), 2, generator=generator, dtype=torch.float64)
        return sampler.chain(f, start, labels, generator)

    def expected_reward(shift: float) -> float:
        with shifted(f, direction, shift):
            return float(wavy_reward(chain(0).states[-1]).mean())

    exact = (expected_reward(1e-3) - expected_reward(-1e-3)) / 2e-3
    estimates = []
    for seed in range(1, 9):
        drawn = chain(seed)
        advantages = reward_to_go(wavy_reward(drawn.states))
        estimates.append(-along(f, chain_loss(f, drawn, labels, advantages), direction))
    estimate, error = mean_and_error(estimates)
    assert error < 0.05 * abs(exact)
    assert abs(estimate - exact) < 4 * error + 0.01 * abs(exact)


@pytest.mark.parametrize("estimator", ["stationary", "chain"])
def test_gradient_reaches_every_layer_of_the_energy(estimator: str) -> None:
    generator = seeded(0)
    f = LatentEnergy(8, torch.eye(4), hidden=16, generator=generator)
    labels = torch.arange(32) % 4
    chain = LangevinSampler(5, 0.4).chain(
        f, torch.randn(32, 8, generator=generator), labels, generator
    )
    rewards = chain.states.square().sum(2)
    if estimator == "chain":
        advantages = standardise_within_class(reward_to_go(rewards), labels, 4)
        chain_loss(f, chain, labels, advantages).backward()
    else:
        advantages = standardise_within_class(rewards[-1], labels, 4)
        stationary_loss(f(chain.states[-1], labels), advantages).backward()
    for name, parameter in f.named_parameters():
        if name == "layers.2.bias":  # a constant of f changes neither density nor gradient
            continue
        assert parameter.grad is not None, name
        assert float(parameter.grad.norm()) > 1e-6, name


def test_only_f_receives_a_gradient() -> None:
    f = Slope()
    states = torch.randn(3, 4, 1, dtype=torch.float64, requires_grad=True)
    noises = torch.randn(2, 4, 1, dtype=torch.float64, requires_grad=True)
    advantages = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    labels = torch.zeros(4, dtype=torch.int64)
    chain_loss(f, Chain(states, noises, 0.4), labels, advantages).backward()
    stationary_loss(f(states[-1].detach(), labels), advantages[0]).backward()
    assert f.a.grad is not None
    assert states.grad is None
    assert noises.grad is None
    assert advantages.grad is None


def test_embeddings_pass_in_place_of_labels() -> None:
    generator = seeded(0)
    f = LatentEnergy(3, torch.eye(2), hidden=8, generator=generator).eval()
    labels = torch.tensor([0, 1, 1])
    start = torch.randn(3, 3, generator=generator)
    chain = LangevinSampler(2, 0.4).chain(f, start, labels, generator)
    advantages = torch.randn(2, 3, generator=generator)
    by_label = chain_loss(f, chain, labels, advantages)
    by_embedding = chain_loss(f, chain, torch.eye(2)[labels], advantages)
    torch.testing.assert_close(by_label, by_embedding)


# -- advantages, on hand-worked numbers ------------------------------------------------------------


def test_reward_to_go_and_immediate_reward_of_a_hand_worked_chain() -> None:
    rewards = torch.tensor([[1.0, 0.0], [4.0, 0.0], [6.0, 5.0]])  # R at z_0, z_1, z_2; two chains
    assert reward_to_go(rewards).tolist() == [[5, 5], [2, 5]]
    assert immediate_reward(rewards).tolist() == [[3, 0], [2, 5]]
    assert reward_to_go(rewards, stride=2).tolist() == [[5, 5], [5, 5], [2, 5], [2, 5]]


def test_standardising_removes_each_class_mean_and_scale() -> None:
    rewards = torch.tensor([1.0, 10.0, 3.0, 30.0, 7.0])
    labels = torch.tensor([0, 1, 0, 1, 2])
    # Class 0: mean 2, deviation 1; class 1: mean 20, deviation 10; class 2 has one sample.
    assert standardise_within_class(rewards, labels, 4).tolist() == [-1, -1, 1, 1, 0]


@pytest.mark.parametrize("value", [0.0, 0.1, 0.3, 7.3])
def test_equal_rewards_are_no_advantage(value: float) -> None:
    # The mean of 13 times 0.1 is not 0.1 in float32: the difference must not be blown up to one.
    labels = torch.tensor([0] * 13 + [1] * 25)
    assert standardise_within_class(torch.full((38,), value), labels, 2).tolist() == [0] * 38


def test_standardising_a_chain_removes_the_mean_per_step_and_one_scale_for_all_steps() -> None:
    advantages = torch.tensor([[0.0, 2.0], [10.0, 24.0]])
    # Centred -1, 1 and -7, 7; mean square 25, so the scale is 5.
    result = standardise_within_class(advantages, torch.tensor([0, 0]), 1)
    torch.testing.assert_close(result, torch.tensor([[-0.2, 0.2], [-1.4, 1.4]]))


def test_permutation_stays_within_the_class_and_moves_whole_chains() -> None:
    labels = torch.tensor([0, 1, 0, 1, 2, 0, 1, 0])
    rewards = torch.arange(8.0)
    moved = False
    for seed in range(20):
        permuted = permute_within_class(rewards, labels, seeded(seed))
        for label in range(3):
            of_class = labels == label
            assert sorted(permuted[of_class].tolist()) == rewards[of_class].tolist()
        both = permute_within_class(torch.stack((rewards, -rewards)), labels, seeded(seed))
        assert torch.equal(both, torch.stack((permuted, -permuted)))
        moved |= not torch.equal(permuted, rewards)
    assert moved


# -- a tiny energy in float64 ----------------------------------------------------------------------


def tiny_energy(latent_dim: int) -> LatentEnergy:
    f = LatentEnergy(latent_dim, torch.eye(2), hidden=6, gain=8.0, generator=seeded(1))
    return f.double().eval()


def wavy_reward(z: Tensor) -> Tensor:
    return torch.sin(2 * z).sum(-1) - 0.3 * (z - 1).square().sum(-1)


def random_direction(f: LatentEnergy) -> list[Tensor]:
    generator = seeded(2)
    return [torch.randn(p.shape, generator=generator).double() for p in f.parameters()]


@contextmanager
def shifted(f: LatentEnergy, direction: list[Tensor], amount: float) -> Iterator[None]:
    """The parameters of f, moved by `amount` along `direction` for a while."""
    before = [parameter.detach().clone() for parameter in f.parameters()]
    for parameter, move in zip(f.parameters(), direction, strict=True):
        parameter.data = parameter.data + amount * move
    yield
    for parameter, value in zip(f.parameters(), before, strict=True):
        parameter.data = value


def along(f: LatentEnergy, loss: Tensor, direction: list[Tensor]) -> float:
    """The directional derivative of `loss`."""
    gradients = torch.autograd.grad(loss, list(f.parameters()), allow_unused=True)
    terms = zip(gradients, direction, strict=True)
    return sum(float((g * d).sum()) for g, d in terms if g is not None)
