"""The alternation: budgets, checkpoints, memory that runs out, and runs that come to nothing."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from genkd import train as train_module
from genkd.card import ModelSpec
from genkd.device import Device
from genkd.errors import ConfigurationError, InputFileRefused, ResourceExhausted
from genkd.models import build_model
from genkd.recipe import Budget, Recipe
from genkd.run_directory import RunDirectory
from genkd.synthesis import Synthesiser
from genkd.teacher import Teacher, load_teacher
from genkd.train import Progress, Trained, train_student

RECIPE = Recipe(
    batch=24,
    bank_images=64,
    generator_channels=4,
    generator_steps=3,
    generator_rounds=2,
    generator_rate=0.02,
    label_loss_weight=20.0,  # the teacher confirms most images from the first round on
    latent_dim=8,
    langevin_steps=3,
    policy_gradient="stationary",
    student_steps=2,
    student_batch=16,
    student_rate=0.01,
    warm_up=0.0,
    synthesis_share=1.0,
)
# Of one round: three steps and one look at the result, and two batches for the student.
PASSES = 4 * 24 + 2 * 16
CPU = Device(torch.device("cpu"), "fp32")


@pytest.fixture
def teacher(tiny_teacher: Path) -> Teacher:
    return load_teacher(tiny_teacher)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunDirectory]:
    with RunDirectory.open(tmp_path / "run", {}) as directory:
        yield directory


def student_of(architecture: str = "lenet5-bn-quarter") -> nn.Module:
    return build_model(ModelSpec(architecture, 3, 1), generator=torch.Generator().manual_seed(5))


def train(
    teacher: Teacher,
    run: RunDirectory,
    budget: str,
    *,
    student: nn.Module | None = None,
    seed: int = 0,
    on_progress: Callable[[Progress], None] | None = None,
    **keys: object,
) -> tuple[Trained, Tensor]:
    """What the training came to, and the student's weights."""
    student = student or student_of()
    recipe = dataclasses.replace(RECIPE, **keys)  # type: ignore[arg-type]
    trained = train_student(
        teacher, student, recipe, Budget.parse(budget), CPU, seed, run, on_progress
    )
    return trained, torch.cat([v.flatten().double() for v in student.state_dict().values()])


def events(run: RunDirectory, name: str | None = None) -> list[dict[str, Any]]:
    lines = (run.path / "events.jsonl").read_text().splitlines()
    parsed = [json.loads(line) for line in lines]
    return [event for event in parsed if name in (None, event["event"])]


