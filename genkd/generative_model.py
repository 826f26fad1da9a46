"""Public generative models: what `genkd-prior` trains on public images, and distilling may draw on.

    prior = load_generative_model("prior.safetensors")        # frozen, on the CPU
    labels = prior.draw_labels(64, generator)                 # of the public data, not the teacher
    images = prior.sample(labels, generator)                  # (64, C, H, W) in [0, 1]
    images = prior.decode(latents, labels)                    # differentiable in the latents

Four families: "vae" and "gan" are a decoder of z from N(0, I), "latent-ebm" tilts that density of z
by an energy of its own, "pixel-ebm" is an energy of pixels and has no decoder. `genkd.dgm` trains
them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Self

import torch
from torch import Tensor, nn

from genkd.dgm.joint_energy import JointEnergy, langevin_images
from genkd.energy import LatentEnergy
from genkd.errors import ConfigurationError, InputFileRefused, ResourceExhausted
from genkd.generative_card import (
    FAMILIES,
    Family,
    GenerativeCard,
    generative_card_from_json,
    generative_card_to_json,
)
from genkd.generator import Generator
from genkd.langevin import LangevinSampler
from genkd.safetensors_header import STUDENT_FILE, Header, changed_while_reading, read_header
from genkd.weights import read_metadata, read_tensors, write_model

__all__ = [
    "FAMILIES",
    "Family",
    "GenerativeCard",
    "GenerativeModel",
    "load_generative_model",
    "save_generative_model",
]

CARD_KEY = "generative_card"
# Factor on the label beside d latents of deviation 1. With less, inferred latents tell the class,
# too, and the decoder reads it there; a generator, whose latents are drawn, needs no such help. It
# is part of what a file means: to change it is to change CARD_VERSION.
LABEL_WEIGHTS: Mapping[Family, float] = {"vae": 12.0, "latent-ebm": 12.0, "gan": 4.0}
# Draws from the latent EBM start from N(0, I), draws from the pixel EBM from images it knows.
LATENT_STEPS = LangevinSampler(steps=60, step_size=0.3)
PIXEL_STEPS = 20
REPLAY_IMAGES = 2048


class GenerativeModel(nn.Module):
    """One generative model. As constructed it is to be trained; `freeze` ends that.

    Args:
        card: What to build.
        generator: Source of the initial weights.

    Attributes:
        card: The card.
        decoder: G(z, y) to images; None of a pixel EBM.
        energy: f(z, y) of a latent EBM; None otherwise.
        pixel_energy: f(x) of a pixel EBM; None otherwise.
        replay: uint8 (conditions * chains, C, H, W), of a pixel EBM only: images that its chains
            have reached, those of class 0 first; draws start from them.
        sha256: Hex digest of the file it was loaded from, or None.
    """

    replay: Tensor

    def __init__(self, card: GenerativeCard, generator: torch.Generator) -> None:
        super().__init__()
        self.card = card
        self.sha256: str | None = None
        self._frozen = False
        self.decoder: Generator | None = None
        self.energy: LatentEnergy | None = None
        self.pixel_energy: JointEnergy | None = None
        # What torch's own layers draw when they are made comes from our generator, too.
        seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self._build(generator)
        self.to(memory_format=torch.channels_last)

    def _build(self, generator: torch.Generator) -> None:
        card = self.card
        if card.family == "pixel-ebm":
            self.pixel_energy = JointEnergy(card.num_classes, *card.image_shape, card.base_channels)
            self.chains = max(4, REPLAY_IMAGES // card.conditions)
            count = card.conditions * self.chains
            replay = torch.zeros(count, *card.image_shape, dtype=torch.uint8)
            self.register_buffer("replay", replay)
            return
        # Without classes every image is of class 0, whose embedding says nothing.
        embeddings = torch.eye(card.num_classes) if card.num_classes else torch.zeros(1, 1)
        self.decoder = Generator(
            card.latent_dim,
            embeddings,
            channels=card.channels,
            height=card.height,
            width=card.width,
            base_channels=card.base_channels,
            label_weight=LABEL_WEIGHTS[card.family],
            generator=generator,
        )
        if card.family == "latent-ebm":
            self.energy = LatentEnergy(card.latent_dim, embeddings, generator=generator)

    def freeze(self) -> Self:
        """No parameter learns from now on, and BatchNorm keeps its statistics; returns itself."""
        self._frozen = True
        self.requires_grad_(False)
        return self.eval()

    def train(self, mode: bool = True) -> Self:
        """As of any module, but a frozen model stays in evaluation mode."""
        return super().train(mode and not self._frozen)

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return next(self.parameters()).device

    def draw_labels(self, count: int, generator: torch.Generator) -> Tensor:
        """Labels int64 (count,), each class equally likely; zeros of a model without classes."""
        drawn = torch.randint(
            self.card.conditions, (count,), generator=generator, device=generator.device
        )
        return drawn.to(self.device)

    def decode(self, latents: Tensor, labels: Tensor | None = None) -> Tensor:
        """Images of latents, differentiable in them.

        Args:
            latents: float (B, d), on the model's device.
            labels: int64 (B,) in 0..K-1, the classes of the public data; None: without classes.

        Returns:
            float (B, C, H, W) in [0, 1].

        Raises:
            ConfigurationError: If the family has no decoder, or labels are missing.
        """
        if self.decoder is None:
            raise ConfigurationError(
                f"a {self.card.family} has no latents to decode",
                hint="draw images with sample(), or use a prior of another family",
            )
        images: Tensor = self.decoder(latents, self._conditions(labels, len(latents)))
        return images

    @torch.no_grad()
    def sample_latents(self, labels: Tensor, generator: torch.Generator) -> Tensor:
        """Latents (B, d) for int64 `labels` (B,): of N(0, I), or of the latent EBM's own chains.

        Raises:
            ConfigurationError: If the family has no latents.
        """
        if self.decoder is None:
            raise ConfigurationError(
                f"a {self.card.family} has no latents", hint="draw images with sample()"
            )
        shape = (len(labels), self.card.latent_dim)
        start = torch.randn(shape, generator=generator, device=generator.device).to(self.device)
        if self.energy is None:
            return start
        return LATENT_STEPS.sample(
            self.energy, start, self._conditions(labels, len(labels)), generator
        )

    @torch.no_grad()
    def sample(
        self, labels: Tensor, generator: torch.Generator, *, steps: int = PIXEL_STEPS
    ) -> Tensor:
        """Images as the model draws them.

        Args:
            labels: int64 (B,), on the model's device; without classes only their number counts.
            generator: Source of the noise: the same state gives the same images.
            steps: Of a pixel EBM: Langevin steps from an image of its replay buffer.

        Returns:
            float (B, C, H, W) in [0, 1], detached.
        """
        if self.pixel_energy is None:
            return self.decode(self.sample_latents(labels, generator), labels)
        conditions = self._conditions(labels, len(labels))
        chosen = torch.randint(
            self.chains, (len(labels),), generator=generator, device=generator.device
        )
        start = self.replay[conditions * self.chains + chosen.to(self.device)].float() / 255
        return langevin_images(self.pixel_energy, start, conditions, generator, steps=steps)

    def _conditions(self, labels: Tensor | None, count: int) -> Tensor:
        if self.card.num_classes == 0:
            return torch.zeros(count, dtype=torch.int64, device=self.device)
        if labels is None:
            raise ConfigurationError(
                f"this {self.card.family} draws one of {self.card.num_classes} classes",
                hint="give a label for each image, or draw_labels()",
            )
        return labels


def save_generative_model(path: str | os.PathLike[str], model: GenerativeModel) -> None:
    """Write `model` with its card to one safetensors file, atomically.

    Raises:
        InputFileRefused: If a weight is not finite: it diverged.
        ResourceExhausted: If the file cannot be written.
    """
    card = generative_card_to_json(model.card)
    write_model(path, model.state_dict(), {"v": 1, CARD_KEY: card})


def load_generative_model(path: str | os.PathLike[str]) -> GenerativeModel:
    """Load a prior that `save_generative_model` wrote.

    Returns:
        The frozen model, float32, on the CPU.

    Raises:
        InputFileRefused: If the file is hostile, truncated or huge, is no prior (a student, a
            teacher), or holds other tensors than its card needs.
        ResourceExhausted: If memory runs out.
    """
    header = read_header(path, STUDENT_FILE)
    card = _read_card(header)
    try:
        with torch.device("meta"):
            model = GenerativeModel(card, torch.Generator("cpu"))
        _require_match(model, header)
        loaded = read_tensors(path, STUDENT_FILE)
    except MemoryError as error:
        raise ResourceExhausted(
            f"no memory is left to load {header.source}", hint="close other programs"
        ) from error
    if loaded.header.sha256 != header.sha256:
        raise changed_while_reading(header.source)
    model.load_state_dict(loaded.tensors, assign=True)
    model.to(memory_format=torch.channels_last)
    model.sha256 = loaded.sha256
    return model.freeze()


def _read_card(header: Header) -> GenerativeCard:
    """The card of a prior, which nobody vouched for."""
    metadata = read_metadata(header)
    value = metadata.get(CARD_KEY)
    if value is None:
        what = "a classifier" if "card" in metadata else "a file"
        raise InputFileRefused(
            f"{header.source} is {what}, no generative model",
            hint="give a prior as genkd-prior train writes it",
        )
    return generative_card_from_json(value, header.source)


def _require_match(model: GenerativeModel, header: Header) -> None:
    """Refuse a file whose tensors are not exactly those of `model`."""
    kinds = {torch.float32: "F32", torch.int64: "I64", torch.uint8: "U8"}
    wanted = {n: (kinds[t.dtype], tuple(t.shape)) for n, t in model.state_dict().items()}
    found = {name: (info.dtype, info.shape) for name, info in header.tensors.items()}
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            raise InputFileRefused(
                f"{header.source}: the tensor {name} is not what a {model.card.family} of its card "
                "holds",
                hint="the file is damaged or was made by hand; train the prior again",
            )
