"""The strict reading of an ONNX file, before a runtime sees a byte of it.

    file = read_onnx(Path("model.onnx"))
    file.channels, file.height, file.width, file.classes      # None where the graph leaves it open

Allowed is one graph of standard operators from images (B, C, H, W) to logits (B, K), with all its
weights inside. Refused are weights in other files (a path that a stranger chose), operators that
need a library of their own, functions (a few nested ones expand to millions of nodes) and loops
(they need not end). No torch here: `genkd-node inspect` asks too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from genkd.canonical import parse_json
from genkd.card import INPUT_FLAGS, InputCard, ModelCard, card_from_json
from genkd.digest import sha256_bytes
from genkd.errors import InputFileRefused, UsageError
from genkd.onnx_packages import require_package
from genkd.safetensors_header import OUR_METADATA, open_source

SUFFIX = ".onnx"
# What protobuf can hold in one message; larger models keep their weights in other files.
MAX_ONNX_BYTES = 2**31 - 1
MAX_NODES = 100_000
STANDARD_DOMAINS = ("", "ai.onnx", "ai.onnx.ml")
LOOPS = ("Loop", "Scan", "SequenceMap")
# As `genkd.safetensors_header.DTYPE_BYTES` calls them.
DTYPES: Mapping[str, str] = {
    **{"FLOAT": "F32", "DOUBLE": "F64", "FLOAT16": "F16", "BFLOAT16": "BF16", "BOOL": "BOOL"},
    **{"INT8": "I8", "INT16": "I16", "INT32": "I32", "INT64": "I64"},
    **{"UINT8": "U8", "UINT16": "U16", "UINT32": "U32", "UINT64": "U64"},
}
EXPORT_AGAIN = "export the classifier again, for example with torch.onnx.export"

# onnx comes without types: a message of its protocol buffers.
Message = Any


@dataclass(frozen=True)
class OnnxWeight:
    """A constant of the graph: its dtype, as safetensors calls it, and its shape."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class OnnxFile:
    """A checked file.

    Attributes:
        data: Its bytes.
        sha256: Their hex digest.
        source: Its name for messages.
        input_name: Of the images.
        output_name: Of the logits.
        input_dtype: "F32" or "F16".
        batch: Images that one call takes, exactly; None: any number.
        channels: C, or None where the graph leaves it open; likewise the next ones.
        height: H, pixels.
        width: W, pixels.
        classes: K.
        weights: Its constants.
        metadata: Text by name, from whoever wrote it.
        card: If this project wrote the file: the card. Its normalisation is then part of the graph.
    """

    data: bytes
    sha256: str
    source: str
    input_name: str
    output_name: str
    input_dtype: str
    batch: int | None
    channels: int | None
    height: int | None
    width: int | None
    classes: int | None
    weights: tuple[OnnxWeight, ...]
    metadata: Mapping[str, str]
    card: ModelCard | None

    @property
    def parameters(self) -> int:
        """Number of values in all weights."""
        return sum(prod(weight.shape) for weight in self.weights)


def is_onnx(path: str | Path) -> bool:
    """Whether the file is called an ONNX file."""
    return Path(path).suffix.lower() == SUFFIX


def refuse_architecture(
    path: str | Path, architecture: str | None, factory: str | None = None
) -> None:
    """Refuse what only a file of mere weights needs.

    Raises:
        UsageError: If one of them is given.
    """
    for flag, value in (("--arch", architecture), ("--factory", factory)):
        if value is not None:
            raise UsageError(
                f"{flag} {value[:40]} for {Path(path).name}, which holds its network itself",
                hint=f"leave out {flag}",
            )


def size_flags(file: OnnxFile) -> str:
    """The flags that say which images it takes, as far as the graph tells."""
    channels, height, width = (side or 0 for side in (file.channels, file.height, file.width))
    if not (channels and height and width):
        return INPUT_FLAGS
    numbers = ",".join(["0.5"] * channels) if channels <= 4 else "0.5"
    return f"--input-size {channels}x{height}x{width} --mean {numbers} --std {numbers}"


def require_same(file: OnnxFile, image: InputCard | None, num_classes: int | None) -> None:
    """Refuse a card or arguments that the graph contradicts.

    Raises:
        InputFileRefused: If they do.
    """
    said = (
        ("channels", image and image.channels, file.channels),
        ("pixels of height", image and image.height, file.height),
        ("pixels of width", image and image.width, file.width),
        ("classes", num_classes, file.classes),
    )
    for what, wanted, found in said:
        if wanted is not None and found is not None and wanted != found:
            raise InputFileRefused(
                f"the graph of {file.source} has {found} {what}, its card or the command line "
                f"says {wanted}",
                hint="images are (B, C, H, W): export with that order, or correct the card",
            )


