"""Publishing: every repeat ends at the one release and the one record, whatever came between."""

from __future__ import annotations

import fcntl
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from contracts.chain_reader import RegistryReader
from contracts.refusals import RegistryRefused
from contracts.registry import RegistryClient
from genkd.errors import (
    CannotCheck,
    ConfigurationError,
    GenKDError,
    InputFileRefused,
    KeyOrSignatureError,
)
from genkd.provenance import Policy, verify
from genkd.provenance.keys import KeyFolder
from genkd.provenance.node_keys import NodeKeys
from genkd.provenance.passphrase import Passphrase
from genkd.provenance.record import run_id_of
from genkd.provenance.statement import Statement
from genkd.provenance.typed_data import Domain
from genkd.provenance.verification import Status
from node import publish as publish_module
from node.publish import Published, PublishOptions, publish

Federation = Any  # conftest.Federation
ROOT = Path(__file__).parents[2]


@pytest.fixture
def options(federation: Federation) -> PublishOptions:
    return PublishOptions(federation.domain, run_id_of("spring"), round=1)


@pytest.fixture
def client(federation: Federation, keys: NodeKeys) -> RegistryClient:
    registry: RegistryClient = federation.client(keys)
    return registry


@pytest.fixture
def published(
    run: Path,
    options: PublishOptions,
    key_folder: KeyFolder,
    keys: NodeKeys,
    client: RegistryClient,
) -> Published:
    return publish(run, options, key_folder, keys, client)


def answer(federation: Federation, release: Path) -> Status:
    reader = RegistryReader(federation.rpc_url, federation.domain, confirmations=0)
    return verify(release, policy=Policy(federation.domain), chain=reader).status


def test_a_published_student_is_valid(published: Published, federation: Federation) -> None:
    assert answer(federation, published.release) is Status.VALID
    assert published.receipt.inclusion is not None
    assert published.release.parent.name == "release"


def test_the_statement_tells_recipe_and_figures_without_fractions(published: Published) -> None:
    statement = Statement.from_bytes((published.release / "provenance.json").read_bytes())
    assert dict(statement.recipe) == {
        "budget": "30m",
        "batch": 256,
        "generator_rate": "0.004",
        "energy": True,
        "seed": str(2**60),
    }
    assert dict(statement.evaluation) == {"top1": "0.81"}  # nothing of the private teacher


def test_publishing_twice_changes_nothing(
    published: Published,
    run: Path,
    options: PublishOptions,
    key_folder: KeyFolder,
    keys: NodeKeys,
    client: RegistryClient,
    federation: Federation,
) -> None:
    before = {path: path.read_bytes() for path in published.release.iterdir()}
    again = publish(run, options, key_folder, keys, client)
    assert again == published
    assert {path: path.read_bytes() for path in published.release.iterdir()} == before
    assert len(federation.registrations()) == 1


def test_offline_signs_only_and_publishing_later_records_the_same(
    run: Path,
    options: PublishOptions,
    key_folder: KeyFolder,
    keys: NodeKeys,
    client: RegistryClient,
    federation: Federation,
) -> None:
    signed = publish(run, options, key_folder, keys, None)
    assert signed.receipt.inclusion is None
    assert verify(signed.release).signed
    assert federation.registrations() == []
    recorded = publish(run, options, key_folder, keys, client)
    assert recorded.release == signed.release
    assert answer(federation, recorded.release) is Status.VALID


def test_left_to_a_round_it_commits_the_teacher_and_records_nothing(
    run: Path,
    options: PublishOptions,
    key_folder: KeyFolder,
    keys: NodeKeys,
    client: RegistryClient,
    federation: Federation,
) -> None:
    left = publish(run, options, key_folder, keys, client, register=False)
    assert federation.registrations() == []
    commitment = left.receipt.record.teacher_commitment
    assert federation.state.teacher_committed_at(commitment, keys.address) > 0


