"""Many students as one teacher: each says what it knows, and is believed where it knows.

    ensemble = Ensemble([Member(student, competence, scale), ...])
    log_p = ensemble(images)                     # whoever finds them familiar is believed
    log_p = ensemble.answer(images, shares)      # it is known for which classes they were made

Members know different classes. A network that was never shown a class still answers, and often
surely, so the uniform average of an ensemble, like that of weights, is wrong where members differ
(DENSE, Zhang et al. 2022, arXiv:2112.12371). With the logits of member i masked to the classes it
knows,

    p(c|x)  ~  sum_i g_i(x) a_i(c) softmax_i(c|x),      g_i(x)  ~  w_i(x) exp(-E_i(x) / tau)
    E_i(x)  =  (-LogSumExp_c t_i(x)_c - m_i) / s_i

The energy tells how familiar an image is (Liu et al. 2020, arXiv:2010.03759, eq. 4); m_i and s_i
are its mean and deviation over the images that taught member i, a_i(c) how well it learnt class c.
Of an image that a merge made itself more is known: w_i(x) is the share of the image that was made
for classes which member i knows, and w_i = 1 where nothing is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from genkd.canonical import canonical_json
from genkd.digest import sha256_bytes
from genkd.teacher import Teacher

# tau, in deviations of the energy.
TEMPERATURE = 1.0
# Least weight and probability: logarithms stay finite, in bf16 too.
LEAST = 1e-6


@dataclass(frozen=True)
class Member:
    """A student in an ensemble.

    Attributes:
        student: Asked about the classes it knows only; its card is the ensemble's but for mean,
            deviation and architecture.
        competence: a_i, in (0, 1], of each class it knows, in the order of `student.known`.
        energy_mean: m_i, in nats.
        energy_deviation: s_i > 0, in nats.
    """

    student: Teacher
    competence: tuple[float, ...]
    energy_mean: float
    energy_deviation: float


class Ensemble(nn.Module):
    """Students that know different classes, asked as one; frozen.

    Args:
        members: At least one; their cards name the same classes, in the same order, and images of
            the same size.

    Attributes:
        members: The students.
        card: The first one's.
        sha256: Hex digest of the sorted list of their files' digests.
        known: Classes that some member knows, ascending.
    """

    competence: Tensor
    knows: Tensor
    mean: Tensor
    deviation: Tensor

    def __init__(self, members: Sequence[Member]) -> None:
        super().__init__()
        self._members = nn.ModuleList([member.student for member in members])
        self.card = members[0].student.card
        self.sha256 = ensemble_sha256([member.student.sha256 for member in members])
        competence = torch.zeros(len(members), self.card.spec.num_classes)
        for row, member in zip(competence, members, strict=True):
            row[list(member.student.known)] = torch.tensor(member.competence)
        self.known = tuple(competence.any(0).nonzero().flatten().tolist())
        self.register_buffer("competence", competence)  # (N, K)
        self.register_buffer("knows", (competence > 0).float())  # (N, K)
        self.register_buffer("mean", torch.tensor([one.energy_mean for one in members]))
        self.register_buffer("deviation", torch.tensor([one.energy_deviation for one in members]))

    @property
    def members(self) -> tuple[Teacher, ...]:
        """The students."""
        return tuple(self._members)  # type: ignore[arg-type]

    def forward(self, images: Tensor) -> Tensor:
        """Log p (B, K) of images (B, C, H, W) in [0, 1]; believes whom they are familiar to."""
        return self._believe(images, None)

    def answer(self, images: Tensor, shares: Tensor) -> Tensor:
        """Log p (B, K) of images that were made for known classes.

        Args:
            images: (B, C, H, W) in [0, 1].
            shares: (B, K), of which classes each image was made; rows sum to 1.
        """
        weight = shares @ self.knows.T  # (B, N)
        nobody = weight.sum(1, keepdim=True) == 0
        return self._believe(images, weight.masked_fill(nobody, 1))

    def _believe(self, images: Tensor, weight: Tensor | None) -> Tensor:
        logits = torch.stack([member(images).float() for member in self._members], 1)  # (B, N, K)
        energies = (-logits.logsumexp(2) - self.mean) / self.deviation  # (B, N)
        gate = -energies / TEMPERATURE
        if weight is not None:
            gate = gate + weight.log()
        says = gate.softmax(1).unsqueeze(2) * self.competence * logits.softmax(2)  # (B, N, K)
        probability = says.sum(1) / says.sum((1, 2)).clamp_min(LEAST).unsqueeze(1)
        return probability.clamp_min(LEAST).log()


def ensemble_sha256(digests: Sequence[str]) -> str:
    """The digest by which an ensemble is known: of the sorted list of its members' files."""
    return sha256_bytes(canonical_json(sorted(digests)))
