"""Of whom a generator's images are asked: which member of an ensemble, for which class.

    sources = Sources(teacher, momentum=0.0, device=device)
    requests = sources.draw(256, generator)  # (B,), each a member and one of its classes
    logits, distance = sources.measure(images, requests)  # each image by its own member only

A single teacher is an ensemble of one. Of several, one generator draws the images of all at once:
were each drawn by itself, whoever learns from the images could tell the members' classes apart by
how the images were made instead of by what they show (CONTRIBUTING.md has the figures).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from genkd.batch_statistics import BatchStatistics
from genkd.device import Device
from genkd.ensemble import Ensemble
from genkd.generator import distinct, label_embeddings
from genkd.teacher import Teacher

# So many share the batch of a round, chosen anew each time: of fewer images of each, their
# BatchNorm statistics would say little.
MEMBERS_A_ROUND = 4


class Sources:
    """The members of an ensemble and the classes that each can be asked for.

    Args:
        teacher: On the device.
        momentum: rho of `BatchStatistics`.
        device: Where.

    Attributes:
        members: The teachers.
        class_of: int64 (P,), the class of each request.
        member_of: int64 (P,), whom it asks.
    """

    def __init__(self, teacher: Teacher | Ensemble, momentum: float, device: Device) -> None:
        self.members: Sequence[Teacher] = teacher.members
        self.num_classes = teacher.card.spec.num_classes
        on = device.torch
        asked = [(who, label) for who, one in enumerate(self.members) for label in one.known]
        self.member_of = torch.tensor([who for who, _ in asked], device=on)
        self.class_of = torch.tensor([label for _, label in asked], device=on)
        self.chance = torch.stack([teacher.trust[who, label] for who, label in asked]).to(on)
        self.statistics = [BatchStatistics(one, momentum=momentum) for one in self.members]
        self._parted: tuple[Tensor, int, list[tuple[int, Tensor]]] | None = None

    @property
    def have_batch_norm(self) -> bool:
        """Whether some member has a BatchNorm layer, whose statistics tell of its images."""
        return any(len(one) for one in self.statistics)

    def embeddings(self) -> Tensor:
        """One unit vector (P, e) a request: the last-layer row of its class less what all share."""
        tables = []
        for one in self.members:
            rows = label_embeddings(one, len(one.places))
            tables.append(distinct(rows[[one.places.index(label) for label in one.known]]))
        widest = max(table.shape[1] for table in tables)
        return torch.cat([functional.pad(table, (0, widest - table.shape[1])) for table in tables])

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Requests int64 (count,), as many of each class as possible, in random order.

        Who is asked for a class is drawn by how well each learnt it.
        """
        open_to = self._open(generator)
        known = torch.unique(self.class_of[open_to])
        labels = draw_evenly(known, count, generator)
        if len(self.members) == 1:
            return torch.searchsorted(self.class_of, labels)
        fits = (labels.unsqueeze(1) == self.class_of) & open_to  # (count, P)
        return torch.multinomial(fits * self.chance, 1, generator=generator).squeeze(1)

    def measure(self, images: Tensor, requests: Tensor) -> tuple[Tensor, Tensor]:
        """What each image's own member says, and how far the members' statistics are from theirs.

        Args:
            images: float (B, C, H, W) in [0, 1].
            requests: int64 (B,).

        Returns:
            Logits (B, K), and the mean of the members' r_BN weighted by their images; of a member
            without BatchNorm `pixel_distance` in its place.
        """
        distance = images.new_zeros(())

        def ask(who: int, part: Tensor) -> Tensor:
            nonlocal distance
            logits, far = self.statistics[who].measure(part)
            if not len(self.statistics[who]):
                far = pixel_distance(part, self.members[who])
            distance = distance + far * (len(part) / len(images))
            return logits

        return self._each(images, requests, ask), distance

    def answer(self, images: Tensor, requests: Tensor) -> Tensor:
        """Logits (B, K) of each image's own member."""
        return self._each(images, requests, lambda who, part: self.members[who](part))

    def update(self) -> None:
        """Let the moving averages of the statistics take in what was measured last."""
        for one in self.statistics:
            one.update()

    def warnings(self) -> tuple[str, ...]:
        """What a person should know of the teachers, a sentence each."""
        if all(len(one) for one in self.statistics):
            return ()
        return (
            "a teacher without BatchNorm tells little of its images: of their pixels only the mean "
            "and deviation of its card; a public generative model as --prior may teach more",
        )

    def close(self) -> None:
        """Take the hooks off the teachers."""
        for one in self.statistics:
            one.remove()

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"statistics": [one.state_dict() for one in self.statistics]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        for one, kept in zip(self.statistics, state["statistics"], strict=True):
            one.load_state_dict(kept)

    def _open(self, generator: torch.Generator) -> Tensor:
        """Which requests this round may make, bool (P,)."""
        on = generator.device
        if len(self.members) <= MEMBERS_A_ROUND:
            return torch.ones_like(self.class_of, dtype=torch.bool)
        order = torch.randperm(len(self.members), generator=generator, device=on)
        return torch.isin(self.member_of, order[:MEMBERS_A_ROUND])

    def _each(
        self, images: Tensor, requests: Tensor, ask: Callable[[int, Tensor], Tensor]
    ) -> Tensor:
        """The logits (B, K) of `ask` of every member and its own images."""
        if len(self.members) == 1:
            return ask(0, images)
        logits: Tensor | None = None
        for who, places in self._parts(requests):
            part = images[places].contiguous(memory_format=torch.channels_last)
            said = ask(who, part)
            if logits is None:
                logits = said.new_zeros(len(images), self.num_classes)
            logits = logits.index_copy(0, places, said)
        if logits is None:
            return images.new_zeros(0, self.num_classes)
        return logits

    def _parts(self, requests: Tensor) -> list[tuple[int, Tensor]]:
        """Each member that requests (B,) ask, and the places of its images, int64.

        Finding out waits for the device, and a generator asks the same in all steps of a round: of
        the last requests it is remembered, by who they are and how often they were written to.
        """
        parted = self._parted
        if parted is None or parted[0] is not requests or parted[1] != requests._version:
            who_of = self.member_of[requests]
            asked = torch.unique(who_of).tolist()
            parts = [(who, (who_of == who).nonzero().squeeze(1)) for who in asked]
            self._parted = parted = (requests, requests._version, parts)
        return parted[2]


