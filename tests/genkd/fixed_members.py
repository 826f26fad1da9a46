"""Members of an ensemble that answer what they are told to."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from genkd.card import InputCard, ModelCard, ModelSpec
from genkd.digest import sha256_bytes
from genkd.ensemble import Member
from genkd.teacher import Teacher

CARD = ModelCard(
    ModelSpec("fixed", 3, 1), InputCard(1, 1, 1, (0.0,), (1.0,)), ("a", "b", "c"), "for tests"
)


class Saying(nn.Module):
    """Answers the same of every image."""

    def __init__(self, *logits: float) -> None:
        super().__init__()
        self.logits = torch.tensor(logits)

    def forward(self, images: Tensor) -> Tensor:
        return self.logits.expand(len(images), -1)


def member(
    *logits: float,
    knows: tuple[int, ...],
    competence: tuple[float, ...] | None = None,
) -> Member:
    student = Teacher(Saying(*logits), CARD, sha256_bytes(str(logits).encode())).knowing(knows)
    return Member(student, competence or (1.0,) * len(knows))
