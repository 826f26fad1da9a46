"""Training a generative model on public images until the budget is spent.

    trained = train_prior(card, data, Path("priors/vae"), Budget.parse("5m"), device, seed=0)
    prior = load_generative_model(trained.prior)

The last step counts. The same call on the same folder resumes, and refuses another configuration,
other images included. The folder is a run directory: config.json, events.jsonl, TensorBoard's logs
and checkpoint.pt, and beside them `prior.safetensors` and what `checkpoints` asks for.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genkd import __version__
from genkd.cost import is_out_of_memory
from genkd.device import Device
from genkd.dgm.gan import AdversarialLearner
from genkd.dgm.joint_learner import JointLearner
from genkd.dgm.latent_ebm import LatentEnergyLearner
from genkd.dgm.learner import GenerativeLearner
from genkd.dgm.public_images import PublicImages
from genkd.dgm.vae import VariationalLearner
from genkd.errors import ConfigurationError, ResourceExhausted, UsageError
from genkd.generative_model import Family, GenerativeCard, GenerativeModel, save_generative_model
from genkd.recipe import Budget
from genkd.run_directory import RunDirectory
from genkd.train import CHECKPOINT_SECONDS, Progress

BATCH = 64
PRIOR_FILE = "prior.safetensors"
STEPS_A_ROUND = 10
MAX_CHECKPOINTS = 999
LEARNERS: Mapping[Family, Callable[[GenerativeModel, int, torch.Generator], GenerativeLearner]] = {
    "vae": VariationalLearner,
    "gan": AdversarialLearner,
    "latent-ebm": LatentEnergyLearner,
    "pixel-ebm": JointLearner,
}


@dataclass(frozen=True)
class TrainedPrior:
    """What a training came to.

    Attributes:
        prior: The file of the last step.
        checkpoints: Files of earlier steps, in order.
        seconds: Wall time.
        core_seconds: Processor time of this process, over all its threads.
        samples: Public images seen, each time they were seen.
        figures: Losses and health figures of the last step.
    """

    prior: Path
    checkpoints: tuple[Path, ...]
    seconds: float
    core_seconds: float
    samples: int
    figures: dict[str, float]


class _Training:
    """All that changes while training, so that a checkpoint is one call."""

    def __init__(self, card: GenerativeCard, data: PublicImages, device: Device, seed: int) -> None:
        # Initial weights come from the CPU: the same on every device.
        model = GenerativeModel(card, torch.Generator().manual_seed(seed)).to(device.torch)
        self.random = device.generator(seed)
        self.learner = LEARNERS[card.family](model, seed, self.random)
        self.images = torch.from_numpy(data.images).to(device.torch)
        self.labels = torch.from_numpy(data.labels).to(device.torch)
        self.samples = 0
        self.seconds = 0.0
        self.core_seconds = 0.0
        self.written = 0  # of the checkpoints that were asked for
        self.figures: dict[str, float] = {}

    def spent(self, budget: Budget) -> float:
        """Share of the budget that is spent, 0..1."""
        amount = {
            "seconds": self.seconds,
            "core-seconds": self.core_seconds,
            "samples": self.samples,
        }[budget.unit]
        return min(1.0, amount / budget.amount)

    def round(self, progress: float) -> None:
        """A few steps, and one wait for the device."""
        start, busy = time.monotonic(), time.process_time()
        figures: dict[str, Tensor] = {}
        for _ in range(STEPS_A_ROUND):
            chosen = torch.randint(
                len(self.labels), (BATCH,), generator=self.random, device=self.random.device
            )
            chosen = chosen.to(self.images.device)
            images = self.images[chosen].float() / 255
            figures = self.learner.step(images, self.labels[chosen], progress)
        self.figures = {name: figure.item() for name, figure in figures.items()}
        self.samples += STEPS_A_ROUND * BATCH
        self.seconds += time.monotonic() - start
        self.core_seconds += time.process_time() - busy

    def write(self, path: Path) -> None:
        self.learner.settle()
        save_generative_model(path, self.learner.model)

    def state_dict(self) -> dict[str, Any]:
        return {
            "random": self.random.get_state(),
            "learner": self.learner.state_dict(),
            "samples": self.samples,
            "seconds": self.seconds,
            "core_seconds": self.core_seconds,
            "written": self.written,
            "figures": self.figures,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.random.set_state(state["random"])
        self.learner.load_state_dict(state["learner"])
        for name in ("samples", "seconds", "core_seconds", "written", "figures"):
            setattr(self, name, state[name])


def train_prior(
    card: GenerativeCard,
    data: PublicImages,
    out: Path,
    budget: Budget,
    device: Device,
    *,
    seed: int = 0,
    checkpoints: int = 0,
    fresh: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
) -> TrainedPrior:
    """Train a generative model; resumes what `out` holds.

    With a budget in samples the same seed gives the same model, bit for bit, on a CPU, however
    often it is stopped and resumed.

    Args:
        card: What to train; its classes, channels and size are those of `data`.
        data: Public images.
        out: A folder, new or of the same training.
        budget: When to stop: in seconds, core-seconds, or samples (public images seen).
        device: Where; precision is float32 whatever it says, for Langevin steps are small.
        seed: Of everything that is drawn.
        checkpoints: How many models to write on the way, at equal shares of the budget: of 3, at
            a quarter, a half and three quarters.
        fresh: Delete what an earlier training wrote in `out`, and start anew.
        on_progress: Called every few steps. What it raises ends the training after a checkpoint.

    Raises:
        UsageError: If card and data do not fit together, or the budget is of another unit.
        ConfigurationError: If a loss is no longer a number, or `out` holds something else.
        ResourceExhausted: If memory runs out or the disk is full.
    """
    _check(card, data, budget, checkpoints)
    configuration = {
        "prior": dataclasses.asdict(card),
        "public_images": data.sha256(),
        **{"budget": str(budget), "seed": seed, "checkpoints": checkpoints},
        # A checkpoint's random state is of its device, and its parts of the code that wrote it.
        **{"device": device.torch.type, "version": __version__},
    }
    with RunDirectory.open(out, configuration, fresh=fresh) as run:
        try:
            training = _Training(card, data, device, seed)
            _resume(training, run, seed, budget)
            _train(training, run, budget, checkpoints, on_progress)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise ResourceExhausted(
                "memory ran out while training", hint="use a smaller --width or --size"
            ) from error
        training.write(run.path / PRIOR_FILE)
        files = tuple(run.path / _name(number) for number in range(1, checkpoints + 1))
        return TrainedPrior(
            run.path / PRIOR_FILE,
            files,
            training.seconds,
            training.core_seconds,
            training.samples,
            dict(training.figures),
        )


def _check(card: GenerativeCard, data: PublicImages, budget: Budget, checkpoints: int) -> None:
    if card.image_shape != data.image_shape or card.num_classes != data.num_classes:
        raise UsageError(
            f"the images are {data.image_shape} of {data.num_classes} classes, the model's "
            f"are {card.image_shape} of {card.num_classes}",
            hint="take the card's sizes from the images",
        )
    if budget.unit == "passes":
        raise UsageError(
            "a budget in passes counts the teacher's, and there is none here",
            hint="for example --budget 10m, 600core-seconds or 2e6samples",
        )
    if not 0 <= checkpoints <= MAX_CHECKPOINTS:
        raise UsageError(f"{checkpoints} checkpoints", hint=f"from 0 to {MAX_CHECKPOINTS}")


def _resume(training: _Training, run: RunDirectory, seed: int, budget: Budget) -> None:
    state = run.load_checkpoint()  # before the first event: it cuts off what came later
    if state is None:
        device = str(training.images.device)
        run.event("start", seed=seed, budget=str(budget), device=device)
    else:
        training.load_state_dict(state)
        run.event("resume", round=training.samples // BATCH, seconds=training.seconds)


def _train(
    training: _Training,
    run: RunDirectory,
    budget: Budget,
    checkpoints: int,
    on_progress: Callable[[Progress], None] | None,
) -> None:
    last_checkpoint = time.monotonic()
    while (progress := training.spent(budget)) < 1:
        training.round(progress)
        steps = training.samples // BATCH
        run.event("round", round=steps, seconds=training.seconds, losses=training.figures)
        _require_finite(training.figures, steps)
        spent = training.spent(budget)
        while training.written < min(checkpoints, math.floor(spent * (checkpoints + 1) + 1e-9)):
            training.written += 1
            training.write(run.path / _name(training.written))
        if on_progress is not None:
            try:
                on_progress(_progress(training, spent))
            except BaseException:
                run.save_checkpoint(training.state_dict())
                raise
        if time.monotonic() - last_checkpoint > CHECKPOINT_SECONDS:
            run.save_checkpoint(training.state_dict())
            last_checkpoint = time.monotonic()
    run.save_checkpoint(training.state_dict())


def _require_finite(figures: Mapping[str, float], steps: int) -> None:
    for name, value in figures.items():
        if not math.isfinite(value):
            raise ConfigurationError(
                f"training diverged within {steps} steps: {name} is {value}",
                hint="start anew with another seed, or smaller: --fresh --seed 1 --width 8",
            )


def _progress(training: _Training, fraction: float) -> Progress:
    seconds = training.seconds
    remaining = seconds * (1 - fraction) / fraction if fraction > 0.01 else None
    steps = training.samples // BATCH
    return Progress(fraction, "training", steps, seconds, remaining, training.figures)


def _name(number: int) -> str:
    return f"prior-{number:03}.safetensors"
