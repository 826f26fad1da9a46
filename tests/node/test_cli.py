"""The verbs that read model files: what they say, and how they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from genkd.card import ModelSpec
from genkd.models import build_model
from node.cli import main


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


def answer(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, object]:
    """The JSON object that a command line prints, after checking that it is the only output."""
    code = main([str(a) for a in arguments] + ["--json"])
    out, _ = capsys.readouterr()
    value: dict[str, object] = json.loads(out)
    assert (code == 0) == (value["status"] == "ok")
    return value


def data_of(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, object]:
    data = answer(capsys, *arguments)["data"]
    assert isinstance(data, dict)
    return data


def test_inspect_says_what_a_card_says(
    tiny_teacher: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = data_of(capsys, "inspect", tiny_teacher)
    assert data["architecture"] == "resnet8-quarter"
    assert data["num_classes"] == 3
    assert data["missing"] == []
    assert main(["inspect", str(tiny_teacher)]) == 0
    err = capsys.readouterr().err
    assert "architecture  resnet8-quarter" in err
    assert "1x16x16" in err
    assert "horizontal, vertical, blob" in err


def test_inspect_recognises_a_bare_file_and_says_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = tmp_path / "bare.safetensors"
    save_file(build_model(ModelSpec("resnet8-half", 10, 1)).state_dict(), bare)
    assert main(["inspect", str(bare)]) == 0
    err = capsys.readouterr().err
    assert "looks like" in err
    assert "resnet8-half" in err
    assert "--input-size" in err


def test_what_inspect_finds_missing_is_what_makes_a_bare_file_usable(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = tmp_path / "bare.safetensors"
    save_file(build_model(ModelSpec("resnet8-half", 10, 1)).state_dict(), bare)
    missing = data_of(capsys, "inspect", bare)["missing"]
    assert isinstance(missing, list)
    flags = " ".join(missing).split()
    assert data_of(capsys, "inspect", bare, *flags)["missing"] == []
    checks = data_of(capsys, "doctor", "--device", "cpu", "--teacher", bare, *flags)["checks"]
    assert isinstance(checks, list)
    assert {check["name"]: check["outcome"] for check in checks}["teacher"] == "ok"


def broken(path: Path, content: str) -> Path:
    """A file that is no teacher, of the kind that `content` names."""
    model = build_model(ModelSpec("resnet8-quarter", 3, 1))
    state = model.state_dict()
    if content == "NaN weights":
        state["fc.weight"][0, 0] = float("nan")
    save_file(state, path)
    whole = path.read_bytes()
    if content == "truncated":
        path.write_bytes(whole[:-100])
    elif content == "pickle":
        torch.save(state, path)
    elif content == "empty":
        path.write_bytes(b"")
    elif content == "text":
        path.write_text("not safetensors")
    elif content == "missing":
        path.unlink()
    return path


@pytest.mark.parametrize("verb", ["inspect", "evaluate", "distill", "doctor"])
@pytest.mark.parametrize(
    "content", ["missing", "empty", "text", "pickle", "truncated", "NaN weights"]
)
def test_every_verb_refuses_a_broken_file_with_4(
    verb: str, content: str, tmp_path: Path, tiny_images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = broken(tmp_path / "broken.safetensors", content)
    arch = ["--arch", "resnet8-quarter", "--num-classes", "3"]
    card = ["--input-size", "16x16", "--mean", "0.5", "--std", "0.25"]
    arguments = {
        "inspect": ["inspect", path],
        "evaluate": ["evaluate", path, "--data", tiny_images, *arch, *card],
        "distill": ["distill", "--teacher", path, "--out", tmp_path / "run", *arch, *card],
        "doctor": ["doctor", "--teacher", path, *arch, *card],
    }[verb]
    code = main([str(a) for a in arguments])
    err = capsys.readouterr().err
    assert code == 4, err
    assert "Traceback" not in err
    assert "hint: " in err
    assert not (tmp_path / "run" / "student.safetensors").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--arch", "resnet9"], 2, "resnet9"),
        (["--num-classes", "4"], 4, "3 classes"),
        (["--input-size", "16x16"], 2, "--mean and --std missing"),
        (["--input-size", "16by16", "--mean", "0.5", "--std", "1"], 2, "not a size"),
        (["--factory", "os:getcwd"], 2, "would run code"),
    ],
    ids=["architecture", "classes", "half a card", "size", "factory"],
)
def test_wrong_descriptions_of_a_teacher_are_refused(
    arguments: list[str],
    code: int,
    message: str,
    tiny_teacher: Path,
    tiny_images: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    got = main(["evaluate", str(tiny_teacher), "--data", str(tiny_images), *arguments])
    err = capsys.readouterr().err
    assert got == code, err
    assert message in err


def test_evaluate_measures_a_model_beside_its_teacher(
    tiny_teacher: Path, tiny_images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = data_of(
        capsys, "evaluate", tiny_teacher, "--data", tiny_images, "--teacher", tiny_teacher,
        "--device", "cpu", "--batch-size", 8,
    )  # fmt: skip
    assert data["images"] == 60
    assert isinstance(data["top1"], float)
    assert data["top1"] > 0.9  # it has learnt its patterns
    assert data["agreement"] == 1.0
    assert data["top1"] == data["teacher_top1"]


def test_evaluate_tells_people_the_figures(
    tiny_teacher: Path, tiny_images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(tiny_teacher), "--data", str(tiny_images)]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    for row in ("top-1", "calibration", "latency", "peak memory"):
        assert row in err
    assert "agreement" not in err  # there was no teacher to agree with


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.write_bytes(b"PK"), "test.npz"),
        (lambda path: np.savez(path, images=np.zeros((2, 16, 16), np.uint8)), "labels"),
        (
            lambda path: np.savez(
                path, images=np.zeros((2, 16, 16), np.uint8), labels=np.array([0, 9])
            ),
            "9",
        ),
    ],
    ids=["missing", "truncated", "no labels", "label beyond the classes"],
)
def test_evaluate_refuses_broken_data_with_4(
    make: object, message: str, tiny_teacher: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert callable(make)
    make(tmp_path / "test.npz")
    assert main(["evaluate", str(tiny_teacher), "--data", str(tmp_path / "test.npz")]) == 4
    assert message in capsys.readouterr().err


def test_models_that_do_not_belong_together_are_not_compared(
    tiny_teacher: Path, tiny_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.safetensors"
    save_file(build_model(ModelSpec("resnet8-quarter", 5, 1)).state_dict(), other)
    code = main(
        [
            *("evaluate", str(tiny_teacher), "--data", str(tiny_images), "--teacher", str(other)),
            *("--arch", "resnet8-quarter", "--input-size", "16x16", "--mean", "0.5"),
            *("--std", "0.5"),
        ]
    )
    assert code == 2
    assert "differ" in capsys.readouterr().err


def test_a_factory_of_ones_own_builds_the_teacher_once_that_is_allowed(
    tiny_teacher: Path, tiny_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "my_models.py").write_text(
        "from genkd.card import ModelSpec\n"
        "from genkd.models import build_model\n"
        "def make():\n    return build_model(ModelSpec('resnet8-quarter', 3, 1))\n"
    )
    arguments = ["evaluate", tiny_teacher, "--data", tiny_images, "--factory", "my_models:make"]
    assert data_of(capsys, *arguments, "--allow-local-code")["images"] == 60


def test_report_refuses_what_is_no_run_directory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(tmp_path / "nothing")]) == 4
    assert "not a run directory" in capsys.readouterr().err


def test_settings_reach_the_verbs(
    tiny_teacher: Path, tiny_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "genkd.toml").write_text('device = "quantum"')
    assert main(["evaluate", str(tiny_teacher), "--data", str(tiny_images)]) == 3
    assert "genkd.toml: device" in capsys.readouterr().err


def test_doctor_ends_with_the_code_of_what_failed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["doctor", "--teacher", str(tmp_path / "none.safetensors"), "--json"])
    value = json.loads(capsys.readouterr().out)
    assert code == 4
    assert value["status"] == "failed"
    assert [c["name"] for c in value["data"]["checks"] if c["outcome"] == "failed"] == ["teacher"]


def test_no_arguments_show_the_help_and_exit_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "Usage: genkd-node" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["inspect", "distill", "evaluate", "report", "doctor"])
def test_help_shows_an_example_before_the_options(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([verb, "--help"]) == 0
    out = capsys.readouterr().out
    assert 0 < out.index(f"\n  genkd-node {verb}") < out.index("\nOptions:")
    assert "\\[" not in out
    assert "--json" in out
