"""`genkd-node join | status`: take part in a federation, and see how that goes."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from genkd.console import Answer, AsJson, printable, say
from genkd.errors import (
    ConfigurationError,
    CoordinatorUnreachable,
    GenKDError,
    RefusedByPolicy,
    Stopped,
    UsageError,
)
from genkd.layered_settings import ChainFlag, KeysFlag, RegistryFlag, RpcFlag
from genkd.signals import stop_signals
from node.settings import Settings, load_settings

if TYPE_CHECKING:
    from contracts.enrolment import FederationCard
    from genkd.provenance.profile import NodeProfile
    from node.answers import Answer as Answered
    from node.membership import Joined, Membership

app = typer.Typer()

SECONDS_BETWEEN_QUESTIONS = (2.0, 30.0)  # to a coordinator that has not decided: first and longest
SECONDS_FOR_STATUS = 5.0
ANSWERS_SHOWN = 10

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
    run_membership(folder.folder, settings)
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

    _, unlocked = open_keys(settings.keys, settings.key_password_file)
    answer = enrol(
        joined.coordinator,
        joined.fingerprint,
        profile,
        unlocked,
        folder.supernode_public_key(),
        folder.folder,
    )
    _check_card(folder, joined)
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
        raise RefusedByPolicy(
            f"the coordinator refuses this node: {printable(answer.reason) or 'no reason given'}",
            hint="ask its operator; 'genkd-node keys show' names what it must admit",
        )
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


def _check_card(folder: Membership, joined: Joined) -> None:
    """Say now what would only show as silence later.

    Raises:
        ConfigurationError: If the coordinator runs another app than the one installed here.
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


# ------------------------------------------------------------------ status


@app.command()
def status(membership: MembershipFlag = None, as_json: AsJson = False) -> Answer:
    """Show this node's part in its federation, and what to do next.

    \b
    genkd-node status

    Reads what is on the disk, and asks the coordinator whether it is there, for five seconds at
    most.
    """  # noqa: D301
    from node.membership import Membership

    settings = load_settings(membership=membership)
    folder = Membership(settings.membership.absolute())
    joined = folder.joined()
    if joined is None:
        raise ConfigurationError(
            f"there is no membership in {folder.folder}",
            hint="genkd-node join COORDINATOR --ca-fingerprint HEX --run NAME",
        )
    running = folder.running()
    reachable, reason = _reachable(folder, joined)
    runs = [_run_status(folder, run) for run in _runs(folder, joined)]
    answered = _answered(folder)
    data = {
        "membership": folder.folder,
        "node": joined.node,
        "state": joined.state,
        "coordinator": {
            "address": joined.coordinator,
            "fingerprint": joined.fingerprint,
            "reachable": reachable,
            "reason": reason,
        },
        "supernode": {
            "running": running is not None,
            "pid": running.pid if running else None,
            "state": running.supernode if running else "stopped",
            "since": running.since if running else None,
            "reason": running.reason if running else "",
        },
        "runs": runs,
        "answers": [_answer_json(one) for one in answered],
    }
    return Answer(data, _status_lines(data))


def _reachable(folder: Membership, joined: Joined) -> tuple[bool, str]:
    """Whether the coordinator answers, and why it does not."""
    from node.enrolment import ask_state

    try:
        said = ask_state(joined.coordinator, folder.folder, joined.node, timeout=SECONDS_FOR_STATUS)
    except GenKDError as error:
        return False, printable(error.message)
    if said.state != joined.state:
        return True, f"it says: {said.state} {printable(said.reason)}".rstrip()
    return True, ""


def _runs(folder: Membership, joined: Joined) -> Sequence[str]:
    """The runs of the policy, which may have been edited since."""
    from node.policy import Policy

    return Policy.load(folder.folder).runs if folder.policy.exists() else joined.runs


def _run_status(folder: Membership, run: str) -> dict[str, object]:
    """The newest shared student of a run, and the commands that come next."""
    from genkd.provenance.record import run_id_of
    from genkd.provenance.typed_data import to_hex
    from node.inbox import shared_students

    run_id = run_id_of(run)
    newest = [one for one in shared_students(folder.folder) if one.run_id == run_id][-1:]
    following = newest[0].round + 1 if newest else 1
    out = f"runs/{run}-{following}" if run.replace("-", "").isalnum() else f"runs/round-{following}"
    distill = ["genkd-node", "distill", "--teacher", "TEACHER", "--out", out]
    publish = ["genkd-node", "publish", out, "--run", run, "--round", str(following), "--for-round"]
    if newest:
        distill += ["--init-student", str(newest[0].student)]
        publish += ["--parent", str(newest[0].path)]
    return {
        "run": run,
        "run_id": to_hex(run_id),
        "shared": {"round": newest[0].round, "path": newest[0].path} if newest else None,
        "next": [shlex.join(distill), shlex.join(publish)],
    }


def _answered(folder: Membership) -> list[Answered]:
    from node.answers import AnswerLog

    return AnswerLog(folder.folder).recent(ANSWERS_SHOWN)


def _answer_json(answered: Answered) -> dict[str, object]:
    return {
        "kind": answered.kind,
        "run_id": f"0x{answered.run_id.hex()}",
        "round": answered.round,
        "record_id": f"0x{answered.record_id.hex()}" if answered.record_id else None,
        "sent_bytes": answered.sent_bytes,
        "outcome": printable(answered.outcome),
        "at": answered.at,
        "times": answered.times,
    }


def _status_lines(data: dict[str, Any]) -> list[str]:
    """The same for people."""
    coordinator, supernode = data["coordinator"], data["supernode"]
    answers = "answers" if coordinator["reachable"] else "does not answer"
    because = f": {coordinator['reason']}" if coordinator["reason"] else ""
    state = supernode["state"] if supernode["running"] else "not running"
    why = f": {supernode['reason']}" if supernode["reason"] else ""
    since = f" since {_time(supernode['since'])}" if supernode["since"] else ""
    lines = [
        f"node         {data['node']}, {data['state']}",
        f"coordinator  {coordinator['address']}, {answers}{because}",
        f"SuperNode    {state}{since}{why}",
    ]
    for run in data["runs"]:
        shared = run["shared"]
        lines.append(
            f"run          {printable(run['run'])}: "
            + (f"round {shared['round']} shared" if shared else "nothing shared yet")
        )
        lines += [f"  next       {command}" for command in run["next"]]
    for one in data["answers"]:
        times = f" ({one['times']} times)" if one["times"] > 1 else ""
        lines.append(
            f"  {_time(one['at'])}  {one['kind']} round {one['round']}: {one['outcome']}{times}"
        )
    return lines


def _time(seconds: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
