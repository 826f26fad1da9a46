"""`genkd-coordinator run | merge`: the rounds of a federation, and the merge by itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from coordinator.settings import FederationFlag, Settings
from genkd.console import Answer, AsJson, columns, say
from genkd.errors import VerificationFailed
from genkd.layered_settings import ChainFlag, KeysFlag, RegistryFlag, RpcFlag
from genkd.recipe import parse_overrides

if TYPE_CHECKING:
    from flwr.app import Context
    from flwr.serverapp import Grid

    from coordinator.run_archive import DoneRound

app = typer.Typer()

Method = Literal["distill", "fedavg", "trimmed", "krum"]
Rounds = Annotated[int, typer.Option(min=1, help="How many there are to be in all.")]
Nodes = Annotated[int, typer.Option(min=1, help="How many nodes are waited for.")]
Run = Annotated[str, typer.Option("--run", help="The run's name or id.")]
Merge = Annotated[Method, typer.Option("--merge", help="How students become one.")]
Student = Annotated[
    str | None, typer.Option(help="A model file, a card (.json), or an architecture's name.")
]
Quorum = Annotated[
    int | None,
    typer.Option(
        min=1, help="How many releases a merge needs.", show_default="over half, at least 3"
    ),
]
Wait = Annotated[str, typer.Option(help="How long a round waits: 90s, 20m, 1.5h, 7d.")]
Classes = Annotated[
    str | None, typer.Option(help="Their names with commas, or a file with one a line.")
]
Image = Annotated[str | None, typer.Option(help="What the student sees: CxHxW, as 1x32x32.")]
Mean = Annotated[str | None, typer.Option(help="Of its inputs in [0, 1].", show_default="0.5")]
Std = Annotated[str | None, typer.Option(help="Likewise.", show_default="0.25")]
Budget = Annotated[str | None, typer.Option(help="For one merge: 10m, 50000 samples.")]
Seed = Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Of everything that is drawn.")]
Device = Annotated[
    Literal["auto", "cpu", "cuda", "mps"], typer.Option(help="Where to compute the merge.")
]
Precision = Annotated[Literal["auto", "fp32", "bf16"], typer.Option(help="Of forward passes.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a recipe key.")
]


@app.command()
def run(
    rounds: Rounds,
    nodes: Nodes,
    run_name: Run,
    merge: Merge = "distill",
    student: Student = None,
    classes: Classes = None,
    image: Image = None,
    mean: Mean = None,
    std: Std = None,
    quorum: Quorum = None,
    wait: Wait = "1d",
    budget: Budget = None,
    seed: Seed = 0,
    device: Device = "auto",
    precision: Precision = "auto",
    overrides: Overrides = None,
    keys: KeysFlag = None,
    rpc: RpcFlag = None,
    registry: RegistryFlag = None,
    chain_id: ChainFlag = None,
    federation: FederationFlag = None,
    as_json: AsJson = False,
) -> Answer:
    """Collect students, merge, record and share them, round by round. Safe to repeat and to kill.

    \b
    genkd-coordinator run --run spring --rounds 2 --nodes 3 --student resnet8-half
        --classes shirt,trouser,shoe --image 1x32x32
    genkd-coordinator run --run spring --rounds 4 --nodes 3
    genkd-coordinator run --run spring --rounds 1 --nodes 50 --quorum 40 --wait 7d
        --merge trimmed --student start.safetensors

    Needs a running 'genkd-coordinator serve'. The same command goes on where it stopped; rounds
    that are done are not repeated. Exit code 75: stopped, for instance because fewer nodes than
    the quorum gave their student in time; nothing is lost.
    """  # noqa: D301
    from coordinator.flower_run import run_server_app
    from coordinator.run_request import RunRequest
    from genkd.provenance.keys import open_keys
    from genkd.signals import stop_signals

    settings = Settings.load(
        keys=keys, rpc_url=rpc, registry=registry, chain_id=chain_id, federation=federation
    )
    request = RunRequest(
        run=run_name,
        rounds=rounds,
        nodes=nodes,
        merge=merge,
        student=student,
        classes=classes,
        image=image,
        mean=mean,
        std=std,
        quorum=quorum,
        wait=wait,
        budget=budget,
        seed=seed,
        device=device,
        precision=precision,
        overrides=parse_overrides(overrides or []),
    )
    for read in (request.plan, request.start):
        read()  # what is wrong with it is said before a passphrase is asked for
    unlocked = open_keys(settings.keys, settings.key_password_file)

    def main(grid: Grid, context: Context) -> list[DoneRound]:
        from coordinator.server_app import run_rounds

        return run_rounds(grid, settings, request, *unlocked, lambda: stop_signals(say))

    # Every step may be cut off anywhere, so a signal ends it at once; but a merge ends a round of
    # its training first, which would else be lost.
    with stop_signals(say):
        done = run_server_app(settings.federation, main)
    return _answer(done)


def _answer(done: Sequence[DoneRound]) -> Answer:
    from genkd.provenance.typed_data import to_hex

    rounds = [
        {
            "round": one.number,
            "release": one.release,
            "record_id": to_hex(one.record_id),
            "members": one.members,
        }
        for one in done
    ]
    last = done[-1]
    rows = {
        "rounds": last.number,
        "student": last.release,
        "merged from": f"{last.members} students",
    }
    return Answer({"rounds": rounds}, columns(rows))


@app.command()
def merge(
    releases: Annotated[
        list[Path], typer.Argument(help="Releases, or folders of them.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(help="The folder to work in.")],
    method: Annotated[Method, typer.Option(help="How students become one.")] = "distill",
    student: Annotated[
        str | None,
        typer.Option(
            help="What comes out: as for run.",
            show_default="what the first is, with the classes of all",
        ),
    ] = None,
    classes: Classes = None,
    image: Image = None,
    mean: Mean = None,
    std: Std = None,
    budget: Budget = None,
    seed: Seed = 0,
    device: Device = "auto",
    precision: Precision = "auto",
    overrides: Overrides = None,
    fresh: Annotated[
        bool, typer.Option("--fresh/--resume", help="Start anew, or go on with what is in --out.")
    ] = False,
    as_json: AsJson = False,
) -> Answer:
    """Merge the students of releases into one file, with no federation and no chain.

    \b
    genkd-coordinator merge releases/ --out merged --student resnet8-half
        --classes shirt,trouser,shoe --image 1x32x32
    genkd-coordinator merge a/student-0x... b/student-0x... --out merged --method fedavg

    Each release's signatures are checked, whether it is recorded is not: genkd-node verify.
    """  # noqa: D301
    from coordinator.merging import MergeMethod, MergePlan, merge_releases
    from coordinator.rounds import releases_in
    from coordinator.start_student import student_of_flags
    from genkd.signals import stop_signals

    found = releases_in(releases)
    start = student_of_flags(student, classes=classes, image=image, mean=mean, std=std)
    for path in found:
        _require_signed(path)
    weights = Path(student) if start is not None and start.weights and student else None
    plan = MergePlan(
        MergeMethod(method),
        None if start is None else start.card,
        start=weights,
        seed=seed,
        budget=budget,
        device=device,
        precision=precision,
        overrides=parse_overrides(overrides or []),
    )
    merged = merge_releases(
        found,
        out,
        plan,
        fresh=fresh,
        interruptible=lambda: stop_signals(say),
        on_progress=lambda fraction, eta: say(f"merging, {fraction:.0%}"),
    )
    rows = {"student": merged.student, "merged from": f"{len(found)} students", "method": method}
    data = {"student": merged.student, "members": found, "recipe": dict(merged.recipe)}
    return Answer(data | {"evaluation": dict(merged.evaluation)}, columns(rows))


def _require_signed(path: Path) -> None:
    from genkd.provenance import verify

    verification = verify(path)
    if not verification.signed:
        raise VerificationFailed(
            f"{path} is {verification.summary}", hint="leave it out, or ask its node for another"
        )
