"""provenance.json: one spelling, no numbers with a fraction, no paths, nothing unknown."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genkd.errors import InputFileRefused
from genkd.provenance.statement import Statement, decimal_string

STATEMENT = Statement(
    file_hash=b"\x01" * 32,
    tensor_root=b"\x02" * 32,
    teacher_commitment=b"\x03" * 32,
    parents=(b"\x04" * 32, b"\x05" * 32),
    run_id=b"\x06" * 32,
    round=3,
    node="0x5FbDB2315678afecb367f032d93F642f64180aa3",
    profile_hash=b"\x07" * 32,
    version="0.1.0",
    recipe={"name": "quick", "batch": 64, "ema": None, "mixup": True, "lr": "0.004"},
    evaluation={"top1": "0.8123", "ece": "0.02"},
)


def test_it_reads_back_byte_for_byte() -> None:
    data = STATEMENT.to_bytes()
    assert Statement.from_bytes(data) == STATEMENT
    assert Statement.from_bytes(data).to_bytes() == data


NAMES = st.from_regex(r"[A-Za-z0-9_.:@-]{1,20}", fullmatch=True)
TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["C"], exclude_characters="/\\"))
RECIPES = st.dictionaries(
    NAMES, TEXTS.filter(lambda t: len(t) <= 200) | st.integers(-(2**53) + 1, 2**53 - 1)
)
FIGURES = st.dictionaries(
    NAMES, st.floats(allow_nan=False, allow_infinity=False).map(decimal_string)
)


@given(RECIPES, FIGURES)
def test_any_recipe_and_figures_read_back(recipe: Any, figures: Any) -> None:
    statement = replace(STATEMENT, recipe=recipe, evaluation=figures)
    assert Statement.from_bytes(statement.to_bytes()) == statement


def test_it_holds_no_number_with_a_fraction_and_no_path() -> None:
    text = STATEMENT.to_bytes().decode()
    json.loads(text, parse_float=lambda number: pytest.fail(f"a float: {number}"))
    assert "\\" not in text
    without_type_uris = text.replace("https://in-toto.io/Statement/v1", "").replace(
        "https://slsa.dev/provenance/v1", ""
    )
    assert "/" not in without_type_uris


def test_figures_of_a_thousand_classes_fit() -> None:
    figures = {f"competence.{i}": decimal_string(1 / (i + 2)) for i in range(1000)}
    figures |= {f"agreement.{i}": decimal_string(i / 999) for i in range(1000)}
    statement = replace(STATEMENT, evaluation=figures)
    assert Statement.from_bytes(statement.to_bytes()).evaluation == figures


def test_what_would_be_too_large_to_be_read_is_not_written() -> None:
    figures = {f"{i}": "0." + "1" * 340 for i in range(4000)}
    statement = replace(STATEMENT, evaluation=figures)
    with pytest.raises(InputFileRefused, match="larger than 1048576 bytes"):
        statement.to_bytes()


BAD_VALUES: dict[str, dict[str, Any]] = {
    "a setting with a fraction": {"recipe": {"lr": 0.004}},
    "a setting beyond 2^53": {"recipe": {"seed": 2**53}},
    "a setting that is a list": {"recipe": {"lr": []}},
    "a setting that is a path": {"recipe": {"teacher": "/home/me/teacher.safetensors"}},
    "a setting that is a Windows path": {"recipe": {"teacher": "C:\\me"}},
    "a setting of two lines": {"recipe": {"a": "x\ny"}},
    "a setting without a name": {"recipe": {"": 1}},
    "a setting named with a space": {"recipe": {"a b": 1}},
    "too many settings": {"recipe": {str(i): i for i in range(4097)}},
    "a figure that is a number": {"evaluation": {"top1": 0.8}},
    "a figure that is text": {"evaluation": {"top1": "good"}},
    "a figure with an exponent": {"evaluation": {"top1": "1e3"}},
    "a figure that is not finite": {"evaluation": {"top1": "nan"}},
    "parents in disorder": {"parents": (b"\x05" * 32, b"\x04" * 32)},
    "a parent twice": {"parents": (b"\x04" * 32, b"\x04" * 32)},
    "a negative round": {"round": -1},
    "a huge round": {"round": 2**32},
    "an odd version": {"version": "latest release"},
}


@pytest.mark.parametrize("changes", BAD_VALUES.values(), ids=BAD_VALUES)
def test_a_value_nobody_should_sign_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InputFileRefused):
        replace(STATEMENT, **changes)


def set_at(value: Any, path: str, to: object) -> None:
    *names, last = path.split(".")
    for name in names:
        value = value[int(name) if name.isdigit() else name]
    value[last] = to


BAD_JSON = {
    "unknown field at the top": ("extra", 1),
    "unknown field in the predicate": ("predicate.extra", 1),
    "another statement type": ("_type", "https://in-toto.io/Statement/v2"),
    "another predicate": ("predicateType", "https://slsa.dev/provenance/v2"),
    "another build type": ("predicate.buildDefinition.buildType", "urn:genkd:distillation:2"),
    "two subjects": ("subject", [1, 2]),
    "no subject": ("subject", []),
    "subject is text": ("subject", "student"),
    "another name": ("subject.0.name", "model.safetensors"),
    "another digest too": ("subject.0.digest.md5", "00"),
    "upper-case digest": ("subject.0.digest.sha256", "AA" * 32),
    "no teacher": ("predicate.buildDefinition.resolvedDependencies", []),
    "dependency is text": ("predicate.buildDefinition.resolvedDependencies", ["teacher"]),
    "round is text": ("predicate.buildDefinition.externalParameters.round", "3"),
    "round is true": ("predicate.buildDefinition.externalParameters.round", True),
    "node is a path": ("predicate.runDetails.builder.id", "file:///home"),
    "recipe is a list": ("predicate.buildDefinition.externalParameters.recipe", []),
    "a setting of half a character": (
        "predicate.buildDefinition.externalParameters.recipe",
        {"name": "\ud800"},
    ),
    "version is a list": ("predicate.runDetails.builder.version", []),
}


@pytest.mark.parametrize("change", BAD_JSON.values(), ids=BAD_JSON)
def test_another_statement_is_refused(change: tuple[str, object]) -> None:
    value = json.loads(STATEMENT.to_bytes())
    set_at(value, *change)
    data = json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
    with pytest.raises(InputFileRefused):
        Statement.from_bytes(data)


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data + b"\n",
        lambda data: data.replace(b":", b": ", 1),
        lambda data: data[:-1] + b',"_type":""}',
        lambda data: b"\xef\xbb\xbf" + data,
        lambda data: data.replace(b'"quick"', b'"qu\\u0069ck"'),
        lambda data: b"",
        lambda data: b"null",
        lambda data: b"{}",
        lambda data: b"[" * 9999,
        lambda data: data + b" " * 2**20,
    ],
    ids=["newline", "space", "twice", "bom", "escape", "empty", "null", "object", "deep", "large"],
)
def test_another_spelling_is_refused(change: Any) -> None:
    with pytest.raises(InputFileRefused):
        Statement.from_bytes(change(STATEMENT.to_bytes()))


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.5, "0.5"), (1.0, "1"), (1e-7, "0.0000001"), (1e21, "1" + "0" * 21), (-2.50, "-2.5")],
)
def test_decimal_strings_have_no_exponent(value: float, text: str) -> None:
    assert decimal_string(value) == text
    assert float(text) == value


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_has_no_decimal_string(value: float) -> None:
    with pytest.raises(ValueError, match="no decimal form"):
        decimal_string(value)
