"""Many students into one, with no data: the same distiller with all of them as its teacher.

    members = [member_of(Path(release)) for release in releases]
    report = merge(members, "merged", budget="10m")
    print(report.student)

Students of nodes that know different classes cannot be averaged (`genkd.ensemble` says why). Here
one generator draws images out of all members at once, of each the classes it knows, by its own
BatchNorm statistics; the merged student learns what the members, each believed where it knows, say
of all those images. Architectures may differ; classes are told by their names.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from genkd import __version__
from genkd.card import ModelCard, card_to_json
from genkd.device import choose_device
from genkd.distillation import DistillReport, check_seed, memory_errors, new_student, train_in
from genkd.ensemble import Ensemble, Member
from genkd.errors import ConfigurationError, InputFileRefused, UsageError
from genkd.evaluate import load_student
from genkd.frozen_prior import METHOD as FROZEN_PRIOR
from genkd.provenance.release import SIZE_LIMITS, STATEMENT_NAME, read_bounded
from genkd.provenance.statement import (
    STUDENT_NAME,
    Statement,
    competence_figure,
)
from genkd.recipe import find_budget, find_recipe
from genkd.teacher import Teacher
from genkd.train import Progress

DESCRIPTION = "merged from students without data by GenKD"
# A claim of less is that of a class that it did not learn; nobody gains by asking it.
LEAST_COMPETENCE = 0.05


@dataclass(frozen=True)
class Claimed:
    """A student and what its release claims of it.

    Attributes:
        student: The student, in float32 on the CPU.
        competence: How well it learnt each class that it knows, 0..1, by position in its card.
    """

    student: Teacher
    competence: Mapping[int, float]


def member_of(release: Path) -> Claimed:
    """Read a student and its claims from a release directory; checks no signature.

    Raises:
        InputFileRefused: If a file is missing or malformed, or the release claims nothing.
    """
    student = load_student(release / STUDENT_NAME)
    data = read_bounded(release / STATEMENT_NAME, SIZE_LIMITS[STATEMENT_NAME])
    figures = Statement.from_bytes(data).evaluation
    competence = {
        label: float(figures[competence_figure(label)])
        for label in range(student.card.spec.num_classes)
        if competence_figure(label) in figures
    }
    if not competence:
        raise InputFileRefused(
            f"{release} does not say which classes its student knows",
            hint="its node must distil and publish with this version of genkd-node",
        )
    return Claimed(student, competence)


@memory_errors()
def merge(
    members: Sequence[Claimed],
    out: str | Path,
    *,
    student: ModelCard | None = None,
    recipe: str = "merge",
    budget: str | None = None,
    overrides: Mapping[str, str] | None = None,
    seed: int = 0,
    device: str = "auto",
    precision: str = "auto",
    init_student: str | Path | None = None,
    fresh: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
) -> DistillReport:
    """Merge students into one. The same call resumes an unfinished run.

    Args:
        members: At least one.
        out: The run directory.
        student: The merged student's card. None: the first member's, with every class that a
            member's card names.
        recipe: A preset's name.
        budget: As `Budget.parse` takes it; None: as the recipe says.
        overrides: Recipe keys as text.
        seed: Of everything that is drawn.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps".
        precision: "auto", "fp32" or "bf16".
        init_student: A model file of that card to start from. None: fresh weights.
        fresh: Delete an earlier run in `out` and start anew.
        on_progress: Called once a round.

    Raises:
        InputFileRefused: If the members take images of different sizes, or their cards name no
            classes.
        ConfigurationError: If a setting or the run directory does not fit.
        UsageError: If there is no member, or a budget or seed means nothing.
        ResourceExhausted: If memory or disk runs out.
    """
    if not members:
        raise UsageError("there is no student to merge", hint="name at least one release")
    check_seed(seed)
    chosen = find_recipe(recipe, overrides or {})
    if chosen.method == FROZEN_PRIOR:
        raise ConfigurationError(
            f"the method {FROZEN_PRIOR} draws on a public generative model, and a merge has none",
            hint="leave out --set method, or use another",
        )
    limit = find_budget(chosen, overrides or {}, budget)
    chosen = chosen.within(limit)
    where = choose_device(device, precision)
    card = dataclasses.replace(student or union_card(members), description=DESCRIPTION)
    ensemble = ensemble_of(members, card)
    earlier = None if init_student is None else load_student(init_student)
    if earlier is not None and (earlier.card.spec, earlier.card.input) != (card.spec, card.input):
        raise InputFileRefused(
            f"{init_student} is another network than the merged student",
            hint="start from the student that was shared last, or from none",
        )
    configuration = {
        "members_sha256": ensemble.sha256,
        "student": card_to_json(card),
        "init_student_sha256": None if earlier is None else earlier.sha256,
        "seed": seed,
        "budget": str(limit),
        "device": where.torch.type,
        "precision": where.precision,
        "recipe": dataclasses.asdict(chosen),
        "version": __version__,
    }
    return train_in(
        out,
        configuration,
        teacher=ensemble,
        network=new_student(card, earlier, seed),
        card=card,
        recipe=chosen,
        budget=limit,
        device=where,
        seed=seed,
        fresh=fresh,
        on_progress=on_progress,
    )


def union_card(members: Sequence[Claimed]) -> ModelCard:
    """The first member's card, with every class that some member's card names, as they come.

    Raises:
        InputFileRefused: If a card names no classes.
    """
    names: dict[str, None] = {}
    for member in members:
        if member.student.card.class_names is None:
            raise _nameless(member.student)
        names |= dict.fromkeys(member.student.card.class_names)
    card = members[0].student.card
    spec = dataclasses.replace(card.spec, num_classes=len(names))
    return dataclasses.replace(card, spec=spec, class_names=tuple(names))


def ensemble_of(members: Sequence[Claimed], card: ModelCard) -> Ensemble:
    """The members as one teacher of a student with this card.

    Raises:
        InputFileRefused: If a member takes other images, names no classes, or learnt none.
        ConfigurationError: If a member has a class that the card does not name.
    """
    if card.class_names is None:
        raise _nameless(card)
    found = []
    for claimed in members:
        image, wanted = claimed.student.card.input, card.input
        if claimed.student.card.class_names is None:
            raise _nameless(claimed.student)
        if (image.channels, image.height, image.width) != (
            wanted.channels,
            wanted.height,
            wanted.width,
        ):
            raise InputFileRefused(
                f"a student takes images of {image.channels}x{image.height}x{image.width}, not of "
                f"{wanted.channels}x{wanted.height}x{wanted.width}",
                hint="merge students of one kind of image",
            )
        found.append(_believable(claimed, card.class_names))
    return Ensemble(found)


def _believable(claimed: Claimed, names: tuple[str, ...]) -> Member:
    """A member with claims that are within reason, whatever was claimed."""
    student = claimed.student.among(names)
    claims = {
        student.places[label]: min(1.0, value)
        for label, value in claimed.competence.items()
        if value >= LEAST_COMPETENCE
    }
    if not claims:
        raise InputFileRefused(
            f"the student {claimed.student.sha256[:16]} claims to have learnt no class",
            hint="leave it out of the merge",
        )
    return Member(
        student.knowing(tuple(claims)),
        tuple(claims[label] for label in sorted(claims)),
    )


def _nameless(what: Teacher | ModelCard) -> InputFileRefused:
    who = f"the student {what.sha256[:16]}" if isinstance(what, Teacher) else "the merged student"
    return InputFileRefused(
        f"the card of {who} names no classes", hint="classes are told by name: name them in it"
    )
