"""The report shows what is on record, of whole, partial and hostile runs, and refers to nothing."""

from __future__ import annotations

import base64
import functools
import hashlib
import io
import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from genkd.errors import InputFileRefused, UsageError
from genkd.report import duration, figure, size, view_of, write_report
from genkd.report_data import phase_seconds, read_records
from genkd.report_evaluation import evaluation_view

CLASSES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)


@functools.cache
def blobs(count: int, classes: int, channels: int = 1, side: int = 32) -> np.ndarray:
    """Smooth pictures, alike within a class: what a young generator makes. uint8 (N, C, H, W)."""
    generator = np.random.default_rng(0)
    rows, columns = np.mgrid[0:side, 0:side] / side
    images = np.zeros((count, channels, side, side))
    for index in range(count):
        of_class = np.random.default_rng(index % classes)
        for channel in range(channels):
            for _ in range(4):
                y, x, size, height = of_class.uniform([0.2, 0.2, 0.05, 0.3], [0.8, 0.8, 0.3, 1.0])
                y, x = y + generator.normal(0, 0.05), x + generator.normal(0, 0.05)
                bump = np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / size**2 / 2)
                images[index, channel] += height * bump
    images += generator.normal(0, 0.03, images.shape)
    return (np.clip(images, 0, 1) * 255).astype(np.uint8)


def events_of(rounds: int) -> list[dict[str, Any]]:
    generator = np.random.default_rng(1)
    events: list[dict[str, Any]] = [
        {"event": "start", "time": "2027-03-01T09:00:00.000+00:00", "round": 0}
    ]
    for n in range(rounds):
        done = n / max(1, rounds - 1)
        seconds = 600 * (n + 1) / rounds
        at = f"2027-03-01T09:{int(seconds // 60):02d}:{int(seconds % 60):02d}.000+00:00"
        noise = generator.normal(0, 1, 12)
        if n == rounds // 3:
            message = "memory ran out: the batch is now 128 images, it was 256"
            events.append({"event": "warning", "time": at, "round": n, "message": message})
        if n == rounds // 4:
            events.append({"event": "student_alone", "time": at, "round": n})
        if n == rounds // 2:
            events.append({"event": "resume", "time": at, "round": n, "checkpoint_round": n - 1})
        events.append(
            {
                "event": "round",
                "time": at,
                "round": n,
                "seconds": seconds,
                "losses": {
                    "student_kd": 3.2 * np.exp(-3 * done) + 0.2 + 0.05 * noise[0],
                    "generator_bn": 12 * np.exp(-5 * done) + 1 + 0.3 * abs(noise[1]),
                    "generator_oh": 1500 * np.exp(-12 * done) * np.exp(0.2 * noise[2]) + 0.02,
                    "generator_adversarial": -0.8 * done + 0.05 * noise[3],
                    "ebm_mle": None if n == 7 else -0.1 - 0.4 * done + 0.08 * noise[4],
                    "policy_gradient": 0.02 * noise[5],
                },
                "health": {
                    "acceptance": min(0.95, 0.3 + 0.5 * done + 0.04 * noise[6]),
                    "class_entropy": 2.303 - 0.05 * abs(noise[7]),
                    "ebm_gap": 0.8 * (1 - np.exp(-4 * done)) + 0.05 * noise[8],
                    "grad_ratio": float(np.exp(0.3 * noise[9] - 1)),
                    "agreement": 0.1 + 0.82 * (1 - np.exp(-4 * done)),
                    "within_class_deviation": 0.05 + 0.08 * done + 0.004 * noise[10],
                },
                "learning_rates": {"student": 0.004 * (1 + np.cos(np.pi * done)) / 2},
                "phase_seconds": {
                    "synthesis": 4.1 * 600 / 10 / rounds,
                    "distillation": 5.2 * 600 / 10 / rounds,
                    "ebm": 0.5 * 600 / 10 / rounds,
                    "checkpoint": 0.2 * 600 / 10 / rounds,
                },
            }
        )
    return events


