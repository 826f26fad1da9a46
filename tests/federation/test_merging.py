"""Releases become one student file: by averages, by distilling, again after an interruption."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from coordinator import merging
from coordinator.merging import MergeMethod, MergePlan, fault_of_member, merge_releases
from genkd.card import ModelCard, card_from_json, card_to_json
from genkd.errors import (
    ConfigurationError,
    InputFileRefused,
    Interrupted,
    ResourceExhausted,
    UsageError,
)
from genkd.provenance.typed_data import to_hex
from genkd.weights import STUDENT_FILE, read_card, read_header
from tests.federation.memory_federation import (
    CARD,
    MemoryFederation,
    model_file,
    receipt_of,
)
from tests.federation.memory_rounds import weights_of

STUDENT = "student.safetensors"
TOY = card_from_json(dict(CARD))


@pytest.fixture
def members(federation: MemoryFederation, tmp_path: Path) -> list[Path]:
    """Five releases whose weights are 0, 1, 2, 3 and a hundred."""
    values = [np.full(12, value, "<f4") for value in (0, 1, 2, 3, 100)]
    return [
        federation.nodes[0].sign(tmp_path / "releases", student=model_file(values=one))
        for one in values
    ]


def plan(method: MergeMethod, card: ModelCard | None = TOY) -> MergePlan:
    return MergePlan(method, card)


@pytest.mark.parametrize(
    ("method", "expected"),
    [(MergeMethod.FEDAVG, 21.2), (MergeMethod.TRIMMED, 2.0)],
    ids=["fedavg", "trimmed"],
)
def test_averages_are_of_all_members_with_the_same_say(
    members: list[Path], tmp_path: Path, method: MergeMethod, expected: float
) -> None:
    merged = merge_releases(members, tmp_path / "out", plan(method))
    np.testing.assert_allclose(weights_of(merged.student), expected, rtol=1e-6)
    assert merged.recipe["merge"] == method.value
    assert merged.recipe["members"] == 5


def test_krum_takes_a_central_member_as_it_is(members: list[Path], tmp_path: Path) -> None:
    merged = merge_releases(members, tmp_path / "out", plan(MergeMethod.KRUM))
    assert set(weights_of(merged.student)) <= {1.0, 2.0}
    assert (merged.recipe["used"], merged.recipe["hostile"]) == (1, 1)


def test_the_result_is_a_model_file_that_can_be_released(
    members: list[Path], federation: MemoryFederation, tmp_path: Path
) -> None:
    merged = merge_releases(members, tmp_path / "out", plan(MergeMethod.FEDAVG))
    assert read_card(read_header(merged.student, STUDENT_FILE)) == TOY
    released = federation.coordinator.sign(
        tmp_path / "merged", student=merged.student.read_bytes(), recipe=merged.recipe
    )
    assert receipt_of(released).record.node == federation.coordinator.address


@pytest.mark.parametrize(
    ("method", "count"),
    [(MergeMethod.TRIMMED, 2), (MergeMethod.KRUM, 4)],
    ids=["trimmed", "krum"],
)
def test_too_few_members_for_the_method_are_refused(
    members: list[Path], tmp_path: Path, method: MergeMethod, count: int
) -> None:
    with pytest.raises(UsageError, match=f"needs {count + 1} students"):
        merge_releases(members[:count], tmp_path / "out", plan(method))


def test_a_finished_merge_of_the_same_members_is_not_done_again(
    members: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = merge_releases(members, tmp_path / "out", plan(MergeMethod.FEDAVG))
    before = first.student.read_bytes()
    monkeypatch.setattr(merging, "_averaged", None)
    again = merge_releases(members[::-1], tmp_path / "out", plan(MergeMethod.FEDAVG))
    assert again == first
    assert again.student.read_bytes() == before


@pytest.mark.parametrize("damage", ["not JSON", "other members", "no student"])
def test_an_unfinished_merge_is_done_again(
    members: list[Path], tmp_path: Path, damage: str
) -> None:
    out = tmp_path / "out"
    merge_releases(members, out, plan(MergeMethod.FEDAVG))
    if damage == "not JSON":
        (out / merging.NOTE).write_bytes(b"{")
    elif damage == "no student":
        (out / STUDENT).unlink()
    wanted = members[:2] if damage == "other members" else members
    merged = merge_releases(wanted, out, plan(MergeMethod.FEDAVG))
    assert weights_of(merged.student)[0] == pytest.approx(0.5 if len(wanted) == 2 else 21.2)


def test_a_student_swapped_after_the_merge_is_refused(members: list[Path], tmp_path: Path) -> None:
    merged = merge_releases(members, tmp_path / "out", plan(MergeMethod.FEDAVG))
    merged.student.write_bytes(model_file(7))
    with pytest.raises(InputFileRefused, match=r"is not the student that merged\.json"):
        merge_releases(members, tmp_path / "out", plan(MergeMethod.FEDAVG))


def test_members_of_another_kind_than_wanted_are_refused(
    members: list[Path], tmp_path: Path
) -> None:
    other = card_from_json(dict(CARD) | {"class_names": ["a", "b", "c", "d"]})
    with pytest.raises(InputFileRefused, match="not of the architecture and classes"):
        merge_releases(members, tmp_path / "out", plan(MergeMethod.FEDAVG, other))


def test_a_seed_out_of_range_is_refused() -> None:
    with pytest.raises(UsageError, match="is not a seed"):
        MergePlan(MergeMethod.DISTILL, TOY, seed=-1)


# ------------------------------------------------------------------ distilling

QUICK = {"overrides": {}, "budget": "64 samples", "device": "cpu", "precision": "fp32"}


@pytest.fixture(scope="session")
def networks() -> dict[str, bytes]:
    """Real networks of a card with named classes, by their architecture."""
    import torch

    from genkd.card import ModelSpec
    from genkd.models import build_model
    from genkd.weights import model_bytes

    found = {}
    for seed, architecture in enumerate(("resnet8-quarter", "lenet5-bn-quarter")):
        spec = ModelSpec(architecture, 4, 1)
        card = ModelCard(spec, TOY.input, TOY.class_names)
        state = build_model(spec, generator=torch.Generator().manual_seed(seed)).state_dict()
        found[architecture] = model_bytes(state, {"v": 1, "card": card_to_json(card)})
    return found


@pytest.fixture
def different(
    federation: MemoryFederation, networks: dict[str, bytes], tmp_path: Path
) -> list[Path]:
    return [
        federation.nodes[0].sign(tmp_path / "releases", student=data) for data in networks.values()
    ]


def stopping_after(calls: int) -> Callable[[], object]:
    """A signal that comes at the n-th check."""
    count = [0]

    def check() -> None:
        count[0] += 1
        if count[0] == calls:
            raise Interrupted("interrupted", hint="")

    @contextmanager
    def interruptible() -> Iterator[Callable[[], None]]:
        yield check

    return interruptible


def test_students_of_different_architectures_are_distilled_and_an_interruption_is_resumed(
    different: list[Path], tmp_path: Path
) -> None:
    out, wanted = tmp_path / "out", MergePlan(MergeMethod.DISTILL, TOY, **QUICK)  # type: ignore[arg-type]
    told: list[float] = []
    with pytest.raises(Interrupted):
        merge_releases(
            different,
            out,
            wanted,
            interruptible=stopping_after(1),  # type: ignore[arg-type]
            on_progress=lambda fraction, eta: told.append(fraction),
        )
    assert told
    assert not (out / merging.NOTE).exists()
    merged = merge_releases(different, out, wanted)
    card = read_card(read_header(merged.student, STUDENT_FILE))
    assert card is not None
    assert (card.spec, card.class_names) == (TOY.spec, TOY.class_names)
    assert merged.recipe["merge"] == "distill"
    assert "competence.0" in merged.evaluation  # so that it can be a member of the next merge
    note = json.loads((out / merging.NOTE).read_bytes())
    assert note["parents"] == sorted(to_hex(receipt_of(p).record_id()) for p in different)


def test_a_merge_by_another_plan_is_not_resumed(different: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(Interrupted):
        merge_releases(
            different,
            out,
            MergePlan(MergeMethod.DISTILL, TOY, **QUICK),  # type: ignore[arg-type]
            interruptible=stopping_after(1),  # type: ignore[arg-type]
        )
    with pytest.raises(ConfigurationError, match=r"another configuration: .*seed"):
        merge_releases(different, out, MergePlan(MergeMethod.DISTILL, TOY, seed=5, **QUICK))  # type: ignore[arg-type]


CLAIMS = {
    "none": {},
    "no class": {"top1": "0.9"},
    "classes it does not know": {f"competence.{label}": "0" for label in range(4)},
}


@pytest.mark.parametrize("evaluation", CLAIMS.values(), ids=CLAIMS.keys())
def test_a_release_that_claims_to_know_nothing_is_found_before_the_merge(
    federation: MemoryFederation,
    networks: dict[str, bytes],
    tmp_path: Path,
    evaluation: dict[str, str],
) -> None:
    release = federation.nodes[0].sign(
        tmp_path / "releases", student=networks["resnet8-quarter"], evaluation=evaluation
    )
    assert fault_of_member(release, TOY, MergeMethod.DISTILL)
    assert fault_of_member(release, TOY, MergeMethod.FEDAVG) is None


@pytest.mark.parametrize(
    ("architecture", "side", "scale", "why"),
    [
        ("resnet8-quarter", 16, 1e30, "its answers are not finite"),
        ("lenet5-bn-quarter", 8, 1.0, "it cannot take the federation's images: RuntimeError"),
    ],
)
def test_a_release_whose_network_cannot_work_is_found_before_the_merge(
    federation: MemoryFederation,
    tmp_path: Path,
    architecture: str,
    side: int,
    scale: float,
    why: str,
) -> None:
    import torch

    from genkd.card import ModelSpec
    from genkd.models import build_model
    from genkd.weights import model_bytes

    spec = ModelSpec(architecture, 4, 1)
    card = ModelCard(spec, replace(TOY.input, height=side, width=side), TOY.class_names)
    network = build_model(spec, generator=torch.Generator().manual_seed(0))
    state = {
        name: tensor * scale if tensor.ndim == 4 else tensor
        for name, tensor in network.state_dict().items()
    }
    data = model_bytes(state, {"v": 1, "card": card_to_json(card)})
    release = federation.nodes[0].sign(tmp_path / "releases", student=data)
    assert fault_of_member(release, card, MergeMethod.DISTILL) == why


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("can't allocate memory: 1 GB")])
def test_a_coordinator_without_memory_blames_no_release(
    different: list[Path], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    from genkd.ensemble import Ensemble

    def fails(*_: object) -> None:
        raise error

    monkeypatch.setattr(Ensemble, "forward", fails)
    with pytest.raises(ResourceExhausted, match="memory ran out"):
        fault_of_member(different[0], TOY, MergeMethod.DISTILL)


def test_a_release_that_knows_its_classes_is_a_member(different: list[Path]) -> None:
    assert [fault_of_member(p, TOY, MergeMethod.DISTILL) for p in different] == [None, None]