class Clock:
    """Stands for the module `time`: every look at it costs a second."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        self.now += 1
        return self.now

    def process_time(self) -> float:
        return self.now


# -- budgets ---------------------------------------------------------------------------------------


def test_a_budget_in_passes_counts_every_image_the_teacher_sees(
    teacher: Teacher, run: RunDirectory
) -> None:
    seen: list[int] = []
    teacher.network.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    trained, _ = train(teacher, run, f"{2 * PASSES + 1} passes")
    assert trained.rounds == 3
    assert trained.teacher_passes == sum(seen) == 3 * PASSES


def test_a_budget_in_samples_ends_with_the_round_that_reaches_it(
    teacher: Teacher, run: RunDirectory
) -> None:
    added: list[float] = []
    trained, _ = train(
        teacher, run, "40 samples", on_progress=lambda p: added.append(p.figures["images"])
    )
    assert trained.samples == trained.bank.added == added[-1] >= 40
    assert all(count < 40 for count in added[:-1])


def test_after_its_share_of_the_budget_no_image_is_made(
    teacher: Teacher, run: RunDirectory
) -> None:
    added: list[float] = []
    phases: list[str] = []
    trained, _ = train(
        teacher,
        run,
        f"{2 * PASSES + 3 * 2 * 16} passes",  # two rounds of both, then the student's alone
        synthesis_share=0.6,
        on_progress=lambda p: (added.append(p.figures["images"]), phases.append(p.phase)),
    )
    assert phases == ["making images"] * 2 + ["distilling"] * 3
    assert trained.rounds == 5
    assert trained.samples == added[1] == added[-1] > added[0]
    rounds = events(run, "round")
    assert ["label" in event["losses"] for event in rounds] == [True, True, False, False, False]
    assert all(event["losses"]["distillation"] > 0 for event in rounds)
    # What the last batch was like is still told at the end.
    assert trained.figures["acceptance"] == rounds[1]["health"]["acceptance"]
    assert trained.figures["agreement"] == rounds[-1]["health"]["agreement"]


@pytest.mark.parametrize(
    ("progress", "share", "done"),
    [
        (0.0, 0.2, 0.0),
        (0.1, 0.2, 0.5),
        (0.2, 0.2, 0.0),
        (0.6, 0.2, 0.5),
        (1.0, 0.2, 1.0),
        (0.25, 1.0, 0.25),
        (1.0, 1.0, 1.0),
    ],
)
def test_each_stage_is_done_from_none_to_all(progress: float, share: float, done: float) -> None:
    assert train_module.stage_progress(progress, share) == pytest.approx(done)


def test_the_rate_falls_while_images_are_made_and_again_for_the_student_alone(
    teacher: Teacher, run: RunDirectory
) -> None:
    # Four rounds of both, a little over half of the budget, then eight of the student alone.
    train(teacher, run, f"{4 * PASSES + 8 * 2 * 16} passes", synthesis_share=0.5)
    told = events(run, "round")
    rates = [event["learning_rates"]["student"] for event in told]
    made = sum("label" in event["losses"] for event in told)
    assert 2 <= made < len(told) - 2
    assert rates[made - 1] < max(rates[:made])
    assert max(rates[made:]) > 2 * rates[made - 1]
    assert rates[-1] < max(rates[made:]) / 2


def test_the_student_is_heeded_after_its_share_of_the_time_in_which_images_are_made(
    teacher: Teacher, run: RunDirectory
) -> None:
    train(teacher, run, f"{8 * PASSES} passes", warm_up=0.5, synthesis_share=0.5)
    heeded = ["adversarial" in event["losses"] for event in events(run, "round")]
    assert heeded.index(True) <= 3  # a quarter of the budget, not half of it


@pytest.mark.parametrize(("share", "times"), [(0.5, 1), (1.0, 0)])
def test_it_is_told_once_that_the_student_is_alone(
    share: float, times: int, tiny_teacher: Path, run: RunDirectory
) -> None:
    budget = f"{5 * PASSES} passes"
    for rounds in (3, 4, 5):  # stopped in the second stage, and gone on with
        with pytest.raises(Enough):
            train(
                load_teacher(tiny_teacher),
                run,
                budget,
                on_progress=stop_after(rounds),
                synthesis_share=share,
            )
    train(load_teacher(tiny_teacher), run, budget, synthesis_share=share)
    made = sum("label" in event["losses"] for event in events(run, "round"))
    assert [event["round"] for event in events(run, "student_alone")] == [made] * times


def test_a_budget_in_samples_is_spent_by_making_them(teacher: Teacher, run: RunDirectory) -> None:
    trained, _ = train(teacher, run, "40 samples", synthesis_share=0.1)
    assert trained.samples >= 40


def test_images_are_made_until_there_is_one(
    teacher: Teacher, run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Synthesiser._choose
    refused = iter((True, True))

    def choose(self: Synthesiser, logits: Tensor, labels: Tensor, score: Tensor) -> Tensor:
        chosen = real(self, logits, labels, score)
        return torch.zeros_like(chosen) if next(refused, False) else chosen

    monkeypatch.setattr(Synthesiser, "_choose", choose)
    trained, _ = train(teacher, run, f"{3 * PASSES} passes", synthesis_share=0.01)
    made = ["label" in event["losses"] for event in events(run, "round")]
    assert made[:3] == [True, True, True]
    assert not any(made[3:])
    assert trained.samples > 0


def test_a_budget_in_time_ends_with_the_round_that_reaches_it(
    teacher: Teacher, run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_module, "time", Clock())
    trained, _ = train(teacher, run, "10s")
    assert trained.seconds >= 10
    spent = [event["seconds"] for event in events(run, "round")]
    assert spent == sorted(spent)
    assert all(seconds < 10 for seconds in spent[:-1])
    assert sum(trained.phase_seconds.values()) == trained.seconds
    assert set(trained.phase_seconds) == {"synthesis", "distillation", "bookkeeping"}


@pytest.mark.parametrize("budget", ["1 passes", "1 samples", "0.001s"])
def test_the_smallest_budget_is_one_round(budget: str, teacher: Teacher, run: RunDirectory) -> None:
    trained, _ = train(teacher, run, budget, generator_steps=8)
    assert trained.rounds == 1


def test_a_bank_that_is_full_lets_the_oldest_go(teacher: Teacher, run: RunDirectory) -> None:
    trained, _ = train(teacher, run, "70 samples")
    assert trained.samples >= 70
    assert len(trained.bank) == 64


# -- what it says ----------------------------------------------------------------------------------


def test_events_tell_the_whole_run_in_order(teacher: Teacher, run: RunDirectory) -> None:
    budget = f"{4 * PASSES} passes"
    train(teacher, run, budget, warm_up=0.4)
    told = events(run)
    assert [event["event"] for event in told] == ["start", *["round"] * 4]
    assert told[0]["seed"] == 0
    assert told[0]["budget"] == budget
    rounds = told[1:]
    assert [event["round"] for event in rounds] == [0, 1, 2, 3]
    for event in rounds:
        assert all(isinstance(value, float) for value in event["losses"].values())
        assert 0 <= event["health"]["acceptance"] <= 1
        assert 0 <= event["health"]["agreement"] <= 1
        assert event["learning_rates"]["student"] > 0
    # The adversarial term and the policy gradient wait for the warm-up.
    steered = [{"adversarial", "policy_gradient"} <= set(e["losses"]) for e in rounds]
    waiting = [not {"adversarial", "policy_gradient"} & set(e["losses"]) for e in rounds]
    assert steered == [False, False, True, True]
    assert waiting == [True, True, False, False]


def test_progress_goes_up_to_one_with_the_time_that_is_left(
    teacher: Teacher, run: RunDirectory
) -> None:
    seen: list[Progress] = []
    train(teacher, run, f"{5 * PASSES} passes", on_progress=seen.append)
    assert [p.fraction for p in seen] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert [p.round for p in seen] == [1, 2, 3, 4, 5]
    assert all(p.eta_seconds is not None and p.eta_seconds >= 0 for p in seen)
    assert seen[-1].eta_seconds == 0
    for p in seen:
        left = p.seconds * (1 - p.fraction) / p.fraction
        assert p.eta_seconds == pytest.approx(left)
        assert {"agreement", "acceptance", "distillation", "images"} <= set(p.figures)


# -- stopping and going on -------------------------------------------------------------------------


class Enough(Exception):
    """What a person does at the keyboard."""


def stop_after(rounds: int) -> Callable[[Progress], None]:
    def check(progress: Progress) -> None:
        if progress.round >= rounds:
            raise Enough

    return check


@pytest.mark.parametrize(
    "keys",
    [
        {"policy_gradient": "stationary", "statistics_momentum": 0.9},
        {"policy_gradient": "chain", "acceptance": 0.5},
        {"energy": False, "generator_rounds": 0},
        {"synthesis_share": 0.5},
    ],
    ids=["stationary", "chain", "no energy", "the student alone at the end"],
)
def test_a_run_stopped_after_every_round_gives_the_student_of_one_that_was_not(
    keys: dict[str, Any], tiny_teacher: Path, tmp_path: Path
) -> None:
    budget = f"{5 * PASSES} passes"
    with RunDirectory.open(tmp_path / "one", {}) as run:
        whole, expected = train(load_teacher(tiny_teacher), run, budget, **keys)
        undisturbed = [event["losses"] for event in events(run, "round")]
    for rounds in range(1, whole.rounds):
        check = stop_after(rounds)
        with RunDirectory.open(tmp_path / "many", {}) as run, pytest.raises(Enough):
            train(load_teacher(tiny_teacher), run, budget, on_progress=check, **keys)
    with RunDirectory.open(tmp_path / "many", {}) as run:
        torch.manual_seed(99)  # nothing is drawn from the global source
        # Weights of its own do not matter: those of the checkpoint count.
        pieces, student = train(load_teacher(tiny_teacher), run, budget, **keys)
        assert torch.equal(student, expected)
        assert (pieces.rounds, pieces.samples) == (whole.rounds, whole.samples)
        assert pieces.teacher_passes == whole.teacher_passes
        assert pieces.figures == whole.figures
        assert [event["losses"] for event in events(run, "round")] == undisturbed
        resumed = [event["round"] for event in events(run, "resume")]
        assert resumed == list(range(1, whole.rounds))
        assert len(events(run, "start")) == 1


def test_a_checkpoint_of_another_version_is_refused(teacher: Teacher, run: RunDirectory) -> None:
    train(teacher, run, f"{2 * PASSES} passes")
    state = run.load_checkpoint()
    assert state is not None
    del state["student_alone"]
    run.save_checkpoint(state)
    with pytest.raises(InputFileRefused, match="of another version"):
        train(teacher, run, f"{3 * PASSES} passes")


def test_a_finished_run_is_not_trained_further(teacher: Teacher, run: RunDirectory) -> None:
    first, expected = train(teacher, run, f"{2 * PASSES} passes")
    again, student = train(teacher, run, f"{2 * PASSES} passes", student=student_of())
    assert torch.equal(student, expected)
    assert again.rounds == first.rounds
    assert len(events(run, "round")) == first.rounds


def test_checkpoints_come_as_often_as_promised(
    teacher: Teacher, run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(train_module, "time", clock)
    monkeypatch.setattr(train_module, "CHECKPOINT_SECONDS", 12.0)
    saved: list[float] = []
    save = run.save_checkpoint

    def noting(state: dict[str, Any]) -> None:
        saved.append(clock.now)
        save(state)

    monkeypatch.setattr(run, "save_checkpoint", noting)
    train(teacher, run, f"{9 * PASSES} passes")
    gaps = [later - earlier for earlier, later in pairwise(saved[:-1])]  # the last: at the end
    assert len(saved) >= 3
    assert all(12 < gap < 24 for gap in gaps)
    assert run.load_checkpoint() is not None


def test_the_teacher_is_left_without_hooks_however_training_ends(
    teacher: Teacher, run: RunDirectory
) -> None:
    with pytest.raises(Enough):
        train(teacher, run, "10 passes", on_progress=stop_after(1))
    assert not any(module._forward_pre_hooks for module in teacher.modules())


# -- GPUs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("budget", "kind", "told"),
    [
        ("600 core-seconds", "cuda:1", True),
        ("600 core-seconds", "mps", True),
        ("600 core-seconds", "cpu", False),
        ("600 s", "cuda", False),
        ("600 passes", "cuda", False),
    ],
)
def test_it_is_told_that_core_seconds_count_nothing_of_a_gpu(
    budget: str, kind: str, told: bool, run: RunDirectory, caplog: pytest.LogCaptureFixture
) -> None:
    device = Device(torch.device(kind), "fp32")
    run.event("start")
    with caplog.at_level(logging.WARNING):
        train_module._warn_of_uncounted_work(run, Budget.parse(budget), device)
    assert len(caplog.messages) == len(events(run, "warning")) == told
    assert all("counts the processor's work only" in message for message in caplog.messages)


def test_the_peak_of_a_gpu_is_that_of_this_run(
    teacher: Teacher, run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    reset: list[torch.device] = []
    monkeypatch.setattr(train_module, "reset_peak_memory", reset.append)
    train(teacher, run, "1 passes")
    assert reset == [CPU.torch]


# -- memory ----------------------------------------------------------------------------------------

CPU_MESSAGE = (
    "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: "
    "you tried to allocate 4294967296 bytes. Error code 12 (Cannot allocate memory)"
)


def with_memory_for(model: nn.Module, images: int, error: BaseException) -> None:
    """Let `model` take no more than so many images at once."""

    def refuse(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if len(inputs[0]) > images:
            raise error

    model.register_forward_pre_hook(refuse)


@pytest.mark.parametrize(
    "error",
    [RuntimeError(CPU_MESSAGE), torch.OutOfMemoryError("CUDA out of memory."), MemoryError()],
    ids=["CPU", "CUDA", "Python"],
)
def test_memory_that_runs_out_halves_the_batch_and_says_so(
    error: BaseException, teacher: Teacher, run: RunDirectory, caplog: pytest.LogCaptureFixture
) -> None:
    with_memory_for(teacher.network, 10, error)
    with caplog.at_level(logging.WARNING):
        trained, _ = train(teacher, run, "24 samples")
    assert trained.samples >= 24
    assert trained.batch == 6
    messages = [
        "out of memory: the batch is halved to 12 images",
        "out of memory: the batch is halved to 6 images",
        "out of memory: the batch is halved to 8 images",  # the student's, of 16
    ]
    assert [event["message"] for event in events(run, "warning")] == messages
    assert caplog.messages == messages
    rounds = [event["round"] for event in events(run, "round")]
    assert rounds == list(range(trained.rounds))


def test_memory_that_runs_out_half_way_through_a_round_does_no_harm(
    teacher: Teacher, run: RunDirectory
) -> None:
    calls = 0

    def fail_once(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nonlocal calls
        calls += 1
        if calls == 9:  # in the second round, after a step of the generator
            raise RuntimeError(CPU_MESSAGE)

    teacher.network.register_forward_pre_hook(fail_once)
    student = student_of()
    trained, weights = train(teacher, run, f"{4 * PASSES} passes", student=student)
    assert bool(weights.isfinite().all())
    assert len(events(run, "warning")) == 1
    assert trained.batch == 12
    assert not student.training
    assert all(value.requires_grad for value in student.parameters())


def test_a_halved_batch_stays_halved_when_the_run_goes_on(
    tiny_teacher: Path, tmp_path: Path
) -> None:
    teacher = load_teacher(tiny_teacher)
    with_memory_for(teacher.network, 12, RuntimeError(CPU_MESSAGE))
    with RunDirectory.open(tmp_path / "run", {}) as run, pytest.raises(Enough):
        train(teacher, run, "40 samples", on_progress=stop_after(2))
    with RunDirectory.open(tmp_path / "run", {}) as run:
        trained, _ = train(load_teacher(tiny_teacher), run, "40 samples")
        assert trained.batch == 12
        assert len(events(run, "warning")) == 2  # both of before


@pytest.mark.parametrize("whom", ["teacher", "student"])
def test_memory_for_nothing_at_all_is_an_error_with_a_hint(
    whom: str, teacher: Teacher, run: RunDirectory
) -> None:
    student = student_of()
    with_memory_for({"teacher": teacher.network, "student": student}[whom], 1, MemoryError())
    with pytest.raises(ResourceExhausted, match="even with the smallest batch") as caught:
        train(teacher, run, "60 samples", student=student)
    assert isinstance(caught.value.__cause__, MemoryError)
    assert caught.value.exit_code == 8


def test_another_runtime_error_is_not_taken_for_memory(teacher: Teacher, run: RunDirectory) -> None:
    with_memory_for(teacher.network, 10, RuntimeError("mat1 and mat2 cannot be multiplied"))
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        train(teacher, run, "24 samples")
    assert not events(run, "warning")


# -- runs that come to nothing ---------------------------------------------------------------------


def test_a_student_that_diverged_is_noticed_in_the_next_round(
    teacher: Teacher, run: RunDirectory
) -> None:
    student = student_of()
    with torch.no_grad():
        student.fc3.bias.fill_(float("nan"))  # type: ignore[operator, union-attr]
    with pytest.raises(ConfigurationError, match="diverged in round 0: the distillation") as caught:
        train(teacher, run, "1e9 passes", student=student)
    assert "--fresh --set student_rate=0.003" in caught.value.hint
    assert len(events(run, "round")) == 1
    assert not (run.path / "checkpoint.pt").exists()


LOSSES = ["statistics", "label", "adversarial", "mle", "policy_gradient", "distillation"]


def test_every_loss_of_a_round_is_watched(teacher: Teacher, run: RunDirectory) -> None:
    train(teacher, run, "1 passes", generator_steps=8)
    (event,) = events(run, "round")
    assert sorted(event["losses"]) == sorted(LOSSES) == sorted(train_module.CULPRIT)
    assert set(train_module.CULPRIT.values()) <= {f.name for f in dataclasses.fields(Recipe)}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", LOSSES[:-1])
def test_a_synthesis_that_diverged_ends_the_run_with_the_key_to_lower(
    name: str, value: float, teacher: Teacher, run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    synthesise = Synthesiser.synthesise

    def diverging(self: Synthesiser, student: nn.Module, *, steer: bool) -> object:
        batch = synthesise(self, student, steer=steer)
        batch.losses[name] = torch.tensor(value)
        return batch

    monkeypatch.setattr(Synthesiser, "synthesise", diverging)
    with pytest.raises(ConfigurationError, match=f"the {name} loss is {value}") as caught:
        train(teacher, run, "1e9 passes")
    assert f"--set {train_module.CULPRIT[name]}=0.0" in caught.value.hint


@pytest.mark.parametrize("budget", ["100 samples", "1 passes", "0.001s"])
def test_a_teacher_that_confirms_nothing_ends_the_run_with_an_error(
    budget: str, teacher: Teacher, run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_module, "FRUITLESS_ROUNDS", 3)
    monkeypatch.setattr(
        Synthesiser, "_choose", lambda self, logits, labels, scores: torch.zeros_like(labels).bool()
    )
    with pytest.raises(
        ConfigurationError, match=r"confirms none of the images of [13] rounds"
    ) as e:
        train(teacher, run, budget)
    assert "input card" in e.value.hint
    assert "--fresh --set generator_steps=" in e.value.hint


def test_a_first_round_without_an_image_is_not_the_end(
    teacher: Teacher, run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose, calls = Synthesiser._choose, SimpleNamespace(count=0)

    def later(self: Synthesiser, logits: Tensor, labels: Tensor, scores: Tensor) -> Tensor:
        calls.count += 1
        return choose(self, logits, labels, scores) & torch.tensor(calls.count > 2)

    monkeypatch.setattr(Synthesiser, "_choose", later)
    trained, _ = train(teacher, run, "10 samples")
    assert trained.samples >= 10
    assert [event["health"]["bank"] for event in events(run, "round")][:2] == [0, 0]
