"""What the executor runs, what it refuses, and what it tells a coordinator when something fails.

The SuperNode here is a stand-in that serves one task and keeps what comes back; the messages
travel through Flower's own packing. `test_supernode.py` has the real one.
"""

from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

pytest.importorskip("flwr")
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from contracts import flower_private as flower
from contracts.app_bundle import app_bundle, app_bundle_sha256
from genkd.errors import InputFileRefused, ResourceExhausted
from node import executor as executor_module
from node.executor import NOT_ALLOWED, UNREADABLE, AnswerLost, Executor, _ToldToEnd
from node.membership import Membership
from node.policy import default_policy_text

RUN_ID, NODE_ID, TASK_ID = 7, 11, 13
NODE = "0x" + "5a" * 20


class StandIn:
    """One task of a SuperNode: what the executor asks for, and what it pushed back."""

    def __init__(self, message: Message, *, bundle: bytes, announced: str, task_type: str) -> None:
        self.run = flower.Run.create_empty(RUN_ID)
        self.run.fab_hash = announced
        self.bundle, self.task_type = bundle, task_type
        self.tasks = 1
        self.failing: dict[str, Exception] = {}
        self.asked_types: list[str] = []
        self.confirmed: list[str] = []
        self.output: Any = None
        self.context = Context(RUN_ID, NODE_ID, {}, RecordDict(), {}, 1)
        # Flower's own packing makes of the message what a SuperNode holds.
        self.objects: dict[str, bytes] = {}
        self.pushed: list[Any] = []
        flower.push_message(self, message, self.context)  # type: ignore[arg-type]
        self.held = self.pushed.pop()
        self.tree = self.held.message_object_trees[0]
        self.held_objects, self.objects = self.objects, {}

    def __enter__(self) -> StandIn:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def _may_fail(self, call: str) -> None:
        if call in self.failing:
            raise self.failing[call]

    # The names are Flower's.
    def AcquireTask(self, request: Any) -> Any:  # noqa: N802
        self._may_fail("AcquireTask")
        self.asked_types = list(request.supported_task_types)
        if not self.tasks or self.task_type not in self.asked_types:
            raise _ToldToEnd
        self.tasks -= 1
        return SimpleNamespace(token="token", task=SimpleNamespace(type=self.task_type))

    def PullTaskInput(self, _request: Any) -> Any:  # noqa: N802
        self._may_fail("PullTaskInput")
        digest = hashlib.sha256(self.bundle).hexdigest()
        response = flower.PullTaskInputResponse(
            context=flower.context_to_proto(self.context),
            fab=flower.fab_to_proto(flower.Fab(digest, self.bundle, {})),
            task_id=TASK_ID,
        )
        response.run.run_id, response.run.fab_hash = RUN_ID, self.run.fab_hash
        return response

    def PullMessages(self, _request: Any) -> Any:  # noqa: N802
        self._may_fail("PullMessages")
        return flower.PullAppMessagesResponse(
            messages_list=self.held.messages_list, message_object_trees=[self.tree]
        )

    def PullObject(self, request: Any) -> Any:  # noqa: N802
        self._may_fail("PullObject")
        content = self.held_objects.get(request.object_id)
        return SimpleNamespace(
            object_found=content is not None, object_available=True, object_content=content
        )

    def ConfirmMessageReceived(self, request: Any) -> None:  # noqa: N802
        self.confirmed.append(request.message_object_id)

    def PushMessages(self, request: Any) -> Any:  # noqa: N802
        self._may_fail("PushMessages")
        self.pushed.append(request)
        trees = flower.iterate_object_tree(request.message_object_trees[0])
        return SimpleNamespace(objects_to_push=[one.object_id for one in trees], session_id="s")

    def PushObject(self, request: Any) -> Any:  # noqa: N802
        self.objects[request.object_id] = request.object_content
        return SimpleNamespace(stored=True)

    def PushTaskOutput(self, request: Any) -> None:  # noqa: N802
        self.output = request

    def SendTaskHeartbeat(self, _request: Any) -> None:  # noqa: N802
        pass

    @property
    def reply(self) -> Message:
        """What the SuperNode would send on."""
        (pushed,) = self.pushed
        found = flower.message_from_proto(pushed.messages_list[0])
        if found.has_error():
            return found
        tree = pushed.message_object_trees[0]
        message = flower.inflate_object_from_contents(tree.object_id, dict(self.objects))
        assert isinstance(message, Message)
        return message


def question() -> Message:
    flower.TaskIdentity.task_id, flower.TaskIdentity.run_id = 1, RUN_ID
    flower.TaskIdentity.node_id = 1
    content = RecordDict({"question": ConfigRecord({"n": 20}), "bytes": ArrayRecord({"a": ARRAY})})
    return Message(content, NODE_ID, "query.double")


ARRAY = Array(dtype="uint8", shape=(3,), stype="bytes", data=b"abc")
app = ClientApp()
SEEN: list[Context] = []


