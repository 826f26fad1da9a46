"""How good a merged student is: nodes that know some classes each, merged with no data.

    rows = [run_seed(plan, seed) for seed in range(3)]
    for line in table("disjoint", rows): print(line)

Each seed distils every node's teacher into a student, releases it, and merges the releases as a
round of a federation does; beside it, a merge that learns from the uniform ensemble, as federated
distillation commonly does (FedDF, Lin et al. 2020, arXiv:2006.07242). Run directories that are
finished are not repeated; one that was broken off goes on where it stopped.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from submissions import make_keys, signed_release
from torch import Tensor, nn

from coordinator.start_student import parse_student
from genkd import distill
from genkd.card import ModelCard
from genkd.device import choose_device
from genkd.digest import sha256_file
from genkd.distillation import new_student, train_in
from genkd.ensemble import LEAST, Ensemble, Member
from genkd.evaluate import load_student
from genkd.finished_run import read_finished_run
from genkd.images import LabelledImages, read_images
from genkd.merge import Claimed, ensemble_of, member_of, merge
from genkd.recipe import Budget, find_recipe
from genkd.teacher import load_teacher
from genkd.train import Progress

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples" / "federation"
sys.path.insert(0, str(EXAMPLES))

from table import NodeRelease, RoundFigures, measure  # noqa: E402

CLASSES = "T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot"
STUDENT, IMAGE = "resnet8-half", "1x32x32"
NODES = 3
BATCH = 500
LEAST_MERGED, MOST_BEHIND, MOST_WORSE = 0.70, 0.02, 0.02


@dataclass(frozen=True)
class Plan:
    """What to run.

    Attributes:
        images: The test set's folder.
        out: Where the run directories lie.
        split: disjoint or overlapping.
        node_budget: Of each node's distillation.
        merge_budget: Of a merge.
        settings: Recipe keys for all of them.
    """

    images: Path
    out: Path
    split: str
    node_budget: str = "200000passes"
    merge_budget: str = "450000passes"
    settings: dict[str, str] = field(default_factory=dict)

    def folder(self, seed: int) -> Path:
        """Of a seed."""
        return self.out / self.split / f"seed-{seed}"

    def teacher(self, number: int) -> Path:
        """A node's, from 1 on."""
        return EXAMPLES / f"{self.split}_{number}.safetensors"


@dataclass(frozen=True)
class SeedFigures:
    """One seed. Accuracies on all classes of the whole test set, 0..1.

    Attributes:
        seed: Which.
        figures: Of students, averages, ensembles and the merged student.
        uniform_distilled: Of the student merged from the uniform ensemble.
        students_told: Of the gated ensemble if it is told for each image which class it is of, and
            so who is to judge: what a merge could learn at best from these students.
        teachers_gated: Of the same gated ensemble, of the teachers in place of their students.
        teachers_told: Likewise.
        seconds: What each run took.
    """

    seed: int
    figures: RoundFigures
    uniform_distilled: float
    students_told: float
    teachers_gated: float
    teachers_told: float
    seconds: dict[str, float]


class UniformEnsemble(Ensemble):
    """The members of another ensemble, drawn from as there, but believed equally, on everything."""

    def __init__(self, gated: Ensemble) -> None:
        super().__init__([Member(one, (1.0,) * len(one.known)) for one in gated.members])
        self._asked = nn.ModuleList([one.knowing(one.places) for one in gated.members])

    def forward(self, images: Tensor) -> Tensor:
        """Log p (B, K): the mean of all members' probabilities."""
        says = torch.stack([one(images).float().softmax(1) for one in self._asked])
        log_p: Tensor = says.mean(0).clamp_min(LEAST).log()
        return log_p


