"""What a person asks of `genkd-coordinator run`, as flags or as a plan file say it.

    request = RunRequest(run="spring", rounds=2, nodes=3, student="start.safetensors")
    request.plan(), request.start()

A stock `flwr run` gives its ServerApp a plan file with the same names as the flags::

    run = "spring"
    rounds = 2
    nodes = 3
    student = "resnet8-half"
    classes = "shirt,trouser,shoe"
    image = "1x32x32"
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

from coordinator.merging import MergeMethod
from coordinator.run_plan import RunPlan, default_quorum, parse_duration
from coordinator.start_student import StartStudent, student_of_flags
from genkd.errors import ConfigurationError, UsageError
from genkd.layered_settings import read_file
from genkd.provenance.record import run_id_of
from genkd.recipe import find_budget, find_recipe

DEFAULT_WAIT = "1d"


@dataclass(frozen=True)
class RunRequest:
    """What is asked, unchecked but for its types.

    Attributes:
        run: The run's name, or its id.
        rounds: How many rounds there are to be in all.
        nodes: How many nodes are waited for.
        merge: `distill`, `fedavg`, `trimmed` or `krum`.
        student: See `start_student`; None goes on with a run that has started.
        classes: Names of classes, likewise.
        image: CxHxW, likewise.
        mean: Likewise.
        std: Likewise.
        quorum: How many releases a merge needs; None takes more than half, and at least three.
        wait: How long a round waits for its nodes.
        budget: What a merge may spend; None leaves it to the recipe.
        seed: Of everything that is drawn.
        device: Where to merge.
        precision: Of the forward passes.
        overrides: Recipe keys as text.
    """

    run: str
    rounds: int
    nodes: int
    merge: str = MergeMethod.DISTILL.value
    student: str | None = None
    classes: str | None = None
    image: str | None = None
    mean: str | None = None
    std: str | None = None
    quorum: int | None = None
    wait: str = DEFAULT_WAIT
    budget: str | None = None
    seed: int = 0
    device: str = "auto"
    precision: str = "auto"
    overrides: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> RunRequest:
        """The request in a plan file.

        Raises:
            ConfigurationError: If it cannot be read, lacks something, or says something unknown.
        """
        values = read_file(path)
        known = {one.name: str(one.type) for one in fields(cls)}
        for name, value in values.items():
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}"
                raise ConfigurationError(f"{path} says something unknown: {name}", hint=hint)
            kind = known[name].partition(" ")[0].partition("[")[0]
            wanted = {"int": int, "str": str}.get(kind, dict)
            if type(value) is not wanted:
                raise ConfigurationError(f"{path}: {name} is no {kind}", hint="correct it")
        lacking = sorted({"run", "rounds", "nodes"} - set(values))
        if lacking:
            raise ConfigurationError(f"{path} does not say {lacking[0]}", hint="add it")
        return cls(**values)

    def plan(self) -> RunPlan:
        """What to do.

        Raises:
            UsageError: If the values mean nothing, or do not fit together.
            ConfigurationError: If a recipe key does not fit: it is read at the first merge, when
                every node has distilled.
        """
        if self.merge not in set(MergeMethod):
            raise UsageError(
                f"{self.merge[:40]!r} is no way to merge", hint=f"use {', '.join(MergeMethod)}"
            )
        if self.merge == MergeMethod.DISTILL:
            find_budget(find_recipe("merge", self.overrides), self.overrides, self.budget)
        return RunPlan(
            run_id=run_id_of(self.run),
            rounds=self.rounds,
            nodes=self.nodes,
            quorum=default_quorum(self.nodes) if self.quorum is None else self.quorum,
            method=MergeMethod(self.merge),
            wait_seconds=parse_duration(self.wait),
            seed=self.seed,
            budget=self.budget,
            device=self.device,
            precision=self.precision,
            overrides=self.overrides,
        )

    def start(self) -> StartStudent | None:
        """Where the run starts; None to go on with one that has started.

        Raises:
            UsageError, InputFileRefused: As `student_of_flags`.
        """
        return student_of_flags(
            self.student, classes=self.classes, image=self.image, mean=self.mean, std=self.std
        )
