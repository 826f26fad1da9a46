"""What `distill` passes on, what it answers, and in which order it refuses."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from genkd.card import InputCard
from node.cli import main
from node.distill_command import run_name


@dataclass
class Recorder:
    """Stands for `genkd.distillation.distill`: notes its arguments and says it is done."""

    calls: list[dict[str, object]] = field(default_factory=list)

    def __call__(self, **arguments: object) -> SimpleNamespace:
        self.calls.append(arguments)
        show = arguments["on_progress"]
        assert callable(show)
        show(
            SimpleNamespace(
                fraction=1.0, phase="student", round=1, seconds=2.0, eta_seconds=0.0, figures={}
            )
        )
        student = Path(str(arguments["out"])) / "student.safetensors"
        return SimpleNamespace(student=student, seconds=2.0, samples=512)

    @property
    def only(self) -> dict[str, object]:
        (arguments,) = self.calls
        return arguments


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Recorder:
    recorder = Recorder()
    module = ModuleType("genkd.distillation")
    module.distill = recorder  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "genkd.distillation", module)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return recorder


def test_defaults_are_passed_on(recorder: Recorder) -> None:
    assert main(["distill", "--teacher", "t.safetensors"]) == 0
    passed = recorder.only
    del passed["on_progress"]
    assert passed == {
        "teacher": Path("t.safetensors"),
        "student": "resnet8-half",
        "out": Path("runs/t-resnet8-half-0"),
        "recipe": "standard",
        "method": None,
        "label_embeddings": None,
        "prior": None,
        "budget": None,
        "seed": 0,
        "device": "auto",
        "precision": "auto",
        "fresh": False,
        "architecture": None,
        "num_classes": None,
        "input_card": None,
        "factory": None,
        "allow_local_code": False,
        "overrides": {},
        "export_onnx": False,
        "init_student": None,
    }


def test_every_flag_arrives(recorder: Recorder) -> None:
    code = main(
        [
            *("distill", "--teacher", "t.safetensors", "--student", "torchvision:resnet18"),
            *("--recipe", "quick", "--budget", "10m", "--seed", "7", "--out", "here", "--fresh"),
            *("--device", "cpu", "--precision", "fp32", "--set", "rounds=3", "--set", "a=b=c"),
            *("--init-student", "s.safetensors", "--export", "onnx", "--num-classes", "10"),
            *("--input-size", "3x32x32", "--mean", "0.5", "--std", "0.1,0.2,0.3"),
            *("--factory", "m:f", "--allow-local-code"),
            *("--method", "nayer", "--label-embeddings", "e.safetensors"),
            *("--prior", "p.safetensors"),
        ]
    )
    assert code == 0
    passed = recorder.only
    del passed["on_progress"]
    assert passed == {
        "teacher": Path("t.safetensors"),
        "student": "torchvision:resnet18",
        "out": Path("here"),
        "recipe": "quick",
        "method": "nayer",
        "label_embeddings": Path("e.safetensors"),
        "prior": Path("p.safetensors"),
        "budget": "10m",
        "seed": 7,
        "device": "cpu",
        "precision": "fp32",
        "fresh": True,
        "architecture": None,
        "num_classes": 10,
        "input_card": InputCard(32, 32, 3, (0.5, 0.5, 0.5), (0.1, 0.2, 0.3)),
        "factory": "m:f",
        "allow_local_code": True,
        "overrides": {"rounds": "3", "a": "b=c"},
        "export_onnx": True,
        "init_student": Path("s.safetensors"),
    }


def test_settings_fill_in_for_flags(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("genkd.toml").write_text('recipe = "thorough"\nruns = "elsewhere"\nseed = 3')
    monkeypatch.setenv("GENKD_SEED", "4")
    assert main(["distill", "--teacher", "t.safetensors"]) == 0
    assert recorder.only["recipe"] == "thorough"
    assert recorder.only["out"] == Path("elsewhere/t-resnet8-half-4")


def test_the_answer_says_where_everything_is(
    recorder: Recorder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["distill", "--teacher", "t.safetensors", "--out", "here", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["data"] == {
        "run_directory": "here",
        "student": "here/student.safetensors",
        "report": "here/report.html",
        "seconds": 2.0,
        "samples": 512,
        "evaluation": None,
    }
    assert main(["distill", "--teacher", "t.safetensors", "--out", "here"]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[-1] == "report   here/report.html"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "--teacher"),
        (["--set", "rounds"], 2, "KEY=VALUE"),
        (["--set", "=3"], 2, "KEY=VALUE"),
        (["--set", "rounds=3", "--set", "rounds=4"], 2, "twice"),
        (["--recipe", "lavish"], 2, "lavish"),
        (["--device", "quantum"], 2, "quantum"),
        (["--precision", "fp8"], 2, "fp8"),
        (["--export", "tflite"], 2, "tflite"),
        (["--seed", "-1"], 3, "--seed"),
        (["--seed", "one"], 2, "one"),
        (["--factory", "m:f"], 2, "would run code"),
        (["--mean", "0.5"], 2, "--input-size and --std missing"),
        (["--eval-data", "nowhere.npz"], 4, "nowhere.npz does not exist"),
        (["--eval-data", "torchvision:CIFAR10:nowhere"], 4, "CIFAR10 lies in nowhere"),
        (["--eval-data", "torchvision:cifar10:."], 2, "names no data set"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_wrong_flag_is_refused_before_any_work(
    arguments: list[str],
    code: int,
    message: str,
    recorder: Recorder,
    capsys: pytest.CaptureFixture[str],
) -> None:
    teacher = ["--teacher", "t.safetensors"] if arguments else []
    assert main(["distill", *teacher, *arguments]) == code
    err = capsys.readouterr().err
    assert message in err
    assert "hint: " in err
    assert recorder.calls == []


@pytest.mark.parametrize(
    ("teacher", "student", "name"),
    [
        ("models/t.safetensors", "resnet8-half", "t-resnet8-half-1"),
        ("t", "torchvision:resnet18", "t-torchvision-resnet18-1"),
        ("../../x y.bin", "a/../b", "x-y-a-..-b-1"),
    ],
    ids=["plain", "torchvision", "odd characters"],
)
def test_run_directories_have_names_that_are_one_folder(
    teacher: str, student: str, name: str
) -> None:
    assert run_name(Path(teacher), student, 1) == name
