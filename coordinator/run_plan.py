"""What `genkd-coordinator run` is asked to do: how many rounds, with whom, merged how.

plan = RunPlan(run_id_of("spring"), rounds=2, nodes=3, quorum=3, method=MergeMethod.DISTILL)
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from coordinator.merging import MergeMethod
from genkd.errors import UsageError

LEAST_QUORUM = 3  # with two, each can compute the other's student from the merged one's weights
DURATION = re.compile(r"([0-9]{1,6}(?:\.[0-9]{1,3})?)(s|m|h|d)")
SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
DAY = 86400.0
MAX_NODES = 10_000
MAX_ROUNDS = 10_000


def default_quorum(nodes: int) -> int:
    """More than half of the nodes, and at least three where there are three."""
    return min(nodes, max(LEAST_QUORUM, nodes // 2 + 1))


def parse_duration(text: str) -> float:
    """Seconds of `90s`, `20m`, `1.5h` or `7d`.

    Raises:
        UsageError: If it is anything else.
    """
    match = DURATION.fullmatch(text.strip())
    if match is None:
        raise UsageError(
            f"{text[:40]!r} is not a duration", hint="for example 90s, 20m, 1.5h or 7d"
        )
    return float(match[1]) * SECONDS[match[2]]


@dataclass(frozen=True)
class RunPlan:
    """What a run of a federation is to do.

    Attributes:
        run_id: The run, 32 bytes.
        rounds: How many rounds there are to be in all; those that are done are not repeated.
        nodes: With so many accepted releases a round is complete.
        quorum: With so many it is merged when `wait_seconds` have passed.
        method: How students are merged.
        wait_seconds: How long a round waits for its nodes, from when this process began to.
        share_seconds: How long the end of a round waits for nodes to take the merged student.
            Those that are away get it when they are back.
        longest_pause: Seconds between two questions to a node that had nothing to give; the first
            pauses are shorter.
        seed: Of everything that is drawn.
        budget: What a merge may spend; None: the recipe says.
        device: Where to merge.
        precision: Of the forward passes.
        overrides: Recipe keys as text.

    Raises:
        UsageError: If the values do not fit together.
    """

    run_id: bytes
    rounds: int
    nodes: int
    quorum: int
    method: MergeMethod
    wait_seconds: float = DAY
    share_seconds: float = 120.0
    longest_pause: float = 60.0
    seed: int = 0
    budget: str | None = None
    device: str = "auto"
    precision: str = "auto"
    overrides: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not (1 <= self.rounds <= MAX_ROUNDS and 1 <= self.nodes <= MAX_NODES):
            raise UsageError(
                f"{self.rounds} rounds with {self.nodes} nodes",
                hint=f"1 to {MAX_ROUNDS} rounds, 1 to {MAX_NODES} nodes",
            )
        if not 1 <= self.quorum <= self.nodes:
            raise UsageError(
                f"a quorum of {self.quorum} of {self.nodes} nodes",
                hint=f"1 to {self.nodes}; {default_quorum(self.nodes)} if nothing is said",
            )
        if self.quorum < self.method.least_members:
            raise UsageError(
                f"{self.method.value} needs at least {self.method.least_members} students",
                hint=f"--quorum {self.method.least_members}, or --merge distill",
            )
