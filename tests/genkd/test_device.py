"""Which device and precision a person gets for what they ask."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from genkd import device as device_module
from genkd.device import Constant, Device, choose_device, global_random
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


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let there be an old GPU and, behind it, one that multiplies bf16; the old one is current."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.current_device", lambda: 0)
    monkeypatch.setattr(
        "torch.cuda.get_device_capability", lambda device: (9, 0) if device.index else (7, 5)
    )
    yield
    torch.backends.cudnn.allow_tf32 = True


@pytest.mark.parametrize(
    ("name", "hip", "precision"),
    [
        ("cuda", None, "fp32"),
        ("cuda:0", None, "fp32"),
        ("cuda:1", None, "bf16"),
        ("cuda:0", "6.2", "bf16"),
    ],
)
def test_the_gpu_that_is_chosen_is_asked_whether_it_multiplies_bf16(
    name: str, hip: str | None, precision: str, two_gpus: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.version.hip", hip)
    assert choose_device(name, "auto").precision == precision


def test_on_a_gpu_float32_is_not_rounded_to_tf32(two_gpus: None) -> None:
    assert torch.backends.cudnn.allow_tf32
    choose_device("cpu", "auto")
    assert torch.backends.cudnn.allow_tf32
    choose_device("cuda:1", "fp32")
    assert not torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize("kind", ["cpu", "cuda", "cuda:1", "mps"])
def test_layers_draw_by_the_seed_on_their_very_device_and_leave_no_trace(
    kind: str, two_gpus: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus, apple = [torch.Generator().manual_seed(n) for n in (5, 6)], torch.Generator()
    monkeypatch.setattr("torch.cuda.default_generators", gpus)
    monkeypatch.setattr("torch.cuda.get_rng_state", lambda index: gpus[index].get_state())
    monkeypatch.setattr(
        "torch.cuda.set_rng_state", lambda state, index: gpus[index].set_state(state)
    )
    monkeypatch.setattr("torch.mps.get_rng_state", apple.get_state)
    monkeypatch.setattr("torch.mps.set_rng_state", apple.set_state)
    monkeypatch.setattr("torch.mps.manual_seed", apple.manual_seed)
    everywhere = {"cpu": torch.default_generator, "cuda": gpus[0], "cuda:1": gpus[1], "mps": apple}
    before = {name: source.get_state() for name, source in everywhere.items()}
    with global_random(torch.device(kind), 7):
        seeded = {name for name, source in everywhere.items() if source.initial_seed() == 7}
        assert seeded == {"cpu", kind}
        for name in seeded:
            torch.rand(3, generator=everywhere[name])
    for name, source in everywhere.items():
        assert torch.equal(source.get_state(), before[name])


def test_a_constant_is_one_tensor_on_a_device_and_serves_gradients_too() -> None:
    constant, device = Constant((2, 0)), torch.device("cpu")
    with torch.inference_mode():
        first = constant.on(device)
    assert first.dtype is torch.int64
    assert constant.on(device) is first
    values = torch.ones(2, 3, requires_grad=True)
    values[:, constant.on(device)].sum().backward()  # type: ignore[no-untyped-call]
    assert values.grad is not None
    assert values.grad[0].tolist() == [1, 0, 1]
    assert Constant((0.5, 2)).on(device).dtype is torch.float32


def test_a_constant_does_not_keep_what_an_exporter_puts_in_its_place() -> None:
    class Picking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.places = Constant((1,))

        def forward(self, values: torch.Tensor) -> torch.Tensor:
            return values[:, self.places.on(values.device)]

    module, values = Picking(), torch.arange(6.0).view(2, 3)
    exported = torch.export.export(module, (values,))
    assert torch.equal(exported.module()(values), values[:, 1:2])
    assert torch.equal(module(values), values[:, 1:2])
