"""The teacher: a person's own trained classifier, checked, frozen, with its normalisation inside.

    teacher = load_teacher("teacher.safetensors")         # a card says what it is
    teacher = load_teacher("bare.safetensors", architecture="torchvision:resnet18",
                           input_card=InputCard.from_text("3x32x32", "0.5", "0.5"))
    logits = teacher(images)                              # images: (B, C, H, W) in [0, 1]

Never pickle, never code from the network. The network is built from its name, the file's names and
shapes are compared with it before a weight is read, and every value must be finite.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from genkd.card import INPUT_FLAGS, InputCard, ModelCard, ModelSpec
from genkd.cost import is_out_of_memory
from genkd.device import Constant
from genkd.errors import ConfigurationError, InputFileRefused, ResourceExhausted, UsageError
from genkd.fingerprint import COUNTER, expected_of, require_match, shapes_in_file
from genkd.inspection import Inspection, inspect_file
from genkd.models import build_model
from genkd.onnx_file import is_onnx, refuse_architecture
from genkd.safetensors_header import TEACHER_FILE, Header, changed_while_reading, read_header
from genkd.teacher_spec import TeacherSpec, find_spec, resolve_card, unknown_input
from genkd.weights import LoadedTensors, read_tensors

__all__ = ["Inspection", "Teacher", "TeacherSpec", "inspect_file", "load_teacher"]


# The logit of a class that a teacher does not know: its probability is 0 at any temperature in use,
# and no difference or product with it overflows, in bf16 either.
UNKNOWN = -1e4


class Teacher(nn.Module):
    """A frozen classifier of images in [0, 1].

    Nothing wakes it: parameters need no gradient, and `train()` leaves it in evaluation mode, so
    its BatchNorm statistics stay those of its training data. Gradients flow through it to the
    images.

    Args:
        network: Takes normalised images (B, C, H, W), gives logits (B, K).
        card: What it is; its mean and std become buffers that move with the module.
        sha256: Hex digest of the file it came from.
        places: The class of the card that each output of the network stands for, where the card
            names more classes; see `among`. None: one after another.
        known: The classes it is asked about, among `places`, in any order; see `knowing`. None: all
            of them.

    Attributes:
        card: As given.
        sha256: As given.
        places: As given.
        known: The classes it is asked about, ascending.
        mean: float32 (1, C, 1, 1), in the units of [0, 1] images.
        std: float32 (1, C, 1, 1).
        gives_gradients: Whether gradients flow through it; not through a black box.
    """

    mean: Tensor
    std: Tensor
    gives_gradients = True

    def __init__(
        self,
        network: nn.Module,
        card: ModelCard,
        sha256: str,
        *,
        places: Sequence[int] | None = None,
        known: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.card = card
        self.sha256 = sha256
        self.places = tuple(range(card.spec.num_classes) if places is None else places)
        self.known = tuple(sorted(self.places if known is None else known))
        output_of = {place: output for output, place in enumerate(self.places)}
        self._known = Constant(self.known)
        self._outputs = Constant([output_of[place] for place in self.known])
        shape = (1, card.input.channels, 1, 1)
        self.register_buffer("mean", torch.tensor(card.input.mean).reshape(shape))
        self.register_buffer("std", torch.tensor(card.input.std).reshape(shape))
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode, whatever `mode` says."""
        return super().train(False)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of images.

        Args:
            images: float (B, C, H, W) in [0, 1], before the teacher's normalisation.

        Returns:
            Logits (B, K); `UNKNOWN` for the classes it does not know.
        """
        outputs: Tensor = self.network((images - self.mean) / self.std)
        classes = self.card.spec.num_classes
        if self.known == self.places == tuple(range(classes)):
            return outputs
        logits = outputs.new_full((len(outputs), classes), UNKNOWN)
        if self.known != self.places:
            outputs = outputs[:, self._outputs.on(outputs.device)]
        return logits.index_copy(1, self._known.on(outputs.device), outputs)

    def knowing(self, classes: Sequence[int]) -> Self:
        """The same network, asked about some of its classes only.

        Args:
            classes: Positions in the card's classes, at least one, among those of its outputs.
        """
        return type(self)(
            self.network, self.card, self.sha256, places=self.places, known=sorted(classes)
        )

    def among(self, class_names: tuple[str, ...]) -> Self:
        """The same teacher, its classes found by name among those of a student that knows more.

        Raises:
            ConfigurationError: If one of its classes is not among them, or it has no names.
        """
        if self.card.class_names is None:
            raise ConfigurationError(
                "the teacher's classes have no names, so they cannot be told from others",
                hint="name them: a teacher.json beside the file with class_names",
            )
        absent = [name for name in self.card.class_names if name not in class_names]
        if absent:
            raise ConfigurationError(
                f"the teacher's class {absent[0]!r} is none of the student's",
                hint=f"the student has {', '.join(class_names[:20])}; rename, or leave it out",
            )
        places = [class_names.index(name) for name in self.card.class_names]
        spec = replace(self.card.spec, num_classes=len(class_names))
        card = replace(self.card, spec=spec, class_names=class_names)
        return type(self)(self.network, card, self.sha256, places=places)

    @property
    def members(self) -> tuple[Teacher, ...]:
        """Itself: it is an ensemble of one."""
        return (self,)

    @property
    def trust(self) -> Tensor:
        """As of an ensemble: the share (1, K) of its word about each class."""
        return torch.ones(1, self.card.spec.num_classes)

    @property
    def credited(self) -> tuple[int, ...]:
        """Classes that who learns from it may claim to have learnt."""
        return self.known

    @property
    def architecture(self) -> str:
        """What network it is."""
        return self.card.spec.architecture

    @property
    def remembers_images(self) -> bool:
        """Whether its BatchNorm layers have seen images: those of a fresh network have not."""
        means = [norm.running_mean for norm in self.batch_norms()]
        return any(bool(mean.any()) for mean in means if mean is not None)

    def batch_norms(self) -> list[nn.BatchNorm2d]:
        """The BatchNorm layers that kept statistics of the training data; empty if none did."""
        return [
            module
            for module in self.network.modules()
            if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None
        ]


def load_teacher(
    path: str | Path,
    *,
    architecture: str | None = None,
    num_classes: int | None = None,
    input_card: InputCard | None = None,
    factory: str | None = None,
    allow_local_code: bool = False,
) -> Teacher:
    """Load a person's own classifier from a safetensors file, or from an ONNX file as a black box.

    Args:
        path: The file; one that is called .onnx is a black box, see `genkd.onnx_teacher`.
        architecture: Its name, as in `genkd.card.ModelSpec`. None: as a card or config.json says.
        num_classes: K. None: as a card says, or as the file's last layer shows.
        input_card: The images it takes. None: as a card says.
        factory: "module:function" of the person's own code, called without arguments, returning the
            network; in place of `architecture`. The current folder is searched too.
        allow_local_code: Whether `factory` may be used at all.

    Returns:
        The frozen teacher in float32 on the CPU.

    Raises:
        InputFileRefused: If the file is not a valid safetensors file, holds other tensors than the
            architecture needs, or values that are not finite.
        ConfigurationError: If the architecture or the images it takes are not known, or the network
            does not turn such images into logits.
        UsageError: If there is no such architecture, or the arguments do not fit together.
        ResourceExhausted: If memory runs out.
    """
    path = Path(path)
    if is_onnx(path):
        from genkd.onnx_teacher import load_onnx_teacher

        refuse_architecture(path, architecture, factory)
        return load_onnx_teacher(path, num_classes=num_classes, input_card=input_card)
    header = read_header(path, TEACHER_FILE)
    try:
        if factory is not None:
            if architecture is not None:
                raise UsageError("--arch and --factory exclude each other", hint="give one of them")
            spec = find_spec(path, header, num_classes=num_classes, input_card=input_card)
            network, card = _from_factory(factory, header, spec, num_classes, allow_local_code)
            loaded = _read(path, header)
        else:
            spec = find_spec(
                path,
                header,
                architecture=architecture,
                num_classes=num_classes,
                input_card=input_card,
            )
            card = resolve_card(spec, header)
            loaded = _read(path, header)
            # The weights are replaced at once; a generator of its own leaves the global one alone.
            network = build_model(card.spec, generator=torch.Generator().manual_seed(0))
        _fill(network, loaded)
        teacher = Teacher(network, card, loaded.sha256)
        _try_out(teacher, header.source)
    except MemoryError as error:
        raise ResourceExhausted(
            f"no memory is left to load {header.source}", hint="close other programs"
        ) from error
    return teacher


def _read(path: Path, header: Header) -> LoadedTensors:
    loaded = read_tensors(path, TEACHER_FILE)
    if loaded.header.sha256 != header.sha256:
        raise changed_while_reading(header.source)
    return loaded


def _fill(network: nn.Module, loaded: LoadedTensors) -> None:
    """Copy the weights, whose names and shapes were compared, into the network, as its dtypes."""
    _, prefix = shapes_in_file(loaded.header)
    own = network.state_dict()
    with torch.no_grad():
        for name, tensor in loaded.tensors.items():
            target = own.get(name.removeprefix(prefix))
            if target is None or name.endswith(COUNTER):
                continue
            target.copy_(tensor)  # copies and casts: float16 and bfloat16 become float32
            # A float64 beyond the range of float32 turns infinite only here.
            if tensor.dtype is torch.float64 and not bool(target.isfinite().all()):
                raise InputFileRefused(
                    f"{loaded.header.source}: {name} does not fit into float32",
                    hint="the model diverged while it was trained; use an earlier checkpoint",
                )


def _try_out(teacher: Teacher, source: str) -> None:
    """Pass two gray images, so that what cannot work fails here and not an hour later."""
    image = teacher.card.input
    size = f"{image.height}x{image.width}"
    try:
        with torch.no_grad():
            logits = teacher(torch.full((2, image.channels, image.height, image.width), 0.5))
    except Exception as error:  # vision transformers assert, a person's own code raises anything
        reason = str(error).partition("\n")[0][:200]
        if is_out_of_memory(error):
            raise MemoryError from error
        raise ConfigurationError(
            f"{source} cannot take images of {image.channels}x{size}: {reason}",
            hint=f"check the input card, for example {INPUT_FLAGS}",
        ) from error
    if not isinstance(logits, Tensor) or logits.shape != (2, teacher.card.spec.num_classes):
        raise ConfigurationError(
            f"{source} does not give {teacher.card.spec.num_classes} logits per image",
            hint="check --num-classes, and that the network returns logits only",
        )
    if not bool(logits.isfinite().all()):
        raise InputFileRefused(
            f"{source} gives NaN or infinite logits for a gray image",
            hint="a BatchNorm variance may be negative, or the model diverged: check the training",
        )


def _from_factory(
    factory: str, header: Header, spec: TeacherSpec, num_classes: int | None, allowed: bool
) -> tuple[nn.Module, ModelCard]:
    """The network of the person's own code, after comparing it with the file."""
    if not allowed:
        raise UsageError(
            f"--factory {factory} would run code of this machine",
            hint="if it is your own code, add --allow-local-code",
        )
    if spec.input is None:
        raise unknown_input(header)
    network = _call(factory)
    network.eval()
    classes = num_classes or spec.num_classes or _count_classes(network, spec.input, factory)
    card = ModelCard(
        ModelSpec(f"factory:{factory}", classes, spec.input.channels),
        spec.input,
        spec.class_names,
        spec.description,
    )
    require_match(expected_of(network, classes), header, f"the network of {factory}")
    return network.float().cpu(), card


