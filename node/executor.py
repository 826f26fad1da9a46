"""Answer what a SuperNode hands out, with the installed app and nothing else.

    python -m node.executor --membership DIR --runtime-api-address 127.0.0.1:9094

Flower's own executor unpacks whatever app bundle (FAB) the coordinator submitted, and imports it:
whoever can submit a run then runs code on every node. This one never unpacks a bundle. It runs
`node.client_app:app` as it is installed here, for bundles whose sha256 stands in `policy.toml`, and
answers everything else with a refusal. What goes wrong is logged here and told to the coordinator
in a word that names no path, no class and no line.

A SuperNode waits for each answer, for ever. So a message that cannot be read is answered too; and
where an answer is lost on its way (`AnswerLost`), this process ends with status 75, upon which its
keeper starts the SuperNode anew.
"""

from __future__ import annotations

import argparse
import hashlib
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp

from contracts.flower_private import (
    ACQUIRE_TASK,
    AcquireTaskRequest,
    ErrorCode,
    Node,
    ObjectTree,
    PullAppMessagesRequest,
    PullTaskInputRequest,
    RuntimeHttpClient,
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SendTaskHeartbeatRequest,
    SubStatus,
    SuperExecAuthHttpInterceptor,
    TaskIdentity,
    TaskType,
    context_from_proto,
    fab_from_proto,
    inflate_object_from_contents,
    iterate_object_tree,
    make_confirm_message_received_fn_protobuf,
    make_pull_object_fn_protobuf,
    message_from_proto,
    pull_objects,
    push_message,
    push_task_output,
    run_from_proto,
)
from genkd.console import printable
from genkd.errors import GenKDError, Stopped
from node.child_process import end_with_parent
from node.membership import Membership

COMPONENT = "flwr-clientapp"
SECONDS_BETWEEN_POLLS = 0.2
SECONDS_BETWEEN_TRIES = 1.0
# A SuperNode takes a task back after 60 s without one.
SECONDS_BETWEEN_HEARTBEATS = 10.0

NOT_ALLOWED = "this node does not run this app"
UNREADABLE = "the message cannot be read"
# Between two looks for content that the SuperNode is still receiving, in seconds.
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 2.0


class AnswerLost(Exception):
    """The SuperNode waits for an answer that cannot come any more, or it is gone."""


class _ToldToEnd(BaseException):
    """SIGTERM, SIGINT or the end of the keeper; no `except Exception` of an app swallows it."""


@dataclass(frozen=True)
class Answer:
    """What goes back for a task.

    Attributes:
        message: The reply.
        outcome: For the log, in a few words.
        completed: Whether the app made the reply.
    """

    message: Message
    outcome: str
    completed: bool


