"""`genkd-node init | keys show | keys rotate`: the keys that sign for this node."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from genkd.console import Answer, AsJson, columns
from genkd.errors import InputFileRefused
from genkd.layered_settings import ChainFlag, KeysFlag, RegistryFlag, RpcFlag
from genkd.provenance.typed_data import to_hex
from node.settings import load_settings

if TYPE_CHECKING:
    from contracts.registry import RegistryClient
    from genkd.provenance.keys import KeyFolder
    from genkd.provenance.node_keys import NodeKeys
    from genkd.provenance.profile import NodeProfile

app = typer.Typer()
keys_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
app.add_typer(keys_app, name="keys", help="Show or replace this node's keys.")

SECONDS_TO_DEADLINE = 24 * 3600
NextFolder = Annotated[
    Path | None,
    typer.Option("--next-key-folder", help="Where the next key is kept, such as a USB stick."),
]


@app.command()
def init(
    keys: KeysFlag = None,
    next_key_folder: NextFolder = None,
    tls_certificate: Annotated[
        Path | None, typer.Option(help="The node's TLS certificate, PEM: its print is signed too.")
    ] = None,
    as_json: AsJson = False,
) -> Answer:
    """Make this node's keys and its profile. Keys that are there are never overwritten.

    \b
    genkd-node init
    GENKD_KEY_PASSWORD_FILE=passphrase.txt genkd-node init --next-key-folder /media/stick
    """  # noqa: D301 (click wants the \b itself)
    from genkd.provenance.keys import KeyFolder
    from genkd.provenance.passphrase import find_passphrase

    settings = load_settings(keys=keys)
    folder = KeyFolder(settings.keys)
    folder.require_absent()
    fingerprint = bytes(32) if tls_certificate is None else _fingerprint(tls_certificate)
    passphrase = find_passphrase(settings.key_password_file, ask=True, confirm=True)
    profile = folder.create(passphrase, tls_fingerprint=fingerprint, next_folder=next_key_folder)
    next_folder = next_key_folder or folder.next_folder
    rows = _profile_rows(profile, folder) | {"next key": f"{next_folder} (keep it elsewhere)"}
    return Answer(_profile_json(profile, folder) | {"next_key": next_folder}, columns(rows))


def _fingerprint(certificate: Path) -> bytes:
    """sha256 of a certificate in DER."""
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding

    try:
        data = x509.load_pem_x509_certificate(certificate.read_bytes()).public_bytes(Encoding.DER)
    except (OSError, ValueError) as error:
        raise InputFileRefused(
            f"{certificate} is no certificate that can be read",
            hint="give the node's own certificate as a PEM file",
        ) from error
    return hashlib.sha256(data).digest()


@keys_app.command()
def show(keys: KeysFlag = None, as_json: AsJson = False) -> Answer:
    """Show the public side of this node's keys; asks for no passphrase.

    \b
    genkd-node keys show
    """  # noqa: D301
    from genkd.provenance.keys import KeyFolder

    folder = KeyFolder(load_settings(keys=keys).keys)
    profile = folder.profile()
    return Answer(_profile_json(profile, folder), columns(_profile_rows(profile, folder)))


@keys_app.command()
def rotate(
    keys: KeysFlag = None,
    next_key_folder: NextFolder = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="No registry knows this node yet.")
    ] = False,
    rpc: RpcFlag = None,
    registry: RegistryFlag = None,
    chain_id: ChainFlag = None,
    as_json: AsJson = False,
) -> Answer:
    """Let the next key take over, on the chain and then here.

    \b
    genkd-node keys rotate
    genkd-node keys rotate --next-key-folder /media/stick

    The old key does not sign: it may be lost or stolen. It pays, unless the new one's account holds
    ether already. After a theft, rotate first, then have the coordinator remove the old key.
    """  # noqa: D301
    settings = load_settings(keys=keys, rpc_url=rpc, registry=registry, chain_id=chain_id)
    from genkd.provenance.keys import KeyFolder
    from genkd.provenance.passphrase import find_passphrase

    folder = KeyFolder(settings.keys)
    old = folder.profile()
    passphrase = find_passphrase(settings.key_password_file, ask=True)
    new = folder.prepare_rotation(passphrase, next_folder=next_key_folder)
    if not offline:
        from contracts.registry_access import registry_of

        client = registry_of(settings, new)
        if not client.state.rpc.quantity("eth_getBalance", new.address, "latest"):
            client = registry_of(settings, folder.unlock(passphrase, old.node))
        _rotate_on_chain(client, old.node, new)
    folder.switch_to(new.address)
    rows = {"was": old.node} | _profile_rows(new.profile, folder)
    rows["account"] = f"{new.address} pays from now on: send it some ether"
    return Answer({"old": old.node} | _profile_json(new.profile, folder), columns(rows))


def _rotate_on_chain(client: RegistryClient, old_address: str, new: NodeKeys) -> None:
    from genkd.provenance.record import Rotation

    rotation = Rotation(
        old_address,
        new.address,
        new.profile.message.next_key_hash,
        new.profile.profile_hash(),
        client.state.head("latest").timestamp + SECONDS_TO_DEADLINE,
    )
    client.rotate(rotation, new.sign(rotation, client.domain))


def _profile_rows(profile: NodeProfile, folder: KeyFolder) -> dict[str, object]:
    return {
        "node": profile.node,
        "signing key": profile.message.signing_key.hex(),
        "public key": folder.public_key_path(profile.node),
        "profile": f"{folder.profile_path(profile.node)} (give it to the coordinator)",
    }


def _profile_json(profile: NodeProfile, folder: KeyFolder) -> dict[str, object]:
    return {
        "node": profile.node,
        "signing_key": profile.message.signing_key.hex(),
        "public_key": folder.public_key_path(profile.node),
        "profile": folder.profile_path(profile.node),
        "profile_hash": to_hex(profile.profile_hash()),
    }
