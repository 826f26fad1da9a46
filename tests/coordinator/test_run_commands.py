"""`run` and `merge` of the coordinator: what is asked, what is refused, what comes out."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from coordinator import cli
from coordinator.merging import MergeMethod
from coordinator.run_plan import default_quorum, parse_duration
from coordinator.run_request import RunRequest
from coordinator.start_student import StartStudent, class_names, parse_student
from genkd.canonical import canonical_json
from genkd.card import card_to_json
from genkd.errors import ConfigurationError, GenKDError, InputFileRefused, UsageError
from genkd.provenance.record import run_id_of
from genkd.weights import STUDENT_FILE, read_card, read_header

CLASSES = "ant,bee,cat"


@dataclass
class Ran:
    code: int
    data: dict[str, Any]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder and home."""
    for name in [name for name in os.environ if name.startswith("GENKD_")]:
        monkeypatch.delenv(name)
    path = tmp_path / "home"
    path.mkdir()
    monkeypatch.chdir(path)
    monkeypatch.setenv("HOME", str(path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(path / ".config"))
    return path


@pytest.fixture
def genkd(home: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    def run(*arguments: str) -> Ran:
        capsys.readouterr()
        code = cli.main([*arguments, "--json"])
        value = json.loads(capsys.readouterr().out)
        return Ran(code, value["data"] if value["status"] == "ok" else value["error"])

    return run


# ------------------------------------------------------------------ --student SPEC


def test_an_architecture_with_classes_and_images_is_a_start(home: Path) -> None:
    start = parse_student("resnet8-quarter", classes=CLASSES, image="1x16x16")
    assert start.card.spec.num_classes == 3
    assert start.card.class_names == ("ant", "bee", "cat")
    assert (start.card.input.mean, start.card.input.std) == ((0.5,), (0.25,))
    assert start.weights is None


def test_fresh_weights_follow_from_the_seed(home: Path) -> None:
    start = parse_student("resnet8-quarter", classes=CLASSES, image="1x16x16")
    assert start.model_file(0) == start.model_file(0)
    assert start.model_file(0) != start.model_file(1)
    assert read_card(read_header(start.model_file(0), STUDENT_FILE)) == start.card


def test_a_model_file_brings_its_weights_and_its_card(home: Path) -> None:
    data = parse_student("resnet8-quarter", classes=CLASSES, image="1x16x16").model_file(3)
    Path("start.safetensors").write_bytes(data)
    start = parse_student("start.safetensors")
    assert start.model_file(0) == data  # whatever the seed


def test_a_card_is_a_start_with_fresh_weights(home: Path) -> None:
    card = parse_student("resnet8-quarter", classes=CLASSES, image="3x16x16", std="0.2").card
    Path("student.json").write_bytes(canonical_json(card_to_json(card)))
    assert parse_student("student.json") == StartStudent(card)


def test_a_card_without_class_names_takes_them_from_the_flag(home: Path) -> None:
    card = parse_student("resnet8-quarter", classes=CLASSES, image="1x16x16").card
    nameless = card_to_json(card) | {"class_names": None}
    Path("student.json").write_bytes(canonical_json(nameless))
    assert parse_student("student.json", classes=CLASSES).card == card
    with pytest.raises(UsageError, match="does not name its classes"):
        parse_student("student.json")


def test_class_names_come_from_a_file_too(home: Path) -> None:
    Path("classes.txt").write_text("ant\n\nbee \ncat\n", encoding="utf-8")
    assert class_names("classes.txt") == ("ant", "bee", "cat")


SPECS: dict[str, tuple[str, dict[str, str], type[GenKDError]]] = {
    "an architecture alone": ("resnet8", {}, UsageError),
    "no image": ("resnet8", {"classes": CLASSES}, UsageError),
    "an image that is none": ("resnet8", {"classes": CLASSES, "image": "big"}, UsageError),
    "one class": ("resnet8", {"classes": "ant,", "image": "1x16x16"}, UsageError),
    "a class twice": ("resnet8", {"classes": "ant,ant", "image": "1x16x16"}, UsageError),
    "a missing file": ("none.safetensors", {}, InputFileRefused),
    "a missing card": ("none.json", {}, InputFileRefused),
    "missing classes": ("resnet8", {"classes": "none.txt", "image": "1x8x8"}, InputFileRefused),
    "a model file that is none": ("text.safetensors", {}, InputFileRefused),
    "a card that is none": ("text.json", {}, InputFileRefused),
    "an image beside a card": ("text.json", {"image": "1x16x16"}, UsageError),
}


@pytest.mark.parametrize(("spec", "beside", "error"), SPECS.values(), ids=SPECS.keys())
def test_a_student_that_means_nothing_is_refused(
    home: Path, spec: str, beside: dict[str, str], error: type[GenKDError]
) -> None:
    for name in ("text.safetensors", "text.json"):
        Path(name).write_text("no model at all")
    with pytest.raises(error):
        parse_student(spec, **beside)


def test_a_model_file_with_other_tensors_than_its_card_says_is_no_start(home: Path) -> None:
    start = parse_student("resnet8-quarter", classes=CLASSES, image="1x16x16")
    other = parse_student("resnet8-half", classes=CLASSES, image="1x16x16").model_file(0)
    with pytest.raises(InputFileRefused):
        StartStudent(start.card, other).model_file(0)


# ------------------------------------------------------------------ the request


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("20m", 1200), ("1.5h", 5400), ("7d", 604_800)],
    ids=str,
)
def test_durations_are_read(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "5", "-1s", "1w", "nans", "1e9d"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not a duration"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("nodes", "quorum"), [(1, 1), (2, 2), (3, 3), (5, 3), (10, 6), (100, 51)], ids=str
)
def test_without_a_word_the_quorum_is_more_than_half_and_at_least_three(
    nodes: int, quorum: int
) -> None:
    assert default_quorum(nodes) == quorum
    assert RunRequest("spring", 1, nodes).plan().quorum == quorum


