"""What it costs to keep and run a model: parameters, bytes, latency, memory.

cost = measure_cost(student, images=torch.rand(256, 1, 32, 32))
print(cost.parameters, cost.latency_ms[1])
"""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psutil
import torch
from torch import Tensor, nn

# One image: what a person waits for. 256: what a server can do.
LATENCY_BATCHES = (1, 256)
# Latency is the median of repeated calls: as many as fit into the time, within these bounds.
LATENCY_SECONDS = 2.0
LATENCY_CALLS = (3, 50)
WARM_UP_CALLS = 2


@dataclass(frozen=True)
class Cost:
    """What it costs to keep and run a model.

    Attributes:
        parameters: Number of values that were trained.
        bytes: Size of its parameters and buffers in memory.
        latency_ms: Median time of one call in milliseconds, by batch size.
    """

    parameters: int
    bytes: int
    latency_ms: dict[int, float]

    def as_json(self) -> dict[str, object]:
        """The same as plain JSON values."""
        latency = {str(batch): ms for batch, ms in self.latency_ms.items()}
        return {"parameters": self.parameters, "bytes": self.bytes, "latency_ms": latency}


def measure_cost(model: nn.Module, images: Tensor) -> Cost:
    """Count and time `model`, in evaluation mode; afterwards its mode is as before.

    Args:
        model: On the device of `images`.
        images: What it takes, (B, C, H, W). Latency is measured for batches of 1 and 256 as far as
            B allows, so on B images at most.
    """
    state = [*model.parameters(), *model.buffers()]
    with evaluation_mode(model):
        latency = {
            batch: _latency_ms(model, images[:batch])
            for batch in LATENCY_BATCHES
            if batch <= len(images)
        }
    return Cost(
        parameters=sum(p.numel() for p in model.parameters()),
        bytes=sum(t.numel() * t.element_size() for t in state),
        latency_ms=latency,
    )


@torch.inference_mode()
def _latency_ms(model: nn.Module, images: Tensor) -> float:
    """Median time of one call, in milliseconds, after warming up."""
    for _ in range(WARM_UP_CALLS):
        model(images)
    _synchronize(images.device)
    fewest, most = LATENCY_CALLS
    times: list[float] = []
    while len(times) < fewest or (len(times) < most and sum(times) < LATENCY_SECONDS):
        start = time.perf_counter()
        model(images)
        _synchronize(images.device)
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1000


def _synchronize(device: torch.device) -> None:
    """Wait for the accelerator, which otherwise only queues what it is told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """`model.eval()`, and afterwards each of its modules as it was."""
    was = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in was.items():
            module.training = training


def peak_memory_bytes(device: torch.device) -> int:
    """Peak of the memory used so far.

    On a GPU, of what torch allocated there since `torch.cuda.reset_peak_memory_stats`. Elsewhere,
    of the resident memory of this whole process since it started, torch itself included.
    """
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB


def memory_in_use_bytes(device: torch.device) -> int:
    """Memory in use now: on a GPU what torch allocated there, elsewhere this process's resident."""
    if device.type == "cuda":
        return int(torch.cuda.memory_allocated(device))
    return int(psutil.Process().memory_info().rss)


def device_name(device: torch.device) -> str:
    """What a person calls `device`: cpu, mps, or the name of the GPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch or Python ran out of memory; on the CPU torch has no type of its own for it."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "allocate memory" in str(error)
