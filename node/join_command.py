"""`genkd-node join`: take part in a federation."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from genkd.console import Answer, AsJson, say
from genkd.errors import (
    ConfigurationError,
    CoordinatorUnreachable,
    Stopped,
    UsageError,
)
from genkd.layered_settings import ChainFlag, KeysFlag, RegistryFlag, RpcFlag
from genkd.signals import stop_signals
from node.settings import Settings, load_settings

if TYPE_CHECKING:
    from contracts.enrolment import FederationCard
    from genkd.provenance.profile import NodeProfile
    from node.membership import Joined, Membership

app = typer.Typer()

SECONDS_BETWEEN_QUESTIONS = (2.0, 30.0)  # to a coordinator that has not decided: first and longest

MembershipFlag = Annotated[
    Path | None, typer.Option("--membership", help="The folder of this membership.")
]


@app.command()
def join(
    coordinator: Annotated[str, typer.Argument(help="Its address, host:port.", show_default=False)],
    fingerprint: Annotated[
        str,
        typer.Option(
            "--ca-fingerprint",
            help="Of the coordinator's authority, as 'genkd-coordinator init' shows it.",
            show_default=False,
        ),
    ],
    runs: Annotated[
        list[str] | None, typer.Option("--run", help="A run to take part in; may be repeated.")
    ] = None,
    membership: MembershipFlag = None,
    no_wait: Annotated[
        bool, typer.Option("--no-wait", help="Ask to be admitted, and end: exit code 75.")
    ] = False,
    keys: KeysFlag = None,
    rpc: RpcFlag = None,
    registry: RegistryFlag = None,
    chain_id: ChainFlag = None,
    as_json: AsJson = False,
) -> Answer:
    """Join a federation, and answer its coordinator until SIGTERM or Ctrl-C.

    \b
    genkd-node join federation.example:9092 --ca-fingerprint 5f3c... --run spring
    genkd-node join federation.example:9092 --ca-fingerprint 5f3c... --run spring --no-wait

    Only finished, signed releases of this node go out, and only as far as policy.toml in the
    membership's folder allows. Nothing that a coordinator sends is run. Repeat the command to go
    on: once admitted, it asks for no passphrase and starts while the coordinator is away, too.
    """  # noqa: D301 (click wants the \b itself)
    settings = load_settings(
        membership=membership, keys=keys, rpc_url=rpc, registry=registry, chain_id=chain_id
    )
    from contracts.authority import parse_fingerprint
    from genkd.provenance.keys import KeyFolder
    from node.enrolment import parse_coordinator
    from node.membership import Joined, Membership
    from node.removal_watch import RemovalWatch
    from node.supernode import run_membership

    parse_coordinator(coordinator)
    address = coordinator.strip().removeprefix("https://").removesuffix("/")
    named = tuple(runs or ([settings.run] if settings.run else []))
    profile = KeyFolder(settings.keys).profile()
    folder = Membership.open(settings.membership)
    joined = _joined(folder, Joined(address, parse_fingerprint(fingerprint), profile.node, named))
    folder.make_secrets()
    if joined.state != "admitted":
        with stop_signals(say):
            joined = _become_admitted(folder, joined, profile, settings, wait=not no_wait)
    _write_policy(folder, joined, settings)
    say(f"answering as {joined.node}; what goes out is ruled by {folder.policy}")
    watch = RemovalWatch(folder, joined)
    with watch:
        run_membership(folder.folder, settings)
    watch.require_member()
    data = {"membership": folder.folder, "node": joined.node, "coordinator": joined.coordinator}
    return Answer(data, ["ended"])


def _joined(folder: Membership, wanted: Joined) -> Joined:
    """What the folder says, if it is of the same coordinator, and what was asked for otherwise.

    Raises:
        ConfigurationError: If it is another federation's.
        UsageError: If it is new, and no run is named.
    """
    known = folder.joined()
    if known is None or known.node != wanted.node:  # new, or the node's key was rotated
        if not wanted.runs:
            raise UsageError(
                "which runs this node takes part in is not said", hint="give --run NAME"
            )
        return wanted
    if known.fingerprint != wanted.fingerprint:
        raise ConfigurationError(
            f"{folder.folder} belongs to the federation with the fingerprint {known.fingerprint}",
            hint="give that fingerprint, or name another folder with --membership",
        )
    runs = wanted.runs or known.runs
    if known.state == "admitted" and set(runs) != set(known.runs):
        say(f"the runs are those of {folder.policy}: add others there")
        runs = known.runs
    joined = replace(known, coordinator=wanted.coordinator, runs=runs)
    if joined != known:  # the coordinator has moved
        folder.remember(joined)
    return joined


def _become_admitted(
    folder: Membership, joined: Joined, profile: NodeProfile, settings: Settings, *, wait: bool
) -> Joined:
    """Ask to be let in, and wait for the answer.

    Raises:
        Stopped: If there is none yet, and nobody wants to wait.
        RefusedByPolicy: If it is a refusal.
    """
    from genkd.provenance.keys import open_keys
    from node.enrolment import enrol
    from node.removal_watch import refusal

    _, unlocked = open_keys(settings.keys, settings.key_password_file)
    answer = enrol(
        joined.coordinator,
        joined.fingerprint,
        profile,
        unlocked,
        folder.supernode_public_key(),
        folder.folder,
    )
    _check_card(folder, joined, settings)
    if answer.state == "pending":
        folder.remember(joined)
        admit = f"genkd-coordinator admit {joined.node}"
        if not wait:
            raise Stopped(
                f"{joined.coordinator} has the request, and has not decided yet",
                hint=f"its operator runs '{admit}'; then repeat the same command",
            )
        say(f"waiting for the coordinator's operator to run: {admit}")
        answer = _decision(folder, joined)
    if answer.state == "refused":
        folder.remember(joined.with_state("refused"))
        raise refusal(answer.reason)
    admitted = joined.with_state("admitted")
    folder.remember(admitted)
    say("admitted")
    return admitted


def _decision(folder: Membership, joined: Joined) -> Any:
    """The coordinator's answer, once it is not `pending` any more."""
    from node.enrolment import ask_state

    pause, longest = SECONDS_BETWEEN_QUESTIONS
    away = False
    while True:
        time.sleep(pause)
        pause = min(longest, 1.5 * pause)
        try:
            answer = ask_state(joined.coordinator, folder.folder, joined.node)
        except CoordinatorUnreachable as error:
            if not away:
                say(f"{error.message}; asking again until it does")
            away = True
            continue
        away = False
        if answer.state != "pending":
            return answer


