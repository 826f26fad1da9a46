"""What the coordinator tells strangers about its federation, from its settings and open runs.

card = card_of(settings)
note_run(federation, "spring")              # by `open-run`: the chain knows its id only
"""

from __future__ import annotations

import shlex
import urllib.parse
from pathlib import Path
from typing import Final

from contracts.app_bundle import app_bundle_sha256
from contracts.enrolment import MAX_RUN_CHARACTERS, MAX_RUNS, FederationCard
from contracts.json_rpc import LOOPBACK
from contracts.registry_access import trusted_domain
from coordinator.certificates import Authority, make_private_folder
from coordinator.settings import Settings
from genkd.canonical import canonical_json, parse_json
from genkd.durable import atomic_write
from genkd.errors import ConfigurationError, UsageError
from genkd.provenance.keys import KeyFolder

RUNS_FILE: Final = "runs.json"
MAX_FILE_BYTES = 256 * 1024


def card_of(settings: Settings) -> FederationCard:
    """The federation's card as it is now.

    Raises:
        ConfigurationError: If the settings do not say which registry counts.
        KeyOrSignatureError: If the coordinator has no keys.
    """
    domain = trusted_domain(settings)
    return FederationCard(
        coordinator=KeyFolder(settings.keys).profile().node,
        chain_id=domain.chain_id,
        registry=domain.contract,
        rpc_url=endpoint_for_nodes(settings),
        confirmations=settings.confirmations,
        app_sha256=app_bundle_sha256(),
        runs=run_names(settings.federation),
    )


def endpoint_for_nodes(settings: Settings) -> str | None:
    """The Ethereum endpoint that nodes are told of, None if they must have one of their own.

    `public_rpc_url` if it is set. Otherwise the coordinator's own, unless it may hold a provider's
    key (anything besides scheme, host and port), or is on loopback while nodes of other machines
    may join: they would ask themselves.
    """
    if settings.public_rpc_url or settings.rpc_url is None:
        return settings.public_rpc_url
    try:
        parts = urllib.parse.urlsplit(settings.rpc_url)
    except ValueError:
        return None
    if parts.path not in ("", "/") or parts.query or parts.fragment or "@" in parts.netloc:
        return None
    one_machine = settings.host in LOOPBACK
    return settings.rpc_url if one_machine or parts.hostname not in LOOPBACK else None


def join_line(authority: Authority, port: int, run: str | None = None) -> str:
    """What a person types at a node to join.

    Args:
        authority: The federation's.
        port: Where nodes reach the server; 0 if that is not known yet.
        run: The name of a run; None leaves it open.
    """
    host = next(iter(authority.server_names()), "HOST")
    place = f"[{host}]" if ":" in host else host
    return (
        f"genkd-node join {place}:{port or 'PORT'} --ca-fingerprint {authority.fingerprint} "
        f"--run {shlex.quote(run) if run else 'NAME'}"
    )


def run_names(federation: Path) -> tuple[str, ...]:
    """The names of the runs that were opened.

    Raises:
        ConfigurationError: If the file of them is damaged.
    """
    path = federation / RUNS_FILE
    try:
        with path.open("rb") as file:
            value = parse_json(file.read(MAX_FILE_BYTES))
        if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
            raise ValueError("it is no list of names")
    except FileNotFoundError:
        return ()
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"{path} cannot be read: {error}", hint="delete it, and open the runs again"
        ) from error
    return tuple(value)


def note_run(federation: Path, name: str) -> None:
    """Add a run to those that nodes are told of; the oldest goes where there are too many.

    Raises:
        UsageError: As `require_run_name`.
        ResourceExhausted: If the folder cannot be written.
    """
    require_run_name(name)
    names = [known for known in run_names(federation) if known != name]
    make_private_folder(federation)
    atomic_write(federation / RUNS_FILE, canonical_json([*names, name][-MAX_RUNS:]))


def require_run_name(name: str) -> None:
    """Refuse the name of a run that nodes could not be told.

    Raises:
        UsageError: If it is empty, too long, or not printable.
    """
    if not name.isprintable() or not 0 < len(name) <= MAX_RUN_CHARACTERS:
        raise UsageError(
            f"the name of a run has 1 to {MAX_RUN_CHARACTERS} printable characters",
            hint="choose another name",
        )
