"""Cards of generative models: what is needed to build one, and what it draws; and their JSON.

card = GenerativeCard("vae", latent_dim=32, num_classes=10, channels=1, height=28, width=28)
assert generative_card_from_json(generative_card_to_json(card), "prior.safetensors") == card
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Literal, get_args

from genkd.errors import InputFileRefused, UsageError

Family = Literal["vae", "gan", "latent-ebm", "pixel-ebm"]
FAMILIES: tuple[Family, ...] = get_args(Family)
CARD_VERSION = 1
MAX_DESCRIPTION = 2000
# Networks of these sizes are small enough to be built while a file is checked.
CARD_BOUNDS = {
    "latent_dim": (0, 1024),
    "num_classes": (0, 1000),
    "channels": (1, 16),
    "height": (8, 512),
    "width": (8, 512),
    "base_channels": (1, 256),
}


@dataclass(frozen=True)
class GenerativeCard:
    """What is needed to build a generative model, and what it draws.

    Attributes:
        family: Which of the four.
        latent_dim: d of z; 0 of a pixel EBM, which has none.
        num_classes: K of the public data it was trained on; 0: unconditional.
        channels: C of the images.
        height: H, pixels.
        width: W, pixels.
        base_channels: Width of the networks.
        description: Free text in one line.
    """

    family: Family
    latent_dim: int
    num_classes: int
    channels: int
    height: int
    width: int
    base_channels: int = 16
    description: str = ""

    def __post_init__(self) -> None:
        if self.family not in FAMILIES:
            raise UsageError(
                f"there is no family {str(self.family)[:40]!a} of generative models",
                hint=f"use one of {', '.join(FAMILIES)}",
            )
        for name, (low, high) in CARD_BOUNDS.items():
            if not low <= getattr(self, name) <= high:
                raise UsageError(
                    f"a generative model with {name} = {getattr(self, name)}",
                    hint=f"{name} is from {low} to {high}",
                )
        if self.num_classes == 1 or (self.latent_dim == 0) != (self.family == "pixel-ebm"):
            raise UsageError(
                f"a {self.family} with {self.latent_dim} latent dimensions and "
                f"{self.num_classes} classes",
                hint="pixel-ebm has 0 latent dimensions, the others more; classes are 0, or 2 up",
            )
        if len(self.description) > MAX_DESCRIPTION or not self.description.isprintable():
            raise UsageError(
                "the description is too long or not printable",
                hint=f"one line of at most {MAX_DESCRIPTION} characters",
            )

    @property
    def conditions(self) -> int:
        """How many labels there are: K, or 1 without classes."""
        return max(1, self.num_classes)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.channels, self.height, self.width


def generative_card_to_json(card: GenerativeCard) -> dict[str, object]:
    """`card` as plain values with a canonical form."""
    return {"v": CARD_VERSION, **asdict(card)}


def generative_card_from_json(value: object, source: str) -> GenerativeCard:
    """The card that `value`, parsed from somebody's JSON, describes.

    Args:
        value: The parsed JSON.
        source: How messages call the file it is from.

    Raises:
        InputFileRefused: If a field is missing, unknown, of the wrong type or out of range, or the
            version is not known.
    """
    texts = ("family", "description")
    kinds = {f.name: str if f.name in texts else int for f in fields(GenerativeCard)}
    if (
        not isinstance(value, dict)
        or value.keys() != {"v", *kinds}
        or type(value["v"]) is not int  # a bool is an int to isinstance
        or value["v"] != CARD_VERSION
        or not all(type(value[name]) is kind for name, kind in kinds.items())
    ):
        raise InputFileRefused(
            f"the generative card of {source} is not one this version knows",
            hint="train the prior again, or update this program",
        )
    try:
        return GenerativeCard(**{name: value[name] for name in kinds})
    except UsageError as error:
        raise InputFileRefused(
            f"the generative card of {source} is not valid: {error}", hint=error.hint
        ) from error
