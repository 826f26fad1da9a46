"""From file to file: what a run leaves, what kills it survives, and what it refuses."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import genkd
from genkd import cost, distillation, results, run_directory
from genkd import durable as durable_module
from genkd.card import InputCard, ModelCard, ModelSpec, card_from_json, card_to_json
from genkd.distillation import DistillReport, Progress, distill
from genkd.durable import TEMPORARY_PREFIX, unwritable
from genkd.errors import ConfigurationError, GenKDError, InputFileRefused, ResourceExhausted
from genkd.evaluate import load_student
from genkd.models import build_model
from genkd.recipe import idle_keys, resolve
from genkd.student import StudentLearner
from genkd.teacher import load_teacher
from genkd.train import train_student
from genkd.weights import read_header, read_metadata, write_model

RECIPE = {
    "batch": "24",
    "bank_images": "64",
    "generator_channels": "4",
    "generator_steps": "3",
    "generator_rounds": "2",
    "generator_rate": "0.02",
    "label_loss_weight": "20",
    "latent_dim": "8",
    "langevin_steps": "3",
    "policy_gradient": "stationary",
    "student_steps": "2",
    "student_batch": "16",
    "student_rate": "0.01",
    "warm_up": "0",
    "synthesis_share": "1",
}
# A round is 4 x 24 images for the generator, and 2 x 16 for the student.
FOUR_ROUNDS = "512 passes"
RESULTS = ["student.json", "student.safetensors", "samples.npz", "result.json", "report.html"]
DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA here")
    ),
]
Run = Callable[..., DistillReport]


@pytest.fixture(scope="module", autouse=True)
def _quick_to_measure() -> Iterator[None]:
    """Latencies are measured by one call: nobody reads them here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cost, "LATENCY_CALLS", (1, 1))
        yield


def run_with(teacher: Path, out: Path, **changes: Any) -> DistillReport:
    overrides = {**RECIPE, **changes.pop("overrides", {})}
    for key in idle_keys(resolve("standard", overrides)).keys() & RECIPE.keys():
        del overrides[key]
    arguments: dict[str, Any] = {
        "teacher": teacher,
        "out": out,
        "student": "lenet5-bn-quarter",
        "budget": FOUR_ROUNDS,
        "device": "cpu",
        "precision": "fp32",
        **changes,
    }
    return distill(overrides=overrides, **arguments)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def contents(folder: Path) -> dict[str, str]:
    """Digests of all files of a run but its logs and its lock."""
    return {
        path.name: digest(path)
        for path in folder.iterdir()
        if path.is_file() and path.suffix not in (".jsonl", ".lock")
    }


