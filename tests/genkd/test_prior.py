"""The learned prior: where its latents come from, and that both signals reach its energy."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from genkd.device import Device
from genkd.langevin import Chain
from genkd.prior import LatentPrior, Proposal
from genkd.recipe import Recipe

DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA here")
    ),
]
CLASSES, DIMENSIONS, BATCH = 3, 4, 48
RECIPE = Recipe(
    batch=BATCH,
    latent_dim=DIMENSIONS,
    langevin_steps=5,
    policy_gradient="stationary",
    energy_rate=3e-3,
    policy_weight=1.0,
    effective_share=0.0,
)
ESTIMATORS = ["stationary", "chain", "greedy", "pathwise"]
Rewards = Callable[[Tensor, Tensor], Tensor]


def prior_of(device: str = "cpu", **keys: object) -> LatentPrior:
    recipe = dataclasses.replace(RECIPE, **keys)  # type: ignore[arg-type]
    random = torch.Generator(device).manual_seed(0)
    return LatentPrior(torch.eye(CLASSES), recipe, Device(torch.device(device), "fp32"), random)


def labels_on(device: str = "cpu", count: int = BATCH) -> Tensor:
    return torch.arange(count, device=device) % CLASSES


def first_coordinate(latents: Tensor, labels: Tensor) -> Tensor:
    return latents[:, 0]


def learn(
    prior: LatentPrior, random: torch.Generator, reward_of: Rewards | None, rounds: int = 1
) -> tuple[Proposal, dict[str, Tensor]]:
    """Rounds as the synthesis does them; every latent is as good a positive as any other."""
    for _ in range(rounds):
        proposal = prior.draw(labels_on(str(random.device)), random)
        weights = torch.full((BATCH,), 1 / BATCH, device=random.device)
        rewards = (reward_of or first_coordinate)(proposal.latents, proposal.labels)
        positives = (proposal.latents, proposal.labels, weights)
        figures = prior.learn(proposal, positives, reward_of, rewards, random)
    return proposal, figures


def parameters(prior: LatentPrior) -> Tensor:
    return torch.cat([value.detach().flatten() for value in prior.energy.parameters()])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("estimator", ["none", *ESTIMATORS])
def test_latents_are_of_the_labels_and_carry_no_graph(estimator: str, device: str) -> None:
    prior = prior_of(device, policy_gradient=estimator)
    random = torch.Generator(device).manual_seed(1)
    proposal = prior.draw(labels_on(device), random)
    assert proposal.latents.shape == (BATCH, DIMENSIONS)
    assert proposal.latents.device.type == device
    assert not proposal.latents.requires_grad
    assert torch.equal(proposal.labels, labels_on(device))
    assert (proposal.chain is not None) == (estimator not in ("none", "stationary"))


def test_persistent_chains_go_on_where_they_were() -> None:
    prior = prior_of()
    random = torch.Generator().manual_seed(1)
    proposal = prior.draw(labels_on(), random)
    chains = prior.buffer.state_dict()["chains"].view(-1, DIMENSIONS)
    same = (proposal.latents.unsqueeze(1) == chains.unsqueeze(0)).all(2)  # (B, chains)
    assert bool(same.any(1).all())
    # All but the 5 % that start afresh go on from there.
    start, _ = prior.buffer.draw(labels_on(), random)
    same = (start.unsqueeze(1) == chains.unsqueeze(0)).all(2)
    assert float(same.any(1).float().mean()) > 0.8


def test_chains_for_the_chain_estimator_start_afresh_and_leave_the_buffer_alone() -> None:
    prior = prior_of(policy_gradient="chain")
    before = prior.buffer.state_dict()["chains"]
    random = torch.Generator().manual_seed(1)
    starts = []
    for _ in range(40):
        chain = prior.draw(labels_on(), random).chain
        assert chain is not None
        assert chain.states.shape == (RECIPE.langevin_steps + 1, BATCH, DIMENSIONS)
        starts.append(chain.states[0])
    assert torch.equal(prior.buffer.state_dict()["chains"], before)
    drawn = torch.cat(starts)
    assert float(drawn.mean()) == pytest.approx(0, abs=0.05)
    assert float(drawn.std()) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_policy_gradient_is_not_zero_and_changes_the_energy(
    estimator: str, device: str
) -> None:
    with_reward, without = (prior_of(device, policy_gradient=estimator) for _ in range(2))
    random = [torch.Generator(device).manual_seed(1) for _ in range(2)]
    _, figures = learn(with_reward, random[0], first_coordinate)
    _, others = learn(without, random[1], None)
    assert float(figures["pg_over_mle"]) > 0
    assert float(figures["policy_gradient"]) != 0
    assert "policy_gradient" not in others
    assert not torch.equal(parameters(with_reward), parameters(without))


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_policy_gradient_draws_the_prior_towards_the_reward(estimator: str) -> None:
    means = []
    for sign in (1.0, -1.0):
        prior = prior_of(policy_gradient=estimator, energy_rate=1e-2, langevin_steps=6)
        random = torch.Generator().manual_seed(1)

        def reward(latents: Tensor, labels: Tensor, sign: float = sign) -> Tensor:
            return sign * latents[:, 0]

        learn(prior, random, reward, rounds=20)
        drawn = [prior.draw(labels_on(), random).latents[:, 0].mean() for _ in range(10)]
        means.append(float(torch.stack(drawn).mean()))
    towards, away = means
    assert towards > 0.15, means
    assert away < -0.15, means


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize(
    ("keys", "reward_of"),
    [
        ({}, lambda latents, labels: 3 + 0 * latents[:, 0]),
        ({"policy_weight": 0.0}, first_coordinate),
        ({"effective_share": 1.0}, first_coordinate),
    ],
    ids=["equal rewards", "no weight", "below the floor"],
)
def test_where_the_policy_gradient_must_rest_only_the_likelihood_acts(
    estimator: str, keys: dict[str, Any], reward_of: Rewards
) -> None:
    after, ratios = [], []
    cases: list[tuple[dict[str, Any], Rewards | None]]
    cases = [(keys, reward_of), ({}, None), ({}, first_coordinate)]
    for more, rewards in cases:
        prior = prior_of(policy_gradient=estimator, **more)
        _, figures = learn(prior, torch.Generator().manual_seed(1), rewards, rounds=3)
        after.append(parameters(prior))
        ratios.append(float(figures.get("pg_over_mle", torch.zeros(()))))
    resting, without, acting = after
    assert ratios[0] == 0
    assert ratios[2] > 0
    # Not equal: an extra call of f in train() refines its spectral norm once more.
    assert float((resting - without).norm()) < 0.1 * float((acting - without).norm())


@pytest.mark.parametrize("estimator", ["stationary", "chain"])
def test_the_placebo_draws_the_prior_nowhere(estimator: str) -> None:
    means = []
    for placebo in (False, True):
        prior = prior_of(
            policy_gradient=estimator, energy_rate=1e-2, langevin_steps=6, policy_placebo=placebo
        )
        random = torch.Generator().manual_seed(1)
        learn(prior, random, first_coordinate, rounds=20)
        drawn = [prior.draw(labels_on(), random).latents[:, 0].mean() for _ in range(10)]
        means.append(float(torch.stack(drawn).mean()))
    real, placebo_mean = means
    assert real > 0.15, means
    assert abs(placebo_mean) < 0.15, means


def test_policy_gradient_alone_moves_the_energy_by_nothing_else() -> None:
    # Equal rewards have no advantage, so without the likelihood nothing is left to learn from.
    prior = prior_of(likelihood_weight=0.0)
    before = parameters(prior)
    random = torch.Generator().manual_seed(1)
    learn(prior, random, lambda latents, labels: torch.ones(len(latents)), rounds=3)
    assert torch.equal(parameters(prior), before)
    learn(prior, random, first_coordinate)
    assert not torch.equal(parameters(prior), before)


def advantages(estimator: str, segments: int) -> Tensor:
    """Of a chain of 4 steps z_0 = 0 .. z_4, the second sample's reward being always 0."""
    prior = prior_of(policy_gradient=estimator, langevin_steps=4, policy_segments=segments)
    states = torch.zeros(5, 2, DIMENSIONS)
    states[:, 0, 0] = torch.tensor([0.0, 5.0, 1.0, 5.0, 4.0])
    chain = Chain(states, torch.zeros(4, 2, DIMENSIONS), 0.4)
    proposal = Proposal(states[-1], torch.zeros(2, dtype=torch.int64), chain)
    rewards = first_coordinate(proposal.latents, proposal.labels)
    random = torch.Generator().manual_seed(0)
    return prior._advantages(proposal, first_coordinate, rewards, random)[:, 0]


