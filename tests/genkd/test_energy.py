"""The latent EBM: one sign, bounded slope, determinism."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from genkd.energy import LatentEnergy, score, tilt_gradient
from genkd.errors import ConfigurationError
from genkd.langevin import LangevinSampler
from genkd.losses import maximum_likelihood_loss

SILU_SLOPE = 1.0998  # the largest slope of SiLU, at x = 2.4


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def energy(seed: int = 0, *, latent_dim: int = 5, gain: float = 4.0) -> LatentEnergy:
    return LatentEnergy(latent_dim, torch.eye(3), hidden=32, gain=gain, generator=seeded(seed))


def latents(count: int = 6, latent_dim: int = 5) -> tuple[Tensor, Tensor]:
    return torch.randn(count, latent_dim, generator=seeded(9)), torch.arange(count) % 3


def test_one_value_per_latent() -> None:
    z, labels = latents()
    assert energy()(z, labels).shape == (6,)


def test_values_depend_on_latent_and_on_class() -> None:
    f, (z, labels) = energy().eval(), latents()
    values = f(z, labels)
    assert not torch.isclose(values, f(z + 1, labels)).any()
    assert not torch.isclose(values, f(z, (labels + 1) % 3)).any()


def test_embedding_and_its_label_mean_the_same() -> None:
    f, (z, labels) = energy().eval(), latents()
    torch.testing.assert_close(f(z, labels), f(z, torch.eye(3)[labels]))


def test_same_seed_same_network_and_the_global_random_state_stays() -> None:
    before = torch.random.get_rng_state()
    first = energy(1)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(12345)  # must not matter
    second, other = energy(1), energy(2)
    z, labels = latents()
    assert torch.equal(first(z, labels), second(z, labels))
    assert not torch.equal(first(z, labels), other(z, labels))


def test_state_dict_restores_the_function_exactly() -> None:
    f, g, (z, labels) = energy(1), energy(2), latents()
    f(z, labels)  # moves the power iteration on
    g.load_state_dict(f.state_dict())
    assert torch.equal(f(z, labels), g(z, labels))


@pytest.mark.parametrize("gain", [1.0, 4.0])
def test_spectral_normalisation_bounds_the_slope_however_large_the_weights(gain: float) -> None:
    f, (z, labels) = energy(gain=gain), latents(200)
    with torch.no_grad():
        for parameter in f.parameters():
            parameter.mul_(50)
    for _ in range(20):  # power iterations
        f(z, labels)
    slope = tilt_gradient(f.eval(), z, labels).norm(dim=1)
    assert float(slope.max()) <= 1.01 * gain * SILU_SLOPE**2
    assert float(slope.max()) > 0


def test_tilt_gradient_equals_the_derivative_and_score_adds_the_prior() -> None:
    def f(z: Tensor, condition: Tensor) -> Tensor:
        return (condition + 1) * z[:, 0] ** 2 + 3 * z[:, 1]

    z, labels = torch.tensor([[1.0, 2.0], [-0.5, 4.0]]), torch.tensor([0, 1])
    expected = torch.tensor([[2.0, 3.0], [-2.0, 3.0]])
    torch.testing.assert_close(tilt_gradient(f, z, labels), expected)
    torch.testing.assert_close(score(f, z, labels), expected - z)


def test_following_the_score_makes_a_latent_likelier() -> None:
    f, (z, labels) = energy().eval(), latents()

    def log_density(z: Tensor) -> Tensor:
        return f(z, labels) - z.square().sum(1) / 2

    with torch.no_grad():
        assert (log_density(z + 1e-2 * score(f, z, labels)) > log_density(z)).all()


def test_gradient_works_without_grad_mode_and_leaves_parameters_alone() -> None:
    f, (z, labels) = energy(), latents()
    with torch.no_grad():
        gradient = score(f, z, labels)
    assert not gradient.requires_grad
    assert all(parameter.grad is None for parameter in f.parameters())


def test_autocast_does_not_coarsen_the_energy() -> None:
    f, (z, labels) = energy().eval(), latents()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        values = f(z, labels)
    assert values.dtype == torch.float32
    assert torch.equal(values, f(z, labels))


@pytest.mark.parametrize(
    ("latent_dim", "hidden", "gain"),
    [
        pytest.param(0, 8, 1.0, id="no latent"),
        pytest.param(4, 0, 1.0, id="no hidden unit"),
        pytest.param(4, 8, 0.0, id="gain zero"),
        pytest.param(4, 8, float("nan"), id="gain not a number"),
    ],
)
def test_impossible_sizes_are_refused(latent_dim: int, hidden: int, gain: float) -> None:
    with pytest.raises(ConfigurationError) as refusal:
        LatentEnergy(latent_dim, torch.eye(3), hidden=hidden, gain=gain, generator=seeded(0))
    assert refusal.value.hint


def test_embeddings_that_are_no_table_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="not a table"):
        LatentEnergy(4, torch.zeros(3), generator=seeded(0))


def test_gain_is_a_factor_on_f() -> None:
    z, labels = latents()
    torch.testing.assert_close(
        energy(gain=4.0).eval()(z, labels), 4 * energy(gain=1.0).eval()(z, labels)
    )


def test_sampling_between_forward_and_backward_spoils_nothing() -> None:
    # Every call in train() moves the power iteration's vectors, which backward also needs.
    f, (z, labels) = energy().train(), latents()
    positive = f(z, labels)
    sampled = LangevinSampler(3, 0.4).sample(f, z, labels, seeded(0))
    maximum_likelihood_loss(positive, f(sampled, labels)).backward()
    assert all(parameter.grad is not None for parameter in f.parameters())
