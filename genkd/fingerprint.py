"""Names and shapes: what a network expects, what a file holds, and which network a file fits.

    find_architectures({"conv1.weight": (16, 1, 3, 3), ...})  # [ModelSpec("resnet8", 10, 1)]

Everything here compares headers with networks built on the meta device: no weight is read. Equal
names and shapes do not prove the same network (strides and activations leave no trace), so what is
found this way is a proposal that a person confirms.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from genkd.card import ModelSpec
from genkd.errors import GenKDError, InputFileRefused
from genkd.models import LENET, RESNET, WRN, build_on_meta, known_architectures
from genkd.safetensors_header import Header

Shapes = Mapping[str, tuple[int, ...]]

# Counters that no forward pass in eval mode reads; files may have them or not.
COUNTER = "num_batches_tracked"
# What DistributedDataParallel and torch.compile put in front of every name.
WRAPPERS = ("module.", "_orig_mod.")
# A number of classes that is no width of a known network, so that the head can be told by it.
PROBE_CLASSES = 1789

# Number of tensors, counters left out: the cheap fact that leaves at most a handful of networks to
# build. A test compares it with every network of `known_architectures`.
TORCHVISION_TENSORS = {
    **{"resnet18": 102, "resnet34": 182, "resnet50": 267, "resnet101": 522, "resnet152": 777},
    **{"wide_resnet50_2": 267, "alexnet": 16, "squeezenet1_1": 52, "densenet121": 606},
    **{"vgg11": 22, "vgg13": 26, "vgg16": 32, "vgg19": 38},
    **{"vgg11_bn": 54, "vgg13_bn": 66, "vgg16_bn": 84, "vgg19_bn": 102},
    **{"mobilenet_v2": 262, "mobilenet_v3_small": 210, "mobilenet_v3_large": 266},
    **{"efficientnet_b0": 311, "shufflenet_v2_x1_0": 282, "convnext_tiny": 182},
}


@dataclass(frozen=True)
class Expected:
    """What the network of an architecture expects of a file.

    Attributes:
        shapes: Shape by name, counters left out.
        floating: Names whose values are real numbers; the others are indices.
        head: Name of the last weight with a row per class.
        stem: Name of the first convolution's weight, or None.
    """

    shapes: Shapes
    floating: frozenset[str]
    head: str
    stem: str | None


def shapes_in_file(header: Header) -> tuple[dict[str, tuple[int, ...]], str]:
    """The shapes of a file without the wrappers' prefix and without counters, and that prefix."""
    prefix = ""
    while wrapper := next(
        (w for w in WRAPPERS if all(n.startswith(prefix + w) for n in header.tensors)), None
    ):
        prefix += wrapper
    shapes = {
        name[len(prefix) :]: info.shape
        for name, info in header.tensors.items()
        if not name.endswith(COUNTER)
    }
    return shapes, prefix


def expected_of(network: nn.Module, num_classes: int) -> Expected:
    """What `network`, on any device, expects of a file.

    Raises:
        InputFileRefused: If it has no weight with `num_classes` rows.
    """
    state = {name: t for name, t in network.state_dict().items() if not name.endswith(COUNTER)}
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    heads = [n for n, shape in shapes.items() if len(shape) >= 2 and shape[0] == num_classes]
    if not heads:
        raise InputFileRefused(
            f"the network has no layer with {num_classes} outputs",
            hint="give an architecture whose last layer has one output per class",
        )
    stem = next((n for n, m in network.named_modules() if isinstance(m, nn.Conv2d)), None)
    return Expected(
        shapes=shapes,
        floating=frozenset(name for name, t in state.items() if t.is_floating_point()),
        head=heads[-1],
        stem=None if stem is None else (f"{stem}.weight" if stem else "weight"),
    )


@functools.lru_cache(maxsize=64)
def expected_by(spec: ModelSpec) -> Expected:
    """What the network of `spec` expects of a file.

    Raises:
        UsageError: If there is no such architecture.
        InputFileRefused: If it cannot be built.
    """
    return expected_of(build_on_meta(spec), spec.num_classes)


def dimensions_in_file(architecture: str, shapes: Shapes) -> tuple[int | None, int | None]:
    """Classes and image channels that a file has, if it is of this architecture.

    Raises:
        UsageError: If there is no such architecture.
        InputFileRefused: If it cannot be built.
    """
    probe = expected_by(ModelSpec(architecture, PROBE_CLASSES, 3))
    head, stem = shapes.get(probe.head), shapes.get(probe.stem or "")
    return head[0] if head else None, stem[1] if stem and len(stem) == 4 else None