def test_a_second_student_of_the_same_teacher_shares_the_commitment(
    published: Published,
    new_run: Callable[..., Path],
    options: PublishOptions,
    key_folder: KeyFolder,
    keys: NodeKeys,
    client: RegistryClient,
) -> None:
    second = publish(new_run("second", seed=2), options, key_folder, keys, client)
    third = publish(new_run("third", seed=3, teacher=b"other"), options, key_folder, keys, client)
    first = published.receipt.record.teacher_commitment
    assert second.receipt.record.teacher_commitment == first
    assert third.receipt.record.teacher_commitment != first


def test_killed_anywhere_and_repeated_there_is_exactly_one_record(
    run: Path, key_folder: KeyFolder, federation: Federation, tmp_path: Path
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    done = subprocess.run(
        [
            *(sys.executable, str(Path(__file__).with_name("kill_publish.py"))),
            *(federation.rpc_url, str(federation.domain.chain_id), federation.domain.contract),
            *(str(key_folder.path), str(run), str(work)),
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rounds = [json.loads(line) for line in done.stdout.splitlines()]
    kills = [one for one in rounds if one["killed"]]
    # Salt, four files, directory, two transactions, the receipt written and put in its place;
    # each before and after.
    assert len(kills) == 2 * (1 + 4 + 1 + 2 + 2)
    for one in rounds:
        assert one["registrations"] == 1, one
        assert one["answers"] == ["valid"], one


def test_a_reorganisation_is_mended_by_repeating(
    published: Published,
    run: Path,
    options: PublishOptions,
    key_folder: KeyFolder,
    keys: NodeKeys,
    client: RegistryClient,
    federation: Federation,
) -> None:
    federation.rpc.ask("anvil_reorg", 1, [])
    assert answer(federation, published.release) is Status.NOT_VALID
    federation.pass_time(5)
    again = publish(run, options, key_folder, keys, client)
    assert again.release == published.release
    assert again.receipt.inclusion != published.receipt.inclusion
    assert answer(federation, again.release) is Status.VALID
    assert len(federation.registrations()) == 1


def test_a_release_whose_deadline_passed_is_signed_anew(
    run: Path,
    options: PublishOptions,
    key_folder: KeyFolder,
    keys: NodeKeys,
    client: RegistryClient,
    federation: Federation,
) -> None:
    late = publish(run, options, key_folder, keys, None)
    federation.pass_time(publish_module.SECONDS_TO_DEADLINE + 10)
    fresh = publish(run, options, key_folder, keys, client)
    assert fresh.release != late.release
    assert answer(federation, fresh.release) is Status.VALID
    again = publish(run, options, key_folder, keys, client)
    assert again.release == fresh.release


def test_a_recorded_release_stays_the_release_after_its_deadline(
    published: Published,
    run: Path,
    options: PublishOptions,
    key_folder: KeyFolder,
    keys: NodeKeys,
    client: RegistryClient,
    federation: Federation,
) -> None:
    federation.pass_time(publish_module.SECONDS_TO_DEADLINE + 10)
    assert publish(run, options, key_folder, keys, client).release == published.release


# --- what is refused ---


def test_another_process_in_the_run_is_waited_for(
    run: Path,
    options: PublishOptions,
    key_folder: KeyFolder,
    keys: NodeKeys,
) -> None:
    with (run / "genkd-run.lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ConfigurationError, match="another process"):
            publish(run, options, key_folder, keys, None)


def spoil_json(name: str, change: Callable[[Any], object]) -> Callable[[Path], None]:
    def spoil(run: Path) -> None:
        value = json.loads((run / name).read_bytes())
        change(value)
        (run / name).write_text(json.dumps(value))

    return spoil


SPOILED: dict[str, tuple[Callable[[Path], object], type[GenKDError]]] = {
    "no run": (lambda run: (run / "genkd-run.lock").unlink(), ConfigurationError),
    "no result": (lambda run: (run / "result.json").unlink(), ConfigurationError),
    "no student": (lambda run: (run / "student.safetensors").unlink(), ConfigurationError),
    "result is no JSON": (lambda run: (run / "result.json").write_text("{"), InputFileRefused),
    "result is a list": (lambda run: (run / "result.json").write_text("[]"), InputFileRefused),
    "result is nested": (
        lambda run: (run / "result.json").write_text("[" * 50_000),
        InputFileRefused,
    ),
    "result without teacher": (
        spoil_json("result.json", lambda r: r.pop("teacher")),
        InputFileRefused,
    ),
    "teacher without hash": (
        spoil_json("result.json", lambda r: r.update(teacher={})),
        InputFileRefused,
    ),
    "teacher's hash cut": (
        spoil_json("result.json", lambda r: r["teacher"].update(sha256="ab")),
        InputFileRefused,
    ),
    "recipe is text": (spoil_json("result.json", lambda r: r.update(recipe=5)), InputFileRefused),
    "recipe with a path": (
        spoil_json("result.json", lambda r: r["recipe"].update(teacher="/home/me")),
        InputFileRefused,
    ),
    "evaluation is no JSON": (
        lambda run: (run / "evaluation.json").write_text("nan"),
        InputFileRefused,
    ),
    "another student": (
        lambda run: (run / "student.safetensors").write_bytes(b"\x08" + bytes(15)),
        InputFileRefused,
    ),
}


@pytest.mark.parametrize("case", SPOILED.values(), ids=SPOILED)
def test_a_spoiled_run_is_refused_and_nothing_is_signed(
    case: tuple[Callable[[Path], object], type[GenKDError]],
    run: Path,
    options: PublishOptions,
    key_folder: KeyFolder,
    keys: NodeKeys,
) -> None:
    spoil, error = case
    spoil(run)
    with pytest.raises(error):
        publish(run, options, key_folder, keys, None)
    assert not (run / "release").exists()


def test_a_node_that_was_not_admitted_is_told_before_it_signs(
    run: Path,
    options: PublishOptions,
    federation: Federation,
    tmp_path: Path,
    cheap_scrypt: None,
) -> None:
    folder = KeyFolder(tmp_path / "strangers-keys")
    folder.create(Passphrase("another passphrase"))
    stranger = folder.unlock(Passphrase("another passphrase"))
    with pytest.raises(KeyOrSignatureError) as caught:
        publish(run, options, folder, stranger, federation.client(stranger))
    assert "admit" in caught.value.hint
    assert not (run / "release").exists()


def test_a_run_that_was_not_opened_is_said(
    run: Path,
    options: PublishOptions,
    key_folder: KeyFolder,
    keys: NodeKeys,
    client: RegistryClient,
) -> None:
    with pytest.raises(RegistryRefused) as caught:
        publish(run, replace(options, run_id=run_id_of("summer")), key_folder, keys, client)
    assert caught.value.reason == "UnknownRun"


def test_an_endpoint_of_another_chain_is_refused(
    run: Path,
    options: PublishOptions,
    key_folder: KeyFolder,
    keys: NodeKeys,
    federation: Federation,
) -> None:
    domain = Domain(1, federation.domain.contract)
    elsewhere = RegistryClient(federation.rpc_url, domain, signer=keys, confirmations=0)
    with pytest.raises(GenKDError, match="chain"):
        publish(run, replace(options, domain=domain), key_folder, keys, elsewhere)
    assert not (run / "release").exists()


def test_an_unreachable_chain_cannot_be_checked_and_loses_nothing(
    run: Path,
    options: PublishOptions,
    key_folder: KeyFolder,
    keys: NodeKeys,
    federation: Federation,
    client: RegistryClient,
) -> None:
    signed = publish(run, options, key_folder, keys, None)
    nowhere = RegistryClient("http://127.0.0.1:9", federation.domain, signer=keys, timeout=2)
    with pytest.raises(CannotCheck):
        publish(run, options, key_folder, keys, nowhere)
    assert publish(run, options, key_folder, keys, client).release == signed.release