def _call(factory: str) -> nn.Module:
    """Import and call "module:function"."""
    module_name, _, function_name = factory.partition(":")
    if not module_name or not function_name.isidentifier():
        raise UsageError(
            f"--factory {factory!r} is not module:function", hint="for example my_models:make"
        )
    folder = str(Path.cwd())  # a command's own path does not include it
    sys.path.insert(0, folder)
    try:
        network = getattr(importlib.import_module(module_name), function_name)()
    except Exception as error:  # the person's own code may raise anything
        raise ConfigurationError(
            f"--factory {factory} failed: {type(error).__name__}: "
            f"{str(error).partition(chr(10))[0][:200]}",
            hint="the function takes no arguments and returns the network",
        ) from error
    finally:
        sys.path.remove(folder)
    if not isinstance(network, nn.Module):
        raise ConfigurationError(
            f"--factory {factory} returned {type(network).__name__}, not a network",
            hint="the function takes no arguments and returns a torch.nn.Module",
        )
    return network


def _count_classes(network: nn.Module, image: InputCard, factory: str) -> int:
    """Length of the logits that the network gives."""
    try:
        with torch.no_grad():
            logits = network(torch.zeros(2, image.channels, image.height, image.width))
        return int(logits.shape[1])
    except Exception as error:  # the person's own code may raise anything
        raise ConfigurationError(
            f"the network of {factory} cannot take images of "
            f"{image.channels}x{image.height}x{image.width}",
            hint=f"check the input card, for example {INPUT_FLAGS}",
        ) from error
