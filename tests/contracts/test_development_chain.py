"""A development chain outlives the command that starts it, once, and is ended by another."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from contracts.development_chain import RunningChain, down, fund, running, up
from contracts.json_rpc import JsonRpc
from genkd.errors import CannotCheck, ConfigurationError, ResourceExhausted
from genkd.provenance.secp256k1 import address_of

ROOT = Path(__file__).parents[2]
ACCOUNT = address_of(0xACC)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "chain"
    down(tmp_path / "chain")


def balance(chain: RunningChain) -> int:
    return JsonRpc(chain.rpc_url).quantity("eth_getBalance", ACCOUNT, "latest")


def test_chain_outlives_its_command_and_is_found_by_others(folder: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from contracts.development_chain import up\n"
        "print(up(Path(sys.argv[1])).rpc_url)"
    )
    started = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, str(folder)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
        timeout=60,
    )
    chain = running(folder)
    assert chain is not None
    assert chain.rpc_url == started.stdout.strip()
    assert started.stderr == ""
    assert JsonRpc(chain.rpc_url).quantity("eth_chainId") == chain.chain_id
    assert up(folder) == chain


def test_chain_goes_on_where_it_was_ended(folder: Path) -> None:
    fund(up(folder).rpc_url, ACCOUNT, ether=3)
    assert down(folder)
    assert running(folder) is None
    assert not down(folder)
    assert balance(up(folder)) == 3 * 10**18


def test_killed_chain_loses_at_most_its_last_second(folder: Path) -> None:
    chain = up(folder)
    fund(chain.rpc_url, ACCOUNT, ether=5)
    time.sleep(2.5)
    os.kill(chain.pid, signal.SIGKILL)
    while running(folder):
        time.sleep(0.01)
    again = up(folder)  # waits until Anvil, asked by the system to end, has saved its state
    assert again.pid != chain.pid
    assert balance(again) == 5 * 10**18


def test_chain_started_by_several_at_once_is_one(folder: Path) -> None:
    found: list[RunningChain | BaseException] = []

    def start() -> None:
        try:
            found.append(up(folder))
        except BaseException as error:
            found.append(error)

    threads = [threading.Thread(target=start) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    assert len(set(found)) == 1


def test_record_of_a_chain_that_is_gone_is_not_believed(folder: Path) -> None:
    # Its process number may belong to somebody else by now.
    folder.mkdir()
    values = {"rpc_url": "http://127.0.0.1:1", "chain_id": 1, "pid": os.getpid()}
    (folder / "anvil.json").write_text(json.dumps(values))
    assert running(folder) is None
    assert not down(folder)


def test_chain_of_another_id_is_refused(folder: Path) -> None:
    up(folder, chain_id=1001)
    with pytest.raises(ConfigurationError, match="1001"):
        up(folder, chain_id=1002)


def test_damaged_state_is_refused_and_the_one_before_is_kept(folder: Path) -> None:
    fund(up(folder).rpc_url, ACCOUNT, ether=9)
    down(folder)
    up(folder)
    down(folder)
    (folder / "state.json").write_bytes(b'{"half')
    with pytest.raises(ConfigurationError, match="damaged") as caught:
        up(folder)
    previous = folder / "state.previous.json"
    assert previous.name in caught.value.hint
    previous.replace(folder / "state.json")
    assert balance(up(folder)) == 9 * 10**18


def test_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ResourceExhausted, match="cannot be made"):
        up(tmp_path / "file" / "chain")


def test_only_a_development_chain_gives_away_ether() -> None:
    with pytest.raises(CannotCheck):
        fund("http://127.0.0.1:1", ACCOUNT)
