"""init, keys, publish, verify, lineage and revoke as a person or a script runs them."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from contracts.development_chain import fund
from genkd.provenance.keys import KeyFolder
from node.cli import main

Federation = Any  # conftest.Federation
ROOT = Path(__file__).parents[2]


@dataclass
class Ran:
    """What a command line did: its exit code, its JSON object, its lines for people."""

    code: int
    data: dict[str, Any]
    lines: list[str]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cheap_scrypt: None) -> Path:
    """An empty working folder and home, and a passphrase file."""
    import os

    for name in [name for name in os.environ if name.startswith("GENKD_")]:
        monkeypatch.delenv(name)
    path = tmp_path / "home"
    path.mkdir()
    monkeypatch.chdir(path)
    monkeypatch.setenv("HOME", str(path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(path / ".config"))
    password = path / "passphrase"
    password.write_text("correct horse battery\n")
    password.chmod(0o600)
    monkeypatch.setenv("GENKD_KEY_PASSWORD_FILE", str(password))
    return path


@pytest.fixture
def genkd(home: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """Run a command line once for its JSON object; the second time around is for people."""

    def run(*arguments: str) -> Ran:
        code = main([*arguments, "--json"])
        captured = capsys.readouterr()
        value = json.loads(captured.out)
        data = value["data"] if value["status"] == "ok" else value["error"]
        return Ran(code, data, captured.err.splitlines())

    return run


@pytest.fixture
def node(home: Path, federation: Federation, key_folder: KeyFolder) -> Path:
    """A home whose settings name the federation and whose keys it admitted."""
    (home / "genkd.toml").write_text(
        f'rpc_url = "{federation.rpc_url}"\nchain_id = {federation.domain.chain_id}\n'
        f'registry = "{federation.domain.contract}"\nconfirmations = 0\n'
        f'keys = "{key_folder.path}"\nrun = "spring"\n'
    )
    return home


@pytest.fixture
def release(node: Path, run: Path, genkd: Callable[..., Ran]) -> Path:
    return Path(genkd("publish", str(run)).data["release"])


# --- keys ---


def test_init_makes_keys_and_says_what_to_do_with_them(genkd: Callable[..., Ran]) -> None:
    made = genkd("init")
    assert made.code == 0
    shown = genkd("keys", "show")
    assert shown.data["node"] == made.data["node"]
    assert Path(shown.data["profile"]).exists()
    assert Path(made.data["next_key"]).is_dir()


def test_a_second_init_is_refused_with_exit_code_7(home: Path, genkd: Callable[..., Ran]) -> None:
    genkd("init")
    before = {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}
    again = genkd("init")
    assert (again.code, again.data["code"]) == (7, "key_or_signature")
    assert {path: path.read_bytes() for path in home.rglob("*") if path.is_file()} == before


def test_init_signs_the_print_of_the_tls_certificate(home: Path, genkd: Callable[..., Ran]) -> None:
    import datetime

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "node")])
    day = datetime.datetime(2026, 1, 1)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name)
    builder = builder.public_key(key.public_key()).serial_number(1)
    builder = builder.not_valid_before(day).not_valid_after(day.replace(year=2027))
    certificate = builder.sign(key, hashes.SHA256())
    (home / "node.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    made = genkd("init", "--tls-certificate", "node.pem")
    profile = json.loads(Path(made.data["profile"]).read_bytes())
    assert profile["tlsFingerprint"] == "0x" + certificate.fingerprint(hashes.SHA256()).hex()


@pytest.mark.parametrize("text", ["", "-----BEGIN CERTIFICATE-----"])
def test_what_is_no_certificate_is_refused(
    text: str, home: Path, genkd: Callable[..., Ran]
) -> None:
    (home / "node.pem").write_text(text)
    assert genkd("init", "--tls-certificate", "node.pem").code == 4


def test_a_wrong_passphrase_is_exit_code_7(
    node: Path, run: Path, genkd: Callable[..., Ran]
) -> None:
    (node / "passphrase").write_text("incorrect horse")
    failed = genkd("publish", str(run))
    assert failed.code == 7
    assert "incorrect" not in json.dumps(failed.data)


def test_without_keys_the_hint_is_init(home: Path, genkd: Callable[..., Ran]) -> None:
    failed = genkd("keys", "show")
    assert failed.code == 7
    assert "genkd-node init" in failed.data["hint"]


def test_rotation_puts_the_next_key_in_force_on_the_chain_and_here(
    release: Path, run: Path, genkd: Callable[..., Ran], federation: Federation
) -> None:
    old = genkd("keys", "show").data["node"]
    federation.pass_time(2)  # what was recorded in the second of the rotation counts as after it
    rotated = genkd("keys", "rotate")
    assert rotated.code == 0
    new = rotated.data["node"]
    assert genkd("keys", "show").data["node"] == new != old
    assert federation.state.node(new).identity == old
    assert genkd("verify", str(release)).code == 0, "what the old key made stays valid"


def test_rotation_works_without_the_old_key_once_the_new_account_can_pay(
    node: Path, genkd: Callable[..., Ran], federation: Federation, key_folder: KeyFolder
) -> None:
    old = genkd("keys", "show").data["node"]
    (key_folder.path / old / "ethereum.json").unlink()  # lost
    (following,) = (path.stem for path in key_folder.next_folder.iterdir())
    assert genkd("keys", "rotate").code == 7
    fund(federation.rpc_url, following)
    rotated = genkd("keys", "rotate")
    assert (rotated.code, rotated.data["node"]) == (0, following)
    assert federation.state.node(following).identity == old


def test_rotation_refused_by_the_chain_changes_nothing_here(
    node: Path, genkd: Callable[..., Ran], federation: Federation
) -> None:
    old = genkd("keys", "show").data["node"]
    federation.owner.remove_node(old, federation.state.head("latest").timestamp)
    assert genkd("keys", "rotate").code == 7
    assert genkd("keys", "show").data["node"] == old


# --- publish, revoke ---


def test_publish_verify_revoke(release: Path, genkd: Callable[..., Ran]) -> None:
    valid = genkd("verify", str(release))
    assert (valid.code, valid.data["answer"]) == (0, "valid")
    assert genkd("revoke", str(release), "--reason", "defective").code == 0
    again = genkd("revoke", release.name.removeprefix("student-"), "--reason", "defective")
    assert (again.code, again.data["before"]) == (0, True)
    revoked = genkd("verify", str(release))
    assert (revoked.code, revoked.data["failed"]) == (1, 8)


def test_publish_needs_a_run(node: Path, run: Path, genkd: Callable[..., Ran]) -> None:
    text = (node / "genkd.toml").read_text().replace('run = "spring"', "")
    (node / "genkd.toml").write_text(text)
    assert genkd("publish", str(run)).code == 2


def test_publish_offline_needs_no_endpoint(
    node: Path, run: Path, genkd: Callable[..., Ran]
) -> None:
    text = (node / "genkd.toml").read_text().replace("rpc_url", "# rpc_url")
    (node / "genkd.toml").write_text(text)
    signed = genkd("publish", str(run), "--offline")
    assert (signed.code, signed.data["inclusion"]) == (0, None)
    checked = genkd("verify", signed.data["release"])
    assert checked.code == 6
    assert checked.data["summary"].startswith("signed, not recorded")
    assert genkd("publish", str(run)).code == 3


def test_parents_are_named_by_release_or_record(
    release: Path, new_run: Callable[..., Path], genkd: Callable[..., Ran], tmp_path: Path
) -> None:
    record = release.name.removeprefix("student-")
    child = genkd(
        *("publish", str(new_run("child", seed=2))),
        *("--parent", str(release), "--parent", record),
    )
    found = genkd("verify", child.data["release"], "--parents-in", str(release.parent))
    assert (found.code, found.data["parents"]) == (0, [record])
    svg = tmp_path / "lineage.svg"
    tree = genkd("lineage", child.data["release"], "--svg", str(svg))
    assert tree.data["parents"][0]["recordId"] == record
    assert record in svg.read_text()


@pytest.mark.parametrize("parent", ["0x12", "nothing-here", "."])
def test_what_is_no_parent_is_refused(
    parent: str, node: Path, run: Path, genkd: Callable[..., Ran]
) -> None:
    assert genkd("publish", str(run), "--parent", parent).code == 4
    assert not (run / "release").exists()


# --- verify ---


def test_every_check_has_its_line_for_people(
    release: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(["verify", str(release)]) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert [int(line[3:5]) for line in lines[:11]] == list(range(11))
    assert lines[0].endswith(" (from genkd.toml: registry)")  # it may have come with the release
    assert lines[-1] == "valid"


def test_a_flipped_bit_is_exit_code_1(release: Path, genkd: Callable[..., Ran]) -> None:
    path = release / "student.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x7e")
    failed = genkd("verify", str(release))
    assert (failed.code, failed.data["failed"]) == (1, 2)


def test_a_bare_file_beside_its_release_is_enough(release: Path, genkd: Callable[..., Ran]) -> None:
    bare = release.parent / "student.safetensors"
    shutil.copy(release / "student.safetensors", bare)
    assert genkd("verify", str(bare)).code == 0


def test_flags_alone_say_what_is_trusted(
    release: Path, node: Path, genkd: Callable[..., Ran], federation: Federation
) -> None:
    (node / "genkd.toml").unlink()
    flags = ["--rpc", federation.rpc_url, "--registry", federation.domain.contract]
    assert genkd("verify", str(release), *flags, "--confirmations", "0").code == 0
    # Anvil calls a block final only after many more: until then it cannot be said.
    waiting = genkd("verify", str(release), *flags)
    assert waiting.code == 6
    assert "not confirmed yet" in waiting.data["summary"]
    other = genkd("verify", str(release), "--registry", "0x" + "12" * 20, "--chain-id", "31337")
    assert (other.code, other.data["failed"]) == (1, 5)


def test_two_endpoints_must_agree(
    release: Path, genkd: Callable[..., Ran], federation: Federation
) -> None:
    both = ["--rpc", federation.rpc_url, "--rpc", federation.rpc_url]
    assert genkd("verify", str(release), *both).code == 0
    assert genkd("verify", str(release), *both[:2], "--rpc", "http://127.0.0.1:9").code == 6


def test_a_node_that_is_not_accepted_is_exit_code_1(
    release: Path, genkd: Callable[..., Ran]
) -> None:
    failed = genkd("verify", str(release), "--node", "0x" + "12" * 20)
    assert (failed.code, failed.data["failed"]) == (1, 10)


USAGE = {
    "endpoint without registry": (["--rpc", "http://127.0.0.1:9"], 2),
    "registry without chain": (["--registry", "0x" + "12" * 20], 2),
    "registry of another form": (["--registry", "0x12", "--chain-id", "1"], 3),
    "registry with a wrong checksum": (
        ["--registry", "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAeD", "--chain-id", "1"],
        4,
    ),
    "chain 0": (["--chain-id", "0"], 3),
    "confirmations later": (["--confirmations", "later"], 3),
    "endpoint is no URL": (["--registry", "0x" + "12" * 20, "--rpc", "ftp://x"], 3),
    "node is no address": (["--node", "me"], 4),
    "unknown flag": (["--trust-me"], 2),
}


@pytest.mark.parametrize("case", USAGE.values(), ids=USAGE)
def test_wrong_flags_have_their_exit_code(
    case: tuple[list[str], int], home: Path, genkd: Callable[..., Ran], tmp_path: Path
) -> None:
    flags, code = case
    assert genkd("verify", str(tmp_path), *flags).code == code


def test_nothing_at_the_path_is_exit_code_4(home: Path, genkd: Callable[..., Ran]) -> None:
    assert genkd("verify", "nothing-here").code == 4


def test_a_folder_that_is_no_release_is_exit_code_1(
    home: Path, genkd: Callable[..., Ran], tmp_path: Path
) -> None:
    failed = genkd("verify", str(tmp_path))
    assert (failed.code, failed.data["failed"]) == (1, 1)


# --- endpoints that are of no use ---


@pytest.fixture
def endpoint() -> Iterator[Callable[[bytes], str]]:
    """Start an HTTP server that answers every request with the same bytes."""
    servers = []

    def start(body: bytes) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                self.send_response(200)
                self.end_headers()
                with contextlib.suppress(OSError):  # the client had enough
                    self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


ANSWERS = {
    "nothing": b"",
    "no JSON": b"<html>",
    "another question": b'{"jsonrpc":"2.0","id":9,"result":"0x1"}',
    "a number too large": b'{"jsonrpc":"2.0","id":1,"result":"0x' + b"f" * 70 + b'"}',
    "text for a number": b'{"jsonrpc":"2.0","id":1,"result":"yes"}',
    "an error": b'{"jsonrpc":"2.0","id":1,"error":{"code":-1,"message":"no"}}',
    "deep": b"[" * 100_000,
    "another chain": b'{"jsonrpc":"2.0","id":1,"result":"0x1"}',
}


@pytest.mark.parametrize("body", ANSWERS.values(), ids=ANSWERS)
def test_an_endpoint_that_answers_nonsense_is_exit_code_6(
    body: bytes, release: Path, endpoint: Callable[[bytes], str], genkd: Callable[..., Ran]
) -> None:
    checked = genkd("verify", str(release), "--rpc", endpoint(body))
    assert (checked.code, checked.data["answer"]) == (6, "cannot_check")


def test_a_hundred_megabytes_are_not_read(
    release: Path, endpoint: Callable[[bytes], str], genkd: Callable[..., Ran]
) -> None:
    checked = genkd("verify", str(release), "--rpc", endpoint(bytes(100 * 2**20)))
    assert checked.code == 6
    assert "more than" in checked.data["summary"]


def test_a_silent_endpoint_is_waited_for_once(
    release: Path, genkd: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    from contracts import registry_access

    reader = registry_access.RegistryReader
    monkeypatch.setattr(
        registry_access,
        "RegistryReader",
        lambda *args, **named: reader(*args, **named, timeout=0.5),
    )
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        checked = genkd("verify", str(release), "--rpc", url)
    assert checked.code == 6
    assert "does not answer" in checked.data["summary"]


def test_an_address_without_the_registry_is_exit_code_6(
    release: Path, run: Path, genkd: Callable[..., Ran], federation: Federation, node: Path
) -> None:
    """A release for an address where there is no contract, or another one."""
    text = (node / "genkd.toml").read_text()
    empty = "0x" + "12" * 20
    (node / "genkd.toml").write_text(text.replace(federation.domain.contract, empty))
    signed = genkd("publish", str(run), "--offline")
    checked = genkd("verify", signed.data["release"])
    assert checked.code == 6
    assert "no contract" in checked.data["summary"]
    assert genkd("publish", str(run)).code == 6


# --- what verifying costs ---


def test_verifying_loads_neither_torch_nor_flwr_nor_web3(release: Path) -> None:
    script = (
        "import sys; from node.cli import main\n"
        f"code = main(['verify', {str(release)!r}])\n"
        "heavy = {'torch', 'flwr', 'web3', 'eth_account'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(ROOT), "HOME": str(Path.cwd()), "PATH": "/usr/bin:/bin"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