def read_onnx(path: str | Path) -> OnnxFile:
    """Read and check a file; nothing in it is run.

    Raises:
        InputFileRefused: If it is missing, truncated, too large or no ONNX file, refers to other
            files, or holds anything but a classifier of images by standard operators.
        UsageError: If the package onnx is not installed.
    """
    onnx = require_package("onnx")
    with open_source(path, MAX_ONNX_BYTES) as opened:
        data, name = opened.handle.read(), opened.name
    try:
        model = onnx.load_model_from_string(data)
    except Exception as error:  # protobuf's DecodeError has no home that stays
        raise InputFileRefused(
            f"{name} is not an ONNX file, or it is truncated", hint="copy or download it again"
        ) from error
    _require_plain(model, name)
    try:
        onnx.checker.check_model(model)
    except Exception as error:  # ValidationError, or whatever its C++ throws
        raise InputFileRefused(
            f"{name} is not a valid ONNX model: {_first_line(error)}", hint=EXPORT_AGAIN
        ) from error
    image, logits = _ends(model.graph, name)
    input_dtype = _dtype(onnx, image.type.tensor_type.elem_type)
    if input_dtype not in ("F32", "F16"):
        raise InputFileRefused(
            f"{name} takes images as {input_dtype}, not as floats",
            hint="export the classifier so that it takes float32 images",
        )
    batch, channels, height, width = _shape(image, 4, f"{name} takes", "(B, C, H, W)")
    _, classes = _shape(logits, 2, f"{name} gives", "(B, K)")
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    return OnnxFile(
        data=data,
        sha256=sha256_bytes(data),
        source=name,
        input_name=image.name,
        output_name=logits.name,
        input_dtype=input_dtype,
        batch=batch,
        channels=channels,
        height=height,
        width=width,
        classes=classes,
        weights=tuple(
            OnnxWeight(_dtype(onnx, tensor.data_type), tuple(tensor.dims))
            for tensor in model.graph.initializer
        ),
        metadata=metadata,
        card=_card(metadata, name),
    )


def _first_line(error: Exception) -> str:
    line = str(error).strip().partition("\n")[0][:200]
    return line if line.isprintable() else ascii(line)[1:-1]


def _require_plain(model: Message, name: str) -> None:
    """One walk over every message in the file, so that nothing hides in a sub-graph."""
    if model.functions:
        raise InputFileRefused(
            f"{name} holds functions of its own",
            hint="write it anew with onnx.inliner.inline_local_functions",
        )
    nodes = 0
    for message in _messages(model):
        kind = message.DESCRIPTOR.name
        if kind == "TensorProto" and (message.data_location or message.external_data):
            raise InputFileRefused(
                f"{name} keeps weights in other files", hint="write it as one file: onnx.save_model"
            )
        if kind != "NodeProto":
            continue
        nodes += 1
        if message.domain not in STANDARD_DOMAINS:
            raise InputFileRefused(
                f"{name} needs the operator {message.domain[:40]!a}.{message.op_type[:40]!a}, "
                "which is not of the ONNX standard",
                hint="export the classifier with standard operators only",
            )
        if message.op_type in LOOPS or nodes > MAX_NODES:
            what = f"more than {MAX_NODES} nodes" if nodes > MAX_NODES else message.op_type
            raise InputFileRefused(f"{name} holds {what}: no classifier does", hint=EXPORT_AGAIN)


def _messages(message: Message) -> Iterator[Message]:
    """`message` and all that it holds; the parser bounds how deep they nest."""
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for part in (value,) if hasattr(value, "ListFields") else value:
                yield from _messages(part)


def _ends(graph: Message, name: str) -> tuple[Message, Message]:
    """The one input that is no weight, and the one output."""
    weights = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in weights]
    for ends, what in ((inputs, "inputs"), (graph.output, "outputs")):
        if len(ends) != 1 or not ends[0].type.HasField("tensor_type"):
            raise InputFileRefused(
                f"{name} has {len(ends)} {what}; one tensor is needed",
                hint="export the classifier alone: images in, logits out",
            )
    return inputs[0], graph.output[0]


def _shape(value: Message, rank: int, does: str, wanted: str) -> list[int | None]:
    """Lengths of a tensor; None where they are open, all of them if its shape is not told."""
    if not value.type.tensor_type.HasField("shape"):
        return [None] * rank
    sides = [
        side.dim_value if side.HasField("dim_value") else None
        for side in value.type.tensor_type.shape.dim
    ]
    if len(sides) != rank or any(side is not None and side < 1 for side in sides):
        shown = "x".join("?" if side is None else str(side) for side in sides)
        raise InputFileRefused(
            f"{does} a tensor of {shown or 'no'} dimensions, not {wanted}",
            hint="export the classifier alone: images in, logits out",
        )
    return sides


def _dtype(onnx: Any, number: int) -> str:
    known = onnx.TensorProto.DataType
    name = known.Name(number) if number in known.values() else str(number)
    return DTYPES.get(name, name)


def _card(metadata: Mapping[str, str], name: str) -> ModelCard | None:
    """The card that `genkd.export` writes."""
    text = metadata.get(OUR_METADATA)
    if text is None:
        return None
    try:
        value = parse_json(text.encode())
        if not isinstance(value, dict):
            raise ValueError("it is not an object")
    except ValueError as error:
        raise InputFileRefused(
            f"the metadata {OUR_METADATA} of {name} is not valid: {error}",
            hint="this project wrote it; export the student again",
        ) from error
    return card_from_json(value.get("card"))
