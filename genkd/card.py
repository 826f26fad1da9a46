"""Cards: what one must know about a classifier besides its weights, and their JSON.

    card = ModelCard(ModelSpec("resnet8", 10, 1), InputCard(32, 32, 1, (0.5,), (0.5,)))
    assert card_from_json(card_to_json(card)) == card

Nobody can guess from weights alone which image size a network was trained on and how its inputs
were normalised, so the card travels with every model, in the file's metadata.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TypeGuard

from genkd.errors import InputFileRefused, UsageError

CARD_VERSION = 1
MAX_CLASSES = 100_000
MAX_CHANNELS = 64
MAX_SIDE = 4096
MAX_CLASS_NAME = 200
MAX_DESCRIPTION = 2000
ARCHITECTURE = re.compile(r"((torchvision|timm):)?[A-Za-z0-9._-]{1,100}")
DECIMAL = re.compile(r"-?[0-9]{1,20}(\.[0-9]{1,20})?(e-?[0-9]{1,3})?")
INPUT_FLAGS = "--input-size 32x32 --mean 0.5 --std 0.5"


@dataclass(frozen=True)
class ModelSpec:
    """What is needed to build a network, and nothing else.

    Attributes:
        architecture: A name of `known_architectures`, or `torchvision:NAME`, `timm:NAME`.
        num_classes: K, the length of the logits, at least 2.
        in_channels: C of the images, at least 1 (1 gray, 3 colour).
    """

    architecture: str
    num_classes: int
    in_channels: int

    def __post_init__(self) -> None:
        if not 2 <= self.num_classes <= MAX_CLASSES:
            raise UsageError(
                f"{self.num_classes} classes: a classifier has 2 to {MAX_CLASSES}",
                hint="give the number of classes the teacher was trained on",
            )
        if not 1 <= self.in_channels <= MAX_CHANNELS:
            raise UsageError(
                f"{self.in_channels} image channels: 1 to {MAX_CHANNELS} are supported",
                hint="1 for gray images, 3 for colour",
            )


@dataclass(frozen=True)
class InputCard:
    """The images a network takes, as floats in [0, 1], and how it normalises them.

    The network sees `(image - mean) / std`, channel by channel.

    Attributes:
        height: H, pixels.
        width: W, pixels.
        channels: C.
        mean: One per channel, in the units of [0, 1] images.
        std: One per channel, above 0.
    """

    height: int
    width: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if not (1 <= self.height <= MAX_SIDE and 1 <= self.width <= MAX_SIDE):
            raise UsageError(
                f"images of {self.height}x{self.width} pixels: sides are 1 to {MAX_SIDE}",
                hint="give the size the network was trained on, height x width: --input-size 32x32",
            )
        if not 1 <= self.channels <= MAX_CHANNELS:
            raise UsageError(
                f"{self.channels} image channels: 1 to {MAX_CHANNELS} are supported",
                hint="1 for gray images, 3 for colour",
            )
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != self.channels:
                raise UsageError(
                    f"{len(values)} values of {name} for images of {self.channels} channel(s)",
                    hint=f"give one per channel, with commas: --{name} "
                    + ",".join(["0.5"] * min(self.channels, 4)),
                )
            if not all(math.isfinite(value) and abs(value) < 1e6 for value in values):
                raise UsageError(
                    f"{name} is not a finite number", hint="images are floats in [0, 1]"
                )
        if min(self.std) <= 0:
            raise UsageError(
                "std must be above 0", hint="give the standard deviation of images in [0, 1]"
            )

    @classmethod
    def from_text(cls, size: str, mean: str, std: str) -> InputCard:
        """The card of the flags `--input-size 32x32 --mean 0.5 --std 0.5`.

        Args:
            size: HxW, or CxHxW. Without C, the number of means tells it.
            mean: One number per channel, with commas; a single one counts for all channels.
            std: As `mean`.

        Raises:
            UsageError: If they do not fit.
        """
        match = re.fullmatch(r"(?:([0-9]{1,3})x)?([0-9]{1,5})x([0-9]{1,5})", size.strip())
        if not match:
            raise UsageError(
                f"--input-size {size[:40]!r} is not a size", hint="for example 32x32 or 3x224x224"
            )
        means, stds = _numbers("mean", mean), _numbers("std", std)
        channels = int(match[1]) if match[1] else max(len(means), len(stds))
        means, stds = (
            values * channels if len(values) == 1 and channels <= MAX_CHANNELS else values
            for values in (means, stds)
        )
        return cls(int(match[2]), int(match[3]), channels, means, stds)


def _numbers(flag: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise UsageError(
            f"--{flag} {text[:40]!r} is not a list of numbers",
            hint=f"for example --{flag} 0.5 or --{flag} 0.49,0.48,0.45",
        ) from error


@dataclass(frozen=True)
class ModelCard:
    """What one must know about a classifier besides its weights.

    Attributes:
        spec: How to build it.
        input: The images it takes; as many channels as the spec.
        class_names: A name per class, in the order of the logits, or None.
        description: Free text in one line.
    """

    spec: ModelSpec
    input: InputCard
    class_names: tuple[str, ...] | None = None
    description: str = ""

    def __post_init__(self) -> None:
        if self.spec.in_channels != self.input.channels:
            raise UsageError(
                f"{self.spec.architecture} takes images of {self.spec.in_channels} channel(s), "
                f"the input card says {self.input.channels}",
                hint="give one mean and one std per channel",
            )
        names = self.class_names
        if names is not None and len(names) != self.spec.num_classes:
            raise UsageError(
                f"{len(names)} class names for {self.spec.num_classes} classes",
                hint="name every class once, in the order of the logits",
            )
        # Names and descriptions end up in terminals and reports: no control characters.
        texts = [(name, MAX_CLASS_NAME) for name in names or ()]
        for text, limit in [*texts, (self.description, MAX_DESCRIPTION)]:
            if len(text) > limit or not text.isprintable():
                raise UsageError(
                    f"the text {text[:40]!a} is too long or not printable",
                    hint=f"class names have at most {MAX_CLASS_NAME} characters, one line",
                )


def card_to_json(card: ModelCard) -> dict[str, object]:
    """`card` as plain values with a canonical form: floats are their shortest decimal strings."""
    return {
        "v": CARD_VERSION,
        "architecture": card.spec.architecture,
        "num_classes": card.spec.num_classes,
        "input": {
            "height": card.input.height,
            "width": card.input.width,
            "channels": card.input.channels,
            "mean": [repr(float(value)) for value in card.input.mean],
            "std": [repr(float(value)) for value in card.input.std],
        },
        "class_names": None if card.class_names is None else list(card.class_names),
        "description": card.description,
    }


def card_from_json(value: object) -> ModelCard:
    """The card that `value`, parsed from somebody's JSON, describes.

    `class_names` and `description` may be left out, and means and standard deviations may be plain
    numbers: people write cards by hand.

    Raises:
        InputFileRefused: If a field is missing, unknown, of the wrong type or out of range, or the
            version is not known.
    """
    try:
        return _card(value)
    except (ValueError, OverflowError, UsageError) as error:
        hint = (
            error.hint if isinstance(error, UsageError) else "compare with a card of this project"
        )
        raise InputFileRefused(f"the model card is not valid: {error}", hint=hint) from error


def _card(value: object) -> ModelCard:
    if isinstance(value, dict) and value.get("v") != CARD_VERSION:
        raise ValueError(f'it must say "v": {CARD_VERSION}; this version knows no other')
    optional = {"class_names", "description"}
    fields = _object("card", value, {"v", "architecture", "num_classes", "input"}, optional)
    image = _object("input", fields["input"], {"height", "width", "channels", "mean", "std"})
    channels = _integer("channels", image["channels"])
    architecture = fields["architecture"]
    if not isinstance(architecture, str) or not ARCHITECTURE.fullmatch(architecture):
        raise ValueError("architecture is not a name")
    names, description = fields.get("class_names"), fields.get("description", "")
    if names is not None and not _is_texts(names):
        raise ValueError("class_names is not a list of texts")
    if not isinstance(description, str):
        raise ValueError("description is not a text")
    return ModelCard(
        ModelSpec(architecture, _integer("num_classes", fields["num_classes"]), channels),
        InputCard(
            _integer("height", image["height"]),
            _integer("width", image["width"]),
            channels,
            _floats("mean", image["mean"]),
            _floats("std", image["std"]),
        ),
        None if names is None else tuple(names),
        description,
    )


def _object(
    name: str, value: object, required: set[str], optional: set[str] | None = None
) -> dict[str, object]:
    if not isinstance(value, dict):
        raise ValueError(f"{name} is not an object")
    if missing := required - value.keys():
        raise ValueError(f"{name} lacks {', '.join(sorted(missing))}")
    if unknown := value.keys() - required - (optional or set()):
        raise ValueError(f"{name} has the unknown field {min(unknown)[:40]!a}")
    return value


def _integer(name: str, value: object) -> int:
    if type(value) is not int:  # a bool is an int to isinstance
        raise ValueError(f"{name} is not a whole number")
    return value


def _floats(name: str, value: object) -> tuple[float, ...]:
    if not isinstance(value, list) or len(value) > MAX_CHANNELS:
        raise ValueError(f"{name} is not a list of at most {MAX_CHANNELS} numbers")
    numbers = []
    for item in value:
        decimal = isinstance(item, str) and DECIMAL.fullmatch(item)
        if not decimal and type(item) not in (int, float):
            raise ValueError(f"{name} is not a list of decimal numbers")
        numbers.append(float(item))
    return tuple(numbers)


def _is_texts(value: object) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)
