"""Figures against hand-worked numbers, students that are not what they say, odd models."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from genkd.calibration import calibration_error
from genkd.card import InputCard, ModelCard, ModelSpec, card_to_json
from genkd.errors import InputFileRefused, ResourceExhausted, UsageError
from genkd.evaluate import confusion_matrix, evaluate, load_student
from genkd.images import LabelledImages
from genkd.models import build_model
from genkd.teacher import Teacher
from genkd.weights import write_model


def card_of(classes: int = 3, side: int = 2, architecture: str = "resnet8-quarter") -> ModelCard:
    return ModelCard(ModelSpec(architecture, classes, 1), InputCard(side, side, 1, (0.0,), (1.0,)))


class Table(nn.Module):
    """Answers an image whose first pixel is n with row n of a table of logits."""

    def __init__(self, rows: list[list[float]]) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.tensor(rows))
        self.calls: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        self.calls.append(len(images))
        return self.rows[(images[:, 0, 0, 0] * 255).round().long()]


def numbered(labels: list[int], side: int = 2) -> LabelledImages:
    """Images 0, 1, 2, ... for a `Table`."""
    images = np.zeros((len(labels), 1, side, side), np.uint8)
    images[:, 0, 0, 0] = np.arange(len(labels))
    return LabelledImages(images, np.array(labels, np.int64), ("a note",))


def logits_of(*probabilities: list[float]) -> list[list[float]]:
    return [[math.log(p) for p in row] for row in probabilities]


def test_figures_of_four_images_are_those_worked_by_hand() -> None:
    student = Table(logits_of([0.8, 0.1, 0.1], [0.7, 0.2, 0.1], [0.2, 0.5, 0.3], [0.05, 0.05, 0.9]))
    teacher = Table(logits_of([0.9, 0.05, 0.05], [0.1, 0.8, 0.1], [0.1, 0.6, 0.3], [0.1, 0.1, 0.8]))
    result = evaluate(student, numbered([0, 1, 2, 2]), card_of(), teacher, batch_size=3)
    assert result.images == 4
    assert result.top1 == 0.5  # images 0 and 3
    assert result.top5 is None  # three classes have no five likeliest
    expected = -(math.log(0.8) + math.log(0.2) + math.log(0.3) + math.log(0.9)) / 4
    assert result.nll == pytest.approx(expected, rel=1e-6)
    # Four bins of one image each: (0.2 + 0.7 + 0.5 + 0.1) / 4.
    assert result.ece == pytest.approx(1.5 / 4, rel=1e-6)
    assert result.accuracy_per_class == (1.0, 0.0, 0.5)
    assert result.confusion == ((1, 0, 0), (1, 0, 0), (0, 1, 1))
    assert result.agreement == 0.75  # all but image 1
    # The teacher puts 0 into class 0, 1 and 2 into class 1, 3 into class 2.
    assert result.agreement_per_class == (1.0, 0.5, 1.0)
    assert result.teacher_top1 == 0.75
    assert result.student.parameters == 12
    assert result.student.bytes == 48
    assert result.teacher is not None
    assert result.notes == ("a note",)


def test_top5_counts_true_classes_among_the_five_likeliest() -> None:
    rows = [[7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0]] * 3
    result = evaluate(Table(rows), numbered([0, 4, 5]), card_of(classes=7))
    assert result.top1 == pytest.approx(1 / 3)
    assert result.top5 == pytest.approx(2 / 3)


def test_classes_without_images_have_no_accuracy() -> None:
    result = evaluate(Table([[1.0, 0.0, 0.0]]), numbered([0]), card_of())
    assert result.accuracy_per_class == (1.0, None, None)


def test_without_a_teacher_nothing_is_said_of_one() -> None:
    result = evaluate(Table([[1.0, 0.0, 0.0]]), numbered([0]), card_of())
    assert (result.agreement, result.agreement_per_class) == (None, None)
    assert (result.teacher_top1, result.teacher) == (None, None)


def test_figures_do_not_depend_on_the_batch_size() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(40, 3, generator=generator).tolist()
    data = numbered([n % 3 for n in range(40)])
    results = [evaluate(Table(rows), data, card_of(), batch_size=n) for n in (1, 7, 40, 1000)]
    for result in results[1:]:
        assert result.confusion == results[0].confusion
        assert result.nll == pytest.approx(results[0].nll, rel=1e-12)
        assert result.ece == pytest.approx(results[0].ece, rel=1e-12)


def test_latency_is_measured_for_one_and_for_many_even_with_few_images() -> None:
    model = Table([[1.0, 0.0, 0.0]])
    result = evaluate(model, numbered([0]), card_of())
    assert set(result.student.latency_ms) == {1, 256}
    assert all(ms > 0 for ms in result.student.latency_ms.values())
    assert model.calls.count(256) >= 5  # two to warm up, three at least for a median


def test_latency_keeps_to_the_batch_size_that_fits_into_memory() -> None:
    model = Table([[1.0, 0.0, 0.0]])
    result = evaluate(model, numbered([0]), card_of(), batch_size=16)
    assert set(result.student.latency_ms) == {1}
    assert max(model.calls) <= 16


def test_evaluation_is_plain_json() -> None:
    table = Table([[1.0, 0.0, 0.0]])
    values = evaluate(table, numbered([0]), card_of(), table).as_json()
    back = json.loads(json.dumps(values, allow_nan=False))
    assert back["schema_version"] == 1
    assert back["top1"] == 1.0
    assert set(back["student"]["latency_ms"]) == {"1", "256"}
    assert len(back["calibration"]) == 15
    assert back["peak_memory_bytes"] > 2**20


def test_progress_rises_to_one() -> None:
    seen: list[float] = []
    table = Table([[1.0, 0.0, 0.0]] * 4)
    data = numbered([0, 0, 0, 0])
    evaluate(table, data, card_of(), table, batch_size=2, on_progress=seen.append)
    assert seen == [0.25, 0.5, 0.75, 1.0]


# --- Calibration and confusion --------------------------------------------------------------------


def test_calibration_error_of_two_images_in_one_bin_compares_their_means() -> None:
    # Confidences 0.61 and 0.65 share the bin (0.6, 0.667]; one of two is right.
    error, bins = calibration_error(torch.tensor([0.61, 0.65]), torch.tensor([True, False]))
    assert error == pytest.approx(0.63 - 0.5, abs=1e-6)
    assert bins[9].count == 2
    assert bins[9].accuracy == 0.5
    assert bins[0].confidence is None
    assert sum(b.count for b in bins) == 2


def test_calibration_bins_are_closed_on_the_right() -> None:
    confidence = torch.tensor([0.2, 0.2 + 1e-9, 1.0], dtype=torch.float64)
    _, bins = calibration_error(confidence, torch.ones(3, dtype=torch.bool), bins=5)
    assert [b.count for b in bins] == [1, 1, 0, 0, 1]


def test_perfectly_calibrated_answers_have_no_error() -> None:
    confidence = torch.full((10,), 0.7, dtype=torch.float64)
    error, _ = calibration_error(confidence, torch.arange(10) < 7)
    assert error == pytest.approx(0, abs=1e-12)


def test_confusion_has_true_classes_as_rows() -> None:
    labels, predicted = torch.tensor([0, 0, 1]), torch.tensor([1, 1, 0])
    assert confusion_matrix(labels, predicted, 2) == ((0, 2), (1, 0))


def test_confusion_of_too_many_classes_is_left_out() -> None:
    assert confusion_matrix(torch.tensor([5]), torch.tensor([7]), 1001) is None


# --- Models that misbehave ------------------------------------------------------------------------


class Moody(nn.Module):
    """In training mode it answers otherwise; one part of it is frozen in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.frozen = nn.BatchNorm2d(1), nn.BatchNorm2d(1)
        self.head = nn.Linear(4, 3)
        self.train()
        self.frozen.eval()

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.frozen(self.norm(images)).flatten(1))
        return logits


