"""The ServerApp that a stock `flwr run` starts: its plan and its settings are on the disk."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from flwr.app import Context, RecordDict

from contracts.anvil import Anvil, start_anvil
from contracts.development_chain import fund
from contracts.registry import RegistryClient, deploy
from coordinator import server_app
from coordinator.store import RoundState, Store
from genkd.errors import ConfigurationError, Stopped
from genkd.provenance import keystore
from genkd.provenance.keys import KeyFolder
from genkd.provenance.passphrase import Passphrase
from genkd.provenance.record import run_id_of
from tests.federation.local_grid import LocalGrid

PASSPHRASE = "correct horse battery"
PLAN = """\
run = "spring"
rounds = 1
nodes = 1
wait = "1s"
student = "resnet8-quarter"
classes = "ant,bee"
image = "1x16x16"
"""


@pytest.fixture(scope="module")
def anvil() -> Iterator[Anvil]:
    with start_anvil() as chain:
        yield chain


@pytest.fixture
def home(tmp_path: Path, anvil: Anvil, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that a SuperLink was started in: settings, keys, a registry with the run."""
    for name in [name for name in os.environ if name.startswith("GENKD_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(keystore, "SCRYPT_N", 2**12)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / ".config"))
    password = tmp_path / "passphrase"
    password.write_text(PASSPHRASE)
    password.chmod(0o600)
    folder = KeyFolder(tmp_path / "keys")
    folder.create(Passphrase(PASSPHRASE))
    keys = folder.unlock(Passphrase(PASSPHRASE))
    fund(anvil.rpc_url, keys.address)
    domain, _ = deploy(anvil.rpc_url, anvil.chain_id, keys, owner=keys.address)
    client = RegistryClient(anvil.rpc_url, domain, signer=keys, confirmations=0)
    client.open_run(run_id_of("spring"), keys.address, bytes(32))
    (tmp_path / "federation").mkdir()
    (tmp_path / "plan.toml").write_text(PLAN)
    (tmp_path / "genkd.toml").write_text(
        f'rpc_url = "{anvil.rpc_url}"\nchain_id = {anvil.chain_id}\n'
        f'registry = "{domain.contract}"\nconfirmations = 0\n'
        f'[coordinator]\nkeys = "keys"\nkey_password_file = "{password}"\n'
    )
    return tmp_path


def run(plan: str) -> None:
    with LocalGrid({}, {}) as grid:
        server_app.main(grid, Context(1, 0, {}, RecordDict(), {"plan": plan, "protocol": 1}))


def test_a_plan_file_and_the_settings_beside_it_are_all_it_needs(home: Path) -> None:
    with pytest.raises(Stopped, match="0 releases came within 1 s"):
        run("plan.toml")
    with Store.open(home / "federation") as store:
        (start, first) = store.rounds()
    assert (start.state, start.merged is not None) == (RoundState.COMMITTED, True)
    assert first.state is RoundState.COLLECTING


def test_a_coordinator_that_owns_the_registry_enrols_itself(home: Path) -> None:
    with pytest.raises(Stopped):
        run("plan.toml")
    (release,) = (home / "federation" / "merged").glob("0x*/round-000000/student-0x*")
    assert (release / "receipt.json").exists()


@pytest.mark.parametrize("plan", ["", "missing.toml"])
def test_without_a_plan_nothing_is_begun(home: Path, plan: str) -> None:
    with pytest.raises(ConfigurationError):
        run(plan)
    assert list((home / "federation").iterdir()) == []
