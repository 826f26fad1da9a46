"""Which device and precision a person gets for what they ask."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from genkd import device as device_module
from genkd.device import Device, choose_device
from genkd.errors import ConfigurationError

DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA here")
    ),
]
CpuInfo = Callable[[str], None]


@pytest.fixture
def cpuinfo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[CpuInfo]:
    """Let the machine's processor be what a text says."""
    file = tmp_path / "cpuinfo"
    monkeypatch.setattr(device_module, "Path", lambda _: file)
    monkeypatch.setattr("genkd.device.platform.system", lambda: "Linux")

    def say(text: str) -> None:
        device_module._processor_multiplies_bf16.cache_clear()
        if text:
            file.write_text(text)

    yield say
    device_module._processor_multiplies_bf16.cache_clear()


@pytest.mark.parametrize(
    "name",
    [
        "",
        "gpu",
        "CPU",
        "cpu:",
        "cpu:x",
        "cpu:-1",
        "cuda:01",
        "cuda:\u0660",
        " cpu",
        "cpu\n",
        "meta",
        "xla",
    ],
)
def test_a_name_that_means_nothing_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match="there is no device") as caught:
        choose_device(name, "fp32")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["cpu:1", "cuda:9999", "mps:7"])
def test_a_device_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"this machine has no {name}") as caught:
        choose_device(name, "fp32")
    assert "--device cpu" in caught.value.hint


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA here")
def test_cuda_without_cuda_is_refused_and_auto_falls_back() -> None:
    with pytest.raises(ConfigurationError, match="this machine has no cuda"):
        choose_device("cuda", "auto")
    assert choose_device("auto", "fp32").torch.type in ("cpu", "mps")


@pytest.mark.parametrize("precision", ["", "fp16", "bfloat16", "FP32"])
def test_an_unknown_precision_is_refused(precision: str) -> None:
    with pytest.raises(ConfigurationError, match="there is no precision"):
        choose_device("cpu", precision)


@pytest.mark.parametrize(
    ("text", "precision"),
    [
        ("flags\t\t: fpu sse2 avx512f avx512_bf16 amx_tile\n", "bf16"),
        ("processor : 0\nFeatures\t: fp asimd bf16 i8mm\n", "bf16"),
        ("flags\t\t: fpu sse2 avx2\n", "fp32"),
        ("flags\t\t: fpu notavx512_bf16\nbugs : avx512_bf16\n", "fp32"),
        ("model name : bf16\n", "fp32"),
        ("", "fp32"),
    ],
    ids=["x86 with", "Arm with", "x86 without", "only like it", "only by name", "unreadable"],
)
def test_auto_takes_bf16_only_where_the_processor_multiplies_it(
    text: str, precision: str, cpuinfo: CpuInfo
) -> None:
    cpuinfo(text)
    assert choose_device("cpu", "auto").precision == precision


def test_what_a_person_says_wins_over_the_processor(cpuinfo: CpuInfo) -> None:
    cpuinfo("flags : avx2\n")
    assert choose_device("cpu", "bf16").precision == "bf16"
    cpuinfo("flags : avx512_bf16\n")
    assert choose_device("cpu", "fp32").precision == "fp32"


@pytest.mark.parametrize("name", DEVICES)
@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)]
)
def test_autocast_sets_the_type_of_products_and_leaves_weights_alone(
    name: str, precision: str, dtype: torch.dtype
) -> None:
    device = choose_device(name, precision)
    layer = nn.Linear(4, 4).to(device.torch)
    with device.autocast():
        out = layer(torch.ones(2, 4, device=device.torch))
    assert out.dtype is dtype
    assert layer.weight.dtype is torch.float32


@pytest.mark.parametrize("name", DEVICES)
def test_a_seed_gives_the_same_noise_on_the_device(name: str) -> None:
    device = Device(torch.device(name), "fp32")
    first, second = (
        torch.randn(5, generator=device.generator(3), device=device.torch) for _ in range(2)
    )
    assert first.device.type == name
    assert torch.equal(first, second)
    other = torch.randn(5, generator=device.generator(4), device=device.torch)
    assert not torch.equal(first, other)
