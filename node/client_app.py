"""The node's side of the federation: a Flower app with two answers.

    genkd-node join ...                                               # starts it, hardened
    flower-supernode --node-config 'membership="/path/to/membership"' ...     # a stock SuperNode
    GENKD_MEMBERSHIP=/path/to/memberships flower-superlink --simulation ...   # many nodes in one

It gives out the node's own finished release of a round, as soon as there is one, and takes the
merged student. It reads no teacher, holds no key, trains nothing, and runs nothing that a
coordinator sends. Where the membership lies comes from the node's own configuration, never from a
message. A simulated node has none but a number: its membership is the subfolder of that name in the
folder that the setting `membership` names.

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
    ResourceExhausted,
)
from node import federation_registry, held_question, inbox
from node.answers import Answer, AnswerLog
from node.held_question import note
from node.policy import Policy
from node.settings import load_settings

MEMBERSHIP = "membership"  # in the node's configuration: the folder
SIMULATED = "partition-id"  # what Flower's simulation puts there instead: 0, 1, ...
FAILED = 2  # flwr's code for an app that did not answer; it has no public name
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
    message: Message,
    context: Context,
    handle: Callable[[RecordDict, Path, Policy, bool], RecordDict],
) -> Message:
    """Answer a message; what goes wrong on this node is told here in full, there in a word."""
    try:
        membership = _membership(context)
        # One process answers for many simulated nodes: none of them may keep it waiting.
        may_wait = SIMULATED not in context.node_config
        reply = handle(message.content, membership, Policy.load(membership), may_wait)
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


def _collect(record: RecordDict, membership: Path, policy: Policy, may_wait: bool) -> RecordDict:
    try:
        request = CollectRequest.from_record(record)
    except InputFileRefused as error:
        return CollectReply(policy.node, None, error.message).to_record()
    seconds = request.wait if may_wait else 0
    return held_question.answer(request, membership, policy, seconds=seconds).to_record()


def _share(record: RecordDict, membership: Path, policy: Policy, _: bool) -> RecordDict:
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
        note(log, Answer("share", request.run_id, request.round, b"", 0, reason))
        return ShareReply(False, reason).to_record()
    record_id = bytes.fromhex(kept.name.removeprefix("student-0x"))
    note(log, Answer("share", request.run_id, request.round, record_id, 0, "kept"))
    return ShareReply(True).to_record()


def _reason(error: GenKDError) -> str:
    """Why, in the words that may leave this machine."""
    if isinstance(error, ConfigurationError):
        return "the node's configuration is at fault; its owner finds more in its log"
    if isinstance(error, ResourceExhausted):
        return "the node's disk cannot take it; ask again later"
    return one_line(ADDRESS_OR_PATH.sub("...", error.message))
