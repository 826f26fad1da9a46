"""The ONNX answers as torch does, says nothing of this machine, and is written whole or not."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from genkd.card import InputCard, ModelCard, ModelSpec, card_from_json
from genkd.errors import ConfigurationError, ResourceExhausted, UsageError
from genkd.export import export_onnx, onnx_bytes
from genkd.models import build_model
from genkd.teacher import Teacher

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

SPEC = ModelSpec("resnet8-quarter", 4, 2)
CARD = ModelCard(
    SPEC, InputCard(8, 8, 2, (0.25, 0.5), (0.5, 0.125)), ("cat", "dog", "fox", "größe")
)


def model_of(network: nn.Module | None = None) -> Teacher:
    network = network or build_model(SPEC, generator=torch.Generator().manual_seed(0))
    return Teacher(network, CARD, "0" * 64)


@pytest.fixture(scope="module")
def exported() -> bytes:
    return onnx_bytes(model_of())


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_onnx_takes_plain_images_in_batches_of_any_size(exported: bytes, batch: int) -> None:
    network = build_model(SPEC, generator=torch.Generator().manual_seed(0)).eval()
    images = torch.rand(batch, 2, 8, 8, generator=torch.Generator().manual_seed(batch))
    mean, std = torch.tensor([0.25, 0.5]), torch.tensor([0.5, 0.125])
    session = onnxruntime.InferenceSession(exported)
    (logits,) = session.run(None, {"images": images.numpy()})
    with torch.no_grad():
        expected = network((images - mean[:, None, None]) / std[:, None, None]).numpy()
    assert logits.shape == (batch, 4)
    np.testing.assert_allclose(logits, expected, atol=1e-4)


def test_onnx_is_valid_and_names_its_ends(exported: bytes) -> None:
    model = onnx.load_from_string(exported)
    onnx.checker.check_model(model, full_check=True)
    assert [value.name for value in model.graph.input] == ["images"]
    assert [value.name for value in model.graph.output] == ["logits"]
    sides = model.graph.input[0].type.tensor_type.shape.dim
    assert sides[0].dim_param
    assert [side.dim_value for side in sides[1:]] == [2, 8, 8]


def test_onnx_carries_the_card(exported: bytes) -> None:
    (entry,) = onnx.load_from_string(exported).metadata_props
    assert entry.key == "genkd"
    assert card_from_json(json.loads(entry.value)["card"]) == CARD


def test_onnx_says_nothing_of_this_machine(exported: bytes) -> None:
    for trace in (str(Path(__file__).parents[2]), sys.prefix, "stack_trace", ".py", "File "):
        assert trace.encode() not in exported


def test_onnx_has_the_same_bytes_each_time(exported: bytes) -> None:
    assert onnx_bytes(model_of()) == exported


def test_exporting_writes_the_file_and_leaves_the_model_alone(
    tmp_path: Path, exported: bytes
) -> None:
    model = model_of()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    export_onnx(model, tmp_path / "student.onnx")
    assert (tmp_path / "student.onnx").read_bytes() == exported
    assert list(tmp_path.iterdir()) == [tmp_path / "student.onnx"]
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


# --- Failures -------------------------------------------------------------------------------------


class AnswersOtherwiseInOnnx(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(128, 4)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(images.flatten(1))
        return logits + 0.01 if torch.compiler.is_exporting() else logits


class NaNInOnnx(AnswersOtherwiseInOnnx):
    def forward(self, images: Tensor) -> Tensor:
        logits = super().forward(images)
        return logits * torch.nan if torch.compiler.is_exporting() else logits


class LooksAtItsValues(AnswersOtherwiseInOnnx):
    """Takes another way for dark images, which no trace can follow."""

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(images.flatten(1))
        return -logits if images.mean() < 0 else logits


class OneBatchSize(AnswersOtherwiseInOnnx):
    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(images.reshape(2, 128))
        return logits


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (AnswersOtherwiseInOnnx, "does not answer as torch does"),
        (NaNInOnnx, "does not answer as torch does"),
        (LooksAtItsValues, "cannot be exported"),
        (OneBatchSize, "cannot be exported|onnxruntime cannot run"),
    ],
)
def test_a_network_that_onnx_cannot_hold_leaves_the_old_file(
    tmp_path: Path, network: type[nn.Module], message: str
) -> None:
    path = tmp_path / "student.onnx"
    path.write_bytes(b"old")
    with pytest.raises(ConfigurationError, match=message) as caught:
        export_onnx(model_of(network()), path)
    assert "\n" not in caught.value.message
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_named_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UsageError, match=f"{package} is not installed") as caught:
        export_onnx(model_of(), tmp_path / "student.onnx")
    assert "genkd-node[onnx]" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("genkd.export.onnx_bytes", lambda model: b"exported")
    with pytest.raises(ResourceExhausted):
        export_onnx(model_of(), tmp_path / "none" / "student.onnx")
