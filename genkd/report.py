"""The report of a run: one HTML file that refers to nothing outside itself and runs no script.

    write_report(Path("runs/first"))    # runs/first/report.html

It is made from the records in the run directory alone, so it can be made anew at any time: of a run
that is still going, of one that was killed, and again once there is an evaluation.

All text is escaped, and a Content-Security-Policy allows nothing but the page's own style sheet, by
its hash, and pictures inside the page: a class that calls itself `<script>` is shown and not run.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genkd.durable import atomic_write
from genkd.errors import UsageError
from genkd.json_values import flat
from genkd.report_charts import charts_of
from genkd.report_data import Record, RunRecords, phase_seconds, read_records
from genkd.report_evaluation import evaluation_view
from genkd.report_figures import duration, figure, number, percent, size

if TYPE_CHECKING:
    import jinja2

REPORT_FILE = "report.html"
TEMPLATE = Path(__file__).with_name("report.html")
# Of more classes than this, those on which student and teacher agree least are listed.
MAX_CLASSES_LISTED = 60
MAX_MESSAGES = 50
MAX_ROWS = 150
MAX_TEXT = 300
MAX_KEY = 100
# Events after which curves may jump.
BREAKS = ("resume", "student_alone")
PEAK_MEMORY = "peak_memory_bytes"
GROUP_TITLES = {
    "losses": "Losses",
    "health": "Health of the run",
    "learning_rates": "Learning rates",
    "other": "Other figures",
}


def write_report(run_directory: Path) -> Path:
    """Write report.html into a run directory.

    Args:
        run_directory: Of a run that has finished, is going on, or was stopped.

    Returns:
        The path of the report.

    Raises:
        InputFileRefused: If the folder holds no run.
        UsageError: If Jinja2 or Pillow is not installed.
        ResourceExhausted: If the report cannot be written.
    """
    path = Path(run_directory) / REPORT_FILE
    atomic_write(path, report_html(read_records(Path(run_directory))).encode())
    return path


def report_html(records: RunRecords) -> str:
    """The page, as text.

    Raises:
        UsageError: If Jinja2 or Pillow is not installed.
    """
    template = _environment().from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(view_of(records))


def view_of(records: RunRecords) -> dict[str, object]:
    """What the template shows, each part as plain values."""
    rounds = records.rounds()
    breaks = [e.get("round") for e in records.events if e.get("event") in BREAKS]
    charts = charts_of(rounds, [at for at in breaks if isinstance(at, int)])
    names = records.class_names
    return {
        "title": records.path.resolve().name,
        "finished": records.finished,
        "rounds": len(rounds),
        "times": _times(records.events),
        "seed": records.result.get("seed", records.configuration.get("seed")),
        "tiles": _tiles(records),
        "problems": records.problems,
        "evaluation": evaluation_view(records.evaluation),
        "samples": _samples_view(records),
        "classes": _class_rows(records),
        "groups": [(GROUP_TITLES.get(group, group), charts[group]) for group in charts],
        "costs": _cost_rows(records),
        "phases": _phase_rows(records),
        "peak_memory": size(peak) if (peak := number(records.result.get(PEAK_MEMORY))) else "",
        "warnings": _warnings(records.events),
        "tables": _tables(records),
        "class_name": partial(class_name, names),
    }


def class_name(names: Sequence[str], label: int) -> str:
    """What a class is called: by its name if the card tells one, else by its number."""
    return names[label] if 0 <= label < len(names) else f"class {label}"


# --- The parts of the page ------------------------------------------------------------------------


def _times(events: Sequence[Record]) -> tuple[str, str]:
    """When the run began, and when it was last heard of."""
    times = [event["time"] for event in events if isinstance(event.get("time"), str)]
    return (_shown_time(times[0]), _shown_time(times[-1])) if times else ("", "")


def _shown_time(text: str) -> str:
    try:
        return datetime.fromisoformat(text).strftime("%Y-%m-%d %H:%M %Z").strip()
    except ValueError:
        return text[:40]


def _tiles(records: RunRecords) -> list[tuple[str, str, str]]:
    """The figures that people look for first: value, what it is, and a note."""
    result, evaluation = records.result, records.evaluation
    tiles = []
    if (top1 := number(evaluation.get("top1"))) is not None:
        teacher = number(evaluation.get("teacher_top1"))
        note = f"the teacher: {percent(teacher)}" if teacher is not None else ""
        tiles.append((percent(top1), f"right on {figure(evaluation.get('images'))} images", note))
    rounds = records.rounds()
    last_round = rounds[-1] if rounds else {}
    if (agreement := number(evaluation.get("agreement"))) is not None:
        where = "on the evaluation images"
    else:
        agreement, where = _synthetic_agreement(result, last_round), "on synthetic images"
    if agreement is not None:
        tiles.append((percent(agreement), "agreement with the teacher", where))
    student, teacher_facts = _mapping(result, "student"), _mapping(result, "teacher")
    if (parameters := number(student.get("parameters"))) is not None:
        whole = number(teacher_facts.get("parameters"))
        smaller = whole is not None and whole > parameters > 0
        note = f"{_ratio(whole, parameters)} times fewer than the teacher" if smaller else ""
        tiles.append((figure(parameters), "parameters", note))
    seconds = number(result.get("seconds", last_round.get("seconds")))
    if seconds is not None:
        samples = number(result.get("samples"))
        note = f"{figure(samples)} synthetic images" if samples is not None else "so far"
        tiles.append((duration(seconds), f"in {len(rounds):,} rounds", note))
    if (peak := number(result.get(PEAK_MEMORY))) is not None:
        tiles.append((size(peak), "peak memory", ""))
    return tiles


def _synthetic_agreement(result: Record, last_round: Record) -> float | None:
    """On the images that were kept, over all classes; before the end, as the last round tells."""
    per_class = result.get("agreement_per_class")
    if isinstance(per_class, list):
        known = [part for value in per_class if (part := number(value)) is not None]
        return sum(known) / len(known) if known else None
    return number(_mapping(last_round, "health").get("agreement"))


def _samples_view(records: RunRecords) -> dict[str, object] | None:
    if records.samples is None:
        return None
    try:
        from genkd.report_samples import sample_rows
    except ImportError as error:
        raise UsageError(
            "writing a report needs Pillow", hint="pip install 'genkd-node[distill]'"
        ) from error
    rows, classes = sample_rows(records.samples)
    _, channels, height, width = records.samples.images.shape
    return {
        "rows": rows,
        "classes": classes,
        "count": len(records.samples.labels),
        "size": f"{height}x{width}",
        "channels": channels,
        "no_confidence": records.samples.confidence is None,
    }


def _class_rows(records: RunRecords) -> dict[str, object] | None:
    """Agreement on synthetic images, and what the evaluation says, class by class."""
    columns = {
        "agreement, synthetic images": records.result.get("agreement_per_class"),
        "agreement, test images": records.evaluation.get("agreement_per_class"),
        "accuracy, test images": records.evaluation.get("accuracy_per_class"),
    }
    present = {title: values for title, values in columns.items() if isinstance(values, list)}
    if not present:
        return None
    count = max(len(values) for values in present.values())
    rows = [
        (label, [number(v[label]) if label < len(v) else None for v in present.values()])
        for label in range(count)
    ]
    if count > MAX_CLASSES_LISTED:
        lowest = sorted(rows, key=lambda row: min([v for v in row[1] if v is not None] or [2.0]))
        rows = lowest[:MAX_CLASSES_LISTED]
    return {"columns": list(present), "rows": rows, "count": count}


def _cost_rows(records: RunRecords) -> list[tuple[str, str, str, str]]:
    """What teacher and student are and cost: what, teacher, student, how many times less."""
    teacher = {**_mapping(records.evaluation, "teacher"), **_mapping(records.result, "teacher")}
    student = {**_mapping(records.evaluation, "student"), **_mapping(records.result, "student")}
    of_teacher, of_student = dict(flat(teacher)), dict(flat(student))
    kinds = {"parameters": figure, "bytes": size}
    rows = []
    for name in dict.fromkeys([*of_teacher, *of_student]):
        both = of_teacher.get(name), of_student.get(name)
        shown = kinds.get(name, figure)
        title = name.replace("latency_ms.", "latency, batch of ").replace("_", " ")
        if name.startswith("latency_ms"):
            title, shown = title.replace("latency ms", "latency"), _milliseconds
        ratio = _ratio(*both) if name in kinds or name.startswith("latency_ms") else ""
        if name and both != (None, None):
            rows.append((title, shown(both[0]), shown(both[1]), ratio))
    return rows[:MAX_ROWS]


def _milliseconds(value: object) -> str:
    return figure(value) if number(value) is None else f"{figure(value)} ms"


def _ratio(teacher: object, student: object) -> str:
    whole, part = number(teacher), number(student)
    return f"{whole / part:.1f}" if whole and part else ""


def _phase_rows(records: RunRecords) -> list[tuple[str, str, float, str]]:
    """Name, time, part of the whole in [0, 1], and memory of each phase."""
    seconds = phase_seconds(records)
    memory = dict(flat(_mapping(records.result, "phase_memory_bytes")))
    whole = sum(seconds.values()) or 1.0
    return [
        (name, duration(spent), spent / whole, size(memory[name]) if name in memory else "")
        for name, spent in [*seconds.items()][:MAX_ROWS]
    ]


def _warnings(events: Sequence[Record]) -> list[tuple[str, str]]:
    """When something was told besides the rounds, and what; the last ones of very many."""
    told = [
        (_shown_time(str(event.get("time", ""))), _message(event))
        for event in events
        if event.get("event") in ("warning", "resume")
    ]
    return told[-MAX_MESSAGES:]


def _message(event: Record) -> str:
    if isinstance(event.get("message"), str):
        return _cut(event["message"])
    if event.get("event") == "resume" and number(event.get("round")) is not None:
        return f"resumed at round {figure(event['round'])}"
    facts = [f"{k} {figure(v)}" for k, v in flat(event) if k not in ("event", "time") and k]
    return _cut(", ".join([str(event.get("event")), *facts]))


def _tables(records: RunRecords) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Everything else that is on record, as names and values."""
    result = records.result
    tables: list[tuple[str, object]] = [
        ("Final figures", result.get("final")),
        ("Recipe", result.get("recipe") or records.configuration.get("recipe")),
        ("Settings", {k: v for k, v in records.configuration.items() if k != "recipe"}),
        ("Versions", result.get("versions")),
        ("Machine", result.get("machine")),
        ("Published", records.receipt),
    ]
    for title, values in tables:
        rows = [(n[:MAX_KEY], _cut(figure(v))) for n, v in flat(values) if n] if values else []
        if rows:
            yield title, rows[:MAX_ROWS]


def _mapping(record: Record, key: str) -> Mapping[str, Any]:
    value = record.get(key)
    return value if isinstance(value, Mapping) else {}


def _cut(text: str) -> str:
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…"


def _environment() -> jinja2.Environment:
    try:
        import jinja2
    except ImportError as error:
        raise UsageError(
            "writing a report needs Jinja2", hint="pip install 'genkd-node[distill]'"
        ) from error
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"figure": figure, "percent": percent, "csp_hash": _csp_hash}
    return environment


def _csp_hash(style: str) -> str:
    """How a Content-Security-Policy names an inline style sheet: by the hash of its bytes."""
    digest = hashlib.sha256(style.encode()).digest()
    return "sha256-" + base64.b64encode(digest).decode("ascii")