def _card(folder: Membership) -> FederationCard | None:
    from node.federation_registry import read_card

    return read_card(folder.folder)


def _check_card(folder: Membership, joined: Joined, settings: Settings) -> None:
    """Say now what would only show as silence later.

    Raises:
        ConfigurationError: If the coordinator runs another app than the one installed here, or the
            federation is on another chain or registry than this node trusts.
    """
    from contracts.app_bundle import app_bundle_sha256

    card = _card(folder)
    if card is None:
        return
    if card.app_sha256 != app_bundle_sha256():
        raise ConfigurationError(
            "the coordinator's app is of another version than this program's",
            hint="install the version of genkd-node that the coordinator names",
        )
    trusted = (settings.chain_id or card.chain_id, settings.registry or card.registry)
    if (trusted[0], trusted[1].lower()) != (card.chain_id, card.registry.lower()):
        raise ConfigurationError(
            f"the federation is on chain {card.chain_id}, registry {card.registry}; this node "
            f"trusts chain {trusted[0]}, registry {trusted[1]}",
            hint="correct chain_id and registry in genkd.toml, GENKD_* or the flags, "
            "if the federation's are the ones you were told",
        )
    if missing := [run for run in joined.runs if run not in card.runs]:
        open_runs = ", ".join(card.runs) or "none"
        say(f"not open at the coordinator yet: {', '.join(missing)} (open: {open_runs})")


def _write_policy(folder: Membership, joined: Joined, settings: Settings) -> None:
    """Write the policy if there is none; read it, so that a mistake in it shows now.

    Raises:
        ConfigurationError: If it cannot be used.
    """
    from contracts.app_bundle import app_bundle_sha256
    from genkd.durable import atomic_write
    from node.policy import Policy, default_policy_text

    installed = app_bundle_sha256()
    if not folder.policy.exists():
        text = default_policy_text(
            node=joined.node,
            runs=joined.runs,
            app_sha256=installed,
            releases=[settings.runs.absolute()],
        )
        atomic_write(folder.policy, text.encode())
    policy = Policy.load(folder.folder)
    if policy.node != joined.node:
        raise ConfigurationError(
            f"{folder.policy} is for {policy.node}, the keys are those of {joined.node}",
            hint="correct node there: only releases of that address go out",
        )
    if installed not in policy.app_sha256:
        raise ConfigurationError(
            f"{folder.policy} does not allow the app that is installed here, {installed}",
            hint="add it to app_sha256 there, if this version is the one you want to run",
        )
