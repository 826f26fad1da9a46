"""Every row of the ablation distils: two rounds in this process, on the tiny teacher."""

from __future__ import annotations

import json
from pathlib import Path

import ablation
import pytest
from trials import overrides_of

from genkd.distillation import distill

# What must show in the figures of a row: that its switch is connected.
LEARNS_POLICY = ("3 PG ", "4 MLE", "5 MLE", "6 gre", "7 pla", "8 pat")
LEARNS_NO_ENERGY = ("0 noi", "1 no ", "9 rej")


@pytest.mark.parametrize("name", [n for n, own in ablation.ROWS.items() if "oracle" not in own])
def test_row_distils(
    name: str, tiny_recipe: dict[str, str], tiny_teacher: Path, tmp_path: Path
) -> None:
    own = ablation.ROWS[name]
    report = distill(
        teacher=tiny_teacher,
        out=tmp_path / "run",
        student="resnet8-quarter",
        budget="300passes",
        device="cpu",
        precision="fp32",
        overrides=dict(overrides_of(own, tiny_recipe)),
    )
    final = json.loads(report.report_data.read_text())["final"]
    assert report.samples > 0
    assert ("mle" in final) == (name[:5] not in LEARNS_NO_ENERGY)
    assert ("policy_gradient" in final) == (name[:5] in LEARNS_POLICY)
