"""Many students as one teacher: each says what it knows, and is believed where it knows.

    ensemble = Ensemble([Member(student, competence), ...])
    log_p = ensemble(images)

Members know different classes. A network that was never shown a class still answers, and often
surely, so the uniform average of an ensemble, like that of weights, is wrong where members differ
(DENSE, Zhang et al. 2022, arXiv:2112.12371). So each is believed about the classes it knows: with
softmax_i of member i's logits masked to those, and a_i(c) how well it learnt class c, 0 if not at
all,

    p(c|x)  ~  sum_i a_i(c) softmax_i(c|x)  /  sum_i a_i(c)

Two things that sound better are worse (CONTRIBUTING.md has the figures). The energies that tell the
familiar from the strange (Liu et al. 2020, arXiv:2010.03759) do not survive distillation, which
sees logits up to a constant. And whoever draws images out of the members knows for which class each
was made; but that is no function of the image, and a student that is told it learns less.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from genkd.canonical import canonical_json
from genkd.device import Constant
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

    @property
    def credited(self) -> tuple[int, ...]:
        """Classes that who learns from it may claim to have learnt."""
        return self.known

    @property
    def architecture(self) -> str:
        """What it is, for people."""
        return f"{len(self._members)} students"

    def forward(self, images: Tensor) -> Tensor:
        """Log p (B, K) of images (B, C, H, W) in [0, 1]."""
        says = (self.trust * self._answers(images)).sum(1)  # (B, K)
        return (says / says.sum(1, keepdim=True)).clamp_min(LEAST).log()

    def _answers(self, images: Tensor) -> Tensor:
        """What each member says, (B, N, K): rows sum to 1, nothing for what it does not know."""
        return torch.stack([member(images).float().softmax(1) for member in self._members], 1)


class TeacherWithMemory(Ensemble):
    """A teacher for the classes that it knows, an earlier student for the others.

    A student that starts from one of more classes would forget those that its teacher does not
    know. So images are drawn out of the earlier student too (generative replay, Shin et al. 2017,
    arXiv:1705.08690). Whether an image is of the teacher's classes at all, only the earlier student
    can say; which of them, the teacher says: with m(x) the earlier student's probability that x is
    of the teacher's classes,

        p(c|x) = m(x) softmax_teacher(c|x) of the teacher's classes, softmax_earlier(c|x) of others

    What the student then knows of the others is not this teacher's to claim.

    Args:
        teacher: Knows some of the classes of its card.
        earlier: Knows all of them, in the same order.
    """

    def __init__(self, teacher: Teacher, earlier: Teacher) -> None:
        others = [label for label in earlier.known if label not in teacher.known]
        members = (teacher, earlier.knowing(others))
        super().__init__([Member(one, (1.0,) * len(one.known)) for one in members])
        self.sha256 = teacher.sha256
        self.earlier = earlier
        self._own = Constant(self.credited)

    def forward(self, images: Tensor) -> Tensor:
        """Log p (B, K) of images (B, C, H, W) in [0, 1]."""
        own = self._own.on(images.device)
        says = self.earlier(images).float().softmax(1)
        among_own = self.members[0](images).float().softmax(1)[:, own]
        told = says[:, own].sum(1, keepdim=True) * among_own
        log_p: Tensor = says.index_copy(1, own, told).clamp_min(LEAST).log()
        return log_p

    @property
    def credited(self) -> tuple[int, ...]:
        """The teacher's own classes."""
        return self.members[0].known

    @property
    def architecture(self) -> str:
        """The teacher's."""
        return self.members[0].architecture


def ensemble_sha256(digests: Sequence[str]) -> str:
    """The digest by which an ensemble is known: of the sorted list of its members' files."""
    return sha256_bytes(canonical_json(sorted(digests)))
