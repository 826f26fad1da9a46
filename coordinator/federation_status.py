"""How it stands with a federation: its rounds, and what each node did in the newest.

    status = read_status(Path("federation"), run_id=None, number=None)
    status.rounds, status.nodes, status.unsigned

Read from the federation's folder alone; whether SuperNodes are connected, the SuperLink tells if
it runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from coordinator.store import STORE_NAME, Round, Store, Submission
from genkd.errors import ConfigurationError, CoordinatorUnreachable, UsageError

MAX_UNSIGNED: Final = 20  # refusals shown of which nobody knows whose they were


@dataclass(frozen=True)
class RoundStatus:
    """A round.

    Attributes:
        round: As the store knows it.
        accepted: How many releases count.
        refused: How many do not.
    """

    round: Round
    accepted: int
    refused: int


@dataclass(frozen=True)
class NodeStatus:
    """A node.

    Attributes:
        node: Its address.
        join: What was decided about it; None if it never asked to join here.
        connected: Whether its SuperNode is connected; None if nobody can say.
        last_seen: Unix second at which it last answered or reported; None if it never did.
        submissions: What it sent, in the rounds that are shown.
    """

    node: str
    join: str | None = None
    connected: bool | None = None
    last_seen: int | None = None
    submissions: tuple[Submission, ...] = ()


@dataclass(frozen=True)
class FederationStatus:
    """How it stands.

    Attributes:
        superlink: Where nodes reach the SuperLink; None if none serves the folder.
        rounds: By run, in the order in which they began.
        shown: The rounds whose submissions are shown: the newest of each run, or the one asked for.
        nodes: By address.
        unsigned: The newest submissions in those rounds that nobody is known to have signed.
    """

    superlink: str | None
    rounds: tuple[RoundStatus, ...]
    shown: tuple[tuple[bytes, int], ...]
    nodes: tuple[NodeStatus, ...]
    unsigned: tuple[Submission, ...]


def read_status(
    federation: Path, *, run_id: bytes | None = None, number: int | None = None
) -> FederationStatus:
    """Read how it stands; nothing is written, not even an empty store.

    Args:
        federation: The federation's folder.
        run_id: The one run that is asked for; None for all.
        number: The round that is asked for; None for the newest.

    Raises:
        ConfigurationError: If there is no such folder, or a file in it is of another version.
        UsageError: If there is no such run or round.
        InputFileRefused: If the store is damaged.
    """
    if not federation.is_dir():
        raise ConfigurationError(
            f"there is no federation in {federation}",
            hint="begin one with 'genkd-coordinator init', or give --federation",
        )
    nodes = _joined(federation)
    superlink = _connected(federation, nodes)
    if not (federation / STORE_NAME).is_file():
        _require_found((), run_id, number)
        return FederationStatus(superlink, (), (), _by_address(nodes), ())
    with Store.open(federation) as store:
        rounds = tuple(store.rounds(run_id))
        shown = _shown(rounds, number)
        _require_found(shown, run_id, number)
        unsigned = _submitted(store, shown, nodes)
        for seen in store.nodes():
            node = nodes.get(seen.node, NodeStatus(seen.node))
            newest = max(seen.last_seen, node.last_seen or 0)
            nodes[seen.node] = replace(node, last_seen=newest)
        counted = [RoundStatus(r, *store.counts(r.run_id, r.number)) for r in rounds]
    return FederationStatus(
        superlink, tuple(counted), shown, _by_address(nodes), tuple(unsigned[-MAX_UNSIGNED:])
    )


def _joined(federation: Path) -> dict[str, NodeStatus]:
    from coordinator.joins import FOLDER, Joins

    if not (federation / FOLDER).is_dir():
        return {}
    return {join.node: NodeStatus(join.node, join.state) for join in Joins(federation).all()}


def _connected(federation: Path, nodes: dict[str, NodeStatus]) -> str | None:
    """Add what the SuperLink knows of the nodes; returns its address, None if it is away."""
    from coordinator.superlink_file import find_superlink

    try:
        running = find_superlink(federation)
        from coordinator.superlink import list_supernodes

        for supernode in list_supernodes(federation):
            node = nodes.get(supernode.name, NodeStatus(supernode.name))
            last_seen = None if supernode.last_seen is None else int(supernode.last_seen)
            nodes[supernode.name] = replace(node, connected=supernode.online, last_seen=last_seen)
    except CoordinatorUnreachable:
        return None
    return running.public


def _shown(rounds: Sequence[Round], number: int | None) -> tuple[tuple[bytes, int], ...]:
    newest: dict[bytes, int] = {}
    for one in rounds:
        if number is None or one.number == number:
            newest[one.run_id] = max(one.number, newest.get(one.run_id, 0))
    return tuple(newest.items())


def _require_found(
    shown: Sequence[tuple[bytes, int]], run_id: bytes | None, number: int | None
) -> None:
    if shown or (run_id is None and number is None):
        return
    what = "round of this run" if number is None else f"round {number}"
    raise UsageError(
        f"no {what} has begun here", hint="genkd-coordinator status shows those that have"
    )


def _submitted(
    store: Store, shown: Sequence[tuple[bytes, int]], nodes: dict[str, NodeStatus]
) -> list[Submission]:
    """Add to each node what it sent; returns what nobody is known to have signed."""
    unsigned = []
    for run_id, number in shown:
        for one in store.submissions(run_id, number):
            if not one.node:
                unsigned.append(one)
                continue
            node = nodes.get(one.node, NodeStatus(one.node))
            nodes[one.node] = replace(node, submissions=(*node.submissions, one))
    return unsigned


def _by_address(nodes: dict[str, NodeStatus]) -> tuple[NodeStatus, ...]:
    return tuple(nodes[address] for address in sorted(nodes))
