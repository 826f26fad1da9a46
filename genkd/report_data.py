"""What a run directory holds, read for its report: whatever is there, as far as it can be read.

A report is also made of a run that is still going, was killed, or lost a file. So nothing here
fails for a file that is missing or broken; `RunRecords.problems` tells of the broken ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genkd.array_files import read_arrays, reason
from genkd.canonical import parse_json
from genkd.errors import InputFileRefused
from genkd.json_values import flat
from genkd.report_figures import number

# A run logs about a kilobyte a round; its other records are a few kilobytes.
MAX_EVENTS_BYTES = 256 * 2**20
MAX_RECORD_BYTES = 64 * 2**20
# Samples beyond this would cost the machine more than a preview of them is worth.
MAX_SAMPLES_BYTES = 2**30
# Records are nested three deep; recursion over what is deeper could exhaust the stack.
MAX_NESTING = 20

Record = Mapping[str, Any]  # what JSON gives: any value under any key


@dataclass(frozen=True)
class Samples:
    """Synthetic images that the student learnt from.

    Attributes:
        images: uint8 (N, C, H, W).
        labels: int64 (N,), the class that each was made for.
        confidence: float (N,) in [0, 1], the teacher's probability of that class; None if unknown.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    confidence: NDArray[np.floating[Any]] | None


@dataclass(frozen=True)
class RunRecords:
    """The records of one run; an empty mapping, or None, where there is none.

    Attributes:
        path: The run directory.
        configuration: config.json.
        events: The lines of events.jsonl, in order.
        result: result.json, which is there once the run has finished.
        evaluation: evaluation.json.
        card: student.json.
        receipt: release/receipt.json, which is there once the student is published.
        samples: samples.npz.
        problems: One sentence for each file that is there and cannot be read.
    """

    path: Path
    configuration: Record
    events: tuple[Record, ...]
    result: Record
    evaluation: Record
    card: Record
    receipt: Record
    samples: Samples | None
    problems: tuple[str, ...]

    @property
    def finished(self) -> bool:
        """Whether the run came to its end."""
        return bool(self.result)

    @property
    def class_names(self) -> list[str]:
        """The names of the classes, as far as the card tells them."""
        names = self.card.get("class_names")
        return [str(name) for name in names] if isinstance(names, list) else []

    def rounds(self) -> list[Record]:
        """The events that tell of one round each."""
        return [event for event in self.events if event.get("event") == "round"]


def read_records(path: Path) -> RunRecords:
    """Read all that `path` holds.

    Raises:
        InputFileRefused: If `path` holds no run at all.
    """
    if not (path / "config.json").is_file() and not (path / "events.jsonl").is_file():
        raise InputFileRefused(
            f"{path} is not a run directory",
            hint="give the folder that was --out of genkd-node distill",
        )
    problems: list[str] = []

    def record(name: str) -> Record:
        return _read_record(path / name, name, problems)

    return RunRecords(
        path=path,
        configuration=record("config.json"),
        events=tuple(_read_events(path / "events.jsonl", problems)),
        result=record("result.json"),
        evaluation=record("evaluation.json"),
        card=record("student.json"),
        receipt=record("release/receipt.json"),
        samples=_read_samples(path / "samples.npz", problems),
        problems=tuple(problems),
    )


def _read_record(path: Path, name: str, problems: list[str]) -> Record:
    if not path.is_file():
        return {}
    try:
        if path.stat().st_size > MAX_RECORD_BYTES:
            raise ValueError("it is too large")
        value = parse_json(path.read_bytes(), allow_floats=True)
        if not isinstance(value, dict) or not _is_shallow(value):
            raise ValueError("it does not hold a plain object")
    except (OSError, ValueError) as error:
        problems.append(f"{name} cannot be read: {reason(error)}")
        return {}
    return value


def _read_events(path: Path, problems: list[str]) -> Iterator[Record]:
    """The whole lines of the log; a kill may have cut the last one short."""
    if not path.is_file():
        return
    try:
        with path.open("rb") as lines:
            unread = 0
            for line in lines:
                if lines.tell() > MAX_EVENTS_BYTES:
                    problems.append("events.jsonl is too large: its end was not read")
                    break
                try:
                    event = parse_json(line, allow_floats=True)
                except ValueError:
                    unread += line.endswith(b"\n")
                    continue
                if isinstance(event, dict) and _is_shallow(event):
                    yield event
                else:
                    unread += 1
            if unread:
                problems.append(f"events.jsonl: {unread} lines cannot be read")
    except OSError as error:
        problems.append(f"events.jsonl cannot be read: {reason(error)}")


def _is_shallow(value: object, levels: int = MAX_NESTING) -> bool:
    if not isinstance(value, dict | list):
        return True
    items = value.values() if isinstance(value, dict) else value
    return levels > 0 and all(_is_shallow(item, levels - 1) for item in items)


def _read_samples(path: Path, problems: list[str]) -> Samples | None:
    if not path.is_file():
        return None
    try:
        names = ("images", "labels", "confidence")
        arrays = read_arrays(path, names, MAX_SAMPLES_BYTES)
    except InputFileRefused as error:
        problems.append(f"samples.npz cannot be shown: {error.message}")
        return None
    images, labels = arrays.get("images"), arrays.get("labels")
    if (
        images is None
        or labels is None
        or images.dtype != np.uint8
        or images.ndim != 4
        or labels.dtype.kind not in "iu"
        or labels.shape != images.shape[:1]
        or 0 in images.shape
    ):
        problems.append("samples.npz does not hold labelled images")
        return None
    confidence = arrays.get("confidence")
    if confidence is not None and (
        confidence.shape != labels.shape or confidence.dtype.kind != "f"
    ):
        confidence = None
    return Samples(images, labels.astype(np.int64), confidence)


def phase_seconds(records: RunRecords) -> dict[str, float]:
    """Seconds spent in each phase: as the result tells, else as the rounds so far do."""
    told = records.result.get("phase_seconds")
    if isinstance(told, Mapping):
        return dict(_numbers(told))
    rounds = records.rounds()
    per_round = [
        dict(_numbers(event["phase_seconds"]))
        for event in rounds
        if isinstance(event.get("phase_seconds"), Mapping)
    ]
    if not per_round:
        return {}
    total: dict[str, float] = {}
    for phases in per_round:
        for name, seconds in phases.items():
            total[name] = total.get(name, 0.0) + seconds
    # Logged for each round, or counted up from the start? Whichever agrees with the clock.
    elapsed = number(rounds[-1].get("seconds"))
    if elapsed is not None:
        last = per_round[-1]
        if abs(sum(last.values()) - elapsed) < abs(sum(total.values()) - elapsed):
            return last
    return total


def _numbers(values: Record) -> Iterator[tuple[str, float]]:
    for name, value in flat(values):
        if (finite := number(value)) is not None:
            yield name, finite
