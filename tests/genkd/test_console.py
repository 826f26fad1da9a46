"""One place turns what happened into an exit code, a line and a hint, or one JSON object."""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest
import typer

from genkd import console, errors
from genkd.console import Answer, AsJson

EVERY_ERROR = [
    error
    for error in vars(errors).values()
    if isinstance(error, type)
    and issubclass(error, errors.GenKDError)
    and error is not errors.GenKDError
]
DOCUMENTED_EXIT_CODES = {1, 2, 3, 4, 5, 6, 7, 8, 9, 75, 130}


def run(body: Callable[[], Answer], *arguments: str) -> int:
    """A program with one verb, whose body is `body`."""
    app = typer.Typer(add_completion=False, rich_markup_mode=None)

    @app.callback()
    def program() -> None: ...

    @app.command()
    def verb(number: int = 0, as_json: AsJson = False) -> Answer:
        return body()

    return console.run(typer.main.get_command(app), ["verb", *arguments])


def raising(error: BaseException) -> Callable[[], Answer]:
    def body() -> Answer:
        raise error

    return body


@pytest.fixture(autouse=True)
def _tracebacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.delenv("GENKD_DEBUG", raising=False)
    return


def test_every_documented_exit_code_has_its_error() -> None:
    assert {error.exit_code for error in EVERY_ERROR} == DOCUMENTED_EXIT_CODES


@pytest.mark.parametrize("kind", EVERY_ERROR, ids=lambda kind: kind.__name__)
def test_an_error_is_one_line_and_a_hint_on_stderr(
    kind: type[errors.GenKDError], capsys: pytest.CaptureFixture[str]
) -> None:
    code = run(raising(kind("it broke", hint="mend it")))
    out, err = capsys.readouterr()
    assert code == kind.exit_code
    assert out == ""
    assert err == "error: it broke\nhint: mend it\n"


@pytest.mark.parametrize("kind", EVERY_ERROR, ids=lambda kind: kind.__name__)
def test_with_json_an_error_is_one_object_on_stdout(
    kind: type[errors.GenKDError], capsys: pytest.CaptureFixture[str]
) -> None:
    code = run(raising(kind("it broke", hint="mend it")), "--json")
    out, err = capsys.readouterr()
    assert code == kind.exit_code
    assert err == ""
    assert json.loads(out) == {
        "schema_version": 1,
        "status": "error",
        "error": {"code": kind.code, "message": "it broke", "hint": "mend it"},
    }


def test_an_answer_is_lines_for_people_and_one_object_for_scripts(
    capsys: pytest.CaptureFixture[str],
) -> None:
    answer = Answer({"path": Path("a/b"), "gap": float("nan")}, ["found it"])
    assert run(lambda: answer) == 0
    assert capsys.readouterr() == ("", "found it\n")
    assert run(lambda: answer, "--json") == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert json.loads(out) == {
        "schema_version": 1,
        "status": "ok",
        "data": {"path": "a/b", "gap": None},
    }


def test_a_finding_that_is_no_error_has_an_exit_code_too(
    capsys: pytest.CaptureFixture[str],
) -> None:
    answer = Answer({"checks": []}, ["not valid"], status="not_valid", exit_code=1)
    assert run(lambda: answer, "--json") == 1
    assert json.loads(capsys.readouterr().out)["status"] == "not_valid"


@pytest.mark.parametrize("as_json", [False, True], ids=["people", "json"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--nmber", "1"], "--nmber"),
        (["--number", "x"], "not a valid int"),
        (["--number"], "requires an argument"),
        (["surplus"], "unexpected extra argument"),
    ],
    ids=["unknown flag", "bad value", "no value", "surplus"],
)
def test_a_wrong_command_line_exits_with_2(
    arguments: list[str], message: str, as_json: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    json_flag = ["--json"] if as_json else []
    assert run(lambda: Answer({}), *json_flag, *arguments) == 2
    out, err = capsys.readouterr()
    assert message in (out if as_json else err)
    if as_json:
        assert json.loads(out)["error"]["code"] == "usage"
        assert err == ""
    else:
        assert re.fullmatch(r"error: .+\nhint: .+ --help .+\n", err)


def test_ctrl_c_exits_with_130(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(raising(KeyboardInterrupt())) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_ctrl_c_at_a_prompt_exits_with_130() -> None:
    assert run(raising(click.Abort())) == 130


def test_an_input_that_ends_at_a_prompt_is_no_interruption(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def ask() -> Answer:
        try:
            raise EOFError
        except EOFError as error:
            raise click.Abort from error

    assert run(ask) == 2
    assert "input ended" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EROFS, "Read-only file system"),
    ],
    ids=["memory", "full disk", "read-only disk"],
)
def test_exhausted_machines_exit_with_8(error: Exception) -> None:
    assert run(raising(error)) == 8


@pytest.mark.parametrize(
    ("module", "extra"), [("torch", "distill"), ("flwr", "federation"), ("onnx", "onnx")]
)
def test_a_light_installation_is_told_which_extra_it_lacks(
    module: str, extra: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(raising(ModuleNotFoundError(f"No module named {module!r}", name=module))) == 3
    assert f"genkd-node[{extra}]" in capsys.readouterr().err


def test_a_broken_installation_of_our_own_is_not_taken_for_a_light_one() -> None:
    assert run(raising(ModuleNotFoundError("genkd.lost", name="genkd.lost"))) == 70


def test_an_unforeseen_error_is_one_line_and_its_traceback_is_kept_privately(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run(raising(ZeroDivisionError("division by zero"))) == console.UNEXPECTED_EXIT_CODE
    err = capsys.readouterr().err
    assert err.count("\n") == 2
    assert "Traceback" not in err
    (kept,) = tmp_path.glob("genkd-traceback-*.txt")
    assert str(kept) in err
    assert "ZeroDivisionError" in kept.read_text()
    assert kept.stat().st_mode & 0o777 == 0o600


def test_an_unforeseen_error_is_not_taken_for_a_release_that_is_not_valid() -> None:
    assert console.UNEXPECTED_EXIT_CODE not in DOCUMENTED_EXIT_CODES | {0}


def test_debugging_shows_the_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GENKD_DEBUG", "1")
    run(raising(ZeroDivisionError("division by zero")))
    assert "Traceback" in capsys.readouterr().err


def test_names_from_files_of_others_cannot_command_the_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    hostile = "\x1b[2J\x1b]0;owned\x07 two\nlines \u202e \udcff"
    run(raising(errors.InputFileRefused(hostile, hint=hostile)))
    run(lambda: Answer({}, [hostile]))
    err = capsys.readouterr().err
    assert "\x1b" not in err
    assert "\u202e" not in err
    assert err.count("\n") == 3


def test_a_reader_that_leaves_early_is_no_error(tmp_path: Path) -> None:
    import subprocess
    import sys

    script = (
        "import sys, typer; from genkd import console\n"
        "app = typer.Typer()\n"
        "@app.command()\n"
        "def verb(as_json: console.AsJson = False):\n"
        "    sys.stdin.read()\n"
        "    return console.Answer({'text': 'x' * 1000000})\n"
        "sys.exit(console.run(typer.main.get_command(app), ['--json']))\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(timeout=30) == 0
        assert process.stderr is not None
        assert process.stderr.read() == ""