REQUESTS: dict[str, tuple[dict[str, Any], str]] = {
    "no rounds": ({"rounds": 0}, "0 rounds"),
    "no nodes": ({"nodes": 0}, "0 nodes"),
    "a quorum of nobody": ({"quorum": 0}, "a quorum of 0"),
    "a quorum of more than there are": ({"quorum": 4}, "a quorum of 4 of 3"),
    "a method that is none": ({"merge": "mean"}, "'mean' is no way to merge"),
    "krum of too few": ({"merge": "krum"}, "krum needs at least 5 students"),
    "a wait that is none": ({"wait": "long"}, "is not a duration"),
    "a budget that is none": ({"budget": "600"}, "'600' is not a budget"),
    "a recipe key that there is not": ({"overrides": {"sead": "1"}}, "no recipe key 'sead'"),
    "two budgets": ({"budget": "10m", "overrides": {"budget": "5m"}}, "both 10m and the recipe"),
}


@pytest.mark.parametrize(("changes", "words"), REQUESTS.values(), ids=REQUESTS.keys())
def test_a_request_that_means_nothing_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises((UsageError, ConfigurationError), match=words):
        RunRequest(**({"run": "spring", "rounds": 1, "nodes": 3} | changes)).plan()


def test_flags_of_a_student_without_the_student_are_refused() -> None:
    with pytest.raises(UsageError, match="say nothing without --student"):
        RunRequest("spring", 1, 3, classes=CLASSES).start()


