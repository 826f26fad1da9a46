"""The one place that knows which class is which method.

synthesiser = make_synthesiser(teacher, recipe, device, generator)
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from genkd.baselines.adversarial import Dfad, Zskt
from genkd.baselines.baseline import Baseline
from genkd.baselines.dafl import Dafl
from genkd.baselines.deepinversion import DeepInversion
from genkd.baselines.dfq import Dfq
from genkd.baselines.fastdfkd import FastDfkd
from genkd.baselines.nayer import Nayer
from genkd.baselines.noise import Noise
from genkd.device import Device
from genkd.errors import ConfigurationError
from genkd.recipe import Recipe
from genkd.synthesis import Synthesiser, SynthesisMethod
from genkd.teacher import Teacher

BASELINES: Mapping[str, type[Baseline]] = {
    "noise": Noise,
    "deepinversion": DeepInversion,
    "dafl": Dafl,
    "dfad": Dfad,
    "zskt": Zskt,
    "dfq": Dfq,
    "fastdfkd": FastDfkd,
    "nayer": Nayer,
}


def make_synthesiser(
    teacher: Teacher,
    recipe: Recipe,
    device: Device,
    generator: torch.Generator,
    label_embeddings: Tensor | None = None,
) -> SynthesisMethod:
    """What makes images the way the recipe says.

    Args:
        teacher: On the device, in channels-last memory.
        recipe: Its `method`, and what that reads.
        device: Where.
        generator: Source of everything random there, on the device.
        label_embeddings: float32 (K, e) for the method nayer; None: the teacher's last layer.

    Raises:
        ConfigurationError: If the method cannot work with this teacher or takes no embeddings.
    """
    require_embeddings_fit(recipe, label_embeddings is not None)
    if recipe.method == "genkd":
        return Synthesiser(teacher, recipe, device, generator)
    if recipe.method == "nayer":
        return Nayer(teacher, recipe, device, generator, label_embeddings)
    return BASELINES[recipe.method](teacher, recipe, device, generator)


def require_embeddings_fit(recipe: Recipe, given: bool) -> None:
    """Refuse label embeddings that the method would not read.

    Raises:
        ConfigurationError: If they are given and it would not.
    """
    if given and recipe.method != "nayer":
        raise ConfigurationError(
            f"the method {recipe.method} takes no file of label embeddings",
            hint="use --method nayer, or leave the file out",
        )
