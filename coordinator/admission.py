"""Admit and remove nodes: on the chain and at the SuperLink, in one step that may be repeated.

admitted = admit(client, joins, federation, node)
removed = remove(client, joins, federation, address, until)
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from contracts.registry import RegistryClient
from contracts.registry_state import NEVER
from coordinator.certificates import Authority
from coordinator.joins import Join, Joins
from coordinator.supernodes import ANOTHER_KEY, bring_in_line, is_up
from genkd.errors import InputFileRefused, RefusedByPolicy, UsageError
from genkd.provenance.profile import NodeProfile, read_profile
from genkd.provenance.typed_data import ADDRESS, parse_address

REMOVED = "removed by the coordinator"


@dataclass(frozen=True)
class Admitted:
    """What admitting did.

    Attributes:
        node: The node's address.
        before: Whether the registry had it already.
        gas: What that cost.
        asked: Whether the node has asked to join: until then it has no SuperNode.
        supernode: Flower's number of its SuperNode; None until the SuperLink lets it in.
    """

    node: str
    before: bool
    gas: int
    asked: bool
    supernode: int | None


def admit(
    client: RegistryClient, joins: Joins, federation: Path, authority: Authority | None, node: str
) -> Admitted:
    """Enrol a node in the registry, and let its SuperNode in.

    Args:
        client: The registry, written to by its owner.
        joins: Who asked.
        federation: The folder of the SuperLink; one that is not up lets the SuperNode in later.
        authority: The federation's; None if it has none, so that nobody can have asked.
        node: The address of a node that asked, or the path of a node's profile.

    Raises:
        UsageError: If no node of this address asked.
        InputFileRefused, KeyOrSignatureError: If the profile or the request is not genuine, or not
            the same node's.
        RefusedByPolicy: If its SuperNode is another node's; or as `RegistryClient.add_node`.
        CannotCheck, Stopped: As `RegistryClient`.
    """
    profile, join = _asked_for(joins, node)
    if join is not None and join.request is not None:
        request = join.request
        if request.profile != profile:
            raise InputFileRefused(
                f"{profile.node} asked to join with another profile than the one in {node}",
                hint="ask the node for its profile.json of now",
            )
        if authority is not None:
            request.check(client.domain, bytes.fromhex(authority.fingerprint))
        _require_own_supernode(joins, join)
    known = client.state.node(profile.node)
    if known.since and known.until != NEVER:
        raise RefusedByPolicy(
            f"{profile.node} was removed from the registry, which takes no key back",
            hint="the node makes new keys in another folder: genkd-node init --keys FOLDER",
        )
    written = client.add_node(profile.node, profile.message.next_key_hash, profile.profile_hash())
    decided = joins.decide(profile.node, "admitted")
    if decided.request is not None and is_up(federation):
        problem = bring_in_line(federation, joins).get(profile.node)
        if problem:
            raise RefusedByPolicy(
                f"{profile.node} is enrolled on the chain, but not let in: {problem.split(':')[0]}",
                hint=f"the node is told: {ANOTHER_KEY}",
            )
        decided = joins.get(profile.node) or decided
    supernode = decided.supernode.identity if decided.supernode else None
    return Admitted(
        profile.node,
        written.already_there,
        written.gas,
        decided.request is not None,
        supernode,
    )


def remove(
    client: RegistryClient, joins: Joins, federation: Path, address: str, until: int | None
) -> int:
    """Let a node's key count up to a time only, refuse it, and disconnect its SuperNode.

    Args:
        client: The registry, written to by its owner.
        joins: Who asked.
        federation: The folder of the SuperLink; one that is not up disconnects it as it starts.
        address: The node's, checksum form.
        until: Unix seconds, which may lie in the past; None for now, which leaves an earlier
            removal as it is.

    Returns:
        From when on the node does not count; 0 if the registry never had it.

    Raises:
        UsageError: If nobody knows a node of this address.
        RefusedByPolicy: As `RegistryClient.remove_node`.
        CannotCheck, Stopped: As `RegistryClient`.
    """
    known = client.state.node(address)
    join = joins.get(address)
    if known.since == 0 and join is None:  # who mistypes must not believe that the node is out
        raise UsageError(
            f"no node {address} is enrolled, and none asked to join",
            hint="'genkd-coordinator status' lists the nodes",
        )
    if known.since == 0 and join is not None:
        until = 0  # who was never enrolled cannot be removed; his request is refused
    elif until is None and known.until != NEVER:
        until = known.until
    else:
        now = client.state.head("latest").timestamp
        until = now if until is None else until
        client.remove_node(address, until)
    if join is not None:
        joins.decide(address, "refused", REMOVED)
        if is_up(federation):
            bring_in_line(federation, joins)
    return until


def _asked_for(joins: Joins, node: str) -> tuple[NodeProfile, Join | None]:
    """The profile that is meant, and what is known of the node."""
    if not ADDRESS.fullmatch(node):
        if not Path(node).is_file():
            raise UsageError(
                f"{node[:100]} is neither an address, 0x and 40 digits, nor a file",
                hint="'genkd-coordinator admit' lists who asked; or give the node's profile.json",
            )
        profile = read_profile(Path(node))
        return profile, joins.get(profile.node)
    join = joins.get(parse_address(node))
    if join is None or join.request is None:
        raise UsageError(
            f"{node} has not asked to join",
            hint="'genkd-coordinator admit' lists who has; or give the node's profile.json",
        )
    return join.request.profile, join


def _require_own_supernode(joins: Joins, join: Join) -> None:
    key = join.request.supernode_key if join.request else None
    for other in joins.all():
        if other.node != join.node and key in (other.supernode_key, other.wanted_key):
            raise RefusedByPolicy(
                f"the SuperNode that {join.node} names speaks for {other.node}",
                hint=f"each node has one of its own: {ANOTHER_KEY}",
            )
