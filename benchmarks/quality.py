"""Does better image quality make a better student? Figures of synthetic images against accuracy.

    python benchmarks/quality.py RUN_DIRECTORY... --data FOLDER --judge CLASSIFIER.safetensors
    python benchmarks/quality.py --priors FOLDER --budget 60core-seconds --data FOLDER --judge ...

The first form takes finished runs of any method: the images of samples.npz, and the student's top-1
on --data. The second takes
generative models that `genkd-prior train --checkpoints N` wrote: each is asked for images, and a
student is distilled through it at an equal budget. Both may be given together, for one table each.

--data is the test set: its images are the reference, its labels what accuracy is measured by. The
judge is a classifier of another architecture, trained on real images:

    python examples/fashion_mnist/train_teacher.py FOLDER --architecture lenet5-bn --out FILE

Give runs of one budget: of two that differ in it, accuracy tells the time they had and not their
images. Writes quality.json, quality.md and an SVG scatter plot for each figure to --out. What was
computed is kept there and not repeated. `image_quality.py` says what the figures are. Needs the
extra `study`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from image_quality import FeatureSpace, Look, quality
from quality_tables import correlations, quality_summary, write_quality_plots
from torch import Tensor
from trials import SHIPPED, one_line_errors

from genkd.bank import quantise
from genkd.canonical import canonical_json
from genkd.digest import sha256_bytes, sha256_file
from genkd.durable import atomic_write
from genkd.errors import InputFileRefused, UsageError
from genkd.evaluate import evaluate, load_student
from genkd.frozen_prior import METHOD
from genkd.images import LabelledImages, read_images
from genkd.recipe import Budget, find_recipe, parse_overrides
from genkd.teacher import Teacher, load_teacher

Row = dict[str, Any]
LEAST_IMAGES = 32


@dataclass(frozen=True)
class Source:
    """Something that makes images, and the run of the student that learnt from them.

    Attributes:
        name: What the tables call it.
        group: Of one colour in the plots: the method, or the family of the generative model.
        run: The student's run directory.
        identity: Digest of what the images come from.
        draw: Its images, uint8 (N, C, H, W), and their classes, int64 (N,), for a number of them.
    """

    name: str
    group: str
    run: Path
    identity: str
    draw: Callable[[int], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Reference:
    """The real images, as both classifiers see them.

    Attributes:
        data: All of them, with their labels.
        labels: int64 (M,), of those that were drawn, in random order.
        looks: Of the same, by the space's name.
        spaces: The classifiers.
        identity: Digest of data and classifiers.
    """

    data: LabelledImages
    labels: Tensor
    looks: dict[str, Look]
    spaces: dict[str, FeatureSpace]
    identity: dict[str, str]


def image_shape(model: Teacher) -> tuple[int, int, int]:
    """(C, H, W) of the images it takes."""
    image = model.card.input
    return image.channels, image.height, image.width


def read_reference(source: str, teacher: Teacher, judge: Teacher, count: int) -> Reference:
    """The real images of `source`, `count` of them drawn with a fixed seed.

    Raises:
        SystemExit: If the classifiers take other images.
    """
    if image_shape(judge) != image_shape(teacher):
        raise SystemExit("the judge takes images of another size than the teacher")
    data = read_images(source, teacher.card)
    index = np.random.default_rng(0).permutation(len(data))[:count]
    images = torch.from_numpy(data.images[index])
    spaces = {"teacher": FeatureSpace(teacher), "judge": FeatureSpace(judge)}
    return Reference(
        data,
        torch.from_numpy(data.labels[index]),
        {name: space.look(images) for name, space in spaces.items()},
        spaces,
        {
            "data": sha256_bytes(data.images.tobytes() + data.labels.tobytes()),
            "teacher": teacher.sha256,
            "judge": judge.sha256,
        },
    )


def source_of_run(run: Path, teacher: Teacher) -> Source:
    """A finished run and the images it left.

    Raises:
        SystemExit: If it is not finished, or of another teacher.
    """
    try:
        result = json.loads((run / "result.json").read_text("utf-8"))
        identity = sha256_file(run / "samples.npz")
    except OSError as error:
        raise SystemExit(f"{run} is no finished run: {error}") from error
    if result["teacher"]["sha256"] != teacher.sha256:
        raise SystemExit(f"{run} is of another teacher: give that one as --teacher")
    method = str(result["recipe"].get("method", "genkd"))

    def draw(count: int) -> tuple[Tensor, Tensor]:
        with np.load(run / "samples.npz", allow_pickle=False) as kept:
            images, labels = torch.from_numpy(kept["images"]), torch.from_numpy(kept["labels"])
        # They are sorted by class; a part of them must hold all classes.
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))[:count]
        return images[order], labels[order].long()

    return Source(str(run), method, run, identity, draw)


def source_of_prior(checkpoint: Path, arguments: argparse.Namespace, teacher: Teacher) -> Source:
    """A generative model, and the student that is distilled through it, now or before."""
    from genkd.distillation import distill
    from genkd.frozen_prior import fit_images
    from genkd.generative_model import load_generative_model

    model = load_generative_model(checkpoint)
    name = checkpoint.relative_to(arguments.priors).with_suffix("").as_posix()
    run = arguments.out / "runs" / name.replace("/", "-")
    if not (run / "result.json").is_file():
        distill(
            teacher=arguments.teacher,
            out=run,
            student=arguments.student,
            budget=arguments.budget,
            seed=arguments.seed,
            prior=checkpoint,
            overrides=arguments.overrides,
        )
    require_run_of(run, str(model.sha256), arguments)

    def draw(count: int) -> tuple[Tensor, Tensor]:
        random = torch.Generator().manual_seed(0)
        labels = model.draw_labels(count, random)
        parts = [model.sample(part, random) for part in labels.split(256)]
        return quantise(fit_images(torch.cat(parts), teacher.card.input)), labels

    return Source(name, model.card.family, run, str(model.sha256), draw)


def require_run_of(run: Path, prior_sha256: str, arguments: argparse.Namespace) -> None:
    """Refuse a run that an earlier study left, of another prior or with other settings.

    Raises:
        SystemExit: If it is one.
    """
    wanted = {
        "prior_sha256": prior_sha256,
        "teacher_sha256": load_teacher(arguments.teacher).sha256,
        "student": arguments.student,
        "seed": arguments.seed,
        "budget": str(Budget.parse(arguments.budget)),
        "recipe": dataclasses.asdict(
            find_recipe("standard", {"method": METHOD, **arguments.overrides}).within(
                Budget.parse(arguments.budget)
            )
        ),
    }
    found = json.loads((run / "config.json").read_text("utf-8"))
    for key, value in wanted.items():
        if found.get(key) != value:
            raise SystemExit(f"{run} is of another {key}: choose another --out")


def sources_of_priors(arguments: argparse.Namespace, teacher: Teacher) -> Iterator[Source]:
    """One source a checkpoint; those that cannot be distilled through are told and left out."""
    for checkpoint in arguments.checkpoints:
        try:
            yield source_of_prior(checkpoint, arguments, teacher)
        except InputFileRefused as error:
            print(f"{checkpoint} is left out: {error}", file=sys.stderr, flush=True)


def row_of(source: Source, reference: Reference, count: int, out: Path) -> Row:
    """Figures and accuracy of one source, or what was found before."""
    student = source.run / "student.safetensors"
    identity = {
        **reference.identity,
        "source": source.identity,
        "student": sha256_file(student),
        "images": count,
        "real": len(reference.labels),
    }
    kept = out / "figures" / f"{sha256_bytes(canonical_json(identity))[:32]}.json"
    if kept.is_file():
        found: Row = json.loads(kept.read_text("utf-8"))
        return {**found, "name": source.name, "group": source.group}
    images, labels = source.draw(count)
    figures = {
        f"{name} {figure}": value if math.isfinite(value) else None  # NaN is no JSON
        for name, space in reference.spaces.items()
        for figure, value in quality(
            reference.looks[name], reference.labels, space.look(images), labels
        ).items()
    }
    row = {
        "name": source.name,
        "group": source.group,
        "images": count,
        "top1": accuracy_of(source.run, reference.data),
        "figures": figures,
    }
    kept.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(kept, json.dumps(row, indent=2).encode())
    return row


def accuracy_of(run: Path, data: LabelledImages) -> float:
    """Top-1 of the run's student, 0..1, on all of `data`."""
    student = load_student(run / "student.safetensors")
    return evaluate(student, data, student.card).top1


