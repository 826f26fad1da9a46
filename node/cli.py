"""`genkd-node`: the command line of a node.

    genkd-node distill --teacher model.safetensors

Importing this module loads neither torch nor anything else heavy: each verb imports what it needs.
A family of verbs is a module with a `typer.Typer` of its own, added below.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import typer
import typer.core

from genkd import console
from node import (
    distill_command,
    join_command,
    key_commands,
    model_commands,
    provenance_commands,
    status_command,
)

# Plain help: narrow terminals keep all of it, and nothing more is imported to show it. Without the
# first line, typer 0.20 escapes "[required]" for rich even where rich is not asked to print it.
typer.core.HAS_RICH = False
app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    suggest_commands=False,  # click does it too
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
# Without a name the verbs of each stand beside those of the others.
app.add_typer(distill_command.app)
app.add_typer(model_commands.app)
app.add_typer(key_commands.app)
app.add_typer(provenance_commands.app)
app.add_typer(join_command.app)
app.add_typer(status_command.app)


@app.callback()
def genkd_node(
    version: console.VersionFlag = False,
) -> None:
    """Turn a private teacher into a small student, with no data.

    \b
    genkd-node distill --teacher examples/fashion_mnist/teacher.safetensors
    genkd-node evaluate runs/teacher-resnet8-half-0/student.safetensors --data test.npz
    genkd-node doctor

    Every verb has --help with examples, and --json for scripts. A setting comes from its flag, from
    GENKD_* in the environment, from ./genkd.toml, from the user's configuration, in this order.
    """  # noqa: D301 (click wants the \b itself)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code.

    Args:
        arguments: What follows the program's name; None takes them from the process.
    """
    command = typer.main.get_command(app)
    return console.run(command, sys.argv[1:] if arguments is None else arguments)


if __name__ == "__main__":
    sys.exit(main())
