"""Where to compute, and in which precision: the one place that knows about devices.

device = choose_device("auto", "auto")
with device.autocast():
    logits = teacher(images.to(device.torch))
"""

from __future__ import annotations

import functools
import platform
import re
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Generator
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


def choose_device(name: str, precision: str) -> Device:
    """The device and precision that a person asked for.

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
    if precision == "auto":
        precision = "bf16" if _multiplies_bf16(device) else "fp32"
    return Device(device, "bf16" if precision == "bf16" else "fp32")


def _has_mps() -> bool:
    return bool(torch.backends.mps.is_available())


def _multiplies_bf16(device: torch_device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and _processor_multiplies_bf16()


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
