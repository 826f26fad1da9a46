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
from genkd.ensemble import Ensemble
from genkd.errors import ConfigurationError
from genkd.frozen_prior import FrozenPrior
from genkd.generative_model import GenerativeModel
from genkd.pixel_synthesis import PixelSynthesiser
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
    prior: GenerativeModel | None = None,
) -> SynthesisMethod:
    """What makes images the way the recipe says.

    Args:
        teacher: On the device, in channels-last memory.
        recipe: Its `method`, and what that reads.
        device: Where.
        generator: Source of everything random there, on the device.
        label_embeddings: float32 (K, e) for the method nayer; None: the teacher's last layer.
        prior: What the method frozen-prior draws on; for no other.

    Raises:
        ConfigurationError: If the method cannot work with this teacher or takes no embeddings.
    """
    require_embeddings_fit(recipe, label_embeddings is not None)
    if recipe.method == "genkd":
        return Synthesiser(teacher, recipe, device, generator)
    if recipe.method == "genkd-pixel":
        return PixelSynthesiser(teacher, recipe, device, generator)
    if prior is not None:
        return FrozenPrior(teacher, recipe, device, generator, prior)
    if recipe.method == "nayer":
        return Nayer(teacher, recipe, device, generator, label_embeddings)
    return BASELINES[recipe.method](teacher, recipe, device, generator)


def make_synthesisers(
    teacher: Teacher | Ensemble,
    recipe: Recipe,
    device: Device,
    generator: torch.Generator,
    label_embeddings: Tensor | None = None,
    prior: GenerativeModel | None = None,
) -> list[SynthesisMethod]:
    """Those that take turns to make images: GenKD draws out of all members of an ensemble at once.

    The field's methods know one teacher only. Arguments and errors as of `make_synthesiser`.
    """
    if recipe.method == "genkd":
        return [Synthesiser(teacher, recipe, device, generator)]
    return [
        make_synthesiser(one, recipe, device, generator, label_embeddings, prior)
        for one in teacher.members
    ]


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
