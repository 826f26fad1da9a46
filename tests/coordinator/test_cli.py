"""The coordinator's program against a development chain of its own, from nothing to a round."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from contracts.development_chain import running
from coordinator import cli
from coordinator.rounds import releases_in
from genkd.canonical import canonical_json
from genkd.errors import UsageError
from genkd.provenance import Domain, Policy, keystore, verify
from genkd.provenance.draft import Draft, build_release
from genkd.provenance.keys import KeyFolder
from genkd.provenance.passphrase import Passphrase
from genkd.provenance.record import TeacherMessage, commit_to_teacher, run_id_of
from genkd.provenance.release import read_receipt, replace_receipt

PASSPHRASE = "correct horse battery"
RUN = run_id_of("spring")


@dataclass
class Ran:
    code: int
    data: dict[str, Any]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working folder and home, a passphrase file; its chain is stopped at the end."""
    for name in [name for name in os.environ if name.startswith("GENKD_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(keystore, "SCRYPT_N", 2**12)
    path = tmp_path / "home"
    path.mkdir()
    monkeypatch.chdir(path)
    monkeypatch.setenv("HOME", str(path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(path / ".config"))
    password = path / "passphrase"
    password.write_text(PASSPHRASE)
    password.chmod(0o600)
    monkeypatch.setenv("GENKD_COORDINATOR_KEY_PASSWORD_FILE", str(password))
    yield path
    cli.main(["chain", "down"])


@pytest.fixture
def genkd(home: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    def run(*arguments: str) -> Ran:
        capsys.readouterr()
        code = cli.main([*arguments, "--json"])
        value = json.loads(capsys.readouterr().out)
        return Ran(code, value["data"] if value["status"] == "ok" else value["error"])

    return run


@pytest.fixture
def chain(genkd: Callable[..., Ran]) -> dict[str, Any]:
    """Keys, and a chain with a registry that they own."""
    assert genkd("init").code == 0
    up = genkd("chain", "up", "--port", "0")
    assert up.code == 0, up.data
    return up.data


def student(seed: int) -> bytes:
    card = {
        "v": 1,
        "architecture": "resnet8",
        "num_classes": 10,
        "input": {"height": 32, "width": 32, "channels": 1, "mean": ["0.5"], "std": ["0.5"]},
    }
    header = {
        "__metadata__": {"genkd": canonical_json({"v": 1, "card": card}).decode()},
        "fc.weight": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + struct.pack("<2f", seed, 0.5)


@pytest.fixture
def node(home: Path, chain: dict[str, Any], genkd: Callable[..., Ran]) -> Any:
    """A node's keys, admitted, its teacher committed; the run is open."""
    folder = KeyFolder(home / "node-keys")
    folder.create(Passphrase(PASSPHRASE))
    keys = folder.unlock(Passphrase(PASSPHRASE))
    assert genkd("open-run", "spring").code == 0
    assert genkd("admit", str(folder.profile_path())).code == 0
    commit_teacher(chain, keys)
    return keys


def domain_of(chain: dict[str, Any]) -> Domain:
    return Domain(chain["chain_id"], chain["registry"])


def client_of(chain: dict[str, Any], keys: Any) -> Any:
    from contracts.registry import RegistryClient

    return RegistryClient(chain["rpc_url"], domain_of(chain), signer=keys, confirmations=0)


def commitment(keys: Any) -> bytes:
    return commit_to_teacher(keys.address, hashlib.sha256(b"teacher").digest(), bytes(32))


def commit_teacher(chain: dict[str, Any], keys: Any) -> None:
    client = client_of(chain, keys)
    deadline = client.state.head("latest").timestamp + 3600
    message = TeacherMessage(commitment(keys), keys.address, deadline)
    client.commit_teacher(message, keys.sign(message, client.domain))


def make_release(chain: dict[str, Any], keys: Any, seed: int, **changes: object) -> Path:
    now = client_of(chain, keys).state.head("latest").timestamp
    draft = Draft(
        student=student(seed),
        domain=domain_of(chain),
        run_id=RUN,
        round=1,
        parents=(),
        teacher_commitment=commitment(keys),
        recipe={},
        evaluation={},
        version="0.1.0",
        deadline=now + 3600,
    )
    return build_release(Path("releases"), replace(draft, **changes), keys)  # type: ignore[arg-type]


def answer(chain: dict[str, Any], release: Path) -> str:
    from contracts.chain_reader import RegistryReader

    reader = RegistryReader(chain["rpc_url"], domain_of(chain), confirmations=0)
    return verify(release, policy=Policy(domain_of(chain)), chain=reader).summary


# --- the chain ---


def test_chain_up_writes_what_both_programs_need(home: Path, chain: dict[str, Any]) -> None:
    settings = tomllib.loads((home / "genkd.toml").read_text())
    assert settings == {name: chain[name] for name in settings}
    assert {"rpc_url", "chain_id", "registry", "confirmations"} == set(settings)


def test_chain_up_again_finds_the_same_registry(
    chain: dict[str, Any], genkd: Callable[..., Ran]
) -> None:
    again = genkd("chain", "up", "--port", "0")
    assert again.data == chain


def test_chain_down_and_up_keeps_what_was_recorded(
    node: Any, chain: dict[str, Any], genkd: Callable[..., Ran]
) -> None:
    release = make_release(chain, node, 1)
    receipt = read_receipt(release)
    client_of(chain, node).register(receipt.record, receipt.signature)
    assert genkd("chain", "down").data == {"ran": True}
    assert genkd("chain", "status").data["running"] is False
    assert answer(chain, release).startswith("cannot check")
    up = genkd("chain", "up", "--port", "0")
    assert up.data["registry"] == chain["registry"]
    assert answer(up.data, release) == "valid"


def test_chain_status_names_the_registry(chain: dict[str, Any], genkd: Callable[..., Ran]) -> None:
    status = genkd("chain", "status").data
    assert status["registry"] == chain["registry"]
    assert (status["running"], status["fault"]) == (True, None)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"chainId":31337,"registry":"0x12"}'])
def test_a_lost_note_of_the_registry_means_a_new_one(
    text: str, home: Path, chain: dict[str, Any], genkd: Callable[..., Ran]
) -> None:
    (home / "chain" / "registry.json").write_text(text)
    again = genkd("chain", "up", "--port", "0")
    assert again.code == 0
    assert again.data["registry"] != chain["registry"]


def test_a_chain_of_other_keys_is_refused(
    home: Path, chain: dict[str, Any], genkd: Callable[..., Ran]
) -> None:
    others = str(home / "others")
    assert genkd("init", "--keys", others).code == 0
    failed = genkd("chain", "up", "--port", "0", "--keys", others)
    assert failed.code == 3
    assert "belongs to" in failed.data["message"]


def test_without_keys_the_chain_is_not_started(home: Path, genkd: Callable[..., Ran]) -> None:
    assert genkd("chain", "up", "--port", "0").code == 7
    assert running(home / "chain") is None


def test_without_anvil_it_says_how_to_get_it(
    home: Path, genkd: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    genkd("init")
    monkeypatch.setenv("GENKD_ANVIL", str(home / "nothing"))
    assert genkd("chain", "up").code == 3


def test_init_twice_never_overwrites(genkd: Callable[..., Ran]) -> None:
    assert genkd("init").code == 0
    assert genkd("init").code == 7


# --- nodes and runs ---


def test_admitting_twice_is_no_error(node: Any, home: Path, genkd: Callable[..., Ran]) -> None:
    again = genkd("admit", str(KeyFolder(home / "node-keys").profile_path()))
    assert (again.code, again.data["before"]) == (0, True)


def test_an_altered_profile_is_not_admitted(
    node: Any, home: Path, genkd: Callable[..., Ran]
) -> None:
    profile = json.loads(KeyFolder(home / "node-keys").profile_path().read_bytes())
    profile["nextKeyHash"] = "0x" + "1" * 64
    (home / "profile.json").write_text(json.dumps(profile))
    assert genkd("admit", "profile.json").code == 7


def test_opening_a_run_twice_is_no_error_and_another_configuration_is(
    node: Any, home: Path, genkd: Callable[..., Ran]
) -> None:
    assert genkd("open-run", "spring").data["before"] is True
    (home / "federation.toml").write_text("x = 1")
    assert genkd("open-run", "spring", "--configuration", "federation.toml").code == 9
    assert genkd("open-run", "summer", "--configuration", "federation.toml").code == 0


def test_a_removed_node_is_void_from_then_on(
    node: Any, chain: dict[str, Any], genkd: Callable[..., Ran]
) -> None:
    release = make_release(chain, node, 1)
    receipt = read_receipt(release)
    client_of(chain, node).register(receipt.record, receipt.signature)
    assert genkd("remove", node.address, "--from", "2020-01-01T00:00Z").code == 0
    assert "check 7 failed" in answer(chain, release)


@pytest.mark.parametrize("when", ["yesterday", "2026-11-03T14:00", "", "9" * 30])
def test_what_is_no_time_is_refused(when: str, node: Any, genkd: Callable[..., Ran]) -> None:
    assert genkd("remove", node.address, "--from", when).code == 2


def test_a_removal_in_the_future_is_refused(node: Any, genkd: Callable[..., Ran]) -> None:
    assert genkd("remove", node.address, "--from", "2100-01-01T00:00Z").code == 9


def test_the_owner_revokes_any_record(
    node: Any, chain: dict[str, Any], genkd: Callable[..., Ran]
) -> None:
    release = make_release(chain, node, 1)
    receipt = read_receipt(release)
    client_of(chain, node).register(receipt.record, receipt.signature)
    record = release.name.removeprefix("student-")
    assert genkd("revoke", record, "--reason", "defective").code == 0
    assert genkd("revoke", record, "--reason", "defective").data["before"] is True
    assert "check 8 failed" in answer(chain, release)


# --- rounds ---


def test_a_round_records_every_release_with_its_proof(
    node: Any, chain: dict[str, Any], genkd: Callable[..., Ran]
) -> None:
    releases = [make_release(chain, node, seed) for seed in range(5)]
    done = genkd("commit-round", "releases", "--run", "spring", "--round", "1")
    assert (done.code, len(done.data["releases"])) == (0, 5)
    assert {answer(chain, release) for release in releases} == {"valid"}
    before = [(release / "receipt.json").read_bytes() for release in releases]
    again = genkd("commit-round", "releases", "--run", "spring", "--round", "1")
    assert again.data == done.data
    assert [(release / "receipt.json").read_bytes() for release in releases] == before


def test_a_round_interrupted_before_the_proofs_is_completed_by_repeating(
    node: Any, chain: dict[str, Any], genkd: Callable[..., Ran]
) -> None:
    releases = [make_release(chain, node, seed) for seed in range(3)]
    genkd("commit-round", "releases", "--run", "spring", "--round", "1")
    for release in releases[1:]:
        replace_receipt(release, replace(read_receipt(release), inclusion=None))
    assert genkd("commit-round", "releases", "--run", "spring", "--round", "1").code == 0
    assert {answer(chain, release) for release in releases} == {"valid"}


def test_a_second_root_for_a_round_is_refused(
    node: Any, chain: dict[str, Any], genkd: Callable[..., Ran]
) -> None:
    first = make_release(chain, node, 1)
    genkd("commit-round", str(first), "--run", "spring", "--round", "1")
    second = make_release(chain, node, 2)
    refused = genkd("commit-round", "releases", "--run", "spring", "--round", "1")
    assert refused.code == 9
    assert answer(chain, first) == "valid"
    assert "check 7 failed" in answer(chain, second)


def test_only_the_runs_coordinator_commits_its_rounds(
    node: Any, chain: dict[str, Any], genkd: Callable[..., Ran]
) -> None:
    genkd("open-run", "summer", "--coordinator", node.address)
    release = make_release(chain, node, 1, run_id=run_id_of("summer"))
    refused = genkd("commit-round", str(release), "--run", "summer", "--round", "1")
    assert refused.code == 7


def tampered(chain: dict[str, Any], node: Any) -> Path:
    release = make_release(chain, node, 9)
    data = (release / "student.safetensors").read_bytes()
    (release / "student.safetensors").write_bytes(data[:-1] + b"\x7f")
    return release


def of_another_round(chain: dict[str, Any], node: Any) -> Path:
    return make_release(chain, node, 9, round=2)


def of_another_run(chain: dict[str, Any], node: Any) -> Path:
    return make_release(chain, node, 9, run_id=run_id_of("summer"))


def of_another_registry(chain: dict[str, Any], node: Any) -> Path:
    return make_release(chain, node, 9, domain=Domain(31337, "0x" + "12" * 20))


def of_an_uncommitted_teacher(chain: dict[str, Any], node: Any) -> Path:
    return make_release(chain, node, 9, teacher_commitment=bytes(32))


def past_its_deadline(chain: dict[str, Any], node: Any) -> Path:
    return make_release(chain, node, 9, deadline=1_700_000_000)


VOID = [
    *(tampered, of_another_round, of_another_run, of_another_registry),
    *(of_an_uncommitted_teacher, past_its_deadline),
]


@pytest.mark.parametrize("make", VOID, ids=lambda make: make.__name__)
def test_a_release_that_would_be_void_stops_the_round_before_it_is_committed(
    make: Callable[[dict[str, Any], Any], Path],
    node: Any,
    chain: dict[str, Any],
    genkd: Callable[..., Ran],
) -> None:
    make_release(chain, node, 1)
    make(chain, node)
    refused = genkd("commit-round", "releases", "--run", "spring", "--round", "1")
    assert refused.code == 1
    state = client_of(chain, node).state
    assert state.round(RUN, 1).recorded_at == 0


def test_a_stranger_in_the_round_stops_it(
    node: Any, chain: dict[str, Any], genkd: Callable[..., Ran], home: Path
) -> None:
    folder = KeyFolder(home / "strangers-keys")
    folder.create(Passphrase(PASSPHRASE))
    make_release(chain, folder.unlock(Passphrase(PASSPHRASE)), 1)
    refused = genkd("commit-round", "releases", "--run", "spring", "--round", "1")
    assert refused.code == 1
    assert "not enrolled" in refused.data["message"]


def test_no_release_among_the_paths_is_a_usage_error(home: Path) -> None:
    (home / "empty").mkdir()
    with pytest.raises(UsageError):
        releases_in([home / "empty", home / "nothing"])
