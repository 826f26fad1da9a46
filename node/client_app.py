"""The node's side of the federation: a Flower app with two answers.

    genkd-node join ...                                               # starts it, hardened
    flower-supernode --node-config 'membership="/path/to/membership"' ...     # a stock SuperNode
    GENKD_MEMBERSHIP=/path/to/memberships flower-superlink --simulation ...   # many nodes in one

It gives out the node's own finished release of a round, and takes the merged student. It reads no
teacher, holds no key, trains nothing, and runs nothing that a coordinator sends. Where the
membership lies comes from the node's own configuration, never from a message. A simulated node has
none but a number: its membership is the subfolder of that name in the folder that the setting
`membership` names.

Whatever happens becomes an answer of one line. Paths and addresses of this machine stay in its log.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable
from pathlib import Path

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from contracts.exchange import (
    CollectReply,
    CollectRequest,
    ShareReply,
    ShareRequest,
    one_line,
)
from genkd.console import say
from genkd.errors import (
    ConfigurationError,
    GenKDError,
    InputFileRefused,
    RefusedByPolicy,
    ResourceExhausted,
)
from genkd.provenance.typed_data import Domain
from node import federation_registry, inbox, outbox
from node.answers import Answer, AnswerLog
from node.federation_registry import domain_of_membership
from node.policy import Policy
from node.settings import load_settings

MEMBERSHIP = "membership"  # in the node's configuration: the folder
SIMULATED = "partition-id"  # what Flower's simulation puts there instead: 0, 1, ...
FAILED = 2  # flwr's code for an app that did not answer; it has no public name
NO_RELEASE = "no finished release for this run and round"
ALREADY_COLLECTED = "already collected"
ADDRESS_OR_PATH = re.compile(r"[a-z]+://\S+|(?<![\w.)])/[^\s'\",:;]+")

app = ClientApp()


@app.query("collect")
def collect(message: Message, context: Context) -> Message:
    """Give out the node's release of a round."""
    return _answer(message, context, _collect)


@app.query("share")
def share(message: Message, context: Context) -> Message:
    """Take the merged student of a round."""
    return _answer(message, context, _share)


def _answer(
    message: Message, context: Context, handle: Callable[[RecordDict, Path, Policy], RecordDict]
) -> Message:
    """Answer a message; what goes wrong on this node is told here in full, there in a word."""
    try:
        membership = _membership(context)
        reply = handle(message.content, membership, Policy.load(membership))
    except GenKDError as error:
        say(f"not answered: {error.message} ({error.hint})")
        return Message(Error(FAILED, _reason(error)), reply_to=message)
    except Exception as error:
        # Flower would send the coordinator the text of the exception.
        traceback.print_exc()
        reason = f"the node's app failed: {type(error).__name__}"
        return Message(Error(FAILED, reason), reply_to=message)
    return Message(reply, reply_to=message)


def _membership(context: Context) -> Path:
    folder, number = (context.node_config.get(name) for name in (MEMBERSHIP, SIMULATED))
    if folder is None and isinstance(number, int):
        folder = str(load_settings().membership / str(number))
    if not isinstance(folder, str) or not Path(folder).is_dir():
        raise ConfigurationError(
            f"the node's configuration names no folder as its {MEMBERSHIP}",
            hint=f"start the SuperNode with --node-config '{MEMBERSHIP}=\"FOLDER\"'",
        )
    return Path(folder).absolute()


# ------------------------------------------------------------------ the two answers


def _collect(record: RecordDict, membership: Path, policy: Policy) -> RecordDict:
    try:
        request = CollectRequest.from_record(record)
    except InputFileRefused as error:
        return CollectReply(policy.node, None, error.message).to_record()
    log = AnswerLog(membership)
    outgoing = _outgoing(request, domain_of_membership(membership), policy, log)
    if isinstance(outgoing, str):
        _note(log, Answer("collect", request.run_id, request.round, b"", 0, outgoing))
        return CollectReply(policy.node, None, outgoing).to_record()
    return CollectReply(policy.node, outgoing).to_record()


def _outgoing(
    request: CollectRequest, domain: Domain, policy: Policy, log: AnswerLog
) -> dict[str, bytes] | str:
    """The files that go out, noted as such; or why none do."""
    try:
        found = outbox.find_release(policy, domain, request.run_id, request.round)
        if found is None:
            return NO_RELEASE
        if found.record_id in request.known:
            return ALREADY_COLLECTED
        files = outbox.read_outgoing(found, policy)
    except RefusedByPolicy as error:
        return error.message
    except InputFileRefused as error:
        say(f"not given out: {error.message} ({error.hint})")
        return "the release of this round is damaged on the node's disk"
    sent = sum(map(len, files.values()))
    answer = Answer("collect", request.run_id, request.round, found.record_id, sent, "given out")
    wait = log.reserve(answer, seconds=policy.seconds_between_answers)
    return f"policy: ask again in {wait} seconds" if wait else files


def _share(record: RecordDict, membership: Path, policy: Policy) -> RecordDict:
    try:
        request = ShareRequest.from_record(record)
    except GenKDError as error:
        return ShareReply(False, _reason(error)).to_record()
    log = AnswerLog(membership)
    try:
        domain, registry = federation_registry.registry_of_membership(membership)
        kept = inbox.keep(request, membership, policy, domain, registry)
    except GenKDError as error:
        say(f"not kept: {error.message} ({error.hint})")
        reason = _reason(error)
        _note(log, Answer("share", request.run_id, request.round, b"", 0, reason))
        return ShareReply(False, reason).to_record()
    record_id = bytes.fromhex(kept.name.removeprefix("student-0x"))
    _note(log, Answer("share", request.run_id, request.round, record_id, 0, "kept"))
    return ShareReply(True).to_record()


def _note(log: AnswerLog, answer: Answer) -> None:
    """Note an answer that goes out even if it cannot be noted: it gives nothing away."""
    try:
        log.note(answer)
    except GenKDError as error:
        say(f"not noted: {error.message} ({error.hint})")


def _reason(error: GenKDError) -> str:
    """Why, in the words that may leave this machine."""
    if isinstance(error, ConfigurationError):
        return "the node's configuration is at fault; its owner finds more in its log"
    if isinstance(error, ResourceExhausted):
        return "the node's disk cannot take it; ask again later"
    return one_line(ADDRESS_OR_PATH.sub("...", error.message))
