"""`make demo-federation` with tiny teachers: the whole federation, for real, from end to end.

A SuperLink, three SuperNodes, TLS, Anvil, the command lines as people type them. The results are
read from the disk of each party, and the chain is asked again once the demo is over.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from torch.nn import functional

from coordinator.store import Store
from genkd.card import InputCard, ModelCard, ModelSpec, card_to_json
from genkd.evaluate import evaluate, load_student
from genkd.images import read_images
from genkd.models import build_model
from genkd.provenance.record import run_id_of
from genkd.provenance.release import SIZE_LIMITS, read_receipt, read_release
from genkd.provenance.statement import STUDENT_NAME
from genkd.provenance.typed_data import to_hex
from genkd.weights import write_model

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
SIDE = 16
NAMES = ("horizontal", "vertical", "blob")
KNOWN = ((0, 1), (1, 2), (0, 2))  # by each node's teacher
NODES = ("node-1", "node-2", "node-3")
RUN_ID = run_id_of("demo")
ROUNDS = (0, 1, 2)
TINY = (
    *("--student", "lenet5-bn-quarter", "--budget", "600passes", "--later-budget", "600passes"),
    *("--merge-budget", "600passes", "--set", "batch=32", "--set", "bank_images=128"),
    *("--set", "generator_channels=4", "--set", "generator_steps=2", "--set", "langevin_steps=2"),
    *("--set", "student_steps=20", "--set", "student_batch=16", "--set", "student_rate=0.03"),
)
# On a machine that does nothing else it takes about a minute.
TIMEOUT = 900
# New keys are locked so that guessing the passphrase takes long. Here nobody guesses.
CHEAP_KEYS = """
import sys
if "init" in sys.orig_argv:
    from genkd.provenance import keystore
    keystore.SCRYPT_N = 2**12
