"""What real images would have given, at an equal budget: the ceiling of all data-free methods.

    python benchmarks/oracles.py --data FOLDER                    # equal core-seconds
    python benchmarks/oracles.py --data FOLDER --budget 4e5passes # equal student steps: 128 a step

"real KD" is GenKD's own student loop over the real training set, "scratch" the same student on the
true labels, without the teacher. Pairs, budgets, seeds and output are those of `compare.py`; a
budget in passes counts the images that the student learns from. The training set is read from
beside the test set. A repeated command goes on where it stopped.
"""

from __future__ import annotations

from compare import ORACLES, parse, parser_of, study
from trials import one_line_errors


def main() -> None:
    """Run what is missing, then print the tables."""
    arguments = parse(parser_of("Train students on real images.", "runs/oracles"))
    arguments.methods = ",".join(ORACLES)
    study(arguments, "oracles")


if __name__ == "__main__":
    with one_line_errors():
        main()
