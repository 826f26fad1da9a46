"""From a finished distillation to a recorded release; safe to repeat, and to kill anywhere.

    published = publish(run, PublishOptions(domain, run_id, round=1), key_folder, keys, registry)

The steps, each of which finds what an earlier attempt left:

1. read the run: its student, its recipe, its figures;
2. take the release that is there for the same student and place, or build one in one step;
3. commit to the teacher on the chain, unless that is done;
4. register the record and wait until it is confirmed; after a reorganisation, again;
5. write into the receipt where the chain keeps it.

The record's deadline is chosen once, in step 2, before anything is sent: a repeat sends the very
same record, and the registry takes each record once.
"""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from genkd import __version__
from genkd.digest import tensor_root
from genkd.durable import TEMPORARY_PREFIX, unwritable
from genkd.errors import ConfigurationError, InputFileRefused, KeyOrSignatureError
from genkd.finished_run import FinishedRun, read_finished_run
from genkd.provenance.draft import Draft, build_release
from genkd.provenance.keys import KeyFolder
from genkd.provenance.node_keys import NodeKeys
from genkd.provenance.receipt import Inclusion, Receipt
from genkd.provenance.record import TeacherMessage, commit_to_teacher, parents_root
from genkd.provenance.release import (
    read_receipt,
    replace_receipt,
)
from genkd.provenance.typed_data import Domain, to_hex
from genkd.run_directory import LOCK_FILE, RELEASE_FOLDER

if TYPE_CHECKING:
    from contracts.registry import RegistryClient

# How long a signed record may still be put on the chain. Long enough for a coordinator's round,
# short enough that a record nobody sent does not turn up years later.
SECONDS_TO_DEADLINE = 30 * 24 * 3600
# A release this close to its deadline is signed anew rather than sent.
SECONDS_TO_SPARE = 600


@dataclass(frozen=True)
class PublishOptions:
    """Where a student is published.

    Attributes:
        domain: The registry.
        run_id: The run, 32 bytes.
        round: The round, 0 to 2^32 - 1.
        parents: Record ids of the students it was made from.
    """

    domain: Domain
    run_id: bytes
    round: int = 0
    parents: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class Published:
    """What publishing left.

    Attributes:
        release: The release directory.
        receipt: Its receipt; `inclusion` is None if it is signed only.
    """

    release: Path
    receipt: Receipt


def publish(
    run: Path,
    options: PublishOptions,
    folder: KeyFolder,
    keys: NodeKeys,
    registry: RegistryClient | None,
    *,
    register: bool = True,
) -> Published:
    """Release the student of a run.

    Args:
        run: A finished run directory.
        options: Where to publish it.
        folder: The node's key folder, which keeps the salt of the teacher's commitment.
        keys: The node's keys, unlocked.
        registry: Where to record it; None signs only.
        register: Record it; otherwise only commit the teacher, and leave the recording to the
            coordinator's round.

    Raises:
        ConfigurationError: If the run is not finished, or another process works in it.
        InputFileRefused: If a file of the run is damaged.
        KeyOrSignatureError: If the node is not enrolled with these keys.
        CannotCheck, RefusedByPolicy, Stopped: As `contracts.registry.RegistryClient`.
        ResourceExhausted: If the run directory cannot be written.
    """
    with _locked(run):
        _delete_temporaries(run / RELEASE_FOLDER)
        finished = read_finished_run(run)
        salt = folder.teacher_salt(keys.address, finished.teacher_sha256)
        commitment = commit_to_teacher(keys.address, finished.teacher_sha256, salt)
        if registry is not None:
            _require_enrolled(registry, keys, options)
        path = _release_for(run, finished, options, commitment, keys, registry)
        receipt = read_receipt(path)
        if registry is None:
            return Published(path, receipt)
        _commit_teacher(registry, keys, commitment)
        if not register:
            return Published(path, receipt)
        place = registry.await_record(receipt.record, receipt.signature)
        inclusion = Inclusion(place.transaction, place.block, proof=None)
        if receipt.inclusion is None or receipt.inclusion.proof is None:
            receipt = replace(receipt, inclusion=inclusion)
            replace_receipt(path, receipt)
        return Published(path, receipt)


# ------------------------------------------------------------------ the run directory