def make_run(
    path: Path,
    *,
    rounds: int = 90,
    samples: int = 20,
    finished: bool = True,
    evaluated: bool = True,
) -> Path:
    """A run directory as distilling leaves it."""
    path.mkdir(parents=True)

    def write(name: str, value: object) -> None:
        (path / name).write_text(json.dumps(value))

    recipe = {"name": "standard", "langevin_steps": 40, "langevin_step": 0.1, "bank": 12000}
    write(
        "config.json",
        {
            "teacher": "teacher.safetensors",
            "student": "resnet8-half",
            "seed": 7,
            "device": "cpu",
            "precision": "bf16",
            "recipe": recipe,
        },
    )
    lines = [json.dumps(event) for event in events_of(rounds)]
    (path / "events.jsonl").write_text("\n".join(lines) + "\n")
    confidence = np.random.default_rng(2).beta(6, 1, samples).astype(np.float32)
    np.savez(
        path / "samples.npz",
        images=blobs(samples, 10),
        labels=np.arange(samples) % 10,
        confidence=confidence,
    )
    write(
        "student.json",
        {"v": 1, "architecture": "resnet8-half", "num_classes": 10, "class_names": list(CLASSES)},
    )
    if finished:
        write("result.json", result())
    if evaluated:
        write("evaluation.json", evaluation())
    return path


def result() -> dict[str, Any]:
    return {
        "schema_version": 1,
        "seed": 7,
        "recipe": {"name": "standard", "langevin_steps": 40, "bank": 12000, "temperature": 4.0},
        "versions": {"genkd": "0.1.0", "torch": "2.14.1", "python": "3.11.2"},
        "machine": {"system": "Linux", "processor": "x86_64", "cores": 2, "device": "cpu"},
        "seconds": 600.4,
        "phase_seconds": {
            "synthesis": 246.0,
            "distillation": 312.2,
            "ebm": 30.1,
            "checkpoint": 12.1,
        },
        "peak_memory_bytes": 1_431_000_000,
        "samples": 11_520,
        "teacher_passes": 812_000,
        "teacher": {
            "architecture": "resnet8",
            "parameters": 78_042,
            "sha256": "a" * 64,
            "bytes": 313_000,
            "latency_ms": {"1": 1.32, "256": 61.9},
        },
        "student": {
            "architecture": "resnet8-half",
            "parameters": 19_914,
            "sha256": "b" * 64,
            "bytes": 81_000,
            "latency_ms": {"1": 0.92, "256": 30.2},
        },
        "agreement_per_class": [0.91, 0.98, 0.83, 0.9, 0.85, 0.97, 0.71, 0.95, 0.96, 0.94],
        "final": {"agreement": 0.912, "student_kd": 0.31, "acceptance": 0.8},
    }


def evaluation() -> dict[str, Any]:
    generator = np.random.default_rng(3)
    accuracy = np.array([0.8, 0.95, 0.74, 0.86, 0.78, 0.93, 0.55, 0.92, 0.96, 0.95])
    matrix = np.diag((accuracy * 1000).astype(int))
    for row in range(10):
        others = generator.multinomial(1000 - matrix[row, row], generator.dirichlet([0.3] * 9))
        matrix[row, np.arange(10) != row] = others
    bins = [
        {
            "count": int(40 + 3 * n**3),
            "confidence": (n + 0.5) / 15,
            "accuracy": max(0.05, (n + 0.5) / 15 - 0.04),
        }
        for n in range(2, 15)
    ]
    empty = [{"count": 0, "confidence": None, "accuracy": None}] * 2
    cost = {"parameters": 19_914, "bytes": 81_000, "latency_ms": {"1": 0.92, "256": 30.2}}
    return {
        "schema_version": 1,
        "images": 10_000,
        "top1": 0.8444,
        "top5": 0.9961,
        "nll": 0.4512,
        "ece": 0.0391,
        "calibration": empty + bins,
        "accuracy_per_class": accuracy.tolist(),
        "confusion": matrix.tolist(),
        "agreement": 0.8671,
        "agreement_per_class": (accuracy + 0.02).tolist(),
        "teacher_top1": 0.9141,
        "student": cost,
        "teacher": None,
        "peak_memory_bytes": 700_000_000,
        "device": "cpu",
        "threads": 2,
        "torch": "2.14.1",
        "notes": ["images were zero-padded from 28x28 to 32x32"],
    }


