"""The alternation: a round of synthesis, a stretch of distillation, until the budget is spent.

    trained = train_student(teacher, student, recipe, budget, device, seed, run, on_progress)

The last step counts: no held-out data are consulted, no earlier student is better. Nothing here
reads a data set or opens a socket.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from genkd.bank import SynthesisBank
from genkd.baselines.presets import unread_keys
from genkd.cost import is_out_of_memory, memory_in_use_bytes, reset_peak_memory
from genkd.device import Device
from genkd.ensemble import Ensemble
from genkd.errors import ConfigurationError, InputFileRefused, ResourceExhausted
from genkd.generative_model import GenerativeModel
from genkd.methods import make_synthesisers
from genkd.recipe import Budget, Recipe
from genkd.run_directory import RunDirectory
from genkd.student import StudentLearner
from genkd.synthesis import SynthesisMethod
from genkd.teacher import Teacher

LOG = logging.getLogger(__name__)
CHECKPOINT_SECONDS = 30.0
# After so many rounds without a single image that the teacher confirms, none will come.
FRUITLESS_ROUNDS = 100
# The recipe key to lower when a loss is no longer a number. The student comes first: what it says
# reaches the other losses, and theirs does not reach it.
CULPRIT = {
    "distillation": "student_rate",
    "statistics": "generator_rate",
    "label": "generator_rate",
    "adversarial": "generator_rate",
    "mle": "energy_rate",
    "policy_gradient": "energy_rate",
}
Result = TypeVar("Result")


@dataclass(frozen=True)
class Progress:
    """How far a run is, for people.

    Attributes:
        fraction: Share of the budget that is spent, 0..1.
        phase: What is going on, in a word or two.
        round: Rounds done.
        seconds: Wall time spent, earlier stretches of a resumed run included.
        eta_seconds: Wall time still needed; None before it can be told.
        figures: A few key figures by name.
    """

    fraction: float
    phase: str
    round: int
    seconds: float
    eta_seconds: float | None
    figures: Mapping[str, float]


@dataclass(frozen=True)
class Trained:
    """What a training came to.

    Attributes:
        bank: The images at the end.
        seconds: Wall time.
        core_seconds: Processor time of this process, over all its threads; of a GPU none.
        phase_seconds: Wall time by phase.
        phase_memory_bytes: The most memory in use at the end of a phase, by phase; on a GPU what
            torch held there, for this phase or for one before.
        rounds: Rounds done.
        samples: Images ever put into the bank.
        teacher_passes: Images that went through the teacher.
        figures: Losses and health figures, each of the last round that had it.
        batch: Images synthesised at once at the end, as far as memory allowed.
    """

    bank: SynthesisBank
    seconds: float
    core_seconds: float
    phase_seconds: dict[str, float]
    phase_memory_bytes: dict[str, int]
    rounds: int
    samples: int
    teacher_passes: int
    figures: dict[str, float]
    batch: int


class _Training:
    """All that changes while training, so that a checkpoint is one call."""

    def __init__(
        self,
        teacher: Teacher | Ensemble,
        student: nn.Module,
        recipe: Recipe,
        device: Device,
        seed: int,
        label_embeddings: Tensor | None = None,
        prior: GenerativeModel | None = None,
    ) -> None:
        image = teacher.card.input
        self.random = device.generator(seed)
        self.synthesisers = make_synthesisers(
            teacher, recipe, device, self.random, label_embeddings, prior
        )
        self.learner = StudentLearner(student, recipe, device, self.random)
        shape = (image.channels, image.height, image.width)
        self.bank = SynthesisBank(recipe.bank_images, shape, device.torch)
        self.round = 0
        self.student_alone = False  # since its second stage, in which no image is made
        self.student_passes = 0  # images that the teacher saw for the student's sake
        self.phase_seconds = {"synthesis": 0.0, "distillation": 0.0, "bookkeeping": 0.0}
        self.phase_memory_bytes = dict.fromkeys(("synthesis", "distillation"), 0)
        self.core_seconds = 0.0
        self.figures: dict[str, float] = {}

    def note_memory(self, phase: str) -> None:
        used = memory_in_use_bytes(self.random.device)
        self.phase_memory_bytes[phase] = max(self.phase_memory_bytes[phase], used)

    @property
    def seconds(self) -> float:
        return sum(self.phase_seconds.values())

    @property
    def teacher_passes(self) -> int:
        return sum(one.teacher_passes for one in self.synthesisers) + self.student_passes

    @property
    def synthesiser(self) -> SynthesisMethod:
        """Whose round it is: they take turns."""
        return self.synthesisers[self.round % len(self.synthesisers)]

    def halve_batch(self) -> int:
        """Make half as many images a round from now on; how many, or 0 if that is not possible."""
        return min([one.halve_batch() for one in self.synthesisers])

    def spent(self, budget: Budget) -> float:
        """Share of the budget that is spent, 0..1."""
        amount = {
            "seconds": self.seconds,
            "core-seconds": self.core_seconds,
            "passes": self.teacher_passes,
            "samples": self.bank.added,
        }[budget.unit]
        return min(1.0, amount / budget.amount)

    def state_dict(self) -> dict[str, Any]:
        return {
            "random": self.random.get_state(),
            "synthesisers": [one.state_dict() for one in self.synthesisers],
            "learner": self.learner.state_dict(),
            "bank": self.bank.state_dict(),
            "round": self.round,
            "student_alone": self.student_alone,
            "student_passes": self.student_passes,
            "phase_seconds": dict(self.phase_seconds),
            "phase_memory_bytes": dict(self.phase_memory_bytes),
            "core_seconds": self.core_seconds,
            "figures": dict(self.figures),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state.keys() != self.state_dict().keys():
            raise InputFileRefused(
                "the checkpoint is of another version of genkd-node",
                hint="resume with that version, or start anew with --fresh",
            )
        self.random.set_state(state["random"])
        for one, kept in zip(self.synthesisers, state["synthesisers"], strict=True):
            one.load_state_dict(kept)
        self.learner.load_state_dict(state["learner"])
        self.bank.load_state_dict(state["bank"])
        self.student_alone = state["student_alone"]
        self.round, self.student_passes = state["round"], state["student_passes"]
        self.phase_seconds, self.figures = dict(state["phase_seconds"]), dict(state["figures"])
        self.phase_memory_bytes = dict(state["phase_memory_bytes"])
        self.core_seconds = state["core_seconds"]


def train_student(
    teacher: Teacher | Ensemble,
    student: nn.Module,
    recipe: Recipe,
    budget: Budget,
    device: Device,
    seed: int,
    run: RunDirectory,
    on_progress: Callable[[Progress], None] | None = None,
    label_embeddings: Tensor | None = None,
    prior: GenerativeModel | None = None,
) -> Trained:
    """Train `student` in place until the budget is spent; resumes from the run's checkpoint.

    With a budget in passes or samples the same seed gives the same student, bit for bit, on a CPU,
    however often the run is killed and resumed. With a budget in time the number of rounds depends
    on the machine.

    Args:
        teacher: On the device; may be an ensemble.
        student: On the device; maps images in [0, 1] to logits; any initial weights.
        recipe: What to do.
        budget: When to stop.
        device: Where.
        seed: Of everything that is drawn.
        run: Events and checkpoints go there.
        on_progress: Called after each round. What it raises ends the training after a checkpoint;
            the run can be resumed.
        label_embeddings: float32 (K, e), for the method that takes them.
        prior: A public generative model, for the method that draws on one.

    Raises:
        InputFileRefused: If the checkpoint is broken, or of another version.
        ConfigurationError: If a loss is no longer a number, the teacher confirms no image, or the
            recipe's method cannot work with it.
        ResourceExhausted: If memory runs out even with the smallest batch, or the disk is full.
    """
    recipe = recipe.within(budget)
    reset_peak_memory(device.torch)
    training = _Training(teacher, student, recipe, device, seed, label_embeddings, prior)
    state = run.load_checkpoint()  # before the first event: it cuts off what came later
    if state is None:
        run.event("start", seed=seed, budget=str(budget), device=str(device.torch))
        _warn_of_uncounted_work(run, budget, device)
    else:
        training.load_state_dict(state)
        run.event("resume", round=training.round, seconds=training.seconds)
    student.eval()
    last_checkpoint = time.monotonic()
    try:
        while (progress := training.spent(budget)) < 1:
            _round(training, teacher, student, recipe, progress, run)
            if on_progress is not None:
                try:
                    on_progress(_progress(training, recipe, budget))
                except BaseException:
                    _save(training, run)
                    raise
            if training.bank.added == 0 and training.round >= FRUITLESS_ROUNDS:
                break  # a budget in samples would never be spent
            if time.monotonic() - last_checkpoint > CHECKPOINT_SECONDS:
                _save(training, run)
                last_checkpoint = time.monotonic()
    finally:
        for one in training.synthesisers:
            one.close()
    if training.bank.added == 0:
        # Those that move images without a generator have no key of its steps.
        unread = unread_keys(recipe.method)
        key = "langevin_steps" if "generator_steps" in unread else "generator_steps"
        raise ConfigurationError(
            f"the teacher confirms none of the images of {training.round} rounds",
            hint="check the input card (size, mean, std), or start anew with more steps: "
            f"--fresh --set {key}={2 * getattr(recipe, key)}",
        )
    _save(training, run)
    training.learner.settle(training.bank)  # after the checkpoint: a resumed run comes here too
    return Trained(
        training.bank,
        training.seconds,
        training.core_seconds,
        dict(training.phase_seconds),
        dict(training.phase_memory_bytes),
        training.round,
        training.bank.added,
        training.teacher_passes,
        dict(training.figures),
        training.synthesiser.batch,
    )


def stage_progress(progress: float, share: float) -> float:
    """How much of its stage is done, 0..1: of that in which images are made, then of the rest.

    The student's rate falls to its end in each. What it still gets wrong then says what to make; a
    student at a high rate gets wrong what it has only just forgotten.

    Args:
        progress: Share of the budget that is spent, 0..1.
        share: Share of the budget during which images are made, above 0, at most 1.
    """
    if progress < share:
        return progress / share
    return (progress - share) / (1 - share) if share < 1 else 1.0


def _save(training: _Training, run: RunDirectory) -> None:
    start, busy = time.monotonic(), time.process_time()
    run.save_checkpoint(training.state_dict())
    training.phase_seconds["bookkeeping"] += time.monotonic() - start
    training.core_seconds += time.process_time() - busy


def _round(
    training: _Training,
    teacher: Teacher | Ensemble,
    student: nn.Module,
    recipe: Recipe,
    progress: float,
    run: RunDirectory,
) -> None:
    """Synthesise, keep, distil, write down."""
    start, busy = time.monotonic(), time.process_time()
    made: dict[str, Tensor] = {}
    measured: dict[str, Tensor] = {}
    # A bank that is still empty teaches nothing; the rest of the budget is the student's.
    making = progress < recipe.synthesis_share or training.bank.added == 0
    if making:
        steer = progress >= recipe.warm_up * recipe.synthesis_share
        made, measured = _synthesise(training, student, steer, run)
    synthesised = time.monotonic()
    figures: dict[str, Tensor] = {}
    rate = 0.0
    if not making and not training.student_alone:
        training.student_alone = True
        run.event("student_alone", round=training.round)
    if len(training.bank) > 0:
        done = stage_progress(progress, recipe.synthesis_share)
        figures, rate = _in_memory(
            lambda: training.learner.learn(teacher, training.bank, done),
            training.learner.halve_batch,
            run,
            training.round,
        )
        training.student_passes += recipe.student_steps * training.learner.batch
    # Figures become numbers here, all at once: each waits for the device.
    losses = {
        k: v.item()
        for k, v in {
            **made,
            "distillation": figures.get("distillation", torch.zeros(())),
        }.items()
    }
    health = {k: v.item() for k, v in measured.items()}
    if "agreement" in figures:
        health["agreement"] = figures["agreement"].item()
    training.note_memory("distillation")
    distilled = time.monotonic()
    training.phase_seconds["synthesis"] += synthesised - start
    training.phase_seconds["distillation"] += distilled - synthesised
    training.figures |= {**losses, **health}
    run.event(
        "round",
        round=training.round,
        seconds=training.seconds,
        losses=losses,
        health={**health, "bank": len(training.bank)},
        phase_seconds=dict(training.phase_seconds),
        learning_rates={"student": rate},
    )
    _require_finite(losses, recipe, training.round)
    training.round += 1
    training.phase_seconds["bookkeeping"] += time.monotonic() - distilled
    training.core_seconds += time.process_time() - busy


def _synthesise(
    training: _Training, student: nn.Module, steer: bool, run: RunDirectory
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A batch into the bank; its losses and its health, scalars on the device."""
    batch = _in_memory(
        lambda: training.synthesiser.synthesise(student, steer=steer),
        training.halve_batch,
        run,
        training.round,
    )
    training.bank.add(batch.images, batch.labels, batch.confidence)
    for message in batch.warnings:
        _warn(run, training.round, message)
    training.note_memory("synthesis")
    return batch.losses, batch.health


