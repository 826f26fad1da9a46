"""Averages of students: hand-worked, against Flower's own strategies, hostile members, memory."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Message, Metadata, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg, FedTrimmedAvg, Krum, MultiKrum
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from genkd import alike_students
from genkd.averaging import Averaged, Method, average, least_students
from genkd.card import InputCard, ModelCard, ModelSpec, card_to_json
from genkd.errors import GenKDError, InputFileRefused, ResourceExhausted, UsageError
from genkd.models import build_model
from genkd.weights import load_tensors, model_bytes, read_card, read_header, write_model

ROOT = Path(__file__).parents[2]
INPUT = InputCard(32, 32, 1, (0.5,), (0.5,))
CARD = ModelCard(ModelSpec("resnet8-quarter", 3, 1), INPUT, ("a", "b", "c"), "of a test")
State = Mapping[str, torch.Tensor]


def write(path: Path, state: State, card: ModelCard = CARD) -> Path:
    write_model(path, state, {"v": 1, "card": card_to_json(card)})
    return path


def students_of(folder: Path, states: Sequence[State], card: ModelCard = CARD) -> list[Path]:
    return [write(folder / f"{i}.safetensors", state, card) for i, state in enumerate(states)]


def scalars(folder: Path, *values: float) -> list[Path]:
    return students_of(folder, [{"w": torch.tensor([float(value)])} for value in values])


def read(path: Path) -> dict[str, torch.Tensor]:
    return load_tensors(path, read_header(path))


def result_of(students: Sequence[Path], method: Method, **arguments: Any) -> torch.Tensor:
    out = students[0].parent / "average.safetensors"
    average(students, out, method, **arguments)
    return read(out)["w"]


# --- worked by hand ---


@pytest.mark.parametrize(
    ("method", "values", "arguments", "expected"),
    [
        ("fedavg", [1], {}, 1),
        ("fedavg", [1, 2, 6], {}, 3),
        ("fedavg", [1, -1], {}, 0),
        ("trimmed", [1, 2, 9], {}, 2),  # one of three: the median
        ("trimmed", [100, 1, 2, 3, -50], {}, 2),  # (1 + 2 + 3) / 3
        ("trimmed", [0, 0, 3, 6, 9, 60, 90], {"hostile": 2}, 6),  # (3 + 6 + 9) / 3
        ("trimmed", [1, 2, 6], {"hostile": 0}, 3),
        ("trimmed", [0, 0, 1, 2, 3, 4, 5, 6, 90, 90], {}, 3.5),  # two of ten
        # Two nearest of five; squared distances: 0: 1+4, 1: 1+1, 2: 1+4, 4: 4+9, 1000: far.
        ("krum", [0, 1, 2, 4, 1000], {}, 1),
        ("krum", [1000, 4, 2, 1, 0], {}, 1),
        ("krum", [0, 1, 2, 4, 1000], {"keep": 2}, 0.5),  # 0 and 2 tie; the first of them
        ("krum", [7, 8, 100], {"hostile": 0}, 7),  # one nearest of three
        # Four hostile ones at one place, who would win by their three nearest alone. With five,
        # 2, 3 and 4 tie at 1 + 1 + 4 + 4 + 9; the first of them.
        ("krum", [0, 1, 2, 3, 4, 5, 6, 50, 50, 50, 50], {"hostile": 4}, 2),
    ],
    ids=lambda value: str(value),
)
def test_it_is_what_one_computes_by_hand(
    method: Method, values: list[float], arguments: Any, expected: float, tmp_path: Path
) -> None:
    assert result_of(scalars(tmp_path, *values), method, **arguments).tolist() == [expected]


def test_krum_measures_the_distance_over_all_tensors(tmp_path: Path) -> None:
    points = [(0, 0), (1, 0), (0, 1), (1, 1), (0.5, 0.5), (9, 0), (0, 9)]
    states = [{"a": torch.tensor([float(a)]), "b": torch.tensor([[float(b)]])} for a, b in points]
    paths = students_of(tmp_path, states)
    averaged = average(paths, tmp_path / "out", "krum", hostile=2)
    assert averaged.used == (4,)
    assert read(tmp_path / "out")["b"].tolist() == [[0.5]]


@pytest.mark.parametrize(
    ("method", "arguments", "expected"),
    # The lower one in the middle of 10 10 11 12 13 and a huge one; Krum keeps 10 and 12.
    [("fedavg", {}, 11), ("trimmed", {}, 11), ("krum", {"keep": 2}, 10)],
)
def test_whole_numbers_get_the_lower_median(
    method: Method, arguments: Any, expected: int, tmp_path: Path
) -> None:
    states = [
        {
            "w": torch.tensor([float(place)]),
            "n": torch.tensor(count),  # a scalar, as BatchNorm's num_batches_tracked
            "mask": torch.tensor([count > 11, count > 12]),
        }
        for place, count in enumerate([10, 2**62, 10, 12, 11, 13])
    ]
    average(students_of(tmp_path, states), tmp_path / "out", method, **arguments)
    result = read(tmp_path / "out")
    assert result["n"].shape == ()
    assert result["n"].dtype == torch.int64
    assert result["mask"].dtype == torch.bool
    assert (result["n"].item(), result["mask"].tolist()) == (expected, [False, False])


def test_students_of_one_network_average_into_a_network_of_it(tmp_path: Path) -> None:
    states = [
        build_model(CARD.spec, generator=torch.Generator().manual_seed(seed)).state_dict()
        for seed in range(3)
    ]
    out = tmp_path / "out.safetensors"
    averaged = average(students_of(tmp_path, states), out)
    assert averaged == Averaged(CARD, (0, 1, 2), 0)
    result = read(out)
    for name, tensor in result.items():
        stacked = torch.stack([state[name] for state in states])
        expected = stacked.double().mean(0).to(tensor.dtype)
        assert torch.equal(tensor, expected) or not tensor.is_floating_point()
    assert read_card(read_header(out)) == CARD
    # The very bytes that writing the same values by torch gives.
    assert out.read_bytes() == model_bytes(result, {"v": 1, "card": card_to_json(CARD)})
    build_model(CARD.spec).load_state_dict(result)


# --- against Flower's own strategies ---


def reply(number: int, state: State) -> Message:
    arrays = {name: Array(tensor.numpy()) for name, tensor in state.items()}
    content = RecordDict(
        {"arrays": ArrayRecord(arrays), "metrics": MetricRecord({"num-examples": 1})}
    )
    metadata = Metadata(
        run_id=1,
        message_id=f"{number}",
        src_node_id=number,
        dst_node_id=0,
        reply_to_message_id="",
        group_id="",
        created_at=0.0,
        ttl=1.0,
        message_type="train",
    )
    message: Message = Message(content, metadata=metadata)  # type: ignore[call-overload]
    return message


def states_near_each_other(count: int, seed: int = 0) -> list[State]:
    random = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random)

    start = {"conv.weight": draw(4, 3, 3, 3), "fc.weight": draw(3, 7), "fc.bias": draw(3)}
    return [
        {name: value + (0.1 + 0.05 * i) * draw(*value.shape) for name, value in start.items()}
        for i in range(count)
    ]


@pytest.mark.parametrize("count", [7, 10])
@pytest.mark.parametrize(
    ("method", "arguments", "strategy"),
    [
        ("fedavg", {}, lambda: FedAvg()),
        ("trimmed", {}, lambda: FedTrimmedAvg(beta=0.2)),
        ("krum", {}, lambda: Krum(num_malicious_nodes=1)),
        ("krum", {"hostile": 2}, lambda: Krum(num_malicious_nodes=2)),
        ("krum", {"keep": 3}, lambda: MultiKrum(num_malicious_nodes=1, num_nodes_to_select=3)),
    ],
    ids=["FedAvg", "FedTrimmedAvg", "Krum", "Krum-2", "MultiKrum"],
)
def test_it_is_what_flower_computes(
    method: Method, arguments: Any, strategy: Callable[[], FedAvg], count: int, tmp_path: Path
) -> None:
    if method == "krum":
        arguments = {"hostile": 1, **arguments}
    states = states_near_each_other(count)
    average(students_of(tmp_path, states), tmp_path / "out", method, **arguments)
    replies = [reply(i + 1, state) for i, state in enumerate(states)]
    theirs, _ = strategy().aggregate_train(1, replies)
    assert theirs is not None
    ours = read(tmp_path / "out")
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        np.testing.assert_allclose(tensor.numpy(), theirs[name].numpy(), rtol=1e-5, atol=1e-6)


# --- hostile students ---

POISON: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "a thousand times": lambda tensor: 1000 * tensor,
    "the opposite": lambda tensor: -10 * tensor,
    "the largest": lambda tensor: torch.full_like(tensor, torch.finfo(tensor.dtype).max),
    "zeros": torch.zeros_like,
}


@pytest.mark.parametrize("poison", POISON.values(), ids=POISON)
@pytest.mark.parametrize("method", ["trimmed", "krum"])
@pytest.mark.parametrize("position", [0, 2, 4])
def test_one_of_five_students_moves_neither(
    poison: Callable[[torch.Tensor], torch.Tensor], method: Method, position: int, tmp_path: Path
) -> None:
    states = states_near_each_other(5)
    honest = [state for i, state in enumerate(states) if i != position]
    states[position] = {name: poison(tensor) for name, tensor in states[position].items()}
    averaged = average(students_of(tmp_path, states), tmp_path / "out", method)
    for name, tensor in read(tmp_path / "out").items():
        among = torch.stack([state[name] for state in honest])
        assert (tensor >= among.amin(0)).all()
        assert (tensor <= among.amax(0)).all()
    if method == "krum":
        assert position not in averaged.used


def test_the_largest_numbers_do_not_overflow(tmp_path: Path) -> None:
    largest = torch.finfo(torch.float32).max
    students = scalars(tmp_path, largest, largest, largest, -largest, largest)
    assert result_of(students[:3], "fedavg").item() == largest
    assert result_of(students, "trimmed").item() == largest
    assert result_of(students, "krum").item() == largest


def test_an_average_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    largest = torch.tensor([torch.finfo(torch.float64).max], dtype=torch.float64)
    students = students_of(tmp_path, [{"w": largest}] * 3)
    with pytest.raises(InputFileRefused, match="too large to be averaged"):
        average(students, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert result_of(students, "krum", hostile=0).item() == largest.item()


@settings(max_examples=25, deadline=None)
@given(
    st_numpy.arrays(
        np.float32,
        (5, 3),
        elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
    ),
    st.sampled_from(get_args(Method)),
)
def test_finite_students_give_a_finite_average_within_their_range(
    tmp_path_factory: pytest.TempPathFactory, values: np.ndarray, method: Method
) -> None:
    folder = tmp_path_factory.mktemp("finite")
    students = students_of(folder, [{"w": torch.from_numpy(row.copy())} for row in values])
    result = result_of(students, method).numpy()
    assert np.isfinite(result).all()
    assert (values.min(0) <= result).all()
    assert (result <= values.max(0)).all()


@pytest.mark.parametrize("method", ["fedavg", "trimmed"])
def test_the_order_of_the_students_changes_no_byte(method: Method, tmp_path: Path) -> None:
    states = states_near_each_other(5)
    zeros = torch.tensor([0.0, -0.0, 1e30, -1e-30])
    for i, state in enumerate(states):
        assert isinstance(state, dict)
        state["fc.extra"] = zeros.roll(i)
    students = students_of(tmp_path, states)
    results = set()
    for order in itertools.islice(itertools.permutations(students), 0, None, 13):
        average(order, tmp_path / "out", method)
        results.add((tmp_path / "out").read_bytes())
    assert len(results) == 1


def test_which_zero_is_cut_changes_no_byte(tmp_path: Path) -> None:
    students = scalars(tmp_path, 0.0, -0.0, 5.0)
    results = set()
    for order in itertools.permutations(students):
        average(order, tmp_path / "out", "trimmed")
        results.add((tmp_path / "out").read_bytes()[-4:])
    assert results == {bytes(4)}


@pytest.mark.parametrize("method", get_args(Method))
def test_short_stretches_give_the_same_bytes(
    method: Method, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    students = students_of(tmp_path, states_near_each_other(6))
    average(students, tmp_path / "whole", method)
    monkeypatch.setattr(alike_students, "BLOCK_BYTES", 6 * 4 * 5)
    average(students, tmp_path / "parts", method)
    assert (tmp_path / "whole").read_bytes() == (tmp_path / "parts").read_bytes()


def test_other_floating_types_keep_theirs(tmp_path: Path) -> None:
    states = [
        {"h": torch.tensor([i, 60000.0], dtype=torch.float16), "d": torch.tensor([i / 3]).double()}
        for i in (1.0, 2.0, 4.0)
    ]
    average(students_of(tmp_path, states), tmp_path / "out")
    result = read(tmp_path / "out")
    assert (result["h"].dtype, result["d"].dtype) == (torch.float16, torch.float64)
    assert result["h"].tolist()[1] == 60000


def test_tensors_may_lie_in_another_order(tmp_path: Path) -> None:
    state = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([3.0])}
    students = students_of(tmp_path, [state, state])
    header, data = read_header(students[1]), students[1].read_bytes()[-12:]
    fields = {
        "__metadata__": dict(header.metadata),
        "b": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
        "a": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]},
    }
    text = json.dumps(fields).encode()
    length = len(text).to_bytes(8, "little")
    students[1].write_bytes(length + text + data[8:] + data[:8])
    average(students, tmp_path / "out")
    assert {name: tensor.tolist() for name, tensor in read(tmp_path / "out").items()} == {
        "a": [1, 2],
        "b": [3],
    }


# --- what is refused ---

OTHER_NAMES = ModelCard(CARD.spec, INPUT, ("a", "b", "d"))
UNALIKE: dict[str, tuple[State, ModelCard, str]] = {
    "architecture": (
        {"w": torch.ones(2)},
        ModelCard(ModelSpec("resnet8-half", 3, 1), INPUT, CARD.class_names),
        "another architecture",
    ),
    "number of classes": (
        {"w": torch.ones(2)},
        ModelCard(ModelSpec("resnet8-quarter", 4, 1), INPUT),
        "another architecture",
    ),
    "names": ({"w": torch.ones(2)}, OTHER_NAMES, "knows other classes"),
    "order of names": (
        {"w": torch.ones(2)},
        ModelCard(CARD.spec, INPUT, ("b", "a", "c")),
        "knows other classes",
    ),
    "no names": ({"w": torch.ones(2)}, ModelCard(CARD.spec, INPUT), "knows other classes"),
    "normalisation": (
        {"w": torch.ones(2)},
        ModelCard(CARD.spec, InputCard(32, 32, 1, (0.4,), (0.5,)), CARD.class_names),
        "takes other images",
    ),
    "size": (
        {"w": torch.ones(2)},
        ModelCard(CARD.spec, InputCard(28, 28, 1, (0.5,), (0.5,)), CARD.class_names),
        "takes other images",
    ),
    "shape": ({"w": torch.ones(3)}, CARD, "other tensors"),
    "dtype": ({"w": torch.ones(2, dtype=torch.float16)}, CARD, "other tensors"),
    "one tensor more": ({"w": torch.ones(2), "v": torch.ones(1)}, CARD, "other tensors"),
    "other tensor": ({"v": torch.ones(2)}, CARD, "other tensors"),
}


@pytest.mark.parametrize(("state", "card", "reason"), UNALIKE.values(), ids=UNALIKE)
@pytest.mark.parametrize("method", get_args(Method))
def test_a_student_of_another_card_is_refused_by_name(
    state: State, card: ModelCard, reason: str, method: Method, tmp_path: Path
) -> None:
    students = students_of(tmp_path, [{"w": torch.ones(2)}] * 4)
    students.insert(2, write(tmp_path / "stranger.safetensors", state, card))
    with pytest.raises(InputFileRefused, match=rf"stranger.* {reason}"):
        average(students, tmp_path / "out", method)
    assert not (tmp_path / "out").exists()


def test_descriptions_may_differ_and_are_left_out_then(tmp_path: Path) -> None:
    students = students_of(tmp_path, [{"w": torch.ones(2)}] * 2)
    other = ModelCard(CARD.spec, INPUT, CARD.class_names, "made elsewhere")
    students.append(write(tmp_path / "other.safetensors", {"w": torch.ones(2)}, other))
    assert average(students, tmp_path / "out").card.description == ""
    assert average(students[:2], tmp_path / "out").card.description == "of a test"


def spoil(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.write_bytes(change(path.read_bytes()))


def put_instead(path: Path, make: Callable[[Path], None]) -> None:
    path.unlink()
    make(path)


def with_last_value(value: float) -> Callable[[bytes], bytes]:
    return lambda data: data[:-4] + np.float32(value).tobytes()


HOSTILE: dict[str, tuple[Callable[[Path], None], str]] = {
    "NaN": (lambda path: spoil(path, with_last_value(float("nan"))), "NaN or infinite"),
    "infinite": (lambda path: spoil(path, with_last_value(float("-inf"))), "NaN or infinite"),
    "truncated": (lambda path: spoil(path, lambda data: data[:-4]), "truncated"),
    "longer": (lambda path: spoil(path, lambda data: data + b"\0" * 4), "follow the last"),
    "empty": (lambda path: spoil(path, lambda data: b""), "is empty"),
    "no model": (lambda path: spoil(path, lambda data: b"PK\3\4" * 99), "PyTorch|zip"),
    "missing": (lambda path: path.unlink(), "does not exist"),
    "a folder": (lambda path: put_instead(path, os.mkdir), "is a folder"),
    "a pipe": (lambda path: put_instead(path, os.mkfifo), "not a regular file"),
}


@pytest.mark.parametrize(("change", "reason"), HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("method", get_args(Method))
def test_a_hostile_file_is_refused_by_name(
    change: Callable[[Path], None], reason: str, method: Method, tmp_path: Path
) -> None:
    students = scalars(tmp_path, 1, 2, 3, 4, 5)
    change(students[3])
    with pytest.raises(InputFileRefused, match=rf"3\.safetensors.*({reason})"):
        average(students, tmp_path / "out", method)
    assert not (tmp_path / "out").exists()


def test_a_boolean_of_another_byte_is_refused(tmp_path: Path) -> None:
    students = students_of(tmp_path, [{"m": torch.tensor([True])}] * 3)
    spoil(students[1], lambda data: data[:-1] + b"\2")
    with pytest.raises(InputFileRefused, match="other bytes than 0 and 1"):
        average(students, tmp_path / "out")


def test_a_type_that_cannot_be_averaged_is_refused(tmp_path: Path) -> None:
    students = students_of(tmp_path, [{"w": torch.ones(2, dtype=torch.bfloat16)}] * 3)
    with pytest.raises(InputFileRefused, match="BF16"):
        average(students, tmp_path / "out")


@pytest.mark.parametrize("how", ["rewritten", "replaced"])
def test_a_file_that_changes_meanwhile_is_refused(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    students = scalars(tmp_path, 1, 2, 3)
    opened = alike_students._open

    def open_and_change(path: Path) -> Any:
        found = opened(path)
        if path == students[1] and how == "rewritten":
            path.write_bytes(path.read_bytes())
            os.utime(path, ns=(0, 0))
        elif path == students[1]:
            write(path, {"w": torch.tensor([9.0])})
        return found

    monkeypatch.setattr(alike_students, "_open", open_and_change)
    with pytest.raises(InputFileRefused, match="changed while it was being read"):
        average(students, tmp_path / "out")


@pytest.mark.parametrize(
    ("method", "count", "arguments", "message"),
    [
        ("fedavg", 0, {}, "no students"),
        ("trimmed", 2, {}, "trimmed needs 3 students"),
        ("trimmed", 4, {"hostile": 2}, "trimmed needs 5 students"),
        ("krum", 4, {}, "krum needs 5 students"),
        ("krum", 6, {"hostile": 2}, "krum needs 7 students"),
        ("krum", 2, {"hostile": 0}, "krum needs 3 students"),
        ("krum", 5, {"keep": 3}, "cannot keep 3"),
        ("krum", 5, {"keep": 0}, "cannot keep 0"),
        ("trimmed", 5, {"keep": 2}, "cannot keep 2"),
        ("trimmed", 5, {"hostile": -1}, "-1 hostile"),
        ("fedavg", 5, {"hostile": 1}, "withstands no hostile"),
        ("median", 5, {}, "'median' is no way"),
    ],
    ids=lambda value: str(value),
)
def test_too_few_students_or_senseless_arguments_are_refused(
    method: Any, count: int, arguments: Any, message: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        average(scalars(tmp_path, *range(count)), tmp_path / "out", method, **arguments)


@pytest.mark.parametrize("method", get_args(Method))
@pytest.mark.parametrize("hostile", [0, 1, 2])
def test_the_least_number_of_students_is_enough(
    method: Method, hostile: int, tmp_path: Path
) -> None:
    hostile = 0 if method == "fedavg" else hostile
    least = least_students(method, hostile)
    average(scalars(tmp_path, *range(least)), tmp_path / "out", method, hostile=hostile)
    with pytest.raises(UsageError):
        average(scalars(tmp_path, *range(least - 1)), tmp_path / "out", method, hostile=hostile)


def test_a_student_named_twice_has_no_double_weight(tmp_path: Path) -> None:
    students = scalars(tmp_path, 1, 2, 3)
    (tmp_path / "again").symlink_to(students[0])
    for again in (students[0], tmp_path / "again"):
        with pytest.raises(UsageError, match="named twice"):
            average([*students, again], tmp_path / "out")


def test_a_result_that_cannot_be_written_is_an_error_of_this_project(tmp_path: Path) -> None:
    with pytest.raises(ResourceExhausted):
        average(scalars(tmp_path, 1, 2, 3), tmp_path / "nowhere" / "out")
    assert issubclass(ResourceExhausted, GenKDError)


# --- memory ---

MEASURE = """
import json, sys
from genkd.averaging import average
def peak():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) * 1024
few, many, method, out = json.loads(sys.argv[1])
average(few, out, method)
before = peak()
average(many, out, method)
print(json.dumps({"before": before, "more": peak() - before}))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(
    ("method", "count"), [("fedavg", 200), ("trimmed", 200), ("krum", 60)]
)  # Krum of 200 takes 6 s of computing, in the same memory
def test_hundreds_of_students_of_a_megabyte_need_little_memory(
    method: Method, count: int, tmp_path: Path
) -> None:
    random = np.random.default_rng(0)
    states = [{"w": torch.from_numpy(random.standard_normal(2**18, np.float32))} for _ in range(5)]
    few = students_of(tmp_path, states)
    data = bytearray(few[0].read_bytes())
    many = []
    for i in range(count):
        data[-4 * (i + 1) :] = np.float32(i).tobytes() * (i + 1)
        many.append(tmp_path / f"many-{i}.safetensors")
        many[-1].write_bytes(data)
    question = json.dumps([list(map(str, few)), list(map(str, many)), method, str(tmp_path / "o")])
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, question], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    print(method, figures)
    student, blocks = 2**20, alike_students.BLOCK_BYTES
    assert figures["more"] < 2 * student + 2 * blocks
