"""Each family learns: its formulas against hand-worked numbers, and its figures on tiny images."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from genkd.dgm.gan import AdversarialLearner, Discriminator, hinge_loss
from genkd.dgm.joint_energy import MAX_GRADIENT, langevin_images
from genkd.dgm.joint_learner import JointLearner
from genkd.dgm.latent_ebm import LatentEnergyLearner
from genkd.dgm.learner import GenerativeLearner, strided_convolutions
from genkd.dgm.training import LEARNERS
from genkd.dgm.vae import VariationalLearner, calibrated_reconstruction, divergence_from_normal
from genkd.generative_model import FAMILIES, Family, GenerativeCard, GenerativeModel

SIDE = 8


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def bars(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Left or right halves bright, each as bright as it likes: (N, 1, 8, 8), and (N,)."""
    random = seeded(seed)
    labels = torch.arange(count) % 2
    images = torch.zeros(count, 1, SIDE, SIDE)
    bright = 0.6 + 0.4 * torch.rand(count, 1, 1, generator=random)
    images[labels == 0, 0, :, : SIDE // 2] = bright[labels == 0]
    images[labels == 1, 0, :, SIDE // 2 :] = bright[labels == 1]
    return images, labels


def learner_of(family: Family, num_classes: int = 2, width: int = 4) -> GenerativeLearner:
    latent_dim = 0 if family == "pixel-ebm" else 4
    card = GenerativeCard(family, latent_dim, num_classes, 1, SIDE, SIDE, width)
    model = GenerativeModel(card, seeded())
    return LEARNERS[family](model, 0, seeded(1))


def learn(learner: GenerativeLearner, steps: range) -> list[dict[str, float]]:
    """The figures of those steps; each has a batch of its own."""
    figures = []
    for step in steps:
        images, labels = bars(32, seed=step)
        if learner.model.card.num_classes == 0:
            labels = torch.zeros_like(labels)
        found = learner.step(images, labels, progress=step / 200)
        figures.append({name: value.item() for name, value in found.items()})
    return figures


def share_of_right_halves(learner: GenerativeLearner) -> float:
    """Of draws whose bright half is that of their class."""
    labels = torch.tensor([0, 1]).repeat(50)
    drawn = learner.model.sample(labels, seeded())
    left, right = drawn[..., : SIDE // 2].mean((1, 2, 3)), drawn[..., SIDE // 2 :].mean((1, 2, 3))
    return ((left > right) == (labels == 0)).float().mean().item()


# -- formulas --------------------------------------------------------------------------------------


def test_the_divergence_from_n_0_i_is_torchs_own() -> None:
    mean = torch.tensor([[0.0, 1.0], [2.0, -1.0]])
    log_variance = torch.tensor([[0.0, 0.5], [-1.0, 2.0]])
    expected = kl_divergence(Normal(mean, (0.5 * log_variance).exp()), Normal(0.0, 1.0)).sum(1)
    assert torch.allclose(divergence_from_normal(mean, log_variance), expected)
    assert divergence_from_normal(torch.zeros(1, 3), torch.zeros(1, 3)).item() == 0


def test_the_calibrated_reconstruction_is_a_gaussian_of_the_best_deviation() -> None:
    images, decoded = torch.zeros(2, 1, 2, 2), torch.zeros(2, 1, 2, 2)
    decoded[0] = 0.3
    decoded[1, 0, 0, 0] = 0.2
    variance = (4 * 0.3**2 + 0.2**2) / 8
    density = Normal(decoded, math.sqrt(variance)).log_prob(images).sum((1, 2, 3)).mean()
    assert calibrated_reconstruction(images, decoded).item() == pytest.approx(-density.item())
    # No other deviation makes the images likelier.
    for factor in (0.9, 1.1):
        other = Normal(decoded, factor * math.sqrt(variance)).log_prob(images).sum((1, 2, 3))
        assert other.mean() < density


def test_a_perfect_reconstruction_is_not_infinitely_likely() -> None:
    images = torch.zeros(2, 1, 2, 2, requires_grad=True)
    loss = calibrated_reconstruction(images, torch.zeros(2, 1, 2, 2))
    loss.backward()  # type: ignore[no-untyped-call]
    assert math.isfinite(loss.item())
    assert images.grad is not None
    assert images.grad.isfinite().all()


def test_the_hinge_loss_by_hand() -> None:
    real, fake = torch.tensor([2.0, 0.5]), torch.tensor([-3.0, 0.25])
    assert hinge_loss(real, fake).item() == pytest.approx((0 + 0.5) / 2 + (0 + 1.25) / 2)


def test_the_discriminator_judges_by_the_class_too_and_is_lipschitz() -> None:
    model = GenerativeModel(GenerativeCard("gan", 4, 2, 1, SIDE, SIDE, 4), seeded())
    with torch.random.fork_rng():
        torch.manual_seed(0)
        judge = Discriminator(model)
        for _ in range(50):  # the power iteration settles
            judge(torch.rand(2, 1, SIDE, SIDE), torch.tensor([0, 1]))
        judge.eval()
        images, moved = torch.rand(2, 4, 1, SIDE, SIDE).unbind()
    zeros, ones = torch.zeros(4, dtype=torch.int64), torch.ones(4, dtype=torch.int64)
    assert not torch.allclose(judge(images, zeros), judge(images, ones))
    last: Tensor = judge.output.weight
    assert torch.linalg.matrix_norm(last, 2).item() == pytest.approx(1, abs=1e-3)
    distance = (images - moved).flatten(1).norm(dim=1)
    # Two terms of norm 1 at 2x; a strided convolution may exceed its matrix's norm threefold.
    bound = 2 * 2 * 3 ** len(judge.body)
    assert ((judge(images, zeros) - judge(moved, zeros)).abs() <= bound * distance).all()


@pytest.mark.parametrize("size", [(8, 8), (9, 31), (28, 28), (33, 8)])
def test_the_convolutions_end_with_as_many_features_as_they_say(size: tuple[int, int]) -> None:
    layers, activation, features = strided_convolutions(3, *size, 4, 0.1)
    image = torch.zeros(1, 3, *size)
    for layer in layers:
        image = activation(layer(image))
    assert image.numel() == features
    assert max(image.shape[2:]) <= 4


def test_a_langevin_step_by_hand() -> None:
    class Linear(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.stack(((0.1 * images).sum((1, 2, 3)), (-9 * images).sum((1, 2, 3))), 1)

    start = torch.full((2, 1, 2, 2), 0.5)
    end = langevin_images(
        Linear(), start, torch.tensor([0, 1]), seeded(), steps=1, step_size=1.0, noise=0.0
    )
    assert torch.allclose(end[0], torch.tensor(0.6))
    assert torch.allclose(end[1], torch.tensor(0.5 - MAX_GRADIENT))
    far = langevin_images(
        Linear(), start, torch.tensor([0, 1]), seeded(), steps=50, step_size=1.0, noise=0.0
    )
    assert torch.equal(far[0], torch.ones(1, 2, 2))
    assert torch.equal(far[1], torch.zeros(1, 2, 2))
    assert torch.equal(start, torch.full((2, 1, 2, 2), 0.5))


def test_fresh_chains_have_the_mean_and_the_covariance_of_their_class() -> None:
    learner = learner_of("pixel-ebm")
    assert isinstance(learner, JointLearner)
    for step in range(5):
        images, labels = bars(64, step)
        learner._remember(0.5 + 0.2 * (images - 0.5), labels)  # so that nothing is clamped
    fresh = learner._fresh(torch.zeros(2000, dtype=torch.int64))
    known = learner.remembered[0]
    assert torch.allclose(fresh.mean(0), known.mean(0), atol=0.01)
    covariance = torch.cov(known.flatten(1).T, correction=0)
    assert torch.allclose(torch.cov(fresh.flatten(1).T), covariance, atol=5e-4)


def test_the_first_chains_know_only_images_that_were_seen() -> None:
    learner = learner_of("pixel-ebm")
    assert isinstance(learner, JointLearner)
    images, labels = bars(6)
    learner._remember(torch.zeros_like(images), labels)
    assert learner._fresh(labels).max() == 0


# -- learning --------------------------------------------------------------------------------------


def test_of_a_batch_larger_than_its_memory_no_two_images_share_a_place() -> None:
    learner = learner_of("pixel-ebm")
    assert isinstance(learner, JointLearner)
    places, many = learner.remembered.shape[1], 100
    numbers = (
        torch.arange(many).float().reshape(-1, 1, 1, 1).expand(-1, *learner.remembered.shape[2:])
    )
    for offset in (0, many):
        learner._remember(numbers + offset, torch.zeros(many, dtype=torch.int64))
        kept = learner.remembered[0].amax((1, 2, 3))
        assert torch.equal(kept.sort().values, torch.arange(places) + offset)
    assert learner.seen.tolist() == [2 * places, 0]


@pytest.mark.parametrize("num_classes", [0, 2])
def test_the_bound_of_the_vae_falls_and_its_draws_are_of_their_class(num_classes: int) -> None:
    learner = learner_of("vae", num_classes)
    assert isinstance(learner, VariationalLearner)
    figures = learn(learner, range(150))
    assert figures[-1]["bound"] < figures[0]["bound"] - 50
    assert figures[-1]["divergence"] > 0.5  # z is not ignored: it says how bright
    if num_classes:
        assert share_of_right_halves(learner) > 0.9


def test_the_latent_ebm_moves_its_prior_towards_what_is_inferred() -> None:
    learner = learner_of("latent-ebm")
    assert isinstance(learner, LatentEnergyLearner)
    figures = learn(learner, range(40))
    assert figures[-1]["bound"] < figures[0]["bound"] - 30
    # Inferred latents about (2, 0, 0, 0): the chains must go there, and back if they change sides.
    labels = torch.arange(64) % 2
    for side in (2.0, -2.0):
        for _ in range(100):
            inferred = torch.randn(64, 4, generator=learner.random) * 0.5
            inferred[:, 0] += side
            learner.learn_prior(inferred, labels)
        learner.energy.eval()
        drawn = learner.model.sample_latents(labels, seeded())
        assert 0.7 < side / 2 * drawn[:, 0].mean() < 3
        assert drawn[:, 1:].mean().abs() < 0.5


def test_the_gan_learns_where_each_class_is_bright(monkeypatch: pytest.MonkeyPatch) -> None:
    # Ten times the rates: this must take a second, and images of 64 pixels bear it.
    monkeypatch.setattr("genkd.dgm.gan.GENERATOR_RATE", 5e-3)
    monkeypatch.setattr("genkd.dgm.gan.DISCRIMINATOR_RATE", 5e-3)
    learner = learner_of("gan")
    assert isinstance(learner, AdversarialLearner)
    figures = learn(learner, range(150))
    assert share_of_right_halves(learner) > 0.9
    assert all(0 <= figure["told_apart"] <= 1 for figure in figures)
    assert all(parameter.requires_grad for parameter in learner.discriminator.parameters())


def test_the_pixel_ebm_learns_classes_and_prefers_images_to_noise() -> None:
    learner = learner_of("pixel-ebm", width=8)
    figures = learn(learner, range(60))
    assert figures[-1]["cross_entropy"] < 0.5 * figures[0]["cross_entropy"]
    assert all(abs(figure["energy_gap"]) < 20 for figure in figures)
    images, labels = bars(64, seed=999)
    energy = learner.model.pixel_energy
    assert energy is not None
    with torch.no_grad():
        known = energy(images)
        noise = energy(torch.rand(images.shape, generator=seeded())).logsumexp(1)
    assert (known.argmax(1) == labels).float().mean() > 0.9
    assert known.logsumexp(1).mean() > noise.mean()


def test_the_replay_images_of_the_pixel_ebm_are_all_of_their_class_once_settled() -> None:
    learner = learner_of("pixel-ebm")
    learn(learner, range(3))
    learner.settle()
    model = learner.model
    left = model.replay[: model.chains, 0, :, : SIDE // 2].float().mean()
    right = model.replay[: model.chains, 0, :, SIDE // 2 :].float().mean()
    assert left > right + 100
    assert model.replay.flatten(1).any(1).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_learning_is_the_same_again_also_from_a_checkpoint(family: Family) -> None:
    straight, stopped = learner_of(family), learner_of(family)
    learn(straight, range(4))
    learn(stopped, range(2))
    again = learner_of(family)
    again.load_state_dict(stopped.state_dict())
    vars(again)["random"].set_state(vars(stopped)["random"].get_state())
    learn(again, range(2, 4))
    expected = straight.model.state_dict()
    for name, tensor in again.model.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize("family", FAMILIES)
def test_a_learner_of_another_family_is_refused(family: Family) -> None:
    other: Family = "vae" if family == "pixel-ebm" else "pixel-ebm"
    model = learner_of(other).model
    with pytest.raises(TypeError):
        LEARNERS[family](model, 0, seeded())
