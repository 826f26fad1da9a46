"""From the releases that a round takes to its merged student, recorded and verified.

    done = RoundClosing(archive, plan, 1).close(decision, previous)

Each step finds what an earlier attempt left: merge; commit the round's root and write each release
its proof; verify every parent fully; sign and register the merged student, and verify it as a node
will. A parent that is revoked on the way is left out, and the others are merged again, as long as
they are a quorum. The root, once sent, holds it for ever: that it was committed is true, that it
counts is not. A chain may forget its last blocks: `record_again` puts a closed round back.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from coordinator.merged_release import Model
from coordinator.merging import Interruptible, MergePlan, merge_releases
from coordinator.recordable import fault_of_record
from coordinator.round_folder import Decision
from coordinator.rounds import commit_round
from coordinator.run_archive import DoneRound, RunArchive
from coordinator.run_plan import RunPlan
from coordinator.store import RoundState
from genkd.card import ModelCard
from genkd.console import say
from genkd.errors import ConfigurationError, InputFileRefused, Stopped, VerificationFailed
from genkd.provenance.merkle import MerkleTree
from genkd.provenance.release import SIZE_LIMITS, read_bounded, read_receipt
from genkd.provenance.statement import STUDENT_NAME
from genkd.provenance.typed_data import to_hex
from genkd.provenance.verification import Status
from genkd.weights import STUDENT_FILE, read_card, read_header

SECONDS_BETWEEN_REPORTS = 10.0


class RoundClosing:
    """Closes one round.

    Args:
        archive: The run.
        plan: What to do.
        number: The round.
        interruptible: What a stop signal interrupts, see `merging`.
        clock: Seconds that never go back.
    """

    def __init__(
        self,
        archive: RunArchive,
        plan: RunPlan,
        number: int,
        *,
        interruptible: Interruptible = lambda: nullcontext(lambda: None),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._archive = archive
        self._client = archive.client
        self._plan = plan
        self._number = number
        self._place = archive.place(number)
        self._interruptible = interruptible
        self._clock = clock

    def close(self, decision: Decision, previous: Path) -> DoneRound:
        """Make the merged student.

        Args:
            decision: Which releases the round takes.
            previous: The release directory of the student it started from.

        Raises:
            Stopped: If fewer than a quorum of the releases are still valid.
            ConfigurationError: If the registry holds a root that this folder did not send.
            CannotCheck: If the chain does not answer.
            InputFileRefused, ResourceExhausted, Interrupted: As `merge_releases`.
        """
        while True:
            decision = self._in_order(decision)
            model = self._merge(decision, previous)
            self._archive.store.advance(self._archive.run_id, self._number, RoundState.MERGED)
            merged = decision.parents
            valid = self._in_order(decision)  # merging may have taken hours
            if valid.parents == merged:
                number, run_id = self._number, self._archive.run_id
                aggregate = self._archive.press.file_hash(model.data, run_id, number)
                valid = self._all_verified(self._commit(valid, aggregate))
            if valid.parents == merged:
                decision = valid
                path = self._release(decision, model)
                if self._archive.verify(path, self._number).status is Status.VALID:
                    break
                valid = self._all_verified(decision)
                if valid == decision:
                    self._archive.verify(path, self._number).require()
            decision = valid  # a parent was lost on the way
        self._say(f"student merged of {len(decision.parents)} recorded, {path}")
        record_id = read_receipt(path).record_id()
        done = DoneRound(self._number, path, record_id, len(decision.parents))
        self._archive.note(done)
        return done

    def record_again(self, done: DoneRound) -> bool:
        """Put a closed round back on a chain that has forgotten it: same bytes, same signatures.

        A chain that is killed loses what it had not written; a public one reorganises, and may
        hold the same transactions in other blocks than the receipts name.

        Returns:
            Whether there was anything to do. Nodes then need the receipts of now.

        Raises:
            VerificationFailed: If it would not be in order now, as when a deadline has passed.
            ConfigurationError: If the registry holds a root that this folder did not send.
            CannotCheck, Stopped: If the chain does not answer or confirm.
        """
        decision = self._place.decision()
        if decision is None or self._archive.stands(done, decision):
            return False
        self._say("the chain has forgotten it, or moved it to other blocks: recording it again")
        try:
            self._commit(decision, read_receipt(done.release).record.file_hash)
            self._archive.press.record(done.release)
            self._archive.verify(done.release, self._number).require()
        except VerificationFailed as error:
            raise VerificationFailed(
                f"round {self._number} was shared, and the chain has forgotten it: {error.message}",
                hint="what a node lacks there it publishes again, then repeat the same command; "
                f"or open another run with --student {done.release / STUDENT_NAME}",
            ) from error
        return True

    # ------------------------------------------------------------------ which are merged

    def _in_order(self, decision: Decision) -> Decision:
        """Leave out what the registry would not find in order, before anything is spent on it."""
        if self._client.state.round(self._archive.run_id, self._number).recorded_at:
            return decision  # what is recorded, `_all_verified` judges
        faults = {}
        for one in decision.parents:
            receipt = read_receipt(self._archive.path_of(one))
            fault = fault_of_record(self._client.state, receipt)
            if fault is not None:
                faults[one] = fault
        return self._without(decision, faults)

    def _all_verified(self, decision: Decision) -> Decision:
        """Leave out what is not valid, now that it is recorded; cannot-check is never valid."""
        faults = {}
        for one in decision.parents:
            verification = self._archive.verify(self._archive.path_of(one), self._number)
            if verification.status is Status.NOT_VALID:
                faults[one] = verification.summary
            else:
                verification.require()
        return self._without(decision, faults)

    def _without(self, decision: Decision, faults: Mapping[bytes, str]) -> Decision:
        """The decision without some parents, kept; the work on it is thrown away."""
        if not faults:
            return decision
        for one, fault in faults.items():
            self._say(f"left out {to_hex(one)}: {fault}")
        parents = tuple(one for one in decision.parents if one not in faults)
        if len(parents) < self._plan.quorum:
            raise Stopped(
                f"round {self._number}: {len(parents)} of its {len(decision.parents)} releases are "
                f"still valid, a merge needs {self._plan.quorum}: nothing was shared",
                hint="go on with a smaller --quorum, or open another run",
            )
        narrower = replace(decision, parents=parents)
        # In this order: work on other parents must not be found beside the new decision.
        self._place.discard_work()
        self._place.decide(narrower)
        return narrower

    # ------------------------------------------------------------------ the steps

    def _merge(self, decision: Decision, previous: Path) -> Model:
        plan = self._plan
        merge_plan = MergePlan(
            plan.method,
            _card_of(previous / STUDENT_NAME),
            start=previous / STUDENT_NAME,
            seed=plan.seed,
            budget=plan.budget,
            device=plan.device,
            precision=plan.precision,
            overrides=plan.overrides,
        )
        merged = merge_releases(
            [self._archive.path_of(one) for one in decision.parents],
            self._place.work,
            merge_plan,
            interruptible=self._interruptible,
            on_progress=self._reporter(),
        )
        data = read_bounded(merged.student, SIZE_LIMITS[STUDENT_NAME])
        return Model(data, merged.recipe, merged.evaluation)

    def _commit(self, decision: Decision, aggregate: bytes) -> Decision:
        """Record the round's releases by one root, and write each its proof."""
        run_id = self._archive.run_id
        on_chain = self._client.state.round(run_id, self._number)
        leaves: tuple[bytes, ...] | None = decision.parents
        if on_chain.recorded_at:
            # Which of the sets that were sent it holds, only the registry knows.
            leaves = next((s for s in decision.sent if MerkleTree(s).root == on_chain.root), None)
        elif leaves not in decision.sent:
            decision = replace(decision, sent=(*decision.sent, decision.parents))
            self._place.decide(decision)
        if leaves is None:
            raise ConfigurationError(
                f"the registry holds a root of round {self._number} that this folder did not send",
                hint="another folder ran this round with the same keys: go on there",
            )
        paths = [self._archive.path_of(one) for one in leaves]
        done = commit_round(self._client, paths, run_id, self._number, aggregate)
        if not on_chain.recorded_at:
            self._say(f"root {to_hex(done.root)} of {done.releases} releases in block {done.block}")
        outside = [one for one in decision.parents if one not in leaves]
        return self._without(decision, dict.fromkeys(outside, "the round was committed without it"))

    def _release(self, decision: Decision, model: Model) -> Path:
        hashes = {
            one: read_receipt(self._archive.path_of(one)).record.file_hash
            for one in decision.parents
        }
        return self._archive.press.release(
            self._place, model, self._archive.run_id, self._number, hashes
        )

    # ------------------------------------------------------------------ telling

    def _say(self, line: str) -> None:
        say(f"round {self._number}: {line}")

    def _reporter(self) -> Callable[[float, float | None], None]:
        """Says how a merge comes along, now and then."""
        next_time = self._clock()

        def report(fraction: float, eta: float | None) -> None:
            nonlocal next_time
            if self._clock() >= next_time:
                next_time = self._clock() + SECONDS_BETWEEN_REPORTS
                to_go = "" if eta is None else f", about {eta:.0f} s to go"
                self._say(f"merging, {fraction:.0%}{to_go}")

        return report


def _card_of(path: Path) -> ModelCard:
    card = read_card(read_header(path, STUDENT_FILE))
    if card is None:
        raise InputFileRefused(f"{path} has no card", hint="restore it from a backup")
    return card
