"""The black box: a teacher that only answers, an ONNX file through ONNX Runtime.

    teacher = load_onnx_teacher(Path("model.onnx"), input_card=InputCard.from_text(...))
    logits = teacher(images)                      # (B, C, H, W) in [0, 1] to (B, K), no gradient

It can be asked wherever a teacher is only asked: by the student, by `evaluate`, and by a
synthesiser over a public generative model (`--prior`). Whatever needs a gradient through it is
refused in one line.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from genkd.card import InputCard, ModelCard, ModelSpec
from genkd.cost import says_out_of_memory
from genkd.errors import ConfigurationError, InputFileRefused
from genkd.onnx_file import (
    EXPORT_AGAIN,
    OnnxFile,
    read_onnx,
    require_same,
    size_flags,
)
from genkd.onnx_packages import require_package
from genkd.teacher import Teacher
from genkd.teacher_spec import find_black_box_spec
from genkd.weights import TORCH_NAMES

# What a card calls a network of which nothing but its answers is known.
ARCHITECTURE = "onnx"
WHY_NOT = "a black box gives answers, no gradients"
USE_PRIOR = "add --prior FILE, a public generative model: it needs answers only"
# How far an image's logits may move with the images beside it, as a part of the largest logit.
TOLERANCE = 1e-3
# Probabilities are what a last softmax leaves: their logarithms are logits again.
LEAST_PROBABILITY = 1e-12
TRIED = 4


class BlackBox(nn.Module):
    """The graph of an ONNX file as a module: normalised images in, logits out.

    Args:
        file: The checked file.

    Attributes:
        probabilities: Whether the graph ends in a softmax; its logarithm is then taken.
        weights: A stand-in without memory for each weight, to be counted; none is a parameter.
    """

    def __init__(self, file: OnnxFile) -> None:
        super().__init__()
        self.file = file
        self.probabilities = False
        self.weights = [_stand_in(one.dtype, one.shape) for one in file.weights]
        self._sessions: dict[torch.device, Any] = {}

    def forward(self, images: Tensor) -> Tensor:
        """Logits float32 (B, K) of normalised images (B, C, H, W).

        Raises:
            ConfigurationError: If a gradient is to flow through it.
            InputFileRefused: If the graph fails on them, or answers with NaN or infinity.
        """
        if torch.is_grad_enabled() and images.requires_grad:
            raise ConfigurationError(f"{self.file.source}: {WHY_NOT}", hint=USE_PRIOR)
        dtype = np.float16 if self.file.input_dtype == "F16" else np.float32
        array = images.detach().float().contiguous().cpu().numpy().astype(dtype, copy=False)
        answers = self._answer(array, images.device)
        if not np.isfinite(answers).all():
            raise InputFileRefused(
                f"{self.file.source} answers with NaN or infinity",
                hint="check the input card; or the model diverged: check the training",
            )
        logits = torch.from_numpy(answers).to(images.device)
        return logits.clamp_min(LEAST_PROBABILITY).log() if self.probabilities else logits

    def _answer(self, images: np.ndarray[Any, Any], device: torch.device) -> np.ndarray[Any, Any]:
        """(B, K), in as many calls as a graph with a fixed batch needs."""
        size, count = self.file.batch or len(images), len(images)
        if count % size:
            images = np.concatenate([images, np.repeat(images[-1:], -count % size, axis=0)])
        parts = [
            self._run(images[start : start + size], device) for start in range(0, len(images), size)
        ]
        return np.concatenate(parts)[:count]

    def _run(self, images: np.ndarray[Any, Any], device: torch.device) -> np.ndarray[Any, Any]:
        if device not in self._sessions:
            self._sessions[device] = _open(self.file, device)
        try:
            (answers,) = self._sessions[device].run(
                [self.file.output_name], {self.file.input_name: images}
            )
        except Exception as error:  # onnxruntime's errors have no common type but this
            raise _failed(
                self.file, error, f"fails on images of {_by(images.shape[1:])}"
            ) from error
        if answers.ndim != 2 or len(answers) != len(images):
            raise InputFileRefused(
                f"{self.file.source} gives {_by(answers.shape)} for {len(images)} images",
                hint="export the classifier alone: images (B, C, H, W) in, logits (B, K) out",
            )
        return np.ascontiguousarray(answers, dtype=np.float32)


class OnnxTeacher(Teacher):
    """A `Teacher` whose network is a `BlackBox`.

    Args:
        network: The black box.
        card: What it is. A file that this project wrote normalises by itself; its card tells how.
        sha256: Hex digest of the file.
        places: As of `Teacher`.
        known: As of `Teacher`.
    """

    network: BlackBox
    gives_gradients = False

    def __init__(
        self,
        network: BlackBox,
        card: ModelCard,
        sha256: str,
        *,
        places: Sequence[int] | None = None,
        known: Sequence[int] | None = None,
    ) -> None:
        super().__init__(network, card, sha256, places=places, known=known)
        if network.file.card is not None:
            self.mean.zero_()
            self.std.fill_(1.0)

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """Stand-ins for the weights, which live in the runtime: for those who count them."""
        yield from self.network.weights


def load_onnx_teacher(
    path: str | Path, *, num_classes: int | None = None, input_card: InputCard | None = None
) -> OnnxTeacher:
    """Load a classifier of which nothing but its answers is asked.

    Args:
        path: An ONNX file. FILE.json beside it may hold its card; one that `distill --export onnx`
            wrote carries it, and its normalisation too.
        num_classes: K, if neither card nor graph tells it.
        input_card: Size and normalisation of its images, if no card tells them.

    Raises:
        InputFileRefused: If the file is refused (`read_onnx`), its card says something else than
            its graph, or it does not answer a few images as a classifier does.
        ConfigurationError: If nobody says which images it takes.
        UsageError: If the extra onnx is not installed, or the arguments do not fit the file.
    """
    require_package("onnxruntime")
    file = read_onnx(path)
    spec = find_black_box_spec(
        Path(path), file.card, num_classes=num_classes, input_card=input_card
    )
    if spec.input is None:
        raise ConfigurationError(
            f"{file.source} does not say which images it takes",
            hint=f"give size, mean and std of its training images in [0, 1]: {size_flags(file)}",
        )
    require_same(file, spec.input, spec.num_classes)
    box = BlackBox(file)
    classes = _try_out(box, spec.input, spec.num_classes)
    card = ModelCard(
        ModelSpec(spec.architecture or ARCHITECTURE, classes, spec.input.channels),
        spec.input,
        spec.class_names,
        spec.description,
    )
    return OnnxTeacher(box, card, file.sha256)


def _try_out(box: BlackBox, image: InputCard, num_classes: int | None) -> int:
    """Ask it about a few images, so that what cannot work fails here; how many classes it knows."""
    random = torch.Generator().manual_seed(0)
    images = torch.randn(TRIED, image.channels, image.height, image.width, generator=random)
    images[0] = 0.0
    together = box(images)
    alone = torch.cat([box(one.unsqueeze(0)) for one in images.unbind()])
    classes: int = together.shape[1]
    if classes < 2 or classes != (num_classes or classes):
        raise InputFileRefused(
            f"{box.file.source} gives {classes} logits per image, "
            f"not {num_classes or 'two or more'}",
            hint="check --num-classes, and that the graph gives logits only",
        )
    largest = max(1.0, float(together.abs().max()))
    if float((together - alone).abs().max()) > TOLERANCE * largest:
        raise InputFileRefused(
            f"{box.file.source} answers differently about the same image",
            hint="export it in evaluation mode: model.eval()",
        )
    box.probabilities = bool(
        (together >= 0).all() and ((together.sum(1) - 1).abs() < TOLERANCE).all()
    )
    return classes


def _open(file: OnnxFile, device: torch.device) -> Any:  # an onnxruntime.InferenceSession
    """A session that writes nothing, sends nothing, and uses torch's number of threads."""
    runtime = require_package("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is raised; it need not be printed too
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    # Threads that wait in a loop would spend the budget in core-seconds.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    providers: list[Any] = ["CPUExecutionProvider"]
    if device.type == "cuda" and "CUDAExecutionProvider" in runtime.get_available_providers():
        providers.insert(0, ("CUDAExecutionProvider", {"device_id": device.index or 0}))
    try:
        return runtime.InferenceSession(file.data, options, providers=providers)
    except Exception as error:  # onnxruntime's errors have no common type but this
        raise _failed(file, error, "cannot be run by ONNX Runtime") from error


def _failed(file: OnnxFile, error: Exception, what: str) -> Exception:
    reason = str(error).strip().partition("\n")[0][:200]
    if says_out_of_memory(reason) or isinstance(error, MemoryError):
        return MemoryError(reason)  # callers halve their batch
    shown = reason if reason.isprintable() else ascii(reason)
    return InputFileRefused(
        f"{file.source} {what}: {shown}", hint=f"check the input card, or {EXPORT_AGAIN}"
    )


def _stand_in(dtype: str, shape: tuple[int, ...]) -> nn.Parameter:
    kind = getattr(torch, TORCH_NAMES.get(dtype, "float32"))
    return nn.Parameter(torch.empty(shape, dtype=kind, device="meta"), requires_grad=False)


def _by(lengths: Sequence[int]) -> str:
    return "x".join(map(str, lengths))
