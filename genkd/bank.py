"""The bank: the synthetic images that the student learns from, the oldest making room for new.

A ring on the compute device. Images are kept as uint8 over one global range, [0, 1]; per-image
scaling would change what the teacher sees.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from genkd.errors import InputFileRefused


def quantise(images: Tensor) -> Tensor:
    """Images in [0, 1] to uint8 0..255, rounded."""
    return (images.detach().float() * 255).round().to(torch.uint8)


def as_images(stored: Tensor) -> Tensor:
    """uint8 0..255 to float32 in [0, 1]."""
    return stored.float() / 255


class SynthesisBank:
    """A ring of images, their labels and the teacher's confidence in them.

    Args:
        capacity: Images kept.
        image_shape: (C, H, W).
        device: Where they are kept.

    Attributes:
        added: Images ever put in; those kept are the last `len()` of them.
    """

    def __init__(
        self, capacity: int, image_shape: tuple[int, int, int], device: torch.device
    ) -> None:
        self.capacity = capacity
        self.added = 0
        self._images = torch.empty((0, *image_shape), dtype=torch.uint8, device=device)
        self._labels = torch.empty(0, dtype=torch.int64, device=device)
        self._confidence = torch.empty(0, device=device)
        self._chances: Tensor | None = None  # of each image; None: those kept have changed

    def __len__(self) -> int:
        return len(self._images)

    def add(self, images: Tensor, labels: Tensor, confidence: Tensor) -> None:
        """Put a batch in.

        Args:
            images: uint8 (B, C, H, W), from `quantise`.
            labels: int64 (B,), what the teacher says of them.
            confidence: float (B,), the teacher's probability of that label, 0..1.
        """
        keep = self.capacity
        self.added += len(images)
        self._images = torch.cat((self._images, images))[-keep:]
        self._labels = torch.cat((self._labels, labels))[-keep:]
        self._confidence = torch.cat((self._confidence, confidence.float()))[-keep:]
        self._chances = None

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """`count` images, with replacement: float32 (count, C, H, W) in [0, 1], and their labels.

        Every class that has images is as likely as every other, however many it has: some classes
        are confirmed less often, and of several teachers some know more classes.
        """
        if self._chances is None:  # counting them waits for the device, so not in every draw
            chances = 1 / torch.bincount(self._labels).clamp_min(1).float()
            self._chances = chances[self._labels]
        index = torch.multinomial(
            self._chances.to(generator.device), count, True, generator=generator
        ).to(self._images.device)
        return as_images(self._images[index]), self._labels[index]

    def samples(self, per_class: int, num_classes: int) -> tuple[Tensor, Tensor, Tensor]:
        """Images of each class, evenly over the bank's age, for people to look at.

        Neighbours in the bank come from one generator and look alike; an even selection shows what
        the student really learns from.

        Returns:
            Images uint8 (N, C, H, W), labels int64 (N,), confidence float (N,), on the CPU.
        """
        chosen = []
        for label in range(num_classes):
            places = (self._labels == label).nonzero().flatten()
            count = min(per_class, len(places))
            # The middle of each of `count` equal parts.
            chosen.append(
                places[(torch.arange(count) * 2 + 1) * len(places) // (2 * max(1, count))]
            )
        index = torch.cat(chosen)
        return self._images[index].cpu(), self._labels[index].cpu(), self._confidence[index].cpu()

    def state_dict(self) -> dict[str, Tensor | int]:
        """All of it, for a checkpoint."""
        return {
            "added": self.added,
            "images": self._images,
            "labels": self._labels,
            "confidence": self._confidence,
        }

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Continue from `state_dict`.

        Raises:
            InputFileRefused: If it is not of a bank of such images.
        """
        images, labels = state.get("images"), state.get("labels")
        confidence, added = state.get("confidence"), state.get("added")
        if not (
            isinstance(images, Tensor)
            and isinstance(labels, Tensor)
            and isinstance(confidence, Tensor)
            and isinstance(added, int)
            and images.shape[1:] == self._images.shape[1:]
            and len(images) == len(labels) == len(confidence) <= self.capacity
        ):
            raise InputFileRefused(
                "the checkpoint's images do not fit this run", hint="start anew with --fresh"
            )
        device = self._images.device
        self.added, self._images = added, images.to(device)
        self._labels, self._confidence = labels.to(device), confidence.to(device)
        self._chances = None
