"""`genkd-coordinator admit | remove`: which nodes take part."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from coordinator.registry_commands import client_of, settings_of
from genkd.console import Answer, AsJson
from genkd.errors import ConfigurationError, UsageError
from genkd.layered_settings import ChainFlag, KeysFlag, RegistryFlag, RpcFlag

if TYPE_CHECKING:
    from pathlib import Path

    from coordinator.certificates import Authority
    from coordinator.joins import Joins
    from coordinator.settings import Settings

app = typer.Typer()


@app.command()
def admit(
    node: Annotated[
        str | None,
        typer.Argument(
            help="The address of a node that asked to join, or a node's profile.json.",
            show_default="lists who asked",
        ),
    ] = None,
    keys: KeysFlag = None,
    rpc: RpcFlag = None,
    registry: RegistryFlag = None,
    chain_id: ChainFlag = None,
    as_json: AsJson = False,
) -> Answer:
    """Let a node in: enrol it in the registry by its profile, and connect its SuperNode.

    \b
    genkd-coordinator admit
    genkd-coordinator admit 0xAb...
    genkd-coordinator admit profile.json

    Compare the address with the one the node shows, by another way than the network.
    """  # noqa: D301
    from coordinator import admission
    from coordinator.joins import Joins

    settings = settings_of(keys, rpc, registry, chain_id)
    if not settings.federation.is_dir():
        raise ConfigurationError(
            f"there is no federation in {settings.federation}",
            hint="begin one with 'genkd-coordinator init', or go to its folder",
        )
    joins = Joins(settings.federation)
    if node is None:
        return _waiting(joins)
    done = admission.admit(
        client_of(settings), joins, settings.federation, _authority(settings), node
    )
    _give_test_ether(settings, done.node)
    said = "was admitted before" if done.before else "is admitted"
    lines = [f"{done.node} {said}"]
    if not done.asked:
        lines.append("it has not asked to join yet; once it has, admit it again")
    elif done.supernode is None:
        lines.append("its SuperNode is let in as soon as 'genkd-coordinator serve' runs")
    supernode = None if done.supernode is None else str(done.supernode)
    return Answer(
        {"node": done.node, "before": done.before, "gas": done.gas, "supernode": supernode}, lines
    )


def _authority(settings: Settings) -> Authority | None:
    from coordinator.certificates import AUTHORITY, Authority

    federation: Path = settings.federation
    return Authority.open(federation) if (federation / AUTHORITY).exists() else None


def _waiting(joins: Joins) -> Answer:
    """Who asked to join and waits for a decision."""
    waiting = [(j, j.request) for j in joins.all() if j.state == "pending" and j.request]
    waiting.sort(key=lambda pair: pair[0].since)
    data = [
        {
            "node": join.node,
            "since": _as_time(join.since),
            "signing_key": request.profile.message.signing_key.hex(),
            "supernode_key": request.supernode_key_hash.hex(),
            "new_supernode": join.supernode is not None,
            "reason": join.reason,
        }
        for join, request in waiting
    ]
    lines = [
        f"{row['node']}  since {row['since']}"
        f"{'  with another SuperNode' if row['new_supernode'] else ''}"
        f"{'  ' + str(row['reason']) if row['reason'] else ''}"
        for row in data
    ]
    if lines:
        lines.append("let one in: genkd-coordinator admit 0x...")
    return Answer({"pending": data}, lines or ["nobody waits to be admitted"])


def _give_test_ether(settings: Settings, address: str) -> None:
    """On a development chain of one's own, a node can pay for its transactions from the start."""
    from contracts.development_chain import fund
    from coordinator.chain import is_development_chain

    if settings.rpc_url and is_development_chain(settings.chain_folder, settings.rpc_url):
        fund(settings.rpc_url, address)


@app.command()
def remove(
    node: Annotated[str, typer.Argument(help="The node's address.", show_default=False)],
    since: Annotated[
        str,
        typer.Option("--from", help="From when on it does not count: 2026-11-03T14:00Z, or now."),
    ],
    keys: KeysFlag = None,
    rpc: RpcFlag = None,
    registry: RegistryFlag = None,
    chain_id: ChainFlag = None,
    as_json: AsJson = False,
) -> Answer:
    """Shut a node out: its key counts up to a time, its SuperNode is disconnected. Final.

    \b
    genkd-coordinator remove 0xAb... --from now
    genkd-coordinator remove 0xAb... --from 2026-11-03T14:00Z

    A past time voids what a thief did. Who asked to join and was never admitted is refused.
    """  # noqa: D301
    from coordinator import admission
    from coordinator.joins import Joins
    from genkd.provenance.typed_data import parse_address

    address = parse_address(node)
    wanted = None if since == "now" else _parse_time(since)
    settings = settings_of(keys, rpc, registry, chain_id)
    client = client_of(settings)
    until = admission.remove(
        client, Joins(settings.federation), settings.federation, address, wanted
    )
    said = f"does not count from {_as_time(until)} on" if until else "is refused; it never counted"
    return Answer({"node": address, "until": until}, [f"{address} {said}"])


def _parse_time(text: str) -> int:
    """Unix seconds of a time as people write it."""
    if text.isdecimal() and len(text) <= 12:
        return int(text)
    try:
        when = datetime.fromisoformat(text)
    except ValueError as error:
        raise UsageError(
            f"{text[:40]!r} is no time", hint="for example 2026-11-03T14:00Z, or now"
        ) from error
    if when.tzinfo is None:
        raise UsageError(f"{text} has no time zone", hint=f"for UTC: {text}Z")
    return int(when.timestamp())


def _as_time(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()
