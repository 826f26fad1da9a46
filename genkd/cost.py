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
# How torch says it where it has no type of its own for it: on a CPU; on MPS and where CUDA itself
# refuses; cuBLAS's and cuDNN's workspaces.
OUT_OF_MEMORY = ("allocate memory", "out of memory", "ALLOC_FAILED")


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

    On a GPU, of what torch allocated there since `reset_peak_memory`. Elsewhere, of the resident
    memory of this whole process since it started, torch itself included.
    """
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB


def reset_peak_memory(device: torch.device) -> None:
    """Let `peak_memory_bytes` of a GPU count from now on; elsewhere nothing can be reset."""
    if device.type == "cuda":
        # In a fresh process "cuda:0" is an error without.
        torch.cuda.init()  # type: ignore[no-untyped-call]
        torch.cuda.reset_peak_memory_stats(device)


def memory_in_use_bytes(device: torch.device) -> int:
    """Memory that is taken from others now: this process's resident, or what torch holds of a GPU.

    On a GPU that is more than its tensors: what a batch needed while it ran is freed at its end,
    but stays torch's.
    """
    if device.type == "cuda":
        return int(torch.cuda.memory_reserved(device))
    if device.type == "mps":
        return int(torch.mps.driver_allocated_memory())
    return int(psutil.Process().memory_info().rss)


def device_name(device: torch.device) -> str:
    """What a person calls `device`: cpu, mps, or the name of the GPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch or Python ran out of memory, on whatever device."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and says_out_of_memory(str(error))


def says_out_of_memory(message: str) -> bool:
    """Whether a library's message says that memory ran out."""
    return any(words in message for words in OUT_OF_MEMORY)