HARMLESS = {
    *("html", "head", "meta", "title", "style", "body", "main", "header", "section", "footer"),
    *("h1", "h2", "h3", "p", "b", "small", "span", "div", "ul", "li", "figure", "figcaption"),
    *("table", "thead", "tbody", "tr", "th", "td", "img"),
    *("svg", "line", "rect", "path", "circle", "text"),
}


class Page(HTMLParser):
    """What a browser would make of a page, as far as the tests ask."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.style = ""
        self.words: list[str] = []
        self._in_style = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        self._in_style = tag == "style"

    def handle_endtag(self, tag: str) -> None:
        self._in_style = False

    def handle_data(self, data: str) -> None:
        if self._in_style:
            self.style += data
        else:
            self.words += data.split()

    @property
    def text(self) -> str:
        return " ".join(self.words)

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]


def page_of(run: Path) -> Page:
    return Page(write_report(run).read_text(encoding="utf-8"))


def require_harmless(page: Page) -> None:
    """Nothing that could run, load or refer to anything outside the page."""
    for tag, attributes in page.tags:
        assert tag in HARMLESS, tag
        for name, value in attributes.items():
            assert not name.startswith("on"), name
            assert name not in ("href", "xlink:href", "srcset", "style", "action"), name
            assert name != "src" or value.startswith("data:image/png;base64,"), value[:80]
            assert name != "http-equiv" or value == "Content-Security-Policy"
    assert not re.search(r"url\(|@import|expression", page.style)


# --- What is on the page --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "first", rounds=40, samples=400)


@pytest.fixture(scope="module")
def page(whole: Path) -> Page:
    return page_of(whole)


def test_curves_are_marked_where_the_student_went_on_alone_and_the_run_was_resumed(
    whole: Path,
) -> None:
    groups = view_of(read_records(whole))["groups"]
    assert isinstance(groups, list)
    for _, charts in groups:
        assert [len(chart.marks) for chart in charts] == [2] * len(charts)


def test_every_loss_and_health_figure_has_its_curve(page: Page) -> None:
    round_event = next(event for event in events_of(3) if event["event"] == "round")
    drawn = {svg["aria-label"].split(":")[0] for svg in page.all("svg") if "aria-label" in svg}
    for group in ("losses", "health", "learning_rates"):
        assert round_event[group].keys() <= drawn


@pytest.mark.parametrize(
    "shown",
    [
        "first Distillation report · finished · 2027-03-01 09:00 UTC to 2027-03-01 09:10 UTC",
        "· seed 7",
        "84.4 % right on 10,000 images the teacher: 91.4 %",
        "86.7 % agreement with the teacher",
        "19,914 parameters 3.9 times fewer than the teacher",
        "10 min 00 s in 40 rounds 11,520 synthetic images",
        "1.43 GB peak memory",
        "expected calibration error 0.0391",
        "images were zero-padded from 28x28 to 32x32",
        "400 of the images, of 32x32 pixels",
        "Shirt taken for",
        "Shirt 71.0 % 57.0 % 55.0 %",
        "latency, batch of 256 61.9 ms 30.2 ms 2.0",
        "parameters 78,042 19,914 3.9",
        "bytes 313 kB 81 kB 3.9",
        "synthesis 4 min 06 s 41.0 %",
        "memory ran out: the batch is now 128 images, it was 256",
        "resumed at round 20",
        "where the images were made and the student went on alone",
        "torch 2.14.1",
        "langevin_steps 40",
        "cores 2",
        "not a finite number in 1 round",
        "logarithmic scale",
    ],
)
def test_the_page_tells(page: Page, shown: str) -> None:
    assert shown in page.text


def test_the_page_refers_to_nothing_and_runs_nothing(page: Page) -> None:
    require_harmless(page)


def test_the_policy_allows_the_style_sheet_by_its_hash_and_nothing_else(page: Page) -> None:
    (policy,) = [m["content"] for m in page.all("meta") if "http-equiv" in m]
    digest = base64.b64encode(hashlib.sha256(page.style.encode()).digest()).decode()
    assert policy.split("; ") == [
        "default-src 'none'",
        "img-src data:",
        f"style-src 'sha256-{digest}'",
        "base-uri 'none'",
        "form-action 'none'",
    ]


def test_each_class_shows_its_own_samples_and_how_sure_the_teacher_is(
    whole: Path, page: Page
) -> None:
    pictures = page.all("img")
    assert len(pictures) == 120
    with np.load(whole / "samples.npz") as samples:
        of_first_class = samples["images"][samples["labels"] == 0][:, 0]
        confidence = samples["confidence"][samples["labels"] == 0]
    for picture in pictures[:12]:
        data = base64.b64decode(picture["src"].partition(",")[2])
        shown = np.array(Image.open(io.BytesIO(data)))
        assert any(np.array_equal(shown, image) for image in of_first_class)
    assert f"T-shirt/top 40 images, {100 * confidence.mean():.1f} % sure" in page.text


def test_the_report_is_made_anew_with_the_same_bytes(whole: Path) -> None:
    first = write_report(whole).read_bytes()
    assert write_report(whole).read_bytes() == first


# --- Runs that lack something ---------------------------------------------------------------------


def test_a_run_that_goes_on_is_shown_and_said_to(tmp_path: Path) -> None:
    page = page_of(make_run(tmp_path / "run", rounds=7, finished=False, evaluated=False))
    assert "This run has not finished." in page.text
    assert "on record after 7 rounds" in page.text
    assert "in 7 rounds so far" in page.text
    assert "agreement with the teacher on synthetic images" in page.text
    assert "Evaluation" not in page.text


def test_without_an_evaluation_the_agreement_on_synthetic_images_is_shown(tmp_path: Path) -> None:
    page = page_of(make_run(tmp_path / "run", rounds=7, evaluated=False))
    assert "90.0 % agreement with the teacher on synthetic images" in page.text


def test_a_run_without_a_single_round_is_shown(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"seed": 3}')
    page = page_of(tmp_path)
    assert "on record after 0 rounds" in page.text
    assert "seed 3" in page.text
    require_harmless(page)


def test_a_line_cut_short_by_a_kill_is_passed_over_in_silence(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", rounds=5)
    with (run / "events.jsonl").open("a") as events:
        events.write('{"event": "round", "losses": {"kd": 0.')
    page = page_of(run)
    assert "in 5 rounds" in page.text
    assert "could not be read" not in page.text


@pytest.mark.parametrize("name", ["config.json", "result.json", "evaluation.json", "student.json"])
@pytest.mark.parametrize(
    "content", [b"", b"{", b"[1]", b"\xff\xfe", b'{"a":' * 30 + b"1" + b"}" * 30, b"[" * 100_000]
)
def test_a_broken_record_is_named_and_the_rest_is_shown(
    tmp_path: Path, name: str, content: bytes
) -> None:
    run = make_run(tmp_path / "run", rounds=3)
    (run / name).write_bytes(content)
    page = page_of(run)
    assert f"{name} cannot be read" in page.text
    assert "student kd" in page.text


def test_broken_lines_of_the_log_are_counted(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", rounds=3)
    with (run / "events.jsonl").open("a") as events:
        events.write("nonsense\n[1]\n")
    assert "events.jsonl: 2 lines cannot be read" in page_of(run).text


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (None, "cannot be shown"),
        ({"labels": np.zeros(2, int)}, "does not hold labelled images"),
        ({"images": np.zeros((2, 1, 4, 4)), "labels": np.zeros(2, int)}, "does not hold"),
        ({"images": np.zeros((2, 4, 4), np.uint8), "labels": np.zeros(2, int)}, "does not hold"),
        ({"images": np.zeros((2, 1, 4, 4), np.uint8), "labels": np.zeros(3, int)}, "does not hold"),
        ({"images": np.zeros((0, 1, 4, 4), np.uint8), "labels": np.zeros(0, int)}, "does not hold"),
    ],
    ids=["not an npz", "no images", "floats", "flat", "other lengths", "empty"],
)
def test_broken_samples_are_told_and_the_rest_is_shown(
    tmp_path: Path, arrays: dict[str, np.ndarray] | None, message: str
) -> None:
    run = make_run(tmp_path / "run", rounds=3)
    (run / "samples.npz").write_bytes(b"PK")
    if arrays is not None:
        np.savez(run / "samples.npz", **arrays)
    page = page_of(run)
    assert re.search(f"samples.npz.*{message}", page.text)
    assert page.all("img") == []


def test_samples_without_confidence_are_shown(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", rounds=3)
    np.savez(run / "samples.npz", images=blobs(4, 2), labels=np.array([0, 0, 1, 99]))
    page = page_of(run)
    assert "class 99 1 images" in page.text
    assert "how sure the teacher" not in page.text


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_samples_of_any_number_of_channels_are_shown(tmp_path: Path, channels: int) -> None:
    run = make_run(tmp_path / "run", rounds=3)
    np.savez(run / "samples.npz", images=blobs(4, 2, channels), labels=np.array([0, 0, 1, 1]))
    assert len(page_of(run).all("img")) == 4


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputFileRefused, match="not a run directory"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("module", "name"), [("jinja2", "Jinja2"), ("PIL", "Pillow")])
def test_a_missing_package_is_named(
    whole: Path, monkeypatch: pytest.MonkeyPatch, module: str, name: str
) -> None:
    for loaded in [m for m in sys.modules if m.partition(".")[0] == module]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.delitem(sys.modules, "genkd.report_samples", raising=False)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UsageError, match=f"needs {name}"):
        write_report(whole)


# --- Runs that mean harm, and runs that are long --------------------------------------------------

ATTACKS = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'><svg onload=alert(1)>",
    "</style><script>alert(1)</script>",
    "{{ 7 * 7 }}{% raw %}",
    "--><iframe src=//example.com>",
)


@pytest.mark.parametrize("attack", ATTACKS)
def test_hostile_names_are_shown_and_not_run(tmp_path: Path, attack: str) -> None:
    run = make_run(tmp_path / attack.replace("/", "|"), rounds=2)
    (run / "student.json").write_text(json.dumps({"class_names": [attack] * 10}))
    hostile: dict[str, Any] = {
        **result(),
        "versions": {attack: attack},
        "machine": {"system": attack},
        "phase_seconds": {attack: 3.0},
        "final": {f"{attack} agreement": 0.5},
        "teacher": {"architecture": attack, attack: attack, "parameters": 10},
    }
    (run / "result.json").write_text(json.dumps(hostile))
    (run / "evaluation.json").write_text(
        json.dumps({**evaluation(), "notes": [attack], "device": attack})
    )
    event = {"event": "round", "time": attack, "round": 2, attack: {attack: 1.0}, "seconds": 4}
    warning = {"event": "warning", "time": attack, "message": attack}
    with (run / "events.jsonl").open("a") as events:
        events.writelines(json.dumps(line) + "\n" for line in (event, warning))
    (run / "release").mkdir()
    (run / "release" / "receipt.json").write_text(json.dumps({attack: attack}))
    page = page_of(run)
    require_harmless(page)
    assert page.text.count(" ".join(attack.split())) > 10


def test_records_of_wrong_types_do_not_break_the_page(tmp_path: Path) -> None:
    wrong: list[Any] = [
        None,
        True,
        0,
        -1,
        1e308,
        math.nan,
        "text",
        [],
        {},
        [[1]],
        {"a": {"b": [1]}},
    ]
    keys = result().keys() | evaluation().keys() | {"class_names", "event", "losses", "round"}
    for number, value in enumerate(wrong):
        run = tmp_path / str(number)
        make_run(run, rounds=2)
        everything = json.dumps(dict.fromkeys(keys, value))
        for name in ("result.json", "evaluation.json", "student.json", "config.json"):
            (run / name).write_text(everything)
        with (run / "events.jsonl").open("a") as events:
            events.write(everything + "\n")
            events.write(json.dumps({**dict.fromkeys(keys, value), "event": "round"}) + "\n")
            events.write(json.dumps({**dict.fromkeys(keys, value), "event": "resume"}) + "\n")
        require_harmless(page_of(run))


def test_thousands_of_rounds_and_a_hundred_classes_stay_under_three_megabytes(
    tmp_path: Path,
) -> None:
    run = make_run(tmp_path / "run", rounds=3)
    generator = np.random.default_rng(0)
    with (run / "events.jsonl").open("a") as events:
        for n in range(5000):
            figures = {f"figure_{k}": v for k, v in enumerate(generator.normal(size=12))}
            event = {"event": "round", "round": n + 3, "losses": figures, "health": figures}
            events.write(json.dumps(event) + "\n")
    noise = generator.integers(0, 256, (1200, 3, 80, 80), dtype=np.uint8)
    np.savez(run / "samples.npz", images=noise, labels=np.arange(1200) % 100)
    names = [f"a class with quite a long name, number {n}" for n in range(100)]
    (run / "student.json").write_text(json.dumps({"class_names": names}))
    (run / "result.json").write_text(
        json.dumps({**result(), "agreement_per_class": [n / 100 for n in range(100)]})
    )
    page = page_of(run)
    assert (run / "report.html").stat().st_size < 3_000_000
    assert re.search(r"Shown are \d+ of 100 classes", page.text)
    assert "The 60 of 100 classes with the lowest figures" in page.text
    assert names[0] in page.text


def test_a_log_with_numbers_of_any_name_stays_small(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", rounds=3)
    flood = {f"group_{g}": {f"{k}" * 50: 1.0 for k in range(300)} for g in range(60)}
    with (run / "events.jsonl").open("a") as events:
        events.write(json.dumps({"event": "round", "round": 3, **flood}) + "\n")
    page_of(run)
    assert (run / "report.html").stat().st_size < 3_000_000


# --- Parts ----------------------------------------------------------------------------------------


def test_writing_a_report_loads_no_torch(whole: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from genkd.report import write_report; "
        "write_report(Path(sys.argv[1])); "
        "print([m for m in ('torch', 'matplotlib', 'genkd.images') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(whole)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("rounds", "expected"),
    [
        ([{"a": 1.0, "b": 2.0}, {"a": 2.0, "b": 1.0}], {"a": 3.0, "b": 3.0}),
        ([{"a": 1.0, "b": 2.0}, {"a": 3.0, "b": 3.0}], {"a": 3.0, "b": 3.0}),
    ],
    ids=["each round's own", "counted up"],
)
def test_times_of_a_run_that_goes_on_agree_with_its_clock(
    tmp_path: Path, rounds: list[dict[str, float]], expected: dict[str, float]
) -> None:
    lines = [
        json.dumps(
            {"event": "round", "round": n, "seconds": 3.0 * (n + 1), "phase_seconds": phases}
        )
        for n, phases in enumerate(rounds)
    ]
    (tmp_path / "events.jsonl").write_text("\n".join(lines))
    assert phase_seconds(read_records(tmp_path)) == expected


def test_the_commonest_mistakes_come_first() -> None:
    view = evaluation_view({"images": 20, "confusion": [[5, 4, 0], [1, 6, 0], [0, 3, 1]]})
    assert view is not None
    assert view.mistakes == ((0, 1, 4), (2, 1, 3), (1, 0, 1))
    assert {(c.row, c.column): c.part for c in view.cells}[2, 1] == 0.75


def test_a_matrix_of_many_classes_is_listed_and_not_drawn() -> None:
    matrix = np.eye(40, dtype=int)
    matrix[3, 4] = 9
    view = evaluation_view({"images": 49, "confusion": matrix.tolist()})
    assert view is not None
    assert view.cells == ()
    assert view.mistakes == ((3, 4, 9),)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.912345, "0.9123"),
        (12_345.6, "12,346"),
        (1e-7, "1e-07"),
        (9999, "9999"),
        (11_520, "11,520"),
        (2.0, "2"),
        (True, "yes"),
        (None, "\N{EN DASH}"),
        ([1, 0.5], "1, 0.5"),
        (math.nan, "nan"),
        ("text", "text"),
    ],
)
def test_values_are_shown_as_people_read_them(value: object, shown: str) -> None:
    assert figure(value) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(4.21, "4.2 s"), (59.94, "59.9 s"), (598.2, "9 min 58 s"), (3599.6, "1 h 00 min")],
)
def test_durations_are_shown_as_people_read_them(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


@pytest.mark.parametrize(
    ("count", "shown"),
    [(512, "512 B"), (81_234, "81.2 kB"), (999_900, "1 MB"), (1.431e9, "1.43 GB"), ("x", "x")],
)
def test_sizes_are_shown_in_powers_of_a_thousand(count: object, shown: str) -> None:
    assert size(count) == shown
