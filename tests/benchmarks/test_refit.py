"""A finished run's images teach a new student, and nothing of the run is changed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import refit
from trials import SHIPPED, overrides_of

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
        overrides=dict(overrides_of({}, tiny_recipe)),
    )
    return out


@pytest.fixture
def refitted(
    folder: Path,
    tiny_teacher: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., str]:
    """Run the script on a folder with further options; what it prints."""

    def run(of: Path, *options: object, teacher: Path = tiny_teacher) -> str:
        shared = ("--data", folder, "--teacher", teacher, "--student", "resnet8-quarter")
        monkeypatch.setattr("sys.argv", ["refit.py", *map(str, (of, *shared, *options))])
        refit.main()
        return capsys.readouterr().out

    return run


def test_a_bank_is_refitted_and_its_run_is_as_it_was(
    finished: Path, refitted: Callable[..., str]
) -> None:
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    options = ("--budget", "6000passes", "--held-out", 48)
    said = refitted(finished, *options, "--first", 30) + refitted(finished, *options)
    lines = [line.split("|") for line in said.splitlines() if "run" in line]
    assert len(lines) == 2
    (_, _, few, _, _, _), (_, _, all_of_them, top1, agreement, _) = lines
    assert int(few) == 30
    assert int(all_of_them) >= 40
    assert 100 / 3 < float(top1) <= 100  # better than a guess among three classes
    assert 100 / 3 < float(agreement) <= 100
    assert {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == before


def test_the_same_seed_gives_the_same_figures(finished: Path, refitted: Callable[..., str]) -> None:
    options = (finished, "--budget", "1536passes")
    assert refitted(*options) == refitted(*options)


def test_a_folder_that_is_no_run_is_refused(refitted: Callable[..., str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="holds no checkpoint with a bank"):
        refitted(tmp_path)


def test_the_run_of_another_teacher_is_refused(
    finished: Path, refitted: Callable[..., str]
) -> None:
    with pytest.raises(SystemExit, match="a run of another teacher"):
        refitted(finished, teacher=SHIPPED / "teacher.safetensors")