def common_count(sources: Sequence[Source], most: int) -> int:
    """As many images as each source has, `most` at most: unequal numbers cannot be compared.

    Raises:
        SystemExit: If one has too few for any figure to mean something.
    """
    counts = {source.name: len(source.draw(most)[1]) for source in sources}
    name, least = min(counts.items(), key=lambda item: item[1])
    if least < LEAST_IMAGES:
        raise SystemExit(f"{name} has {least} images, fewer than {LEAST_IMAGES}: leave it out")
    return least


def report(
    title: str, sources: Sequence[Source], reference: Reference, count: int, out: Path
) -> Row:
    """Figures of all sources, their correlations, and one plot each."""
    rows = []
    for number, source in enumerate(sources, 1):
        print(f"[{number}/{len(sources)}] {source.name}", file=sys.stderr, flush=True)
        rows.append(row_of(source, reference, count, out))
    plots = write_quality_plots(title, rows, out)
    return {
        "title": title,
        "images": count,
        "real_images": len(reference.labels),
        "rows": rows,
        "correlations": correlations(rows),
        "plots": [path.name for path in plots],
    }


def parse() -> argparse.Namespace:
    """The arguments; refuses what cannot work before anything is computed."""
    parser = argparse.ArgumentParser(description="Image quality against the student's accuracy.")
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN_DIRECTORY")
    parser.add_argument("--priors", type=Path, help="a folder of generative models")
    parser.add_argument("--budget", default="60core-seconds", help="of each student of a prior")
    parser.add_argument("--student", default="resnet8-half", help="likewise, its architecture")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--data", required=True, help="the folder of the test set")
    parser.add_argument("--judge", required=True, type=Path, help="a classifier of another kind")
    parser.add_argument("--teacher", type=Path, default=SHIPPED / "teacher.safetensors")
    parser.add_argument("--images", type=int, default=320, help="of each source, at most")
    parser.add_argument("--real", type=int, default=2000, help="reference images, at most")
    parser.add_argument("--out", type=Path, default=Path("runs/quality"))
    arguments = parser.parse_args()
    if not arguments.runs and arguments.priors is None:
        parser.error("give run directories, or --priors FOLDER")
    if arguments.real < arguments.images or arguments.images < LEAST_IMAGES:
        parser.error(f"--real is at least --images, and that at least {LEAST_IMAGES}")
    try:
        arguments.overrides = parse_overrides(arguments.overrides)
    except UsageError as error:
        parser.error(f"{error}: {error.hint}")
    if sha256_file(arguments.judge) == sha256_file(arguments.teacher):
        parser.error("the judge is the teacher itself: give another classifier")
    arguments.checkpoints = []
    if arguments.priors is not None:
        arguments.checkpoints = sorted(arguments.priors.rglob("*.safetensors"))
        if not arguments.checkpoints:
            parser.error(f"{arguments.priors} holds no *.safetensors")
    arguments.out.mkdir(parents=True, exist_ok=True)
    return arguments


def main() -> None:
    """Compute what is missing, then print the tables."""
    arguments = parse()
    teacher, judge = load_teacher(arguments.teacher), load_teacher(arguments.judge)
    reference = read_reference(arguments.data, teacher, judge, arguments.real)
    groups = {
        "runs": [source_of_run(run, teacher) for run in arguments.runs],
        "priors": list(sources_of_priors(arguments, teacher)),
    }
    reports = [
        report(title, sources, reference, common_count(sources, arguments.images), arguments.out)
        for title, sources in groups.items()
        if sources
    ]
    atomic_write(arguments.out / "quality.json", json.dumps(reports, indent=2).encode())
    text = "\n".join(quality_summary(one) for one in reports)
    atomic_write(arguments.out / "quality.md", text.encode())
    print(text)


if __name__ == "__main__":
    with one_line_errors():
        main()
