"""The student a federation starts from: what `--student SPEC` means.

    start = parse_student("resnet8-half", classes="shirt,shoe", image="1x32x32")
    start.model_file(seed=0)               # the bytes of a model file of this project

A SPEC is a model file (`.safetensors` with its card inside: its weights are the start), a card
(`.json`, as genkd writes `student.json`), or an architecture's name; the last two begin with fresh
weights, which follow from the seed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from genkd.canonical import parse_json
from genkd.card import InputCard, ModelCard, ModelSpec, card_from_json, card_to_json
from genkd.errors import InputFileRefused, UsageError
from genkd.provenance.release import SIZE_LIMITS, read_bounded
from genkd.provenance.statement import STUDENT_NAME
from genkd.weights import STUDENT_FILE, check_finite, read_card, read_header

MAX_TEXT_BYTES = 4 * 2**20  # 100,000 class names
# Of images in [0, 1] nobody has seen: their middle, and a spread that most data sets are near
# (0.23..0.35 in MNIST, Fashion-MNIST, CIFAR and ImageNet). The student's normalisation need not be
# the teachers': each model file carries its own.
MEAN, STD = "0.5", "0.25"
DESCRIPTION = "the start student of a federation"


@dataclass(frozen=True)
class StartStudent:
    """Where a federation starts.

    Attributes:
        card: What the students of the federation are; its classes are named.
        weights: The bytes of a model file to start from; None for fresh weights.
    """

    card: ModelCard
    weights: bytes | None = None

    def model_file(self, seed: int) -> bytes:
        """The model file, the same for the same seed.

        Raises:
            UsageError: If the architecture is unknown.
            InputFileRefused: If the file holds other tensors than its card says.
        """
        import torch

        from genkd.fingerprint import expected_by, require_match
        from genkd.models import build_model
        from genkd.weights import load_tensors, model_bytes

        generator = torch.Generator().manual_seed(seed)
        if self.weights is None:
            state = build_model(self.card.spec, generator=generator).state_dict()
        else:
            header = read_header(self.weights, STUDENT_FILE)
            name = f"{self.card.spec.architecture} with {self.card.spec.num_classes} classes"
            require_match(expected_by(self.card.spec), header, name)
            state = load_tensors(self.weights, header)
        return model_bytes(state, {"v": 1, "card": card_to_json(self.card)})


def parse_student(
    spec: str,
    *,
    classes: str | None = None,
    image: str | None = None,
    mean: str | None = None,
    std: str | None = None,
) -> StartStudent:
    """What `--student SPEC` and the flags beside it mean.

    Args:
        spec: A path that ends in .safetensors or .json, or an architecture's name.
        classes: Names with commas between them, or a file with one a line.
        image: CxHxW; with an architecture's name only, as `mean` and `std`.
        mean: One number per channel, or one for all; 0.5 if not said.
        std: As `mean`; 0.25 if not said.

    Raises:
        UsageError: If they do not fit together.
        InputFileRefused: If a file is missing or refused.
    """
    names = None if classes is None else class_names(classes)
    if not spec.endswith((".safetensors", ".json")):
        return StartStudent(_card_of_flags(spec, names, image, mean, std))
    if (image, mean, std) != (None, None, None):
        raise UsageError(
            "--image, --mean and --std stand in the card of the student already",
            hint="leave them out, or name an architecture as --student",
        )
    if not Path(spec).is_file():
        raise InputFileRefused(
            f"there is no file {spec}",
            hint="--student names a model file, a card or an architecture",
        )
    if spec.endswith(".json"):
        return StartStudent(_named(_card_in(Path(spec)), names))
    weights = read_bounded(Path(spec), SIZE_LIMITS[STUDENT_NAME])
    header = read_header(weights, STUDENT_FILE)
    check_finite(weights, header)
    card = read_card(header)
    if card is None:
        raise InputFileRefused(
            f"{spec} carries no model card", hint="name a student.safetensors that genkd wrote"
        )
    return StartStudent(_named(card, names), weights)


def student_of_flags(
    spec: str | None,
    *,
    classes: str | None = None,
    image: str | None = None,
    mean: str | None = None,
    std: str | None = None,
) -> StartStudent | None:
    """`parse_student` of flags that may all be left out.

    Raises:
        UsageError, InputFileRefused: As `parse_student`, and if there are others without a SPEC.
    """
    if spec is not None:
        return parse_student(spec, classes=classes, image=image, mean=mean, std=std)
    if any(one is not None for one in (classes, image, mean, std)):
        raise UsageError(
            "--classes, --image, --mean and --std say nothing without --student",
            hint="name the student too, or leave them out",
        )
    return None


def class_names(text: str) -> tuple[str, ...]:
    """The names in a list with commas, or in a file with one a line.

    Raises:
        UsageError: If there are fewer than two, or one stands twice.
        InputFileRefused: If the file cannot be read.
    """
    if "," in text:
        found = [name.strip() for name in text.split(",")]
    else:
        try:
            lines = read_bounded(Path(text), MAX_TEXT_BYTES).decode("utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise InputFileRefused(f"{text} is no text", hint="one class name a line") from error
        found = [line.strip() for line in lines if line.strip()]
    twice = next((name for name in found if found.count(name) > 1), None)
    if len(found) < 2 or "" in found or twice is not None:
        reason = "two at least, none empty" if twice is None else f"{twice[:40]!r} stands twice"
        raise UsageError(
            f"--classes {text[:60]!r} does not name the classes: {reason}",
            hint="for example --classes shirt,trouser,shoe, or a file with one name a line",
        )
    return tuple(found)


def _card_of_flags(
    architecture: str,
    names: tuple[str, ...] | None,
    image: str | None,
    mean: str | None,
    std: str | None,
) -> ModelCard:
    if names is None or image is None:
        raise UsageError(
            f"--student {architecture[:60]} alone does not say which classes and images",
            hint="add --classes shirt,trouser,shoe --image 1x32x32, or name a model file",
        )
    pixels = InputCard.from_text(image, mean or MEAN, std or STD)
    spec = ModelSpec(architecture, len(names), pixels.channels)
    return ModelCard(spec, pixels, names, DESCRIPTION)


def _card_in(path: Path) -> ModelCard:
    try:
        value = parse_json(read_bounded(path, MAX_TEXT_BYTES), allow_floats=True)
    except ValueError as error:
        raise InputFileRefused(
            f"{path} is no model card: {error}", hint="name a student.json that genkd wrote"
        ) from error
    return card_from_json(value)


def _named(card: ModelCard, names: tuple[str, ...] | None) -> ModelCard:
    """The card with its classes named: nodes that know different ones meet by name."""
    if card.class_names is None and names is None:
        raise UsageError(
            "the student's card does not name its classes", hint="name them with --classes"
        )
    if card.class_names is not None and names not in (None, card.class_names):
        raise UsageError(
            "--classes names others than the student's card", hint="leave --classes out"
        )
    return replace(card, class_names=card.class_names or names)
