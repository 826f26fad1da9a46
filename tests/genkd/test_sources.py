"""Who is asked for which class, with members whose answers tell who gave them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from genkd.card import InputCard, ModelCard, ModelSpec
from genkd.device import choose_device
from genkd.ensemble import Ensemble, Member
from genkd.sources import MEMBERS_A_ROUND, Sources
from genkd.teacher import Teacher

CLASSES = 4
CARD = ModelCard(
    ModelSpec("fixed", CLASSES, 1), InputCard(8, 8, 1, (0.0,), (1.0,)), ("a", "b", "c", "d"), ""
)
CPU = choose_device("cpu", "fp32")


class Signing(nn.Module):
    """Behind one BatchNorm layer, says its number as the logit of every class."""

    def __init__(self, number: int, width: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(1)
        self.last = nn.Linear(width, CLASSES)
        self.number = float(number)

    def forward(self, images: Tensor) -> Tensor:
        self.norm(images)
        return torch.full((len(images), CLASSES), self.number)


def member(
    number: int, *knows: int, competence: tuple[float, ...] | None = None, width: int = 3
) -> Member:
    with torch.random.fork_rng():
        torch.manual_seed(number)
        student = Teacher(Signing(number, width), CARD, f"{number:064x}").knowing(knows)
    return Member(student, competence or (1.0,) * len(knows))


def sources_of(*members: Member) -> Sources:
    return Sources(Ensemble(members), 0.0, CPU)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def asked(sources: Sources, count: int = 240, seed: int = 0) -> tuple[Tensor, Tensor]:
    requests = sources.draw(count, seeded(seed))
    return sources.member_of[requests], sources.class_of[requests]


def test_each_is_asked_for_the_classes_that_it_knows_and_all_classes_equally_often() -> None:
    who, label = asked(sources_of(member(0, 0, 1), member(1, 3)))
    assert torch.bincount(label, minlength=CLASSES).tolist() == [80, 80, 0, 80]
    assert set(zip(who.tolist(), label.tolist(), strict=True)) == {(0, 0), (0, 1), (1, 3)}


@pytest.mark.parametrize("places", [(2, 0, 3, 1), (2, 3, 0)])
def test_a_teacher_whose_classes_come_in_another_order_is_asked_for_each(
    places: tuple[int, ...],
) -> None:
    student = Teacher(Signing(0, 3), CARD, "0" * 64, places=places)
    _, label = asked(sources_of(Member(student, (1.0,) * len(places))))
    count = 240 // len(places)
    wanted = [count if one in places else 0 for one in range(CLASSES)]
    assert torch.bincount(label, minlength=CLASSES).tolist() == wanted


def test_for_a_class_that_two_know_the_better_is_asked_more_often() -> None:
    better, other = member(0, 2, competence=(0.9,)), member(1, 2, competence=(0.3,))
    who, _ = asked(sources_of(better, other), count=4000)
    assert float((who == 0).float().mean()) == pytest.approx(0.75, abs=0.03)


def test_of_many_members_a_few_share_a_round_and_all_have_their_turn() -> None:
    sources = sources_of(*(member(number, number % CLASSES) for number in range(12)))
    turns = [set(asked(sources, seed=seed)[0].tolist()) for seed in range(40)]
    assert all(len(turn) <= MEMBERS_A_ROUND for turn in turns)
    assert set().union(*turns) == set(range(12))


def test_each_image_is_answered_and_measured_by_its_own_member() -> None:
    sources = sources_of(member(5, 0, 1), member(7, 2))
    requests = torch.tensor([2, 0, 2, 1, 2])
    images = torch.rand(5, 1, 8, 8, generator=seeded())
    expected = [7.0, 5.0, 7.0, 5.0, 7.0]
    logits, distance = sources.measure(images, requests)
    for said in (logits, sources.answer(images, requests)):
        assert said.amax(1).tolist() == expected
    # By hand: each member's own images, weighted by how many they are.
    first, second = (
        one.measure(images[at])[1]
        for one, at in ((sources.statistics[0], [1, 3]), (sources.statistics[1], [0, 2, 4]))
    )
    torch.testing.assert_close(distance, (2 * first + 3 * second) / 5)


def test_the_gradient_reaches_every_image() -> None:
    sources = sources_of(member(0, 0), member(1, 1))
    images = torch.rand(6, 1, 8, 8, generator=seeded()).requires_grad_()
    sources.measure(images, torch.tensor([0, 1, 0, 1, 0, 1]))[1].backward()
    assert images.grad is not None
    assert bool((images.grad.flatten(1).abs().amax(1) > 0).all())


def test_members_of_other_widths_have_embeddings_of_one_length() -> None:
    table = sources_of(member(0, 0, 1, width=3), member(1, 2, 3, width=5)).embeddings()
    assert table.shape == (4, 5)
    torch.testing.assert_close(table.norm(dim=1), torch.ones(4))


def test_one_teacher_is_an_ensemble_of_one() -> None:
    sources = Sources(member(3, 1, 2).student, 0.0, CPU)
    who, label = asked(sources, count=10)
    assert set(who.tolist()) == {0}
    assert torch.bincount(label, minlength=CLASSES).tolist() == [0, 5, 5, 0]


def test_without_batch_norm_the_pixels_are_measured_against_the_card() -> None:
    card = ModelCard(ModelSpec("lenet5", 3, 2), InputCard(8, 8, 2, (0.5, 0.25), (0.25, 0.125)))
    teacher = Teacher(nn.Sequential(nn.Flatten(), nn.Linear(128, 3)), card, "0" * 64)
    sources = Sources(teacher, 0.0, CPU)
    # Half of each channel a deviation above its mean and half below: just what the card says.
    signs = torch.tensor([1.0, -1.0]).view(2, 1, 1, 1).expand(2, 2, 8, 8)
    fits = torch.tensor(card.input.mean).view(1, 2, 1, 1) + signs * teacher.std
    requests = torch.tensor([0, 1])
    assert float(sources.measure(fits, requests)[1]) == pytest.approx(0, abs=1e-6)
    # One deviation too bright in both channels: 1. Of twice the deviation: the variance is 4.
    assert float(sources.measure(fits + teacher.std, requests)[1]) == pytest.approx(1)
    wide = fits + signs * teacher.std
    assert float(sources.measure(wide, requests)[1]) == pytest.approx(3)
    pixels = fits.clone().requires_grad_()
    sources.measure(pixels * 0.9, requests)[1].backward()
    assert pixels.grad is not None
    assert float(pixels.grad.abs().sum()) > 0


def test_who_is_asked_is_found_out_once_for_the_same_requests(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sources = sources_of(member(5, 0, 1), member(7, 2))
    counted, unique = [], torch.unique

    def count(values: Tensor) -> Tensor:
        counted.append(1)
        return unique(values)

    monkeypatch.setattr("genkd.sources.torch.unique", count)
    images = torch.rand(3, 1, 8, 8, generator=seeded())
    requests = torch.tensor([0, 2, 1])
    for _ in range(3):
        assert sources.answer(images, requests).amax(1).tolist() == [5.0, 7.0, 5.0]
        sources.measure(images, requests)
    assert len(counted) == 1
    requests[0] = 2  # the same tensor, other requests
    assert sources.answer(images, requests).amax(1).tolist() == [7.0, 7.0, 5.0]
    assert sources.answer(images, torch.tensor([2, 0, 0])).amax(1).tolist() == [7.0, 5.0, 5.0]
    assert len(counted) == 3