def run_seed(plan: Plan, seed: int) -> SeedFigures:
    """Distil, merge and measure one seed, or as much of it as is not done yet."""
    folder = plan.folder(seed)
    folder.mkdir(parents=True, exist_ok=True)
    start = folder / "start.safetensors"
    student = parse_student(STUDENT, classes=CLASSES, image=IMAGE)
    start.write_bytes(student.model_file(seed))
    nodes = [_release(plan, seed, number, start) for number in range(1, NODES + 1)]
    members = [member_of(node.release) for node in nodes]
    gated, uniform = folder / "merged", folder / "uniform"
    same = {
        "members_sha256": ensemble_of(members, student.card).sha256,
        "budget": str(Budget.parse(plan.merge_budget)),
        "seed": seed,
    }
    if not _is_finished(gated, plan, "merge", **same):
        merge(
            members,
            gated,
            student=student.card,
            budget=plan.merge_budget,
            overrides=plan.settings,
            seed=seed,
            init_student=start,
            on_progress=_teller(f"{plan.split} seed {seed}: merging"),
        )
    if not _is_finished(uniform, plan, "merge", **same):
        _distil_uniform(plan, members, student.card, uniform, seed, start)
    data = read_images(plan.images, student.card)
    claims = [_certain(plan.teacher(number)) for number in range(1, NODES + 1)]
    teachers = ensemble_of(claims, student.card)
    # Read anew: a merge may have moved the networks of `members` to a GPU.
    students = ensemble_of([member_of(node.release) for node in nodes], student.card)
    runs = {node.name: folder / node.name for node in nodes} | {"merge": gated, "uniform": uniform}
    found = SeedFigures(
        seed=seed,
        figures=measure(nodes, gated / "student.safetensors", data, student.card),
        uniform_distilled=_accuracy(load_student(uniform / "student.safetensors"), data),
        students_told=_accuracy_told(students, data),
        teachers_gated=_accuracy(teachers, data),
        teachers_told=_accuracy_told(teachers, data),
        seconds={name: _result(path)["seconds"] for name, path in runs.items()},
    )
    (folder / "figures.json").write_text(json.dumps(asdict(found), indent=1))
    return found


def _release(plan: Plan, seed: int, number: int, start: Path) -> NodeRelease:
    """A node's student, distilled and released."""
    name = f"node-{number}"
    run = plan.folder(seed) / name
    same = {
        "teacher_sha256": load_teacher(plan.teacher(number)).sha256,
        "init_student_sha256": sha256_file(start),
        "budget": str(Budget.parse(plan.node_budget)),
        "seed": seed,
    }
    if not _is_finished(run, plan, "standard", **same):
        distill(
            teacher=plan.teacher(number),
            student=STUDENT,
            out=run,
            recipe="standard",
            budget=plan.node_budget,
            overrides=plan.settings,
            seed=seed,
            init_student=start,
            on_progress=_teller(f"{plan.split} seed {seed}: {name}"),
        )
    finished = read_finished_run(run)
    files = signed_release(
        make_keys(10_000 + 10 * number),
        finished.student,
        recipe=finished.recipe,
        evaluation=finished.evaluation,
    )
    release = run / "release"
    release.mkdir(exist_ok=True)
    for file, content in files.items():
        (release / file).write_bytes(content)
    classes = load_teacher(plan.teacher(number)).card.class_names or ()
    return NodeRelease(name, release, classes)


def _distil_uniform(
    plan: Plan,
    members: Sequence[Claimed],
    card: ModelCard,
    out: Path,
    seed: int,
    start: Path,
) -> None:
    """What `merge` does, but for the ensemble."""
    ensemble = UniformEnsemble(ensemble_of(members, card))
    recipe, budget = find_recipe("merge", plan.settings), Budget.parse(plan.merge_budget)
    train_in(
        out,
        {"members_sha256": ensemble.sha256, "seed": seed, "budget": str(budget)}
        | {"recipe": asdict(recipe), "ensemble": "uniform"},
        teacher=ensemble,
        network=new_student(card, load_student(start), seed),
        card=card,
        recipe=recipe,
        budget=budget,
        device=choose_device("auto", "auto"),
        seed=seed,
        fresh=False,
        on_progress=_teller(f"{plan.split} seed {seed}: uniform ensemble distillation"),
    )


def _is_finished(run: Path, plan: Plan, recipe: str, **expected: object) -> bool:
    """Whether a run directory holds a finished student, made as it would be made now."""
    if not ((run / "result.json").exists() and (run / "student.safetensors").exists()):
        return False
    kept = json.loads((run / "config.json").read_text())
    expected["recipe"] = asdict(find_recipe(recipe, plan.settings))
    differ = [key for key, value in expected.items() if kept.get(key) != value]
    if differ:
        raise SystemExit(
            f"{run} was made otherwise ({', '.join(differ)}): delete it, or choose another --out"
        )
    return True


def _result(run: Path) -> dict[str, float]:
    found: dict[str, float] = json.loads((run / "result.json").read_text())
    return found


def _certain(teacher: Path) -> Claimed:
    """A teacher as a member that knows all its classes."""
    loaded = load_teacher(teacher)
    return Claimed(loaded, dict.fromkeys(range(loaded.card.spec.num_classes), 1.0))


