"""NAYER: chance comes from a layer that starts anew for every batch, not from the input.

Tran et al. 2024, "NAYER: noisy layer data generation for efficient and effective data-free
knowledge distillation" (arXiv:2310.00258), sections 3.2 and 3.3, equations 3 to 6:

    x = G(Z(e_y)),    Z = Linear(BatchNorm(e)),    Z drawn anew for every batch
    min over G, Z of  a_oh CE(T, y) + a_bn r_BN - a_adv mean(mask KL(T || S))

e_y is the embedding of the label's text, the same in every batch; one Z makes one image of each
class (the paper's K-to-1 noisy layer), so a batch holds B / K of them, side by side. As in the
authors' code (https://github.com/tmtuan1307/NAYER, datafree/synthesis/nayer.py and run/*.sh), Z's
weights are drawn from N(0, 1), Adam starts anew with every batch, and G with every
`generator_rounds` of them; weights and shifts as FastDFKD's, rate 4e-3, 30 steps for CIFAR-10.

How we differ: without a file of text embeddings the rows of the teacher's last layer, less what
they have in common, stand in for them; BatchNorm of Z has no scale of its own, as the linear layer
behind it has one; the last step's images are kept, not those of the lowest loss. Without BatchNorm
in the teacher r_BN is zero and the rest remains.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from genkd.baselines.baseline import Baseline, Losses
from genkd.baselines.fastdfkd import inversion_losses
from genkd.device import Device
from genkd.errors import InputFileRefused
from genkd.generator import distinct, label_embeddings
from genkd.recipe import Recipe
from genkd.safetensors_header import TEACHER_FILE
from genkd.synthesis import ADAM_BETAS
from genkd.teacher import Teacher
from genkd.weights import read_tensors

LONGEST = 65_536  # values of an embedding
LEAST_VARIANCE = 1e-5  # as BatchNorm


class Nayer(Baseline):
    """`generator_steps` Adam steps a round, on the generator and on new noisy layers.

    Args:
        teacher: On the device, in channels-last memory.
        recipe: What to do.
        device: Where.
        generator: Source of everything random here, on the device.
        embeddings: float32 (K, e), of all classes of the card. None: the teacher's last layer, or
            one-hot if it has none.
    """

    def __init__(
        self,
        teacher: Teacher,
        recipe: Recipe,
        device: Device,
        generator: torch.Generator,
        embeddings: Tensor | None = None,
    ) -> None:
        super().__init__(teacher, recipe, device, generator)
        if embeddings is None:
            rows = label_embeddings(teacher, len(teacher.places))
            asked = distinct(rows[[teacher.places.index(one) for one in teacher.known]])
        else:
            asked = embeddings[list(teacher.known)]
        self.inputs = normalise(asked).to(device.torch)  # (known, e)
        self.network = self._new_generator()

    def _remembered(self) -> Mapping[str, nn.Module | torch.optim.Optimizer]:
        return {"generator": self.network}

    def _make(self, student: nn.Module, steer: bool) -> tuple[Tensor, Losses]:
        if self.recipe.generator_rounds and self.rounds % self.recipe.generator_rounds == 0:
            self.network.reinitialise(self.random)
        labels = self._labels()
        layers = self._noisy_layers()
        row = torch.searchsorted(self.known, labels)  # `known` is sorted
        # The n-th image of a class comes from the n-th layer.
        same = labels.unsqueeze(0) == labels.unsqueeze(1)
        layer = same.tril(-1).sum(1)
        optimizer = torch.optim.Adam(
            [*self.network.parameters(), *layers], lr=self.recipe.generator_rate, betas=ADAM_BETAS
        )
        losses: Losses = {}
        self.network.train()
        for _ in range(self.recipe.generator_steps):
            images = self._draw(self.network, apply_layers(*layers, self.inputs)[layer, row])
            objective, losses = inversion_losses(self, self._shown(images), labels, student, steer)
            optimizer.zero_grad(set_to_none=True)
            objective.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            losses = {**losses, "objective": objective}
        with torch.no_grad():
            return self._draw(self.network, apply_layers(*layers, self.inputs)[layer, row]), losses

    def _noisy_layers(self) -> tuple[Tensor, Tensor]:
        """Weights (L, e, d) from N(0, 1) and biases (L, d) of zero, L = B / K."""
        count, latent_dim = -(-self.batch // len(self.known)), self.recipe.latent_dim
        weight = self._noise(count, self.inputs.shape[1], latent_dim)
        return weight.requires_grad_(), weight.new_zeros(count, latent_dim).requires_grad_()


def apply_layers(weight: Tensor, bias: Tensor, inputs: Tensor) -> Tensor:
    """Every noisy layer on every class: (L, e, d), (L, d) and (K, e) to (L, K, d)."""
    return torch.einsum("ke,led->lkd", inputs, weight) + bias.unsqueeze(1)


def normalise(embeddings: Tensor) -> Tensor:
    """What BatchNorm makes of all classes' embeddings (K, e); of a single class it would be 0."""
    if len(embeddings) < 2:
        return embeddings
    variance, mean = torch.var_mean(embeddings, 0, correction=0)
    return (embeddings - mean) / (variance + LEAST_VARIANCE).sqrt()


def read_label_embeddings(path: str | Path, num_classes: int) -> tuple[Tensor, str]:
    """The label embeddings in a safetensors file, for example of a language model.

    Args:
        path: Holds one tensor, float32 (K, e), the rows in the order of the teacher's classes.
        num_classes: K.

    Returns:
        The tensor on the CPU, and the file's sha256 in hex.

    Raises:
        InputFileRefused: If it does not hold just that, or values that are not finite.
    """
    loaded = read_tensors(path, TEACHER_FILE)
    tensors = list(loaded.tensors.values())
    table = tensors[0]
    if (
        len(tensors) != 1
        or table.dtype != torch.float32
        or table.dim() != 2
        or len(table) != num_classes
        or not 1 <= table.shape[1] <= LONGEST
    ):
        raise InputFileRefused(
            f"{loaded.header.source} does not hold label embeddings of {num_classes} classes",
            hint=f"store one float32 tensor of shape ({num_classes}, e), a row a class",
        )
    return table, loaded.sha256
