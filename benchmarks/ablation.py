"""Which part of GenKD helps: its rows with one part changed, at an equal budget.

    python benchmarks/ablation.py --data FOLDER [--rows 1,2,4,7] [--seeds 3]

| row | what | read against |
|---|---|---|
| 0 | Gaussian-noise KD | |
| 1 | no EBM: z ~ N(0, I); the time it saves buys more rounds | 4 and 5 |
| 2 | + maximum likelihood (GenKD as it is) | 1, 9 |
| 3 | policy gradient only | |
| 4 | likelihood + stationary policy gradient | 1, 2, 7, 9 |
| 5 | likelihood + chain policy gradient | 1, 9 |
| 6 | as 5 with the greedy, immediate reward | 5 |
| 7 | placebo: as 4, rewards permuted within the class | 4 |
| 8 | pathwise gradient in place of the policy gradient, of the image that came of a proposal | 4 |
| 9 | no EBM: rejection sampling from N(0, I) by the same v | 1, 2, 4 and 5 |
| 10 | latents stay where the prior put them, only the generator learns | 2 |
| real | oracle: KD on the real training set | |
| scratch | oracle: the student on the real labels, no teacher | |

The EBM helps if 2 - 1 and 2 - 9 lie above zero, the policy gradient if 4 - 2 does, and what its
rewards say matters if 4 - 7 does, which differ in nothing else. Accuracy is that of the last step
on the whole test set; differences are paired by seed, at one thread. A round costs nearly the same
in all rows with a generator, so a budget in teacher passes compares them fairly on a machine whose
speed changes, too.
Writes ablation.json and ablation.md to --out; a repeated command goes on where it stopped.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from compare import BUDGETS, ORACLES, SIZES, parse, parser_of
from intervals import paired_difference
from tables import accuracy, grouped, shown, summary
from trials import Row, Trial, check_trials, one_line_errors, overrides_of, run_all

from genkd.durable import atomic_write

# Rewards at five places of a chain: greedy and reward-to-go are the same with fewer than three.
CHAIN = {"policy_segments": "4"}
ROWS: dict[str, dict[str, str]] = {
    "0 noise": {"method": "noise"},
    # The time it saves goes into more rounds: the budget in core-seconds hands it over.
    "1 no EBM": {"energy": "no"},
    "2 MLE": {"policy_gradient": "none"},
    "3 PG only": {"policy_gradient": "stationary", "likelihood_weight": "0"},
    "4 MLE, PG stationary": {"policy_gradient": "stationary"},
    "5 MLE, PG chain": {"policy_gradient": "chain", **CHAIN},
    "6 greedy": {"policy_gradient": "greedy", **CHAIN},
    "7 placebo": {"policy_gradient": "stationary", "policy_placebo": "yes"},
    "8 pathwise": {"policy_gradient": "pathwise"},
    "9 rejection": {"energy": "no", "rejection_candidates": "4"},
    "10 latents stay": {"latent_rate": "0"},
    **ORACLES,
}
# What the rows are there to tell: first less second.
CLAIMS = (
    ("the EBM with the policy gradient helps", "4 MLE, PG stationary", "1 no EBM"),
    ("likewise, of chains", "5 MLE, PG chain", "1 no EBM"),
    ("more than rejection sampling does", "4 MLE, PG stationary", "9 rejection"),
    ("likewise, of chains", "5 MLE, PG chain", "9 rejection"),
    ("the likelihood alone helps", "2 MLE", "1 no EBM"),
    ("more than rejection sampling does, too", "2 MLE", "9 rejection"),
    ("rejection sampling helps", "9 rejection", "1 no EBM"),
    ("moving the latents helps", "2 MLE", "10 latents stay"),
    ("the policy gradient adds to the likelihood", "4 MLE, PG stationary", "2 MLE"),
    ("likewise, of chains", "5 MLE, PG chain", "2 MLE"),
    ("the likelihood adds to the policy gradient", "4 MLE, PG stationary", "3 PG only"),
    ("its rewards say more than permuted ones", "4 MLE, PG stationary", "7 placebo"),
    ("reward-to-go is better than greedy", "5 MLE, PG chain", "6 greedy"),
    ("permuted rewards change nothing", "7 placebo", "2 MLE"),
    ("the policy gradient is better than the pathwise", "4 MLE, PG stationary", "8 pathwise"),
    ("likewise, of chains", "5 MLE, PG chain", "8 pathwise"),
    ("behind KD on real images by", "real KD", "2 MLE"),
)


def chosen_rows(text: str) -> list[str]:
    """Names of the rows whose first word is in `text`, a list with commas; all of an empty one."""
    wanted = set(filter(None, text.split(",")))
    names = [name for name in ROWS if not wanted or name.split()[0] in wanted]
    if unknown := wanted - {name.split()[0] for name in ROWS}:
        raise SystemExit(f"no rows {', '.join(sorted(unknown))}; there are {', '.join(ROWS)}")
    return names


def claims(rows: Sequence[Row]) -> str:
    """What each paired difference says, as far as its rows were run."""
    lines = []
    for (pair, budget), methods in grouped(rows).items():
        lines += ["", f"**{pair}, {budget}**: paired differences in points of top-1", ""]
        lines += ["| claim | rows | difference, 95 % | seeds | verdict |", "|---|---|---|---|---|"]
        for claim, first, second in CLAIMS:
            if first not in methods or second not in methods:
                continue
            found = paired_difference(accuracy(methods[first]), accuracy(methods[second]))
            if found is None:
                continue
            verdict = "open" if not found.excludes_zero else "above" if found.low > 0 else "below"
            both = f"{first.split()[0]} - {second.split()[0]}"
            verdict += " zero" if verdict != "open" else ""
            lines.append(f"| {claim} | {both} | {shown(found, True)} | {found.count} | {verdict} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run what is missing, then print the tables."""
    parser = parser_of("Ablate GenKD.", "runs/ablation")
    parser.add_argument("--rows", default="", help="for example 1,2,4,7,real; else all")
    arguments = parse(parser)
    names = chosen_rows(arguments.rows)
    shared = {**SIZES[arguments.preset], **arguments.overrides}
    trials = [
        Trial(name, overrides_of(ROWS[name], shared), pair, seed, budget)
        for seed in range(arguments.seeds)
        for pair in arguments.chosen
        for budget in arguments.budget or BUDGETS[arguments.preset][:1]
        for name in names
    ]
    check_trials(arguments.overrides, trials, arguments.data)
    rows = run_all(trials, arguments.out, arguments.data, arguments.teachers)
    atomic_write(arguments.out / "ablation.json", json.dumps(rows, indent=2).encode())
    text = summary(rows, "2 MLE") + claims(rows)
    atomic_write(arguments.out / "ablation.md", text.encode())
    print(text)


if __name__ == "__main__":
    with one_line_errors():
        main()