@app.query("double")
def double(message: Message, context: Context) -> Message:
    SEEN.append(context)
    context.state["secret"] = ConfigRecord({"kept": 1})
    number = int(message.content["question"]["n"])
    return Message(RecordDict({"answer": ConfigRecord({"n": 2 * number})}), reply_to=message)


@pytest.fixture
def membership(tmp_path: Path) -> Membership:
    found = Membership.open(tmp_path / "membership")
    found.make_secrets()
    text = default_policy_text(
        node=NODE, runs=["spring"], app_sha256=app_bundle_sha256(), releases=[tmp_path / "runs"]
    )
    found.policy.write_text(text)
    SEEN.clear()
    return found


def serve(
    membership: Membership,
    monkeypatch: pytest.MonkeyPatch,
    *,
    bundle: bytes | None = None,
    announced: str | None = None,
    task_type: str = flower.TaskType.CLIENT_APP.value,
    answering: Any = app,
    prepare: Callable[[StandIn], None] = lambda supernode: None,
) -> StandIn:
    """Let the executor take one task, and return the SuperNode it came from."""
    bundle = app_bundle() if bundle is None else bundle
    announced = hashlib.sha256(bundle).hexdigest() if announced is None else announced
    supernode = StandIn(question(), bundle=bundle, announced=announced, task_type=task_type)
    prepare(supernode)
    monkeypatch.setattr(Executor, "_client", lambda self, interceptor: supernode)
    monkeypatch.setattr(executor_module, "SECONDS_BETWEEN_TRIES", 0.0)
    with pytest.raises(_ToldToEnd):
        Executor(membership, "127.0.0.1:9", answering).run()
    return supernode


def test_the_installed_app_answers_for_an_allowed_bundle(
    membership: Membership, monkeypatch: pytest.MonkeyPatch
) -> None:
    supernode = serve(membership, monkeypatch)
    assert supernode.reply.content["answer"]["n"] == 40
    assert supernode.reply.metadata.reply_to_message_id == supernode.tree.object_id
    assert supernode.confirmed == [supernode.tree.object_id]
    assert supernode.output.sub_status == flower.SubStatus.COMPLETED
    (context,) = SEEN
    assert context.node_config["membership"] == str(membership.folder)
    # What a message left in the context is not there for the next.
    assert not supernode.output.HasField("context")


def test_an_allowed_bundle_is_not_even_opened(
    membership: Membership, monkeypatch: pytest.MonkeyPatch
) -> None:
    junk = b"no archive at all"
    text = membership.policy.read_text()
    allowed = text.replace(app_bundle_sha256(), hashlib.sha256(junk).hexdigest())
    membership.policy.write_text(allowed)
    assert serve(membership, monkeypatch, bundle=junk).reply.content["answer"]["n"] == 40


@pytest.mark.parametrize("task_type", [one.value for one in flower.TaskType])
def test_only_a_task_for_a_client_app_is_run_and_every_other_is_answered(
    task_type: str, membership: Membership, monkeypatch: pytest.MonkeyPatch
) -> None:
    reply = serve(membership, monkeypatch, task_type=task_type).reply
    assert reply.has_error() == (task_type != flower.TaskType.CLIENT_APP.value)
    assert len(SEEN) == (task_type == flower.TaskType.CLIENT_APP.value)


def no_policy(membership: Membership) -> None:
    membership.policy.unlink()


def broken_policy(membership: Membership) -> None:
    membership.policy.write_text("app_sha256 = [")


def policy_with_a_typo(membership: Membership) -> None:
    membership.policy.write_text(membership.policy.read_text() + "max_release_byte = 3\n")


def policy_of_another_app(membership: Membership) -> None:
    text = membership.policy.read_text()
    membership.policy.write_text(text.replace(app_bundle_sha256(), "0" * 64))


