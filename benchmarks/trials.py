"""One trial of a study: a recipe on a teacher and a student, with a seed and a budget.

    trial = Trial("dafl", (("method", "dafl"),), PAIRS["small"][0], 0, "600core-seconds")
    row = run_trial(trial, Path("runs/compare"), data="fashion-mnist")

Each trial has a run directory and a process of its own (so that its peak of memory is its own), is
evaluated on the whole test set after its last step, never before, and is kept in SEED.json beside
its run: a study that was interrupted goes on in the very round where it stopped (an oracle, which
has no checkpoint, at its trial's beginning).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from genkd.baselines.presets import unread_keys
from genkd.digest import sha256_file
from genkd.durable import atomic_write
from genkd.errors import GenKDError
from genkd.images import idx_images_in, read_images
from genkd.recipe import Budget, find_recipe, idle_keys, resolve
from genkd.teacher import load_teacher

ROOT = Path(__file__).parent.parent
# Core-seconds are compared, so one thread is the honest default: more of them waste some.
THREADS = "1"
Row = dict[str, Any]


@dataclass(frozen=True)
class Pair:
    """A teacher, a student, and what the student is tested on.

    Attributes:
        name: What the tables call it.
        teacher: A safetensors file, or its name in the folder of teachers (`--teachers`).
        student: Its architecture.
        images: Test images as `genkd-node evaluate` takes them; "{data}" stands for `--data`.
    """

    name: str
    teacher: str
    student: str
    images: str


def _cifar(teacher: str, student: str, classes: int = 100) -> Pair:
    file = f"cifar{classes}-{teacher}.safetensors"
    name = f"cifar{classes} {teacher} to {student}"
    return Pair(name, file, student, f"torchvision:CIFAR{classes}:{{data}}")


SHIPPED = ROOT / "examples" / "fashion_mnist"
PAIRS = {
    # This size of machine: the shipped teachers, the second without BatchNorm.
    "small": (
        Pair(
            "fashion-mnist resnet8 to half",
            str(SHIPPED / "teacher.safetensors"),
            "resnet8-half",
            "{data}",
        ),
        Pair(
            "fashion-mnist lenet5 to resnet8-half",
            str(SHIPPED / "lenet5.safetensors"),
            "resnet8-half",
            "{data}",
        ),
    ),
    # The pairs of the field's tables, for GPUs.
    "paper": tuple(
        _cifar(teacher, student, classes)
        for classes in (100, 10)
        for teacher, student in (
            ("wrn40-2", "wrn16-1"),
            ("wrn40-2", "wrn16-2"),
            ("wrn40-2", "wrn40-1"),
            ("resnet34-cifar", "resnet18-cifar"),
            ("resnet32x4", "resnet8x4"),
        )
    ),
}


@dataclass(frozen=True)
class Trial:
    """What is tried.

    Attributes:
        label: What the tables call the method.
        overrides: Recipe keys as text; of an oracle the one key "oracle".
        pair: Of whom.
        seed: Of everything.
        budget: As `genkd.recipe.Budget.parse` takes it.
    """

    label: str
    overrides: tuple[tuple[str, str], ...]
    pair: Pair
    seed: int
    budget: str

    def folder(self, out: Path) -> Path:
        """Where it runs."""
        parts = (self.pair.name, self.budget, self.label)
        return out.joinpath(*(part.replace(" ", "-").replace("/", "-") for part in parts)) / str(
            self.seed
        )


def overrides_of(own: Mapping[str, str], shared: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """A trial's own recipe keys over those of the whole study, as far as its recipe reads them.

    An oracle makes no images and has no recipe, so it keeps its own only.
    """
    if "oracle" in own:
        return tuple(own.items())
    recipe = resolve("standard", {**shared, **own})
    unread = (unread_keys(recipe.method) | idle_keys(recipe).keys()) - own.keys()
    return tuple((k, v) for k, v in {**shared, **own}.items() if k not in unread)


def device_for(budget: Budget) -> str:
    """What a study says as --device: a budget in core-seconds counts no work of a GPU."""
    return "cpu" if budget.unit == "core-seconds" else "auto"


def teacher_file(pair: Pair, teachers: Path | None) -> Path:
    """Where the teacher of a pair lies.

    Raises:
        SystemExit: If it is not there, with what to do.
    """
    path = Path(pair.teacher)
    if not path.is_absolute():
        path = (teachers or Path("teachers")) / path
    if not path.is_file():
        raise SystemExit(
            f"{pair.name}: there is no teacher {path}\n"
            "Train it on a GPU, write it with genkd.weights.write_model under that name, and give "
            "its folder as --teachers"
        )
    return path


def check_pairs(pairs: tuple[Pair, ...], data: str, teachers: Path | None) -> None:
    """Read every teacher and test set once, so that none is refused after hours.

    Raises:
        SystemExit: With what to do.
    """
    for pair in pairs:
        try:
            card = load_teacher(teacher_file(pair, teachers)).card
            read_images(pair.images.format(data=data), card)
        except GenKDError as error:
            raise SystemExit(
                f"{pair.name}: {error}\n{error.hint}\n"
                "Give the folder that holds the data set as --data: the idx files of Fashion-MNIST "
                "(Debian: dataset-fashion-mnist), or torchvision's root of CIFAR"
            ) from error


def check_trials(shared: Mapping[str, str], trials: list[Trial], data: str) -> None:
    """Refuse what could not work, or would have no effect, before the first trial starts.

    Args:
        shared: Recipe keys of the whole study, as the user gave them.
        trials: All of them.
        data: As `--data`.

    Raises:
        SystemExit: If a key of `shared` is the study's own or read by no trial, or an oracle lacks
            its training set or a budget it can spend.
        ConfigurationError: If a trial is no recipe.
    """
    for key in ("method", "budget"):
        if key in shared:
            raise SystemExit(f"--set {key} is what a study varies: use --{key} or --{key}s")
    read = {key for trial in trials for key, _ in trial.overrides}
    if unread := shared.keys() - read:
        raise SystemExit(f"--set {', '.join(sorted(unread))} has no effect on any of these trials")
    for trial in trials:
        if not is_oracle(trial):
            find_recipe("standard", dict(trial.overrides))
        elif Budget.parse(trial.budget).unit == "samples":
            raise SystemExit("oracles make no images: give a budget in core-seconds or passes")
    for pair in {trial.pair for trial in trials if is_oracle(trial)}:
        require_training_set(pair.images.format(data=data))


def is_oracle(trial: Trial) -> bool:
    """Whether it learns from real images."""
    return "oracle" in dict(trial.overrides)


def require_training_set(source: str) -> None:
    """Refuse a test set beside which no training set lies; one file is the test set itself.

    Raises:
        SystemExit: If there is none.
    """
    if not source.startswith("torchvision:") and not idx_images_in(Path(source), "train"):
        raise SystemExit(
            f"{source} is no folder that holds train-images-idx3-ubyte: the oracles need it"
        )


@contextmanager
def one_line_errors() -> Iterator[None]:
    """What the program refuses, as it tells it: a line and what to do.

    Raises:
        SystemExit: In place of a `GenKDError`.
    """
    try:
        yield
    except GenKDError as error:
        raise SystemExit(f"{error}\nhint: {error.hint}") from error


def run_trial(trial: Trial, out: Path, data: str, teachers: Path | None = None) -> Row:
    """Distil and evaluate, or read what was found before.

    Raises:
        SystemExit: If the trial's folder holds another trial, or its process fails.
    """
    folder, overrides = trial.folder(out), dict(trial.overrides)
    teacher = teacher_file(trial.pair, teachers)
    identity = json.loads(json.dumps(asdict(trial)))
    # What the trial's words stand for today: the defaults of a recipe change, and so may files.
    identity["means"] = {
        # An oracle has the student's loop of the standard recipe.
        "recipe": asdict(find_recipe("standard", {} if "oracle" in overrides else overrides)),
        "teacher": sha256_file(teacher),
        "images": str(Path(trial.pair.images.format(data=data)).absolute()),
    }
    kept = folder.parent / f"{trial.seed}.json"
    if kept.exists():
        row: Row = json.loads(kept.read_text())
        if row["trial"] != identity:
            raise SystemExit(
                f"{kept} is of another trial, or of another recipe, teacher or test set of the "
                "same name: choose another --out"
            )
        return row
    if "oracle" in overrides:
        _call(
            *(str(Path(__file__).with_name("real_images.py")), overrides["oracle"], str(teacher)),
            *(trial.pair.student, trial.pair.images.format(data=data), trial.budget),
            *(str(trial.seed), str(folder)),
        )
    else:
        settings = [part for key, value in trial.overrides for part in ("--set", f"{key}={value}")]
        _genkd(
            *("distill", "--teacher", str(teacher), "--student", trial.pair.student),
            # Whatever the user's own settings say: a kept row is of the standard recipe.
            *("--recipe", "standard", "--budget", trial.budget, "--seed", str(trial.seed)),
            *("--out", str(folder), "--device", device_for(Budget.parse(trial.budget))),
            *("--precision", "auto"),
            *settings,
        )
    answer = _genkd(
        *("evaluate", str(folder / "student.safetensors"), "--teacher", str(teacher)),
        *("--data", trial.pair.images.format(data=data), "--device", "auto"),
    )
    result = json.loads((folder / "result.json").read_text())
    row = {
        "trial": identity,
        "top1": answer["top1"],
        "teacher_top1": answer["teacher_top1"],
        "agreement": answer["agreement"],
        "test_images": answer["images"],
        "synthesis_seconds": result["phase_seconds"].get("synthesis", 0.0),
        **{
            key: result[key]
            for key in ("seconds", "core_seconds", "samples", "teacher_passes", "rounds")
        },
        "peak_memory_bytes": result["peak_memory_bytes"],
    }
    atomic_write(kept, json.dumps(row, indent=2).encode())
    return row


def run_all(trials: list[Trial], out: Path, data: str, teachers: Path | None) -> list[Row]:
    """Every trial, one after the other, telling on stderr how far it is."""
    rows = []
    for number, trial in enumerate(trials, 1):
        name = f"{trial.pair.name}, {trial.label}, {trial.budget}, seed {trial.seed}"
        print(f"[{number}/{len(trials)}] {name}", file=sys.stderr, flush=True)
        rows.append(run_trial(trial, out, data, teachers))
    return rows


def _genkd(*arguments: str) -> Row:
    """The data that a command of genkd-node answers."""
    code = "import sys; from node.cli import main; sys.exit(main())"
    answer: Row = json.loads(_call("-c", code, *arguments, "--json"))["data"]
    return answer


def _call(*arguments: str) -> bytes:
    environment = {"OMP_NUM_THREADS": THREADS, **os.environ}
    done = subprocess.run(
        [sys.executable, *arguments], stdout=subprocess.PIPE, env=environment, check=False
    )
    if done.returncode:
        raise SystemExit(f"the trial failed (exit {done.returncode}){_reason(done.stdout)}")
    return done.stdout


def _reason(answer: bytes) -> str:
    """What a command that failed says of it as JSON; the oracles say it on stderr."""
    try:
        error = json.loads(answer)["error"]
        return f": {error['message']}\nhint: {error['hint']}"
    except (ValueError, KeyError, TypeError):
        return "; see above, and repeat to resume it"
