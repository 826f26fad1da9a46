"""What a recipe and a budget may say, and how they refuse the rest."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest

from genkd.errors import ConfigurationError, UsageError
from genkd.recipe import (
    BOUNDS,
    OF_ENERGY,
    PRESETS,
    Budget,
    Recipe,
    find_budget,
    find_recipe,
    parse_overrides,
)

FIELDS = {field.name: field.default for field in dataclasses.fields(Recipe)}


@pytest.mark.parametrize(
    ("text", "amount", "unit"),
    [
        ("90s", 90, "seconds"),
        ("10m", 600, "seconds"),
        ("1.5h", 5400, "seconds"),
        (" 10 M ", 600, "seconds"),
        (".5s", 0.5, "seconds"),
        ("600 core-seconds", 600, "core-seconds"),
        ("2e6 passes", 2e6, "passes"),
        ("2E6passes", 2e6, "passes"),
        ("20000samples", 20_000, "samples"),
        ("1 samples", 1, "samples"),
    ],
)
def test_a_budget_is_understood(text: str, amount: float, unit: str) -> None:
    budget = Budget.parse(text)
    assert (budget.amount, budget.unit) == (amount, unit)


@pytest.mark.parametrize(
    "text",
    [
        *("", "soon", "10", "m", "10 minutes", "10 m 5 s", "-5m", "+5m", "0s", "0.0 samples"),
        *("nan s", "inf s", "1e999s", "9" * 400 + "s", "1.2.3s", "..s", "10m\n5", "1e-3s"),
        "\u0661\u0660m",  # digits, but not ours
    ],
)
def test_what_is_no_budget_is_refused_in_one_short_line(text: str) -> None:
    with pytest.raises(UsageError, match="is not a budget") as caught:
        Budget.parse(text)
    assert len(str(caught.value)) < 100
    assert "\n" not in str(caught.value)
    assert "10m" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("10m", "600 seconds"),
        ("0.5s", "0.5 seconds"),
        ("1234567 passes", "1234567 passes"),
        ("1234568 passes", "1234568 passes"),
    ],
)
def test_a_budget_is_shown_with_every_digit(text: str, shown: str) -> None:
    assert str(Budget.parse(text)) == shown
    assert Budget.parse(text.replace(" ", "")) == Budget.parse(text)


@pytest.mark.parametrize("name", ["quick", "standard", "thorough"])
def test_every_preset_holds_its_own_bounds(name: str) -> None:
    recipe = find_recipe(name, {})
    assert recipe == PRESETS[name]
    assert Budget.parse(recipe.budget).amount > 0


def test_an_unknown_preset_is_refused_with_those_there_are() -> None:
    with pytest.raises(ConfigurationError, match="no recipe 'quik'") as caught:
        find_recipe("quik", {})
    assert "quick, standard, merge, thorough" in caught.value.hint


def test_a_recipe_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        PRESETS["standard"].batch = 1  # type: ignore[misc]


def test_every_key_is_described_and_every_bound_is_of_a_key() -> None:
    described = re.findall(r"^        (\w+): ", Recipe.__doc__ or "", re.MULTILINE)
    assert described == list(FIELDS)
    assert set(BOUNDS) <= set(FIELDS)


@pytest.mark.parametrize("key", list(FIELDS))
def test_every_key_can_be_given_as_text(key: str) -> None:
    assert Recipe().with_overrides({key: str(FIELDS[key])}) == Recipe()


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("latent_dim", "128", 128),
        ("student_rate", "3e-2", 0.03),
        ("warm_up", "1", 1.0),
        ("energy", "no", False),
        ("energy", "Yes", True),
        ("energy", "0", False),
        ("policy_gradient", "chain", "chain"),
        ("policy_segments", "4", 4),
        ("generator_rounds", "0", 0),
        ("budget", "90s", "90s"),
    ],
)
def test_an_override_is_read_as_the_type_of_its_key(key: str, text: str, value: object) -> None:
    got = getattr(Recipe().with_overrides({key: text}), key)
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize(
    ("key", "text", "message", "hint"),
    [
        ("studet_rate", "1", "no recipe key 'studet_rate'", "did you mean student_rate?"),
        ("sead", "1", "no recipe key 'sead'", None),
        ("zzzzzz", "1", "no recipe key 'zzzzzz'", "keys: acceptance,"),
        ("__class__", "1", "no recipe key '__class__'", None),
        ("batch", "many", "batch = 'many' is not a whole number", "batch = "),
        ("batch", "2.5", "is not a whole number", None),
        ("batch", "1e3", "is not a whole number", None),
        ("batch", "", "is not a whole number", None),
        ("batch", "9" * 5000, "is not a whole number", None),
        ("batch", "2", "batch = 2 is outside 4 to 65536", "batch = "),
        ("batch", str(10**30), "outside", None),
        ("student_rate", "fast", "is not a number", None),
        ("student_rate", "nan", "is not a number", None),
        ("student_rate", "inf", "is not a number", None),
        ("student_rate", "-0.1", "outside", None),
        ("energy_steps", "-1", "energy_steps = -1 is outside 0 to", None),
        ("statistics_weight", "-1", "outside 0 to", None),
        ("langevin_step_size", "2", "outside", None),
        ("energy", "maybe", "is not yes or no", None),
        ("policy_gradient", "reinforce", "'reinforce' is unknown", "none, stationary, chain"),
        ("budget", "soon", "recipe key budget: 'soon' is not a budget", "10m"),
    ],
)
def test_an_override_that_does_not_fit_is_refused(
    key: str, text: str, message: str, hint: str | None
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        find_recipe("standard", {key: text})
    assert message in str(caught.value)
    assert len(str(caught.value)) < 200
    assert "\n" not in str(caught.value)
    assert (hint or "") in caught.value.hint


@pytest.mark.parametrize(
    "keys",
    [
        {"policy_segments": 3, "langevin_steps": 20},
        {"rejection_candidates": 4},
        {"policy_placebo": True, "policy_gradient": "pathwise"},
        {"policy_placebo": True},
    ],
    ids=["unequal segments", "rejection", "placebo of a gradient", "placebo of nothing"],
)
def test_keys_that_contradict_one_another_are_refused(keys: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=f"recipe key {next(iter(keys))}"):
        Recipe(**keys)


# What must go with the upper end of a key.
COMPANIONS: dict[str, dict[str, Any]] = {
    "policy_segments": {"langevin_steps": 10_000},
    "rejection_candidates": {"energy": False},
}


@pytest.mark.parametrize("key", list(BOUNDS))
def test_the_ends_of_a_bound_are_inside_and_beyond_is_not(key: str) -> None:
    low, high = BOUNDS[key]
    whole = isinstance(FIELDS[key], int)
    for value in (low, high):
        inside = {**COMPANIONS.get(key, {}), key: int(value) if whole else value}
        assert getattr(Recipe(**inside), key) == value
    for value in (low - 1, high + 1, float("nan")):
        outside: dict[str, Any] = {key: value}
        with pytest.raises(ConfigurationError, match=f"recipe key {key}"):
            Recipe(**outside)


@pytest.mark.parametrize(
    ("overrides", "key", "because"),
    [
        ({"policy_weight": "1"}, "policy_weight", "policy_gradient=none"),
        ({"effective_share": "0"}, "effective_share", "policy_gradient=none"),
        (
            {"policy_gradient": "stationary", "policy_segments": "4"},
            "policy_segments",
            "policy_gradient=stationary",
        ),
        ({"energy": "no", "langevin_steps": "5"}, "langevin_steps", "energy=no"),
        ({"energy": "no", "policy_gradient": "chain"}, "policy_gradient", "energy=no"),
        ({"energy": "no", "positive_temperature": "1"}, "positive_temperature", "energy=no"),
        (
            {"method": "frozen-prior", "energy": "no", "langevin_steps": "5"},
            "langevin_steps",
            "energy=no",
        ),
        (
            {"method": "genkd-pixel", "energy": "no", "energy_steps": "1"},
            "energy_steps",
            "energy=no",
        ),
    ],
)
def test_a_key_that_another_makes_idle_is_refused(
    overrides: dict[str, str], key: str, because: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        find_recipe("standard", overrides)
    assert str(caught.value) == f"the recipe key {key} has no effect with {because}"
    assert because.split("=")[0] in caught.value.hint


@pytest.mark.parametrize(
    "overrides",
    [
        {"policy_gradient": "stationary", "policy_weight": "1"},
        {"policy_gradient": "chain", "policy_segments": "4"},
        {"policy_gradient": "greedy", "policy_segments": "4"},
        {"energy": "no", "policy_gradient": "none"},
        {"energy": "no", "rejection_candidates": "4", "positive_temperature": "1"},
        {"method": "genkd-pixel", "energy": "no", "langevin_steps": "5"},
    ],
)
def test_a_key_that_has_an_effect_is_taken(overrides: dict[str, str]) -> None:
    recipe = find_recipe("standard", overrides)
    for key, text in overrides.items():
        assert str(getattr(recipe, key)) == {"no": "False", "1": "1.0"}.get(text, text)


def test_every_idle_key_is_a_key_of_a_recipe() -> None:
    assert set(OF_ENERGY) <= set(FIELDS)


def test_overrides_keep_what_stands_behind_the_first_equals_sign() -> None:
    assert parse_overrides(["a=", "b=1=2"]) == {"a": "", "b": "1=2"}


@pytest.mark.parametrize("texts", [["a"], ["=1"], [""], ["a=1", "a=1"], ["x" * 10_000]])
def test_what_is_no_override_or_stands_twice_is_refused(texts: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        parse_overrides(texts)
    assert str(caught.value).startswith("--set ")
    assert len(str(caught.value)) < 100


def test_a_budget_is_the_recipes_unless_another_is_said() -> None:
    recipe = find_recipe("quick", {"budget": "90s"})
    assert find_budget(recipe, {"budget": "90s"}, None) == Budget(90, "seconds")
    assert find_budget(recipe, {}, "10m") == Budget(600, "seconds")
    with pytest.raises(UsageError, match="both 10m and the recipe key 90s"):
        find_budget(recipe, {"budget": "90s"}, "10m")


def test_under_a_budget_in_samples_images_are_made_to_the_end() -> None:
    recipe, samples = find_recipe("standard", {}), Budget(100, "samples")
    assert recipe.within(Budget(100, "passes")) == recipe
    assert recipe.within(samples).synthesis_share == 1
    shared = {"synthesis_share": "0.5"}
    with pytest.raises(UsageError, match="synthesis_share has no effect"):
        find_budget(find_recipe("standard", shared), shared, "100samples")
    whole = {"synthesis_share": "1"}
    assert find_budget(find_recipe("standard", whole), whole, "100samples") == samples
