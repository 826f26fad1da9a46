"""The preflight tries out what a run needs, and fails with the error that a run would meet."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from genkd.card import InputCard
from genkd.errors import ConfigurationError, ResourceExhausted
from node import doctor, torch_checks
from node.doctor import Check, preflight
from node.teacher_options import TeacherOptions


def checks_of(out: Path, teacher: Path | None = None, **options: object) -> dict[str, Check]:
    found = preflight(out, "cpu", teacher, TeacherOptions(**options))  # type: ignore[arg-type]
    return {check.name: check for check in found}


def test_on_a_machine_that_works_nothing_fails(tmp_path: Path, tiny_teacher: Path) -> None:
    checks = checks_of(tmp_path / "not" / "there" / "yet", tiny_teacher)
    assert {check.name for check in checks.values() if check.outcome == "failed"} == set()
    assert {"python", "disk", "memory", "run directory", "threads", "devices"} < checks.keys()
    assert {"packages base", "packages distill", "fp32", "bf16"} < checks.keys()
    assert "torch 2." in checks["packages distill"].detail
    assert "3 classes, images 1x16x16" in checks["teacher"].detail
    assert not (tmp_path / "not").exists()


def test_a_broken_teacher_fails_with_the_exit_code_of_a_run(tmp_path: Path) -> None:
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"\x80\x04 pickle")
    check = checks_of(tmp_path, broken)["teacher"]
    assert (check.outcome, check.exit_code) == ("failed", 4)
    assert check.hint


def test_what_the_command_line_says_of_the_teacher_counts(
    tmp_path: Path, tiny_teacher: Path
) -> None:
    card = InputCard(24, 20, 1, (0.5,), (0.5,))
    assert "images 1x24x20" in checks_of(tmp_path, tiny_teacher, input_card=card)["teacher"].detail


def test_an_old_python_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 10, 4))
    check = doctor.attempt("python", doctor.check_python)
    assert (check.outcome, check.exit_code, check.detail) == (
        "failed",
        3,
        "Python 3.10.4 is too old",
    )


def test_packages_missing_for_distilling_fail_and_others_do_not() -> None:
    with pytest.raises(ConfigurationError) as caught:
        doctor.check_packages("distill", ["torch", "no-such-package"])
    assert caught.value.message == "no-such-package missing"
    assert "genkd-node[distill]" in caught.value.hint
    assert "not installed" in doctor.check_packages("onnx", ["no-such-package"]).detail


def test_the_packages_of_each_extra_are_read_from_the_installed_metadata() -> None:
    packages = doctor.declared_packages()
    assert "torch" in packages["distill"]
    assert "typer" in packages["base"]
    assert "torch" not in packages["base"]


@pytest.mark.parametrize(
    ("free", "outcome"),
    [(10, "failed"), (300 * 2**20, "warning"), (2**40, "ok")],
    ids=["full", "tight", "empty"],
)
def test_free_disk_is_judged(
    free: int, outcome: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    check = doctor.attempt("disk", lambda: doctor.check_disk(tmp_path))
    assert check.outcome == outcome
    assert check.exit_code == (8 if outcome == "failed" else 0)


@pytest.mark.parametrize(
    ("limit", "used", "outcome"),
    [(2**29, 0, "failed"), (2**40, 2**40, "failed"), (3 * 2**29, 0, "warning")],
    ids=["small container", "used up container", "tight container"],
)
def test_the_memory_of_a_container_is_what_it_may_use(
    limit: int, used: int, outcome: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import psutil

    monkeypatch.setattr(doctor, "CGROUP", tmp_path)
    (tmp_path / "memory.max").write_text(f"{limit}\n")
    (tmp_path / "memory.current").write_text(f"{used}\n")
    plenty = SimpleNamespace(available=2**40)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: plenty)
    assert doctor.attempt("memory", doctor.check_memory).outcome == outcome
    (tmp_path / "memory.max").write_text("max\n")
    assert doctor.attempt("memory", doctor.check_memory).outcome == "ok"


def test_the_cores_of_a_container_are_its_quota(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "CGROUP", tmp_path)
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    assert doctor.usable_cores() == 0.5
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert doctor.usable_cores() >= 1


def test_a_folder_that_cannot_be_written_fails() -> None:
    with pytest.raises(ResourceExhausted):
        doctor.check_writable(Path("/proc/runs"))


def test_a_run_directory_below_a_file_fails(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceExhausted):
        doctor.check_writable(tmp_path / "file" / "run")


@pytest.mark.parametrize(
    ("threads", "cores", "hint"),
    [(8, 2.0, "OMP_NUM_THREADS=2"), (1, 4.0, "OMP_NUM_THREADS=4"), (2, 2.0, ""), (1, 0.5, "=1")],
    ids=["too many", "idle cores", "as many", "half a core"],
)
def test_threads_are_compared_with_cores(
    threads: int, cores: float, hint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert torch_checks.check_threads(cores).hint.endswith(hint)


def test_a_device_that_is_not_there_fails() -> None:
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    absent = next(name for name, available in there.items() if not available)
    with pytest.raises(ConfigurationError, match=f"no {absent}"):
        torch_checks.check_precision(absent, "fp32")


def test_a_processor_that_computes_nonsense_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def nonsense(layer: nn.Conv2d, images: torch.Tensor) -> torch.Tensor:
        return images.mean() * layer.weight.sum() * float("inf")

    monkeypatch.setattr(nn.Conv2d, "forward", nonsense)
    with pytest.raises(ConfigurationError, match="not finite"):
        torch_checks.check_precision("cpu", "fp32")


def test_a_precision_that_is_not_supported_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(layer: nn.Conv2d, images: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no kernel\nmore")

    monkeypatch.setattr(nn.Conv2d, "forward", refuse)
    with pytest.raises(
        ConfigurationError, match=r"bf16 does not work on cpu: no kernel$"
    ) as caught:
        torch_checks.check_precision("cpu", "bf16")
    assert "--precision fp32" in caught.value.hint
