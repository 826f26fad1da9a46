"""What a command answers, and the one place where an error becomes an exit code.

    @app.command()
    def inspect(file: Path, as_json: AsJson = False) -> Answer:
        return Answer({"architecture": "resnet8"}, ["architecture  resnet8"])

A command returns its `Answer` or raises; it never prints its result itself. People read stderr.
With `--json`, stdout carries exactly one object: `{"schema_version": 1, "status": "ok",
"data": {...}}`, or `{..., "status": "error", "error": {"code", "message", "hint"}}`.
"""

from __future__ import annotations

import errno
import json
import os
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import click
import typer

from genkd.errors import (
    ConfigurationError,
    GenKDError,
    Interrupted,
    ResourceExhausted,
    UsageError,
)
from genkd.json_values import finite

SCHEMA_VERSION = 1
# Not in the error tree: nobody foresaw it. EX_SOFTWARE of sysexits.h; 1 would say "not valid".
UNEXPECTED_EXIT_CODE = 70
UNEXPECTED_CODE = "unexpected"
# The base installation can verify and nothing else, so its absence is no fault of the program.
EXTRA_OF_MODULE = {
    **dict.fromkeys(("torch", "torchvision", "jinja2", "PIL", "psutil", "safetensors"), "distill"),
    **dict.fromkeys(("onnx", "onnxruntime", "onnxscript"), "onnx"),
    "flwr": "federation",
}


def _show_version(wanted: bool) -> None:
    if wanted:
        from genkd import __version__

        print(__version__)
        raise typer.Exit


AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
VersionFlag = Annotated[
    bool,
    typer.Option(
        "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
    ),
]


@dataclass(frozen=True)
class Answer:
    """What a command found or did.

    Attributes:
        data: The `data` of the JSON object: JSON values, and `Path`s.
        lines: The same for people.
        status: The `status` of the JSON object.
        exit_code: 0, or the code of a finding that is no error: 1 of a release that is not valid.
    """

    data: Mapping[str, object]
    lines: Sequence[str] = ()
    status: str = "ok"
    exit_code: int = 0


def say(line: str) -> None:
    """Write one line for people, on stderr. Control characters in it are shown, not obeyed."""
    print(printable(line), file=sys.stderr, flush=True)


def printable(text: str) -> str:
    """`text` with what a terminal would obey written out: names come from files of others."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def run(command: click.Command, arguments: Sequence[str], program: str = "genkd-node") -> int:
    """Run a command line, show its answer or its error, and return the exit code.

    Args:
        command: The group of all verbs.
        arguments: What follows the program's name.
        program: Its name, for usage and hints.
    """
    as_json = "--json" in arguments
    try:
        with command.make_context(program, list(arguments)) as context:
            answer = command.invoke(context)
        if isinstance(answer, Answer):
            _show(answer, as_json)
            return answer.exit_code
    except click.exceptions.Exit as end:  # --help, --version
        return end.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message(), file=sys.stderr)
        return UsageError.exit_code
    except BrokenPipeError:
        # The reader of our output left. Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (Exception, KeyboardInterrupt) as error:
        return _show_error(error, as_json, program)
    return 0


def _show(answer: Answer, as_json: bool) -> None:
    if as_json:
        _write_json({"status": answer.status, "data": finite(answer.data)})
    else:
        for line in answer.lines:
            say(line)


def _write_json(values: Mapping[str, object]) -> None:
    print(json.dumps({"schema_version": SCHEMA_VERSION, **values}), flush=True)


def _show_error(error: BaseException, as_json: bool, program: str) -> int:
    """Show `error` as one line and a hint, and return its exit code."""
    known = explained(error, program)
    if os.environ.get("GENKD_DEBUG") == "1":
        traceback.print_exception(error)
    if known is None:
        message = f"unexpected {type(error).__name__}: {error}"
        hint = f"please report it; the traceback is in {_keep_traceback(error)}"
        code, exit_code = UNEXPECTED_CODE, UNEXPECTED_EXIT_CODE
    else:
        message, hint = known.message, known.hint
        code, exit_code = known.code, known.exit_code
    if as_json:
        _write_json({"status": "error", "error": {"code": code, "message": message, "hint": hint}})
    else:
        say(f"error: {message}")
        say(f"hint: {hint}")
    return exit_code


def explained(error: BaseException, program: str = "genkd-node") -> GenKDError | None:
    """`error` as one of the error tree, or None if nobody foresaw it."""
    if isinstance(error, GenKDError):
        return error
    if isinstance(error, KeyboardInterrupt | click.Abort):
        if isinstance(error.__cause__ or error.__context__, EOFError):
            return UsageError(
                "the input ended where an answer was expected",
                hint="run it in a terminal, or give a file instead",
            )
        return Interrupted("interrupted", hint="repeat the same command to go on")
    if isinstance(error, click.UsageError):
        path = error.ctx.command_path if error.ctx is not None else program
        return UsageError(error.format_message(), hint=f"{path} --help shows what there is")
    if isinstance(error, click.ClickException):
        return UsageError(error.format_message(), hint=f"{program} --help shows what there is")
    if isinstance(error, ModuleNotFoundError) and error.name in EXTRA_OF_MODULE:
        return ConfigurationError(
            f"{error.name} is not installed",
            hint=f"pip install 'genkd-node[{EXTRA_OF_MODULE[error.name]}]'",
        )
    if isinstance(error, MemoryError):
        return ResourceExhausted(
            "this machine's memory ran out", hint="close other programs, or use a smaller model"
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        return ResourceExhausted(
            f"cannot write: {error.strerror}", hint="free some space, then repeat the command"
        )
    return None


def _keep_traceback(error: BaseException) -> str:
    """Write the traceback to a private file and return where, or why not."""
    text = "".join(traceback.format_exception(error))
    try:
        descriptor, path = tempfile.mkstemp(prefix="genkd-traceback-", suffix=".txt")  # mode 0600
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
    except OSError:
        return "no file, for none could be written: set GENKD_DEBUG=1 to see it"
    return path


def columns(rows: Mapping[str, Any]) -> list[str]:
    """`{"classes": 10}` as aligned lines for people; rows whose value is None are left out."""
    shown = {name: value for name, value in rows.items() if value is not None}
    width = max((len(name) for name in shown), default=0)
    return [f"{name:<{width}}  {value}" for name, value in shown.items()]
