"""Where the processor time of a round goes, and what each saving is worth.

    python benchmarks/phases.py [--rounds 5] [--threads 1] [--variants "as it is,float32"]

Runs rounds of GenKD's standard recipe (shipped teacher, half-width student) and prints the
core-seconds a round of each phase, and the wall time of a round, for the recipe as it is and with
one saving undone or one more tried:

| variant | what |
|---|---|
| as it is | the precision that suits the processor, channels-last memory, one sweep for BatchNorm |
| float32 | no bf16 |
| contiguous | teacher and student in PyTorch's default memory layout |
| var_mean | moments of BatchNorm inputs by `torch.var_mean`, not by `batch_statistics._Moments` |
| fused | optimisers whose step is one kernel (`fused=True`) |
| compiled | teacher and student through `torch.compile`; what compiling costs stands apart |

Variants take turns, round by round, so that other work on the machine hurts all alike; figures are
medians. Compiling needs a C++ compiler. Writes nothing.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from trials import SHIPPED

from genkd import batch_statistics
from genkd.bank import SynthesisBank
from genkd.card import ModelSpec
from genkd.device import choose_device
from genkd.models import build_model
from genkd.recipe import PRESETS
from genkd.student import NormalisedStudent, StudentLearner
from genkd.synthesis import Synthesiser
from genkd.teacher import load_teacher

VARIANTS = ("as it is", "float32", "contiguous", "var_mean", "fused", "compiled")
# Methods of `Synthesiser` that are a phase each, in the words of the table.
PHASES = {
    "_propose": "Langevin chains",
    "_search": "generator and latents",
    "_learn_prior": "rewards and EBM",
}
BANK_IMAGES = 2_000


class PlainMoments:
    """What `_Moments` computes, by PyTorch's own means."""

    @staticmethod
    def apply(x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance (C,) of (B, C, ...) per channel."""
        dims = [dim for dim in range(x.dim()) if dim != 1]
        variance, mean = torch.var_mean(x.float(), dims, correction=0)
        return mean, variance


@contextmanager
def fused_optimisers() -> Iterator[None]:
    """What is built of `torch.optim` here and now is fused."""
    kept = {name: getattr(torch.optim, name) for name in ("SGD", "Adam")}
    for name, optimiser in kept.items():
        setattr(torch.optim, name, partial(optimiser, fused=True))
    try:
        yield
    finally:
        for name, optimiser in kept.items():
            setattr(torch.optim, name, optimiser)


class Rounds:
    """A distillation that is a round at a time, with its phases timed.

    Args:
        variant: One of `VARIANTS`.
        seed: Of everything that is drawn.

    Attributes:
        spent: Core-seconds of each phase, a figure a round.
        seconds: Wall time of each round.
    """

    def __init__(self, variant: str, seed: int) -> None:
        self.variant = variant
        self.device = choose_device("cpu", "fp32" if variant == "float32" else "auto")
        layout = torch.contiguous_format if variant == "contiguous" else torch.channels_last
        recipe = PRESETS["standard"]
        self.teacher: Any = load_teacher(SHIPPED / "teacher.safetensors")
        card = self.teacher.card
        self.teacher.to(memory_format=layout)
        random = self.device.generator(seed)
        spec = ModelSpec("resnet8-half", card.spec.num_classes, card.spec.in_channels)
        student: nn.Module = NormalisedStudent(build_model(spec, generator=random), card.input)
        student.to(memory_format=layout)
        student.eval()
        if variant == "compiled":
            # In place: the hooks of BatchStatistics and the student's weights stay what they are.
            self.teacher.network.compile()
            student.compile()
        self.student = student
        self.synthesiser = Synthesiser(self.teacher, recipe, self.device, random)
        with fused_optimisers() if variant == "fused" else nullcontext():
            self.learner = StudentLearner(student, recipe, self.device, random)
        image = card.input
        shape = (image.channels, image.height, image.width)
        self.bank = SynthesisBank(BANK_IMAGES, shape, self.device.torch)
        self.seconds: list[float] = []
        self.spent: dict[str, list[float]] = {name: [] for name in (*PHASES.values(), "student")}
        for method, phase in PHASES.items():
            setattr(self.synthesiser, method, self._timed(getattr(self.synthesiser, method), phase))

    def run(self) -> None:
        """One round, with everything that can act acting."""
        start = time.perf_counter()
        kept = batch_statistics._Moments
        if self.variant == "var_mean":
            batch_statistics._Moments = PlainMoments  # type: ignore[assignment,misc]
        try:
            with fused_optimisers() if self.variant == "fused" else nullcontext():
                batch = self.synthesiser.synthesise(self.student, steer=True)
        finally:
            batch_statistics._Moments = kept  # type: ignore[misc]
        self.bank.add(batch.images, batch.labels, batch.confidence)
        self._timed(self.learner.learn, "student")(self.teacher, self.bank, 0.5)
        self.seconds.append(time.perf_counter() - start)

    def _timed(self, work: Callable[..., Any], phase: str) -> Callable[..., Any]:
        def timed(*arguments: Any) -> Any:
            start = time.process_time()
            answer = work(*arguments)
            self.spent[phase].append(time.process_time() - start)
            return answer

        return timed


@contextmanager
def core_seconds(spent: list[float]) -> Iterator[None]:
    """Add what this process and those that it waited for took: compilers are other processes."""

    def used() -> float:
        both = [resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(one.ru_utime + one.ru_stime for one in both)

    start = used()
    yield
    spent.append(used() - start)


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description="Core-seconds a round, by phase.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--variants", default=",".join(VARIANTS))
    arguments = parser.parse_args()
    names = arguments.variants.split(",")
    if unknown := set(names) - set(VARIANTS):
        parser.error(f"no variants {', '.join(sorted(unknown))}; there are {', '.join(VARIANTS)}")
    torch.set_num_threads(arguments.threads)
    first: dict[str, list[float]] = {}
    rounds = {}
    for name in names:
        rounds[name] = Rounds(name, seed=0)
        with core_seconds(first.setdefault(name, [])):
            rounds[name].run()
    for _ in range(arguments.rounds):
        for one in rounds.values():
            one.run()
    phases = (*PHASES.values(), "student")
    print(f"| variant | {' | '.join(phases)} | a round | its first round | seconds a round |")
    print("|---" * (len(phases) + 4) + "|")
    for name, one in rounds.items():
        medians = [statistics.median(one.spent[phase][1:]) for phase in phases]
        wall = statistics.median(one.seconds[1:])
        figures = (*medians, sum(medians), first[name][0], wall)
        shown = " | ".join(f"{value:.2f}" for value in figures)
        print(f"| {name} | {shown} |")


if __name__ == "__main__":
    main()
