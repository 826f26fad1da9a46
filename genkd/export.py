"""A classifier as an ONNX file that needs nothing else: its normalisation is inside.

    export_onnx(load_teacher("student.safetensors"), Path("student.onnx"))

The file takes `images`, float32 (B, C, H, W) in [0, 1] for any B, and gives `logits`, float32
(B, K). Before it is written, onnxruntime runs it and its answers are compared with torch's. The
model's card is in the file's metadata, under the key "genkd", as in our safetensors files.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from genkd.canonical import canonical_json
from genkd.card import card_to_json
from genkd.durable import atomic_write
from genkd.errors import ConfigurationError
from genkd.onnx_packages import require_package

if TYPE_CHECKING:
    from genkd.teacher import Teacher

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
# How far the logits may be from torch's, as a part of the largest of them. Other summation orders
# of float32 make about 1e-6; a layer that means something else makes far more than this.
TOLERANCE = 1e-4
# The network is traced with two images and tried with one and five: the batch must be free.
TRACED_BATCH, TRIED_BATCHES = 2, (1, 5)
METADATA_KEY = "genkd"


def export_onnx(model: Teacher, path: Path) -> None:
    """Write `model` to `path` as ONNX; the old file or all of the new one is there at any time.

    Args:
        model: A student or a teacher with its normalisation, from `load_teacher`. Left as it is.
        path: Where to write.

    Raises:
        UsageError: If onnx, onnxscript or onnxruntime is not installed.
        ConfigurationError: If the network cannot be exported, or its ONNX answers otherwise.
        ResourceExhausted: If the file cannot be written.
    """
    atomic_write(path, onnx_bytes(model))


def onnx_bytes(model: Teacher) -> bytes:
    """The bytes that `export_onnx` writes; it raises the same, but for the writing."""
    for package in PACKAGES:
        require_package(package)
    model = copy.deepcopy(model).cpu().float()
    card = model.card
    size = (card.input.channels, card.input.height, card.input.width)
    exported = _export(model, torch.zeros(TRACED_BATCH, *size))
    data = _without_traces(exported, {"v": 1, "card": card_to_json(card)})
    generator = torch.Generator().manual_seed(0)
    for batch in TRIED_BATCHES:
        _compare(model, data, torch.rand(batch, *size, generator=generator))
    return data


def _export(model: Teacher, example: Tensor) -> Any:  # onnx has no types: an onnx.ModelProto
    name = model.card.spec.architecture
    try:
        program = torch.onnx.export(
            model,
            (example,),
            dynamo=True,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            verbose=False,  # stdout belongs to --json
        )
    except Exception as error:  # the exporter raises anything, depending on where it gives up
        raise ConfigurationError(
            f"{name} cannot be exported to ONNX: {str(error).partition(chr(10))[0][:200]}",
            hint="use student.safetensors, or another architecture",
        ) from error
    if program is None:
        raise ConfigurationError(
            f"{name} cannot be exported to ONNX", hint="use student.safetensors"
        )
    return program.model_proto


def _without_traces(model: Any, metadata: dict[str, object]) -> bytes:
    """Serialise without what the exporter notes down, and with `metadata`.

    The exporter leaves Python stack traces with the paths of this machine at every node.
    """
    graph = model.graph
    nodes = [*graph.node, *(node for function in model.functions for node in function.node)]
    values = [*graph.input, *graph.output, *graph.value_info, *graph.initializer]
    for noted in (model, graph, *model.functions, *nodes, *values):
        noted.ClearField("metadata_props")
        noted.ClearField("doc_string")
    model.metadata_props.add(key=METADATA_KEY, value=canonical_json(metadata).decode())
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def _compare(model: Teacher, data: bytes, images: Tensor) -> None:
    """Run the ONNX and torch on the same images, (B, C, H, W) in [0, 1]."""
    onnxruntime = require_package("onnxruntime")
    name = model.card.spec.architecture
    try:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # what goes wrong is raised; it need not be printed too
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        (logits,) = session.run(["logits"], {"images": images.numpy()})
    except Exception as error:  # onnxruntime's errors have no common type but this
        raise ConfigurationError(
            f"onnxruntime cannot run {name}: {str(error).partition(chr(10))[0][:200]}",
            hint="use student.safetensors, or another version of onnxruntime",
        ) from error
    with torch.inference_mode():
        expected = model(images).numpy()
    largest = max(1.0, float(np.abs(expected).max()))
    difference = float(np.abs(logits - expected).max()) if logits.shape == expected.shape else None
    # Written so that NaN fails too.
    if difference is None or not difference <= TOLERANCE * largest:
        raise ConfigurationError(
            f"the ONNX of {name} does not answer as torch does (difference {difference})",
            hint="use student.safetensors; nothing was written",
        )
