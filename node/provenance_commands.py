"""`genkd-node publish | revoke | verify | lineage`: who made a student, from what, and proof."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from genkd.console import Answer, AsJson, columns
from genkd.errors import UsageError
from genkd.layered_settings import ChainFlag, KeysFlag, RegistryFlag, RpcFlag
from genkd.provenance.typed_data import parse_address, parse_bytes32, to_hex
from node.settings import Settings, load_settings

if TYPE_CHECKING:
    from genkd.provenance.verification import Check, Verification

app = typer.Typer()

EXIT_CODES = {"valid": 0, "not_valid": 1, "cannot_check": 6}
MARKS = {"passed": "ok ", "failed": "NO ", "not_checked": "-  "}

Reason = Literal["unspecified", "key-compromised", "defective", "superseded", "data-withdrawn"]
Release = Annotated[
    Path, typer.Argument(help="A release directory, or a student beside one.", show_default=False)
]


@app.command()
def publish(
    run_directory: Annotated[Path, typer.Argument(help="What distill wrote.", show_default=False)],
    run: Annotated[str | None, typer.Option(help="The federation's run, by name or id.")] = None,
    round_number: Annotated[int, typer.Option("--round", min=0, max=2**32 - 1)] = 0,
    parents: Annotated[
        list[str] | None,
        typer.Option("--parent", help="A student it was made from: record id or release."),
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Sign, and record nothing.")] = False,
    leave_to_coordinator: Annotated[
        bool, typer.Option("--for-round", help="Record nothing: the coordinator's round will.")
    ] = False,
    keys: KeysFlag = None,
    rpc: RpcFlag = None,
    registry: RegistryFlag = None,
    chain_id: ChainFlag = None,
    as_json: AsJson = False,
) -> Answer:
    """Sign a distilled student and record it on the chain. Safe to repeat and to interrupt.

    \b
    genkd-node publish runs/first
    genkd-node publish runs/first --run spring --round 2 --for-round
    genkd-node publish runs/first --offline
    """  # noqa: D301
    settings = load_settings(keys=keys, run=run, rpc_url=rpc, registry=registry, chain_id=chain_id)
    if settings.run is None:
        raise UsageError(
            "which run the student belongs to is not said",
            hint="give --run NAME, the run that the coordinator opened",
        )
    from contracts.registry_access import registry_of, trusted_domain
    from genkd.provenance.keys import open_keys
    from genkd.provenance.record import run_id_of
    from node.publish import PublishOptions, published_json
    from node.publish import publish as publish_run

    options = PublishOptions(
        trusted_domain(settings), run_id_of(settings.run), round_number, _parents(parents or [])
    )
    folder, unlocked = open_keys(settings.keys, settings.key_password_file)
    client = None if offline else registry_of(settings, unlocked)
    done = publish_run(
        run_directory, options, folder, unlocked, client, register=not leave_to_coordinator
    )
    inclusion = done.receipt.inclusion
    rows = {
        "release": done.release,
        "record": to_hex(done.receipt.record_id()),
        "recorded": "signed, not recorded"
        if inclusion is None
        else f"in block {inclusion.block}, transaction {to_hex(inclusion.transaction)}",
    }
    return Answer(published_json(done), columns(rows))


def _parents(named: Sequence[str]) -> tuple[bytes, ...]:
    return tuple(sorted({_record_id(one) for one in named}))


def _record_id(named: str) -> bytes:
    """A record id as given, or that of the release at a path."""
    if named.startswith("0x"):
        return parse_bytes32(named)
    from genkd.provenance.release import read_receipt

    return read_receipt(Path(named)).record_id()


@app.command()
def revoke(
    record: Annotated[
        str, typer.Argument(help="A record id, or a release directory.", show_default=False)
    ],
    reason: Annotated[Reason, typer.Option(help="Why; the chain keeps it.")],
    keys: KeysFlag = None,
    rpc: RpcFlag = None,
    registry: RegistryFlag = None,
    chain_id: ChainFlag = None,
    as_json: AsJson = False,
) -> Answer:
    """Take back a student that this node released. Final.

    \b
    genkd-node revoke runs/first/release/student-0x... --reason defective
    """  # noqa: D301
    from contracts.registry_access import registry_of
    from genkd.provenance.keys import open_keys
    from genkd.provenance.record import Revocation, RevocationReason

    settings = load_settings(keys=keys, rpc_url=rpc, registry=registry, chain_id=chain_id)
    record_id = _record_id(record)
    _, unlocked = open_keys(settings.keys, settings.key_password_file)
    client = registry_of(settings, unlocked)
    code = RevocationReason[reason.upper().replace("-", "_")]
    message = Revocation(record_id, code, unlocked.address)
    written = client.revoke(message, unlocked.sign(message, client.domain))
    lines = [f"{to_hex(record_id)} is revoked"]
    if written.already_there:
        lines = [
            f"{to_hex(record_id)} was revoked before",
            "(a stolen key's revocation is void once that key is removed: revoke again then)",
        ]
    return Answer(
        {"record_id": to_hex(record_id), "reason": reason, "before": written.already_there}, lines
    )


# ------------------------------------------------------------------ verifying


@app.command()
def verify(
    path: Release,
    rpc: Annotated[
        list[str] | None,
        typer.Option("--rpc", help="An Ethereum endpoint; several must agree."),
    ] = None,
    registry: RegistryFlag = None,
    chain_id: ChainFlag = None,
    confirmations: Annotated[
        str | None, typer.Option(help="finalized, safe, or a number of blocks.")
    ] = None,
    nodes: Annotated[
        list[str] | None, typer.Option("--node", help="Accept this node's students only.")
    ] = None,
    parents_in: Annotated[
        list[Path] | None,
        typer.Option(help="A folder with releases of parents, or their receipts."),
    ] = None,
    as_json: AsJson = False,
) -> Answer:
    """Check who made a student, from what, and whether the registry holds it: ten checks.

    \b
    genkd-node verify student-0x...
    genkd-node verify student.safetensors --rpc https://rpc.example --registry 0x5FbD...

    Exit code 0: valid. 1: not valid. 6: a check could not be made, which is never valid.
    """  # noqa: D301
    verification = _verify(path, rpc, registry, chain_id, confirmations, nodes, parents_in)
    status = verification.status.value
    return Answer(
        verification.to_json(),
        [*map(_check_line, verification.checks), verification.summary],
        exit_code=EXIT_CODES[status],
    )


def _check_line(check: Check) -> str:
    return f"{MARKS[check.outcome.value]}{check.number:>2} {check.name:<10} {check.detail}"


@app.command()
def lineage(
    path: Release,
    svg: Annotated[Path | None, typer.Option(help="Draw the tree into this file.")] = None,
    rpc: Annotated[list[str] | None, typer.Option("--rpc", help="As for verify.")] = None,
    registry: RegistryFlag = None,
    chain_id: ChainFlag = None,
    confirmations: Annotated[str | None, typer.Option(help="As for verify.")] = None,
    parents_in: Annotated[
        list[Path] | None,
        typer.Option(help="A folder with releases of parents, or their receipts."),
    ] = None,
    as_json: AsJson = False,
) -> Answer:
    """Show the students that a student was made from, up to the roots, each with its state.

    \b
    genkd-node lineage student-0x...
    genkd-node lineage student-0x... --svg lineage.svg
    """  # noqa: D301
    from genkd.durable import atomic_write
    from genkd.provenance.lineage import lineage_of, render_text
    from genkd.provenance.lineage_picture import render_svg

    verification = _verify(path, rpc, registry, chain_id, confirmations, None, parents_in)
    tree = lineage_of(verification)
    if svg is not None:
        atomic_write(svg, render_svg(tree).encode("utf-8"))
    exit_code = EXIT_CODES[verification.status.value]
    return Answer(tree.to_json(), render_text(tree).splitlines(), exit_code=exit_code)


def _verify(
    path: Path,
    rpc: list[str] | None,
    registry: str | None,
    chain_id: int | None,
    confirmations: str | None,
    nodes: list[str] | None,
    parents_in: list[Path] | None,
) -> Verification:
    from contracts.registry_access import reader_of
    from genkd.provenance import Policy
    from genkd.provenance import verify as verify_release

    settings = load_settings(registry=registry, chain_id=chain_id, confirmations=confirmations)
    urls = rpc or ([settings.rpc_url] if settings.rpc_url else [])
    domain, chain = reader_of(settings, urls)
    accepted = None if not nodes else frozenset(parse_address(one) for one in nodes)
    # A folder that was downloaded may hold a genkd.toml of its own.
    said_by = Settings.place_of("registry", registry=registry)
    policy = Policy(domain, nodes=accepted, said_by=said_by)
    return verify_release(path, policy=policy, chain=chain, parents_in=parents_in or ())
