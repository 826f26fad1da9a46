"""Where to compute, and in which precision: the one place that knows about devices.

device = choose_device("auto", "auto")
with device.autocast():
    logits = teacher(images.to(device.torch))
"""

from __future__ import annotations

import functools
import platform
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Generator, Tensor
from torch import device as torch_device

from genkd.errors import ConfigurationError

Precision = Literal["fp32", "bf16"]
# The flags by which Linux tells that a processor multiplies bf16 in hardware. Without them bf16 is
# emulated and several times slower than fp32.
BF16_FLAGS = ("avx512_bf16", "amx_bf16", "bf16")
NAME = re.compile(r"(cpu|cuda|mps)(?::(0|[1-9][0-9]{0,3}))?")


@dataclass(frozen=True)
class Device:
    """A device and the precision of forward passes on it.

    Attributes:
        torch: The device.
        precision: "fp32", or "bf16" by autocast (weights and losses stay float32).
    """

    torch: torch_device
    precision: Precision

    def autocast(self) -> AbstractContextManager[None]:
        """The context of forward passes."""
        return torch.autocast(self.torch.type, torch.bfloat16, enabled=self.precision == "bf16")

    def generator(self, seed: int) -> Generator:
        """A random source on this device: noise costs no transfer."""
        return Generator(self.torch).manual_seed(seed)


class Constant:
    """Numbers that never change, as a tensor of each device where they are asked for.

    A copy to a GPU makes the processor wait for all that the GPU still has to do, so there is one.

    Args:
        values: N numbers, at least one; integers become int64, others float32.
    """

    def __init__(self, values: Sequence[float]) -> None:
        self._values = tuple(values)
        self._kept: dict[torch_device, Tensor] = {}

    def on(self, device: torch_device) -> Tensor:
        """The numbers (N,) on `device`, the same tensor each time."""
        if torch.compiler.is_compiling():  # an exporter's stand-in for the tensor is not kept
            return torch.tensor(self._values, device=device)
        if device not in self._kept:
            # A tensor of inference mode could not be used where gradients flow.
            with torch.inference_mode(False):
                self._kept[device] = torch.tensor(self._values, device=device)
        return self._kept[device]


@contextmanager
def global_random(device: torch_device, seed: int) -> Iterator[None]:
    """Torch's global random states follow from `seed`; afterwards they are as they were.

    Layers that take no generator, as dropout, draw from that of their device.

    Args:
        device: Whose state, beside the CPU's.
        seed: 0..2^63 - 1.
    """
    kind, number = device.type, device.index
    # Not torch.cuda.manual_seed, which seeds the current device.
    cuda = [torch.cuda.current_device() if number is None else number] if kind == "cuda" else []
    # Older torch's `fork_rng` cannot do it for MPS.
    mps = torch.mps.get_rng_state() if kind == "mps" else None
    with torch.random.fork_rng(devices=cuda):
        torch.default_generator.manual_seed(seed)
        for index in cuda:
            torch.cuda.default_generators[index].manual_seed(seed)
        if mps is not None:
            torch.mps.manual_seed(seed)
        try:
            yield
        finally:
            if mps is not None:
                torch.mps.set_rng_state(mps)


def choose_device(name: str, precision: str) -> Device:
    """The device and precision that a person asked for.

    With CUDA, TF32 is switched off for the whole process: fp32 means float32.

    Args:
        name: "auto" (CUDA, then MPS, then the CPU), "cpu", "cuda", "cuda:N" or "mps".
        precision: "auto" (bf16 where the hardware has it), "fp32" or "bf16".

    Raises:
        ConfigurationError: If the device is not there, or a name means nothing.
    """
    if precision not in ("auto", "fp32", "bf16"):
        raise ConfigurationError(
            f"there is no precision {precision!r}", hint="use auto, fp32 or bf16"
        )
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if _has_mps() else "cpu"
    match = NAME.fullmatch(name)
    if match is None:
        raise ConfigurationError(
            f"there is no device {name[:40]!r}", hint="use auto, cpu, cuda, cuda:N or mps"
        )
    kind, number = match[1], int(match[2] or 0)
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": _has_mps()}
    count = torch.cuda.device_count() if kind == "cuda" else 1
    if not there[kind] or number >= count:
        raise ConfigurationError(
            f"this machine has no {name} that torch can use",
            hint="use --device cpu, or install the torch build of this device",
        )
    device = torch_device(name)
    if kind == "cuda":
        _switch_tf32_off()
    if precision == "auto":
        precision = "bf16" if _multiplies_bf16(device) else "fp32"
    return Device(device, "bf16" if precision == "bf16" else "fp32")


def _has_mps() -> bool:
    return bool(torch.backends.mps.is_available())


def _multiplies_bf16(device: torch_device) -> bool:
    if device.type == "cuda":
        # Not torch.cuda.is_bf16_supported, which asks the current device.
        return bool(torch.version.hip) or torch.cuda.get_device_capability(device)[0] >= 8
    return device.type == "cpu" and _processor_multiplies_bf16()


def _switch_tf32_off() -> None:
    """Convolutions of float32 in float32; by default cuDNN rounds mantissas to 10 bits for them.

    Products of matrices are not rounded by default. The newer `torch.backends.cudnn.conv.
    fp32_precision` is of torch 2.9, and whoever reads `allow_tf32` after it was set gets an error.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch 2.9 advises the newer setting
        torch.backends.cudnn.allow_tf32 = False


@functools.cache
def _processor_multiplies_bf16() -> bool:
    if platform.system() != "Linux":
        return False
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    for line in text.splitlines():
        name, _, flags = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return not set(BF16_FLAGS).isdisjoint(flags.split())
    return False