def events(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def finished(tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> DistillReport:
    """A run that nobody disturbed."""
    return run_with(tiny_teacher, tmp_path_factory.mktemp("runs") / "undisturbed")


# -- what a run leaves -----------------------------------------------------------------------------


def test_a_run_leaves_its_files_and_says_where(finished: DistillReport) -> None:
    out = finished.student.parent
    names = {path.name for path in out.iterdir()}
    assert {*RESULTS, "config.json", "events.jsonl", "checkpoint.pt", "tensorboard"} <= names
    assert not [name for name in names if name.startswith(TEMPORARY_PREFIX)]
    assert finished.student == out / "student.safetensors"
    assert finished.report_data == out / "result.json"
    assert [event["event"] for event in events(out)] == ["start", *["round"] * 4, "end"]


def test_the_result_says_what_the_run_came_to(finished: DistillReport, tiny_teacher: Path) -> None:
    result = json.loads(finished.report_data.read_text())
    assert result["schema_version"] == 1
    assert result["seed"] == 0
    assert result["rounds"] == finished.rounds == 4
    assert result["teacher_passes"] == finished.teacher_passes == 512
    assert result["samples"] == finished.samples > 0
    assert result["seconds"] == finished.seconds
    assert sum(result["phase_seconds"].values()) == pytest.approx(finished.seconds)
    assert result["peak_memory_bytes"] > 1e6
    assert result["recipe"]["latent_dim"] == 8
    assert result["teacher"]["sha256"] == digest(tiny_teacher)
    assert result["student"]["sha256"] == digest(finished.student)
    assert result["student"]["architecture"] == "lenet5-bn-quarter"
    assert result["student"]["parameters"] > 0
    assert result["class_names"] == ["horizontal", "vertical", "blob"]
    assert len(result["agreement_per_class"]) == 3
    assert all(part is None or 0 <= part <= 1 for part in result["agreement_per_class"])
    losses = {"statistics", "label", "adversarial", "mle", "policy_gradient", "distillation"}
    assert losses <= set(result["final"])


def test_the_student_carries_its_card_and_no_more(finished: DistillReport) -> None:
    card = card_from_json(json.loads((finished.student.parent / "student.json").read_text()))
    metadata = read_metadata(read_header(finished.student))
    assert metadata == {"v": 1, "card": card_to_json(card)}
    assert card.spec == ModelSpec("lenet5-bn-quarter", 3, 1)
    assert card.input == InputCard(16, 16, 1, (0.5,), (0.25,))
    student = load_student(finished.student)
    with torch.no_grad():
        assert student(torch.full((2, 1, 16, 16), 0.5)).shape == (2, 3)


def test_samples_are_images_that_the_teacher_knows(finished: DistillReport) -> None:
    with np.load(finished.student.parent / "samples.npz", allow_pickle=False) as samples:
        images, labels, confidence = (samples[n] for n in ("images", "labels", "confidence"))
    assert images.dtype == np.uint8
    assert images.shape[1:] == (1, 16, 16)
    assert len(images) == len(labels) == len(confidence)
    assert 0 < len(images) <= 3 * results.SAMPLES_PER_CLASS
    assert set(labels) <= {0, 1, 2}
    assert confidence.min() > 1 / 3
    assert confidence.max() <= 1


def test_progress_is_reported_once_a_round(tiny_teacher: Path, tmp_path: Path) -> None:
    seen: list[Progress] = []
    run_with(tiny_teacher, tmp_path / "run", on_progress=seen.append)
    assert [progress.fraction for progress in seen] == [0.25, 0.5, 0.75, 1.0]


def test_the_package_offers_it_under_its_own_name() -> None:
    assert genkd.distill is distill


# -- the same again --------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_student_whatever_the_global_seed(
    finished: DistillReport, tiny_teacher: Path, tmp_path: Path
) -> None:
    torch.manual_seed(1234)
    np.random.seed(1234)
    again = run_with(tiny_teacher, tmp_path / "again")
    other = run_with(tiny_teacher, tmp_path / "other", seed=1)
    assert digest(again.student) == digest(finished.student)
    assert digest(other.student) != digest(finished.student)


def test_the_same_call_on_a_finished_run_changes_nothing(
    tiny_teacher: Path, tmp_path: Path
) -> None:
    first = run_with(tiny_teacher, tmp_path / "run")
    student, rounds = digest(first.student), events(tmp_path / "run")
    again = run_with(tiny_teacher, tmp_path / "run")
    assert digest(again.student) == student
    assert (again.rounds, again.samples) == (first.rounds, first.samples)
    told = [e for e in events(tmp_path / "run") if e["event"] != "resume"]
    assert [e["event"] for e in told] == [e["event"] for e in rounds]


def test_fresh_starts_anew_and_forgets_the_old_run(tiny_teacher: Path, tmp_path: Path) -> None:
    run_with(tiny_teacher, tmp_path / "run", seed=1)
    fresh = run_with(tiny_teacher, tmp_path / "run", seed=2, fresh=True)
    other = run_with(tiny_teacher, tmp_path / "other", seed=2)
    assert digest(fresh.student) == digest(other.student)
    assert [e["event"] for e in events(tmp_path / "run")].count("start") == 1


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"seed": 1}, "seed"),
        ({"budget": "513 passes"}, "budget"),
        ({"budget": "512 samples"}, "budget"),
        ({"student": "lenet5-quarter"}, "student"),
        ({"precision": "bf16"}, "precision"),
        ({"overrides": {"latent_dim": "9"}}, "latent_dim"),
        ({"recipe": "thorough"}, "budget"),
        ({"teacher": "another"}, "teacher_sha256"),
        ({"init_student": "finished"}, "init_student_sha256"),
    ],
    ids=[
        *("seed", "amount", "unit", "student", "precision", "recipe key", "recipe", "teacher"),
        "initial student",
    ],
)
def test_a_changed_configuration_is_refused_with_the_difference(
    changes: dict[str, Any],
    key: str,
    finished: DistillReport,
    tiny_teacher: Path,
    tmp_path: Path,
) -> None:
    if "teacher" in changes:
        changes = {"teacher": other_teacher(tmp_path / "other.safetensors")}
    if "init_student" in changes:
        changes = {"init_student": finished.student}
    before, told = contents(finished.student.parent), events(finished.student.parent)
    with pytest.raises(ConfigurationError, match="another configuration") as caught:
        run_with(**{"teacher": tiny_teacher, "out": finished.student.parent, **changes})
    assert key in str(caught.value)
    assert "--fresh" in caught.value.hint
    assert contents(finished.student.parent) == before
    assert events(finished.student.parent) == told


