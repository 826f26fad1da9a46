"""DAFL: a generator whose images the teacher is sure of, that excite it, and are of all classes.

Chen et al. 2019, "Data-free learning of student networks" (arXiv:1904.01186), equations 1 to 6:

    L = L_oh + alpha L_a + beta L_ie,    alpha = 0.1, beta = 5 / ln 10
    L_oh = CE(T(x), argmax T(x))    L_a = -mean |f_T(x)|    L_ie = -H(mean_x softmax T(x))

f_T is what the teacher's last layer sees. No label goes in: G(z), z ~ N(0, I) of 1,000 dimensions;
no batch statistics, so BatchNorm is not needed.

As in the authors' code (https://github.com/huawei-noah/Efficient-Computing, DAFL-train.py) |f_T|
is the mean over features where the paper writes the norm, and H has no 1 / K; its logarithms are
decimal there, so that its weight of 5 is 5 / ln 10 in nats. How we differ: their generator ends in
tanh and a BatchNorm without scale and shift, ours in a sigmoid, as in the comparisons of later
authors (docs/tried.md has both); its Adam has DCGAN's momentum.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from genkd.baselines.baseline import GeneratorBaseline, Losses
from genkd.device import Device
from genkd.errors import ConfigurationError
from genkd.features import FeatureReader, last_layer
from genkd.losses import class_cross_entropy, class_entropy
from genkd.recipe import Recipe
from genkd.teacher import Teacher

ACTIVATION = 0.1  # alpha
ENTROPY = 5.0 / math.log(10)  # beta


class Dafl(GeneratorBaseline):
    """One generator, no labels, no student."""

    def __init__(
        self, teacher: Teacher, recipe: Recipe, device: Device, generator: torch.Generator
    ) -> None:
        super().__init__(teacher, recipe, device, generator)
        if last_layer(teacher, len(teacher.places)) is None:
            raise ConfigurationError(
                "the method dafl needs the features before a last layer with "
                f"{len(teacher.places)} outputs, and the teacher has no such layer",
                hint="use --method dfad or zskt, which ask the teacher for logits only",
            )
        self._reader = FeatureReader(teacher)

    def close(self) -> None:
        """Take the hooks off the teacher."""
        super().close()
        self._reader.remove()

    def _losses(self, images: Tensor, student: nn.Module, steer: bool) -> tuple[Tensor, Losses]:
        with self._reader:
            logits = self.ask(self.teacher, images)
            features = self._reader.features(logits)
        self.teacher_passes += len(images)
        label = class_cross_entropy(logits, logits.argmax(1))
        activation = activation_loss(features)
        entropy = -class_entropy(logits)
        objective = (
            self.recipe.label_loss_weight * label + ACTIVATION * activation + ENTROPY * entropy
        )
        return objective, {"label": label, "activation": activation, "entropy": entropy}


def activation_loss(features: Tensor) -> Tensor:
    """L_a = -mean |f|, of features (B, ...): real images excite more of what was learnt.

    Returns:
        Scalar, <= 0.
    """
    return -features.float().abs().mean()
