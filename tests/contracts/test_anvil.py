"""Anvil is found, started, kept, and outlives nobody; its state survives a kill."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from contracts.anvil import Anvil, find_anvil, start_anvil
from contracts.json_rpc import JsonRpc
from genkd.errors import CannotCheck, ConfigurationError
from genkd.provenance.secp256k1 import address_of

ROOT = Path(__file__).parents[2]
ACCOUNT = address_of(0xACC)


def executable(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def set_balance(url: str, wei: int) -> None:
    JsonRpc(url).ask("anvil_setBalance", ACCOUNT, hex(wei))


def balance(url: str) -> int:
    return JsonRpc(url).quantity("eth_getBalance", ACCOUNT, "latest")


def answers(url: str) -> bool:
    try:
        return JsonRpc(url).quantity("eth_chainId") > 0
    except CannotCheck:
        return False


def wait_until_silent(url: str, seconds: float = 20) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not answers(url):
            return True
        time.sleep(0.05)
    return False


# ---------------------------------------------------------------------- finding it


def test_installed_anvil_is_the_native_program() -> None:
    path = find_anvil()
    assert path.read_bytes()[:2] != b"#!"
    assert path.parts[-5:-2] == ("node_modules", "@foundry-rs", path.parts[-3])


def test_named_anvil_is_used_wherever_it_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = tmp_path / "mine"
    shutil.copy(find_anvil(), named)
    monkeypatch.setenv("GENKD_ANVIL", str(named))
    assert find_anvil() == named


WRONG = {
    "missing": None,
    "a script, as the npm wrapper is": "#!/bin/sh\necho 'anvil Version: 1.7.1'\n",
    "no program": "anvil Version: 1.7.1",
    "empty": "",
}


@pytest.mark.parametrize("content", WRONG.values(), ids=WRONG)
def test_named_anvil_that_is_none_is_refused_and_no_other_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None
) -> None:
    path = tmp_path / "anvil"
    if content is not None:
        executable(path, content)
    monkeypatch.setenv("GENKD_ANVIL", str(path))
    with pytest.raises(ConfigurationError, match="GENKD_ANVIL"):
        find_anvil()


def test_another_program_is_not_taken_for_anvil(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GENKD_ANVIL", "/bin/ls")
    with pytest.raises(ConfigurationError):
        find_anvil()


def test_anvil_of_the_working_folder_and_above_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = find_anvil()
    monkeypatch.setattr("contracts.anvil.__file__", str(tmp_path / "elsewhere" / "anvil.py"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    below = tmp_path / "project" / "a" / "b"
    below.mkdir(parents=True)
    with pytest.raises(ConfigurationError, match="not installed") as missing:
        find_anvil(below)
    assert "npm ci" in missing.value.hint
    for folder in ("path", "home/.foundry/bin"):
        there = tmp_path / folder / "anvil"
        there.parent.mkdir(parents=True)
        there.symlink_to(installed)
        assert find_anvil(below) == there
    package = installed.relative_to(ROOT / "contracts")
    there = tmp_path / "project" / package
    there.parent.mkdir(parents=True)
    there.symlink_to(installed)
    assert find_anvil(below) == there


# ---------------------------------------------------------------------- starting and stopping it


def test_chain_is_on_this_machine_only_and_closed_to_web_pages(anvil: Anvil) -> None:
    assert anvil.rpc_url.startswith("http://127.0.0.1:")
    port = int(anvil.rpc_url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.sendall(
            b"OPTIONS / HTTP/1.1\r\nHost: localhost\r\nOrigin: https://example.org\r\n"
            b"Access-Control-Request-Method: POST\r\nConnection: close\r\n\r\n"
        )
        answer = connection.recv(65536).lower()
    assert b"access-control-allow-origin" not in answer


def test_stopped_chain_is_gone_and_may_be_stopped_again() -> None:
    with start_anvil(chain_id=4242) as chain:
        assert JsonRpc(chain.rpc_url).quantity("eth_chainId") == 4242
    assert not answers(chain.rpc_url)
    chain.stop()


def test_state_is_kept_from_one_start_to_the_next(tmp_path: Path) -> None:
    state = tmp_path / "state.json"
    with start_anvil(state=state) as chain:
        set_balance(chain.rpc_url, 123)
    with start_anvil(state=state) as chain:
        assert balance(chain.rpc_url) == 123


def test_taken_port_is_said() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(ConfigurationError, match="did not start") as caught:
            start_anvil(port=port)
    assert "port" in caught.value.hint


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"[" * 1000], ids=str)
def test_damaged_state_is_refused_and_left_as_it_is(tmp_path: Path, content: bytes) -> None:
    state = tmp_path / "state.json"
    state.write_bytes(content)
    with pytest.raises(ConfigurationError, match="damaged"):
        start_anvil(state=state)
    assert state.read_bytes() == content


def test_chatty_chain_does_not_block() -> None:
    # Anvil tells of each block in about 200 bytes; a pipe that nobody reads is full after 65,536.
    with start_anvil() as chain:
        rpc = JsonRpc(chain.rpc_url)
        for _ in range(500):
            rpc.ask("evm_mine")
        assert rpc.quantity("eth_blockNumber") == 500


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_chain_ends_with_the_process_that_started_it(tmp_path: Path, how: signal.Signals) -> None:
    state = tmp_path / "state.json"
    script = (
        "import signal, sys, time; from pathlib import Path\n"
        "from contracts.anvil import start_anvil\n"
        # What starts the tests in the background lets its children ignore it.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "chain = start_anvil(state=Path(sys.argv[1]))\n"
        "print(chain.rpc_url, flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(state)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=ROOT,
    ) as starter:
        assert starter.stdout is not None
        url = starter.stdout.readline().strip()
        set_balance(url, 77)
        starter.send_signal(how)
        starter.wait(20)
    assert wait_until_silent(url)
    with start_anvil(state=state) as chain:
        assert balance(chain.rpc_url) == 77


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a child with its parent")
def test_chain_ends_even_if_its_guard_is_killed() -> None:
    chain = start_anvil()
    os.kill(chain._guard._process.pid, signal.SIGKILL)
    assert wait_until_silent(chain.rpc_url)
    chain.stop()