def test_evaluating_leaves_the_model_as_it_was() -> None:
    model = Moody()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    evaluate(model, numbered([0, 1, 2]), card_of())
    assert (model.training, model.norm.training, model.frozen.training) == (True, True, False)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_model_that_answers_nan_is_refused(value: float) -> None:
    with pytest.raises(InputFileRefused, match="NaN or infinity"):
        evaluate(Table([[0.0, value, 0.0]]), numbered([0]), card_of())


def test_a_model_of_other_classes_than_its_card_is_refused() -> None:
    with pytest.raises(UsageError, match=r"\(1, 4\).*\(1, 3\)"):
        evaluate(Table([[0.0] * 4]), numbered([0]), card_of())


def test_images_of_another_size_are_refused() -> None:
    with pytest.raises(UsageError, match="for a model that takes"):
        evaluate(Table([[0.0] * 3]), numbered([0], side=3), card_of())


@pytest.mark.parametrize(
    "other", [card_of(classes=4), card_of(side=3)], ids=["other classes", "other size"]
)
def test_the_teacher_of_another_student_is_refused(other: ModelCard) -> None:
    teacher = Teacher(Table([[0.0] * 4]), other, "0" * 64)
    with pytest.raises(UsageError, match="the teacher has"):
        evaluate(Table([[0.0] * 3]), numbered([0]), card_of(), teacher)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
    ids=["python", "cuda", "cpu"],
)
def test_out_of_memory_is_told_with_a_smaller_batch_size(error: Exception) -> None:
    class Hungry(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            raise error

    with pytest.raises(ResourceExhausted, match="batches of 64") as caught:
        evaluate(Hungry(), numbered([0]), card_of(), batch_size=64)
    assert "--batch-size 16" in caught.value.hint


def test_other_errors_of_a_model_are_not_called_out_of_memory() -> None:
    class Broken(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        evaluate(Broken(), numbered([0]), card_of())


# --- Loading a student ----------------------------------------------------------------------------


def student_file(path: Path, card: ModelCard, network: nn.Module | None = None) -> nn.Module:
    network = network or build_model(card.spec, generator=torch.Generator().manual_seed(1))
    write_model(path, network.state_dict(), {"v": 1, "card": card_to_json(card)})
    return network.eval()


def test_a_student_comes_back_with_its_normalisation_inside(tmp_path: Path) -> None:
    spec = ModelSpec("resnet8-quarter", 3, 1)
    card = ModelCard(spec, InputCard(8, 8, 1, (0.25,), (0.5,)))
    network = student_file(tmp_path / "student.safetensors", card)
    student = load_student(tmp_path / "student.safetensors")
    images = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert student.card == card
    torch.testing.assert_close(student(images), network((images - 0.25) / 0.5), rtol=0, atol=0)


def test_a_card_beside_the_student_does_not_count(tmp_path: Path) -> None:
    card = card_of(side=8)
    student_file(tmp_path / "student.safetensors", card)
    forged = card_to_json(ModelCard(card.spec, InputCard(8, 8, 1, (0.9,), (0.1,))))
    (tmp_path / "student.json").write_text(json.dumps(forged))
    assert load_student(tmp_path / "student.safetensors").card == card


def test_a_model_of_another_program_is_no_student(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    network = build_model(ModelSpec("resnet8-quarter", 3, 1))
    save_file(network.state_dict(), tmp_path / "bare.safetensors")
    with pytest.raises(InputFileRefused, match="genkd"):
        load_student(tmp_path / "bare.safetensors")


def test_a_model_without_a_card_is_no_student(tmp_path: Path) -> None:
    network = build_model(ModelSpec("resnet8-quarter", 3, 1))
    write_model(tmp_path / "bare.safetensors", network.state_dict(), {"v": 1})
    with pytest.raises(InputFileRefused, match="card"):
        load_student(tmp_path / "bare.safetensors")


def test_a_student_of_another_architecture_than_its_card_is_refused(tmp_path: Path) -> None:
    wrong = build_model(ModelSpec("resnet8-half", 3, 1))
    student_file(tmp_path / "student.safetensors", card_of(), wrong)
    with pytest.raises(InputFileRefused, match="is not resnet8-quarter with 3 classes"):
        load_student(tmp_path / "student.safetensors")


def test_a_student_of_an_unknown_architecture_is_refused(tmp_path: Path) -> None:
    wrong = build_model(ModelSpec("resnet8-quarter", 3, 1))
    student_file(tmp_path / "student.safetensors", card_of(architecture="resnet9"), wrong)
    with pytest.raises(InputFileRefused, match="'resnet9'"):
        load_student(tmp_path / "student.safetensors")


def test_a_student_under_wrapped_names_is_refused(tmp_path: Path) -> None:
    wrapped = nn.ModuleDict({"module": build_model(ModelSpec("resnet8-quarter", 3, 1))})
    student_file(tmp_path / "student.safetensors", card_of(), wrapped)
    with pytest.raises(InputFileRefused, match="does not name its tensors"):
        load_student(tmp_path / "student.safetensors")


@pytest.mark.parametrize("content", [b"", b"\x80\x04pickle", b"\xff" * 64])
def test_a_broken_student_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "student.safetensors").write_bytes(content)
    with pytest.raises(InputFileRefused):
        load_student(tmp_path / "student.safetensors")


def test_a_missing_student_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputFileRefused):
        load_student(tmp_path / "student.safetensors")
