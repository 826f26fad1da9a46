"""`genkd-coordinator open-run | commit-round | revoke`: what the registry keeps."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from coordinator.settings import Settings
from genkd.console import Answer, AsJson, columns
from genkd.layered_settings import ChainFlag, KeysFlag, RegistryFlag, RpcFlag

if TYPE_CHECKING:
    from contracts.registry import RegistryClient
    from genkd.provenance.node_keys import NodeKeys

app = typer.Typer()

Reason = Literal["unspecified", "key-compromised", "defective", "superseded", "data-withdrawn"]


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
    from coordinator.federation_card import note_run, require_run_name
    from genkd.digest import sha256_file
    from genkd.provenance.record import run_id_of
    from genkd.provenance.typed_data import parse_address, to_hex

    require_run_name(name)
    settings = settings_of(keys, rpc, registry, chain_id)
    unlocked = keys_of(settings)
    who = unlocked.address if coordinator is None else parse_address(coordinator)
    config_hash = bytes(32) if configuration is None else bytes.fromhex(sha256_file(configuration))
    run_id = run_id_of(name)
    written = client_of(settings, unlocked).open_run(run_id, who, config_hash)
    if who == unlocked.address:
        note_run(settings.federation, name)
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
    client = client_of(settings_of(keys, rpc, registry, chain_id))
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
    client = client_of(settings_of(keys, rpc, registry, chain_id))
    code = RevocationReason[reason.upper().replace("-", "_")]
    written = client.revoke_as_owner(record_id, code)
    said = "was revoked before" if written.already_there else "is revoked"
    return Answer(
        {"record_id": to_hex(record_id), "reason": reason, "before": written.already_there},
        [f"{to_hex(record_id)} {said}"],
    )


def settings_of(
    keys: Path | None, rpc: str | None, registry: str | None, chain_id: int | None
) -> Settings:
    """The settings under the flags of these verbs."""
    return Settings.load(keys=keys, rpc_url=rpc, registry=registry, chain_id=chain_id)


def keys_of(settings: Settings) -> NodeKeys:
    """The coordinator's keys, unlocked."""
    from genkd.provenance.keys import open_keys

    return open_keys(settings.keys, settings.key_password_file)[1]


def client_of(settings: Settings, keys: NodeKeys | None = None) -> RegistryClient:
    """The registry, written to with the coordinator's keys."""
    from contracts.registry_access import registry_of

    return registry_of(settings, keys or keys_of(settings))
