"""`genkd-coordinator init | admit | remove | open-run | commit-round | revoke`: the registry."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from coordinator.settings import Settings
from genkd.console import Answer, AsJson, columns
from genkd.errors import UsageError
from genkd.layered_settings import ChainFlag, KeysFlag, RegistryFlag, RpcFlag

if TYPE_CHECKING:
    from contracts.registry import RegistryClient
    from genkd.provenance.node_keys import NodeKeys

app = typer.Typer()

Reason = Literal["unspecified", "key-compromised", "defective", "superseded", "data-withdrawn"]


@app.command()
def init(keys: KeysFlag = None, as_json: AsJson = False) -> Answer:
    """Make the coordinator's keys. Keys that are there are never overwritten.

    \b
    genkd-coordinator init
    """  # noqa: D301
    from genkd.provenance.keys import KeyFolder
    from genkd.provenance.passphrase import find_passphrase

    settings = Settings.load(keys=keys)
    folder = KeyFolder(settings.keys)
    folder.require_absent()
    profile = folder.create(find_passphrase(settings.key_password_file, ask=True, confirm=True))
    return Answer(
        {"address": profile.node, "keys": settings.keys},
        columns({"coordinator": profile.node, "keys": settings.keys}),
    )


@app.command()
def admit(
    profile: Annotated[Path, typer.Argument(help="The node's profile.json.", show_default=False)],
    keys: KeysFlag = None,
    rpc: RpcFlag = None,
    registry: RegistryFlag = None,
    chain_id: ChainFlag = None,
    as_json: AsJson = False,
) -> Answer:
    """Enrol a node by the profile that both of its keys signed.

    \b
    genkd-coordinator admit profile.json
    """  # noqa: D301
    from genkd.provenance.profile import read_profile

    node = read_profile(profile)
    settings = _settings(keys, rpc, registry, chain_id)
    client = _client(settings)
    written = client.add_node(node.node, node.message.next_key_hash, node.profile_hash())
    _give_test_ether(settings, node.node)
    said = "was admitted before" if written.already_there else "is admitted"
    return Answer(
        {"node": node.node, "before": written.already_there, "gas": written.gas},
        [f"{node.node} {said}"],
    )


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
    """Let a node's key count no longer than up to a time; a past one voids what a thief did.

    \b
    genkd-coordinator remove 0xAb... --from now
    genkd-coordinator remove 0xAb... --from 2026-11-03T14:00Z
    """  # noqa: D301
    from genkd.provenance.typed_data import parse_address

    address = parse_address(node)
    client = _client(_settings(keys, rpc, registry, chain_id))
    until = _parse_time(since, client.state.head("latest").timestamp)
    written = client.remove_node(address, until)
    said = f"{address} does not count from {_as_time(until)} on"
    return Answer({"node": address, "until": until, "gas": written.gas}, [said])


def _parse_time(text: str, chain_time: int) -> int:
    """Unix seconds of a time as people write it; `now` is the newest block's time."""
    if text == "now":
        return chain_time
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


@app.command()
def open_run(
    name: Annotated[str, typer.Argument(help="Its name, or its id: 0x...", show_default=False)],
    coordinator: Annotated[
        str | None, typer.Option(help="Who commits its rounds.", show_default="these keys")
    ] = None,
    configuration: Annotated[
        Path | None, typer.Option("--configuration", help="What its nodes run under; its sha256.")
    ] = None,
    keys: KeysFlag = None,
    rpc: RpcFlag = None,
    registry: RegistryFlag = None,
    chain_id: ChainFlag = None,
    as_json: AsJson = False,
) -> Answer:
    """Open a run, in which nodes record their students.

    \b
    genkd-coordinator open-run spring
    genkd-coordinator open-run spring --configuration federation.toml
    """  # noqa: D301
    from genkd.digest import sha256_file
    from genkd.provenance.record import run_id_of
    from genkd.provenance.typed_data import parse_address, to_hex

    settings = _settings(keys, rpc, registry, chain_id)
    unlocked = keys_of(settings)
    who = unlocked.address if coordinator is None else parse_address(coordinator)
    config_hash = bytes(32) if configuration is None else bytes.fromhex(sha256_file(configuration))
    run_id = run_id_of(name)
    written = _client(settings, unlocked).open_run(run_id, who, config_hash)
    said = "was open before" if written.already_there else "is open"
    return Answer(
        {"run_id": to_hex(run_id), "coordinator": who, "before": written.already_there},
        [f"{name} {said}: run id {to_hex(run_id)}, coordinator {who}"],
    )