@pytest.mark.parametrize(
    ("change", "bundle", "announced"),
    [
        (None, b"another bundle", None),
        (None, b"", None),
        (None, b"another bundle", app_bundle_sha256()),
        (None, None, "0" * 64),
        (no_policy, None, None),
        (broken_policy, None, None),
        (policy_with_a_typo, None, None),
        (policy_of_another_app, None, None),
    ],
    ids=[
        *("another bundle", "no bundle", "another under the allowed hash", "hash of another"),
        *("no policy", "broken policy", "typo in the policy", "app not in the policy"),
    ],
)
def test_a_task_that_is_not_allowed_is_refused_in_five_words(
    change: Callable[[Membership], None] | None,
    bundle: bytes | None,
    announced: str | None,
    membership: Membership,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if change is not None:
        change(membership)
    supernode = serve(membership, monkeypatch, bundle=bundle, announced=announced)
    assert supernode.reply.error.reason == NOT_ALLOWED
    assert supernode.reply.error.code == flower.ErrorCode.INVALID_FAB
    assert supernode.confirmed  # or the SuperNode kept its content for ever
    assert supernode.output.sub_status == flower.SubStatus.FAILED
    assert supernode.output.details == ""
    assert SEEN == []


def test_an_edit_of_the_policy_counts_from_the_next_task(
    membership: Membership, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not serve(membership, monkeypatch).reply.has_error()
    policy_of_another_app(membership)
    assert serve(membership, monkeypatch).reply.has_error()


# -- what a coordinator learns when something fails ------------------------------------------------

SECRET = "/home/ada/teachers/ward-7.safetensors"


@pytest.mark.parametrize(
    ("error", "word"),
    [
        (FileNotFoundError(2, "No such file", SECRET), "unexpected"),
        (RuntimeError(SECRET), "unexpected"),
        (type(f"Error in {SECRET}", (Exception,), {})(SECRET), "unexpected"),
        (InputFileRefused(SECRET, hint=SECRET), "input_file_refused"),
        (ResourceExhausted(SECRET, hint=SECRET), "memory_or_disk"),
        (MemoryError(SECRET), "unexpected"),
        (SystemExit(SECRET), "unexpected"),
        (None, "unexpected"),
    ],
    ids=["file", "runtime", "class name", "ours", "disk", "memory", "exit", "no message"],
)
def test_an_exception_of_the_app_tells_a_coordinator_neither_path_nor_line(
    error: BaseException | None,
    word: str,
    membership: Membership,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def fail(message: Message, context: Context) -> Message | None:
        if error is not None:
            raise error
        return None

    supernode = serve(membership, monkeypatch, answering=fail)
    assert supernode.reply.error.reason == f"the node could not answer: {word}"
    assert supernode.reply.error.code == flower.ErrorCode.CLIENT_APP_RAISED_EXCEPTION
    sent = [one.SerializeToString() for one in (*supernode.pushed, supernode.output)]
    everything = b"".join([*sent, *supernode.objects.values()])
    assert SECRET.encode() not in everything
    assert b"Traceback" not in everything
    assert b".py" not in everything
    # Its owner finds it all in the log.
    out, err = capfd.readouterr()
    assert "Traceback" in err
    assert f"could not answer query.double: {word}" in out


def test_a_message_that_is_none_is_answered_not_left_for_the_supernode_to_wait_for(
    membership: Membership, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damage(supernode: StandIn) -> None:
        supernode.held_objects = dict.fromkeys(supernode.held_objects, b"\xff junk")

    supernode = serve(membership, monkeypatch, prepare=damage)
    assert supernode.reply.error.reason == UNREADABLE
    assert SEEN == []


@pytest.mark.parametrize(
    ("call", "error"),
    [
        ("PullTaskInput", httpx.ReadError("gone")),
        ("PullMessages", httpx.ReadError("gone")),
        ("PullObject", httpx.ReadTimeout("slow")),
        ("PushMessages", httpx.ConnectError("gone")),
        ("PushMessages", ValueError("no protobuf")),
    ],
    ids=["input", "message", "content", "answer", "nonsense"],
)
def test_an_answer_that_is_lost_asks_for_another_supernode(
    call: str, error: Exception, membership: Membership, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(supernode: StandIn) -> None:
        supernode.failing[call] = error

    with pytest.raises(AnswerLost):
        serve(membership, monkeypatch, prepare=fail)


def test_a_supernode_that_is_away_is_waited_for_in_one_line(
    membership: Membership, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def away(supernode: StandIn) -> None:
        acquire, left = supernode.AcquireTask, [50]

        def later(request: Any) -> Any:
            left[0] -= 1
            if left[0] > 0:
                raise httpx.ConnectError("refused")
            return acquire(request)

        supernode.AcquireTask = later  # type: ignore[method-assign]

    supernode = serve(membership, monkeypatch, prepare=away)
    assert not supernode.reply.has_error()
    lines = capfd.readouterr().out.splitlines()
    assert len(lines) == 3
    assert "waiting for it" in lines[0]
    assert lines[1] == "the SuperNode answers"


# -- the process -----------------------------------------------------------------------------------


def start(membership: Membership, *, piped: bool = False) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "node.executor", "--runtime-api-address", "127.0.0.1:9"]
    command += ["--membership", str(membership.folder), *(["--ends-with-input"] if piped else [])]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"the executor is ready\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_signal_ends_it_with_0(number: signal.Signals, membership: Membership) -> None:
    with start(membership) as process:
        process.send_signal(number)
        assert process.wait(20) == 0


def test_it_ends_when_its_keeper_is_gone(membership: Membership) -> None:
    with start(membership, piped=True) as process:
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(20) == 0


def test_a_secret_that_others_can_read_is_not_used(membership: Membership) -> None:
    membership.secret.chmod(0o644)
    with start(membership) as process:
        assert process.wait(20) == 7