class Executor:
    """Takes one task after the other from a SuperNode.

    Args:
        membership: Whose policy says which bundles are allowed.
        address: The SuperNode's Runtime API, `host:port`, on this machine.
        app: What answers.
    """

    def __init__(self, membership: Membership, address: str, app: ClientApp) -> None:
        self._membership = membership
        self._address = address
        self._app = app
        self._away = False

    def run(self) -> None:
        """Answer until the process is told to end. A SuperNode that is away is waited for.

        Raises:
            AnswerLost: If the SuperNode must be started anew.
        """
        proof = SuperExecAuthHttpInterceptor(
            master_secret=self._membership.executor_secret(),
            protected_methods=frozenset({ACQUIRE_TASK}),
        )
        # A task of a type that nobody takes would keep the SuperNode waiting: take, and refuse.
        request = AcquireTaskRequest(supported_task_types=[one.value for one in TaskType])
        with self._client(proof) as client:
            while True:
                try:
                    given = client.AcquireTask(request)
                except (httpx.HTTPError, ValueError) as error:
                    self._note_away(error)
                    time.sleep(SECONDS_BETWEEN_TRIES)
                    continue
                self._note_there()
                if given.token:
                    self._take(given.task.type, given.token)
                else:
                    time.sleep(SECONDS_BETWEEN_POLLS)

    def _client(
        self, interceptor: SuperExecAuthHttpInterceptor | RuntimeTokenHttpInterceptor
    ) -> RuntimeHttpClient:
        """A client that tries once: Flower's own retries end in SIGINT to the process."""
        version = RuntimeVersionHttpInterceptor(component_name=COMPONENT)
        return RuntimeHttpClient.from_server_address(
            server_address=self._address,
            insecure=True,
            root_certificates=None,
            interceptors=[version, interceptor],
        )

    def _note_away(self, error: Exception) -> None:
        if not self._away:
            log(f"the SuperNode does not answer ({type(error).__name__}); waiting for it")
        self._away = True

    def _note_there(self) -> None:
        if self._away:
            log("the SuperNode answers")
        self._away = False

    # -------------------------------------------------------------- one task

    def _take(self, task_type: str, token: str) -> None:
        """Answer one task.

        Raises:
            AnswerLost: If no answer reached the SuperNode.
        """
        with self._client(RuntimeTokenHttpInterceptor(token)) as client, _heartbeats(client):
            try:
                outcome = self._answer(client, task_type)
            except Exception as error:
                traceback.print_exc()
                raise AnswerLost from error
        log(outcome)

    def _answer(self, client: RuntimeHttpClient, task_type: str) -> str:
        given = client.PullTaskInput(PullTaskInputRequest())
        context, run = context_from_proto(given.context), run_from_proto(given.run)
        # What replies are signed with inside Flower.
        TaskIdentity.task_id, TaskIdentity.run_id = given.task_id, run.run_id
        TaskIdentity.node_id = context.node_id
        bundle = hashlib.sha256(fab_from_proto(given.fab).content).hexdigest()
        refusal = self._refusal(task_type == TaskType.CLIENT_APP, bundle, run.fab_hash)
        answer = self._reply(client, context, refusal)
        push_message(client, answer.message, context)
        status = SubStatus.COMPLETED if answer.completed else SubStatus.FAILED
        # Without a context: whatever is to be remembered lies on this node's disk.
        push_task_output(client, None, status, "")
        return answer.outcome

    def _refusal(self, is_client_app: bool, bundle: str, announced: str) -> str | None:
        """Why a task is not run, for the log; None if it is."""
        if not is_client_app:
            return "it is no task for a ClientApp"
        if bundle != announced:
            return "its app is not the one that its run announces"
        try:
            allowed = self._allowed_bundles()
        except GenKDError as error:
            return f"policy.toml cannot be used: {error}"
        if bundle not in allowed:
            return f"policy.toml does not allow the app {bundle}"
        return None

    def _allowed_bundles(self) -> frozenset[str]:
        """The sha256 of every allowed bundle; read each time, so that an edit counts at once."""
        from node.policy import Policy

        return Policy.load(self._membership.folder).app_sha256

    def _reply(self, client: RuntimeHttpClient, context: Context, refusal: str | None) -> Answer:
        envelope, tree = _pull_envelope(client)
        # Of a refused task too: its SuperNode is still receiving, and forgets what was pulled.
        contents = _pull_contents(client, context, tree)
        if refusal is not None:
            log(f"refused: {refusal}")
            return _error(envelope, ErrorCode.INVALID_FAB, NOT_ALLOWED, "refused a task")
        try:
            message = _message_of(tree, contents)
        except Exception:
            traceback.print_exc()
            code = ErrorCode.CLIENT_APP_RAISED_EXCEPTION
            return _error(envelope, code, UNREADABLE, "could not read a message")
        return self._run_app(message, context)

    def _run_app(self, message: Message, context: Context) -> Answer:
        kind = printable(message.metadata.message_type)
        # The app of a stock SuperNode finds its folder in --node-config; here it is known.
        context.node_config["membership"] = str(self._membership.folder)
        try:
            reply = self._app(message=message, context=context)
            if not isinstance(reply, Message):
                raise TypeError("the app returned no message")
        except (Exception, SystemExit) as error:
            traceback.print_exc()
            # The words of an error name files of this node; its code does not.
            word = error.code if isinstance(error, GenKDError) else "unexpected"
            reason = f"the node could not answer: {word}"
            code = ErrorCode.CLIENT_APP_RAISED_EXCEPTION
            return _error(message, code, reason, f"could not answer {kind}: {word}")
        return Answer(reply, f"answered {kind}", completed=True)


