"""`genkd-coordinator init`: the coordinator's keys, its authority, its server's certificate."""

from __future__ import annotations

from typing import Annotated

import typer

from coordinator.settings import FederationFlag, Settings
from genkd.console import Answer, AsJson, columns
from genkd.layered_settings import KeysFlag

app = typer.Typer()


@app.command()
def init(
    host: Annotated[
        list[str] | None,
        typer.Option(
            help="A name or address by which nodes reach this machine; may be repeated.",
            show_default="this machine's name",
        ),
    ] = None,
    keys: KeysFlag = None,
    federation: FederationFlag = None,
    as_json: AsJson = False,
) -> Answer:
    """Make the coordinator's keys, its certificate authority and its server's certificate.

    \b
    genkd-coordinator init --host federation.example --host 10.0.0.7

    Keys and authority that are there are never overwritten. Repeating it with --host issues the
    server's certificate again, for these names, under the same authority.
    """  # noqa: D301
    from coordinator.certificates import AUTHORITY, SERVER, Authority, default_names, parse_names
    from coordinator.federation_card import join_line
    from genkd.provenance.keys import CURRENT, KeyFolder
    from genkd.provenance.passphrase import find_passphrase

    settings = Settings.load(keys=keys, federation=federation)
    parse_names(host or [])
    folder = KeyFolder(settings.keys)
    is_complete = all((settings.federation / name).exists() for name in (AUTHORITY, SERVER))
    if is_complete and not host:
        folder.require_absent()
    if (settings.keys / CURRENT).exists():
        profile = folder.profile()
    else:
        profile = folder.create(find_passphrase(settings.key_password_file, ask=True, confirm=True))
    authority = Authority.create(settings.federation)
    if host or not is_complete:
        authority.issue(host or default_names())
    names = authority.server_names()
    line = join_line(authority, settings.port)
    rows = {
        "coordinator": profile.node,
        "keys": settings.keys,
        "federation": settings.federation,
        "server": ", ".join(names),
        "fingerprint": authority.fingerprint,
        "nodes join by": line,
    }
    return Answer(
        {
            "address": profile.node,
            "keys": settings.keys,
            "federation": settings.federation,
            "names": names,
            "ca_fingerprint": authority.fingerprint,
            "join": line,
        },
        columns(rows),
    )
