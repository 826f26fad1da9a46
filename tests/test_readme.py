"""What the README tells people to type exists, and what it says of exit codes is so."""

from __future__ import annotations

import ast
import inspect
import re
import shlex
from pathlib import Path

import click
import pytest
import typer

import genkd
from coordinator.cli import app as coordinator_app
from genkd import console, errors
from node.cli import app as node_app
from node.prior_cli import app as prior_app

ROOT = Path(__file__).parents[1]
DOCUMENTS = ("README.md", "CONTRIBUTING.md")
README = (ROOT / "README.md").read_text(encoding="utf-8")
PROGRAMS = {
    "genkd-node": typer.main.get_command(node_app),
    "genkd-prior": typer.main.get_command(prior_app),
    "genkd-coordinator": typer.main.get_command(coordinator_app),
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def command_lines() -> list[str]:
    lines = "".join(blocks("sh")).replace("\\\n", " ").splitlines()
    return [line for line in lines if line.strip() and not line.startswith("#")]


def options_of(command: click.Command) -> set[str]:
    found = {flag for p in command.params for flag in (*p.opts, *p.secondary_opts)}
    if isinstance(command, click.Group):
        for child in command.commands.values():
            found |= options_of(child)
    return found | {"--help"}


def test_the_readme_has_commands_to_check() -> None:
    assert {"make demo", "make test"} < set(command_lines())
    assert sum(line.startswith("genkd-node ") for line in command_lines()) >= 5


@pytest.mark.parametrize("line", command_lines())
def test_a_command_of_the_readme_can_be_typed(line: str) -> None:
    program, *arguments = shlex.split(line, comments=True)
    if program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert set(arguments) <= set(targets)
        return
    command = PROGRAMS[program]
    while isinstance(command, click.Group):
        verb, *arguments = arguments
        command = command.commands[verb]
    command.make_context(program, arguments)  # raises on what it does not know; runs nothing


def test_files_that_commands_of_the_readme_name_are_shipped() -> None:
    named = set(re.findall(r"examples/[\w./-]+", "\n".join(command_lines())))
    assert named
    assert {name for name in named if not (ROOT / name).exists()} == set()


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_flag_that_is_spoken_of_exists(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    spoken_of = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text))
    assert spoken_of <= set().union(*map(options_of, PROGRAMS.values()))


@pytest.mark.parametrize("document", [*DOCUMENTS, "docs/study.md", "docs/tried.md"])
def test_every_link_leads_to_a_file(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?:)([^)#]+)", text)
    assert {link for link in links if not (ROOT / document).parent.joinpath(link).exists()} == set()


@pytest.mark.parametrize("document", ["docs/study.md", "docs/tried.md"])
def test_every_flag_of_a_benchmark_that_is_spoken_of_exists(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    for script, rest in re.findall(r"`(?:benchmarks/)?(\w+\.py) ([^`]*)`", text):
        spoken_of = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", rest))
        sources = [(ROOT / "benchmarks" / name).read_text() for name in (script, "compare.py")]
        assert {
            flag for flag in spoken_of if not any(f'"{flag}"' in one for one in sources)
        } == set()


@pytest.mark.parametrize("block", blocks("python"))
def test_python_of_the_readme_compiles_and_calls_what_exists(block: str) -> None:
    for node in ast.walk(ast.parse(block)):
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("genkd."):
            function = getattr(genkd, ast.unparse(node.func).removeprefix("genkd."))
            keywords = {keyword.arg: None for keyword in node.keywords if keyword.arg}
            inspect.signature(function).bind(*node.args, **keywords)


def test_the_exit_codes_of_the_readme_are_those_of_the_errors() -> None:
    documented = {int(code) for code in re.findall(r"^\| (\d+) \|", README, re.MULTILINE)}
    raised = {
        error.exit_code
        for error in vars(errors).values()
        if isinstance(error, type) and issubclass(error, errors.GenKDError)
    }
    assert documented == raised | {0, console.UNEXPECTED_EXIT_CODE}
