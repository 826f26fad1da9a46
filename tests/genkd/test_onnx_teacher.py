"""A black box answers as the network it was, gives no gradient, and a hostile file is refused."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from genkd import onnx_teacher
from genkd.card import InputCard, card_to_json
from genkd.errors import ConfigurationError, GenKDError, InputFileRefused, UsageError
from genkd.evaluate import evaluate
from genkd.export import export_onnx
from genkd.images import read_images
from genkd.inspection import inspect_file
from genkd.teacher import Teacher, load_teacher

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

GRAY = InputCard(4, 4, 1, (0.5,), (0.25,))
Model = Any  # an onnx.ModelProto
Change = Callable[[Model], None]


def linear(
    batch: int | str = "batch", classes: int = 3, last: str | None = None, seed: int = 0
) -> Model:
    """logits = W x + b of images 1x4x4, by hand: Flatten, Gemm, and perhaps one more operator."""
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    random = np.random.default_rng(seed)
    weights = [
        onnx.numpy_helper.from_array(random.normal(size=shape).astype(np.float32), name)
        for name, shape in (("w", (16, classes)), ("b", (classes,)))
    ]
    nodes = [
        helper.make_node("Flatten", ["images"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w", "b"], ["scores" if last else "logits"]),
    ]
    if last:
        nodes.append(helper.make_node(last, ["scores"], ["logits"]))
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info("images", kind, [batch, 1, 4, 4])],
        [helper.make_tensor_value_info("logits", kind, [batch, classes])],
        weights,
    )
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)])


def by_hand(model: Model, images: Tensor) -> Tensor:
    """What `linear` computes, of images in [0, 1] and the card GRAY."""
    w, b = (torch.tensor(onnx.numpy_helper.to_array(t)) for t in model.graph.initializer)
    return ((images - 0.5) / 0.25).flatten(1) @ w + b


def write(folder: Path, model: Model) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def some(count: int) -> Tensor:
    return torch.rand(count, 1, 4, 4, generator=torch.Generator().manual_seed(count))


@pytest.fixture(scope="module")
def exported(tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "tiny.onnx"
    export_onnx(load_teacher(tiny_teacher), path)
    return path


# -- the same answers ------------------------------------------------------------------------------


def test_it_gives_the_logits_of_the_network_it_was(tiny_teacher: Path, exported: Path) -> None:
    images = torch.rand(33, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    teacher, box = load_teacher(tiny_teacher), load_teacher(exported)
    with torch.no_grad():
        assert torch.allclose(box(images), teacher(images), atol=1e-4, rtol=0)
    assert box.card == teacher.card


def test_a_card_beside_the_file_does_not_normalise_an_exported_one_twice(
    tiny_teacher: Path, exported: Path, tmp_path: Path
) -> None:
    teacher = load_teacher(tiny_teacher)
    (tmp_path / "tiny.onnx").write_bytes(exported.read_bytes())
    (tmp_path / "tiny.json").write_text(json.dumps(card_to_json(teacher.card)))
    images = torch.rand(5, 1, 16, 16)
    with torch.no_grad():
        found = load_teacher(tmp_path / "tiny.onnx")(images)
        assert torch.allclose(found, teacher(images), atol=1e-4, rtol=0)


@pytest.mark.parametrize("batch", [1, 4, "batch"], ids=["one", "four", "any"])
@pytest.mark.parametrize("count", [1, 4, 7])
def test_a_graph_of_any_fixed_batch_answers_any_number_of_images(
    tmp_path: Path, batch: int | str, count: int
) -> None:
    model = linear(batch)
    box = load_teacher(write(tmp_path, model), input_card=GRAY)
    assert torch.allclose(box(some(count)), by_hand(model, some(count)), atol=1e-4)


def test_probabilities_become_logits_of_the_same_distribution(tmp_path: Path) -> None:
    model = linear(last="Softmax")
    logits = load_teacher(write(tmp_path, model), input_card=GRAY)(some(6))
    expected = by_hand(model, some(6))
    assert torch.allclose(logits.softmax(1), expected.softmax(1), atol=1e-5)
    assert torch.allclose(logits.diff(dim=1), expected.diff(dim=1), atol=1e-3)


def test_a_card_beside_a_foreign_file_says_how_to_normalise(tmp_path: Path) -> None:
    model = linear()
    path = write(tmp_path, model)
    card = {
        **{"v": 1, "architecture": "secret", "num_classes": 3, "class_names": ["a", "b", "c"]},
        "input": {"height": 4, "width": 4, "channels": 1, "mean": [0.5], "std": [0.25]},
    }
    path.with_suffix(".json").write_text(json.dumps(card))
    box = load_teacher(path)
    assert box.card.class_names == ("a", "b", "c")
    assert torch.allclose(box(some(2)), by_hand(model, some(2)), atol=1e-4)


def test_it_can_be_asked_about_some_classes_only(tmp_path: Path) -> None:
    box = load_teacher(write(tmp_path, linear()), input_card=GRAY)
    some_known = box.knowing([0, 2])
    assert torch.equal(some_known(some(3))[:, [0, 2]], box(some(3))[:, [0, 2]])
    assert bool((some_known(some(3))[:, 1] < -1000).all())


def test_it_is_a_teacher_without_batch_norms_whose_weights_are_counted(tmp_path: Path) -> None:
    box = load_teacher(write(tmp_path, linear()), input_card=GRAY)
    assert isinstance(box, Teacher)
    assert box.batch_norms() == []
    assert not box.gives_gradients
    assert sum(p.numel() for p in box.parameters()) == 16 * 3 + 3
    box.to("cpu", memory_format=torch.channels_last)  # type: ignore[call-overload]
    assert box.train().training is False


def test_a_student_can_be_compared_with_it(
    tiny_teacher: Path, exported: Path, tiny_images: Path
) -> None:
    student, box = load_teacher(tiny_teacher), load_teacher(exported)
    found = evaluate(student, read_images(str(tiny_images), student.card), student.card, box)
    assert found.agreement == 1.0
    assert found.teacher is not None
    assert found.teacher.parameters > 1000


# -- no gradient -----------------------------------------------------------------------------------


def test_a_gradient_through_it_is_refused_with_the_way_out(tmp_path: Path) -> None:
    box = load_teacher(write(tmp_path, linear()), input_card=GRAY)
    images = some(2).requires_grad_()
    with pytest.raises(ConfigurationError, match="no gradients") as caught:
        box(images)
    assert "--prior" in caught.value.hint
    with torch.no_grad():
        assert box(images).shape == (2, 3)


# -- what is refused -------------------------------------------------------------------------------


def outside(model: Model) -> None:
    weight = model.graph.initializer[0]
    onnx.external_data_helper.set_external_data(weight, "../../etc/passwd")
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL


def outside_in_a_branch(model: Model) -> None:
    """The same weight, in a constant of a branch of an If."""
    hidden = onnx.numpy_helper.from_array(np.zeros(1, np.float32), "v")
    outside_of = onnx.ModelProto()
    outside_of.graph.initializer.append(hidden)
    outside(outside_of)
    constant = onnx.helper.make_node("Constant", [], ["c"], value=outside_of.graph.initializer[0])
    branch = onnx.helper.make_graph([constant], "branch", [], [])
    node = onnx.helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch)
    model.graph.node.insert(0, node)


def node(kind: str, domain: str = "") -> Change:
    def change(model: Model) -> None:
        added = onnx.helper.make_node(kind, ["logits"], ["more"], domain=domain)
        model.graph.node.append(added)
        if domain:
            model.opset_import.append(onnx.helper.make_opsetid(domain, 1))

    return change


def function(model: Model) -> None:
    model.functions.append(
        onnx.helper.make_function("ours", "f", ["x"], ["y"], [], [onnx.helper.make_opsetid("", 20)])
    )


def dimensions(end: str, *lengths: int | str) -> Change:
    def change(model: Model) -> None:
        value = model.graph.input[0] if end == "images" else model.graph.output[0]
        value.CopyFrom(
            onnx.helper.make_tensor_value_info(value.name, onnx.TensorProto.FLOAT, lengths)
        )

    return change


def of_type(kind: str) -> Change:
    def change(model: Model) -> None:
        number = onnx.TensorProto.DataType.Value(kind)
        model.graph.input[0].type.tensor_type.elem_type = number

    return change


def second_output(model: Model) -> None:
    model.graph.output.append(
        onnx.helper.make_tensor_value_info("flat", onnx.TensorProto.FLOAT, ["batch", 16])
    )


def second_input(model: Model) -> None:
    model.graph.input.append(
        onnx.helper.make_tensor_value_info("more", onnx.TensorProto.FLOAT, ["batch"])
    )


def nan_weight(model: Model) -> None:
    array = np.full(3, np.nan, np.float32)
    model.graph.initializer[1].CopyFrom(onnx.numpy_helper.from_array(array, "b"))


def unknown_operator(model: Model) -> None:
    model.graph.node[1].op_type = "Gemmm"


def wrong_weights(model: Model) -> None:
    array = np.zeros((15, 3), np.float32)
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(array, "w"))


def a_random_answer(model: Model) -> None:
    model.graph.node[1].output[0] = "scores"
    model.graph.node.append(
        onnx.helper.make_node("RandomNormalLike", ["scores"], ["logits"], scale=1.0)
    )


HOSTILE: dict[str, tuple[Change, str]] = {
    "weights-in-another-file": (outside, "keeps weights in other files"),
    "weights-in-another-file-within-a-branch": (outside_in_a_branch, "weights in other files"),
    "an-operator-of-a-library": (node("Evil", "evil.corp"), "not of the ONNX standard"),
    "an-operator-that-calls-python": (node("PyOp", "pyopmulti"), "not of the ONNX standard"),
    "a-loop": (node("Loop"), "holds Loop"),
    "a-function": (function, "functions of its own"),
    "no-such-operator": (unknown_operator, "not a valid ONNX model"),
    "weights-that-do-not-fit": (wrong_weights, "fails on images|cannot be run"),
    "images-of-three-dimensions": (dimensions("images", "b", 4, 4), "not \\(B, C, H, W\\)"),
    "no-channels": (dimensions("images", "b", 0, 4, 4), "not \\(B, C, H, W\\)"),
    "channels-last": (dimensions("images", "b", 4, 4, 1), "has 4 channels"),
    "images-of-another-size": (dimensions("images", "b", 1, 8, 2), "has 8 pixels of height"),
    "logits-of-three-dimensions": (dimensions("logits", "b", 3, 1), "not \\(B, K\\)"),
    "bytes": (of_type("UINT8"), "takes images as U8"),
    "no-type": (of_type("UNDEFINED"), "not a valid|takes images as"),
    "two-inputs": (second_input, "2 inputs"),
    "two-outputs": (second_output, "2 outputs"),
    "NaN-logits": (nan_weight, "NaN or infinity"),
    "random-answers": (a_random_answer, "differently about the same image"),
}


@pytest.mark.parametrize("name", list(HOSTILE))
def test_a_hostile_file_is_refused(tmp_path: Path, name: str) -> None:
    change, why = HOSTILE[name]
    model = linear()
    change(model)
    with pytest.raises(InputFileRefused, match=why) as caught:
        load_teacher(write(tmp_path, model), input_card=GRAY)
    assert "\n" not in caught.value.message
    assert caught.value.hint


def test_one_logit_is_no_classifier(tmp_path: Path) -> None:
    with pytest.raises(InputFileRefused, match="1 logits per image"):
        load_teacher(write(tmp_path, linear(classes=1)), input_card=GRAY)


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    whole = linear().SerializeToString()
    path = tmp_path / "model.onnx"
    for length in range(0, len(whole) - 1, 7):
        path.write_bytes(whole[:length])
        with pytest.raises(InputFileRefused):
            load_teacher(path, input_card=GRAY)


def test_random_bytes_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    random = np.random.default_rng(0)
    for length in (1, 9, 100, 5000):
        path.write_bytes(b"\x08\x0a\x12" + random.bytes(length))
        with pytest.raises(InputFileRefused):
            load_teacher(path, input_card=GRAY)


def test_a_file_too_large_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    with path.open("wb") as file:
        os.truncate(file.fileno(), 2**31)
    with pytest.raises(InputFileRefused, match="more than"):
        load_teacher(path, input_card=GRAY)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputFileRefused, match="does not exist"):
        load_teacher(tmp_path / "model.onnx", input_card=GRAY)


def test_a_card_that_is_no_card_is_refused(tmp_path: Path) -> None:
    for text in ("[]", "{", '{"v": 1, "card": 3}'):
        model = linear()
        model.metadata_props.add(key="genkd", value=text)
        with pytest.raises(InputFileRefused):
            load_teacher(write(tmp_path, model))


WRONG: dict[str, tuple[dict[str, Any], type[GenKDError], str]] = {
    "nobody-says-what-images": ({}, ConfigurationError, "does not say which images"),
    "an-architecture": ({"architecture": "resnet8"}, UsageError, "--arch"),
    "a-factory": ({"factory": "a:b"}, UsageError, "--factory"),
    "other-classes": ({"num_classes": 4, "input_card": GRAY}, InputFileRefused, "3 classes"),
}


@pytest.mark.parametrize("name", list(WRONG))
def test_what_does_not_fit_an_onnx_file_is_refused(tmp_path: Path, name: str) -> None:
    arguments, kind, why = WRONG[name]
    with pytest.raises(kind, match=why) as caught:
        load_teacher(write(tmp_path, linear()), **arguments)
    if kind is ConfigurationError:
        assert "--input-size 1x4x4" in caught.value.hint


def test_flags_do_not_contradict_a_file_that_normalises_itself(exported: Path) -> None:
    with pytest.raises(UsageError, match="carries its card"):
        load_teacher(exported, input_card=GRAY)


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_without_the_extra_one_line_says_which(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    path = write(tmp_path, linear())
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UsageError, match=f"{package} is not installed") as caught:
        load_teacher(path, input_card=GRAY)
    assert "genkd-node[onnx]" in caught.value.hint


# -- inspect ---------------------------------------------------------------------------------------


def test_inspect_reads_what_the_graph_tells_and_what_is_missing(tmp_path: Path) -> None:
    found = inspect_file(write(tmp_path, linear()))
    assert (found.num_classes, found.in_channels, found.parameters) == (3, 1, 51)
    assert found.missing == ("--input-size 1x4x4 --mean 0.5 --std 0.5",)
    assert found.problem is None
    told = inspect_file(tmp_path / "model.onnx", input_card=InputCard(8, 8, 1, (0.5,), (0.5,)))
    assert not told.missing
    assert told.problem is not None
    assert "pixels of height" in told.problem


def test_inspect_of_an_exported_file_misses_nothing(exported: Path) -> None:
    found = inspect_file(exported)
    assert found.architecture == "resnet8-quarter"
    assert found.class_names == ("horizontal", "vertical", "blob")
    assert not found.missing
    assert found.problem is None


def test_a_network_in_training_mode_is_refused(tmp_path: Path) -> None:
    """Its BatchNorm answers by the batch that an image comes in."""
    model = linear()
    over_the_batch = onnx.helper.make_node("Softmax", ["images"], ["normal"], axis=0)
    model.graph.node.insert(0, over_the_batch)
    model.graph.node[1].input[0] = "normal"
    with pytest.raises(InputFileRefused, match="differently about the same image"):
        load_teacher(write(tmp_path, model), input_card=GRAY)


def test_the_session_uses_as_many_threads_as_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    box = load_teacher(write(tmp_path, linear()), input_card=GRAY)
    network: Any = box.network
    assert isinstance(network, nn.Module)
    (session,) = network._sessions.values()
    assert session.get_session_options().intra_op_num_threads == 1
    assert session.get_providers() == ["CPUExecutionProvider"]


def test_a_gpu_other_than_the_first_has_a_session_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network: Any = load_teacher(write(tmp_path, linear()), input_card=GRAY).network
    asked: list[Any] = []
    runtime: Any = SimpleNamespace(
        SessionOptions=onnxruntime.SessionOptions,
        get_available_providers=lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"],
        InferenceSession=lambda data, options, providers: asked.append(providers),
    )
    monkeypatch.setattr("genkd.onnx_teacher.require_package", lambda name: runtime)
    for device in ("cuda:1", "cuda:0", "cpu"):
        onnx_teacher._open(network.file, torch.device(device))
    cpu = "CPUExecutionProvider"
    gpus = [[("CUDAExecutionProvider", {"device_id": number}), cpu] for number in (1, 0)]
    assert asked == [*gpus, [cpu]]


@pytest.mark.parametrize(
    "message", ["Failed to allocate memory for requested buffer", "CUDA failure 2: out of memory"]
)
def test_a_runtime_without_memory_lets_callers_halve_their_batch(
    message: str, tmp_path: Path
) -> None:
    network: Any = load_teacher(write(tmp_path, linear()), input_card=GRAY).network
    found = onnx_teacher._failed(network.file, RuntimeError(message), "fails")
    assert isinstance(found, MemoryError)
