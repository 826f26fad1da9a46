"""What a model file is, from its header alone: the answer of `genkd-node inspect`.

    inspection = inspect_file("teacher.safetensors")
    print(inspection.architecture, inspection.missing)

No weight is loaded into a network; the file is read once for its digest and to see that all
values are finite.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from genkd.card import INPUT_FLAGS, InputCard, ModelSpec
from genkd.digest import sha256_file
from genkd.errors import GenKDError
from genkd.fingerprint import find_architectures, shapes_in_file
from genkd.onnx_file import (
    OnnxFile,
    is_onnx,
    read_onnx,
    refuse_architecture,
    require_same,
    size_flags,
)
from genkd.safetensors_header import TEACHER_FILE, Header, read_header
from genkd.teacher_spec import (
    TeacherSpec,
    find_black_box_spec,
    find_spec,
    model_spec,
    resolve_card,
)
from genkd.weights import check_finite

SHOWN_METADATA = 200  # characters of a metadata value that are worth showing


@dataclass(frozen=True)
class Inspection:
    """What a file is and what is missing before it can be a teacher.

    Attributes:
        path: The file, as given.
        bytes: Its length.
        sha256: Its hex digest.
        tensors: Number of tensors.
        parameters: Number of values in all tensors, BatchNorm statistics included.
        dtypes: Number of tensors by dtype name.
        metadata: The file's metadata, values shortened to one printable line.
        architecture: Name of the network, or None if it is not known.
        found_in: Who names the architecture: "--arch", a file's name, "names and shapes" (then it
            is a proposal to confirm), or None.
        num_classes: K, or None.
        in_channels: C, or None.
        input: The images it takes, or None.
        input_found_in: Who names them, or None.
        class_names: A name per class, or None.
        description: Free text in one line.
        missing: What must still be said, as flags of the command line; empty if it can be used.
        problem: Why the file does not fit what is said of it, in one line, or None.
    """

    path: str
    bytes: int
    sha256: str
    tensors: int
    parameters: int
    dtypes: Mapping[str, int]
    metadata: Mapping[str, str]
    architecture: str | None
    found_in: str | None
    num_classes: int | None
    in_channels: int | None
    input: InputCard | None
    input_found_in: str | None
    class_names: tuple[str, ...] | None
    description: str
    missing: tuple[str, ...]
    problem: str | None

    def as_json(self) -> dict[str, object]:
        """The same as plain values for `--json`."""
        return asdict(self)


def inspect_file(
    path: str | Path,
    *,
    architecture: str | None = None,
    num_classes: int | None = None,
    input_card: InputCard | None = None,
) -> Inspection:
    """Say what a model file is.

    Args:
        path: A teacher or a student.
        architecture: What the command line says of it, as in `genkd.teacher.load_teacher`.
        num_classes: Likewise.
        input_card: Likewise.

    Raises:
        InputFileRefused: If it is not a valid safetensors file, holds values that are not finite,
            or a card beside it is not valid.
        UsageError: If there is no architecture of that name.
    """
    path = Path(path)
    if is_onnx(path):
        refuse_architecture(path, architecture)
        return _inspect_onnx(path, num_classes, input_card)
    header = read_header(path, TEACHER_FILE)
    check_finite(path, header)
    spec = find_spec(
        path, header, architecture=architecture, num_classes=num_classes, input_card=input_card
    )
    model, found_in = _model(spec, header)
    return Inspection(
        path=header.source,
        bytes=header.file_size,
        sha256=sha256_file(path),
        tensors=len(header.tensors),
        parameters=header.parameters,
        dtypes=dict(Counter(info.dtype for info in header.tensors.values())),
        metadata={_shown(key): _shown(text) for key, text in header.metadata.items()},
        architecture=model.architecture if model else None,
        found_in=found_in,
        num_classes=model.num_classes if model else spec.num_classes,
        in_channels=model.in_channels if model else None,
        input=spec.input,
        input_found_in=spec.input_found_in,
        class_names=spec.class_names,
        description=spec.description,
        missing=_missing(spec, model),
        problem=_problem(spec, model, header),
    )


def _inspect_onnx(path: Path, num_classes: int | None, input_card: InputCard | None) -> Inspection:
    """An ONNX file is its own architecture; nothing in it is run."""
    file = read_onnx(path)
    spec = find_black_box_spec(path, file.card, num_classes=num_classes, input_card=input_card)
    return Inspection(
        path=file.source,
        bytes=len(file.data),
        sha256=file.sha256,
        tensors=len(file.weights),
        parameters=file.parameters,
        dtypes=dict(Counter(weight.dtype for weight in file.weights)),
        metadata={_shown(key): _shown(text) for key, text in file.metadata.items()},
        architecture=spec.architecture or "onnx",
        found_in=spec.found_in or "the file's graph",
        num_classes=spec.num_classes or file.classes,
        in_channels=spec.input.channels if spec.input else file.channels,
        input=spec.input,
        input_found_in=spec.input_found_in,
        class_names=spec.class_names,
        description=spec.description,
        missing=() if spec.input else (size_flags(file),),
        problem=_misfit(file, spec),
    )


def _misfit(file: OnnxFile, spec: TeacherSpec) -> str | None:
    try:
        require_same(file, spec.input, spec.num_classes)
    except GenKDError as error:
        return error.message
    return None


def _model(spec: TeacherSpec, header: Header) -> tuple[ModelSpec | None, str | None]:
    if spec.architecture is not None:
        return model_spec(spec, header), spec.found_in
    found = find_architectures(shapes_in_file(header)[0])
    return (found[0], "names and shapes") if found else (None, None)


def _missing(spec: TeacherSpec, model: ModelSpec | None) -> tuple[str, ...]:
    missing = []
    if model is None:
        missing.append("--arch torchvision:NAME (or timm:NAME, or --factory module:function)")
    elif spec.architecture is None:
        missing.append(f"--arch {model.architecture} --num-classes {model.num_classes}")
    if spec.input is None:
        missing.append(INPUT_FLAGS)
    return tuple(missing)


def _problem(spec: TeacherSpec, model: ModelSpec | None, header: Header) -> str | None:
    """Why names, shapes and cards do not fit together, as loading would say it."""
    if model is None:
        return None
    image = spec.input or InputCard(
        32, 32, model.in_channels, (0.5,) * model.in_channels, (0.5,) * model.in_channels
    )
    complete = TeacherSpec(
        model.architecture,
        spec.num_classes or model.num_classes,
        input=image,
        class_names=spec.class_names,
    )
    try:
        resolve_card(complete, header)
    except GenKDError as error:
        return error.message
    return None


def _shown(text: str) -> str:
    short = text if len(text) <= SHOWN_METADATA else text[: SHOWN_METADATA - 1] + "…"
    return short if short.isprintable() else ascii(short)[1:-1]
