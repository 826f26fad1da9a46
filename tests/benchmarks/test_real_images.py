"""The oracles: students of real images, by the same loop, budget and files as all others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import real_images

from genkd.weights import read_header, read_metadata


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr("sys.argv", ["real_images.py", *map(str, arguments)])
    real_images.main()


@pytest.mark.parametrize("kind", ["distilled", "scratch"])
def test_an_oracle_learns_until_its_budget_is_spent(
    kind: str, folder: Path, tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    run(monkeypatch, kind, tiny_teacher, "resnet8-quarter", folder, "2000passes", 0, out)
    result = json.loads((out / "result.json").read_text())
    assert result["rounds"] == 2  # of 12 steps of 128 images each
    assert result["teacher_passes"] == (3072 if kind == "distilled" else 0)
    assert result["samples"] == 96
    assert result["core_seconds"] > 0
    card = read_metadata(read_header(out / "student.safetensors"))["card"]
    assert "real images" in json.dumps(card)


def test_a_budget_in_samples_is_refused_because_none_are_made(
    folder: Path, tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit, match="core-seconds or passes"):
        run(
            monkeypatch, "scratch", tiny_teacher, "resnet8-quarter", folder, "9samples", 0, tmp_path
        )


def test_one_file_is_no_training_set(
    tiny_images: Path, tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the test set: an oracle must not learn from it."""
    arguments = ("distilled", tiny_teacher, "resnet8-quarter", tiny_images, "1passes", 0)
    with pytest.raises(SystemExit, match="no folder that holds train-images"):
        run(monkeypatch, *arguments, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_missing_training_set_is_told(
    folder: Path, tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "train-images-idx3-ubyte").unlink()
    with pytest.raises(SystemExit, match="holds train-images-idx3-ubyte"):
        run(monkeypatch, "scratch", tiny_teacher, "resnet8-quarter", folder, "1passes", 0, tmp_path)