@pytest.mark.parametrize(
    ("estimator", "segments", "credit"),
    [
        ("chain", 1, [4, 4, 4, 4]),
        ("greedy", 1, [4, 4, 4, 4]),
        ("chain", 2, [4, 4, 3, 3]),
        ("greedy", 2, [1, 1, 3, 3]),
        ("chain", 4, [4, -1, 3, -1]),
        ("greedy", 4, [5, -4, 4, -1]),
    ],
)
def test_each_segment_is_credited_with_what_its_estimator_says(
    estimator: str, segments: int, credit: list[int]
) -> None:
    # Less the mean over the class (half, the other being 0), over one deviation for all steps.
    deviation = (sum((c / 2) ** 2 for c in credit) / 4) ** 0.5
    expected = [c / 2 / deviation for c in credit]
    assert advantages(estimator, segments).tolist() == pytest.approx(expected, rel=1e-5)


def test_without_a_policy_gradient_rewards_change_nothing() -> None:
    given, none = (prior_of(policy_gradient="none") for _ in range(2))
    random = [torch.Generator().manual_seed(1) for _ in range(2)]
    _, figures = learn(given, random[0], first_coordinate)
    learn(none, random[1], None)
    assert torch.equal(parameters(given), parameters(none))
    assert "policy_gradient" not in figures


