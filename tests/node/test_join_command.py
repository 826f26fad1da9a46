"""`genkd-node join` and `status`: who is asked what, what is written, and what comes next."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from contracts.app_bundle import app_bundle_sha256
from contracts.enrolment import FederationCard, JoinAnswer
from genkd.card import InputCard, ModelCard, ModelSpec, card_to_json
from genkd.errors import CoordinatorUnreachable
from genkd.provenance.keys import KeyFolder
from genkd.provenance.record import run_id_of
from genkd.weights import write_model
from node import enrolment, join_command, supernode
from node.answers import Answer, AnswerLog
from node.cli import main
from node.membership import Joined, Membership, Running
from node.policy import Policy

ADDRESS = "federation.example:9092"
FINGERPRINT = "5f" * 32
ASK = ["join", ADDRESS, "--ca-fingerprint", FINGERPRINT]
CARD = FederationCard(
    coordinator="0x" + "0" * 39 + "1",
    chain_id=31337,
    registry="0x" + "0" * 39 + "2",
    rpc_url=None,
    confirmations=1,
    app_sha256=app_bundle_sha256(),
    runs=("spring", "autumn"),
)


@dataclass
class Coordinator:
    """Answers `enrol` and `ask_state`, one answer after the other; None does not answer."""

    answers: list[JoinAnswer | None] = field(default_factory=lambda: [JoinAnswer("admitted")])
    card: FederationCard = CARD
    asked: list[tuple[Any, ...]] = field(default_factory=list)
    started: list[Path] = field(default_factory=list)

    def _next(self) -> JoinAnswer:
        answer = self.answers.pop(0)
        if answer is None:
            raise CoordinatorUnreachable(f"{ADDRESS} does not answer", hint="wait")
        return answer

    def enrol(self, *arguments: Any) -> JoinAnswer:
        self.asked.append(arguments)
        folder = arguments[-1]
        answer = self._next()
        (folder / "ca.pem").write_text("authority")
        (folder / "federation.json").write_bytes(self.card.to_bytes())
        return answer

    def ask_state(self, coordinator: str, folder: Path, node: str, **_: Any) -> JoinAnswer:
        self.asked.append((coordinator, folder, node))
        return self._next()


@pytest.fixture
def coordinator(monkeypatch: pytest.MonkeyPatch) -> Coordinator:
    found = Coordinator()
    monkeypatch.setattr(enrolment, "enrol", found.enrol)
    monkeypatch.setattr(enrolment, "ask_state", found.ask_state)
    monkeypatch.setattr(
        supernode, "run_membership", lambda folder, settings: found.started.append(folder)
    )
    monkeypatch.setattr(join_command.time, "sleep", lambda _: None)
    return found


@pytest.fixture(autouse=True)
def home(
    tmp_path: Path, made_keys: Path, monkeypatch: pytest.MonkeyPatch, cheap_scrypt: None
) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("GENKD_KEYS", str(made_keys))
    (tmp_path / "passphrase").write_text("correct horse battery")
    (tmp_path / "passphrase").chmod(0o600)
    monkeypatch.setenv("GENKD_KEY_PASSWORD_FILE", str(tmp_path / "passphrase"))
    return tmp_path


@pytest.fixture
def node(made_keys: Path) -> str:
    return KeyFolder(made_keys).profile().node


def error_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    code = main([*arguments, "--json"])
    value = json.loads(capsys.readouterr().out)
    return code, value["error"]["message"] if "error" in value else ""


def test_join_asks_once_writes_the_policy_and_starts(
    coordinator: Coordinator, home: Path, node: str
) -> None:
    assert main([*ASK, "--run", "spring"]) == 0
    ((address, fingerprint, profile, keys, key, folder),) = coordinator.asked
    assert (address, fingerprint, folder) == (ADDRESS, FINGERPRINT, home / "membership")
    assert profile.node == keys.address == node
    assert key.startswith("ecdsa-sha2-nistp256 ")
    assert coordinator.started == [folder]
    policy = Policy.load(folder)
    assert policy.node == node
    assert policy.runs == ("spring",)
    assert policy.app_sha256 == {app_bundle_sha256()}
    assert policy.releases == (home / "runs",)
    assert Membership(folder).joined() == Joined(
        ADDRESS, FINGERPRINT, node, ("spring",), "admitted"
    )


def test_secrets_are_for_their_owner_only(coordinator: Coordinator, home: Path) -> None:
    os.umask(0)
    try:
        assert main([*ASK, "--run", "spring"]) == 0
    finally:
        os.umask(0o022)
    folder = home / "membership"
    assert folder.stat().st_mode & 0o777 == 0o700
    for name in ("supernode.key", "executor.secret"):
        assert (folder / name).stat().st_mode & 0o777 == 0o600


def test_joining_again_asks_nobody_and_no_passphrase_and_changes_nothing(
    coordinator: Coordinator, home: Path
) -> None:
    assert main([*ASK, "--run", "spring"]) == 0
    (home / "passphrase").unlink()
    policy = home / "membership" / "policy.toml"
    policy.write_text(policy.read_text() + "\n# mine\n")
    before = {p: p.read_bytes() for p in (home / "membership").iterdir() if p.is_file()}
    assert main(ASK) == 0
    assert len(coordinator.asked) == 1
    assert len(coordinator.started) == 2
    assert {p: p.read_bytes() for p in (home / "membership").iterdir() if p.is_file()} == before


def test_no_wait_ends_with_75_and_says_who_has_to_do_what(
    coordinator: Coordinator, node: str, capsys: pytest.CaptureFixture[str]
) -> None:
    coordinator.answers = [JoinAnswer("pending"), JoinAnswer("admitted")]
    assert main([*ASK, "--run", "spring", "--no-wait"]) == 75
    assert f"genkd-coordinator admit {node}" in capsys.readouterr().err
    assert coordinator.started == []
    assert main([*ASK, "--run", "spring", "--no-wait"]) == 0
    assert len(coordinator.started) == 1


def test_it_waits_until_it_is_admitted_over_a_coordinator_that_is_away(
    coordinator: Coordinator, capsys: pytest.CaptureFixture[str]
) -> None:
    pending = JoinAnswer("pending")
    coordinator.answers = [pending, pending, *[None] * 50, pending, JoinAnswer("admitted")]
    assert main([*ASK, "--run", "spring"]) == 0
    err = capsys.readouterr().err
    assert err.count("does not answer") == 1
    assert err.count("waiting for") == 1
    assert len(coordinator.started) == 1


@pytest.mark.parametrize("first", [[], [JoinAnswer("pending")]], ids=["at once", "later"])
def test_a_refusal_ends_with_9_and_its_reason_is_shown_not_obeyed(
    first: list[JoinAnswer | None],
    coordinator: Coordinator,
    capsys: pytest.CaptureFixture[str],
) -> None:
    coordinator.answers = [*first, JoinAnswer("refused", "removed in May\x1b[2J")]
    assert main([*ASK, "--run", "spring"]) == 9
    err = capsys.readouterr().err
    assert "removed in May" in err
    assert "\x1b" not in err
    assert coordinator.started == []


def test_an_unreachable_coordinator_at_the_first_question_is_5(
    coordinator: Coordinator, capsys: pytest.CaptureFixture[str]
) -> None:
    coordinator.answers = [None]
    assert error_of(capsys, *ASK, "--run", "spring")[0] == 5


def other_fingerprint(arguments: list[str]) -> list[str]:
    return [argument.replace(FINGERPRINT, "6e" * 32) for argument in arguments]


def test_a_folder_belongs_to_one_federation(
    coordinator: Coordinator, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*ASK, "--run", "spring"]) == 0
    capsys.readouterr()
    code, message = error_of(capsys, *other_fingerprint(ASK))
    assert code == 3
    assert FINGERPRINT in message
    assert len(coordinator.started) == 1


def test_a_coordinator_that_moved_keeps_its_members(coordinator: Coordinator, home: Path) -> None:
    assert main([*ASK, "--run", "spring"]) == 0
    assert main(["join", "new.example:1", "--ca-fingerprint", FINGERPRINT]) == 0
    joined = Membership(home / "membership").joined()
    assert joined is not None
    assert joined.coordinator == "new.example:1"
    assert len(coordinator.asked) == 1


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["join", ADDRESS, "--run", "spring"], 2),
        (["join", "federation.example", "--ca-fingerprint", FINGERPRINT, "--run", "spring"], 2),
        (["join", "a b:1", "--ca-fingerprint", FINGERPRINT, "--run", "spring"], 2),
        (["join", ADDRESS, "--ca-fingerprint", "5f5f", "--run", "spring"], 2),
        (ASK, 2),
        ([*ASK, "--run", "spring", "--keys", "nowhere"], 7),
    ],
    ids=["no fingerprint", "no port", "no host", "short fingerprint", "no run", "no keys"],
)
def test_a_wrong_command_line_sends_nothing(
    arguments: list[str], code: int, coordinator: Coordinator, capsys: pytest.CaptureFixture[str]
) -> None:
    assert error_of(capsys, *arguments)[0] == code
    assert coordinator.asked == []


def test_a_coordinator_of_another_version_is_said_now_not_answered_with_silence(
    coordinator: Coordinator, capsys: pytest.CaptureFixture[str]
) -> None:
    values = {name: getattr(CARD, name) for name in CARD.__dataclass_fields__}
    coordinator.card = FederationCard(**values | {"app_sha256": "0" * 64})
    code, message = error_of(capsys, *ASK, "--run", "spring")
    assert code == 3
    assert "another version" in message
    assert coordinator.started == []


@pytest.mark.parametrize(("setting", "value"), [("CHAIN_ID", "5"), ("REGISTRY", "0x" + "ab" * 20)])
def test_a_federation_on_another_chain_than_the_trusted_one_is_said_now(
    setting: str,
    value: str,
    coordinator: Coordinator,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(f"GENKD_{setting}", value)
    code, message = error_of(capsys, *ASK, "--run", "spring")
    assert code == 3
    assert value in message
    assert coordinator.started == []


def test_a_run_that_is_not_open_yet_is_mentioned(
    coordinator: Coordinator, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*ASK, "--run", "sprnig"]) == 0
    err = capsys.readouterr().err
    assert "not open at the coordinator yet: sprnig (open: spring, autumn)" in err


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda text: text.replace("node = ", "nodes = "), "nodes"),
        (lambda text: text.replace(app_bundle_sha256(), "0" * 64), "does not allow the app"),
        (lambda text: text.replace('node = "0x', 'node = "0y'), "policy.toml"),
        (lambda text: "runs = [", "policy.toml"),
    ],
    ids=["unknown key", "another app", "no address", "no TOML"],
)
def test_a_policy_with_a_mistake_is_found_at_the_start(
    edit: Callable[[str], str],
    message: str,
    coordinator: Coordinator,
    home: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([*ASK, "--run", "spring"]) == 0
    capsys.readouterr()
    policy = home / "membership" / "policy.toml"
    policy.write_text(edit(policy.read_text()))
    code, said = error_of(capsys, *ASK)
    assert code == 3
    assert message in said
    assert len(coordinator.started) == 1


@pytest.mark.parametrize(
    "damage", [b"", b"{", b"[]", b'{"coordinator": 3}', b"[" * 100_000], ids=repr
)
def test_a_damaged_membership_is_an_error_not_a_traceback(
    damage: bytes, coordinator: Coordinator, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*ASK, "--run", "spring"]) == 0
    capsys.readouterr()
    (home / "membership" / "joined.json").write_bytes(damage)
    for arguments in (ASK, ["status"]):
        code, message = error_of(capsys, *arguments)
        assert code == 3
        assert "joined.json is damaged" in message


# -- status ----------------------------------------------------------------------------------------


def status_of(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["status", "--json"]) == 0
    value: dict[str, Any] = json.loads(capsys.readouterr().out)["data"]
    return value


def share(folder: Path, run: str, round_number: int) -> Path:
    path = folder / "shared" / f"0x{run_id_of(run).hex()}" / f"round-{round_number:06d}"
    release = path / f"student-0x{round_number:064x}"
    release.mkdir(parents=True)
    return release


def test_status_before_joining_says_how_to_join(capsys: pytest.CaptureFixture[str]) -> None:
    code, message = error_of(capsys, "status")
    assert code == 3
    assert "no membership" in message
    assert not Path("membership").exists()


def test_status_says_what_comes_next(
    coordinator: Coordinator, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*ASK, "--run", "spring", "--run", "autumn"]) == 0
    folder = home / "membership"
    newest = share(folder, "spring", 10)  # by its number, not by its name or its age
    for round_number in (9, 1, 0):
        share(folder, "spring", round_number)
    AnswerLog(folder).note(Answer("collect", run_id_of("spring"), 1, b"", 0, "already collected"))
    coordinator.answers = [JoinAnswer("admitted")]
    data = status_of(capsys)
    spring, autumn = data["runs"]
    assert spring["shared"] == {"round": 10, "path": str(newest)}
    distill, publish = spring["next"]
    assert f"--init-student {newest / 'student.safetensors'} --recipe continue" in distill
    published = "genkd-node publish runs/spring-11 --run spring --round 11 --for-round"
    assert publish == f"{published} --parent {newest}"
    assert autumn["shared"] is None
    assert "--init-student" not in autumn["next"][0]
    assert "--parent" not in autumn["next"][1]
    assert data["coordinator"]["reachable"] is True
    assert data["supernode"] == {
        "running": False, "pid": None, "state": "stopped", "since": None, "reason": "",
    }  # fmt: skip
    assert data["answers"][0]["outcome"] == "already collected"
    coordinator.answers = [None]
    capsys.readouterr()
    assert main(["status"]) == 0
    err = capsys.readouterr().err
    assert "does not answer" in err
    assert "SuperNode    not running" in err
    assert publish in err
    assert "already collected" in err


@pytest.mark.parametrize("run", ["a b", "--fresh", "$(touch x)", "it's"], ids=str)
def test_the_commands_shown_survive_a_shell(
    run: str, coordinator: Coordinator, capsys: pytest.CaptureFixture[str]
) -> None:
    import shlex

    assert main([*ASK, f"--run={run}"]) == 0
    coordinator.answers = [None]
    _, publish = status_of(capsys)["runs"][0]["next"]
    words = shlex.split(publish)
    assert words[words.index("--round") - 1].removeprefix("--run=") == run


def test_status_names_the_shared_students_architecture(
    coordinator: Coordinator, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*ASK, "--run", "spring"]) == 0
    release = share(home / "membership", "spring", 0)
    card = ModelCard(ModelSpec("resnet8-half", 2, 1), InputCard(8, 8, 1, (0.5,), (0.25,)), None, "")
    write_model(
        release / "student.safetensors", {"w": torch.zeros(1)}, {"v": 1, "card": card_to_json(card)}
    )
    coordinator.answers = [None]
    distill, _ = status_of(capsys)["runs"][0]["next"]
    assert "--teacher TEACHER --student resnet8-half --init-student" in distill


def test_status_says_that_a_release_was_refused_until_another_went_out(
    coordinator: Coordinator, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*ASK, "--run", "spring"]) == 0
    log = AnswerLog(home / "membership")
    given = Answer("collect", run_id_of("spring"), 1, b"1" * 32, 900, "given out")
    log.note(given)
    coordinator.answers = [None] * 3
    assert status_of(capsys)["runs"][0]["refused"] is None
    log.note(replace(given, sent_bytes=0, outcome="the coordinator refuses it: a value is NaN"))
    refused = status_of(capsys)["runs"][0]["refused"]
    assert (refused["round"], refused["record_id"]) == (1, "0x" + "31" * 32)
    assert main(["status"]) == 0
    said = capsys.readouterr().err
    assert "refused    round 1: the coordinator refuses it: a value is NaN" in said
    assert "publish again" in said
    log.note(replace(given, record_id=b"2" * 32))
    coordinator.answers = [None]
    assert status_of(capsys)["runs"][0]["refused"] is None


def test_status_shows_a_running_supernode(
    coordinator: Coordinator, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*ASK, "--run", "spring"]) == 0
    membership = Membership(home / "membership")
    coordinator.answers = [None]
    with membership.locked():
        membership.note(Running(os.getpid(), "away", 1_700_000_000, "it does not answer"))
        supernode_data = status_of(capsys)["supernode"]
    assert supernode_data == {
        "running": True, "pid": os.getpid(), "state": "away", "since": 1_700_000_000,
        "reason": "it does not answer",
    }  # fmt: skip
    # What a killed one left behind is not believed.
    coordinator.answers = [None]
    assert status_of(capsys)["supernode"]["running"] is False


def test_status_changes_nothing(
    coordinator: Coordinator, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*ASK, "--run", "spring"]) == 0
    coordinator.answers = [None]
    before = {p: p.stat().st_mtime_ns for p in (home / "membership").rglob("*")}
    status_of(capsys)
    assert {p: p.stat().st_mtime_ns for p in (home / "membership").rglob("*")} == before


# -- the SuperNode's key ---------------------------------------------------------------------------


def test_the_key_is_one_that_flower_takes_and_is_kept(home: Path) -> None:
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import (
        load_ssh_private_key,
        load_ssh_public_key,
    )

    membership = Membership.open(home / "m")
    membership.make_secrets()
    private = load_ssh_private_key(membership.key.read_bytes(), None)
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    public = load_ssh_public_key((home / "m" / "supernode.pub").read_bytes())
    assert private.public_key() == public
    before = membership.key.read_bytes(), membership.secret.read_bytes()
    (home / "m" / "supernode.pub").unlink()
    membership.make_secrets()
    assert (membership.key.read_bytes(), membership.secret.read_bytes()) == before
    assert (home / "m" / "supernode.pub").exists()


@pytest.mark.parametrize("name", ["supernode.key", "executor.secret"])
def test_a_secret_that_others_can_read_is_refused(
    name: str, coordinator: Coordinator, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*ASK, "--run", "spring"]) == 0
    capsys.readouterr()
    (home / "membership" / name).chmod(0o640)
    assert error_of(capsys, *ASK)[0] == 7
