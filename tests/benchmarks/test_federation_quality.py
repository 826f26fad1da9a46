"""What the rows of an ensemble that is told who knows an image say, by hand."""

from __future__ import annotations

import numpy as np
import pytest
from federation_quality import _accuracy, _accuracy_told

from genkd.ensemble import Ensemble, Member
from genkd.images import LabelledImages
from tests.genkd.fixed_members import member

IMAGES = LabelledImages(np.zeros((3, 1, 1, 1), np.uint8), np.array([0, 1, 2]))


@pytest.mark.parametrize(
    ("second", "told"),
    [
        (member(0.0, 0.0, 1.0, knows=(2,)), 2 / 3),  # the first takes 0 for 1, the second knows 2
        (member(0.0, 1.0, 1.5, knows=(1, 2)), 2 / 3),  # of 1 both are asked, and the first is surer
        (member(0.0, 1.0, 9.0, knows=(1, 2)), 1 / 3),  # ... and the second is
        (member(0.0, 9.0, 1.0, knows=(1, 2)), 1 / 3),  # who knows 2 takes it for 1
    ],
)
def test_those_who_know_the_class_of_an_image_judge_it_alone(second: Member, told: float) -> None:
    ensemble = Ensemble([member(0.0, 1.0, 9.0, knows=(0, 1)), second])
    assert _accuracy(ensemble, IMAGES) == pytest.approx(1 / 3)  # one answer for all images
    assert _accuracy_told(ensemble, IMAGES) == pytest.approx(told)
