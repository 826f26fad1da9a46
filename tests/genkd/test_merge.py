"""Merging: who is a member, what a merge leaves, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from genkd import cost
from genkd.card import InputCard, ModelCard, ModelSpec, card_to_json
from genkd.distillation import Progress
from genkd.errors import ConfigurationError, GenKDError, InputFileRefused, UsageError
from genkd.evaluate import load_student
from genkd.merge import Claimed, ensemble_of, merge, union_card
from genkd.models import build_model
from genkd.teacher import Teacher
from genkd.weights import write_model

RECIPE = {
    "batch": "24",
    "bank_images": "64",
    "generator_channels": "4",
    "generator_steps": "3",
    "generator_rate": "0.02",
    "label_loss_weight": "20",
    "latent_dim": "8",
    "langevin_steps": "3",
    "student_steps": "2",
    "student_batch": "16",
    "student_rate": "0.01",
    "warm_up": "0",
    "synthesis_share": "1",
}
# A round is 4 x 24 images for the generator, and 2 x 16 for the student.
FOUR_ROUNDS = "512 passes"


@pytest.fixture(scope="module", autouse=True)
def _quick_to_measure() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cost, "LATENCY_CALLS", (1, 1))
        yield


@pytest.fixture(scope="module")
def members(tiny_teacher: Path) -> list[Claimed]:
    """Two students that know two of the three classes each."""
    student = load_student(tiny_teacher)
    return [Claimed(student, {0: 0.9, 1: 0.8}), Claimed(student, {1: 0.6, 2: 1.0})]


def merged(members: list[Claimed], out: Path, **changes: Any) -> Path:
    student = dataclasses.replace(
        members[0].student.card, spec=ModelSpec("lenet5-bn-quarter", 3, 1)
    )
    arguments: dict[str, Any] = {
        "student": student,
        "budget": FOUR_ROUNDS,
        "overrides": RECIPE,
        "device": "cpu",
        "precision": "fp32",
        **changes,
    }
    return merge(members, out, **arguments).student


def like(student: Teacher, **changes: Any) -> Teacher:
    return Teacher(student.network, dataclasses.replace(student.card, **changes), "0" * 64)


def test_a_merge_leaves_what_a_distillation_leaves(members: list[Claimed], tmp_path: Path) -> None:
    student = merged(members, tmp_path / "out")
    assert load_student(student).card.class_names == ("horizontal", "vertical", "blob")
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["teacher"]["architecture"] == "2 students"
    assert result["rounds"] == 4
    assert (tmp_path / "out" / "report.html").exists()
    labels = np.load(tmp_path / "out" / "samples.npz")["labels"]
    assert set(labels.tolist()) == {0, 1, 2}  # of the classes of both members


def test_an_interrupted_merge_resumes_to_the_same_student(
    members: list[Claimed], tmp_path: Path
) -> None:
    whole = merged(members, tmp_path / "whole")

    def stop(progress: Progress) -> None:
        if progress.round == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merged(members, tmp_path / "cut", on_progress=stop)
    resumed = merged(members, tmp_path / "cut")
    assert resumed.read_bytes() == whole.read_bytes()
    again = merged(members, tmp_path / "cut")
    assert again.read_bytes() == whole.read_bytes()


def test_a_merge_has_no_public_prior_to_draw_on(members: list[Claimed], tmp_path: Path) -> None:
    keys = {"method": "frozen-prior", "budget": "1s"}
    with pytest.raises(ConfigurationError, match="a merge has none"):
        merged(members, tmp_path / "out", overrides=keys)
    assert not (tmp_path / "out").exists()


def test_a_merge_of_other_members_is_not_resumed(members: list[Claimed], tmp_path: Path) -> None:
    merged(members, tmp_path / "out")
    with pytest.raises(ConfigurationError, match="members_sha256"):
        merged(members[:1], tmp_path / "out")


def test_classes_are_told_by_their_names(members: list[Claimed]) -> None:
    student = members[0].student
    other = like(student, class_names=("blob", "ring", "vertical"))
    both = [Claimed(student, {0: 1.0}), Claimed(other, {1: 1.0})]
    card = union_card(both)
    assert card.class_names == ("horizontal", "vertical", "blob", "ring")
    ensemble = ensemble_of(both, card)
    assert ensemble.known == (0, 3)
    assert [one.known for one in ensemble.members] == [(0,), (3,)]


@pytest.mark.parametrize("claim", [1.0, 7.0, 1e300])
def test_a_claim_of_more_than_everything_is_worth_everything(
    claim: float, members: list[Claimed]
) -> None:
    student = members[0].student
    ensemble = ensemble_of([Claimed(student, {0: claim}), Claimed(student, {0: 1.0})], student.card)
    assert ensemble.trust[:, 0].tolist() == pytest.approx([0.5, 0.5])


def _refused(members: list[Claimed], kind: str) -> list[Claimed]:
    student = members[0].student
    return {
        "nobody": [],
        "no classes learnt": [Claimed(student, {0: 0.01})],
        "no class names": [Claimed(like(student, class_names=None), {0: 1.0})],
        "other images": [
            *members,
            Claimed(like(student, input=InputCard(32, 16, 1, (0.5,), (0.25,))), {0: 1.0}),
        ],
        "unknown class": [Claimed(like(student, class_names=("a", "b", "c")), {0: 1.0})],
    }[kind]


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        ("nobody", UsageError, "no student to merge"),
        ("no classes learnt", InputFileRefused, "claims to have learnt no class"),
        ("no class names", InputFileRefused, "names no classes"),
        ("other images", InputFileRefused, "takes images of 1x32x16, not of 1x16x16"),
        ("unknown class", ConfigurationError, "'a' is none of the student's"),
    ],
)
def test_what_cannot_be_merged_is_refused_at_once(
    kind: str,
    error: type[GenKDError],
    message: str,
    members: list[Claimed],
    tiny_teacher: Path,
    tmp_path: Path,
) -> None:
    card = load_student(tiny_teacher).card
    with pytest.raises(error, match=message) as caught:
        merge(_refused(members, kind), tmp_path / "out", student=card, budget=FOUR_ROUNDS)
    assert caught.value.hint
    assert not (tmp_path / "out").exists()


def test_a_start_student_of_another_kind_is_refused(members: list[Claimed], tmp_path: Path) -> None:
    spec = ModelSpec("lenet5-bn", 3, 1)
    card = ModelCard(spec, members[0].student.card.input, members[0].student.card.class_names, "")
    path = tmp_path / "start.safetensors"
    state = build_model(spec, generator=torch.Generator().manual_seed(0)).state_dict()
    write_model(path, state, {"v": 1, "card": card_to_json(card)})
    with pytest.raises(InputFileRefused, match="another network"):
        merged(members, tmp_path / "out", init_student=path)
    assert not (tmp_path / "out").exists()