@app.command()
def commit_round(
    releases: Annotated[
        list[Path], typer.Argument(help="Releases, or folders of them.", show_default=False)
    ],
    run: Annotated[str, typer.Option(help="The run's name or id.")],
    round_number: Annotated[int, typer.Option("--round", min=0, max=2**32 - 1)],
    aggregate: Annotated[
        Path | None, typer.Option(help="The student merged from them; its sha256 is recorded.")
    ] = None,
    keys: KeysFlag = None,
    rpc: RpcFlag = None,
    registry: RegistryFlag = None,
    chain_id: ChainFlag = None,
    as_json: AsJson = False,
) -> Answer:
    """Record many students by one Merkle root, and write each release its proof.

    \b
    genkd-coordinator commit-round releases/ --run spring --round 1
    """  # noqa: D301
    from coordinator import rounds
    from genkd.digest import sha256_file
    from genkd.provenance.record import run_id_of
    from genkd.provenance.typed_data import to_hex

    found = rounds.releases_in(releases)
    aggregate_hash = bytes(32) if aggregate is None else bytes.fromhex(sha256_file(aggregate))
    client = _client(_settings(keys, rpc, registry, chain_id))
    done = rounds.commit_round(client, found, run_id_of(run), round_number, aggregate_hash)
    rows = {
        "students": done.releases,
        "root": to_hex(done.root),
        "recorded": f"in block {done.block}, transaction {to_hex(done.transaction)}",
    }
    return Answer(
        {
            "root": to_hex(done.root),
            "block": done.block,
            "transaction": to_hex(done.transaction),
            "releases": [str(path) for path in found],
        },
        columns(rows),
    )


@app.command()
def revoke(
    record: Annotated[str, typer.Argument(help="The record id, 0x....", show_default=False)],
    reason: Annotated[Reason, typer.Option(help="Why; the chain keeps it.")],
    keys: KeysFlag = None,
    rpc: RpcFlag = None,
    registry: RegistryFlag = None,
    chain_id: ChainFlag = None,
    as_json: AsJson = False,
) -> Answer:
    """Withdraw any node's record in the name of the registry's owner. Final.

    \b
    genkd-coordinator revoke 0x... --reason defective
    """  # noqa: D301
    from genkd.provenance.record import RevocationReason
    from genkd.provenance.typed_data import parse_bytes32, to_hex

    record_id = parse_bytes32(record)
    client = _client(_settings(keys, rpc, registry, chain_id))
    code = RevocationReason[reason.upper().replace("-", "_")]
    written = client.revoke_as_owner(record_id, code)
    said = "was revoked before" if written.already_there else "is revoked"
    return Answer(
        {"record_id": to_hex(record_id), "reason": reason, "before": written.already_there},
        [f"{to_hex(record_id)} {said}"],
    )


def _settings(
    keys: Path | None, rpc: str | None, registry: str | None, chain_id: int | None
) -> Settings:
    return Settings.load(keys=keys, rpc_url=rpc, registry=registry, chain_id=chain_id)


def keys_of(settings: Settings) -> NodeKeys:
    """The coordinator's keys, unlocked."""
    from genkd.provenance.keys import open_keys

    return open_keys(settings.keys, settings.key_password_file)[1]


def _client(settings: Settings, keys: NodeKeys | None = None) -> RegistryClient:
    from contracts.registry_access import registry_of

    return registry_of(settings, keys or keys_of(settings))
