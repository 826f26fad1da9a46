"""GenKD against the field at an equal budget: methods x teacher-student pairs x seeds.

    python benchmarks/compare.py --data FOLDER      # this size of machine
    python benchmarks/compare.py --data FOLDER --teachers FOLDER --preset paper  # GPUs

Every method has the same teacher, student network, student loop, budget and seed; only how images
come about differs. The small preset is half a day of one core for each seed: 9 methods at 600 and
at 1,800 core-seconds, for two pairs. Accuracy is that of the last step on the whole test set.
Several budgets are separate runs, since the learning rate follows the budget: those are the points
of the plots.

`--methods "genkd,real KD,scratch"` adds the oracles of `oracles.py` to the same tables.

Writes compare.json, compare.md and SVG plots to --out; a repeated command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from tables import summary, write_plots
from trials import PAIRS, Trial, check_pairs, check_trials, one_line_errors, overrides_of, run_all

from genkd.durable import atomic_write
from genkd.errors import UsageError
from genkd.recipe import Budget, parse_overrides

METHODS = (
    *("genkd", "noise", "deepinversion", "dafl", "dfad", "zskt", "dfq", "fastdfkd", "nayer"),
)
# What real images would have given, for comparison only: no such method is data-free.
ORACLES = {"real KD": {"oracle": "distilled"}, "scratch": {"oracle": "scratch"}}
# Of a preset: recipe keys that suit the size of its networks, for every method that reads them. The
# papers' values are of CIFAR on GPUs; GenKD's standard recipe is of the small preset.
SIZES: dict[str, dict[str, str]] = {
    "small": {"generator_channels": "16"},
    "paper": {"generator_channels": "64"},
}
# Likewise of one method, in place of what `genkd.baselines.presets` has. With a dozen student steps
# a round, the many generator steps of some papers would leave the student a tenth of the budget:
# here it has about a third with each method. All of them make images to the end, as their papers
# do; NAYER gained little by ending earlier. The papers of DAFL and DFQ show the student as many
# images as the generator makes; DeepInversion's 2,000 steps would make 2,000 images in 600
# core-seconds.
OF_METHOD: dict[str, dict[str, dict[str, str]]] = {
    "small": {
        "deepinversion": {"generator_steps": "100", "batch": "128", "student_steps": "90"},
        "dafl": {"generator_steps": "6"},
        "dfq": {"generator_steps": "6"},
        "fastdfkd": {"student_steps": "30"},
        # Half the paper's batch: better here (200 core-seconds: 80.0 % against 77.4).
        "nayer": {"batch": "128", "student_steps": "50"},
    },
    "paper": {},
}
# Of a preset: equal budgets. On a GPU processor time says little, so there it is teacher passes:
# 200 epochs of 50,000 images are 1e7.
BUDGETS = {
    "small": ("600core-seconds", "1800core-seconds"),
    "paper": ("1e7passes", "4e7passes"),
}


def trials_of(arguments: argparse.Namespace) -> list[Trial]:
    """Every trial, the seeds outermost, so that an early stop leaves whole comparisons."""
    return [
        Trial(method, overrides(method, arguments.preset, arguments.overrides), pair, seed, budget)
        for seed in range(arguments.seeds)
        for pair in arguments.chosen
        for budget in arguments.budget or BUDGETS[arguments.preset]
        for method in arguments.methods.split(",")
    ]


def overrides(method: str, preset: str, shared: dict[str, str]) -> tuple[tuple[str, str], ...]:
    """The recipe keys of a method: those the user gives over those of the preset."""
    if method in ORACLES:
        return overrides_of(ORACLES[method], {})
    sized = {**SIZES[preset], **OF_METHOD[preset].get(method, {}), **shared}
    return overrides_of({"method": method}, sized)


def parser_of(description: str, out: str) -> argparse.ArgumentParser:
    """What the studies can be told in common."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--data", required=True, help="the folder of the test set")
    parser.add_argument("--teachers", type=Path, help="the folder of the teachers' files")
    parser.add_argument("--preset", choices=list(PAIRS), default="small")
    parser.add_argument("--pairs", default="", help="only pairs whose name contains this")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--budget", action="append", help="instead of the preset's; repeatable")
    parser.add_argument("--out", type=Path, default=Path(out))
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    return parser


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The arguments, with the pairs they choose; refuses test data that are not there."""
    arguments = parser.parse_args()
    arguments.chosen = tuple(p for p in PAIRS[arguments.preset] if arguments.pairs in p.name)
    if not arguments.chosen or arguments.seeds < 1:
        parser.error(f"no pair of {arguments.preset} is called {arguments.pairs!r}, or no seeds")
    try:
        arguments.overrides = parse_overrides(arguments.overrides)
        for budget in arguments.budget or ():
            Budget.parse(budget)
    except UsageError as error:
        parser.error(f"{error}: {error.hint}")
    check_pairs(arguments.chosen, arguments.data, arguments.teachers)
    arguments.out.mkdir(parents=True, exist_ok=True)
    return arguments


def main() -> None:
    """Run what is missing, then print the tables."""
    parser = parser_of("Compare GenKD with the field.", "runs/compare")
    parser.add_argument("--methods", default=",".join(METHODS))
    arguments = parse(parser)
    if unknown := set(arguments.methods.split(",")) - {*METHODS, *ORACLES}:
        named = ", ".join((*METHODS, *ORACLES))
        parser.error(f"no methods {', '.join(sorted(unknown))}; there are {named}")
    study(arguments, "compare")


def study(arguments: argparse.Namespace, name: str) -> None:
    """Run what is missing of `arguments.methods`; write and print the tables."""
    trials = trials_of(arguments)
    check_trials(arguments.overrides, trials, arguments.data)
    rows = run_all(trials, arguments.out, arguments.data, arguments.teachers)
    atomic_write(arguments.out / f"{name}.json", json.dumps(rows, indent=2).encode())
    text = summary(rows, arguments.methods.split(",")[0])
    atomic_write(arguments.out / f"{name}.md", text.encode())
    plots = write_plots(rows, arguments.out)
    print(text)
    print("\n".join(str(path) for path in plots))


if __name__ == "__main__":
    with one_line_errors():
        main()