def _accuracy(model: Callable[[Tensor], Tensor], data: LabelledImages) -> float:
    return _right(lambda images, labels: model(images), data)


def _accuracy_told(ensemble: Ensemble, data: LabelledImages) -> float:
    """Of those members alone who know what each image is of; they answer among all they know."""

    def ask(images: Tensor, labels: Tensor) -> Tensor:
        judges = ensemble.trust.T[labels]  # (B, N), rows sum to 1
        says = torch.stack([one(images).float().softmax(1) for one in ensemble.members], 1)
        return (judges.unsqueeze(2) * says).sum(1)

    return _right(ask, data)


@torch.inference_mode()
def _right(ask: Callable[[Tensor, Tensor], Tensor], data: LabelledImages) -> float:
    images, labels = torch.from_numpy(data.images), torch.from_numpy(data.labels)
    parts = zip(images.split(BATCH), labels.split(BATCH), strict=True)  # type: ignore[no-untyped-call]
    right = [ask(part.float() / 255, label).argmax(1) == label for part, label in parts]
    return float(torch.cat(right).double().mean())


def _teller(what: str) -> Callable[[Progress], None]:
    """Says now and then how far a run is."""
    said = [-1]

    def tell(progress: Progress) -> None:
        tenth = int(10 * progress.fraction)
        if tenth > said[0]:
            said[0] = tenth
            print(f"{what}, {progress.fraction:.0%}", file=sys.stderr, flush=True)

    return tell


# ------------------------------------------------------------------ for people


def checks(split: str, one: SeedFigures) -> dict[str, bool]:
    """Which of the figures to reach a seed reaches."""
    found = one.figures
    if split == "overlapping":
        return {
            "above every node": found.merged > max(node.accuracy for node in found.nodes),
            "above uniform ensemble distillation": found.merged > one.uniform_distilled,
        }
    return {
        "merged above 70 %": found.merged > LEAST_MERGED,
        "at most 2 points below the gated ensemble": (
            found.gated_ensemble - found.merged <= MOST_BEHIND
        ),
        "no node's own classes worse by over 2 points": all(
            node.own_before - node.own_after_among_own <= MOST_WORSE for node in found.nodes
        ),
        "the same, answers among all ten classes": all(
            node.own_before - node.own_after <= MOST_WORSE for node in found.nodes
        ),
    }


def table(split: str, rows: Sequence[SeedFigures]) -> list[str]:
    """A column for each seed, and their mean and deviation."""
    lines: list[tuple[str, list[float]]] = []
    for index in range(NODES):
        name = rows[0].figures.nodes[index].name
        lines.append((f"{name}'s student", [r.figures.nodes[index].accuracy for r in rows]))
    if all(r.figures.weight_average is not None for r in rows):
        lines.append(("weight average", [r.figures.weight_average or 0.0 for r in rows]))
    lines += [
        ("uniform ensemble of the students", [r.figures.uniform_ensemble for r in rows]),
        ("gated ensemble of the students", [r.figures.gated_ensemble for r in rows]),
        ("**merged student**", [r.figures.merged for r in rows]),
        ("uniform ensemble distillation", [r.uniform_distilled for r in rows]),
        ("students, told who knows each image", [r.students_told for r in rows]),
        ("teachers, gated", [r.teachers_gated for r in rows]),
        ("teachers, told who knows each image", [r.teachers_told for r in rows]),
    ]
    for index in range(NODES):
        of_node = [r.figures.nodes[index] for r in rows]
        name = of_node[0].name
        lines += [
            (f"{name}'s own classes: its student", [n.own_before for n in of_node]),
            (f"{name}'s own classes: merged", [n.own_after for n in of_node]),
            (f"{name}'s own classes: merged, among them", [n.own_after_among_own for n in of_node]),
        ]
    seeds = " | ".join(f"seed {row.seed}" for row in rows)
    out = [f"| {split} | {seeds} | mean | deviation |", "|---" * (len(rows) + 3) + "|"]
    for name, values in lines:
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        cells = " | ".join(f"{one:.2%}" for one in (*values, statistics.mean(values), spread))
        out.append(f"| {name} | {cells} |")
    out.append("")
    for row in rows:
        for name, reached in checks(split, row).items():
            out.append(f"seed {row.seed}: {name}: {'reached' if reached else 'MISSED'}")
    return out
