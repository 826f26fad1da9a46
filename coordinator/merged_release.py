"""The coordinator's own releases: the start student of a run, and each round's merged student.

    press = ReleasePress(client, keys, key_folder)
    press.require_ready(run_id)
    path = press.release(place, model, run_id, 1, parents)

They are releases like any node's: signed, their "teacher" committed, recorded, with parents. The
teacher of a merged student is its parents together: what is committed is the sha256 of the
canonical JSON of their files' hashes, sorted, in hexadecimal digits; of a start student, of none.
Safe to repeat and to kill anywhere, as `node.publish` is.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from contracts.refusals import KeyRefusedByRegistry, RegistryRefused
from contracts.registry import RegistryClient
from contracts.registry_state import NEVER
from coordinator.round_folder import RoundFolder
from genkd import __version__
from genkd.canonical import canonical_json
from genkd.digest import sha256_bytes, tensor_root
from genkd.errors import ConfigurationError, KeyOrSignatureError
from genkd.provenance.draft import Draft, build_release
from genkd.provenance.keys import KeyFolder
from genkd.provenance.node_keys import NodeKeys
from genkd.provenance.origin import Origin, stamp
from genkd.provenance.receipt import Inclusion, Receipt
from genkd.provenance.record import TeacherMessage, commit_to_teacher, parents_root
from genkd.provenance.release import read_receipt, replace_receipt
from genkd.provenance.statement import RecipeValue
from genkd.provenance.typed_data import Domain

SECONDS_TO_DEADLINE = 30 * 24 * 3600
SECONDS_TO_SPARE = 600


@dataclass(frozen=True)
class Model:
    """A student before it is signed.

    Attributes:
        data: Its model file.
        recipe: How it was made, as a provenance statement says it.
        evaluation: Figures, decimal strings.
    """

    data: bytes
    recipe: Mapping[str, RecipeValue]
    evaluation: Mapping[str, str]


@dataclass(frozen=True)
class ReleasePress:
    """Signs and records releases in the coordinator's name.

    Attributes:
        client: The registry, written to with the coordinator's key.
        keys: The coordinator's keys.
        key_folder: Where they lie; it keeps the salts of the commitments.
    """

    client: RegistryClient
    keys: NodeKeys
    key_folder: KeyFolder

    @property
    def domain(self) -> Domain:
        """The federation's registry."""
        return self.client.domain

    def require_ready(self, run_id: bytes) -> None:
        """See to it that rounds can be recorded, before anybody is asked for anything.

        A coordinator signs students as a node does and must be enrolled as one; if it owns the
        registry, it enrols itself.

        Raises:
            ConfigurationError: If the run is not open, or another's.
            KeyOrSignatureError: If it is not enrolled and may not enrol itself.
            CannotCheck, Stopped: As `RegistryClient`.
        """
        state, address = self.client.state, self.keys.address
        if state.chain_id() != self.domain.chain_id:
            raise ConfigurationError(
                "the endpoint serves another chain than the settings name",
                hint="correct rpc_url or chain_id",
            )
        run = state.run(run_id)
        if run.coordinator != address:
            said = "is not open" if not run.opened_at else f"is coordinated by {run.coordinator}"
            raise ConfigurationError(
                f"the run {said}", hint="open one: genkd-coordinator open-run NAME"
            )
        node = state.node(address)
        if (node.profile_hash, node.until) == (self.keys.profile.profile_hash(), NEVER):
            return
        unknown = KeyOrSignatureError(
            f"the registry does not know the coordinator {address} by its present profile",
            hint="let the registry's owner admit its profile.json like a node's",
        )
        if node.since:
            raise unknown  # by another profile, or it was removed
        profile = self.keys.profile
        try:
            self.client.add_node(address, profile.message.next_key_hash, profile.profile_hash())
        except (KeyRefusedByRegistry, RegistryRefused) as error:
            raise unknown from error

    def file_hash(self, data: bytes, run_id: bytes, number: int) -> bytes:
        """The sha256 that a model file will have once it is released, 32 bytes."""
        origin = Origin(self.domain, self.keys.address, run_id, number)
        return bytes.fromhex(sha256_bytes(stamp(data, origin)))

    def release(
        self,
        place: RoundFolder,
        model: Model,
        run_id: bytes,
        number: int,
        parents: Mapping[bytes, bytes],
    ) -> Path:
        """Sign a student and record it; what an earlier attempt left is taken up.

        Args:
            place: Where its directory appears.
            model: The student.
            run_id: The run.
            number: The round.
            parents: The sha256 of each parent's file, by its record id.

        Returns:
            The release directory, its receipt complete.

        Raises:
            InputFileRefused: If the student is refused.
            CannotCheck, KeyOrSignatureError, Stopped: As `RegistryClient.await_record`.
            ResourceExhausted: If the folder cannot be written.
        """
        teacher = sha256_bytes(canonical_json(sorted(digest.hex() for digest in parents.values())))
        salt = self.key_folder.teacher_salt(self.keys.address, bytes.fromhex(teacher))
        commitment = commit_to_teacher(self.keys.address, bytes.fromhex(teacher), salt)
        path = self._signed_before(place, model, parents, commitment)
        if path is None:
            draft = Draft(
                student=model.data,
                domain=self.domain,
                run_id=run_id,
                round=number,
                parents=tuple(sorted(parents)),
                teacher_commitment=commitment,
                recipe=model.recipe,
                evaluation=model.evaluation,
                version=__version__,
                deadline=self._now() + SECONDS_TO_DEADLINE,
            )
            path = build_release(place.path, draft, self.keys)
        self.record(path)
        return path

    def record(self, path: Path) -> None:
        """Record a signed release of ours, and note in its receipt where; safe to repeat.

        Raises:
            CannotCheck, KeyOrSignatureError, Stopped: As `RegistryClient.await_record`.
            ResourceExhausted: If the receipt cannot be written.
        """
        receipt, state = read_receipt(path), self.client.state
        commitment = receipt.record.teacher_commitment
        identity = state.node(self.keys.address).identity
        if not state.teacher_committed_at(commitment, identity):
            deadline = state.head("latest").timestamp + SECONDS_TO_DEADLINE
            message = TeacherMessage(commitment, self.keys.address, deadline)
            self.client.commit_teacher(message, self.keys.sign(message, self.domain))
        place = self.client.await_record(receipt.record, receipt.signature)
        complete = replace(receipt, inclusion=Inclusion(place.transaction, place.block, None))
        if complete != receipt:
            replace_receipt(path, complete)

    def _signed_before(
        self, place: RoundFolder, model: Model, parents: Mapping[bytes, bytes], commitment: bytes
    ) -> Path | None:
        """The release of the same student that an earlier attempt left, and that still counts."""
        same = (tensor_root(model.data), parents_root(list(parents)), commitment, self.domain)
        for path, receipt in place.releases():
            record = receipt.record
            found = (record.tensor_root.hex(), record.parents_root, record.teacher_commitment)
            if (*found, receipt.domain) != same or receipt.profile != self.keys.profile:
                continue
            if self._counts(receipt):
                return path
        return None

    def _counts(self, receipt: Receipt) -> bool:
        if receipt.inclusion is not None or self.client.state.is_registered(receipt.record_id()):
            return True
        return self._now() < receipt.record.deadline - SECONDS_TO_SPARE

    def _now(self) -> int:
        return max(int(time.time()), self.client.state.head("latest").timestamp)