def pixel_distance(images: Tensor, teacher: Teacher) -> Tensor:
    """How far the pixels of a batch are from those that the teacher's card normalises to N(0, 1).

    Mean and variance of each channel as `BatchStatistics` measures those of a layer: all that a
    teacher without BatchNorm tells of its training images, if its card's values are of them. The
    generators of DAFL (Chen et al. 2019, arXiv:1904.01186) and ZSKT (Micaelli and Storkey 2019,
    arXiv:1905.09768) end in a BatchNorm without scale and shift, to the same end.

    Args:
        images: float (B, C, H, W) in [0, 1].
        teacher: Its card's mean and deviation count.

    Returns:
        Scalar, >= 0.
    """
    pixels = (images - teacher.mean) / teacher.std
    variance, mean = torch.var_mean(pixels, (0, 2, 3), correction=0)
    root = math.sqrt(pixels.shape[1])  # the length of a vector of ones, the unit of a layer
    far: Tensor = torch.linalg.vector_norm(mean) + torch.linalg.vector_norm(variance - 1)
    return far / root


def draw_evenly(classes: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Labels (count,), as many of each of `classes` as possible, in random order.

    Args:
        classes: int64 (P,), on the generator's device.
        count: How many.
        generator: Source of the order.
    """
    on = generator.device
    # A random start, so that classes that do not fit into this batch come in another.
    first = torch.randint(len(classes), (), generator=generator, device=on)
    labels = classes[(torch.arange(count, device=on) + first) % len(classes)]
    return labels[torch.randperm(count, generator=generator, device=on)]