"""


# ------------------------------------------------------------------ what the demo is given


def stripes(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Stripes and blobs: uint8 (N, H, W), int64 (N,)."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % len(NAMES)
    rows, columns = np.mgrid[0:SIDE, 0:SIDE] / SIDE
    images = np.empty((count, SIDE, SIDE))
    for image, label in zip(images, labels, strict=True):
        phase, y, x = random.random(3)
        image[:] = (
            np.sin(2 * np.pi * (3 * rows + phase)),
            np.sin(2 * np.pi * (3 * columns + phase)),
            4 * np.exp(-30 * ((rows - y) ** 2 + (columns - x) ** 2)) - 1,
        )[label]
    images += random.normal(0, 0.3, images.shape)
    return np.clip(images * 60 + 128, 0, 255).astype(np.uint8), labels.astype(np.int64)


def write_teacher(path: Path, known: tuple[int, ...]) -> Path:
    """A teacher that has seen the images of some classes only."""
    images, labels = stripes(192, seed=sum(known))
    seen = np.isin(labels, known)
    inputs = (torch.from_numpy(images[seen])[:, None].float() / 255 - 0.5) / 0.25
    targets = torch.from_numpy(np.searchsorted(known, labels[seen]))
    spec = ModelSpec("resnet8-quarter", len(known), 1)
    names = tuple(NAMES[label] for label in known)
    card = ModelCard(spec, InputCard(SIDE, SIDE, 1, (0.5,), (0.25,)), names, "for the tests")
    model = build_model(spec, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for start in [*range(0, len(targets), 32)] * 5:
        batch = slice(start, start + 32)
        optimizer.zero_grad()
        functional.cross_entropy(model(inputs[batch]), targets[batch]).backward()
        optimizer.step()
    write_model(path, model.state_dict(), {"v": 1, "card": card_to_json(card)})
    return path


@dataclass(frozen=True)
class Given:
    """A folder to work in, teachers, images, and a home that the demo should leave alone."""

    folder: Path
    teachers: tuple[Path, ...]
    images: Path
    home: Path

    def command(self, out: Path) -> list[str]:
        return [
            *(sys.executable, str(ROOT / "examples" / "federation" / "demo.py")),
            *("--out", str(out), "--images", str(self.images), *TINY),
            *("--teachers", *map(str, self.teachers)),
        ]

    @property
    def environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("GENKD_")}
        path = {"PYTHONPATH": str(self.folder / "python")}
        return kept | path | {"HOME": str(self.home), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Given:
    folder = tmp_path_factory.mktemp("federation")
    teachers = tuple(
        write_teacher(folder / f"{number}.safetensors", known) for number, known in enumerate(KNOWN)
    )
    images, labels = stripes(60, seed=9)
    np.savez(folder / "test.npz", images=images, labels=labels)
    (folder / "home").mkdir()
    (folder / "python").mkdir()
    (folder / "python" / "sitecustomize.py").write_text(CHEAP_KEYS)
    return Given(folder, teachers, folder / "test.npz", folder / "home")


def processes_of(folder: Path) -> list[str]:
    """The processes that work in a folder, or whose home is there."""
    found = []
    for process in psutil.process_iter():
        try:
            places = {process.cwd(), process.environ().get("HOME", "")}
            if any(Path(place).is_relative_to(folder) for place in places):
                found.append(" ".join(process.cmdline()))
        except psutil.Error:
            continue
    return found


# ------------------------------------------------------------------ from end to end


@dataclass(frozen=True)
class Shown:
    """A demo that is over."""

    folder: Path
    output: str

    @property
    def federation(self) -> Path:
        return self.folder / "coordinator" / "federation"

    def releases(self, round_number: int) -> list[Path]:
        place = f"releases/{to_hex(RUN_ID)}/round-{round_number:06d}"
        return sorted((self.federation / place).glob("student-0x*"))

    def merged(self, round_number: int) -> Path:
        place = f"merged/{to_hex(RUN_ID)}/round-{round_number:06d}"
        (found,) = (self.federation / place).glob("student-0x*")
        return found

    def kept(self, node: str, round_number: int) -> Path:
        place = f"membership/shared/{to_hex(RUN_ID)}/round-{round_number:06d}"
        (found,) = (self.folder / node / place).glob("student-0x*")
        return found


@pytest.fixture(scope="module")
def shown(given: Given) -> Shown:
    folder = given.folder / "demo"
    done = subprocess.run(
        given.command(folder),
        env=given.environment,
        cwd=given.folder,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-6000:]}\n{done.stderr}"
    return Shown(folder, done.stdout)


def test_no_process_is_left(shown: Shown) -> None:
    assert processes_of(shown.folder) == []


def test_the_home_of_whoever_shows_it_is_left_alone(shown: Shown, given: Given) -> None:
    assert list(given.home.iterdir()) == []


def test_every_release_came_exactly_once(shown: Shown) -> None:
    nodes = {
        json.loads((shown.folder / "demo.json").read_text())["nodes"][i]["address"]
        for i in (0, 1, 2)
    }
    with Store.open(shown.federation) as store:
        for number in (1, 2):
            submissions = list(store.submissions(RUN_ID, number))
            assert [one.accepted for one in submissions] == [True] * 3
            assert {one.node for one in submissions} == nodes
            assert {one.path for one in submissions} == set(shown.releases(number))
        assert [one.number for one in store.rounds(RUN_ID)] == list(ROUNDS)


def test_what_came_in_is_four_files_of_a_release(shown: Shown) -> None:
    for number in (1, 2):
        for release in shown.releases(number):
            assert {path.name for path in release.iterdir()} == set(SIZE_LIMITS)


def test_no_teacher_key_or_sample_of_a_node_reached_the_coordinator(
    shown: Shown, given: Given
) -> None:
    private = set(given.teachers)
    for node in NODES:
        private |= set((shown.folder / node).glob("runs/*/samples.npz"))
        private |= {one for one in (shown.folder / node).glob("keys/**/*.*") if is_secret(one)}
        private.add(shown.folder / node / "passphrase.txt")
    # Teacher, two students' samples, two keys, the next one, the teacher's salt, the passphrase.
    assert len(private) == 3 * 8
    digests = {hashlib.sha256(one.read_bytes()).digest() for one in private}
    files = [one for one in (shown.folder / "coordinator").rglob("*") if one.is_file()]
    assert [one for one in files if hashlib.sha256(one.read_bytes()).digest() in digests] == []


def is_secret(path: Path) -> bool:
    return path.is_file() and path.name != "profile.json" and not path.name.endswith(".pub.pem")


def test_each_node_keeps_the_merged_student_of_every_round(shown: Shown) -> None:
    for node in NODES:
        for number in ROUNDS:
            kept, merged = shown.kept(node, number), shown.merged(number)
            assert kept.name == merged.name
            assert read_release(kept).student == read_release(merged).student
            parents = {path.name for path in (kept.parent / "parents").iterdir()}
            made_from = shown.releases(number) if number else []
            assert parents == {f"{path.name}.receipt.json" for path in made_from}
            assert (kept.parent / "acknowledgement.json").exists() == (number > 0)


def test_each_node_has_the_proof_that_its_own_release_was_recorded(shown: Shown) -> None:
    for node in NODES:
        for number in (1, 2):
            (release,) = (shown.folder / node).glob(f"runs/demo-{number}/release/student-0x*")
            receipt = read_receipt(release)
            assert receipt.inclusion is not None
            assert receipt.inclusion.proof is not None
            assert receipt == read_receipt(shown.releases(number)[0].parent / release.name)


def test_secrets_are_for_their_owner_only(shown: Shown) -> None:
    secrets = [
        *shown.folder.glob("*/passphrase.txt"),
        *shown.folder.glob("*/membership/*.key"),
        *shown.folder.glob("*/membership/*.secret"),
        *shown.federation.glob("*.key"),
        *shown.federation.glob("*.secret"),
    ]
    assert len(secrets) == 4 + 3 + 3 + 2 + 1
    assert [path for path in secrets if path.stat().st_mode & 0o077] == []


# ------------------------------------------------------------------ the chain, asked again


@pytest.fixture(scope="module")
def chain(shown: Shown, given: Given) -> Iterator[list[str]]:
    """The chain as it was, started by the line that the demo shows; the lines that it shows."""
    lines = re.findall(r"^  (\(cd .*\))$", shown.output, re.MULTILINE)
    assert len(lines) == 3
    up, verify, down = lines
    assert bash(up, given).returncode == 0
    try:
        yield [verify]
    finally:
        assert bash(down, given).returncode == 0
        assert processes_of(shown.folder) == []


def bash(line: str, given: Given) -> subprocess.CompletedProcess[str]:
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "-c", line],
        env=given.environment | {"PATH": path},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_the_last_student_verifies_by_the_line_that_the_demo_shows(
    chain: list[str], given: Given
) -> None:
    done = bash(chain[0], given)
    assert done.returncode == 0, done.stderr
    *checks, verdict = done.stderr.splitlines()
    assert len(checks) >= 10
    assert {line[:3] for line in checks} == {"ok "}
    assert verdict == "valid"


def test_its_lineage_has_every_student_of_both_rounds_up_to_the_start(
    chain: list[str], shown: Shown, given: Given
) -> None:
    folders = [shown.merged(0).parent, shown.merged(1).parent]
    folders += [shown.releases(number)[0].parent for number in (1, 2)]
    parents = " ".join(f"--parents-in {folder}" for folder in folders)
    node = shown.folder / "node-2"
    kept = shown.kept("node-2", 2)
    done = bash(f"cd {node} && genkd-node lineage {kept} --json {parents}", given)
    assert done.returncode == 0, done.stderr
    parents_of: dict[str, set[str]] = {}

    def walk(tree: dict[str, object]) -> None:
        found = tree["parents"]
        assert isinstance(found, list)
        if tree["state"] != "above":
            assert tree["state"] == "valid"
            parents_of[str(tree["recordId"])] = {one["recordId"] for one in found}
        for one in found:
            walk(one)

    walk(json.loads(done.stdout)["data"])
    ids = {number: shown.merged(number).name.removeprefix("student-") for number in ROUNDS}
    expected: dict[str, set[str]] = {ids[0]: set()}
    for number in (1, 2):
        nodes = {path.name.removeprefix("student-") for path in shown.releases(number)}
        expected |= {ids[number]: nodes} | {node: {ids[number - 1]} for node in nodes}
    assert len(expected) == 9
    assert parents_of == expected


# ------------------------------------------------------------------ what is shown


def test_the_picture_shows_them_all(shown: Shown) -> None:
    picture = (shown.folder / "lineage.svg").read_text()
    students = [shown.merged(number) for number in ROUNDS]
    students += [release for number in (1, 2) for release in shown.releases(number)]
    assert len(students) == 9
    assert [one.name for one in students if one.name.removeprefix("student-") not in picture] == []


def test_a_line_tells_of_each_event(shown: Shown) -> None:
    for node in NODES:
        for event in ("admitted", "connected to the coordinator", r"\$ genkd-node distill .*"):
            assert re.search(rf"^\d\d:\d\d  {node} +{event}", shown.output, re.MULTILINE)
    told = re.findall(r"^\d\d:\d\d  coordinator  (.*)$", shown.output, re.MULTILINE)
    for number in (1, 2):
        assert any(line.startswith(f"round {number}: student merged of 3") for line in told)
    assert sum("accepted" in line for line in told) == 6


def test_the_table_holds_what_an_evaluation_finds(shown: Shown, given: Given) -> None:
    table = json.loads((shown.folder / "table.json").read_text())
    assert [len(one["nodes"]) for one in table["rounds"]] == [3, 3]
    for number, figures in enumerate(table["rounds"], start=1):
        student = load_student(shown.merged(number) / STUDENT_NAME)
        data = read_images(given.images, student.card)
        assert figures["merged"] == pytest.approx(evaluate(student, data, student.card).top1)
        per_class = evaluate(student, data, student.card).accuracy_per_class
        for node, known in zip(figures["nodes"], KNOWN, strict=True):
            assert node["classes"] == [NAMES[label] for label in known]
            own = [per_class[label] for label in known]
            assert node["own_after"] == pytest.approx(np.mean(own))  # as many images of each
            assert node["own_after_among_own"] >= node["own_after"]
            chosen = np.isin(data.labels, known)
            theirs = replace(data, images=data.images[chosen], labels=data.labels[chosen])
            path = next(
                one
                for one in shown.releases(number)
                if read_receipt(one).record.node == address_of(shown, node["name"])
            )
            own_student = load_student(path / STUDENT_NAME)
            before = evaluate(own_student, theirs, own_student.card).top1
            assert node["own_before"] == pytest.approx(before)
    assert "MERGED STUDENT" in shown.output


def address_of(shown: Shown, name: str) -> str:
    demo = json.loads((shown.folder / "demo.json").read_text())
    return next(str(one["address"]) for one in demo["nodes"] if one["name"] == name)


# ------------------------------------------------------------------ broken off


def test_ctrl_c_ends_every_process_of_every_party(given: Given) -> None:
    folder = given.folder / "broken-off"
    with subprocess.Popen(
        given.command(folder),
        env=given.environment,
        cwd=given.folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "connected to the coordinator" in line:
                break
        running = processes_of(folder)
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGINT)  # people press it twice
        rest = process.stdout.read()
    assert any("supernode" in one for one in running), "the others run when it is pressed"
    assert any("anvil" in one for one in running)
    assert process.returncode == 130, rest
    assert rest.rstrip().endswith("stopped")
    assert gone(folder)


def test_a_failure_ends_every_process_too(given: Given) -> None:
    folder = given.folder / "without-anvil"
    done = subprocess.run(
        given.command(folder),
        env=given.environment | {"GENKD_ANVIL": str(folder / "none")},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert done.returncode == 1
    assert "'genkd-coordinator chain up --port 0' failed: GENKD_ANVIL names" in done.stderr
    assert gone(folder)


def gone(folder: Path) -> bool:
    """Whether no process works there; one that was just ended may take a moment to vanish."""
    until = time.monotonic() + 5
    while processes_of(folder) and time.monotonic() < until:
        time.sleep(0.1)
    assert processes_of(folder) == []
    return True
