"""What a coordinator holds of one run: its store, its folders, its registry, and how they agree.

archive = RunArchive(Path("federation"), store, press, run_id)
archive.verify(archive.path_of(record_id), 1).require()
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from contracts.registry import RegistryClient
from coordinator.conversation import Handout
from coordinator.intake import RELEASES
from coordinator.merged_release import ReleasePress
from coordinator.round_folder import Decision, RoundFolder, folder_of_round
from coordinator.store import RoundState, Store
from genkd.errors import CannotCheck, InputFileRefused, VerificationFailed
from genkd.provenance import Policy, verify
from genkd.provenance.record_checks import ask_about, require_confirmed, require_not_revoked
from genkd.provenance.release import (
    RECEIPT_NAME,
    SIZE_LIMITS,
    directory_name,
    read_bounded,
    read_receipt,
)
from genkd.provenance.signed_release import Unmade
from genkd.provenance.typed_data import to_hex
from genkd.provenance.verification import Verification


@dataclass(frozen=True)
class DoneRound:
    """What a round left.

    Attributes:
        number: The round.
        release: The merged student's release directory.
        record_id: Its record id, 32 bytes.
        members: How many students it was merged from.
    """

    number: int
    release: Path
    record_id: bytes
    members: int


@dataclass(frozen=True)
class RunArchive:
    """One run on the coordinator's disk and on the chain.

    Attributes:
        folder: The federation folder.
        store: Its store.
        press: Signs and records in the coordinator's name.
        run_id: The run, 32 bytes.
    """

    folder: Path
    store: Store
    press: ReleasePress
    run_id: bytes

    @property
    def client(self) -> RegistryClient:
        """The registry."""
        return self.press.client

    def place(self, number: int) -> RoundFolder:
        """The folder of a round."""
        return RoundFolder.of(self.folder, self.run_id, number)

    def path_of(self, record_id: bytes) -> Path:
        """Where an accepted release lies.

        Raises:
            InputFileRefused: If it is gone.
        """
        found = self.store.accepted_record(record_id)
        if found is None or found.path is None or not found.path.is_dir():
            raise InputFileRefused(
                f"the release {to_hex(record_id)} was accepted and is not there",
                hint="restore the federation folder from a backup",
            )
        return found.path

    def verify(self, path: Path, number: int) -> Verification:
        """All ten checks of a release of a round, with the round's own releases as parents.

        Parents of an earlier round are asked for by their record ids: they were verified with their
        files then, and `require_unrevoked` asks about them again. Verifying every ancestor's files
        each time would take longer every round, and end at the bounds of `verify`.
        """
        return verify(
            path,
            policy=Policy(self.press.domain, run_ids=frozenset({self.run_id})),
            chain=self.client.state,
            parents_in=[folder_of_round(self.folder / RELEASES, self.run_id, number)],
        )

    def stands(self, done: DoneRound, decision: Decision) -> bool:
        """Whether the chain holds a round, confirmed and where its receipts say.

        Raises:
            CannotCheck: If the chain does not answer.
            InputFileRefused: If a release is gone.
        """
        members = [read_receipt(self.path_of(one)) for one in decision.parents]
        places = {
            one.inclusion and (one.inclusion.transaction, one.inclusion.block) for one in members
        }
        if None in places or len(places) > 1:  # killed while it wrote them
            return False
        state = self.client.state
        try:
            for receipt in (*members[:1], read_receipt(done.release)):
                answer = ask_about(state, receipt, receipt.record_id())
                require_confirmed(state, answer, receipt)
        except (VerificationFailed, Unmade):
            return False
        return True

    def require_unrevoked(self, number: int) -> None:
        """Ask the registry about every student that round `number` descends from.

        Raises:
            VerificationFailed: If one was revoked since, or is no longer in order.
            CannotCheck: If the chain does not answer.
        """
        for earlier in range(number):
            decision = self.place(earlier).decision()
            members = [self.path_of(one) for one in (decision.parents if decision else ())]
            merged = self.store.round(self.run_id, earlier)
            if merged is not None and merged.merged is not None:
                members.append(self.place(earlier).path / directory_name(merged.merged))
            for path in members:
                self._require_recorded(path, earlier)

    def _require_recorded(self, path: Path, number: int) -> None:
        receipt = read_receipt(path)
        try:
            require_not_revoked(ask_about(self.client.state, receipt, receipt.record_id()))
        except Unmade as reason:
            raise CannotCheck(f"{path}: {reason}", hint="try again in a moment") from reason
        except VerificationFailed as error:
            raise VerificationFailed(
                f"{path.name} of round {number}, from which later rounds descend, is not valid: "
                f"{error.message}",
                hint="open another run, and start it from a student that does not descend from it",
            ) from error

    def done(self, number: int) -> DoneRound | None:
        """A round whose student was shared; None if there is something left to do.

        Raises:
            InputFileRefused: If its student is gone.
        """
        found = self.store.round(self.run_id, number)
        if found is None or found.state is not RoundState.SHARED or found.merged is None:
            return None
        place = self.place(number)
        path, decision = place.path / directory_name(found.merged), place.decision()
        if not path.is_dir() or decision is None:
            raise InputFileRefused(
                f"the merged student of round {number} is not in {place.path}",
                hint="restore the federation folder from a backup",
            )
        return DoneRound(number, path, found.merged, len(decision.parents))

    def note(self, done: DoneRound) -> None:
        """Keep in the store that a round is committed, and which its merged student is."""
        file_hash = read_receipt(done.release).record.file_hash
        self.store.advance(
            self.run_id,
            done.number,
            RoundState.COMMITTED,
            merged=done.record_id,
            aggregate_hash=file_hash,
        )

    def handout(self, done: DoneRound) -> Handout:
        """A merged student with what goes out beside it."""
        submissions = {one.node: one for one in self.store.accepted(self.run_id, done.number)}
        decision = self.place(done.number).decision()
        parents = {
            one: read_bounded(self.path_of(one) / RECEIPT_NAME, SIZE_LIMITS[RECEIPT_NAME])
            for one in (decision.parents if decision else ())
        }
        return Handout(self.run_id, done.number, done.release, parents, submissions)
