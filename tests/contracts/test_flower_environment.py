"""What a process that runs Flower may find in its environment."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from contracts.flower_environment import flower_environment, set_flower_environment
from genkd.errors import ResourceExhausted


@pytest.fixture(autouse=True)
def restored(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("FLWR_", "GENKD_")) or name.lower() == "no_proxy":
            monkeypatch.delenv(name)


def test_nothing_is_fetched_and_nothing_reported(tmp_path: Path) -> None:
    environment = flower_environment(tmp_path / "home")
    assert environment["FLWR_TELEMETRY_ENABLED"] == "0"
    assert environment["FLWR_DISABLE_UPDATE_CHECK"] == "1"
    assert environment["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] == "1"
    assert environment["FLWR_HOME"] == str(tmp_path / "home")
    assert (tmp_path / "home").stat().st_mode & 0o777 == 0o700


def test_what_was_set_outside_cannot_switch_it_on_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLWR_TELEMETRY_ENABLED", "1")
    monkeypatch.setenv("FLWR_INTERNAL_GRPC_CONTROL_API", "1")
    monkeypatch.setenv("FLWR_ENABLE_EVENT_LOG", "1")
    environment = flower_environment(tmp_path)
    assert environment["FLWR_TELEMETRY_ENABLED"] == "0"
    assert "FLWR_INTERNAL_GRPC_CONTROL_API" not in environment
    assert "FLWR_ENABLE_EVENT_LOG" not in environment


def test_the_path_of_the_passphrase_stays_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GENKD_KEY_PASSWORD_FILE", "/somewhere")
    monkeypatch.setenv("LANG", "C.UTF-8")
    environment = flower_environment(tmp_path)
    assert "GENKD_KEY_PASSWORD_FILE" not in environment
    assert environment["LANG"] == "C.UTF-8"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, "127.0.0.1,localhost,::1"),
        ("intranet, 10.0.0.1", "intranet,10.0.0.1,127.0.0.1,localhost,::1"),
        ("localhost", "localhost,127.0.0.1,::1"),
    ],
    ids=["none", "others", "partly"],
)
def test_loopback_goes_by_no_proxy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str | None, after: str
) -> None:
    if before is not None:
        monkeypatch.setenv("no_proxy", before)
    environment = flower_environment(tmp_path)
    assert environment["NO_PROXY"] == environment["no_proxy"] == after


def test_this_process_keeps_its_own_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", dict(os.environ))
    os.environ["GENKD_NODE_RECIPE"] = "quick"
    os.environ["FLWR_LOG_LEVEL"] = "DEBUG"
    set_flower_environment(tmp_path)
    assert os.environ["GENKD_NODE_RECIPE"] == "quick"
    assert "FLWR_LOG_LEVEL" not in os.environ
    assert os.environ["FLWR_HOME"] == str(tmp_path)


def test_a_home_that_cannot_be_made_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceExhausted, match="cannot be written"):
        flower_environment(tmp_path / "file" / "home")
