"""Many students as one teacher: each says what it knows, and is believed where it knows.

    ensemble = Ensemble([Member(student, competence), ...])
    log_p = ensemble(images)                     # of any images
    log_p = ensemble.answer(images, shares)      # it is known for which classes they were made

Members know different classes. A network that was never shown a class still answers, and often
surely, so the uniform average of an ensemble, like that of weights, is wrong where members differ
(DENSE, Zhang et al. 2022, arXiv:2112.12371). Whoever draws images out of the members knows of each
for which class it was made. With u_y(x) the share of image x that was made for class y, the logits
of member i masked to the classes it knows, and a_i(y) how well it learnt class y, 0 if not at all,

    p(c|x)  =  sum_y u_y(x)  sum_i a_i(y) softmax_i(c|x)  /  sum_i a_i(y)

so that those judge an image who know what it was made for, the better ones more. Of images from
elsewhere nothing is known; there each is believed about its own classes:

    p(c|x)  ~  sum_i a_i(c) softmax_i(c|x)  /  sum_i a_i(c)

(The energies that tell the familiar from the strange, Liu et al. 2020, arXiv:2010.03759, do not
survive distillation, which sees logits up to a constant; CONTRIBUTING.md has the figures.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from genkd.canonical import canonical_json
from genkd.digest import sha256_bytes
from genkd.teacher import Teacher

# Least weight and probability: logarithms stay finite, in bf16 too.
LEAST = 1e-6


@dataclass(frozen=True)
class Member:
    """A student in an ensemble.

    Attributes:
        student: Asked about the classes it knows only; its card is the ensemble's but for mean,
            deviation and architecture.
        competence: a_i, in (0, 1], of each class it knows, in the order of `student.known`.
    """

    student: Teacher
    competence: tuple[float, ...]


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

    trust: Tensor

    def __init__(self, members: Sequence[Member]) -> None:
        super().__init__()
        self._members = nn.ModuleList([member.student for member in members])
        self.card = members[0].student.card
        self.sha256 = ensemble_sha256([member.student.sha256 for member in members])
        competence = torch.zeros(len(members), self.card.spec.num_classes)
        for row, member in zip(competence, members, strict=True):
            row[list(member.student.known)] = torch.tensor(member.competence)
        self.known = tuple(competence.any(0).nonzero().flatten().tolist())
        # Whom to believe about a class: (N, K), columns sum to 1, or to 0 if nobody knows it.
        self.register_buffer("trust", competence / competence.sum(0).clamp_min(LEAST))

    @property
    def members(self) -> tuple[Teacher, ...]:
        """The students."""
        return tuple(self._members)  # type: ignore[arg-type]

    def forward(self, images: Tensor) -> Tensor:
        """Log p (B, K) of images (B, C, H, W) in [0, 1] of which nothing else is known."""
        says = (self.trust * self._answers(images)).sum(1)  # (B, K)
        return (says / says.sum(1, keepdim=True)).clamp_min(LEAST).log()

    def answer(self, images: Tensor, shares: Tensor) -> Tensor:
        """Log p (B, K) of images that were made for known classes.

        Args:
            images: (B, C, H, W) in [0, 1].
            shares: (B, K), of which classes each image was made, classes that some member knows;
                rows sum to 1.
        """
        judges = shares @ self.trust.T  # (B, N), rows sum to 1
        return (judges.unsqueeze(2) * self._answers(images)).sum(1).clamp_min(LEAST).log()

    def _answers(self, images: Tensor) -> Tensor:
        """What each member says, (B, N, K): rows sum to 1, nothing for what it does not know."""
        return torch.stack([member(images).float().softmax(1) for member in self._members], 1)


def ensemble_sha256(digests: Sequence[str]) -> str:
    """The digest by which an ensemble is known: of the sorted list of its members' files."""
    return sha256_bytes(canonical_json(sorted(digests)))
