"""Who is admitted and removed, and what is said of an address or a file that is mistyped."""

from __future__ import annotations

from pathlib import Path

import pytest

from contracts.registry_state import NEVER
from coordinator.admission import admit, remove
from coordinator.cli import main
from coordinator.joins import Joins
from coordinator.start_student import parse_student
from genkd.errors import InputFileRefused, UsageError
from tests.federation.memory_federation import MemoryFederation, make_federation

NOBODY = "0x5FbDB2315678afecb367f032d93F642f64180aa3"


@pytest.fixture
def members(tmp_path: Path) -> MemoryFederation:
    return make_federation(tmp_path / "members", count=1)


def test_removing_a_mistyped_address_is_an_error_and_not_a_success(
    members: MemoryFederation, tmp_path: Path
) -> None:
    joins = Joins(tmp_path / "federation")
    with pytest.raises(UsageError, match="none asked to join"):
        remove(members.coordinator.client, joins, tmp_path, NOBODY, None)  # type: ignore[arg-type]
    node = members.nodes[0]
    assert members.chain.node(node.address).until == NEVER
    until = remove(
        members.coordinator.client,  # type: ignore[arg-type]
        joins,
        tmp_path,
        node.address,
        None,
    )
    assert members.chain.node(node.address).until == until > 0


@pytest.mark.parametrize("node", ["0xAb", "profile.json", "spring", NOBODY])
def test_admitting_what_is_neither_an_address_that_asked_nor_a_file(
    node: str, members: MemoryFederation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    joins = Joins(tmp_path / "federation")
    with pytest.raises(UsageError) as caught:
        admit(members.coordinator.client, joins, tmp_path, None, node)  # type: ignore[arg-type]
    assert "genkd-coordinator admit" in caught.value.hint


def test_admit_outside_a_federations_folder_says_so_and_makes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    assert main(["admit"]) == 3
    assert "there is no federation" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["missing.safetensors", "missing.json"])
def test_a_start_student_that_is_missing_is_no_matter_of_a_nodes_release(name: str) -> None:
    with pytest.raises(InputFileRefused, match="there is no file") as caught:
        parse_student(name)
    assert "--student" in caught.value.hint
