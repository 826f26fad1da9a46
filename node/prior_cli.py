"""`genkd-prior`: trains generative models on public images, and shows what they draw.

    genkd-prior train --family vae --images fashion-mnist/ --out priors/vae

It is a program of its own beside `genkd-node`, because it reads images: the user's own, public
ones. A node reads none; it takes the file that comes out, with `genkd-node distill --prior`.
Importing this module loads neither torch nor anything else heavy.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
import typer.core

from genkd import console
from genkd.console import Answer, AsJson, columns, say
from genkd.errors import UsageError
from genkd.generative_card import Family, GenerativeCard
from genkd.recipe import Budget
from genkd.signals import stop_signals
from node.progress import duration, progress_display
from node.settings import DeviceFlag, load_settings

if TYPE_CHECKING:
    from genkd.dgm.training import TrainedPrior
    from genkd.train import Progress

PROGRAM = "genkd-prior"
DEFAULT_BUDGET = "10m"
# Small, because budgets are: more dimensions need longer until N(0, I) is filled.
DEFAULT_LATENT_DIM = 16
DEFAULT_WIDTH = 16
# Plain help, as in `node.cli`.
typer.core.HAS_RICH = False
app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    suggest_commands=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def genkd_prior(
    version: console.VersionFlag = False,
) -> None:
    """Train a generative model on public images, as a prior for distilling.

    \b
    genkd-prior train --family vae --images fashion-mnist/ --out priors/vae
    genkd-prior sample priors/vae/prior.safetensors --out grid.png
    """  # noqa: D301 (click wants the \b itself)


@app.command(
    epilog="The same command on the same --out resumes. Ctrl-C and SIGTERM keep the checkpoint."
)
def train(
    family: Annotated[Family, typer.Option(help="Which kind of generative model.")],
    images: Annotated[
        str,
        typer.Option(
            help="Public images: .npz, idx files (train-*), FOLDER/CLASS/*.png, or"
            " torchvision:NAME:FOLDER."
        ),
    ],
    out: Annotated[Path, typer.Option(help="The folder to train in, and for prior.safetensors.")],
    fresh: Annotated[
        bool, typer.Option("--fresh/--resume", help="Start anew, or go on with what is in --out.")
    ] = False,
    budget: Annotated[
        str, typer.Option(help="What to spend: 10m, 600core-seconds, 1e6samples.")
    ] = DEFAULT_BUDGET,
    checkpoints: Annotated[
        int, typer.Option(min=0, max=999, help="Models to write on the way: prior-001, ...")
    ] = 0,
    size: Annotated[
        str | None, typer.Option(help="Fit the images to HxW.", show_default="as they are")
    ] = None,
    channels: Annotated[
        Literal["1", "3"] | None,
        typer.Option(help="Gray or colour.", show_default="as the images are"),
    ] = None,
    labels: Annotated[
        bool, typer.Option("--labels/--no-labels", help="Learn the classes of the images, too.")
    ] = True,
    latent_dim: Annotated[
        int | None,
        typer.Option(
            min=1, max=1024, help="Dimensions of z.", show_default=str(DEFAULT_LATENT_DIM)
        ),
    ] = None,
    width: Annotated[
        int, typer.Option(min=1, max=256, help="Of the networks: feature maps.")
    ] = DEFAULT_WIDTH,
    description: Annotated[str, typer.Option(help="One line to keep in the file.")] = "",
    seed: Annotated[
        int | None, typer.Option(help="Of everything that is drawn.", show_default="0")
    ] = None,
    device: DeviceFlag = None,
    as_json: AsJson = False,
) -> Answer:
    """Train a prior on public images; its labels are theirs, not the teacher's.

    \b
    genkd-prior train --family vae --images fashion-mnist/ --out priors/vae --budget 5m
    genkd-prior train --family gan --images photos/ --size 32x32 --out priors/gan
    """  # noqa: D301 (click wants the \b itself)
    if family == "pixel-ebm":
        if latent_dim is not None:
            raise UsageError("a pixel-ebm has no z", hint="leave --latent-dim out")
        latent_dim = 0
    settings = load_settings(seed=seed, device=device)
    spending = Budget.parse(budget)
    from genkd.dgm.public_images import parse_size, read_public_images

    wanted = None if size is None else parse_size(size)
    data = read_public_images(
        images, size=wanted, channels=channels and int(channels), with_labels=labels
    )
    card = GenerativeCard(
        family,
        DEFAULT_LATENT_DIM if latent_dim is None else latent_dim,
        data.num_classes,
        *data.image_shape,
        base_channels=width,
        description=description,
    )
    for note in data.notes:
        say(note)
    from genkd.device import choose_device
    from genkd.dgm.training import train_prior

    with progress_display() as show, stop_signals(say) as check:

        def on_progress(progress: Progress) -> None:
            show(progress)
            check()

        trained = train_prior(
            card,
            data,
            out,
            spending,
            choose_device(settings.device, "fp32"),
            seed=settings.seed,
            checkpoints=checkpoints,
            fresh=fresh,
            on_progress=on_progress,
        )
    return _answer(card, trained)


@app.command()
def sample(
    prior: Annotated[Path, typer.Argument(help="A prior.safetensors.", show_default=False)],
    out: Annotated[Path, typer.Option(help="The picture to write, a PNG.")],
    per_class: Annotated[
        int, typer.Option("--per-class", min=1, max=100, help="Images a row.")
    ] = 10,
    seed: Annotated[
        int | None, typer.Option(help="Of everything that is drawn.", show_default="0")
    ] = None,
    device: DeviceFlag = None,
    as_json: AsJson = False,
) -> Answer:
    """Draw from a prior: a PNG with a row of images for each class.

    \b
    genkd-prior sample priors/vae/prior.safetensors --out grid.png
    """  # noqa: D301 (click wants the \b itself)
    settings = load_settings(seed=seed, device=device)
    from genkd.device import choose_device
    from genkd.dgm.sample_grid import draw_grid
    from genkd.durable import atomic_write
    from genkd.generative_model import load_generative_model

    model = load_generative_model(prior)
    where = choose_device(settings.device, "fp32")
    grid = draw_grid(model.to(where.torch), per_class, where.generator(settings.seed))
    atomic_write(out, grid.png)
    card = model.card
    data = {
        "grid": out,
        "family": card.family,
        "num_classes": card.num_classes,
        "image_shape": list(card.image_shape),
        "sha256": model.sha256,
        "rows": grid.rows,
        "description": card.description,
    }
    rows = {
        "prior": f"{card.family}, {_classes(card)}, {_shape(card)}",
        "sha256": model.sha256,
        "description": card.description or None,
        "grid": f"{out}, {grid.rows} rows of {per_class}",
    }
    return Answer(data, columns(rows))


def _answer(card: GenerativeCard, trained: TrainedPrior) -> Answer:
    data = {
        "prior": trained.prior,
        "checkpoints": [str(path) for path in trained.checkpoints],
        "family": card.family,
        "num_classes": card.num_classes,
        "image_shape": list(card.image_shape),
        "samples": trained.samples,
        "seconds": trained.seconds,
        "core_seconds": trained.core_seconds,
        "figures": trained.figures,
    }
    rows = {
        "prior": trained.prior,
        "draws": f"{card.family}, {_classes(card)}, {_shape(card)}",
        "checkpoints": len(trained.checkpoints) or None,
        "time": duration(trained.seconds),
        "public images": f"{trained.samples:,} seen",
        "look at it": f"{PROGRAM} sample {trained.prior} --out grid.png",
    }
    return Answer(data, columns(rows))


def _classes(card: GenerativeCard) -> str:
    return f"{card.num_classes} classes" if card.num_classes else "without classes"


def _shape(card: GenerativeCard) -> str:
    return "x".join(str(side) for side in card.image_shape)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code.

    Args:
        arguments: What follows the program's name; None takes them from the process.
    """
    command = typer.main.get_command(app)
    return console.run(command, sys.argv[1:] if arguments is None else arguments, PROGRAM)


if __name__ == "__main__":
    sys.exit(main())
