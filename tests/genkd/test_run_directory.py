"""A run directory resumes what it holds, refuses what it does not, and never doubles a line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from genkd.durable import TEMPORARY_PREFIX
from genkd.errors import ConfigurationError, InputFileRefused, ResourceExhausted
from genkd.event_log import EVENTS_FILE, TENSORBOARD_FOLDER
from genkd.run_directory import CHECKPOINT_FILE, LOCK_FILE, RELEASE_FOLDER, RunDirectory

CONFIGURATION = {"seed": 0, "recipe": {"rounds": 3, "rate": 0.1}, "teacher": Path("t.safetensors")}


def events_of(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (path / EVENTS_FILE).read_text().splitlines()]


def rounds_of(path: Path) -> list[object]:
    return [event["round"] for event in events_of(path) if event["event"] == "round"]


def run_of(path: Path, **changes: object) -> RunDirectory:
    return RunDirectory.open(path, {**CONFIGURATION, **changes})


def test_a_new_folder_is_made_with_its_parents_and_keeps_the_configuration(tmp_path: Path) -> None:
    with run_of(tmp_path / "runs" / "first") as run:
        assert run.load_checkpoint() is None
    kept = json.loads((tmp_path / "runs" / "first" / "config.json").read_text())
    assert kept == {**CONFIGURATION, "teacher": "t.safetensors"}


def test_a_checkpoint_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(5)
    state = {
        "round": 2,
        "weights": {"fc.weight": torch.arange(6.0).reshape(2, 3)},
        "rng": generator.get_state(),
        "labels": torch.tensor([1, 2]),
        "mixed": [1.5, None, "text", (1, 2)],
    }
    with run_of(tmp_path) as run:
        run.save_checkpoint(state)
    with run_of(tmp_path) as run:
        loaded = run.load_checkpoint()
    assert loaded is not None
    assert torch.equal(loaded["weights"]["fc.weight"], state["weights"]["fc.weight"])
    assert torch.equal(loaded["rng"], state["rng"])
    assert loaded["mixed"] == state["mixed"]


def test_resuming_tells_each_round_once(tmp_path: Path) -> None:
    with run_of(tmp_path) as run:
        run.load_checkpoint()
        run.event("start")
        for i in range(2):
            run.event("round", round=i, losses={"kd": 1.0 / (i + 1)})
        run.save_checkpoint({"round": 1})
        run.event("round", round=2, losses={"kd": 0.2})
    with run_of(tmp_path) as run:
        assert run.load_checkpoint() == {"round": 1}
        run.event("resume")
        run.event("round", round=2, losses={"kd": 0.2})
    assert rounds_of(tmp_path) == [0, 1, 2]
    assert [event["event"] for event in events_of(tmp_path)][-2:] == ["resume", "round"]


def test_a_run_killed_before_its_first_checkpoint_starts_its_log_anew(tmp_path: Path) -> None:
    with run_of(tmp_path) as run:
        run.event("round", round=0, losses={"kd": 1.0})
    assert list((tmp_path / TENSORBOARD_FOLDER).iterdir())
    with run_of(tmp_path) as run:
        assert run.load_checkpoint() is None
    assert events_of(tmp_path) == []
    assert not list((tmp_path / TENSORBOARD_FOLDER).iterdir())


def test_a_line_torn_by_a_loss_of_power_is_cut_off(tmp_path: Path) -> None:
    with run_of(tmp_path) as run:
        run.event("round", round=0)
        run.save_checkpoint({})
    with (tmp_path / EVENTS_FILE).open("ab") as file:
        file.write(b'{"event": "rou')
    with run_of(tmp_path) as run:
        run.load_checkpoint()
        run.event("round", round=1)
    assert rounds_of(tmp_path) == [0, 1]


def test_a_log_that_lost_lines_is_not_filled_with_nul_bytes(tmp_path: Path) -> None:
    with run_of(tmp_path) as run:
        run.event("round", round=0)
        run.save_checkpoint({})
    (tmp_path / EVENTS_FILE).write_bytes(b"")
    with run_of(tmp_path) as run:
        run.load_checkpoint()
        run.event("round", round=1)
    assert rounds_of(tmp_path) == [1]


def test_numbers_that_json_lacks_are_written_as_null(tmp_path: Path) -> None:
    with run_of(tmp_path) as run:
        run.event("round", round=0, health={"gap": float("nan"), "ess": float("inf"), "ok": 1.0})
        run.write_json("result.json", {"final": {"gap": float("-inf")}})
    assert events_of(tmp_path)[0]["health"] == {"gap": None, "ess": None, "ok": 1.0}
    assert json.loads((tmp_path / "result.json").read_text()) == {"final": {"gap": None}}


def test_tensorboard_shows_the_same_numbers_and_each_round_once(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with run_of(tmp_path) as run:
        run.event("round", round=0, losses={"kd": 0.5})
        run.save_checkpoint({})
        run.event("round", round=1, losses={"kd": 9.0})  # lost by a kill
    with run_of(tmp_path) as run:
        run.load_checkpoint()
        run.event("round", round=1, losses={"kd": 0.25})
    shown = EventAccumulator(str(tmp_path / TENSORBOARD_FOLDER))
    shown.Reload()
    assert [(e.step, e.value) for e in shown.Scalars("losses/kd")] == [(0, 0.5), (1, 0.25)]


def test_events_are_kept_where_tensorboard_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with run_of(tmp_path) as run:
        run.event("round", round=0, losses={"kd": 0.5})
    assert rounds_of(tmp_path) == [0]
    assert not (tmp_path / TENSORBOARD_FOLDER).exists()


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"seed": 1}, "seed is 0 there, 1 here"),
        ({"recipe": {"rounds": 4, "rate": 0.1}}, "recipe.rounds is 3 there, 4 here"),
        ({"recipe": {"rounds": 3}}, "recipe.rate is 0.1 there, absent here"),
        ({"budget": None}, "budget is absent there, null here"),
        ({"teacher": "other"}, 'teacher is "t.safetensors" there, "other" here'),
        ({f"k{i}": 0 for i in range(9)}, "and 4 more"),
    ],
    ids=["value", "nested", "dropped", "added as null", "path", "many"],
)
def test_another_configuration_is_refused_with_the_difference(
    tmp_path: Path, changes: dict[str, object], difference: str
) -> None:
    run_of(tmp_path).close()
    with pytest.raises(ConfigurationError) as caught:
        run_of(tmp_path, **changes)
    assert difference in caught.value.message
    assert "\n" not in caught.value.message
    assert "--fresh" in caught.value.hint
    run_of(tmp_path).close()  # the refusal let go of the lock


def test_a_second_run_in_the_same_folder_is_refused_and_told_who_holds_it(tmp_path: Path) -> None:
    with run_of(tmp_path):
        with pytest.raises(ConfigurationError, match=f"in use by another process \\({os.getpid()}"):
            run_of(tmp_path)
        # The refused one must not have wiped the note of who holds it.
        with pytest.raises(ConfigurationError, match=str(os.getpid())):
            RunDirectory.open(tmp_path, CONFIGURATION, fresh=True)
    run_of(tmp_path).close()


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    script = textwrap.dedent(
        """
        import sys, time
        from genkd.run_directory import RunDirectory
        run = RunDirectory.open(sys.argv[1], {"seed": 0})
        run.event("start")
        print("holding", flush=True)
        time.sleep(60)
        """
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "holding\n"
        with pytest.raises(ConfigurationError, match="in use"):
            RunDirectory.open(tmp_path, {"seed": 0})
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=30)
    RunDirectory.open(tmp_path, {"seed": 0}).close()
    assert [event["event"] for event in events_of(tmp_path)] == ["start"]


def test_a_fresh_start_deletes_what_the_run_wrote_and_nothing_else(tmp_path: Path) -> None:
    with run_of(tmp_path) as run:
        run.event("round", round=0, losses={"kd": 1.0})
        run.save_checkpoint({"round": 0})
        run.write_bytes("student.safetensors", b"weights")
        run.write_json("result.json", {})
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / TENSORBOARD_FOLDER / "notes.txt").write_text("mine too")
    with RunDirectory.open(tmp_path, {"seed": 9}, fresh=True) as run:
        assert run.load_checkpoint() is None
    left = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    assert left == {LOCK_FILE, "config.json", "notes.txt", f"{TENSORBOARD_FOLDER}/notes.txt"}


def test_a_fresh_start_does_not_follow_a_link_out_of_the_folder(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "events.out.tfevents.1").write_text("of another run")
    (outside / "student.safetensors").write_text("of another run")
    inside = tmp_path / "run"
    run_of(inside).close()
    (inside / TENSORBOARD_FOLDER).symlink_to(outside)
    (inside / "student.safetensors").symlink_to(outside / "student.safetensors")
    RunDirectory.open(inside, CONFIGURATION, fresh=True).close()
    assert {p.name for p in outside.iterdir()} == {"events.out.tfevents.1", "student.safetensors"}


@pytest.mark.parametrize("fresh", [False, True])
def test_a_folder_with_files_of_others_is_refused_and_left_as_it_was(
    tmp_path: Path, fresh: bool
) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigurationError, match="not a run directory"):
        RunDirectory.open(tmp_path, CONFIGURATION, fresh=fresh)
    assert {p.name for p in tmp_path.iterdir()} == {"thesis.tex", "config.json"}


def test_a_published_run_is_not_started_anew(tmp_path: Path) -> None:
    with run_of(tmp_path) as run:
        run.write_bytes("student.safetensors", b"signed")
    (tmp_path / RELEASE_FOLDER).mkdir()
    with pytest.raises(ConfigurationError, match="published"):
        RunDirectory.open(tmp_path, CONFIGURATION, fresh=True)
    assert (tmp_path / "student.safetensors").read_bytes() == b"signed"


def test_what_a_kill_left_half_written_is_swept_away(tmp_path: Path) -> None:
    run_of(tmp_path).close()
    (tmp_path / f"{TEMPORARY_PREFIX}abc").write_bytes(b"half")
    run_of(tmp_path).close()
    assert not list(tmp_path.glob(f"{TEMPORARY_PREFIX}*"))


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    for path in (tmp_path / "run", tmp_path / "run" / "below"):
        with pytest.raises(ConfigurationError, match="not a folder"):
            run_of(path)


def test_a_folder_that_may_not_be_written_is_one_clear_error() -> None:
    # Not even root can make a folder there.
    with pytest.raises(ResourceExhausted, match="cannot be written"):
        run_of(Path("/proc/genkd-run"))


def test_a_full_disk_stops_the_log_with_a_hint(tmp_path: Path) -> None:
    with run_of(tmp_path) as run:
        (tmp_path / EVENTS_FILE).symlink_to("/dev/full")
        with pytest.raises(ResourceExhausted, match="No space left"):
            run.event("start")


@pytest.mark.parametrize(
    "content",
    [b"", b"PK\x03\x04 truncated", b"\x80\x04\x95 a pickle", b"{}", b"not a checkpoint" * 100],
    ids=["empty", "cut zip", "pickle", "json", "text"],
)
def test_a_broken_checkpoint_is_refused_with_a_way_out(tmp_path: Path, content: bytes) -> None:
    run_of(tmp_path).close()
    (tmp_path / CHECKPOINT_FILE).write_bytes(content)
    with run_of(tmp_path) as run, pytest.raises(InputFileRefused) as caught:
        run.load_checkpoint()
    assert "--fresh" in caught.value.hint


def test_a_truncated_checkpoint_is_refused(tmp_path: Path) -> None:
    with run_of(tmp_path) as run:
        run.save_checkpoint({"weights": torch.zeros(1000)})
    whole = (tmp_path / CHECKPOINT_FILE).read_bytes()
    (tmp_path / CHECKPOINT_FILE).write_bytes(whole[: len(whole) // 2])
    with run_of(tmp_path) as run, pytest.raises(InputFileRefused):
        run.load_checkpoint()


def test_a_pickle_with_code_in_the_place_of_the_checkpoint_is_not_executed(tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "executed"),)

    run_of(tmp_path).close()
    torch.save({"state": Attack()}, tmp_path / CHECKPOINT_FILE)
    with run_of(tmp_path) as run, pytest.raises(InputFileRefused):
        run.load_checkpoint()
    assert not (tmp_path / "executed").exists()


def test_a_checkpoint_copied_from_another_run_is_refused(tmp_path: Path) -> None:
    with run_of(tmp_path / "a") as run:
        run.save_checkpoint({"round": 1})
    with run_of(tmp_path / "b", seed=1) as run:
        (tmp_path / "b" / CHECKPOINT_FILE).write_bytes(
            (tmp_path / "a" / CHECKPOINT_FILE).read_bytes()
        )
        with pytest.raises(InputFileRefused, match="another configuration"):
            run.load_checkpoint()


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000],
    ids=["empty", "cut", "list", "not UTF-8", "deep"],
)
def test_a_broken_configuration_file_is_refused_and_fresh_is_the_way_out(
    tmp_path: Path, content: bytes
) -> None:
    run_of(tmp_path).close()
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(InputFileRefused):
        run_of(tmp_path)
    RunDirectory.open(tmp_path, CONFIGURATION, fresh=True).close()


@pytest.mark.parametrize("name", ["other.bin", "../student.json", "/etc/x", "config.json", ""])
def test_only_result_files_can_be_written(tmp_path: Path, name: str) -> None:
    with run_of(tmp_path) as run, pytest.raises(ValueError, match="no file of a run directory"):
        run.write_bytes(name, b"")


def test_opening_and_logging_import_no_torch(tmp_path: Path) -> None:
    script = (
        "import sys; from genkd.run_directory import RunDirectory\n"
        "run = RunDirectory.open(sys.argv[1], {}); run.event('start'); run.close()\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True)
