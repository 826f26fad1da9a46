"""What is known about a teacher file besides its weights, and who says so.

    spec = find_spec(path, header, architecture="torchvision:resnet18", num_classes=10)

Asked in this order, and the first that names an architecture counts: the command line; a card in
FILE.json beside FILE.safetensors; a card in the file's own metadata; a timm-style config.json in
the same folder. What the command line says of classes and images always counts. A bare
file's names and shapes only lead to a proposal (`genkd.fingerprint`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from genkd.canonical import parse_json
from genkd.card import ARCHITECTURE, INPUT_FLAGS, InputCard, ModelCard, ModelSpec, card_from_json
from genkd.errors import ConfigurationError, InputFileRefused, UsageError
from genkd.fingerprint import (
    dimensions_in_file,
    expected_by,
    find_architectures,
    require_match,
    shapes_in_file,
)
from genkd.safetensors_header import OUR_METADATA, Header, open_source, source_name
from genkd.weights import read_card

MAX_JSON_BYTES = 2**20
COMMAND_LINE = "--arch"


@dataclass(frozen=True)
class TeacherSpec:
    """What is known so far; None where nobody said.

    Attributes:
        architecture: As in `genkd.card.ModelSpec`.
        num_classes: K.
        in_channels: C, if something other than the input card says it.
        input: The images it takes.
        class_names: A name per class.
        description: Free text in one line.
        found_in: Who named the architecture: "--arch", the name of a file, or None.
        input_found_in: Who named the input card, likewise.
    """

    architecture: str | None = None
    num_classes: int | None = None
    in_channels: int | None = None
    input: InputCard | None = None
    class_names: tuple[str, ...] | None = None
    description: str = ""
    found_in: str | None = None
    input_found_in: str | None = None


def find_spec(
    path: Path,
    header: Header,
    *,
    architecture: str | None = None,
    num_classes: int | None = None,
    input_card: InputCard | None = None,
) -> TeacherSpec:
    """Put together what the arguments and the files around `path` say.

    Args:
        path: The teacher file.
        header: Its checked header.
        architecture: What the command line says, if anything.
        num_classes: Likewise.
        input_card: Likewise.

    Raises:
        InputFileRefused: If a card or config.json is there and not valid.
    """
    stated = _from_sidecar(path) or _from_metadata(header) or _from_config(path) or TeacherSpec()
    if architecture is not None:
        # Another architecture than the card's: what the card says of classes may be stale too.
        same = architecture == stated.architecture
        if not same:
            stated = TeacherSpec(input=stated.input, input_found_in=stated.input_found_in)
        found_in: str | None = COMMAND_LINE
    else:
        architecture, found_in = stated.architecture, stated.found_in
    return _with_arguments(
        replace(stated, architecture=architecture, found_in=found_in), num_classes, input_card
    )


def find_black_box_spec(
    path: Path,
    carried: ModelCard | None,
    *,
    num_classes: int | None = None,
    input_card: InputCard | None = None,
) -> TeacherSpec:
    """As `find_spec`, of a file that is its own architecture (ONNX).

    Args:
        path: The file; its card may lie in FILE.json beside it.
        carried: The card in its metadata. It counts before one beside the file: whoever wrote it
            there put the normalisation into the graph too.
        num_classes: What the command line says, if anything.
        input_card: Likewise.

    Raises:
        InputFileRefused: If a card is there and not valid.
        UsageError: If the command line says of its images something else than the carried card.
    """
    if carried is not None and input_card not in (None, carried.input):
        raise UsageError(
            f"{path.name} carries its card, and its normalisation too",
            hint="leave out --input-size, --mean and --std",
        )
    if carried is not None:
        stated = _of_card(carried, "the file's metadata")
    else:
        stated = _from_sidecar(path) or TeacherSpec()
    return _with_arguments(stated, num_classes, input_card)


def _with_arguments(
    stated: TeacherSpec, num_classes: int | None, input_card: InputCard | None
) -> TeacherSpec:
    """What the command line says of classes and images counts before what files say."""
    keep_names = num_classes in (None, stated.num_classes)
    return replace(
        stated,
        num_classes=num_classes if num_classes is not None else stated.num_classes,
        input=input_card or stated.input,
        class_names=stated.class_names if keep_names else None,
        input_found_in="--input-size" if input_card else stated.input_found_in,
    )


def _of_card(card: ModelCard, found_in: str) -> TeacherSpec:
    return TeacherSpec(
        architecture=card.spec.architecture,
        num_classes=card.spec.num_classes,
        input=card.input,
        class_names=card.class_names,
        description=card.description,
        found_in=found_in,
        input_found_in=found_in,
    )


def _from_sidecar(path: Path) -> TeacherSpec | None:
    sidecar = path.with_suffix(".json")
    value = _read_json(sidecar)
    if value is None:
        return None
    try:
        return _of_card(card_from_json(value), sidecar.name)
    except InputFileRefused as error:
        raise InputFileRefused(
            f"{source_name(sidecar)}: {error.message}",
            hint=f"correct or move this file; it stands beside {path.name}",
        ) from error


def _from_metadata(header: Header) -> TeacherSpec | None:
    if OUR_METADATA not in header.metadata:
        return None
    card = read_card(header)
    return None if card is None else _of_card(card, "the file's metadata")


def _from_config(path: Path) -> TeacherSpec | None:
    """A config.json as timm writes; only `architecture`, `num_classes`, `model_args` are read."""
    config = path.with_name("config.json")
    value = _read_json(config)
    if not isinstance(value, dict) or not isinstance(value.get("architecture"), str):
        return None  # somebody else's config.json
    architecture, classes = value["architecture"], value.get("num_classes")
    arguments = value.get("model_args") or {}
    if not ARCHITECTURE.fullmatch(f"timm:{architecture}") or not isinstance(arguments, dict):
        raise _bad_config(config, "its architecture or model_args is not valid")
    if unknown := arguments.keys() - {"in_chans", "num_classes"}:
        raise _bad_config(config, f"model_args {min(unknown)[:40]!a} is not supported")
    classes = arguments.get("num_classes", classes)
    channels = arguments.get("in_chans")
    if not all(number is None or type(number) is int for number in (classes, channels)):
        raise _bad_config(config, "num_classes or in_chans is not a whole number")
    return TeacherSpec(
        architecture=f"timm:{architecture}",
        num_classes=classes,
        in_channels=channels,
        found_in=config.name,
    )


def _bad_config(config: Path, reason: str) -> InputFileRefused:
    return InputFileRefused(
        f"{source_name(config)}: {reason}",
        hint="give --arch and --num-classes in place of this file, or use --factory",
    )


def _read_json(path: Path) -> object:
    """The JSON in `path`, or None if there is no such file."""
    if not path.exists():
        return None
    with open_source(path, MAX_JSON_BYTES) as opened:
        data = opened.handle.read(MAX_JSON_BYTES)
    try:
        return parse_json(data, allow_floats=True)
    except ValueError as error:
        raise InputFileRefused(
            f"{source_name(path)} is not valid JSON: {error}",
            hint="correct this file, or move it away",
        ) from error


def resolve_card(spec: TeacherSpec, header: Header) -> ModelCard:
    """The complete card of a file, whose names and shapes fit it.

    Args:
        spec: From `find_spec`.
        header: The file's header.

    Raises:
        InputFileRefused: If the file does not fit the architecture.
        ConfigurationError: If nobody says which architecture it is or which images it takes.
        UsageError: If there is no such architecture.
    """
    if spec.architecture is None:
        raise _unknown_architecture(header)
    model = model_spec(spec, header)
    described = f"{model.architecture} with {model.num_classes} classes"
    require_match(expected_by(model), header, described)
    if spec.input is None:
        raise unknown_input(header)
    return ModelCard(model, spec.input, spec.class_names, spec.description)


def model_spec(spec: TeacherSpec, header: Header) -> ModelSpec:
    """The network of a spec whose architecture is known; what nobody said is read off the shapes.

    Raises:
        UsageError: If the command line names an architecture that does not exist.
        InputFileRefused: If a file does.
    """
    architecture = spec.architecture or ""
    shapes, _ = shapes_in_file(header)
    try:
        classes, channels = dimensions_in_file(architecture, shapes)
    except UsageError as error:
        if spec.found_in == COMMAND_LINE:
            raise
        raise InputFileRefused(
            f"{header.source}: {spec.found_in} names its network, but {error.message}",
            hint=error.hint,
        ) from error
    # A file of another architecture may hold neither; comparing names and shapes then says so.
    return ModelSpec(
        architecture,
        spec.num_classes or classes or 2,
        (spec.input.channels if spec.input else spec.in_channels) or channels or 3,
    )


def _unknown_architecture(header: Header) -> ConfigurationError:
    found = find_architectures(shapes_in_file(header)[0])
    if not found:
        return ConfigurationError(
            f"{header.source} does not say which network it is, and it looks like none known here",
            hint="give --arch torchvision:NAME or timm:NAME, or --factory module:function",
        )
    name, classes = found[0].architecture, found[0].num_classes
    return ConfigurationError(
        f"{header.source} does not say which network it is; it looks like {name}, "
        f"num_classes={classes}",
        hint=f"if it is, confirm it with: --arch {name} --num-classes {classes}",
    )


def unknown_input(header: Header) -> ConfigurationError:
    """The error for a file of which nobody says what images it takes."""
    return ConfigurationError(
        f"{header.source} does not say which images it takes",
        hint=f"give size, mean and std of its training images in [0, 1]: {INPUT_FLAGS}",
    )