# -- kill -9 ---------------------------------------------------------------------------------------

# Runs in a process of its own, which loads torch once and forks a child for every run.
DRIVER = """
import hashlib, importlib, json, os, signal, sys
from pathlib import Path

import torch
# What a run imports on its way, so that the children find it loaded.
import jinja2, torch._dynamo, torch.utils.tensorboard

import genkd.report_samples
from genkd import cost, train
from genkd.distillation import distill

torch.set_num_threads(1)
cost.LATENCY_CALLS = (1, 1)
train.CHECKPOINT_SECONDS = -1.0  # a checkpoint after every round
arguments, folder, cases = json.loads(sys.argv[1])


def arm(place, nth, before):
    # Kill this process in the nth call of `module:name`, or in the replacement of a file.
    module, name = place.split(":")
    file = None
    if module == "file":
        module, name, file = "os", "replace", name
    owner = importlib.import_module(module)
    *path, name = name.split(".")
    for part in path:
        owner = getattr(owner, part)
    original, calls = getattr(owner, name), 0

    def deadly(*args, **kwargs):
        nonlocal calls
        counts = file is None or os.path.basename(args[1]) == file
        calls += counts
        now = counts and calls == nth
        if now and before:
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(*args, **kwargs)
        if now:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, deadly)


def run(out, precision, point=None):
    child = os.fork()
    if child == 0:
        torch.manual_seed(os.getpid())  # nothing may depend on the global source
        if point is not None:
            arm(*point)
        try:
            distill(out=out, precision=precision, **arguments)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def digest(out, name="student.safetensors"):
    path = Path(out, name)
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None


def rounds(out):
    told = [json.loads(line) for line in Path(out, "events.jsonl").read_text().splitlines()]
    return [e["round"] for e in told if e["event"] == "round"]


answers = {}
for name, precision, kills in cases:
    out, codes, left = f"{folder}/{name}", [], []
    for point in (*kills, None):
        codes.append(run(out, precision, point))
        left.append(digest(out))
    answers[name] = (codes, left, rounds(out))
print(json.dumps(answers))
"""
# Where: module:function, in its nth call, before or after it; or file:name, when it is replaced.
EVENT = "genkd.run_directory:RunDirectory.event"
STEP = "genkd.synthesis:Synthesiser._losses"
KILLS: dict[str, list[tuple[str, int, bool]]] = {
    "not at all": [],
    "within a round": [
        ("genkd.bank:SynthesisBank.add", 1, True),  # before there is a checkpoint
        (STEP, 8, False),  # in the third round
        ("genkd.student:StudentLearner._step", 3, False),  # in the fourth
    ],
    "around a checkpoint": [
        (EVENT, 3, False),  # the second round is told, and not yet saved
        ("file:checkpoint.pt", 2, True),  # the third is written, and not yet in place
        ("file:checkpoint.pt", 1, False),  # and now it is
    ],
    "while results are written": [
        ("file:student.json", 1, True),
        ("file:student.safetensors", 1, True),
        ("file:result.json", 1, True),
        ("file:report.html", 1, True),
    ],
}


CASES = {
    f"{precision} {name}": (precision, kills)
    for precision in ("fp32", "bf16")
    for name, kills in KILLS.items()
    if precision == "fp32" or name in ("not at all", "around a checkpoint")
}


