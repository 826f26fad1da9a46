"""See to it that the SuperLink lets in the SuperNodes of the admitted nodes, and no others.

    problems = bring_in_line(federation, joins)     # repeatable; changes only what differs

The joins say what is wanted, the SuperLink's database what is so. A removal while the SuperLink was
down, a database that was lost, a kill between two steps: the next call puts it right. `admit` and
`remove` make one, `serve` another as soon as the SuperLink is up.
"""

from __future__ import annotations

from pathlib import Path

from coordinator.joins import Joins, LetIn
from coordinator.superlink import (
    SuperNode,
    find_superlink,
    list_supernodes,
    register_supernode,
    unregister_supernode,
)
from genkd.errors import ConfigurationError, CoordinatorUnreachable

ANOTHER_KEY = "delete supernode.key and supernode.pub in the membership, and join again"


def is_up(federation: Path) -> bool:
    """Whether a SuperLink says that it serves the folder; one that was killed may still say so."""
    try:
        find_superlink(federation)
    except CoordinatorUnreachable:
        return False
    return True


def bring_in_line(federation: Path, joins: Joins) -> dict[str, str]:
    """Register and unregister what differs.

    A SuperNode that carries the name of no node of the joins is left alone: somebody registered it
    by hand.

    Returns:
        By the address of each node that could not be let in, why. It waits for a decision again,
        and is told the reason.

    Raises:
        CoordinatorUnreachable: If no SuperLink serves the folder.
        ResourceExhausted: If what was done cannot be noted.
    """
    # Two that register the same key at once both end well, and Flower's server prints an error.
    with joins.one_at_a_time():
        return _bring_in_line(federation, joins)


def _bring_in_line(federation: Path, joins: Joins) -> dict[str, str]:
    known = {
        node.public_key.decode("ascii", "replace"): node for node in list_supernodes(federation)
    }
    wanted: dict[str, str | None] = {}
    problems = {}
    for join in joins.all():
        key = wanted[join.node] = join.wanted_key
        if key is None:
            continue
        try:
            identity = _let_in(federation, join.node, key, known.get(key))
            joins.let_in(join.node, LetIn(key, identity))
        except ConfigurationError as error:
            problems[join.node] = error.message
            # It goes on with the SuperNode it had, if it had one.
            wanted[join.node] = joins.decide(join.node, "pending", error.message).wanted_key
    for key, supernode in known.items():
        if supernode.name in wanted and wanted[supernode.name] != key:
            unregister_supernode(federation, supernode.public_key)
    for node, key in wanted.items():
        if key is None:
            joins.let_in(node, None)
    return problems


def _let_in(federation: Path, node: str, key: str, known: SuperNode | None) -> int:
    """Flower's number of a node's SuperNode, which is registered unless it is.

    Raises:
        ConfigurationError: If its key is another node's, or was unregistered before.
    """
    if known is None:
        try:
            return register_supernode(federation, key.encode("ascii"), node)
        except ConfigurationError as error:
            raise ConfigurationError(
                f"the SuperLink does not take its SuperNode's key again: {ANOTHER_KEY}",
                hint=error.hint,
            ) from error
    if known.name != node:
        raise ConfigurationError(
            f"its SuperNode's key is that of another node: {ANOTHER_KEY}", hint=ANOTHER_KEY
        )
    return known.node_id
