"""From the releases of a round to the file of its merged student.

    merged = merge_releases(releases, out, MergePlan(MergeMethod.DISTILL, card))
    merged.student                          # a model file of this project, not signed yet

`distill` asks all students together and distils them into one; any architectures may meet, and
students that know different classes. `fedavg`, `trimmed` and `krum` average the weights of students
of one architecture that know the same classes. No member has more say than another: how many
examples a node trained on, the protocol does not know.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from genkd.canonical import canonical_json, parse_json
from genkd.card import ModelCard
from genkd.digest import sha256_bytes
from genkd.durable import atomic_write, unwritable
from genkd.errors import ConfigurationError, InputFileRefused, ResourceExhausted, UsageError
from genkd.provenance.release import SIZE_LIMITS, read_bounded, read_receipt
from genkd.provenance.statement import STUDENT_NAME, RecipeValue
from genkd.provenance.typed_data import to_hex

if TYPE_CHECKING:
    from genkd.averaging import Method

NOTE = "merged.json"
MAX_NOTE_BYTES = 2**22
TRIED = 8  # images of noise that a member must be able to take
MAX_SEED = 2**63 - 1
# The recipes of `genkd.recipe` by which an ensemble is distilled: into fresh weights, and on from a
# student that knows something.
RECIPE, CONTINUING = "merge", "merge-continue"

# What a stop signal interrupts: it gives the function that raises once a signal has come.
Interruptible = Callable[[], AbstractContextManager[Callable[[], None]]]


class MergeMethod(StrEnum):
    """How many students become one."""

    DISTILL = "distill"
    FEDAVG = "fedavg"
    TRIMMED = "trimmed"
    KRUM = "krum"

    @property
    def least_members(self) -> int:
        """With fewer, the method means nothing."""
        if self is MergeMethod.DISTILL:
            return 1
        from genkd.averaging import least_students

        return least_students(AVERAGES[self])


AVERAGES: Mapping[MergeMethod, Method] = {
    MergeMethod.FEDAVG: "fedavg",
    MergeMethod.TRIMMED: "trimmed",
    MergeMethod.KRUM: "krum",
}


@dataclass(frozen=True)
class MergePlan:
    """How to merge.

    Attributes:
        method: How.
        student: What the merged student is; None takes what the students are, with all their
            classes. Averages are what their members are.
        start: A student file to start distilling from; None for fresh weights.
        seed: Of everything that is drawn, 0 to 2^63 - 1.
        budget: What distilling may spend, as `genkd.recipe.Budget` reads it; None: the recipe says.
        device: Where to compute.
        precision: Of the forward passes.
        overrides: Recipe keys as text.

    Raises:
        UsageError: If the seed is out of range.
    """

    method: MergeMethod
    student: ModelCard | None
    start: Path | None = None
    seed: int = 0
    budget: str | None = None
    device: str = "auto"
    precision: str = "auto"
    overrides: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 <= self.seed <= MAX_SEED:
            raise UsageError(
                f"{self.seed} is not a seed", hint=f"use a whole number from 0 to {MAX_SEED}"
            )


@dataclass(frozen=True)
class Merged:
    """A merged student before it is signed.

    Attributes:
        student: Its model file.
        recipe: How it was made, as a provenance statement says it.
        evaluation: Figures, decimal strings.
    """

    student: Path
    recipe: Mapping[str, RecipeValue]
    evaluation: Mapping[str, str]


def merge_releases(
    releases: Sequence[Path],
    out: Path,
    plan: MergePlan,
    *,
    fresh: bool = False,
    interruptible: Interruptible = lambda: nullcontext(lambda: None),
    on_progress: Callable[[float, float | None], None] = lambda fraction, eta: None,
) -> Merged:
    """Merge releases, or go on where an interrupted merge of the same ones stopped.

    Args:
        releases: Release directories, whose signatures are checked already.
        out: A folder for the work; the file `student.safetensors` in it is the result.
        plan: How.
        fresh: Begin anew, whatever lies there.
        interruptible: See `Interruptible`.
        on_progress: Is told how much is done, 0 to 1, and the seconds still to go, if known.

    Raises:
        InputFileRefused: If a release does not fit the method.
        ConfigurationError: If `out` holds an unfinished merge of others, or by another plan.
        UsageError: If there are too few releases, or the plan means nothing.
        ResourceExhausted: If memory or disk runs out.
        Stopped, Interrupted: On a signal; the same call goes on from there.
    """
    if len(releases) < plan.method.least_members:
        raise UsageError(
            f"{plan.method.value} needs {plan.method.least_members} students, there are "
            f"{len(releases)}",
            hint="wait for more nodes, or use --merge distill",
        )
    ids = sorted(to_hex(read_receipt(path).record_id()) for path in releases)
    done = None if fresh else _noted(out, ids, plan.method)
    if done is not None:
        return done
    if plan.method is MergeMethod.DISTILL:
        merged = _distilled(releases, out, plan, fresh, interruptible, on_progress)
    else:
        with interruptible():
            merged = _averaged(releases, out, plan)
    data = read_bounded(merged.student, SIZE_LIMITS[STUDENT_NAME])
    note = {
        "method": plan.method.value,
        "parents": ids,
        "student": sha256_bytes(data),
        "recipe": merged.recipe,
        "evaluation": merged.evaluation,
    }
    atomic_write(out / NOTE, canonical_json(note))
    return merged


def fault_of_member(release: Path, card: ModelCard, method: MergeMethod) -> str | None:
    """Why a release cannot be merged into a student with this card by itself; None if it can.

    A release that claims to know nothing, or no class of the federation, or whose network cannot
    take its images, must not be found out when the others are merged. What averaging needs, the
    intake's rules ask.
    """
    if method is not MergeMethod.DISTILL:
        return None
    import torch

    from genkd.cost import is_out_of_memory
    from genkd.merge import ensemble_of, member_of

    image = card.input
    noise = torch.rand(
        (TRIED, image.channels, image.height, image.width),
        generator=torch.Generator().manual_seed(0),
    )
    try:
        member = ensemble_of([member_of(release)], card)
        with torch.no_grad():
            finite = bool(member(noise).isfinite().all())
    except (InputFileRefused, ConfigurationError) as error:
        return error.message
    except Exception as error:  # a network of any architecture, of images that it was not made for
        if is_out_of_memory(error):  # which is not its fault
            raise ResourceExhausted(
                "memory ran out while a release was tried",
                hint="close other programs and repeat the same command",
            ) from error
        return f"it cannot take the federation's images: {type(error).__name__}"
    return None if finite else "its answers are not finite"


def _noted(out: Path, ids: list[str], method: MergeMethod) -> Merged | None:
    """The finished merge of these releases that lies in a folder, None if there is none."""
    path = out / STUDENT_NAME
    if not ((out / NOTE).exists() and path.exists()):
        return None
    try:
        note = parse_json(read_bounded(out / NOTE, MAX_NOTE_BYTES))
    except ValueError:
        return None
    if not isinstance(note, dict) or (note.get("parents"), note.get("method")) != (ids, method):
        return None
    if sha256_bytes(read_bounded(path, SIZE_LIMITS[STUDENT_NAME])) != note.get("student"):
        raise InputFileRefused(
            f"{path} is not the student that {NOTE} beside it tells of",
            hint=f"delete {out} and repeat the command: it merges again",
        )
    return Merged(path, note["recipe"], note["evaluation"])


def _distilled(
    releases: Sequence[Path],
    out: Path,
    plan: MergePlan,
    fresh: bool,
    interruptible: Interruptible,
    on_progress: Callable[[float, float | None], None],
) -> Merged:
    from genkd.finished_run import read_finished_run
    from genkd.merge import member_of, merge
    from genkd.train import Progress

    with interruptible() as check:

        def report(progress: Progress) -> None:
            on_progress(progress.fraction, progress.eta_seconds)
            check()

        merge(
            [member_of(path) for path in releases],
            out,
            student=plan.student,
            budget=plan.budget,
            recipe=CONTINUING if _goes_on(plan.start) else RECIPE,
            overrides=plan.overrides,
            seed=plan.seed,
            device=plan.device,
            precision=plan.precision,
            init_student=plan.start,
            fresh=fresh,
            on_progress=report,
        )
    finished = read_finished_run(out)
    recipe = {"merge": plan.method.value, "members": len(releases), **finished.recipe}
    return Merged(out / STUDENT_NAME, recipe, finished.evaluation)


def _goes_on(start: Path | None) -> bool:
    """Whether distilling starts from a student that has learnt something."""
    from genkd.evaluate import load_student

    return start is not None and load_student(start).remembers_images


def _averaged(releases: Sequence[Path], out: Path, plan: MergePlan) -> Merged:
    from genkd.averaging import average

    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(out, error) from error
    done = average(
        [path / STUDENT_NAME for path in releases], out / STUDENT_NAME, AVERAGES[plan.method]
    )
    if plan.student is not None:
        _require_card(done.card, plan.student)
    recipe: dict[str, RecipeValue] = {
        "merge": plan.method.value,
        "members": len(releases),
        "used": len(done.used),
        "hostile": done.hostile,
    }
    return Merged(out / STUDENT_NAME, recipe, {})


def _require_card(found: ModelCard, wanted: ModelCard) -> None:
    if (found.spec, found.class_names) != (wanted.spec, wanted.class_names):
        raise InputFileRefused(
            "the students are alike, but not of the architecture and classes that are wanted",
            hint="an average is what its members are: leave --student out, or use --merge distill",
        )
