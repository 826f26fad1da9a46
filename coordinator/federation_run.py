"""The rounds of a federation, from the start student to the last merged one.

    done = FederationRun(messages, archive, plan, start).run()
    done[-1].release                         # the merged student of the last round

A round, each step of which finds what an earlier attempt left:

1. collect: offer every node the student of the round before, and ask it for its own, until all have
   given theirs or the time is up; then decide which releases are merged;
2. merge them, commit the round's root, verify every parent fully, sign, register and verify the
   merged student (`round_closing`);
3. share it; a node that is away gets it when it is back.

Round 0 has only the start student, signed and recorded like a merged one. Killed anywhere, the same
call ends right: what was accepted stands in the store, what was decided in the round's folder, the
registry takes each record and one root a round. What the chain has forgotten of a shared round is
recorded and shared again before the next one begins.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING

from coordinator.conversation import Conversation
from coordinator.intake import Intake
from coordinator.intake_rules import IntakeRules, SharedStudent
from coordinator.merged_release import Model
from coordinator.merging import Interruptible, MergeMethod, fault_of_member
from coordinator.recordable import fault_of_record
from coordinator.round_closing import RoundClosing
from coordinator.round_folder import Decision
from coordinator.run_archive import DoneRound, RunArchive
from coordinator.run_plan import RunPlan
from coordinator.start_student import StartStudent
from coordinator.store import Submission
from genkd.card import ModelCard
from genkd.console import say
from genkd.digest import tensor_root
from genkd.errors import CannotCheck, ConfigurationError, Stopped, UsageError
from genkd.provenance.release import SIZE_LIMITS, read_bounded, read_receipt
from genkd.provenance.statement import STUDENT_NAME

if TYPE_CHECKING:
    from coordinator.node_messages import NodeMessages


class FederationRun:
    """The rounds of one run over one Flower grid.

    Args:
        messages: To the nodes.
        archive: The run.
        plan: What to do.
        start: Where the federation starts; None takes up a run that has started.
        speaks_for: See `Conversation`.
        interruptible: What a stop signal interrupts, see `merging`.
        clock: Seconds that never go back.
        sleep: Waits so many seconds.
    """

    def __init__(
        self,
        messages: NodeMessages,
        archive: RunArchive,
        plan: RunPlan,
        start: StartStudent | None = None,
        *,
        speaks_for: Callable[[], Mapping[int, str]] = dict,
        interruptible: Interruptible = lambda: nullcontext(lambda: None),
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._archive = archive
        self._store = archive.store
        self._plan = plan
        self._start = start
        self._interruptible = interruptible
        self._clock = clock
        self._new_talk: Callable[[], Conversation] = lambda: Conversation(
            messages,
            archive.store,
            archive.press.keys,
            archive.press.domain,
            longest_pause=plan.longest_pause,
            speaks_for=speaks_for,
            clock=clock,
            sleep=sleep,
        )
        self._talk = self._new_talk()

    def run(self) -> list[DoneRound]:
        """Do the rounds that are not done yet.

        Returns:
            All rounds, round 0 first.

        Raises:
            Stopped: If fewer nodes than the quorum gave a release in time, or the registry or a
                signal ended it; the same call goes on.
            VerificationFailed: If the student of the round before is no longer valid.
            ConfigurationError, KeyOrSignatureError: As `ReleasePress.require_ready`, and if the
                folder is another run's.
            UsageError: If there is no start student.
            InputFileRefused: If a file in the folder is damaged.
            CannotCheck: If the chain does not answer.
            CoordinatorUnreachable: If the SuperLink does not answer.
            ResourceExhausted: If memory or disk runs out.
        """
        plan = self._plan
        self._archive.press.require_ready(plan.run_id)
        rounds = [self._begin()]
        for number in range(1, plan.rounds + 1):
            done = self._archive.done(number)
            if done is None:
                self._put_back(rounds[-1])
                done = self._round(number, rounds[-1])
                self._share(done)
            elif not self._put_back(done) and number == plan.rounds:
                self._share(done)  # for nodes that were away
            rounds.append(done)
        return rounds

    def _put_back(self, done: DoneRound) -> bool:
        """Record and share a round again that the chain has forgotten; whether it had."""
        if not self._closing(done.number).record_again(done):
            return False
        self._talk = self._new_talk()  # nodes that keep its student need the receipts of now
        self._share(done)
        return True

    def _begin(self) -> DoneRound:
        """Release the start student, or find it released."""
        archive, run_id = self._archive, self._plan.run_id
        place = archive.place(0)
        self._store.begin_round(run_id, 0)
        present = next((path for path, _ in place.releases()), None)
        data = None if self._start is None else self._start.model_file(self._plan.seed)
        if present is not None:
            released = read_bounded(present / STUDENT_NAME, SIZE_LIMITS[STUDENT_NAME])
            if data is not None and tensor_root(data) != tensor_root(released):
                raise ConfigurationError(
                    f"this run has started from another student: {present}",
                    hint="leave --student out to go on, or open another run",
                )
            data = released
        if data is None:
            raise UsageError(
                "the run has not started, and which student it starts from is not said",
                hint="give --student, for example --student resnet8-half --classes a,b,c "
                "--image 1x32x32",
            )
        model = Model(data, {"merge": "start", "seed": self._plan.seed}, {})
        path = archive.press.release(place, model, run_id, 0, {})
        if present is None:
            say(f"round 0: start student recorded, {path}")
        done = DoneRound(0, path, read_receipt(path).record_id(), 0)
        archive.note(done)
        return done

    def _round(self, number: int, before: DoneRound) -> DoneRound:
        archive, plan = self._archive, self._plan
        archive.verify(before.release, before.number).require()
        archive.require_unrevoked(before.number)
        self._store.begin_round(plan.run_id, number)
        decision = archive.place(number).decision() or self._collect(number, before)
        return self._closing(number).close(decision, before.release)

    def _closing(self, number: int) -> RoundClosing:
        return RoundClosing(
            self._archive,
            self._plan,
            number,
            interruptible=self._interruptible,
            clock=self._clock,
        )

    def _collect(self, number: int, before: DoneRound) -> Decision:
        """Gather releases, and decide which are merged."""
        archive, plan = self._archive, self._plan
        shared = SharedStudent.read(before.release / STUDENT_NAME)
        averaging = plan.method is not MergeMethod.DISTILL
        rules = IntakeRules(archive.press.domain, plan.run_id, number, shared, averaging=averaging)
        intake = Intake(self._store, archive.folder, rules, archive.client.state)
        here = sum(1 for _ in self._store.accepted(plan.run_id, number))
        say(f"round {number}: {here} of {plan.nodes} releases here, quorum {plan.quorum}")

        said = ""

        def complete() -> bool:
            nonlocal said
            try:
                return len(self._counting(number, intake, shared.card, plan.nodes)) >= plan.nodes
            except CannotCheck as error:
                if error.message != said:
                    said = error.message
                    say(f"round {number}: {said}")
                return False

        until = self._clock() + plan.wait_seconds
        self._talk.collect(number, archive.handout(before), intake, until=until, enough=complete)
        accepted = self._counting(number, intake, shared.card, plan.quorum)
        if len(accepted) < plan.quorum:
            raise Stopped(
                f"round {number}: {len(accepted)} releases came within {plan.wait_seconds:g} s, "
                f"a merge needs {plan.quorum}: nothing was merged",
                hint="repeat the same command: it keeps what came and waits for the others",
            )
        decision = Decision((), tuple(sorted(submission.record_id for submission in accepted)))
        archive.place(number).decide(decision)
        say(f"round {number}: merging {len(accepted)} releases ({plan.method.value})")
        return decision

    def _counting(
        self, number: int, intake: Intake, card: ModelCard, wanted: int
    ) -> list[Submission]:
        """The accepted releases of a round; once there are as many as wanted, checked once more."""
        archive = self._archive
        accepted = list(self._store.accepted(archive.run_id, number))
        if len(accepted) < wanted:
            return accepted
        for refused in intake.refuse_outliers():
            say(f"{refused.node}: release no longer counts: {refused.reason}")
        kept = []
        for submission in self._store.accepted(archive.run_id, number):
            path = archive.path_of(submission.record_id)
            fault = fault_of_record(archive.client.state, read_receipt(path))
            fault = fault or fault_of_member(path, card, self._plan.method)
            if fault is None:
                kept.append(submission)
            elif self._store.withdraw(submission.record_id, fault):
                say(f"{submission.node}: release no longer counts: {fault}")
        return kept

    def _share(self, done: DoneRound) -> None:
        """Offer a merged student to everybody who is there."""
        until = self._clock() + self._plan.share_seconds
        kept, lacking = self._talk.share(self._archive.handout(done), until=until)
        say(f"round {done.number}: {kept} connected nodes keep its student, {lacking} do not yet")
