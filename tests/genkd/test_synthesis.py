"""A round of synthesis: what it adds, who learns from it, and who must not."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from genkd.bank import as_images
from genkd.card import InputCard, ModelCard, ModelSpec
from genkd.device import Device
from genkd.losses import masked_divergence
from genkd.models import build_model
from genkd.prior import LatentPrior, Proposal
from genkd.recipe import Recipe
from genkd.synthesis import Synthesiser, SyntheticBatch
from genkd.teacher import Teacher, load_teacher

DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA here")
    ),
]
ESTIMATORS = ["stationary", "chain"]
RECIPE = Recipe(
    batch=24,
    generator_channels=4,
    generator_steps=3,
    generator_rounds=0,
    latent_dim=8,
    langevin_steps=3,
    policy_gradient="stationary",
    effective_share=0.0,
    # Weights by which so small a network as the tiny teacher is followed in a few steps.
    statistics_weight=3.0,
    statistics_momentum=0.0,
    label_loss_weight=1.0,
    adversarial_weight=1.0,
)
State = Mapping[str, Tensor]


@pytest.fixture
def teacher(tiny_teacher: Path) -> Teacher:
    return load_teacher(tiny_teacher)


def pupil(teacher: Teacher) -> nn.Module:
    """A student that mostly agrees with its teacher, so that the mask lets something through."""
    student = copy.deepcopy(teacher.network)
    random = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for value in student.parameters():
            noise = torch.randn(value.shape, generator=random).to(value.device)
            value.add_(0.1 * value.std(correction=0) * noise)
    return student.requires_grad_(True).eval()


def synthesiser_of(
    teacher: Teacher, device: str = "cpu", precision: str = "fp32", seed: int = 0, **keys: object
) -> Synthesiser:
    recipe = dataclasses.replace(RECIPE, **keys)  # type: ignore[arg-type]
    place = Device(torch.device(device), precision)  # type: ignore[arg-type]
    return Synthesiser(teacher, recipe, place, place.generator(seed))


def snapshot(model: nn.Module) -> State:
    return copy.deepcopy(model.state_dict())


def same(first: State, second: State) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(value, second[name]) for name, value in first.items()
    )


def distance(first: nn.Module, second: nn.Module) -> float:
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    return sum(float((a - b).detach().abs().sum()) for a, b in pairs)


# -- what a round adds -----------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("estimator", ["none", *ESTIMATORS])
def test_the_teacher_confirms_every_stored_image(
    teacher: Teacher, estimator: str, precision: str, device: str
) -> None:
    teacher = teacher.to(device)
    synthesiser = synthesiser_of(teacher, device, precision, policy_gradient=estimator)
    batch = synthesiser.synthesise(pupil(teacher), steer=True)
    assert batch.images.dtype is torch.uint8
    assert batch.images.shape[1:] == (1, 16, 16)
    assert 0 < len(batch.images) <= 24
    assert float(batch.health["acceptance"]) == pytest.approx(len(batch.images) / 24)
    with torch.no_grad(), synthesiser.device.autocast():
        # As many rows as there were: another batch size may round otherwise in bf16.
        rows = torch.arange(24, device=device) % len(batch.images)
        probability = teacher(as_images(batch.images[rows])).float().softmax(1)[: len(batch.images)]
    assert torch.equal(probability.argmax(1), batch.labels)
    claimed = probability.gather(1, batch.labels.unsqueeze(1)).squeeze(1)
    assert torch.allclose(claimed, batch.confidence, atol=0.02 if precision == "bf16" else 1e-4)
    for figure in (*batch.losses.values(), *batch.health.values()):
        assert figure.shape == ()
        assert figure.device.type == device
        assert not figure.requires_grad
        assert bool(figure.isfinite())


def test_as_many_of_each_class_are_asked_for(teacher: Teacher) -> None:
    synthesiser = synthesiser_of(teacher, batch=25)
    for _ in range(3):
        labels = synthesiser._propose().labels
        assert sorted(torch.bincount(labels, minlength=3).tolist()) == [8, 8, 9]
        assert labels.tolist() != sorted(labels.tolist())


def test_classes_that_do_not_fit_into_a_batch_come_in_another(teacher: Teacher) -> None:
    synthesiser = synthesiser_of(teacher, batch=24)
    synthesiser.batch = 2  # fewer than the three classes
    seen = {int(label) for _ in range(12) for label in synthesiser._propose().labels}
    assert seen == {0, 1, 2}


@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
def test_of_the_verified_images_of_each_class_the_best_are_accepted(
    teacher: Teacher, share: float
) -> None:
    everything, best = (
        synthesiser_of(teacher, acceptance=acceptance).synthesise(pupil(teacher), steer=False)
        for acceptance in (1.0, share)
    )
    for label in range(3):
        all_of_it = everything.confidence[everything.labels == label].sort(descending=True).values
        taken = best.confidence[best.labels == label].sort(descending=True).values
        wanted = int(torch.ceil(torch.tensor(share * len(all_of_it))))
        assert len(taken) == wanted
        assert torch.equal(taken, all_of_it[:wanted])


def test_images_are_distinct_and_the_same_seed_gives_the_same(teacher: Teacher) -> None:
    batches = [
        synthesiser_of(teacher, seed=seed).synthesise(pupil(teacher), steer=True)
        for seed in (0, 0, 1)
    ]
    assert torch.equal(batches[0].images, batches[1].images)
    assert torch.equal(batches[0].confidence, batches[1].confidence)
    assert batches[0].images.shape != batches[2].images.shape or not torch.equal(
        batches[0].images, batches[2].images
    )
    assert len(torch.unique(batches[0].images.flatten(1), dim=0)) > 1


def test_nothing_depends_on_the_global_random_state(teacher: Teacher) -> None:
    batches: list[SyntheticBatch] = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        batches.append(synthesiser_of(teacher).synthesise(pupil(teacher), steer=True))
    assert torch.equal(batches[0].images, batches[1].images)


@pytest.mark.parametrize(
    "keys",
    [
        {"policy_gradient": "stationary"},
        {"policy_gradient": "chain"},
        {"energy": False},
        {"generator_rounds": 1},
    ],
    ids=lambda keys: "-".join(map(str, keys.values())),
)
def test_every_image_that_passes_through_the_teacher_is_counted(
    teacher: Teacher, keys: dict[str, Any]
) -> None:
    student, counted = pupil(teacher), 0
    synthesiser = synthesiser_of(teacher, **keys)
    seen: list[int] = []
    teacher.network.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    for steer in (False, True):
        counted += synthesiser.synthesise(student, steer=steer).teacher_passes
    assert counted == sum(seen) == synthesiser.teacher_passes


def test_the_pathwise_reward_is_of_the_images_that_came_of_the_proposals(
    teacher: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    search, rewarded = Synthesiser._search, Synthesiser._differentiable_reward
    found: list[Tensor] = []
    slopes: list[Tensor] = []

    def keep_found(self: Synthesiser, *arguments: Any) -> Any:
        latents, losses = search(self, *arguments)
        found.append(latents)
        return latents, losses

    def keep_rewarded(self: Synthesiser, latents: Tensor, *arguments: Any) -> Tensor:
        slopes.append(latents)
        return rewarded(self, latents, *arguments)

    monkeypatch.setattr(Synthesiser, "_search", keep_found)
    monkeypatch.setattr(Synthesiser, "_differentiable_reward", keep_rewarded)
    synthesiser_of(teacher, policy_gradient="pathwise").synthesise(pupil(teacher), steer=True)
    torch.testing.assert_close(slopes[0].detach(), found[0])
    assert slopes[0].requires_grad


# -- the generator's signals -----------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
def test_the_adversarial_gradient_reaches_the_generator_and_nobody_else(
    teacher: Teacher, device: str
) -> None:
    teacher = teacher.to(device)
    student = pupil(teacher)
    before = snapshot(teacher), snapshot(student)
    # Nothing but the adversarial term: whatever reaches the generator comes from it.
    keys: dict[str, Any] = {"statistics_weight": 0.0, "label_loss_weight": 0.0, "energy": False}
    synthesiser = synthesiser_of(teacher, device, **keys)
    synthesiser.synthesise(student, steer=True)
    gradients = [value.grad for value in synthesiser.generator.parameters()]
    assert all(gradient is not None for gradient in gradients)
    assert sum(float(g.abs().sum()) for g in gradients if g is not None) > 0
    assert same(snapshot(teacher), before[0])
    assert same(snapshot(student), before[1])
    for model in (teacher, student):
        assert all(value.grad is None for value in model.parameters())
        assert not any(module.training for module in model.modules())


@pytest.mark.parametrize("estimator", ["none", *ESTIMATORS])
def test_a_whole_round_changes_neither_teacher_nor_student(
    teacher: Teacher, estimator: str
) -> None:
    student = build_model(ModelSpec("resnet8-quarter", 3, 1)).eval()  # with BatchNorm buffers
    before = snapshot(teacher), snapshot(student)
    synthesiser = synthesiser_of(teacher, policy_gradient=estimator, generator_rounds=1)
    for steer in (False, True):
        synthesiser.synthesise(student, steer=steer)
    assert same(snapshot(teacher), before[0])
    assert same(snapshot(student), before[1])
    assert all(value.grad is None for value in (*teacher.parameters(), *student.parameters()))
    assert all(value.requires_grad for value in student.parameters())
    assert not any(value.requires_grad for value in teacher.parameters())


def test_the_student_can_learn_again_after_a_round_that_failed(teacher: Teacher) -> None:
    synthesiser, student = synthesiser_of(teacher), pupil(teacher)

    def fail(module: nn.Module, inputs: object) -> None:
        raise RuntimeError("can't allocate memory")

    hook = student.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        synthesiser.synthesise(student, steer=True)
    hook.remove()
    assert all(value.requires_grad for value in student.parameters())
    assert len(synthesiser.synthesise(student, steer=True).images) > 0


@pytest.mark.parametrize(
    ("keys", "steer", "matters"),
    [
        ({"adversarial_weight": 1.0}, True, True),
        ({"adversarial_weight": 0.0}, True, False),
        ({"adversarial_weight": 1.0}, False, False),
    ],
    ids=["acting", "no weight", "warm-up"],
)
def test_the_generator_hears_of_the_student_by_the_adversarial_term_only(
    teacher: Teacher, keys: dict[str, Any], steer: bool, matters: bool
) -> None:
    student = pupil(teacher)
    loud = copy.deepcopy(student)
    with torch.no_grad():
        loud.fc.weight *= 3  # type: ignore[operator, union-attr]
    generators = []
    for one in (student, loud):
        synthesiser = synthesiser_of(teacher, **keys, energy=False)
        batch = synthesiser.synthesise(one, steer=steer)
        assert ("adversarial" in batch.losses) == matters
        generators.append(synthesiser.generator)
    assert (distance(*generators) > 0) == matters


def test_the_adversarial_term_seeks_what_the_student_does_not_know(teacher: Teacher) -> None:
    student, reached = pupil(teacher), []
    for weight in (1e-9, 10.0):  # with 20 the images leave the mask, and the divergence is 0
        keys: dict[str, Any] = {
            "adversarial_weight": weight,
            "energy": False,
            "generator_steps": 15,
            "latent_rate": 0.0,
            "label_weight": 8.0,
        }
        batch = synthesiser_of(teacher, **keys).synthesise(student, steer=True)
        reached.append(float(batch.losses["adversarial"]))
    assert reached[1] > 2 * reached[0], reached


@pytest.mark.parametrize("key", ["statistics_weight", "label_loss_weight"])
def test_the_generator_follows_the_teacher(teacher: Teacher, key: str) -> None:
    keys: dict[str, Any] = {"statistics_weight": 0.0, "label_loss_weight": 0.0, key: 1.0}
    name = {"statistics_weight": "statistics", "label_loss_weight": "label"}[key]
    losses = []
    for steps in (1, 25):
        synthesiser = synthesiser_of(teacher, energy=False, generator_steps=steps, **keys)
        batch = synthesiser.synthesise(pupil(teacher), steer=False)
        losses.append(float(batch.losses[name]))
    assert losses[1] < 0.8 * losses[0]


@pytest.mark.parametrize(("architecture", "times"), [("resnet8-quarter", 1), ("lenet5", 4)])
def test_the_class_counts_for_more_where_a_teacher_has_no_batch_norm(
    architecture: str, times: float
) -> None:
    spec = ModelSpec(architecture, 3, 1)
    network = build_model(spec, generator=torch.Generator().manual_seed(0))
    card = ModelCard(spec, InputCard(16, 16, 1, (0.5,), (0.3,)))
    keys = {"statistics_weight": 0.0, "label_loss_weight": 0.5}
    synthesiser = synthesiser_of(Teacher(network, card, "0" * 64), **keys)
    proposal = synthesiser._propose()
    loss, parts = synthesiser._losses(proposal.latents, proposal.labels, nn.Identity(), False)
    assert loss.item() == pytest.approx(0.5 * times * parts["label"].item())


@pytest.mark.parametrize("shift", [0.0, 0.25])
def test_teacher_and_student_are_shown_the_same_images_shifted_as_the_recipe_says(
    teacher: Teacher, shift: float
) -> None:
    synthesiser = synthesiser_of(teacher, generator_steps=2, synthesis_shift=shift)
    student, drawn, shown = pupil(teacher), [], []
    synthesiser.generator.register_forward_hook(lambda _, __, images: drawn.append(images))
    teacher.register_forward_pre_hook(lambda _, inputs: shown.append(inputs[0]))
    student.register_forward_pre_hook(lambda _, inputs: shown.append(inputs[0]))
    synthesiser._search(synthesiser._propose(), student, True)
    assert len(drawn) == 2
    assert len(shown) == 4
    for step, images in enumerate(drawn):
        to_teacher, to_student = shown[2 * step : 2 * step + 2]
        assert torch.equal(to_teacher, to_student)
        as_drawn = (to_teacher == images).flatten(1).all(1)
        assert bool(as_drawn.all()) is (shift == 0)
        assert float(as_drawn.float().mean()) < 0.5 or shift == 0
    assert not torch.equal(*(images for images in shown[::2]))


@pytest.mark.parametrize("rate", [0.0, 0.1])
def test_latents_are_moved_to_where_the_wanted_images_are(teacher: Teacher, rate: float) -> None:
    synthesiser = synthesiser_of(teacher, generator_steps=5, latent_rate=rate)
    proposal = synthesiser._propose()
    before = proposal.latents.clone()
    found, _ = synthesiser._search(proposal, nn.Identity(), False)
    assert torch.equal(proposal.latents, before), "z- are the prior's, not to be moved"
    moved = (found - before).abs().amax(1)
    assert bool((moved > 0).all()) is (rate > 0)
    assert float(moved.max()) <= 10 * rate  # five of Adam's steps, each about its rate
    assert not found.requires_grad


def test_what_was_found_is_what_the_energy_calls_likely(
    teacher: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    synthesiser = synthesiser_of(teacher, generator_steps=5, latent_rate=0.1)
    learnt: list[tuple[Tensor, Tensor]] = []
    learn = LatentPrior.learn

    def noting(self: LatentPrior, proposal: Proposal, positives: Any, *rest: Any) -> Any:
        learnt.append((proposal.latents, positives[0]))
        return learn(self, proposal, positives, *rest)

    monkeypatch.setattr(LatentPrior, "learn", noting)
    synthesiser.synthesise(pupil(teacher), steer=True)
    negative, positive = learnt[0]
    assert negative.shape == positive.shape
    assert bool((negative != positive).any(1).all())


def test_proposals_are_credited_with_the_images_that_came_of_them(
    teacher: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    synthesiser = synthesiser_of(teacher, generator_steps=5, latent_rate=0.1)
    told: list[tuple[Tensor, Tensor]] = []

    def noting(self: LatentPrior, _: Proposal, positives: Any, __: Any, rewards: Any, ___: Any):  # type: ignore[no-untyped-def]
        told.append((positives[0], rewards))
        return {}

    monkeypatch.setattr(LatentPrior, "learn", noting)
    student = pupil(teacher)
    labels = synthesiser._propose  # the labels of the round, which the batch leaves out
    asked: list[Tensor] = []

    def proposing() -> Proposal:
        proposal = labels()
        asked.append(proposal.labels)
        return proposal

    monkeypatch.setattr(synthesiser, "_propose", proposing)
    synthesiser.synthesise(student, steer=True)
    (found, rewards), wanted = told[0], synthesiser.sources.class_of[asked[0]]
    _, teacher_says, student_says = synthesiser._draw(found, asked[0], student)
    divergence = masked_divergence(teacher_says, student_says)
    right = teacher_says.argmax(1) == wanted
    torch.testing.assert_close(rewards, divergence * right)
    assert float(rewards.abs().max()) > 0
    assert bool((divergence * ~right).any()), "an image of another class, to be credited nothing"


def test_of_a_batch_without_a_verified_image_the_likelihood_learns_nothing(
    teacher: Teacher,
) -> None:
    synthesiser = synthesiser_of(teacher, policy_gradient="none")
    prior = synthesiser.prior
    assert prior is not None
    logits = torch.eye(3)[torch.tensor([1, 2, 0])] * 5
    labels = torch.arange(3)
    weights = synthesiser._weights(logits, labels, logits.log_softmax(1).diag())
    assert weights.tolist() == [0, 0, 0]
    before = copy.deepcopy(prior.energy)
    proposal = synthesiser._propose()
    positives = proposal.latents[:3], labels, weights
    prior.learn(proposal, positives, None, torch.zeros(24), synthesiser.random)
    assert distance(before, prior.energy) == 0


def test_smoothness_makes_smoother_images(teacher: Teacher) -> None:
    variation = []
    for weight in (0.0, 50.0):
        keys: dict[str, Any] = {
            "statistics_weight": 0.0,
            "label_loss_weight": 0.0,
            "smoothness_weight": weight,
        }
        synthesiser = synthesiser_of(teacher, energy=False, generator_steps=10, **keys)
        synthesiser.synthesise(pupil(teacher), steer=False)
        with torch.no_grad():
            proposal = synthesiser._propose()
            images = synthesiser.generator(proposal.latents, proposal.labels)
        variation.append(float(images.diff(dim=2).abs().mean() + images.diff(dim=3).abs().mean()))
    assert variation[1] < 0.5 * variation[0]


# -- the energy's signals --------------------------------------------------------------------------


def energies(teacher: Teacher, *, steered: bool, **keys: Any) -> tuple[nn.Module, State]:
    """The energy after a round that differs in nothing but the policy gradient, and its figures."""
    synthesiser = synthesiser_of(teacher, adversarial_weight=0.0, **keys)
    batch = synthesiser.synthesise(pupil(teacher), steer=steered)
    assert synthesiser.prior is not None
    return synthesiser.prior.energy, {**batch.losses, **batch.health}


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_policy_gradient_is_not_zero_in_the_loop_and_changes_the_energy(
    teacher: Teacher, estimator: str
) -> None:
    with_it, figures = energies(teacher, steered=True, policy_gradient=estimator)
    without, others = energies(teacher, steered=False, policy_gradient=estimator)
    assert float(figures["pg_over_mle"]) > 0
    assert float(figures["policy_gradient"].abs()) > 0
    assert not {"pg_over_mle", "policy_gradient"} & set(others)
    assert distance(with_it, without) > 0


def test_with_policy_gradient_none_steering_changes_nothing_in_the_energy(teacher: Teacher) -> None:
    with_it, figures = energies(teacher, steered=True, policy_gradient="none")
    without, _ = energies(teacher, steered=False, policy_gradient="none")
    assert not {"pg_over_mle", "policy_gradient"} & set(figures)
    assert "mle" in figures
    assert distance(with_it, without) == 0


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_reward_is_what_the_student_lacks(teacher: Teacher, estimator: str) -> None:
    """Of a student that is its teacher nothing is left to learn: the policy gradient rests."""
    student = copy.deepcopy(teacher)  # the same normalisation: a student that is never wrong
    synthesiser = synthesiser_of(teacher, policy_gradient=estimator)
    batch = synthesiser.synthesise(student, steer=True)
    assert float(batch.health["agreement_on_new"]) == 1
    assert float(batch.health["pg_over_mle"]) == 0


def test_without_an_energy_latents_are_standard_normal(teacher: Teacher) -> None:
    synthesiser = synthesiser_of(teacher, energy=False)
    assert synthesiser.prior is None
    drawn = torch.cat([synthesiser._propose().latents for _ in range(100)])
    assert float(drawn.mean()) == pytest.approx(0, abs=0.03)
    assert float(drawn.std()) == pytest.approx(1, abs=0.03)
    batch = synthesiser.synthesise(pupil(teacher), steer=True)
    assert set(batch.losses) == {"statistics", "label", "adversarial"}


# -- what it remembers -----------------------------------------------------------------------------


@pytest.mark.parametrize(("rounds", "starts"), [(0, 0), (1, 6), (2, 3), (4, 2)])
def test_the_generator_starts_anew_as_often_as_the_recipe_says(
    teacher: Teacher, rounds: int, starts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    synthesiser = synthesiser_of(teacher, generator_rounds=rounds, generator_steps=1)
    assert synthesiser.prior is not None
    happened: list[str] = []

    def noting(name: str, act: Callable[..., None]) -> Callable[..., None]:
        def wrapped(*arguments: object) -> None:
            happened.append(name)
            act(*arguments)

        return wrapped

    generator, prior = synthesiser.generator, synthesiser.prior
    monkeypatch.setattr(generator, "reinitialise", noting("generator", generator.reinitialise))
    monkeypatch.setattr(prior, "forget", noting("latents", prior.forget))
    for _ in range(6):
        synthesiser.synthesise(pupil(teacher), steer=False)
    assert happened == ["generator", "latents"] * starts


def test_the_batch_is_halved_as_long_as_it_makes_sense(teacher: Teacher) -> None:
    synthesiser = synthesiser_of(teacher)
    assert [synthesiser.halve_batch() for _ in range(4)] == [12, 6, 0, 0]
    assert synthesiser.batch == 6
    assert len(synthesiser.synthesise(pupil(teacher), steer=True).images) <= 6
    many = synthesiser_of(teacher, batch=64)
    many.num_classes = 1000  # classes that do not fit into a batch take turns
    assert [many.halve_batch() for _ in range(5)] == [32, 16, 8, 4, 0]


@pytest.mark.parametrize(
    "keys",
    [
        {"policy_gradient": "stationary", "statistics_momentum": 0.9},
        {"policy_gradient": "chain", "generator_rounds": 2},
        {"energy": False},
    ],
    ids=["stationary", "chain", "no energy"],
)
def test_a_checkpoint_continues_bit_for_bit(teacher: Teacher, keys: dict[str, Any]) -> None:
    student = pupil(teacher)
    first, second = (synthesiser_of(copy.deepcopy(teacher), seed=seed, **keys) for seed in (0, 1))
    first.halve_batch()
    first.synthesise(student, steer=True)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    second.random.set_state(first.random.get_state())
    assert (second.batch, second.teacher_passes) == (12, first.teacher_passes)
    for _ in range(2):
        batches = [one.synthesise(student, steer=True) for one in (first, second)]
        assert torch.equal(batches[0].images, batches[1].images)
        assert same(batches[0].losses, batches[1].losses)
        assert same(batches[0].health, batches[1].health)


def test_closing_takes_the_hooks_off_the_teacher(teacher: Teacher) -> None:
    def hooks() -> int:
        return sum(len(module._forward_pre_hooks) for module in teacher.modules())

    synthesiser = synthesiser_of(teacher)
    assert hooks() > 0
    synthesiser.close()
    assert hooks() == 0


# -- teachers of other kinds -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("architecture", "channels", "side"),
    [("lenet5", 1, 20), ("lenet5", 3, 16), ("lenet5-bn", 1, 17), ("wrn10-1", 3, 16)],
)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_teacher_of_another_kind_serves_too(
    architecture: str, channels: int, side: int, estimator: str
) -> None:
    spec = ModelSpec(architecture, 4, channels)
    image = InputCard(side, side, channels, (0.5,) * channels, (0.3,) * channels)
    network = build_model(spec, generator=torch.Generator().manual_seed(0))
    teacher = Teacher(network, ModelCard(spec, image), "0" * 64)
    synthesiser = synthesiser_of(teacher, policy_gradient=estimator)
    batch = synthesiser.synthesise(pupil(teacher), steer=True)
    assert batch.images.shape[1:] == (channels, side, side)
    # Without BatchNorm its pixels are held to the card's, and a person is told; once.
    assert float(batch.losses["statistics"]) > 0
    assert len(batch.warnings) == (architecture == "lenet5")
    assert not synthesiser.synthesise(pupil(teacher), steer=True).warnings
    assert all(bool(value.isfinite()) for value in batch.losses.values())
