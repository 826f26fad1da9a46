"""The ring of synthetic images: what it keeps, what it gives back, what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from genkd.bank import SynthesisBank, as_images, quantise
from genkd.errors import InputFileRefused

DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA here")
    ),
]
SHAPE = (1, 2, 2)


def filled(count: int, capacity: int = 8, device: str = "cpu") -> SynthesisBank:
    """Image i has the value i, label i % 3 and confidence i / 100; put in five at a time."""
    bank = SynthesisBank(capacity, SHAPE, torch.device(device))
    for start in range(0, count, 5):
        number = torch.arange(start, min(start + 5, count), device=device)
        images = number.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, *SHAPE)
        bank.add(images, number % 3, number / 100)
    return bank


def numbers(bank: SynthesisBank) -> list[int]:
    """Which images a bank holds, oldest first."""
    images = bank.state_dict()["images"]
    assert isinstance(images, Tensor)
    return [int(value) for value in images[:, 0, 0, 0]]


@pytest.mark.parametrize(
    ("value", "stored"),
    [(0.0, 0), (1.0, 255), (0.5, 128), (0.001, 0), (0.002, 1), (0.9981, 255), (100 / 255, 100)],
)
def test_an_image_is_stored_to_the_nearest_of_256_levels(value: float, stored: int) -> None:
    assert int(quantise(torch.tensor(value))) == stored


def test_what_was_stored_comes_back_within_half_a_level() -> None:
    values = torch.linspace(0, 1, 1000)
    back = as_images(quantise(values))
    assert back.dtype is torch.float32
    assert float((back - values).abs().max()) <= 0.5 / 255 + 1e-7
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(quantise(as_images(levels)), levels)


def test_one_range_serves_all_images() -> None:
    dim = torch.linspace(0.2, 0.3, 16).view(1, 1, 4, 4)
    images = torch.cat((dim, torch.linspace(0, 1, 16).view(1, 1, 4, 4)))
    back = as_images(quantise(images))
    assert float(back[0].max()) == pytest.approx(0.3, abs=0.003)  # not stretched to 1
    assert float(back[0].min()) == pytest.approx(0.2, abs=0.003)


def test_storing_takes_half_precision_and_drops_the_graph() -> None:
    images = torch.full((1, 1, 2, 2), 0.25, dtype=torch.bfloat16, requires_grad=True)
    stored = quantise(images)
    assert stored.dtype is torch.uint8
    assert not stored.requires_grad
    assert int(stored[0, 0, 0, 0]) == 64


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("count", "kept"),
    [(0, []), (5, [0, 1, 2, 3, 4]), (8, list(range(8))), (12, list(range(4, 12)))],
)
def test_the_oldest_make_room(count: int, kept: list[int], device: str) -> None:
    bank = filled(count, device=device)
    assert numbers(bank) == kept
    assert len(bank) == len(kept)
    assert bank.added == count


def test_of_a_batch_larger_than_the_bank_the_last_are_kept() -> None:
    bank = filled(3)
    number = torch.arange(10, 30)
    images = number.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, *SHAPE)
    bank.add(images, number % 3, number / 100)
    assert numbers(bank) == list(range(22, 30))
    assert bank.added == 23


def test_labels_and_confidence_stay_with_their_images() -> None:
    bank = filled(20)
    images, labels, confidence = bank.samples(100, 3)
    number = images[:, 0, 0, 0].long()
    assert torch.equal(labels, number % 3)
    assert torch.allclose(confidence, number / 100)
    assert sorted(number.tolist()) == list(range(12, 20))
    assert labels.tolist() == sorted(labels.tolist())


def test_a_batch_of_which_nothing_was_confirmed_changes_nothing() -> None:
    bank = filled(6)
    bank.add(torch.empty(0, *SHAPE, dtype=torch.uint8), torch.empty(0).long(), torch.empty(0))
    assert numbers(bank) == list(range(6))
    assert bank.added == 6


def test_a_change_of_the_batch_afterwards_does_not_reach_the_bank() -> None:
    bank = SynthesisBank(8, SHAPE, torch.device("cpu"))
    images = torch.ones(2, *SHAPE, dtype=torch.uint8)
    bank.add(images, torch.zeros(2).long(), torch.ones(2))
    images.zero_()
    assert numbers(bank) == [1, 1]


@pytest.mark.parametrize("device", DEVICES)
def test_drawing_gives_kept_images_only_every_class_as_often_within_chance(device: str) -> None:
    bank = filled(12, device=device)
    drawn, labels = bank.draw(4000, torch.Generator(device).manual_seed(0))
    assert drawn.shape == (4000, *SHAPE)
    assert drawn.dtype is torch.float32
    assert drawn.device.type == device
    count = torch.bincount((drawn[:, 0, 0, 0] * 255).round().long().cpu(), minlength=12)
    assert int(count[:4].sum()) == 0
    # Kept are two images of class 0 and three each of classes 1 and 2: 1333 draws a class.
    for label, number in ((0, 667), (1, 444), (2, 444)):
        for image in range(4 + (label - 4) % 3, 12, 3):
            assert abs(int(count[image]) - number) < 100
    assert torch.equal(labels.cpu(), ((drawn[:, 0, 0, 0] * 255).round().long() % 3).cpu())


def test_drawing_again_from_the_same_state_gives_the_same_and_moves_no_global_state() -> None:
    bank, before = filled(12), torch.get_rng_state()
    first, second = (bank.draw(6, torch.Generator().manual_seed(1))[0] for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("per_class", "expected"),
    [
        (1, [3, 4, 5]),  # the middle of 0 3, of 1 4 and of 2 5 is the second of the two
        (2, [0, 3, 1, 4, 2, 5]),
        (9, [0, 3, 1, 4, 2, 5]),
    ],
)
def test_samples_are_of_every_class(per_class: int, expected: list[int]) -> None:
    images, labels, _ = filled(6).samples(per_class, 3)
    assert labels.tolist() == [label for label in range(3) for _ in range(min(per_class, 2))]
    assert [int(value) for value in images[:, 0, 0, 0]] == expected


def test_samples_are_spread_over_the_age_of_the_bank() -> None:
    images, _, _ = filled(90, capacity=90).samples(3, 1)
    # Thirty images of class 0 in three equal parts, the middle of each.
    assert [int(value) for value in images[:, 0, 0, 0]] == [15, 45, 75]


def test_a_class_without_images_has_no_samples() -> None:
    images, labels, confidence = filled(6).samples(4, 5)
    assert sorted(set(labels.tolist())) == [0, 1, 2]
    assert len(images) == len(labels) == len(confidence) == 6


def test_an_empty_bank_has_samples_of_the_right_shape() -> None:
    images, labels, confidence = filled(0).samples(4, 3)
    assert images.shape == (0, *SHAPE)
    assert (len(labels), len(confidence)) == (0, 0)


def test_a_checkpoint_continues_the_ring_exactly() -> None:
    bank, other = filled(12), SynthesisBank(8, SHAPE, torch.device("cpu"))
    other.load_state_dict(bank.state_dict())
    assert other.added == 12
    for one in (bank, other):
        one.add(torch.full((1, *SHAPE), 99, dtype=torch.uint8), torch.ones(1).long(), torch.ones(1))
    assert numbers(other) == numbers(bank)
    random = [torch.Generator().manual_seed(2) for _ in range(2)]
    assert torch.equal(other.draw(9, random[0])[0], bank.draw(9, random[1])[0])


@pytest.mark.parametrize(
    "change",
    [
        {"images": None},
        {"images": torch.zeros(8, 3, 2, 2, dtype=torch.uint8)},
        {"images": torch.zeros(8, 1, 3, 2, dtype=torch.uint8)},
        {"labels": torch.zeros(7).long()},
        {"confidence": torch.zeros(9)},
        {"labels": [0] * 8},
        {"added": "12"},
        {
            "images": torch.zeros(9, *SHAPE, dtype=torch.uint8),
            "labels": torch.zeros(9).long(),
            "confidence": torch.zeros(9),
        },
    ],
    ids=[
        *("no images", "colour", "another size", "a label missing", "one confidence too many"),
        *("no tensor", "no number", "more than it holds"),
    ],
)
def test_the_state_of_another_bank_is_refused_and_changes_nothing(change: dict[str, Any]) -> None:
    bank = filled(12)
    with pytest.raises(InputFileRefused, match="do not fit"):
        bank.load_state_dict({**bank.state_dict(), **change})
    assert numbers(bank) == list(range(4, 12))


def test_chances_are_those_of_the_images_that_are_kept_now() -> None:
    def by_hand(bank: SynthesisBank, seed: int) -> Tensor:
        labels = bank.state_dict()["labels"]
        assert isinstance(labels, Tensor)
        chances = (1 / torch.bincount(labels).clamp_min(1).float())[labels]
        return labels[torch.multinomial(chances, 50, True, generator=random(seed))]

    def random(seed: int) -> torch.Generator:
        return torch.Generator().manual_seed(seed)

    bank, other = filled(12), filled(5)
    for seed in range(2):  # the second draw is of remembered chances
        assert torch.equal(bank.draw(50, random(seed))[1], by_hand(bank, seed))
    bank.add(torch.zeros(3, *SHAPE, dtype=torch.uint8), torch.tensor([4, 4, 0]), torch.ones(3))
    assert torch.equal(bank.draw(50, random(2))[1], by_hand(bank, 2))
    other.draw(1, random(3))
    other.load_state_dict(bank.state_dict())
    assert torch.equal(other.draw(50, random(3))[1], by_hand(bank, 3))
