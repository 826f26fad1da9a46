"""Langevin sampling against Gaussians in closed form; the replay buffer's promises.

For log-density -(q / 2) (z - m)^2 the unadjusted algorithm is a linear recursion,
z' - m = (1 - q s^2 / 2) (z - m) + s eps, so it settles at mean m and variance
1 / (q (1 - q s^2 / 4)): its discretisation bias is known, and tested with it.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from genkd.energy import LatentEnergy
from genkd.errors import ConfigurationError, InputFileRefused
from genkd.langevin import LangevinSampler, ReplayBuffer, standard_normal

CHAINS, DIM = 4000, 3


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def flat(z: Tensor, condition: Tensor) -> Tensor:
    return 0 * z.sum(1)


def quadratic(z: Tensor, condition: Tensor) -> Tensor:
    """With the prior: class 0 has precision 4 and mean 0.5, class 1 precision 1 and mean -2."""
    pull = torch.where(condition == 0, 3.0, 0.0)
    push = torch.where(condition == 0, 2.0, -2.0)
    return push * z.sum(1) - pull * z.square().sum(1) / 2


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("step_size", [0.2, 0.5])
@pytest.mark.parametrize(
    ("f", "label", "precision", "mean"),
    [
        pytest.param(flat, 0, 1.0, 0.0, id="prior alone"),
        pytest.param(quadratic, 0, 4.0, 0.5, id="narrow class"),
        pytest.param(quadratic, 1, 1.0, -2.0, id="shifted class"),
    ],
)
def test_langevin_is_stationary_on_a_gaussian(
    f: object, label: int, precision: float, mean: float, step_size: float, seed: int
) -> None:
    generator = seeded(seed)
    variance = 1 / (precision * (1 - precision * step_size**2 / 4))
    labels = torch.full((CHAINS,), label)
    noise = torch.randn(CHAINS, DIM, generator=generator)
    start = mean + variance**0.5 * noise  # already there: must stay, in mean and variance
    z = LangevinSampler(40, step_size).sample(f, start, labels, generator)  # type: ignore[arg-type]
    count = CHAINS * DIM
    assert float(z.mean()) == pytest.approx(mean, abs=4 * (variance / count) ** 0.5)
    assert float(z.var()) == pytest.approx(variance, rel=4 * (2 / count) ** 0.5)


def test_langevin_reaches_each_class_from_the_prior() -> None:
    generator = seeded(0)
    labels = torch.arange(CHAINS) % 2
    start = torch.randn(CHAINS, DIM, generator=generator)
    z = LangevinSampler(150, 0.4).sample(quadratic, start, labels, generator)
    for label, mean, precision in ((0, 0.5, 4.0), (1, -2.0, 1.0)):
        of_class = z[labels == label]
        variance = 1 / (precision * (1 - precision * 0.4**2 / 4))
        assert float(of_class.mean()) == pytest.approx(mean, abs=0.07)
        assert float(of_class.var()) == pytest.approx(variance, rel=0.08)


def small_energy() -> LatentEnergy:
    return LatentEnergy(DIM, torch.eye(2), hidden=8, generator=seeded(3))


def test_same_generator_state_same_samples() -> None:
    labels, start = torch.tensor([0, 1, 1]), torch.randn(3, DIM, generator=seeded(4))
    sampler = LangevinSampler(5, 0.4)
    runs = [sampler.sample(small_energy(), start, labels, seeded(s)) for s in (7, 7, 8)]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_chain_ends_where_sample_ends_and_records_each_step() -> None:
    f, labels = small_energy().eval(), torch.tensor([0, 1, 1])
    start = torch.randn(3, DIM, generator=seeded(4))
    sampler = LangevinSampler(6, 0.3)
    chain = sampler.chain(f, start, labels, seeded(7))
    assert chain.states.shape == (7, 3, DIM)
    assert chain.noises.shape == (6, 3, DIM)
    assert chain.step_size == 0.3
    assert torch.equal(chain.states[0], start)
    assert torch.equal(chain.states[-1], sampler.sample(f, start, labels, seeded(7)))
    for before, noise, after in zip(chain.states, chain.noises, chain.states[1:], strict=False):
        z = before.clone().requires_grad_()
        log_density = (f(z, labels) - z.square().sum(1) / 2).sum()
        (slope,) = torch.autograd.grad(log_density, z)
        torch.testing.assert_close(after, before + 0.3**2 / 2 * slope + 0.3 * noise)


def test_sampling_leaves_no_gradient_behind() -> None:
    f, labels = small_energy(), torch.tensor([0, 1])
    start = torch.randn(2, DIM, generator=seeded(4), requires_grad=True)
    with torch.no_grad():
        z = LangevinSampler(3, 0.4).sample(f, start, labels, seeded(0))
    chain = LangevinSampler(3, 0.4).chain(f, start, labels, seeded(0))
    assert not z.requires_grad
    assert not chain.states.requires_grad
    assert start.grad is None
    assert all(parameter.grad is None for parameter in f.parameters())


@pytest.mark.parametrize(
    ("steps", "step_size"),
    [(0, 0.4), (-1, 0.4), (10, 0.0), (10, 2.0), (10, -0.1), (10, float("nan"))],
)
def test_impossible_walks_are_refused(steps: int, step_size: float) -> None:
    with pytest.raises(ConfigurationError) as refusal:
        LangevinSampler(steps, step_size)
    assert refusal.value.hint


def test_noise_has_the_type_of_the_latents() -> None:
    like = torch.zeros(2, 3, dtype=torch.float64)
    assert standard_normal(like, seeded(0)).dtype == torch.float64


# -- replay buffer ---------------------------------------------------------------------------------


def buffer(*, capacity: int = 8, restart: float = 0.0, seed: int = 0) -> ReplayBuffer:
    return ReplayBuffer(
        3, DIM, capacity=capacity, restart_probability=restart, generator=seeded(seed)
    )


def test_chains_start_from_the_standard_normal() -> None:
    big = ReplayBuffer(4, 16, capacity=500, restart_probability=0, generator=seeded(0))
    z, _ = big.draw(torch.arange(2000) % 4, seeded(1))
    assert float(z.mean()) == pytest.approx(0, abs=0.03)
    assert float(z.var()) == pytest.approx(1, abs=0.04)


def test_what_is_stored_is_drawn_again_for_its_class_only() -> None:
    chains = buffer()
    for label in range(3):  # fill every slot of the class with its number
        labels = torch.full((8,), label)
        _, slots = chains.draw(labels, seeded(label))
        chains.store(labels, slots, torch.full((8, DIM), float(label)))
    labels = torch.tensor([2, 0, 1, 1, 0, 2])
    z, _ = chains.draw(labels, seeded(9))
    assert torch.equal(z, labels.unsqueeze(1).expand(-1, DIM).float())


def test_slots_of_a_batch_differ_within_a_class_and_reach_the_whole_ring() -> None:
    chains, labels = buffer(capacity=5), torch.tensor([0, 0, 1, 0, 0, 1, 0])
    seen = set()
    for seed in range(30):
        _, slots = chains.draw(labels, seeded(seed))
        of_first = slots[labels == 0].tolist()
        assert sorted(of_first) == [0, 1, 2, 3, 4]
        seen.update(slots[labels == 1].tolist())
    assert seen == {0, 1, 2, 3, 4}


def test_samples_beyond_the_ring_start_afresh_and_are_not_kept() -> None:
    chains, labels = buffer(capacity=3), torch.tensor([0, 1, 0, 0, 0, 0])
    _, slots = chains.draw(labels, seeded(1))
    assert sorted(slots[labels == 0][:3].tolist()) == [0, 1, 2]
    assert slots[4:].tolist() == [-1, -1]
    chains.store(labels, slots, torch.arange(6.0).unsqueeze(1).expand(-1, DIM))
    z, again = chains.draw(labels, seeded(2))
    assert sorted(z[labels == 0][:3, 0].tolist()) == [0, 2, 3]
    assert torch.equal(again == -1, slots == -1)
    assert not set(z[4:, 0].tolist()) & {0.0, 2.0, 3.0}
    assert not torch.equal(z[4], z[5])


@pytest.mark.parametrize("probability", [0.0, 0.05, 1.0])
def test_share_of_restarted_chains(probability: float) -> None:
    chains = ReplayBuffer(
        1, DIM, capacity=4000, restart_probability=probability, generator=seeded(0)
    )
    labels = torch.zeros(4000, dtype=torch.int64)
    _, slots = chains.draw(labels, seeded(1))
    chains.store(labels, slots, torch.full((4000, DIM), 99.0))
    z, _ = chains.draw(labels, seeded(2))
    restarted = (z != 99).all(1)
    assert float(restarted.float().mean()) == pytest.approx(probability, abs=0.015)
    assert float(z[restarted].abs().max() if probability else 0) < 8


def test_drawing_is_deterministic_and_changes_nothing_until_stored() -> None:
    chains, labels = buffer(restart=0.5), torch.tensor([0, 2, 1, 0])
    first, second = (chains.draw(labels, seeded(5)) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


def test_the_random_stream_does_not_depend_on_what_was_restarted() -> None:
    states = []
    for restart in (0.0, 1.0):
        generator = seeded(5)
        buffer(restart=restart).draw(torch.tensor([0, 2, 1, 0]), generator)
        states.append(generator.get_state())
    assert torch.equal(states[0], states[1])


def test_state_dict_continues_the_chains_exactly() -> None:
    chains, labels = buffer(), torch.tensor([0, 2, 1, 0])
    _, slots = chains.draw(labels, seeded(1))
    chains.store(labels, slots, torch.ones(4, DIM))
    saved = chains.state_dict()
    chains.reset(seeded(2))  # the saved state is a copy
    resumed = buffer(seed=77)
    resumed.load_state_dict(saved)
    z, _ = resumed.draw(labels, seeded(1))
    assert torch.equal(z, torch.ones(4, DIM))


@pytest.mark.parametrize(
    "state",
    [
        pytest.param({}, id="empty"),
        pytest.param({"chains": torch.zeros(3, 8, DIM + 1)}, id="other latent"),
        pytest.param({"chains": torch.zeros(2, 8, DIM)}, id="other classes"),
        pytest.param({"chains": torch.zeros(1, 1, 1)}, id="would broadcast"),
    ],
)
def test_state_of_another_run_is_refused(state: dict[str, Tensor]) -> None:
    with pytest.raises(InputFileRefused):
        buffer().load_state_dict(state)


@pytest.mark.parametrize(
    ("capacity", "probability"), [(0, 0.05), (8, -0.1), (8, 1.5), (8, float("nan"))]
)
def test_impossible_buffers_are_refused(capacity: int, probability: float) -> None:
    with pytest.raises(ConfigurationError):
        buffer(capacity=capacity, restart=probability)