def find_architectures(shapes: Shapes) -> list[ModelSpec]:
    """The known networks with exactly these names and shapes; usually one or none.

    Args:
        shapes: From `shapes_in_file`.
    """
    found = []
    for architecture in known_architectures():
        if _tensor_count(architecture) != len(shapes):
            continue
        try:
            classes, channels = dimensions_in_file(architecture, shapes)
            if classes is None or channels is None:
                continue
            spec = ModelSpec(architecture, classes, channels)
            if expected_by(spec).shapes == dict(shapes):
                found.append(spec)
        except GenKDError:  # a torchvision that is missing or too old; numbers no network has
            continue
    return found


def _tensor_count(architecture: str) -> int | None:
    """Number of tensors of a known architecture without building it, counters left out."""
    if match := RESNET.fullmatch(architecture):
        return 30 * ((int(match[1]) - 2) // 6) + 17
    if match := WRN.fullmatch(architecture):
        # At width factor 1 the first stage keeps its 16 channels and needs no projection.
        return 30 * ((int(match[1]) - 4) // 6) + (9 if match[2] == "1" else 10)
    if match := LENET.fullmatch(architecture):
        return 18 if match[1] else 10
    name = architecture.removeprefix("torchvision:").removesuffix("-cifar")
    return TORCHVISION_TENSORS.get(name)


def require_match(expected: Expected, header: Header, what: str) -> None:
    """Check that a file has exactly the names, shapes and kinds of numbers a network expects.

    Args:
        expected: From `expected_by` or `expected_of`.
        header: The file's header.
        what: How the message calls the network: "resnet8 with 10 classes".

    Raises:
        InputFileRefused: With one short difference and the likely fix.
    """
    shapes, prefix = shapes_in_file(header)
    missing = [name for name in expected.shapes if name not in shapes]
    extra = [name for name in shapes if name not in expected.shapes]
    if missing or extra:
        raise _other_names(expected, shapes, missing, extra, header.source, what)
    for name, shape in expected.shapes.items():
        if shapes[name] != shape:
            raise _other_shape(expected, shapes, name, header.source, what)
        dtype = header.tensors[prefix + name].dtype
        if (dtype in ("F16", "BF16", "F32", "F64")) != (name in expected.floating):
            raise InputFileRefused(
                f"{header.source}: {name} is stored as {dtype}, which {what} cannot use",
                hint="save the model in float32, unquantised: model.float().state_dict()",
            )


def _other_names(
    expected: Expected,
    shapes: Shapes,
    missing: list[str],
    extra: list[str],
    source: str,
    what: str,
) -> InputFileRefused:
    parts = [
        f"{label}: {_some(names)}"
        for label, names in (("missing", missing), ("extra", extra))
        if names
    ]
    statistics = ("running_mean", "running_var")
    prefix = next(iter(shapes), "").partition(".")[0] + "."
    if not extra and all(name.endswith(statistics) for name in missing):
        hint = "BatchNorm statistics were not saved: save model.state_dict(), not its parameters"
    elif {prefix + name for name in expected.shapes} == shapes.keys():
        hint = f"every name begins with {prefix!r}: save model.{prefix}state_dict() instead"
    elif found := find_architectures(shapes):
        hint = f"it looks like {found[0].architecture}: --arch {found[0].architecture}"
    else:
        hint = "check the architecture; `genkd-node inspect` shows what the file holds"
    return InputFileRefused(f"{source} is not {what}: {'; '.join(parts)}", hint=hint)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _other_shape(
    expected: Expected, shapes: Shapes, name: str, source: str, what: str
) -> InputFileRefused:
    wanted, found = expected.shapes[name], shapes[name]
    differing = {n for n, shape in expected.shapes.items() if shapes[n] != shape}
    head = {expected.head, expected.head.removesuffix("weight") + "bias"}
    if differing <= head and found[1:] == wanted[1:]:
        return InputFileRefused(
            f"{source} has {found[0]} classes, not {wanted[0]}",
            hint=f"give --num-classes {found[0]}, or the file of the model you mean",
        )
    if differing == {expected.stem} and len(found) == 4 and found[2:] == wanted[2:]:
        return InputFileRefused(
            f"{source} takes images of {found[1]} channel(s), not {wanted[1]}",
            hint=f"give an input card of {found[1]} channel(s): one mean and std per channel",
        )
    proposal = find_architectures(shapes)
    hint = (
        f"it looks like {proposal[0].architecture}: --arch {proposal[0].architecture}"
        if proposal
        else "check the architecture and its width"
    )
    return InputFileRefused(
        f"{source} is not {what}: {name} is {_times(found)}, not {_times(wanted)}", hint=hint
    )


def _times(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "a single number"
