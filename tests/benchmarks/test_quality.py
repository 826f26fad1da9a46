"""The quality study from run directories to tables: what is kept, refused, correlated and drawn."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import quality
import quality_tables
import torch
from scatter import write_scatter
from scipy import stats

from genkd import cost
from genkd.card import InputCard, ModelCard, ModelSpec, card_to_json
from genkd.distillation import distill
from genkd.generative_model import GenerativeCard, GenerativeModel, save_generative_model
from genkd.models import build_model
from genkd.weights import write_model

FEW = {"batch": "24", "student_steps": "1", "student_batch": "8", "generator_steps": "1"}


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of another architecture; what it says does not matter here."""
    spec = ModelSpec("lenet5-half", 3, 1)
    network = build_model(spec, generator=torch.Generator().manual_seed(0))
    card = ModelCard(spec, InputCard(16, 16, 1, (0.4,), (0.3,)))
    path = tmp_path_factory.mktemp("judge") / "judge.safetensors"
    write_model(path, network.state_dict(), {"v": 1, "card": card_to_json(card)})
    return path


@pytest.fixture(scope="module")
def runs(tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder, made = tmp_path_factory.mktemp("runs"), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cost, "LATENCY_CALLS", (1, 1))
        for seed in range(3):
            report = distill(
                teacher=tiny_teacher,
                out=folder / str(seed),
                student="lenet5-bn-quarter",
                budget="200 samples",
                seed=seed,
                device="cpu",
                precision="fp32",
                method="deepinversion",
                overrides=FEW,
            )
            made.append(report.student.parent)
    return made


@pytest.fixture
def study(
    runs: list[Path],
    judge: Path,
    tiny_teacher: Path,
    tiny_images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Any]:
    """Runs the script in this process; its report."""
    monkeypatch.setattr(cost, "LATENCY_CALLS", (1, 1))

    def start(*arguments: str, sources: list[Path] = runs) -> list[dict[str, Any]]:
        command = [
            *("quality.py", *map(str, sources), "--data", str(tiny_images), "--judge", str(judge)),
            *("--teacher", str(tiny_teacher), "--out", str(tmp_path), "--images", "48"),
            *("--real", "60", *arguments),
        ]
        monkeypatch.setattr(sys, "argv", command)
        quality.main()
        found: list[dict[str, Any]] = json.loads((tmp_path / "quality.json").read_text())
        return found

    return start


def test_a_study_of_runs_leaves_tables_figures_and_plots(study: Any, tmp_path: Path) -> None:
    (report,) = study()
    assert (report["images"], report["real_images"], len(report["rows"])) == (48, 60, 3)
    assert len(report["correlations"]) == len(report["rows"][0]["figures"]) == 14
    text = (tmp_path / "quality.md").read_text()
    assert "| teacher fid |" in text
    assert "| judge coverage |" in text
    assert len(report["plots"]) == 14
    for name in report["plots"]:
        ElementTree.fromstring((tmp_path / name).read_text())  # noqa: S314 (our own file)