def test_a_plan_file_says_what_the_flags_say(home: Path) -> None:
    Path("plan.toml").write_text(
        'run = "spring"\nrounds = 2\nnodes = 5\nmerge = "krum"\nquorum = 5\nwait = "1h"\n'
        'student = "resnet8-quarter"\nclasses = "a,b"\nimage = "1x16x16"\n[overrides]\nx = "1"\n'
    )
    request = RunRequest.read(Path("plan.toml"))
    plan = request.plan()
    assert (plan.run_id, plan.rounds, plan.method) == (run_id_of("spring"), 2, MergeMethod.KRUM)
    assert (plan.wait_seconds, plan.overrides) == (3600, {"x": "1"})
    start = request.start()
    assert start is not None
    assert start.card.class_names == ("a", "b")


PLANS = {
    "missing": (None, "does not say"),
    "not TOML": ("run = ", "cannot be read"),
    "an unknown key": ('run = "a"\nround = 2\nnodes = 3\n', "something unknown: round"),
    "a text for a number": ('run = "a"\nrounds = "2"\nnodes = 3\n', "rounds is no int"),
    "a truth for a number": ('run = "a"\nrounds = true\nnodes = 3\n', "rounds is no int"),
    "a number for a text": ("run = 7\nrounds = 1\nnodes = 3\n", "run is no str"),
    "without nodes": ('run = "a"\nrounds = 1\n', "does not say nodes"),
}


@pytest.mark.parametrize(("text", "words"), PLANS.values(), ids=PLANS.keys())
def test_a_plan_file_that_means_nothing_is_refused(
    home: Path, text: str | None, words: str
) -> None:
    if text is not None:
        Path("plan.toml").write_text(text)
    with pytest.raises(ConfigurationError, match=words):
        RunRequest.read(Path("plan.toml"))


# ------------------------------------------------------------------ the program


@pytest.mark.parametrize(
    ("flags", "code"),
    [
        (["--rounds", "1", "--nodes", "3"], 2),
        (["--rounds", "0", "--nodes", "3", "--run", "spring"], 2),
        (["--rounds", "1", "--nodes", "3", "--run", "spring", "--merge", "mean"], 2),
        (["--rounds", "1", "--nodes", "3", "--run", "spring", "--student", "x.json"], 4),
        (["--rounds", "1", "--nodes", "3", "--run", "spring", "--set", "x"], 2),
        (["--rounds", "1", "--nodes", "3", "--run", "spring"], 7),  # there are no keys
    ],
    ids=["no run", "no rounds", "no method", "no student", "no setting", "no keys"],
)
def test_run_says_what_is_wrong_before_anything_happens(
    genkd: Callable[..., Ran], home: Path, flags: list[str], code: int
) -> None:
    assert genkd("run", *flags).code == code
    assert list(home.glob("federation")) == []


def test_merge_averages_releases_without_a_federation_or_a_chain(
    genkd: Callable[..., Ran], home: Path, releases: Path
) -> None:
    ran = genkd("merge", str(releases), "--out", "merged", "--method", "fedavg")
    assert ran.code == 0, ran.data
    assert Path(ran.data["student"]) == Path("merged/student.safetensors")
    assert len(ran.data["members"]) == 3
    assert Path("merged/student.safetensors").exists()


def test_merge_refuses_a_release_that_was_altered(
    genkd: Callable[..., Ran], home: Path, releases: Path
) -> None:
    student = next(releases.iterdir()) / "student.safetensors"
    data = bytearray(student.read_bytes())
    data[-1] ^= 1
    student.write_bytes(data)
    ran = genkd("merge", str(releases), "--out", "merged", "--method", "fedavg")
    assert ran.code == 1
    assert not Path("merged").exists()


def test_merge_of_nothing_is_refused(genkd: Callable[..., Ran], home: Path) -> None:
    assert genkd("merge", str(home), "--out", "merged").code == 2


@pytest.fixture
def releases(tmp_path: Path) -> Path:
    """A folder with three releases of one card, signed by one node."""
    from tests.federation.memory_federation import make_federation

    federation = make_federation(tmp_path / "federation", count=1)
    for _ in range(3):
        federation.nodes[0].sign(tmp_path / "releases")
    return tmp_path / "releases"