def _delete_temporaries(folder: Path) -> None:
    """Remove what a kill left half-written; nobody else works here."""
    for path in folder.glob(f"{TEMPORARY_PREFIX}*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def _locked(run: Path) -> Iterator[None]:
    """Keep distillations and other publications out of a run directory."""
    try:
        lock = (run / LOCK_FILE).open("rb")
    except FileNotFoundError as error:
        raise ConfigurationError(
            f"{run} is no run directory", hint="name the folder that distill wrote"
        ) from error
    except OSError as error:
        raise unwritable(run / LOCK_FILE, error) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigurationError(
                f"another process works in {run}", hint="wait for it, then repeat the command"
            ) from error
        yield


# ------------------------------------------------------------------ the release


def _release_for(
    run: Path,
    finished: FinishedRun,
    options: PublishOptions,
    commitment: bytes,
    keys: NodeKeys,
    registry: RegistryClient | None,
) -> Path:
    """The release that an earlier attempt left, or a new one."""
    now = int(time.time())
    if registry is not None:
        now = max(now, registry.state.head("latest").timestamp)
    for path, receipt in _releases_in(run):
        in_time = now < receipt.record.deadline - SECONDS_TO_SPARE
        if _is_of(receipt, finished, options, commitment, keys) and (
            in_time or _is_recorded(receipt, registry)
        ):
            return path
        # One that is too late stays where it is: it may be in a coordinator's round.
    draft = Draft(
        student=finished.student,
        domain=options.domain,
        run_id=options.run_id,
        round=options.round,
        parents=options.parents,
        teacher_commitment=commitment,
        recipe=finished.recipe,
        evaluation=finished.evaluation,
        version=__version__,
        deadline=now + SECONDS_TO_DEADLINE,
    )
    return build_release(run / RELEASE_FOLDER, draft, keys)


def _is_of(
    receipt: Receipt,
    finished: FinishedRun,
    options: PublishOptions,
    commitment: bytes,
    keys: NodeKeys,
) -> bool:
    """Whether a release says what a new one would say, but for its deadline."""
    record = receipt.record
    return (
        receipt.domain == options.domain
        and record.tensor_root.hex() == tensor_root(finished.student)
        and record.run_id == options.run_id
        and record.round == options.round
        and record.parents_root == parents_root(options.parents)
        and record.teacher_commitment == commitment
        and receipt.profile == keys.profile
    )


def _releases_in(run: Path) -> Iterator[tuple[Path, Receipt]]:
    for path in sorted((run / RELEASE_FOLDER).glob("student-0x*")):
        with contextlib.suppress(InputFileRefused):
            yield path, read_receipt(path)


def _is_recorded(receipt: Receipt, registry: RegistryClient | None) -> bool:
    if receipt.inclusion is not None:
        return True
    return registry is not None and registry.state.is_registered(receipt.record_id())


# ------------------------------------------------------------------ the chain


def _require_enrolled(registry: RegistryClient, keys: NodeKeys, options: PublishOptions) -> None:
    """Say what would be refused before anything is signed or paid for."""
    if registry.state.chain_id() != options.domain.chain_id:
        raise ConfigurationError(
            "the endpoint serves another chain than the settings name",
            hint="correct rpc_url or chain_id",
        )
    node = registry.state.node(keys.address)
    if node.profile_hash != keys.profile.profile_hash():
        raise KeyOrSignatureError(
            f"the registry does not know {keys.address} by its present profile",
            hint="give the coordinator the profile that 'genkd-node keys show' names, to admit",
        )


def _commit_teacher(registry: RegistryClient, keys: NodeKeys, commitment: bytes) -> None:
    identity = registry.state.node(keys.address).identity
    if registry.state.teacher_committed_at(commitment, identity):
        return
    deadline = registry.state.head("latest").timestamp + SECONDS_TO_DEADLINE
    message = TeacherMessage(commitment, keys.address, deadline)
    registry.commit_teacher(message, keys.sign(message, registry.domain))


def published_json(published: Published) -> dict[str, object]:
    """What was published, as plain values."""
    inclusion = published.receipt.inclusion
    return {
        "release": str(published.release),
        "record_id": to_hex(published.receipt.record_id()),
        "node": published.receipt.record.node,
        "run_id": to_hex(published.receipt.record.run_id),
        "round": published.receipt.record.round,
        "inclusion": None if inclusion is None else inclusion.to_json(),
    }