def test_the_likelihood_raises_f_at_good_positives() -> None:
    prior = prior_of(policy_gradient="none")
    random = torch.Generator().manual_seed(1)
    labels = labels_on()
    good = torch.full((BATCH, DIMENSIONS), 1.5)
    weights = torch.full((BATCH,), 1 / BATCH)
    gaps = []
    for _ in range(30):
        proposal = prior.draw(labels, random)
        rewards = torch.zeros(BATCH)
        figures = prior.learn(proposal, (good, labels, weights), None, rewards, random)
        gaps.append(float(figures["energy_gap"]))
    assert gaps[-1] > gaps[0] + 0.1


def test_a_positive_of_weight_zero_does_not_count() -> None:
    priors = [prior_of(policy_gradient="none") for _ in range(2)]
    gaps = []
    for prior, far in zip(priors, (5.0, -5.0), strict=True):
        random = torch.Generator().manual_seed(1)
        proposal = prior.draw(labels_on(), random)
        latents = proposal.latents.clone()
        latents[0] = far
        weights = torch.full((BATCH,), 1 / (BATCH - 1))
        weights[0] = 0
        positives = (latents, proposal.labels, weights)
        figures = prior.learn(proposal, positives, None, torch.zeros(BATCH), random)
        gaps.append(float(figures["energy_gap"]))
    assert gaps[0] == pytest.approx(gaps[1], abs=0.05)


@pytest.mark.parametrize("steps", [0, 1, 4])
def test_the_energy_takes_as_many_steps_as_the_recipe_says(steps: int) -> None:
    prior = prior_of(energy_steps=steps)
    before = parameters(prior)
    learn(prior, torch.Generator().manual_seed(1), first_coordinate)
    counts = {int(state["step"]) for state in prior.optimizer.state.values()}
    assert counts == ({steps} if steps else set())
    assert torch.equal(parameters(prior), before) == (steps == 0)


def test_figures_are_detached_scalars_and_the_function_is_fixed_afterwards() -> None:
    prior = prior_of()
    random = torch.Generator().manual_seed(1)
    proposal, figures = learn(prior, random, first_coordinate)
    names = {"mle", "energy_gap", "policy_gradient", "pg_over_mle", "effective_share"}
    assert set(figures) == names
    for value in figures.values():
        assert value.shape == ()
        assert not value.requires_grad
        assert bool(value.isfinite())
    assert not prior.energy.training
    again = [prior.energy(proposal.latents, proposal.labels) for _ in range(2)]
    assert torch.equal(*again)


class Slope(nn.Module):
    """f = a z_0."""

    def __init__(self, a: float) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(a))

    def forward(self, z: Tensor, condition: Tensor) -> Tensor:
        return self.a * z[:, 0]


@pytest.mark.parametrize("classes", [CLASSES, 600])  # 600: requests of sixty members of a merge
@pytest.mark.parametrize("a", [0.0, 0.5, 1.0])
def test_the_effective_share_of_a_linear_tilt_is_known(a: float, classes: int) -> None:
    # E[exp(a z)]^2 / E[exp(2 a z)] = exp(a^2) / exp(2 a^2)
    prior = prior_of(policy_gradient="none", energy_steps=0)
    prior.num_classes = classes
    prior.energy = Slope(a)  # type: ignore[assignment]
    random = torch.Generator().manual_seed(1)
    shares = [learn(prior, random, None)[1]["effective_share"] for _ in range(20)]
    assert float(torch.stack(shares).mean()) == pytest.approx(math.exp(-(a**2)), abs=0.1)


def test_forgetting_starts_every_chain_afresh() -> None:
    prior = prior_of()
    random = torch.Generator().manual_seed(1)
    learn(prior, random, first_coordinate, rounds=3)
    before = prior.buffer.state_dict()["chains"]
    prior.forget(random)
    after = prior.buffer.state_dict()["chains"]
    assert not bool((after == before).any())


@pytest.mark.parametrize("estimator", ["none", *ESTIMATORS])
def test_a_checkpoint_continues_bit_for_bit(estimator: str) -> None:
    first, second = (prior_of(policy_gradient=estimator) for _ in range(2))
    random = torch.Generator().manual_seed(1)
    learn(first, random, first_coordinate, rounds=2)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    other = torch.Generator()
    other.set_state(random.get_state())
    learn(first, random, first_coordinate, rounds=2)
    learn(second, other, first_coordinate, rounds=2)
    assert torch.equal(parameters(first), parameters(second))
    latents = [p.draw(labels_on(), r).latents for p, r in ((first, random), (second, other))]
    assert torch.equal(*latents)


def test_nothing_depends_on_the_global_random_state() -> None:
    results = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        prior = prior_of()
        learn(prior, torch.Generator().manual_seed(1), first_coordinate)
        assert torch.equal(torch.get_rng_state(), before)
        results.append(parameters(prior))
    assert torch.equal(*results)
