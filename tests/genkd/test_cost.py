"""Memory: how torch says that there is none, and what is counted on which device."""

from __future__ import annotations

import pytest
import torch

from genkd.cost import (
    is_out_of_memory,
    memory_in_use_bytes,
    peak_memory_bytes,
    reset_peak_memory,
)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"
        ),
        RuntimeError(
            "MPS backend out of memory (MPS allocated: 8.00 GB, other allocations: 1 GB)."
        ),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    ],
)
def test_memory_that_ran_out_is_known_whoever_says_it(error: BaseException) -> None:
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED"),
        ValueError("out of memory"),
        KeyboardInterrupt(),
    ],
)
def test_other_errors_are_not_taken_for_it(error: BaseException) -> None:
    assert not is_out_of_memory(error)


def test_on_an_accelerator_what_torch_holds_there_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    held = {torch.device("cuda:0"): 1, torch.device("cuda:1"): 2}
    monkeypatch.setattr("torch.cuda.memory_reserved", held.__getitem__)
    monkeypatch.setattr("torch.mps.driver_allocated_memory", lambda: 3)
    devices = ("cuda:0", "cuda:1", "mps")
    assert [memory_in_use_bytes(torch.device(name)) for name in devices] == [1, 2, 3]
    assert memory_in_use_bytes(torch.device("cpu")) > 2**20


def test_the_peak_of_a_gpu_starts_anew_also_in_a_fresh_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    called: list[object] = []
    monkeypatch.setattr("torch.cuda.init", lambda: called.append("init"))
    monkeypatch.setattr("torch.cuda.reset_peak_memory_stats", called.append)
    reset_peak_memory(torch.device("cuda:1"))
    assert called == ["init", torch.device("cuda:1")]


def test_the_peak_of_the_process_cannot_be_reset() -> None:
    cpu = torch.device("cpu")
    before = peak_memory_bytes(cpu)
    reset_peak_memory(cpu)
    assert peak_memory_bytes(cpu) >= before > 2**20