def test_what_was_computed_is_not_repeated(
    study: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first = study()
    monkeypatch.setattr(quality, "accuracy_of", lambda *_: pytest.fail("measured again"))
    monkeypatch.setattr(quality, "quality", lambda *_: pytest.fail("computed again"))
    assert study() == first
    for kept in (tmp_path / "figures").iterdir():
        kept.unlink()
    with pytest.raises(pytest.fail.Exception):
        study()


def test_other_images_are_other_figures(
    study: Any, runs: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> None:
    before = study()[0]["rows"][0]
    copy = tmp_path_factory.mktemp("copy") / "run"
    shutil.copytree(runs[0], copy)
    images = np.random.default_rng(0).integers(0, 256, (60, 1, 16, 16)).astype(np.uint8)
    np.savez(copy / "samples.npz", images=images, labels=np.arange(60) % 3, confidence=np.ones(60))
    after = study(sources=[copy])[0]["rows"][0]
    assert after["top1"] == before["top1"]
    assert after["figures"]["teacher fid"] != before["figures"]["teacher fid"]


def test_accuracy_is_measured_whatever_an_evaluation_said(
    runs: list[Path], tiny_images: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(runs[1], copy)
    data = quality.read_images(tiny_images, _card(copy))
    (copy / "evaluation.json").write_text(json.dumps({"images": len(data), "top1": 0.125}))
    found = quality.accuracy_of(copy, data)
    assert found == quality.accuracy_of(runs[1], data) != 0.125


def _card(run: Path) -> ModelCard:
    return quality.load_student(run / "student.safetensors").card


def test_runs_that_cannot_be_compared_are_refused(
    study: Any, runs: list[Path], judge: Path, tmp_path: Path, tmp_path_factory: Any
) -> None:
    with pytest.raises(SystemExit, match="no finished run"):
        study(sources=[tmp_path / "nothing"])
    with pytest.raises(SystemExit, match="another teacher"):
        study("--teacher", str(judge), "--judge", str(runs[0] / "student.safetensors"))
    few = tmp_path_factory.mktemp("few") / "run"
    shutil.copytree(runs[0], few)
    with np.load(few / "samples.npz") as kept:
        part = {name: kept[name][:8] for name in kept.files}
    np.savez(few / "samples.npz", **part)
    with pytest.raises(SystemExit, match="8 images"):
        study(sources=[few])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--real", "10"], "--real is at least"),
        (["--set", "batch"], "KEY=VALUE"),
        (["--priors", "."], "holds no"),
    ],
    ids=["fewer real", "no value", "no priors"],
)
def test_arguments_that_cannot_work_are_refused_first(
    study: Any,
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        study(*arguments)
    assert message in capsys.readouterr().err


def test_priors_are_distilled_through_once_and_others_left_out(
    study: Any, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path_factory.mktemp("priors")
    for number, family in enumerate(("vae", "gan", "vae", "pixel-ebm")):
        card = GenerativeCard(family, 0 if family == "pixel-ebm" else 4, 3, 1, 16, 16, 4)
        model = GenerativeModel(card, torch.Generator().manual_seed(number))
        save_generative_model(folder / f"{number}.safetensors", model.freeze())
    arguments = ["--priors", str(folder), "--budget", "200passes", "--student", "lenet5-bn-quarter"]
    arguments += [part for key in ("batch=16", "student_steps=1") for part in ("--set", key)]
    (report,) = study(*arguments, sources=[])
    assert [row["name"] for row in report["rows"]] == ["0", "1", "2"]
    assert [row["group"] for row in report["rows"]] == ["vae", "gan", "vae"]
    assert "3.safetensors is left out" in capsys.readouterr().err
    assert report["correlations"]["judge fid"]["pearson"]["count"] == 3
    (folder / "3.safetensors").unlink()  # it is asked each time
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("genkd.distillation.distill", lambda **_: pytest.fail("distilled again"))
        assert study(*arguments, sources=[]) == [report]
    with pytest.raises(SystemExit, match="of another recipe"):
        study(*arguments, "--set", "energy=no", sources=[])
    with pytest.raises(SystemExit, match="of another budget"):
        study(*arguments, "--budget", "300passes", sources=[])
    shutil.copy(folder / "1.safetensors", folder / "0.safetensors")
    with pytest.raises(SystemExit, match="of another prior_sha256"):
        study(*arguments, sources=[])


def rows(count: int) -> list[dict[str, Any]]:
    random = np.random.default_rng(1)
    return [
        {
            "name": f"run {index}",
            "group": "a < b" if index % 2 else "genkd",
            "top1": float(random.random()),
            "figures": {"teacher fid": float(random.random()), "judge kid": 0.5, "gap": None},
        }
        for index in range(count)
    ]


def test_correlations_are_those_of_scipy() -> None:
    some = rows(8)
    found = quality_tables.correlations(some)
    x = [row["figures"]["teacher fid"] for row in some]
    y = [row["top1"] for row in some]
    fid = found["teacher fid"]
    assert fid["pearson"]["value"] == pytest.approx(stats.pearsonr(x, y).statistic)
    assert fid["spearman"]["value"] == pytest.approx(stats.spearmanr(x, y).statistic)
    assert fid["pearson"]["count"] == 8
    assert fid["pearson"]["low"] <= fid["pearson"]["value"] <= fid["pearson"]["high"]
    assert found["judge kid"]["pearson"]["value"] is None  # it does not vary
    assert "gap" not in found  # nobody has it
    json.dumps(found, allow_nan=False)


def test_two_sources_have_no_correlation_and_the_table_says_so() -> None:
    few = rows(2)
    report = {"title": "runs", "images": 40, "real_images": 2000, "rows": few}
    text = quality_tables.quality_summary(
        {**report, "correlations": quality_tables.correlations(few)}
    )
    assert "three are needed" in text
    assert "| run 1 | a < b |" in text


def test_a_scatter_plot_has_a_dot_for_each_run_within_the_axes(tmp_path: Path) -> None:
    files = quality_tables.write_quality_plots("runs", rows(6), tmp_path)
    assert [file.name for file in files] == ["runs-teacher-fid.svg", "runs-judge-kid.svg"]
    root = ElementTree.fromstring(files[0].read_text())  # noqa: S314 (our own file)
    circles = [element for element in root.iter() if element.tag.endswith("circle")]
    assert len(circles) == 6
    assert all(70 <= float(circle.attrib["cx"]) <= 520 for circle in circles)
    assert all(40 <= float(circle.attrib["cy"]) <= 360 for circle in circles)
    texts = [element.text for element in root.iter() if element.tag.endswith("text")]
    assert {"genkd", "a < b", "teacher fid", "top-1, %"} <= set(texts)


def test_nothing_to_draw_is_no_plot(tmp_path: Path) -> None:
    write_scatter(tmp_path / "none.svg", "x", {"a": [(float("nan"), 1.0)]}, x="x")
    assert not (tmp_path / "none.svg").exists()
