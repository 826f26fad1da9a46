"""From file to file by every method: what is recorded, what resumes, what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from genkd import cost
from genkd.distillation import DistillReport, Progress, distill
from genkd.errors import ConfigurationError, UsageError
from genkd.methods import BASELINES
from genkd.safetensors_header import read_header
from genkd.weights import load_tensors

TINY = {
    "batch": "24",
    "bank_images": "64",
    "generator_steps": "2",
    "student_steps": "2",
    "student_batch": "16",
}
GENERATOR = {"generator_channels": "4", "latent_dim": "8"}


@pytest.fixture(scope="module", autouse=True)
def _quick_to_measure() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cost, "LATENCY_CALLS", (1, 1))
        yield


def run(teacher: Path, out: Path, method: str, **more: object) -> DistillReport:
    keys = TINY if method in ("noise", "deepinversion") else {**TINY, **GENERATOR}
    return distill(
        teacher=teacher,
        out=out,
        student="lenet5-bn-quarter",
        budget="260 passes",
        device="cpu",
        precision="fp32",
        method=method,
        overrides={**keys, **more.pop("overrides", {})},  # type: ignore[dict-item]
        **more,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("method", list(BASELINES))
def test_a_run_writes_its_method_into_everything_it_leaves(
    tiny_teacher: Path, tmp_path: Path, method: str
) -> None:
    report = run(tiny_teacher, tmp_path / "run", method)
    assert report.rounds >= 2
    for name in ("config.json", "result.json"):
        written = json.loads((tmp_path / "run" / name).read_text())
        assert written["recipe"]["method"] == method, name
    page = (tmp_path / "run" / "report.html").read_text()
    assert method in page
    lines = (tmp_path / "run" / "events.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    assert "objective" in next(e for e in events if e["event"] == "round")["losses"]


@pytest.mark.parametrize("method", ["fastdfkd", "nayer", "dafl"])
def test_a_stopped_run_resumes_to_the_same_student(
    tiny_teacher: Path, tmp_path: Path, method: str
) -> None:
    def stop(progress: Progress) -> None:
        if progress.round == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tiny_teacher, tmp_path / "stopped", method, on_progress=stop)
    students = []
    for name in ("stopped", "through"):
        path = run(tiny_teacher, tmp_path / name, method).student
        students.append(load_tensors(path, read_header(path)))
    assert all(torch.equal(value, students[1][key]) for key, value in students[0].items())


def test_a_run_is_not_continued_by_another_method(tiny_teacher: Path, tmp_path: Path) -> None:
    run(tiny_teacher, tmp_path / "run", "dfad")
    with pytest.raises(ConfigurationError, match="recipe"):
        run(tiny_teacher, tmp_path / "run", "zskt")


def test_the_method_may_be_said_twice_but_not_two_methods(
    tiny_teacher: Path, tmp_path: Path
) -> None:
    run(tiny_teacher, tmp_path / "run", "dfad", overrides={"method": "dfad"})
    with pytest.raises(UsageError, match="both zskt and the recipe key dfad"):
        run(tiny_teacher, tmp_path / "other", "zskt", overrides={"method": "dfad"})
    assert not (tmp_path / "other").exists()


def test_label_embeddings_are_part_of_what_a_run_is(tiny_teacher: Path, tmp_path: Path) -> None:
    files = []
    for seed in (0, 1):
        path = tmp_path / f"texts{seed}.safetensors"
        save_file({"texts": torch.randn(3, 5, generator=torch.Generator().manual_seed(seed))}, path)
        files.append(path)
    run(tiny_teacher, tmp_path / "run", "nayer", label_embeddings=files[0])
    written = json.loads((tmp_path / "run" / "config.json").read_text())
    assert len(written["label_embeddings_sha256"]) == 64
    assert str(tmp_path) not in (tmp_path / "run" / "result.json").read_text()
    with pytest.raises(ConfigurationError, match="label_embeddings_sha256"):
        run(tiny_teacher, tmp_path / "run", "nayer", label_embeddings=files[1])
    with pytest.raises(ConfigurationError, match="takes no file"):
        run(tiny_teacher, tmp_path / "other", "dafl", label_embeddings=files[0])
