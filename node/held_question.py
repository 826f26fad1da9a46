"""A coordinator's question for a release, kept until there is one to give.

    reply = answer(request, membership, policy, seconds=request.wait)

A node distils for hours, and each answer "not yet" costs it more bytes on the line than a hundred
looks at its own disk. So the question is kept, for as long as the coordinator allows, and answered
within a second or two of the release being published. The policy is read anew meanwhile: an edit
counts for a question that is kept, too.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from contracts.exchange import CollectReply, CollectRequest, one_line
from genkd.console import say
from genkd.errors import GenKDError, InputFileRefused, RefusedByPolicy
from genkd.provenance.typed_data import Domain
from node import outbox
from node.answers import Answer, AnswerLog
from node.federation_registry import domain_of_membership
from node.policy import Policy

NO_RELEASE = "no finished release for this run and round"
ALREADY_COLLECTED = "already collected"
DAMAGED = "the release of this round is damaged on the node's disk"
REFUSES = "the coordinator refuses it: "
# A look lists folders; every so often the receipts in them, and the policy, are read anew.
SECONDS_BETWEEN_LOOKS = 1.0
SECONDS_BETWEEN_READINGS = 10.0


@dataclass(frozen=True)
class _None:
    """Why no release goes out now."""

    reason: str  # for the coordinator
    noted: str = ""  # in the node's own log, if that says more
    record_id: bytes = b""  # of the release that there is
    seconds: float = SECONDS_BETWEEN_READINGS  # until it may be otherwise


def answer(
    request: CollectRequest, membership: Path, policy: Policy, *, seconds: float
) -> CollectReply:
    """Answer a question as soon as there is a release to give.

    Args:
        request: The question.
        membership: The folder of the membership.
        policy: What it answers; read anew while the question is kept.
        seconds: How long it may be kept.

    Returns:
        The release, noted as given out; or why there is none.

    Raises:
        ConfigurationError: If the settings, the policy or the log cannot be used.
        ResourceExhausted: If what goes out cannot be noted: nothing goes out then.
    """
    log = AnswerLog(membership)
    domain = domain_of_membership(membership)
    until = time.monotonic() + seconds
    said = ""
    while True:
        seen = outbox.release_directories(policy)
        found = _look(request, domain, policy, log)
        if not isinstance(found, _None):
            return CollectReply(policy.node, found)
        noted = found.noted or found.reason
        if noted != said:
            said = noted
            kept = Answer("collect", request.run_id, request.round, found.record_id, 0, noted)
            note(log, kept)
        again = min(until, time.monotonic() + found.seconds)
        while (left := again - time.monotonic()) > 0 and outbox.release_directories(policy) == seen:
            time.sleep(min(SECONDS_BETWEEN_LOOKS, left))
        if time.monotonic() >= until:
            return CollectReply(policy.node, None, found.reason)
        policy = Policy.load(membership)


def note(log: AnswerLog, answered: Answer) -> None:
    """Note an answer that goes out even if it cannot be noted: it gives nothing away."""
    try:
        log.note(answered)
    except GenKDError as error:
        say(f"not noted: {error.message} ({error.hint})")


def _look(
    request: CollectRequest, domain: Domain, policy: Policy, log: AnswerLog
) -> dict[str, bytes] | _None:
    """The files that go out, noted as such; or why none do."""
    try:
        found = outbox.find_release(policy, domain, request.run_id, request.round)
        if found is None:
            return _None(NO_RELEASE)
        if found.record_id in request.refused:
            why = one_line(REFUSES + request.refused[found.record_id])
            return _None(ALREADY_COLLECTED, why, found.record_id)
        files = outbox.read_outgoing(found, policy)
    except RefusedByPolicy as error:
        return _None(error.message)
    except InputFileRefused as error:
        say(f"not given out: {error.message} ({error.hint})")
        return _None(DAMAGED)
    sent = sum(map(len, files.values()))
    given = Answer("collect", request.run_id, request.round, found.record_id, sent, "given out")
    wait = log.reserve(given, seconds=policy.seconds_between_answers)
    return _None(f"policy: ask again in {wait} seconds", seconds=wait) if wait else files
