"""Whom an ensemble believes: by hand, with members that answer what they are told to."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from genkd.ensemble import LEAST, Ensemble, TeacherWithMemory
from genkd.teacher import UNKNOWN, Teacher
from tests.genkd.fixed_members import CARD, Saying, member

IMAGES = torch.zeros(2, 1, 1, 1)


def test_one_member_is_believed_about_what_it_knows_only() -> None:
    log_p = Ensemble([member(1.0, 0.0, 9.0, knows=(0, 1))])(IMAGES)
    odds = math.e
    torch.testing.assert_close(log_p[0, 0].exp(), torch.tensor(odds / (1 + odds)))
    torch.testing.assert_close(log_p[0, 1].exp(), torch.tensor(1 / (1 + odds)))
    assert log_p[0, 2] == math.log(LEAST)


def test_of_images_from_elsewhere_everybody_who_knows_a_class_is_asked_about_it() -> None:
    # Of class 0 the first says 1/2; of class 1 the first 1/2 and the second 1/4; of 2 that 3/4.
    first = member(0.0, 0.0, 9.0, knows=(0, 1))
    second = member(9.0, 0.0, math.log(3), knows=(1, 2))
    probability = Ensemble([first, second])(IMAGES)[0].exp()
    said = torch.tensor([1 / 2, (1 / 2 + 1 / 4) / 2, 3 / 4])
    torch.testing.assert_close(probability, said / said.sum())


def test_a_class_known_to_many_does_not_count_more() -> None:
    same = [member(1.0, 0.0, 0.0, knows=(0, 1)) for _ in range(5)]
    other = member(0.0, 0.0, 1.0, knows=(1, 2))
    probability = Ensemble([*same, other])(IMAGES)[0].exp()
    torch.testing.assert_close(probability[0], probability[2])


def test_of_several_who_know_a_class_the_better_is_believed_more() -> None:
    first = member(0.0, math.log(3), 0.0, knows=(0, 1), competence=(0.25, 1.0))  # 1/4, 3/4
    second = member(math.log(3), 0.0, 0.0, knows=(0, 2), competence=(0.75, 1.0))  # 3/4, 0, 1/4
    probability = Ensemble([first, second])(IMAGES)[0].exp()
    said = torch.tensor([0.25 * 0.25 + 0.75 * 0.75, 0.75, 0.25])
    torch.testing.assert_close(probability, said / said.sum())


def test_the_less_competent_is_believed_less() -> None:
    first = member(0.0, math.log(3), 0.0, knows=(0, 1), competence=(0.5, 0.5))  # 1/4, 3/4
    second = member(math.log(3), 0.0, 0.0, knows=(0, 1), competence=(1.0, 1.0))  # 3/4, 1/4
    probability = Ensemble([first, second])(IMAGES)[0].exp()
    expected = (0.5 * 0.25 + 0.75) / 1.5
    torch.testing.assert_close(probability, torch.tensor([expected, 1 - expected, LEAST]))


def test_a_teacher_with_a_memory_tells_its_own_classes_apart_and_nothing_else() -> None:
    # The earlier student: 1/2, 1/4, 1/4; so 3/4 is of the teacher's classes, of which it says 1/10
    # and 9/10, whatever it may say of the third.
    earlier = member(math.log(2), 0.0, 0.0, knows=(0, 1, 2)).student
    teacher = member(0.0, math.log(9), 99.0, knows=(0, 1)).student
    both = TeacherWithMemory(teacher, earlier)
    expected = torch.tensor([0.75 * 0.1, 0.75 * 0.9, 0.25])
    torch.testing.assert_close(both(IMAGES)[0].exp(), expected)
    assert both.credited == (0, 1)
    assert both.sha256 == teacher.sha256, "the provenance names the private teacher"
    assert [one.known for one in both.members] == [(0, 1), (2,)]


def test_an_ensemble_is_frozen_and_known_by_its_members_in_any_order() -> None:
    one, other = member(0.0, 1.0, 2.0, knows=(0,)), member(2.0, 1.0, 0.0, knows=(2,))
    first, second = Ensemble([one, other]), Ensemble([other, one])
    assert first.sha256 == second.sha256 != Ensemble([one]).sha256
    assert first.known == (0, 2)
    assert not any(parameter.requires_grad for parameter in first.parameters())
    assert not any(one.training for one in first.train().members)


def test_logits_of_any_size_leave_finite_answers() -> None:
    extreme = [member(1e4, -1e4, 0.0, knows=(0, 1)), member(-1e4, 1e4, 3e4, knows=(1, 2))]
    assert bool(Ensemble(extreme)(IMAGES).isfinite().all())


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("a", "b", "c"), [1.0, 2.0, 3.0]),
        (("c", "a", "b"), [3.0, 1.0, 2.0]),
        (("a", "x", "b", "c"), [1.0, UNKNOWN, 2.0, 3.0]),
    ],
)
def test_a_teachers_classes_are_found_by_name(
    names: tuple[str, ...], expected: list[float]
) -> None:
    teacher = Teacher(Saying(1.0, 2.0, 3.0), CARD, "").among(names)
    assert teacher(IMAGES)[0].tolist() == expected
    assert teacher.card.spec.num_classes == len(names)
    assert list(teacher.known) == [i for i, name in enumerate(names) if name != "x"]
    assert teacher.knowing(teacher.known)(IMAGES)[0].tolist() == expected


def test_a_teacher_asked_about_some_classes_says_nothing_of_the_others() -> None:
    teacher = Teacher(Saying(1.0, 2.0, 3.0), CARD, "").among(("c", "x", "a", "b"))
    assert teacher.knowing((3, 0))(IMAGES)[0].tolist() == [3.0, UNKNOWN, UNKNOWN, 2.0]


def test_who_was_asked_without_gradients_still_passes_them_on() -> None:
    class Weighing(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.flatten(1).sum(1, keepdim=True) * torch.tensor([1.0, 2.0, 3.0])

    earlier, teacher = (Teacher(Weighing(), CARD, "").knowing(k) for k in ((0, 1, 2), (2, 0)))
    for asked in (teacher, TeacherWithMemory(teacher, earlier)):
        with torch.inference_mode():  # as `evaluate` asks
            said = asked(IMAGES + 0.5)
        images = (IMAGES + 0.5).requires_grad_()
        answer = asked(images)
        torch.testing.assert_close(answer, said.clone())
        answer[:, 2].sum().backward()
        assert images.grad is not None
        assert bool((images.grad != 0).all())
