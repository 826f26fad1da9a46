"""`genkd-coordinator status`: how it stands with the rounds and with each node."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from coordinator.settings import FederationFlag, Settings
from genkd.console import Answer, AsJson, columns

if TYPE_CHECKING:
    from coordinator.federation_status import FederationStatus, NodeStatus, RoundStatus
    from coordinator.store import Submission

app = typer.Typer()

REFUSED_SHOWN = 2


@app.command()
def status(
    run: Annotated[
        str | None, typer.Option(help="Only this run: its name or id.", show_default="all")
    ] = None,
    round_number: Annotated[
        int | None,
        typer.Option(
            "--round",
            min=0,
            max=2**32 - 1,
            help="What nodes sent in this round.",
            show_default="the newest",
        ),
    ] = None,
    federation: FederationFlag = None,
    as_json: AsJson = False,
) -> Answer:
    """Show the rounds, and each node: when it was seen, what it sent, what became of it.

    \b
    genkd-coordinator status
    genkd-coordinator status --run spring --round 2 --json

    Reads the federation's folder; it may run beside 'serve' and 'run', and changes nothing.
    """  # noqa: D301
    from coordinator.federation_card import run_names
    from coordinator.federation_status import read_status
    from genkd.provenance.record import run_id_of

    settings = Settings.load(federation=federation)
    run_id = None if run is None else run_id_of(run)
    found = read_status(settings.federation, run_id=run_id, number=round_number)
    names = {run_id_of(name): name for name in (*run_names(settings.federation), run) if name}
    return Answer(_data(found, names), _lines(found, names))


def _data(found: FederationStatus, names: dict[bytes, str]) -> dict[str, object]:
    return {
        "superlink": found.superlink,
        "rounds": [_round_data(one, names) for one in found.rounds],
        "nodes": [
            {
                "node": node.node,
                "join": node.join,
                "connected": node.connected,
                "last_seen": node.last_seen,
                "submissions": [_submission_data(one) for one in node.submissions],
            }
            for node in found.nodes
        ],
        "unsigned": [_submission_data(one) for one in found.unsigned],
    }


def _round_data(one: RoundStatus, names: dict[bytes, str]) -> dict[str, object]:
    found = one.round
    return {
        "run_id": f"0x{found.run_id.hex()}",
        "run": names.get(found.run_id),
        "round": found.number,
        "state": found.state.value,
        "accepted": one.accepted,
        "refused": one.refused,
        "merged": None if found.merged is None else f"0x{found.merged.hex()}",
        "began_at": found.began_at,
        "merged_at": found.merged_at,
        "committed_at": found.committed_at,
        "shared_at": found.shared_at,
    }


def _submission_data(one: Submission) -> dict[str, object]:
    return {
        "run_id": f"0x{one.run_id.hex()}",
        "round": one.round,
        # Flower's numbers go beyond what JSON reads exactly.
        "sender": str(one.sender),
        "record_id": f"0x{one.record_id.hex()}" if one.record_id else None,
        "accepted": one.accepted,
        "reason": one.reason,
        "received_at": one.received_at,
        "bytes": one.size,
        "path": one.path,
    }


def _lines(found: FederationStatus, names: dict[bytes, str]) -> list[str]:
    now = time.time()
    lines = columns({"superlink": found.superlink or "none serves: genkd-coordinator serve"})
    lines += [_round_line(one, names) for one in found.rounds]
    if not found.rounds:
        lines.append("no round has begun: genkd-coordinator run")
    for node in found.nodes:
        lines.append(f"{node.node}  {_presence(node, now)}")
        lines += _submission_lines(node, names)
        missing = [place for place in found.shown if place not in _places(node)]
        lines += [
            f"  {_run_name(run_id, names)}, round {number}: nothing sent"
            for run_id, number in missing
            if number > 0 and node.join in (None, "admitted")
        ]
    if not found.nodes:
        lines.append("no node has asked to join")
    for one in found.unsigned:
        lines.append(
            f"from Flower node {one.sender}, signed by nobody: {_submission_line(one, names)}"
        )
    return lines


def _round_line(one: RoundStatus, names: dict[bytes, str]) -> str:
    found = one.round
    times = (found.shared_at, found.committed_at, found.merged_at, found.began_at)
    since = next(when for when in times if when is not None)
    line = f"{_run_name(found.run_id, names)}, round {found.number}: {found.state.value}"
    line += f" since {datetime.fromtimestamp(since, UTC):%Y-%m-%d %H:%M:%S} UTC"
    if found.number > 0:
        line += f", {one.accepted} accepted, {one.refused} refused"
    return line if found.merged is None else f"{line}, merged student 0x{found.merged.hex()}"


def _presence(node: NodeStatus, now: float) -> str:
    parts = [] if node.join in (None, "admitted") else [str(node.join)]
    if node.connected is not None:
        parts.append("connected" if node.connected else "not connected")
    seen = "never seen" if node.last_seen is None else f"seen {_ago(now - node.last_seen)} ago"
    return ", ".join([*parts, seen])


def _submission_lines(node: NodeStatus, names: dict[bytes, str]) -> list[str]:
    """What counts, and the newest of what was refused; all of it is in the JSON."""
    refused = [one for one in node.submissions if not one.accepted]
    shown = [one for one in node.submissions if one.accepted] + refused[-REFUSED_SHOWN:]
    lines = [f"  {_submission_line(one, names)}" for one in shown]
    more = len(refused) - REFUSED_SHOWN
    return [*lines, f"  and {more} more refused"] if more > 0 else lines


def _submission_line(one: Submission, names: dict[bytes, str]) -> str:
    what = f"accepted 0x{one.record_id.hex()}" if one.accepted else f"refused: {one.reason}"
    return f"{_run_name(one.run_id, names)}, round {one.round}: {what}"


def _places(node: NodeStatus) -> set[tuple[bytes, int]]:
    return {(one.run_id, one.round) for one in node.submissions}


def _run_name(run_id: bytes, names: dict[bytes, str]) -> str:
    return names.get(run_id, f"0x{run_id.hex()[:16]}…")


def _ago(seconds: float) -> str:
    """`90` as `1 min`."""
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{int(seconds // size)} {unit}"
    return f"{max(0, int(seconds))} s"
