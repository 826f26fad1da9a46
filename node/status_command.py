"""`genkd-node status`: this node's part in a federation, and what comes next."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import typer

from genkd.console import Answer, AsJson, printable
from genkd.errors import ConfigurationError, GenKDError
from node.join_command import MembershipFlag
from node.settings import load_settings

if TYPE_CHECKING:
    from pathlib import Path

    from node.answers import Answer as Answered
    from node.membership import Joined, Membership

app = typer.Typer()

SECONDS_FOR_STATUS = 5.0
ANSWERS_SHOWN = 10


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
    from node.answers import AnswerLog
    from node.inbox import shared_students

    run_id = run_id_of(run)
    newest = [one for one in shared_students(folder.folder) if one.run_id == run_id][-1:]
    following = newest[0].round + 1 if newest else 1
    out = f"runs/{run}-{following}" if run.replace("-", "").isalnum() else f"runs/round-{following}"
    refused = AnswerLog(folder.folder).refusal(run_id, following)
    distill = ["genkd-node", "distill", "--teacher", "TEACHER"]
    publish = ["genkd-node", "publish", out, "--run", run, "--round", str(following), "--for-round"]
    if newest:
        distill += [*_student_option(newest[0].student), "--init-student", str(newest[0].student)]
        if newest[0].round > 0:  # the start student of round 0 knows nothing that could be lost
            distill += ["--recipe", "continue"]
        publish += ["--parent", str(newest[0].path)]
    distill += ["--out", out]
    return {
        "run": run,
        "run_id": to_hex(run_id),
        "shared": {"round": newest[0].round, "path": newest[0].path} if newest else None,
        "refused": None if refused is None else _answer_json(refused),
        "next": [shlex.join(distill), shlex.join(publish)],
    }


def _student_option(student: Path) -> list[str]:
    """Which architecture to distil into: that of the shared student, for they start from it."""
    from genkd.weights import STUDENT_FILE, read_card, read_header

    try:
        card = read_card(read_header(student, STUDENT_FILE))
    except GenKDError:  # damaged since it was verified; `distill` says so
        return []
    return [] if card is None else ["--student", card.spec.architecture]


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
        if run["refused"]:
            lines += [
                f"  refused    round {run['refused']['round']}: {run['refused']['outcome']}",
                "             put that right, then publish again; another release is asked for",
            ]
        lines += [f"  next       {command}" for command in run["next"]]
    for one in data["answers"]:
        times = f" ({one['times']} times)" if one["times"] > 1 else ""
        lines.append(
            f"  {_time(one['at'])}  {one['kind']} round {one['round']}: {one['outcome']}{times}"
        )
    return lines


def _time(seconds: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