@pytest.fixture(scope="module")
def killed(tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Of each case: exit codes, the student after each process, the rounds told in the end."""
    arguments = {
        "teacher": str(tiny_teacher),
        "student": "lenet5-bn-quarter",
        "budget": FOUR_ROUNDS,
        "device": "cpu",
        "overrides": {**RECIPE, "statistics_momentum": "0.5"},
    }
    cases = [(name, precision, kills) for name, (precision, kills) in CASES.items()]
    folder = tmp_path_factory.mktemp("killed")
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, json.dumps([arguments, str(folder), cases])],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return {"stderr": done.stderr, **json.loads(done.stdout)}


@pytest.mark.parametrize("case", list(CASES))
def test_a_killed_run_resumes_to_the_same_student_bit_for_bit(case: str, killed: Any) -> None:
    precision, kills = CASES[case]
    _, (expected,), _ = killed[f"{precision} not at all"]
    codes, students, rounds = killed[case]
    assert codes == [-9] * len(kills) + [0], killed["stderr"]
    # What a kill leaves is nothing, or the whole student.
    assert set(students[:-1]) <= {None, expected}
    assert students[-1] == expected is not None
    assert rounds == [0, 1, 2, 3]


# -- teachers and students of other kinds ----------------------------------------------------------


def other_teacher(path: Path, architecture: str = "resnet8-quarter", size: int = 16) -> Path:
    spec = ModelSpec(architecture, 3, 1)
    card = ModelCard(spec, InputCard(size, size, 1, (0.5,), (0.25,)))
    network = build_model(spec, generator=torch.Generator().manual_seed(9))
    write_model(path, network.state_dict(), {"v": 1, "card": card_to_json(card)})
    return path


@pytest.mark.parametrize(
    "changes",
    [
        {"overrides": {"energy": "no"}},
        {"overrides": {"policy_gradient": "none"}},
        {"overrides": {"policy_gradient": "chain"}},
        {"precision": "bf16"},
        {"student": "resnet8-quarter"},
    ],
    ids=["no energy", "no policy gradient", "chain", "bf16", "residual student"],
)
def test_every_variant_gives_a_student(
    changes: dict[str, Any], tiny_teacher: Path, tmp_path: Path
) -> None:
    report = run_with(tiny_teacher, tmp_path / "run", **changes)
    assert load_student(report.student).card.spec.num_classes == 3
    final = json.loads(report.report_data.read_text())["final"]
    assert ("mle" in final) == (changes.get("overrides") != {"energy": "no"})


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("device", DEVICES[1:])
def test_it_runs_on_the_accelerator(
    device: str, precision: str, tiny_teacher: Path, tmp_path: Path
) -> None:
    for estimator in ("stationary", "chain"):
        report = run_with(
            tiny_teacher,
            tmp_path / estimator,
            device=device,
            precision=precision,
            overrides={"policy_gradient": estimator, "acceptance": "0.5"},
        )
        assert load_student(report.student).card.spec.num_classes == 3


def test_a_teacher_without_batchnorm_is_distilled(tmp_path: Path) -> None:
    teacher = other_teacher(tmp_path / "lenet.safetensors", "lenet5")
    report = run_with(teacher, tmp_path / "run")
    assert json.loads(report.report_data.read_text())["final"]["statistics"] > 0  # of its pixels
    assert "without BatchNorm" in (tmp_path / "run" / "events.jsonl").read_text()


def test_a_colour_teacher_of_torchvision_is_distilled(tmp_path: Path) -> None:
    network = build_model(
        ModelSpec("torchvision:resnet18", 10, 3), generator=torch.Generator().manual_seed(0)
    )
    save_file(network.state_dict(), tmp_path / "bare.safetensors")
    report = run_with(
        tmp_path / "bare.safetensors",
        tmp_path / "run",
        architecture="torchvision:resnet18",
        num_classes=10,
        input_card=InputCard(32, 32, 3, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
        student="resnet8-quarter",
        budget="1 passes",
        overrides={"batch": "20", "generator_steps": "4"},
    )
    assert report.rounds == 1
    card = load_student(report.student).card
    assert (card.spec.num_classes, card.input.channels, card.input.height) == (10, 3, 32)


def test_a_run_goes_on_from_an_earlier_student(
    finished: DistillReport, tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started_with: list[dict[str, torch.Tensor]] = []
    learn = StudentLearner.learn

    def noting(self: StudentLearner, *arguments: Any) -> Any:
        if not started_with:
            state = self.student.network.state_dict()  # type: ignore[union-attr]
            started_with.append({name: value.clone() for name, value in state.items()})
        return learn(self, *arguments)

    monkeypatch.setattr(StudentLearner, "learn", noting)
    report = run_with(tiny_teacher, tmp_path / "run", init_student=finished.student)
    earlier = load_student(finished.student).network.state_dict()
    assert started_with[0].keys() == earlier.keys()
    assert all(torch.equal(value, earlier[name]) for name, value in started_with[0].items())
    assert digest(report.student) != digest(finished.student)
    configuration = json.loads((tmp_path / "run" / "config.json").read_text())
    assert configuration["init_student_sha256"] == digest(finished.student)


@pytest.mark.parametrize("trained", [True, False], ids=["a shared student", "a start student"])
def test_of_an_earlier_student_of_more_classes_the_others_are_remembered(
    trained: bool, tiny_teacher: Path, tmp_path: Path
) -> None:
    known = load_teacher(tiny_teacher)
    names = (*(known.card.class_names or ()), "ring")
    spec = ModelSpec("lenet5-bn-quarter", len(names), 1)
    network = build_model(spec, generator=torch.Generator().manual_seed(1))
    if trained:
        network.train()
        network(torch.rand(64, 1, 16, 16, generator=torch.Generator().manual_seed(2)))
    card = dataclasses.replace(known.card, spec=spec, class_names=names)
    earlier = tmp_path / "earlier.safetensors"
    write_model(earlier, network.state_dict(), {"v": 1, "card": card_to_json(card)})
    report = run_with(
        tiny_teacher, tmp_path / "run", init_student=earlier, student="lenet5-bn-quarter"
    )
    result = json.loads(report.report_data.read_text())
    assert result["teacher"]["sha256"] == digest(tiny_teacher)
    assert result["teacher"]["architecture"] == known.card.spec.architecture
    assert result["class_names"] == list(names)
    assert result["agreement_per_class"][3] is None, "not this teacher's to claim"
    labels = np.load(tmp_path / "run" / "samples.npz")["labels"]
    assert (3 in labels) is trained


# -- what is refused before anything is written ----------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "exit_code", "message"),
    [
        ({"student": "resnet9"}, 2, "resnet9"),
        ({"student": "torchvision:squeezenet1_1"}, 2, "cannot take images of 1x16x16"),
        ({"budget": "soon"}, 2, "'soon' is not a budget"),
        ({"budget": ""}, 2, "'' is not a budget"),
        ({"seed": -1}, 2, "-1 is not a seed"),
        ({"seed": 2**63}, 2, "is not a seed"),
        ({"recipe": "best"}, 3, "no recipe 'best'"),
        ({"overrides": {"batsh": "8"}}, 3, "no recipe key 'batsh'"),
        ({"device": "gpu"}, 3, "no device 'gpu'"),
        ({"precision": "fp8"}, 3, "no precision 'fp8'"),
        ({"teacher": Path("nowhere.safetensors")}, 4, "nowhere.safetensors"),
        ({"num_classes": 4}, 4, "classes"),
        ({"init_student": Path("nowhere.safetensors")}, 4, "nowhere.safetensors"),
        ({"factory": "models:make"}, 2, "--factory"),
    ],
    ids=lambda value: None if isinstance(value, int | str) else "-".join(map(str, value)),
)
def test_what_cannot_be_done_is_refused_at_once(
    changes: dict[str, Any], exit_code: int, message: str, tiny_teacher: Path, tmp_path: Path
) -> None:
    with pytest.raises(GenKDError) as caught:
        run_with(**{"teacher": tiny_teacher, "out": tmp_path / "run", **changes})
    assert caught.value.exit_code == exit_code
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.hint
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("student", "message"),
    [
        ("resnet8-quarter", "is a lenet5-bn-quarter, not a resnet8-quarter"),
        ("lenet5-quarter", "not a lenet5-quarter"),
    ],
)
def test_an_earlier_student_of_another_architecture_is_refused(
    student: str, message: str, finished: DistillReport, tiny_teacher: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputFileRefused) as caught:
        run_with(tiny_teacher, tmp_path / "run", student=student, init_student=finished.student)
    assert message in str(caught.value)
    assert not (tmp_path / "run").exists()


# -- what goes wrong later -------------------------------------------------------------------------


def test_a_student_that_diverged_at_the_end_is_not_written(
    tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = train_student

    def diverging(teacher: Any, model: Any, *arguments: Any) -> Any:
        trained = train(teacher, model, *arguments)
        with torch.no_grad():
            model.network.fc3.weight[0, 0] = float("inf")
        return trained

    monkeypatch.setattr(distillation, "train_student", diverging)
    with pytest.raises(ConfigurationError, match="the student diverged") as caught:
        run_with(tiny_teacher, tmp_path / "run")
    assert "--fresh --set student_rate=0.003" in caught.value.hint
    assert not {path.name for path in (tmp_path / "run").iterdir()} & set(RESULTS)


@pytest.mark.parametrize("name", ["checkpoint.pt", *RESULTS])
def test_a_disk_that_fills_up_leaves_nothing_half_written_and_the_run_goes_on_later(
    name: str,
    finished: DistillReport,
    tiny_teacher: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write = durable_module.atomic_write

    def full(path: Path, data: bytes, **more: Any) -> None:
        if Path(path).name == name:
            raise unwritable(Path(path), OSError(errno.ENOSPC, "No space left on device"))
        write(path, data, **more)

    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        for module in ("genkd.run_directory", "genkd.report"):
            patch.setattr(f"{module}.atomic_write", full)
        with pytest.raises(ResourceExhausted, match=f"{name} cannot be written") as caught:
            run_with(tiny_teacher, out)
    assert "free some disk space" in caught.value.hint
    left = {path.name for path in out.iterdir()}
    assert name not in left
    assert not [file for file in left if file.startswith(TEMPORARY_PREFIX)]
    report = run_with(tiny_teacher, out)
    assert digest(report.student) == digest(finished.student)
    assert set(RESULTS) <= {path.name for path in out.iterdir()}


def test_a_disk_that_is_really_full_is_one_clear_error(tiny_teacher: Path, tmp_path: Path) -> None:
    """The kernel refuses to let any file grow beyond 20 kB, as it does on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(ResourceExhausted, match=r"checkpoint\.pt cannot be written"):
            run_with(tiny_teacher, tmp_path / "run")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    left = {path.name for path in (tmp_path / "run").iterdir()}
    assert left == {"config.json", "events.jsonl", "genkd-run.lock", "tensorboard"}


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        MemoryError(),
        RuntimeError("can't allocate memory"),
    ],
    ids=["CUDA", "Python", "CPU"],
)
def test_memory_that_runs_out_after_training_is_an_error_and_not_a_traceback(
    error: BaseException, tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(results, "measure_cost", fail)
    with pytest.raises(ResourceExhausted, match="memory ran out") as caught:
        run_with(tiny_teacher, tmp_path / "run", budget="1 passes")
    assert caught.value.__cause__ is error


def test_a_small_batch_is_not_exceeded_when_the_student_is_measured(
    tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What trained in little memory must not fail for want of it at the very end."""
    sizes: list[int] = []

    def watched(*arguments: Any, **more: Any) -> Any:
        teacher = load_teacher(*arguments, **more)
        teacher.network.register_forward_pre_hook(lambda _, x: sizes.append(len(x[0])))
        return teacher

    monkeypatch.setattr(distillation, "load_teacher", watched)
    run_with(tiny_teacher, tmp_path / "run", overrides={"batch": "20", "student_batch": "10"})
    assert max(sizes) == 20


def test_an_error_of_the_callers_own_comes_through_and_the_run_can_go_on(
    finished: DistillReport, tiny_teacher: Path, tmp_path: Path
) -> None:
    class Mine(Exception):
        pass

    def stop(progress: Progress) -> None:
        if progress.round == 2:
            raise Mine

    with pytest.raises(Mine):
        run_with(tiny_teacher, tmp_path / "run", on_progress=stop)
    assert (tmp_path / "run" / run_directory.CHECKPOINT_FILE).exists()
    assert not (tmp_path / "run" / "student.safetensors").exists()
    report = run_with(tiny_teacher, tmp_path / "run")
    assert digest(report.student) == digest(finished.student)
    assert dataclasses.asdict(report)["samples"] == finished.samples
