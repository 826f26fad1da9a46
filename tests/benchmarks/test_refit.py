"""A finished run's images teach a new student, and nothing of the run is changed."""

from __future__ import annotations

from pathlib import Path

import pytest
import refit

from genkd.distillation import distill


@pytest.fixture
def finished(tiny_recipe: dict[str, str], tiny_teacher: Path, tmp_path: Path) -> Path:
    out = tmp_path / "run"
    distill(
        teacher=tiny_teacher,
        out=out,
        student="resnet8-quarter",
        budget="40samples",
        device="cpu",
        precision="fp32",
        overrides=tiny_recipe,
    )
    return out


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr("sys.argv", ["refit.py", *map(str, arguments)])
    refit.main()


def test_a_bank_is_refitted_and_its_run_is_as_it_was(
    finished: Path,
    folder: Path,
    tiny_teacher: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    shared = ("--data", folder, "--teacher", tiny_teacher, "--student", "resnet8-quarter")
    options = (*shared, "--budget", "6000passes", "--held-out", 48)
    run(monkeypatch, finished, *options, "--first", 30)
    run(monkeypatch, finished, *options)
    lines = [line.split("|") for line in capsys.readouterr().out.splitlines() if "run" in line]
    assert len(lines) == 2
    (_, _, few, _, _, _), (_, _, all_of_them, top1, agreement, _) = lines
    assert int(few) == 30
    assert int(all_of_them) >= 40
    assert 100 / 3 < float(top1) <= 100  # better than a guess among three classes
    assert 100 / 3 < float(agreement) <= 100
    assert {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == before


def test_the_same_seed_gives_the_same_figures(
    finished: Path,
    folder: Path,
    tiny_teacher: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    said = []
    for _ in range(2):
        run(
            *(monkeypatch, finished, "--data", folder, "--teacher", tiny_teacher),
            *("--student", "resnet8-quarter", "--budget", "1536passes"),
        )
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]


def test_a_folder_that_is_no_run_is_refused(
    folder: Path, tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit, match="holds no checkpoint with a bank"):
        run(monkeypatch, tmp_path, "--data", folder, "--teacher", tiny_teacher)
