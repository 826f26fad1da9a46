"""Would a run work on this machine? Each check does what it speaks of instead of asking about it.

    for check in preflight(Path("runs"), device="auto"):
        print(check.name, check.outcome, check.detail)

A check that fails carries the error that a run would meet; `genkd-node doctor` ends with the exit
code of the first.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from genkd.durable import TEMPORARY_PREFIX, unwritable
from genkd.errors import ConfigurationError, GenKDError, ResourceExhausted
from node.teacher_options import TeacherOptions

DISTRIBUTION = "genkd-node"
OLDEST_PYTHON = (3, 11)
# What a run writes on the shipped example is 40 MB; its peak of memory is under 2 GiB.
LEAST_DISK_BYTES = 200 * 2**20
GOOD_DISK_BYTES = 2 * 2**30
LEAST_MEMORY_BYTES = 2**30
GOOD_MEMORY_BYTES = 2 * 2**30
# Without these no run works; the other extras are for single features.
NEEDED_EXTRAS = ("base", "distill")
CGROUP = Path("/sys/fs/cgroup")  # version 2
# `torch<2.15,>=2.6; extra == 'distill'`: the package, and its extra if it has one.
REQUIREMENT = re.compile(r"([A-Za-z0-9][\w.-]*)[^;]*(?:;.*extra\s*==\s*['\"]([\w-]+)['\"])?")

Outcome = Literal["ok", "warning", "failed"]


@dataclass(frozen=True)
class Check:
    """One thing that was tried.

    Attributes:
        name: What.
        outcome: `failed` if a run would fail, `warning` if it would be slow or lack something.
        detail: What was found, in one line.
        hint: What to do about it; empty where nothing is to be done.
        exit_code: That of the error a run would end with; 0 unless it failed.
    """

    name: str
    outcome: Outcome
    detail: str
    hint: str = ""
    exit_code: int = 0


@dataclass(frozen=True)
class Found:
    """What a check returns if nothing failed: the detail, and a hint if it is a warning."""

    detail: str
    hint: str = ""


def attempt(name: str, check: Callable[[], Found]) -> Check:
    """Run one check; an error of it is its result."""
    try:
        found = check()
    except GenKDError as error:
        return Check(name, "failed", error.message, error.hint, error.exit_code)
    return Check(name, "warning" if found.hint else "ok", found.detail, found.hint)


def preflight(
    out: Path, device: str, teacher: Path | None, options: TeacherOptions
) -> Iterator[Check]:
    """Check this machine, one thing after the other.

    Args:
        out: The folder of future run directories.
        device: Where runs will compute: auto, cpu, cuda, mps.
        teacher: A file to load and to distil one step from, if any.
        options: What the command line says about that file.
    """
    yield attempt("python", check_python)
    for extra, packages in declared_packages().items():
        yield attempt(f"packages {extra}", partial(check_packages, extra, packages))
    yield attempt("disk", partial(check_disk, out))
    yield attempt("run directory", partial(check_writable, out))
    yield attempt("memory", check_memory)
    try:
        from node import torch_checks
    except ImportError as error:
        failure = ConfigurationError(
            f"PyTorch cannot be imported: {error}", hint=f"pip install '{DISTRIBUTION}[distill]'"
        )
        yield Check("torch", "failed", failure.message, failure.hint, failure.exit_code)
        return
    yield attempt("threads", partial(torch_checks.check_threads, usable_cores()))
    yield attempt("devices", torch_checks.check_devices)
    for precision in ("fp32", "bf16"):
        yield attempt(precision, partial(torch_checks.check_precision, device, precision))
    if teacher is not None:
        yield attempt("teacher", partial(torch_checks.check_teacher, teacher, options, device))


def check_python() -> Found:
    """Python is new enough."""
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < OLDEST_PYTHON:
        raise ConfigurationError(
            f"Python {version} is too old", hint="make a new environment with Python 3.11 or newer"
        )
    return Found(version)


def declared_packages() -> dict[str, list[str]]:
    """The packages of this distribution by extra, as its metadata declares them."""
    packages: dict[str, list[str]] = {"base": []}
    try:
        requirements = importlib.metadata.requires(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        requirements = []  # run from a source tree
    for requirement in requirements:
        match = REQUIREMENT.match(requirement)
        if match:
            packages.setdefault(match[2] or "base", []).append(match[1])
    packages.pop("test", None)
    return packages


def check_packages(extra: str, packages: Sequence[str]) -> Found:
    """The packages of an extra are installed; only the base and distilling need them."""
    versions, missing = [], []
    for package in packages:
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(package)
    if not missing:
        return Found(", ".join(versions))
    wanted = DISTRIBUTION if extra == "base" else f"{DISTRIBUTION}[{extra}]"
    if extra in NEEDED_EXTRAS:
        raise ConfigurationError(f"{', '.join(missing)} missing", hint=f"pip install '{wanted}'")
    return Found(f"not installed: pip install '{wanted}' if you need it")


def check_disk(out: Path) -> Found:
    """The disk of `out` has room for a run."""
    free = shutil.disk_usage(existing_parent(out)).free
    detail = f"{in_gib(free)} free"
    if free < LEAST_DISK_BYTES:
        raise ResourceExhausted(f"only {detail} at {out}", hint="free some space, or use --out")
    return Found(detail, "" if free >= GOOD_DISK_BYTES else "large images may not fit")


def check_writable(out: Path) -> Found:
    """A file can be made where run directories will be, and is gone again."""
    folder = existing_parent(out)
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=TEMPORARY_PREFIX) as file:
            file.write(b"doctor")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise unwritable(folder, error) from error
    return Found(f"{out.absolute()} can be written")


def check_memory() -> Found:
    """The memory that is free, or that a container may still use, is enough for the example."""
    try:
        import psutil
    except ImportError as error:
        raise ConfigurationError(
            "psutil is missing", hint=f"pip install '{DISTRIBUTION}[distill]'"
        ) from error
    free = psutil.virtual_memory().available
    limit = _cgroup_number("memory.max")
    if limit is not None:
        free = min(free, limit - (_cgroup_number("memory.current") or 0))
    detail = f"{in_gib(free)} free"
    if free < LEAST_MEMORY_BYTES:
        raise ResourceExhausted(f"only {detail}", hint="close other programs")
    return Found(detail, "" if free >= GOOD_MEMORY_BYTES else "close other programs before a run")


def usable_cores() -> float:
    """The cores this process may use, as affinity and the container's quota allow."""
    cores: float = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    try:
        quota, period = (CGROUP / "cpu.max").read_text().split()
        return min(cores, int(quota) / int(period))
    except (OSError, ValueError):  # no cgroup v2, or "max": no quota
        return cores


def existing_parent(path: Path) -> Path:
    """`path`, or the nearest folder above it that exists."""
    path = path.absolute()
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def in_gib(size: int) -> str:
    """`3221225472` as `3.0 GiB`."""
    return f"{size / 2**30:.1f} GiB"


def _cgroup_number(name: str) -> int | None:
    try:
        return int((CGROUP / name).read_text())
    except (OSError, ValueError):
        return None
