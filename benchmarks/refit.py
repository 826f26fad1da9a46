"""What a bank of images teaches by itself: a new student learns from a finished run's images alone.

    python benchmarks/refit.py RUN_DIRECTORY... --data FOLDER [--first N] [--budget 200core-seconds]

Nothing is made while it learns, so two banks are compared without the runs' own students. It uses
the student's loop of the standard recipe, as the oracles of `oracles.py` do over real images.
Accuracy is that of the last step on the last --held-out images of the training set in --data, which
is what recipes may be tuned on; the test set is not read. --first takes the oldest stored images.
Prints a line for each bank; writes nothing.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from real_images import new_student, train, training_images
from trials import SHIPPED, device_for, one_line_errors

from genkd.card import ModelCard
from genkd.device import choose_device
from genkd.evaluate import Evaluation, evaluate
from genkd.images import LabelledImages
from genkd.recipe import Budget
from genkd.run_directory import CHECKPOINT_FILE, CONFIGURATION_FILE
from genkd.student import NormalisedStudent
from genkd.teacher import Teacher, load_teacher


def stored_images(run: Path, teacher: Teacher, first: int | None) -> LabelledImages:
    """The bank that a run of `teacher` left, or its oldest `first` images.

    Raises:
        SystemExit: If there is none, or another teacher's.
    """
    try:
        saved = torch.load(run / CHECKPOINT_FILE, map_location="cpu", weights_only=True)
        bank = saved["state"]["bank"]
        made_by = json.loads((run / CONFIGURATION_FILE).read_text())["teacher_sha256"]
    except (OSError, KeyError, RuntimeError, ValueError) as error:
        raise SystemExit(f"{run} holds no checkpoint with a bank: {error}") from error
    if made_by != teacher.sha256:
        raise SystemExit(f"{run} is a run of another teacher: give its own by --teacher")
    return LabelledImages(bank["images"][:first].numpy(), bank["labels"][:first].numpy())


def held_out_images(source: str, card: ModelCard, count: int) -> LabelledImages:
    """The last `count` images of the training set beside the test set `source`."""
    data = training_images(source, card)
    return LabelledImages(
        np.ascontiguousarray(data.images[-count:]), data.labels[-count:], data.notes
    )


def refit(
    teacher: Teacher,
    student: str,
    bank: LabelledImages,
    data: LabelledImages,
    budget: Budget,
    seed: int,
) -> Evaluation:
    """A new student of `bank`, measured on `data`."""
    network, card = new_student(teacher, student, seed, "of a finished bank")
    device = choose_device(device_for(budget), "auto")
    train("distilled", teacher, network, bank, budget, device, seed)
    return evaluate(NormalisedStudent(network.cpu(), card.input), data, card, teacher=teacher.cpu())


def main() -> None:
    """Refit each bank."""
    parser = argparse.ArgumentParser(description="What a bank teaches a new student.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN_DIRECTORY")
    parser.add_argument("--data", required=True, help="the folder of the data set")
    parser.add_argument("--teacher", type=Path, default=SHIPPED / "teacher.safetensors")
    parser.add_argument("--student", default="resnet8-half")
    parser.add_argument("--budget", default="200core-seconds")
    parser.add_argument("--first", type=int, help="only so many, the oldest")
    parser.add_argument("--held-out", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.held_out < 1 or (arguments.first is not None and arguments.first < 1):
        parser.error("--first and --held-out are 1 at least")
    torch.set_num_threads(1)  # core-seconds are compared, as in `trials.py`
    teacher = load_teacher(arguments.teacher)
    data = held_out_images(arguments.data, teacher.card, arguments.held_out)
    print("| bank | images | top-1 % | agreement with the teacher |\n|---|---|---|---|")
    for run in arguments.runs:
        bank = stored_images(run, teacher, arguments.first)
        found = refit(
            teacher, arguments.student, bank, data, Budget.parse(arguments.budget), arguments.seed
        )
        agreement = 100 * (found.agreement or 0.0)
        print(f"| {run} | {len(bank):,} | {100 * found.top1:.2f} | {agreement:.2f} |", flush=True)


if __name__ == "__main__":
    with one_line_errors():
        main()
