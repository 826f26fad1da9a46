"""One file for both programs; editing it by program leaves everything else as it stands."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import ClassVar

import pytest
from pydantic import Field

from genkd.errors import ConfigurationError
from genkd.layered_settings import FederationSettings, write_settings


class Settings(FederationSettings):
    TABLE: ClassVar[str] = "coordinator"

    port: int = Field(default=1, ge=0)


@pytest.fixture(autouse=True)
def empty_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in [name for name in os.environ if name.startswith("GENKD_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / ".config"))


def here(text: str) -> None:
    Path("genkd.toml").write_text(text)


def test_a_table_holds_what_is_its_own_and_the_top_what_is_shared() -> None:
    here("chain_id = 5\nseed = 3\n[coordinator]\nport = 7")
    settings = Settings.load()
    assert (settings.chain_id, settings.port) == (5, 7)


def test_variables_are_split_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENKD_CHAIN_ID", "5")
    monkeypatch.setenv("GENKD_COORDINATOR_PORT", "7")
    monkeypatch.setenv("GENKD_SEED", "3")  # the node's to check
    settings = Settings.load()
    assert (settings.chain_id, settings.port) == (5, 7)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[coordinator]\nprot = 7", r"\[coordinator\], has an unknown setting: prot"),
        ("[coordinator]\nport = -1", "port"),
        ("coordinator = 5", "no table"),
        ("chain_id = 0", "chain_id"),
        ("confirmations = 'later'", "confirmations"),
    ],
)
def test_a_wrong_file_is_refused(text: str, message: str) -> None:
    here(text)
    with pytest.raises(ConfigurationError, match=message):
        Settings.load()


def test_a_misspelt_variable_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENKD_COORDINATOR_PROT", "7")
    with pytest.raises(ConfigurationError) as caught:
        Settings.load()
    assert caught.value.hint == "did you mean GENKD_COORDINATOR_PORT?"


VALUES = {"rpc_url": "http://127.0.0.1:8545", "chain_id": 31337}
BEFORE = {
    "nothing": "",
    "other keys": "# mine\nseed = 5\n",
    "the same keys": 'rpc_url = "http://old"\nseed = 5\nchain_id=1\n',
    "a table": "[coordinator]\nport = 7\n",
    "keys and a table": "seed = 5 # five\n\n[coordinator]\nport = 7\nchain_id = 9\n",
    "no newline at the end": "seed = 5",
}


@pytest.mark.parametrize("text", BEFORE.values(), ids=BEFORE)
def test_writing_changes_the_keys_and_nothing_else(text: str) -> None:
    here(text)
    write_settings(Path("genkd.toml"), VALUES)
    after = Path("genkd.toml").read_text()
    assert tomllib.loads(after) == tomllib.loads(text) | VALUES
    for line in ("# mine", "seed = 5 # five", "port = 7"):
        assert (line in after) == (line in text)
    write_settings(Path("genkd.toml"), VALUES)
    assert Path("genkd.toml").read_text() == after


def test_writing_makes_the_file() -> None:
    write_settings(Path("genkd.toml"), VALUES)
    assert tomllib.loads(Path("genkd.toml").read_text()) == VALUES


@pytest.mark.parametrize(
    "text", ['note = """\nchain_id = 1\n"""\n', "chain_id.x = 1\n", "seed = ]"]
)
def test_a_file_that_cannot_be_edited_safely_is_left_alone(text: str) -> None:
    here(text)
    with pytest.raises(ConfigurationError):
        write_settings(Path("genkd.toml"), VALUES)
    assert Path("genkd.toml").read_text() == text


def test_a_file_that_others_could_not_read_stays_so() -> None:
    here('rpc_url = "https://rpc.example/secret"\n')
    Path("genkd.toml").chmod(0o600)
    write_settings(Path("genkd.toml"), VALUES)
    assert Path("genkd.toml").stat().st_mode & 0o777 == 0o600


def test_where_a_setting_was_written_is_told() -> None:
    assert Settings.place_of("registry") == "registry"
    here(f'registry = "0x{"1" * 40}"')
    assert Settings.place_of("registry", registry=None) == "genkd.toml: registry"
    assert Settings.place_of("registry", registry="0x") == "--registry"
