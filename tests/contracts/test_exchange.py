"""Messages of the federation survive the way, and whatever is not exactly one is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from contracts.acknowledgement import SignedAcknowledgement
from contracts.exchange import (
    MAX_CONTROL_BYTES,
    MAX_REASON,
    MAX_REFUSED,
    MAX_WAIT,
    CollectReply,
    CollectRequest,
    ShareReply,
    ShareRequest,
)
from genkd.errors import InputFileRefused, KeyOrSignatureError, VerificationFailed
from tests.federation.memory_federation import MemoryFederation, files_of, in_memory, receipt_of

RUN = bytes(range(32))
NODE = "0x5FbDB2315678afecb367f032d93F642f64180aa3"
FILES = {
    "student.safetensors": b"s" * 1000,
    "provenance.json": b"p",
    "model.sig": b"m",
    "receipt.json": b"r",
}
# As large as it gets: four bytes a character.
MOST_REFUSED = {bytes([n]) * 32: "\U0001f41d" * MAX_REASON for n in range(MAX_REFUSED)}


@pytest.fixture
def members(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MemoryFederation:
    return in_memory(tmp_path, monkeypatch)


@pytest.fixture
def shared(members: MemoryFederation) -> ShareRequest:
    """A true message to the first node."""
    releases = [node.publish() for node in members.nodes]
    complete = members.commit_round(*releases)
    return members.share(
        members.merge(list(complete.values())),
        list(complete.values()),
        receipt=complete[releases[0]].to_bytes(),
        acknowledgement=members.acknowledge(releases[0]),
    )


@pytest.mark.parametrize(
    "message",
    [
        CollectRequest(RUN, 0),
        CollectRequest(RUN, 2**32 - 1, MOST_REFUSED, MAX_WAIT),
        CollectReply(NODE, FILES),
        CollectReply(NODE, None, "no finished release"),
        ShareReply(True),
        ShareReply(False, "check 7 failed: ü"),
    ],
    ids=lambda message: type(message).__name__,
)
def test_what_is_said_arrives(message: CollectRequest) -> None:
    assert type(message).from_record(message.to_record()) == message


def test_a_shared_student_arrives_with_everything(shared: ShareRequest) -> None:
    assert ShareRequest.from_record(shared.to_record()) == shared
    bare = replace(shared, parents={}, receipt=None, acknowledgement=None)
    assert ShareRequest.from_record(bare.to_record()) == bare


def test_a_reason_is_one_bounded_line() -> None:
    reply = CollectReply(NODE, None, "\x1b[31mred\nline" + "x" * 1000)
    assert reply.reason.isprintable()
    assert len(reply.reason) == MAX_REASON
    assert CollectReply.from_record(reply.to_record()) == reply


# ------------------------------------------------------------------ malformed


def with_control(record: RecordDict, **changes: object) -> RecordDict:
    """A record whose control data says something else; None takes a member away."""
    config = record["control"]
    assert isinstance(config, ConfigRecord)
    value = json.loads(config["json"]) | changes  # type: ignore[arg-type]
    value = {key: one for key, one in value.items() if one is not None}
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    record["control"] = ConfigRecord({"json": text.encode()})
    return record


def raw(data: bytes) -> RecordDict:
    return RecordDict({"control": ConfigRecord({"json": data})})


def request() -> RecordDict:
    return CollectRequest(RUN, 1).to_record()


def extra(record: RecordDict, name: str, value: object) -> RecordDict:
    record[name] = value  # type: ignore[assignment]
    return record


HEX = "0x" + "11" * 32


@pytest.mark.parametrize(
    "record",
    [
        pytest.param(RecordDict(), id="empty"),
        pytest.param(raw(b""), id="no-json"),
        pytest.param(raw(b"[]"), id="a-list"),
        pytest.param(raw(b"\xff"), id="no-utf-8"),
        pytest.param(raw(b"[" * 60_000), id="deep"),
        pytest.param(raw(b" " * (MAX_CONTROL_BYTES + 1)), id="large"),
        pytest.param(raw(b'{"v":1,"v":1}'), id="a-key-twice"),
        pytest.param(RecordDict({"control": MetricRecord({"json": 1})}), id="metrics"),
        pytest.param(RecordDict({"control": ConfigRecord({"json": "{}"})}), id="text"),
        pytest.param(RecordDict({"control": ConfigRecord({"json": b"{}", "x": 1})}), id="two"),
        pytest.param(with_control(request(), v=2), id="protocol-of-tomorrow"),
        pytest.param(with_control(request(), v=True), id="protocol-true"),
        pytest.param(with_control(request(), v=1.0), id="protocol-1.0"),
        pytest.param(with_control(request(), kind="share"), id="another-kind"),
        pytest.param(with_control(request(), path="/etc/passwd"), id="an-unknown-member"),
        pytest.param(with_control(request(), round=None), id="no-round"),
        pytest.param(with_control(request(), round=-1), id="round-below-0"),
        pytest.param(with_control(request(), round=2**32), id="round-too-large"),
        pytest.param(with_control(request(), round="1"), id="round-as-text"),
        pytest.param(with_control(request(), round=True), id="round-true"),
        pytest.param(with_control(request(), run="../../x"), id="a-path-as-run"),
        pytest.param(with_control(request(), run=HEX.upper()), id="run-in-upper-case"),
        pytest.param(
            with_control(request(), refused={f"0x{n:064x}": "no" for n in range(MAX_REFUSED + 1)}),
            id="many-refused",
        ),
        pytest.param(with_control(request(), refused=[HEX]), id="refused-without-reasons"),
        pytest.param(with_control(request(), refused={"0x12": "no"}), id="refused-is-no-id"),
        pytest.param(with_control(request(), refused={HEX: 1}), id="reason-is-a-number"),
        pytest.param(with_control(request(), refused={HEX: "a\nb"}), id="reason-of-two-lines"),
        pytest.param(with_control(request(), wait=MAX_WAIT + 1), id="long-wait"),
        pytest.param(with_control(request(), wait=-1), id="negative-wait"),
        pytest.param(with_control(request(), wait=True), id="wait-is-true"),
        pytest.param(extra(request(), "weights", ConfigRecord()), id="another-record"),
        pytest.param(extra(request(), "files", ArrayRecord()), id="files-in-a-question"),
        pytest.param(
            raw(request()["control"]["json"] + b" "),  # type: ignore[operator, index]
            id="not-canonical",
        ),
    ],
)
def test_a_malformed_question_is_refused(record: RecordDict) -> None:
    with pytest.raises(InputFileRefused) as refused:
        CollectRequest.from_record(record)
    assert "\n" not in refused.value.message


def array(data: bytes = b"x", **changes: object) -> Array:
    values = {"dtype": "uint8", "shape": (len(data),), "stype": "bytes", "data": data} | changes
    return Array(**values)  # type: ignore[arg-type]


def answer(**sizes: object) -> RecordDict:
    """An answer with a release, whose control data says other sizes of files; None: not there."""
    record = CollectReply(NODE, FILES).to_record()
    config = record["control"]
    assert isinstance(config, ConfigRecord)
    said = json.loads(config["json"])["files"]  # type: ignore[arg-type]
    said |= {f"release/{name.replace('_', '.')}": one for name, one in sizes.items()}
    return with_control(record, files={name: one for name, one in said.items() if one is not None})


def with_array(key: str, value: Array | None) -> RecordDict:
    record = CollectReply(NODE, FILES).to_record()
    files = record["files"]
    assert isinstance(files, ArrayRecord)
    if value is None:
        del files[key]
    else:
        files[key] = value
    return record


@pytest.mark.parametrize(
    "record",
    [
        pytest.param(answer(model_sig=None, receipt_json=2), id="a-file-missing"),
        pytest.param(answer(**{"../escape": 1, "model_sig": None}), id="a-path-as-name"),
        pytest.param(
            answer(teacher_safetensors=1, model_sig=None), id="a-file-that-does-not-belong"
        ),
        pytest.param(answer(model_sig=0, receipt_json=2), id="an-empty-file"),
        pytest.param(answer(model_sig=-1, receipt_json=3), id="a-negative-size"),
        pytest.param(answer(model_sig=True), id="a-size-that-is-true"),
        pytest.param(answer(model_sig="1"), id="a-size-as-text"),
        pytest.param(answer(model_sig=2), id="more-said-than-there"),
        pytest.param(answer(student_safetensors=1), id="the-student-twice"),
        pytest.param(with_array("small", array(b"pmrx")), id="more-there-than-said"),
        pytest.param(with_array("small", None), id="the-small-files-missing"),
        pytest.param(with_array("large", None), id="the-student-missing"),
        pytest.param(with_array("large", array(b"")), id="an-empty-student"),
        pytest.param(with_array("other", array()), id="a-third-array"),
        pytest.param(
            with_control(
                with_array("small", array(bytes(2**20 + 3))),
                files={
                    "release/model.sig": 2**20 + 1,
                    "release/provenance.json": 1,
                    "release/receipt.json": 1,
                },
            ),
            id="a-huge-file",
        ),
        pytest.param(with_array("small", array(b"pmr", shape=(2,))), id="a-wrong-shape"),
        pytest.param(with_array("small", array(b"pmr", dtype="float32")), id="a-wrong-type"),
        pytest.param(with_array("small", array(b"pmr", stype="numpy.ndarray")), id="numpy"),
        pytest.param(
            extra(CollectReply(NODE, FILES).to_record(), "files", ConfigRecord()),
            id="files-in-a-config-record",
        ),
        pytest.param(
            with_control(CollectReply(NODE, FILES).to_record(), files=["release/model.sig"]),
            id="sizes-that-are-a-list",
        ),
        pytest.param(
            with_control(CollectReply(NODE, FILES).to_record(), reason="none"),
            id="a-release-and-a-reason",
        ),
        pytest.param(
            with_control(CollectReply(NODE, None, "none").to_record(), reason=""),
            id="neither",
        ),
        pytest.param(
            with_control(CollectReply(NODE, None, "none").to_record(), reason="a\nb"),
            id="two-lines",
        ),
        pytest.param(
            with_control(CollectReply(NODE, None, "none").to_record(), reason="x" * 301),
            id="a-long-reason",
        ),
        pytest.param(with_control(CollectReply(NODE, FILES).to_record(), node="me"), id="no-node"),
        pytest.param(
            with_control(CollectReply(NODE, FILES).to_record(), node=NODE.lower()),
            id="node-without-checksum",
        ),
    ],
)
def test_a_malformed_answer_is_refused(record: RecordDict) -> None:
    with pytest.raises(InputFileRefused):
        CollectReply.from_record(record)


def spoil(name: str, change: Callable[[bytes], bytes]) -> Callable[[RecordDict], None]:
    """Changes one of the small files of a message, and its size with it."""

    def apply(record: RecordDict) -> None:
        config, files = record["control"], record["files"]
        assert isinstance(config, ConfigRecord)
        assert isinstance(files, ArrayRecord)
        sizes = json.loads(config["json"])["files"]  # type: ignore[arg-type]
        data, small = files["small"].data, {}
        for key in sorted(sizes):
            small[key], data = data[: sizes[key]], data[sizes[key] :]
        small[name] = change(small.get(name, b""))
        files["small"] = array(b"".join(small[key] for key in sorted(small)))
        with_control(record, files={key: len(one) for key, one in small.items()})

    return apply


@pytest.mark.parametrize(
    "apply",
    [
        pytest.param(spoil("own", lambda data: data[:-1]), id="own-receipt-truncated"),
        pytest.param(spoil("own", lambda data: data + b"\n" + data), id="two-own-receipts"),
        pytest.param(spoil("parents", lambda data: data + b"\n"), id="an-empty-line"),
        pytest.param(
            spoil("parents", lambda data: data + b"\n" + data.split(b"\n")[-1]), id="a-parent-twice"
        ),
        pytest.param(
            spoil("parents", lambda data: b"\n".join(data.split(b"\n")[::-1])), id="not-sorted"
        ),
        pytest.param(spoil("parents", lambda data: b"\n" * 20_000), id="many-parents"),
        pytest.param(spoil("acknowledgement", lambda data: b"{}"), id="no-acknowledgement"),
        pytest.param(spoil("other", lambda data: b"x"), id="another-receipt"),
    ],
)
def test_malformed_receipts_are_refused(
    apply: Callable[[RecordDict], None], shared: ShareRequest
) -> None:
    record = shared.to_record()
    apply(record)
    with pytest.raises(InputFileRefused):
        ShareRequest.from_record(record)


@pytest.mark.parametrize("kept", [1, None, "true"])
def test_whether_it_is_kept_is_true_or_false(kept: object) -> None:
    with pytest.raises(InputFileRefused):
        ShareReply.from_record(with_control(ShareReply(True).to_record(), kept=kept))


@pytest.mark.parametrize(
    "make",
    [
        lambda: CollectRequest(b"short", 1),
        lambda: CollectRequest(RUN, 1, {b"short": "no"}),
        lambda: CollectReply(NODE, {**FILES, "more": b"x"}),
        lambda: CollectReply(NODE, None),
        lambda: ShareReply(True, "but"),
        lambda: ShareReply(False),
    ],
    ids=["run", "known", "five-files", "nothing", "kept-and-why", "not-kept-without-why"],
)
def test_what_no_reader_would_accept_is_not_written_either(make: Callable[[], object]) -> None:
    with pytest.raises(InputFileRefused):
        make()


def test_a_parent_under_anothers_id_is_not_written(shared: ShareRequest) -> None:
    (first, second) = shared.parents
    with pytest.raises(InputFileRefused):
        replace(shared, parents={first: shared.parents[second]})


# ------------------------------------------------------------------ acknowledgements


def test_an_acknowledgement_is_the_coordinators_or_refused(members: MemoryFederation) -> None:
    release = members.nodes[0].publish()
    data = members.acknowledge(release)
    found = SignedAcknowledgement.from_bytes(data)
    found.check(members.coordinator.address)
    assert found.message.record_id == receipt_of(release).record_id()
    assert found.to_bytes() == data
    forged = SignedAcknowledgement.from_bytes(members.acknowledge(release, members.nodes[1].keys))
    with pytest.raises(VerificationFailed):
        forged.check(members.coordinator.address)
    with pytest.raises((VerificationFailed, KeyOrSignatureError)):
        replace(found, signature=bytes(65)).check(members.coordinator.address)


@pytest.mark.parametrize(
    "change",
    [
        lambda value: {**value, "v": 2},
        lambda value: {**value, "more": 1},
        lambda value: {**value, "chainId": "1"},
        lambda value: {**value, "registry": value["registry"].lower()},
        lambda value: {**value, "acknowledgement": {}},
    ],
    ids=["version", "member", "chain", "spelling", "message"],
)
def test_a_malformed_acknowledgement_is_refused(
    change: Callable[[dict[str, object]], object], members: MemoryFederation
) -> None:
    data = members.acknowledge(members.nodes[0].publish())
    value = change(json.loads(data))
    with pytest.raises(InputFileRefused):
        SignedAcknowledgement.from_bytes(
            json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
        )


def test_the_files_are_the_ones_on_the_disk(members: MemoryFederation) -> None:
    release = members.nodes[0].publish()
    reply = CollectReply(members.nodes[0].address, files_of(release))
    assert CollectReply.from_record(reply.to_record()).files == files_of(release)
