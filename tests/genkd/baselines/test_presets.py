"""Each method reads its own keys, with its paper's values, and no key is without effect."""

from __future__ import annotations

import dataclasses
import typing

import pytest

from genkd.baselines.presets import METHOD_PRESETS, OFF, PACE, SYNTHESIS_KEYS, unread_keys
from genkd.errors import ConfigurationError
from genkd.recipe import PRESETS, Method, Recipe, find_recipe

# What the alternation, the bank and the student read, whatever the method.
SHARED = {
    *("method", "budget", "synthesis_share", "batch", "bank_images"),
    *("student_steps", "student_batch", "student_rate", "student_decay"),
    *("temperature", "affine", "texture", "mixed_share", "settling_affine"),
}
FIELDS = {field.name for field in dataclasses.fields(Recipe)}


def test_every_key_is_of_all_methods_or_of_those_that_list_it() -> None:
    assert SHARED | SYNTHESIS_KEYS == FIELDS
    assert not SHARED & SYNTHESIS_KEYS
    assert {"genkd", *METHOD_PRESETS} == set(typing.get_args(Method))


@pytest.mark.parametrize("method", list(METHOD_PRESETS))
@pytest.mark.parametrize("name", list(PRESETS))
def test_a_method_sets_its_papers_values_and_switches_the_others_off(
    method: str, name: str
) -> None:
    recipe, plain = find_recipe(name, {"method": method}), PRESETS[name]
    assert recipe.method == method
    for key, value in {**OFF, **PACE, **METHOD_PRESETS[method]}.items():
        assert getattr(recipe, key) == value, key
    for key in SHARED - {"method"} - PACE.keys():
        assert getattr(recipe, key) == getattr(plain, key), key


def test_a_key_of_the_method_can_be_changed() -> None:
    recipe = find_recipe("quick", {"method": "deepinversion", "adversarial_weight": "10"})
    assert recipe.adversarial_weight == 10
    assert recipe.generator_steps == 2000


@pytest.mark.parametrize(
    ("method", "key", "value"),
    [
        ("dafl", "energy", "yes"),
        ("dfad", "statistics_weight", "1"),
        ("noise", "latent_dim", "3"),
        ("deepinversion", "generator_channels", "4"),
        ("nayer", "label_weight", "2"),
        ("fastdfkd", "acceptance", "0.5"),
    ],
)
def test_a_key_that_would_have_no_effect_is_refused(method: str, key: str, value: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{method} does not read the recipe key {key}"):
        find_recipe("quick", {"method": method, key: value})


def test_genkd_reads_every_key() -> None:
    assert not unread_keys("genkd")
    assert find_recipe("quick", {"method": "genkd"}) == PRESETS["quick"]


def test_an_unknown_method_is_refused_with_those_there_are() -> None:
    with pytest.raises(ConfigurationError, match="method = 'magic' is unknown") as caught:
        find_recipe("quick", {"method": "magic"})
    assert caught.value.hint == f"use one of {', '.join(typing.get_args(Method))}"
