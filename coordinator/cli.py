"""`genkd-coordinator`: the command line of a coordinator.

    genkd-coordinator init
    genkd-coordinator chain up

Importing this module loads nothing heavy: each verb imports what it needs.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import typer
import typer.core

from coordinator import (
    chain_commands,
    init_command,
    node_commands,
    registry_commands,
    run_commands,
    serve_command,
    status_command,
)
from genkd import console

PROGRAM = "genkd-coordinator"
typer.core.HAS_RICH = False  # as in `node.cli`
app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    suggest_commands=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(init_command.app)
app.add_typer(serve_command.app)
app.add_typer(run_commands.app)
app.add_typer(status_command.app)
app.add_typer(node_commands.app)
app.add_typer(registry_commands.app)
app.add_typer(
    chain_commands.app, name="chain", help="A local Ethereum test chain with the registry on it."
)


@app.callback()
def genkd_coordinator(
    version: console.VersionFlag = False,
) -> None:
    """Run a federation: its registry, its nodes, its rounds.

    \b
    genkd-coordinator init --host federation.example
    genkd-coordinator chain up
    genkd-coordinator open-run spring
    genkd-coordinator serve
    genkd-coordinator admit 0xAb...
    genkd-coordinator run --run spring --rounds 2 --nodes 3 --student start.safetensors
    genkd-coordinator commit-round releases/ --run spring --round 1

    A setting comes from its flag, from GENKD_COORDINATOR_* in the environment, from [coordinator]
    in ./genkd.toml, from the user's configuration, in this order.
    """  # noqa: D301 (click wants the \b itself)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code.

    Args:
        arguments: What follows the program's name; None takes them from the process.
    """
    command = typer.main.get_command(app)
    return console.run(command, sys.argv[1:] if arguments is None else arguments, PROGRAM)


if __name__ == "__main__":
    sys.exit(main())