def _require_finite(losses: Mapping[str, float], recipe: Recipe, round_number: int) -> None:
    """Training does not come back from a loss that is no number: stop now, not in an hour."""
    for name in (*CULPRIT, *losses):  # those of the baselines are all of what makes the images
        key = CULPRIT.get(name, "generator_rate")
        value = losses.get(name, 0.0)
        if not math.isfinite(value):
            raise ConfigurationError(
                f"training diverged in round {round_number}: the {name} loss is {value}",
                hint=f"start anew: --fresh --set {key}={getattr(recipe, key) / 3:.1g}",
            )


def _in_memory(
    work: Callable[[], Result], halve: Callable[[], int], run: RunDirectory, round_number: int
) -> Result:
    """`work()`, with half the batch as often as memory runs out."""
    while True:
        try:
            return work()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            batch = halve()
            if not batch:
                raise ResourceExhausted(
                    "memory runs out even with the smallest batch",
                    hint="close other programs, or start anew with a smaller --student",
                ) from error
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        _warn(run, round_number, f"out of memory: the batch is halved to {batch} images")


def _warn_of_uncounted_work(run: RunDirectory, budget: Budget, device: Device) -> None:
    kind = device.torch.type
    if budget.unit == "core-seconds" and kind != "cpu":
        _warn(
            run,
            0,
            f"a budget in core-seconds counts the processor's work only, not what {kind} does: "
            "give seconds or passes, or --device cpu",
        )


def _warn(run: RunDirectory, round_number: int, message: str) -> None:
    run.event("warning", round=round_number, message=message)
    LOG.warning(message)


def _progress(training: _Training, recipe: Recipe, budget: Budget) -> Progress:
    fraction = training.spent(budget)
    remaining = training.seconds * (1 - fraction) / fraction if fraction > 0.01 else None
    shown = ("agreement", "acceptance", "distillation", "energy_gap")
    figures = {name: training.figures[name] for name in shown if name in training.figures}
    figures["images"] = float(training.bank.added)
    making = recipe.synthesis_share < 1 and not training.student_alone
    phase = "making images" if making else "distilling"
    return Progress(fraction, phase, training.round, training.seconds, remaining, figures)