def _pull_envelope(client: RuntimeHttpClient) -> tuple[Message, ObjectTree]:
    """The message of a task without its content, and the tree of what its content is made of."""
    given = client.PullMessages(PullAppMessagesRequest())
    if not given.messages_list:
        raise AnswerLost
    tree = given.message_object_trees[0]
    message = message_from_proto(given.messages_list[0])
    message.metadata.__dict__["_message_id"] = tree.object_id  # Flower leaves it out
    return message, tree


def _pull_contents(
    client: RuntimeHttpClient, context: Context, tree: ObjectTree
) -> dict[str, bytes]:
    """What the content of a message is made of, as bytes, by id.

    A task is handed out before its message has been received in full, so this waits. Nothing may
    be confirmed earlier: the SuperNode would drop what it is receiving.
    """
    node, run_id = Node(node_id=context.node_id), context.run_id
    contents = pull_objects(
        [one.object_id for one in iterate_object_tree(tree)],
        make_pull_object_fn_protobuf(client.PullObject, node, run_id),
        initial_backoff=FIRST_PAUSE,
        backoff_cap=LONGEST_PAUSE,
    )
    confirm = make_confirm_message_received_fn_protobuf(client.ConfirmMessageReceived, node, run_id)
    confirm(tree.object_id)
    return contents


def _message_of(tree: ObjectTree, contents: dict[str, bytes]) -> Message:
    """The message that these bytes are.

    Raises:
        Exception: Of many kinds, if they are none.
    """
    message = inflate_object_from_contents(tree.object_id, contents)
    if not isinstance(message, Message):
        raise TypeError("it is no message")
    message.metadata.__dict__["_message_id"] = tree.object_id  # Flower leaves it out
    return message


def _error(message: Message, code: int, reason: str, outcome: str) -> Answer:

    return Answer(Message(Error(code, reason), reply_to=message), outcome, completed=False)


@contextmanager
def _heartbeats(client: RuntimeHttpClient) -> Iterator[None]:
    """Tell the SuperNode now and then that its task is being worked on."""
    done = threading.Event()

    def beat() -> None:
        while not done.wait(SECONDS_BETWEEN_HEARTBEATS):
            try:
                client.SendTaskHeartbeat(SendTaskHeartbeatRequest())
            except (httpx.HTTPError, ValueError) as error:
                log(f"a heartbeat was not taken ({type(error).__name__})")

    thread = threading.Thread(target=beat, name="heartbeats", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


# ------------------------------------------------------------------ the process


def log(line: str) -> None:
    """One line for the log of this process."""
    print(line, flush=True)


def _end(number: int, _frame: object) -> None:
    raise _ToldToEnd


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until told to end; returns the exit status: 0, or 75 for a restart of the SuperNode.

    Args:
        arguments: What follows the program's name; None takes them from the process.
    """
    parser = argparse.ArgumentParser(prog="python -m node.executor", description=__doc__)
    parser.add_argument("--membership", type=Path, required=True)
    parser.add_argument("--runtime-api-address", required=True)
    parser.add_argument("--ends-with-input", action="store_true")
    given = parser.parse_args(arguments)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _end)
    if given.ends_with_input:
        end_with_parent()
    try:
        from node.client_app import app

        log("the executor is ready")
        Executor(Membership.open(given.membership), given.runtime_api_address, app).run()
    except _ToldToEnd:
        return 0
    except AnswerLost:
        log("an answer was lost on its way to the SuperNode")
        return Stopped.exit_code
    except GenKDError as error:
        log(f"{error} ({error.hint})")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
