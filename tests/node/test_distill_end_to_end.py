"""`distill` for real: a tiny teacher, a few rounds, every file, kills in between."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from genkd.event_log import EVENTS_FILE
from genkd.weights import read_header
from node.cli import main

# Two or three rounds of a run on 1x16x16 images: seconds. A budget in passes, unlike one in time,
# makes a run that was interrupted comparable to one that was not.
SMALL = (
    *("--student", "lenet5-bn-quarter", "--recipe", "quick", "--budget", "1500passes"),
    *("--device", "cpu", "--precision", "fp32", "--set", "batch=32", "--set", "bank_images=128"),
    *("--set", "generator_channels=4", "--set", "generator_steps=3", "--set", "langevin_steps=3"),
    *("--set", "student_steps=4", "--set", "student_batch=16"),
)
TIMEOUT = 120  # seconds; a run takes a few


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # of the processes that are started


def arguments(teacher: Path, out: Path, *more: object) -> list[str]:
    return ["distill", "--teacher", str(teacher), "--out", str(out), *SMALL, *map(str, more)]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """One thread, here and in the processes that are started: sums come out the same."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def finished(
    _one_thread: None, tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The run directory of a run that nobody disturbed."""
    out = tmp_path_factory.mktemp("runs") / "undisturbed"
    assert main(arguments(tiny_teacher, out)) == 0
    return out


def rounds_of(out: Path) -> list[int]:
    events = [json.loads(line) for line in (out / EVENTS_FILE).read_text().splitlines()]
    return [event["round"] for event in events if event["event"] == "round"]


def test_a_run_leaves_every_file_it_promises(finished: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    assert {
        *("config.json", "events.jsonl", "tensorboard", "samples.npz", "result.json"),
        *("student.safetensors", "student.json", "report.html"),
    } <= names
    assert not [name for name in names if name.startswith(".")]
    result = json.loads((finished / "result.json").read_text())
    assert result["schema_version"] == 1
    assert result["samples"] >= 1
    assert rounds_of(finished) == list(range(len(rounds_of(finished))))
    with np.load(finished / "samples.npz") as samples:
        assert samples["images"].dtype == np.uint8
        assert samples["images"].shape[1:] == (1, 16, 16)
        assert len(samples["labels"]) == len(samples["images"])
    report = (finished / "report.html").read_text(encoding="utf-8")
    assert "http://" not in report.replace("http://www.w3.org/", "")
    assert "https://" not in report


def test_the_student_is_a_model_file_that_every_verb_reads(
    finished: Path, tiny_images: Path, tiny_teacher: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    student = finished / "student.safetensors"
    assert read_header(student).tensors
    assert main(["inspect", str(student), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)["data"]
    assert data["architecture"] == "lenet5-bn-quarter"
    assert data["missing"] == []
    code = main(
        [
            *("evaluate", str(student), "--data", str(tiny_images)),
            *("--teacher", str(tiny_teacher), "--json"),
        ]
    )
    assert code == 0
    assert json.loads(capsys.readouterr().out)["data"]["images"] == 60


def test_the_same_command_on_a_finished_run_changes_nothing(
    finished: Path, tiny_teacher: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    student = (finished / "student.safetensors").read_bytes()
    rounds = rounds_of(finished)
    assert main([*arguments(tiny_teacher, finished), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)["data"]
    assert data["student"] == str(finished / "student.safetensors")
    assert (finished / "student.safetensors").read_bytes() == student
    assert rounds_of(finished) == rounds


def test_another_configuration_is_refused_with_3_and_the_difference(
    finished: Path, tiny_teacher: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    student = (finished / "student.safetensors").read_bytes()
    assert main(arguments(tiny_teacher, finished, "--seed", 5)) == 3
    err = capsys.readouterr().err
    assert "seed" in err
    assert "--fresh" in err
    assert (finished / "student.safetensors").read_bytes() == student


def test_evaluation_comes_after_training_and_enters_the_report(
    finished: Path, tiny_teacher: Path, tiny_images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    student = (finished / "student.safetensors").read_bytes()
    before = (finished / "report.html").read_bytes()
    command = arguments(tiny_teacher, finished, "--eval-data", tiny_images, "--json")
    assert main(command) == 0
    evaluation = json.loads(capsys.readouterr().out)["data"]["evaluation"]
    assert evaluation["images"] == 60
    assert json.loads((finished / "evaluation.json").read_text())["top1"] == evaluation["top1"]
    assert (finished / "report.html").read_bytes() != before
    assert (finished / "student.safetensors").read_bytes() == student


def kill_at_round(command: list[str], out: Path, round: int, number: signal.Signals) -> int:
    """Run `genkd-node`, send it a signal once it reports `round`, and return its exit code."""
    deadline = time.monotonic() + TIMEOUT
    with subprocess.Popen(
        [sys.executable, "-m", "node.cli", *command], stderr=subprocess.PIPE, text=True
    ) as process:
        while not ((out / EVENTS_FILE).exists() and round in rounds_of(out)):
            assert process.poll() is None, f"it ended before round {round}"
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(number)
        code = process.wait(timeout=TIMEOUT)
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()
    return code


@pytest.mark.parametrize(
    ("number", "exit_code"),
    [(signal.SIGTERM, 75), (signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)],
    ids=["SIGTERM", "Ctrl-C", "kill -9"],
)
def test_a_stopped_run_resumes_to_the_student_of_an_undisturbed_one(
    number: signal.Signals, exit_code: int, finished: Path, tiny_teacher: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    command = arguments(tiny_teacher, out)
    assert kill_at_round(command, out, 0, number) == exit_code
    assert not (out / "student.safetensors").exists()
    assert main(command) == 0
    student = (out / "student.safetensors").read_bytes()
    assert student == (finished / "student.safetensors").read_bytes()
    assert rounds_of(out) == rounds_of(finished)


def test_fresh_starts_anew_with_another_configuration(
    tiny_teacher: Path, tmp_path: Path, finished: Path
) -> None:
    out = tmp_path / "run"
    out.mkdir()
    for path in finished.iterdir():
        if path.is_file():
            (out / path.name).write_bytes(path.read_bytes())
    assert main(arguments(tiny_teacher, out, "--seed", 5, "--fresh")) == 0
    ours = (out / "student.safetensors").read_bytes()
    assert ours != (finished / "student.safetensors").read_bytes()


def test_the_student_is_exported_to_onnx_on_request(tiny_teacher: Path, tmp_path: Path) -> None:
    assert main(arguments(tiny_teacher, tmp_path / "run", "--export", "onnx")) == 0
    assert (tmp_path / "run" / "student.onnx").stat().st_size > 1000


@pytest.mark.parametrize(
    ("more", "code", "message"),
    [
        (["--set", "generator_step=1"], 3, "did you mean generator_steps?"),
        (["--set", "zzzzzz=1"], 3, "zzzzzz"),
        (["--budget", "soon"], 2, "soon"),
        (["--student", "resnet9"], 2, "resnet9"),
        (["--num-classes", "4"], 4, "classes"),
        (["--out", "/proc/run"], 8, "cannot be written"),
        (["--init-student", "nothing.safetensors"], 4, "nothing.safetensors"),
    ],
    ids=["misspelt key", "unknown key", "budget", "student", "classes", "folder", "init-student"],
)
def test_what_cannot_be_done_is_refused_at_once_and_leaves_nothing(
    more: list[str],
    code: int,
    message: str,
    tiny_teacher: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    got = main(arguments(tiny_teacher, tmp_path / "run", *more))
    err = capsys.readouterr().err
    assert got == code, err
    assert message in err
    assert not list(tmp_path.rglob("student.*"))
