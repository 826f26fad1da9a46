"""Images of a frozen public generative model: the method `frozen-prior`, which `--prior` chooses.

    synthesiser = FrozenPrior(teacher, recipe, device, generator, load_generative_model(path))
    batch = synthesiser.synthesise(student, steer=True)

Only the latent EBM f(z, y) learns; y is a class of the teacher. Latents walk along f, the public
model decodes them, and the teacher is asked by forward passes alone, so that one without BatchNorm
will do, and a black box. Each image is filed under the class that the teacher gives it, also where
another was asked for. As the model is frozen, a latent means the same image for good: those that
the teacher confirmed are kept, and are the positives of the likelihood in every later round, with
v = log p_T(y | x).

A conditional model wants a label of its own as well. It is drawn in proportion to how often images
of that label were confirmed as the class that is asked for; at first all are equally likely. Of a
latent EBM only the decoder is drawn on: which latents are good, f learns anew from N(0, I).

Source: an EBM in the latent space of a generator, Pang et al. 2020 (arXiv:2006.08205); of one that
is frozen, Nijkamp et al. 2020 (arXiv:2006.06897).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from genkd.bank import as_images, quantise
from genkd.card import InputCard
from genkd.device import Device
from genkd.errors import ConfigurationError, InputFileRefused, UsageError
from genkd.found_latents import FoundLatents
from genkd.generative_card import GenerativeCard
from genkd.generative_model import GenerativeModel
from genkd.losses import (
    class_entropy,
    label_log_probability,
    reward,
    self_normalised_weights,
    within_class_deviation,
)
from genkd.prior import LatentPrior, Proposal
from genkd.recipe import Recipe
from genkd.sources import draw_evenly
from genkd.synthesis import SynthesisMethod, SyntheticBatch
from genkd.teacher import Teacher

METHOD = "frozen-prior"
# After so many rounds without a single image of a class it is asked for no more, until one comes by
# chance: what it would cost goes to the classes that the model can draw.
PATIENCE_ROUNDS = 20
NAMED_CLASSES = 10
# Of a class's embedding beside z. Behind spectrally normalised layers f(z, y) can depend on z for
# one class otherwise than for another only if the label moves the hidden units far: of a decoder
# whose z alone decides the class (98 % of three for an MLP), 40 % of the draws showed the class
# asked for at length 1, 55 % at 4 and 57 % at 10 (33 % without an EBM).
LABEL_LENGTH = 10.0
# Of f, four times that of a generator which learns: a frozen one does not come to meet it, and a
# class it seldom draws is a small part of N(0, I). After 40 rounds over a VAE that draws two of ten
# classes mostly, 22 % of the draws showed the class asked for, 17 % with a gain of 4 (12 % at
# first; one seed).
ENERGY_GAIN = 16.0


def method_of(method: str | None, prior: object) -> str | None:
    """The method that is asked for: with a prior it need not be named.

    Raises:
        UsageError: If another one is named with a prior.
    """
    if prior is not None and method not in (None, METHOD):
        raise UsageError(
            f"the method {method} reads no --prior", hint="leave out --method, or --prior"
        )
    return method if prior is None else METHOD


def require_prior_fits(recipe: Recipe, model: GenerativeModel | None, teacher: Teacher) -> None:
    """Refuse a teacher, a method and a model that do not fit together, before anything is begun.

    Args:
        recipe: Of the run.
        model: What `--prior` names, if anything.
        teacher: Who is asked.

    Raises:
        UsageError: If the method lacks its model, or needs gradients that a black box has not.
        ConfigurationError: If the recipe wants gradients through the teacher.
        InputFileRefused: If the model has no latents, or its channels cannot become the teacher's.
    """
    if recipe.method != METHOD:
        if teacher.gives_gradients:
            return
        raise UsageError(
            f"the method {recipe.method} needs gradients through the teacher, a black box has none",
            hint="add --prior FILE, a public generative model: it needs answers only",
        )
    if model is None:
        raise UsageError(
            f"the method {METHOD} draws on a public generative model", hint="add --prior FILE"
        )
    if recipe.policy_gradient == "pathwise":
        raise ConfigurationError(
            f"the method {METHOD} has no policy gradient 'pathwise': it asks the teacher only",
            hint="use --set policy_gradient=stationary, or chain",
        )
    _require_convertible(model.card, teacher.card.input)


def _require_convertible(card: GenerativeCard, image: InputCard) -> None:
    if card.latent_dim == 0:
        raise InputFileRefused(
            f"a {card.family} as --prior has no latents that could be steered",
            hint="train a prior of the family vae, gan or latent-ebm",
        )
    if card.channels != image.channels and 1 not in (card.channels, image.channels):
        raise InputFileRefused(
            f"the prior draws images of {card.channels} channels, the teacher takes "
            f"{image.channels}",
            hint="gray becomes colour and colour gray; nothing else can be converted",
        )


def fit_images(images: Tensor, card: InputCard) -> Tensor:
    """Images (B, C', H', W') in [0, 1] as `card` wants them: (B, C, H, W).

    Bilinear, smoothed where they shrink. A gray image fills all channels, the mean of the channels
    is the gray image.
    """
    if images.shape[2:] != (card.height, card.width):
        size = (card.height, card.width)
        images = functional.interpolate(images, size, mode="bilinear", antialias=True).clamp(0, 1)
    if images.shape[1] != card.channels:
        if images.shape[1] != 1:
            images = images.mean(1, keepdim=True)
        images = images.expand(-1, card.channels, -1, -1)
    return images.contiguous(memory_format=torch.channels_last)


class FrozenPrior(SynthesisMethod):
    """Images of a frozen generative model.

    Args:
        teacher: On the device; asked by forward passes only.
        recipe: Its `energy_*`, `langevin_*` and `policy_*` keys.
        device: Where.
        generator: Source of everything random here, on the device.
        model: Frozen; moved to the device.
    """

    def __init__(
        self,
        teacher: Teacher,
        recipe: Recipe,
        device: Device,
        generator: torch.Generator,
        model: GenerativeModel,
    ) -> None:
        require_prior_fits(recipe, model, teacher)
        super().__init__(recipe.batch, teacher.card.spec.num_classes)
        self.teacher, self.device, self.random = teacher, device, generator
        self.recipe = replace(recipe, latent_dim=model.card.latent_dim)
        self.model = model.to(device.torch)
        self.known = torch.tensor(teacher.known, device=device.torch)
        self.prior: LatentPrior | None = None
        if recipe.energy:
            # One-hot: of a black box no last layer is known that could tell which classes are near.
            embeddings = LABEL_LENGTH * torch.eye(self.num_classes)
            self.prior = LatentPrior(embeddings, self.recipe, device, generator)
            self.prior.energy.gain = ENERGY_GAIN
        self.found = FoundLatents(self.num_classes, model.card.latent_dim, device.torch)
        # Of each class and public label: images asked for, and confirmed, (2, K, C).
        shape = (2, self.num_classes, model.card.conditions)
        self.tally = torch.zeros(shape, device=device.torch)

    def synthesise(self, student: nn.Module, *, steer: bool) -> SyntheticBatch:
        """Draw a batch, ask the teacher, keep what it says, and teach f.

        Args:
            student: In `eval()`; only asked, never changed.
            steer: Whether the policy gradient acts yet.
        """
        passes = self.teacher_passes
        proposal = self._propose()
        public = self._public_labels(proposal.labels)
        images, logits, student_logits = self._draw(proposal.latents, public, student)
        labels = logits.argmax(1)
        log_probability = label_log_probability(logits, labels)
        confirmed = labels == proposal.labels
        self.found.add(proposal.latents, labels, log_probability)
        self._count(proposal.labels, public, confirmed)
        self.rounds += 1
        figures = self._learn(proposal, public, logits, student_logits, student, steer)
        of_prior = ("mle", "policy_gradient")
        losses = {name: figures.pop(name) for name in of_prior if name in figures}
        health = {
            "acceptance": confirmed.float().mean(),
            "class_entropy": class_entropy(logits),
            "agreement_on_new": (student_logits.argmax(1) == labels).float().mean(),
            "pixel_deviation": within_class_deviation(as_images(images), labels, self.num_classes)
            .nanmean()
            .nan_to_num(0.0),  # no class came twice
            **figures,
        }
        return SyntheticBatch(
            images,
            labels,
            log_probability.exp(),
            losses,
            health,
            self.teacher_passes - passes,
            self._warnings(),
        )

    def close(self) -> None:
        """There are no hooks on the teacher."""

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint; the random state is the caller's, the model is in its file."""
        return {
            "batch": self.batch,
            "rounds": self.rounds,
            "teacher_passes": self.teacher_passes,
            "prior": None if self.prior is None else self.prior.state_dict(),
            "found": self.found.state_dict(),
            "tally": self.tally.clone(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`.

        Raises:
            InputFileRefused: If it is of another model or method.
        """
        if state.keys() != self.state_dict().keys() or state["tally"].shape != self.tally.shape:
            raise InputFileRefused(
                "the checkpoint is of another method or prior", hint="start anew with --fresh"
            )
        self.batch, self.rounds = state["batch"], state["rounds"]
        self.teacher_passes = state["teacher_passes"]
        if self.prior is not None:
            self.prior.load_state_dict(state["prior"])
        self.found.load_state_dict(state["found"])
        self.tally.copy_(state["tally"])

    def _propose(self) -> Proposal:
        """Latents for a batch with as many of each class as possible, in random order."""
        asked = self.known
        if self.rounds >= PATIENCE_ROUNDS:
            asked = asked[self.found.counts()[asked] > 0]
        labels = draw_evenly(asked, self.batch, self.random)
        if self.prior is not None:
            return self.prior.draw(labels, self.random)
        shape = (self.batch, self.recipe.latent_dim)
        latents = torch.randn(shape, generator=self.random, device=self.device.torch)
        return Proposal(latents, labels, None)

    def _public_labels(self, labels: Tensor) -> Tensor:
        """A label of the public data for each class asked for, int64 (B,)."""
        asked, confirmed = self.tally
        # The posterior mean of each rate; before anything was asked 1 in C, as if all were alike.
        rates = (confirmed + 1) / (asked + asked.shape[1])  # (K, C)
        return torch.multinomial(rates[labels], 1, generator=self.random).squeeze(1)

    def _count(self, labels: Tensor, public: Tensor, confirmed: Tensor) -> None:
        for counts, amount in zip(self.tally, (torch.ones_like(confirmed), confirmed), strict=True):
            counts.index_put_((labels, public), amount.to(counts.dtype), accumulate=True)

    @torch.no_grad()
    def _draw(
        self, latents: Tensor, public: Tensor, student: nn.Module
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Images as the bank would keep them, and what teacher and student say of just those."""
        with self.device.autocast():
            decoded = self.model.decode(latents, public)
        images = quantise(fit_images(decoded.float(), self.teacher.card.input))
        with self.device.autocast():
            logits, student_logits = self.teacher(as_images(images)), student(as_images(images))
        self.teacher_passes += len(images)
        return images, logits.float(), student_logits.float()

    def _learn(
        self,
        proposal: Proposal,
        public: Tensor,
        logits: Tensor,
        student_logits: Tensor,
        student: nn.Module,
        steer: bool,
    ) -> dict[str, Tensor]:
        """One round of f; what it is worth to the student counts where the class is right."""
        if self.prior is None:
            return {}
        latents, labels, values = self.found.draw(self.batch, self.random)
        weights = self_normalised_weights(
            values, self.recipe.positive_temperature, labels, self.num_classes
        )

        def reward_of(states: Tensor, wanted: Tensor) -> Tensor:
            _, teacher_says, student_says = self._draw(states, public, student)
            return reward(teacher_says, student_says, wanted)

        return self.prior.learn(
            proposal,
            (latents, labels, weights),
            reward_of if steer else None,
            reward(logits, student_logits, proposal.labels),
            self.random,
        )

    def _warnings(self) -> tuple[str, ...]:
        """What a person should know, said once."""
        if self.rounds != PATIENCE_ROUNDS:
            return ()
        counts = self.found.counts()
        missing = [label for label in self.known.tolist() if counts[label] == 0]
        if not missing:
            return ()
        names = self.teacher.card.class_names
        shown = [names[one] if names else str(one) for one in missing[:NAMED_CLASSES]]
        more = f" and {len(missing) - len(shown)} more" if len(missing) > len(shown) else ""
        return (
            f"the prior draws no image that the teacher takes for {', '.join(shown)}{more}: "
            "the student learns nothing of it; a prior of more varied images may",
        )
