"""A flag wins over the environment, that over ./genkd.toml, that over the user's, that over all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from genkd.errors import ConfigurationError
from node.settings import Settings, load_settings, user_folder


@pytest.fixture(autouse=True)
def user_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working folder, an empty home; the path of the user's genkd.toml."""
    import os

    for name in list(os.environ):
        if name.startswith("GENKD_"):
            monkeypatch.delenv(name)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home" / ".config"))
    user_folder().mkdir(parents=True)
    return user_folder() / "genkd.toml"


def here(text: str) -> None:
    Path("genkd.toml").write_text(text)


def test_each_place_wins_over_the_ones_behind_it(
    user_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load_settings().seed == 0
    user_file.write_text("seed = 1")
    assert load_settings().seed == 1
    here("seed = 2")
    assert load_settings().seed == 2
    monkeypatch.setenv("GENKD_SEED", "3")
    assert load_settings().seed == 3
    assert load_settings(seed=4).seed == 4


def test_places_complete_each_other(user_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    user_file.write_text('student = "resnet20"\nruns = "/data/runs"')
    here('device = "cpu"')
    monkeypatch.setenv("GENKD_PRECISION", "fp32")
    settings = load_settings(recipe="quick", seed=None)
    assert (settings.student, settings.runs) == ("resnet20", Path("/data/runs"))
    assert (settings.device, settings.precision) == ("cpu", "fp32")
    assert (settings.recipe, settings.seed) == ("quick", 0)


@pytest.mark.parametrize("value", ["0", ""], ids=["zero", "empty"])
def test_a_falsy_flag_is_a_flag(value: str) -> None:
    here('budget = "10m"\nseed = 5')
    assert load_settings(budget=value, seed=0).budget == value
    assert load_settings(budget=value, seed=0).seed == 0


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("sead = 1", "sead", "did you mean seed?"),
        ("[seed]\nx = 1", "genkd.toml: seed", "correct"),
        ('device = "gpu"', "genkd.toml: device", "correct"),
        ("seed = -1", "genkd.toml: seed", "correct"),
        ('registry = "0x12"', "genkd.toml: registry", "correct"),
        ("seed = ", "cannot be read", "correct"),
        ("zzzzzz = 1", "zzzzzz", "there are budget, chain_id"),
        ('key_password = "secret"', "key_password", "did you mean key_password_file?"),
    ],
    ids=["misspelt", "table", "no such choice", "range", "pattern", "TOML", "far off", "secret"],
)
def test_a_wrong_file_is_refused_and_named(text: str, message: str, hint: str) -> None:
    here(text)
    with pytest.raises(ConfigurationError) as caught:
        load_settings()
    assert message in caught.value.message
    assert "genkd.toml" in caught.value.message
    assert hint in caught.value.hint
    assert "\n" not in caught.value.message


def test_a_wrong_setting_of_the_environment_is_refused_and_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GENKD_SEED", "many")
    with pytest.raises(ConfigurationError, match="GENKD_SEED"):
        load_settings()


@pytest.mark.parametrize("name", ["GENKD_DEVISE", "GENKD_device", "GENKD_"])
def test_an_unknown_variable_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "cpu")
    with pytest.raises(ConfigurationError, match="unknown setting"):
        load_settings()


def test_a_misspelt_variable_brings_the_right_one_to_mind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENKD_DEVISE", "cpu")
    with pytest.raises(ConfigurationError) as caught:
        load_settings()
    assert caught.value.hint == "did you mean GENKD_DEVICE?"


def test_settings_of_the_coordinator_and_of_debugging_are_not_ours_to_refuse(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GENKD_DEBUG", "0")
    monkeypatch.setenv("GENKD_COORDINATOR_PORT", "9092")
    here("seed = 1\n[coordinator]\nport = 9092")
    assert load_settings().seed == 1


def test_a_wrong_flag_is_named_as_a_flag() -> None:
    with pytest.raises(ConfigurationError, match="--seed"):
        load_settings(seed=-1)


@pytest.mark.parametrize(
    "content", [b"\xff\xfe", b"a" * (2 << 20)], ids=["not UTF-8", "two megabytes"]
)
def test_a_hostile_file_is_refused(content: bytes) -> None:
    Path("genkd.toml").write_bytes(content)
    with pytest.raises(ConfigurationError, match="cannot be read"):
        load_settings()


def test_a_folder_in_the_place_of_the_file_is_refused() -> None:
    Path("genkd.toml").mkdir()
    with pytest.raises(ConfigurationError, match="cannot be read"):
        load_settings()


def test_the_key_of_a_provider_in_the_url_is_not_in_the_repr_or_an_error() -> None:
    settings = load_settings(rpc_url="https://rpc.example/v3/SECRET")
    assert "SECRET" not in repr(settings)
    here('rpc_url = ["https://rpc.example/v3/SECRET"]')
    with pytest.raises(ConfigurationError) as caught:
        load_settings()
    assert "SECRET" not in caught.value.message + str(caught.value.__cause__)


def test_no_setting_is_a_secret() -> None:
    assert not {name for name in Settings.model_fields if name.endswith(("password", "secret"))}
