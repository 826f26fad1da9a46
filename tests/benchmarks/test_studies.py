"""The studies: trials are kept and resumed, tables say what their rows say."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import ablation
import compare
import plots
import pytest
import tables
import trials

from genkd.digest import sha256_file
from genkd.recipe import Budget, Recipe, find_recipe

PAIR = trials.Pair("toy", "/nowhere/teacher.safetensors", "resnet8-half", "{data}")
TRIAL = trials.Trial("dafl", (("method", "dafl"),), PAIR, 0, "600core-seconds")


def row(label: str, seed: int, top1: float, budget: str = "10s") -> dict[str, Any]:
    trial = dataclasses.replace(TRIAL, label=label, seed=seed, budget=budget)
    return {
        "trial": json.loads(json.dumps(dataclasses.asdict(trial))),
        "top1": top1,
        "teacher_top1": 0.9,
        "agreement": 0.8,
        "test_images": 10_000,
        "synthesis_seconds": 4.0,
        "seconds": 10.0,
        "core_seconds": 9.0 if budget == "10s" else 30.0,
        "samples": 1000,
        "teacher_passes": 2000,
        "rounds": 3,
        "peak_memory_bytes": 2**28,
    }


class Commands:
    """Stands for genkd-node: counts what is asked of it, and leaves what distilling leaves."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, ...]] = []
        self.fail = False

    def __call__(self, *arguments: str) -> dict[str, Any]:
        self.asked.append(arguments)
        if self.fail and arguments[0] == "evaluate":
            raise SystemExit("killed")
        if arguments[0] == "distill":
            out = Path(arguments[arguments.index("--out") + 1])
            out.mkdir(parents=True, exist_ok=True)
            result = {**row("x", 0, 0.5), "phase_seconds": {"synthesis": 4.0}}
            (out / "result.json").write_text(json.dumps(result))
        return {"top1": 0.5, "teacher_top1": 0.9, "agreement": 0.6, "images": 100}


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Commands:
    stand_in = Commands()
    teacher = tmp_path / "teacher.safetensors"
    teacher.write_bytes(b"weights")
    monkeypatch.setattr(trials, "_genkd", stand_in)
    monkeypatch.setattr(trials, "teacher_file", lambda pair, teachers: teacher)
    return stand_in


def test_a_finished_trial_is_read_and_not_repeated(commands: Commands, tmp_path: Path) -> None:
    first = trials.run_trial(TRIAL, tmp_path, "data")
    again = trials.run_trial(TRIAL, tmp_path, "data")
    assert first == again
    assert [asked[0] for asked in commands.asked] == ["distill", "evaluate"]
    assert "method=dafl" in commands.asked[0]


def test_an_interrupted_trial_goes_on_in_its_run_directory(
    commands: Commands, tmp_path: Path
) -> None:
    commands.fail = True
    with pytest.raises(SystemExit):
        trials.run_trial(TRIAL, tmp_path, "data")
    commands.fail = False
    assert trials.run_trial(TRIAL, tmp_path, "data")["top1"] == 0.5
    distilled = [asked for asked in commands.asked if asked[0] == "distill"]
    assert distilled[0] == distilled[1]  # the same command resumes
    assert "--fresh" not in distilled[0]


def test_a_kept_trial_with_other_settings_is_refused(commands: Commands, tmp_path: Path) -> None:
    trials.run_trial(TRIAL, tmp_path, "data")
    other = dataclasses.replace(TRIAL, overrides=(("method", "dafl"), ("batch", "8")))
    with pytest.raises(SystemExit, match="another trial"):
        trials.run_trial(other, tmp_path, "data")
    with pytest.raises(SystemExit, match="another trial"):
        trials.run_trial(TRIAL, tmp_path, "other data")


def test_a_kept_trial_of_another_recipe_or_teacher_of_the_same_name_is_refused(
    commands: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials.run_trial(TRIAL, tmp_path, "data")
    with monkeypatch.context() as later:
        later.setattr(trials, "find_recipe", lambda name, keys: Recipe(student_steps=31))
        with pytest.raises(SystemExit, match="another trial"):
            trials.run_trial(TRIAL, tmp_path, "data")
    trials.run_trial(TRIAL, tmp_path, "data")
    (tmp_path / "teacher.safetensors").write_bytes(b"other weights")
    with pytest.raises(SystemExit, match="another trial"):
        trials.run_trial(TRIAL, tmp_path, "data")


def test_no_two_trials_share_a_folder(tmp_path: Path) -> None:
    pairs = [*trials.PAIRS["small"], *trials.PAIRS["paper"]]
    assert len({pair.name for pair in pairs}) == len(pairs)
    every = [
        trials.Trial(label, (), pair, seed, budget)
        for label in (*compare.METHODS, *ablation.ROWS)
        for pair in pairs
        for seed in range(3)
        for budget in ("600core-seconds", "1e7passes")
    ]
    assert len({trial.folder(tmp_path) for trial in every}) == len(every)


@pytest.mark.parametrize("name", list(ablation.ROWS))
def test_every_row_is_a_recipe_there_is(name: str) -> None:
    overrides = dict(trials.overrides_of(ablation.ROWS[name], {}))
    if overrides.pop("oracle", None) is None:
        find_recipe("standard", overrides)
    else:
        assert not overrides


@pytest.mark.parametrize("method", compare.METHODS)
def test_every_method_is_one_there_is(method: str) -> None:
    assert find_recipe("standard", {"method": method}).method == method


def test_a_study_key_goes_only_where_it_is_read() -> None:
    shared = {"batch": "32", "langevin_steps": "5"}
    assert dict(trials.overrides_of({"method": "genkd"}, shared)) == {**shared, "method": "genkd"}
    no_energy = trials.overrides_of({"energy": "no"}, {**shared, "policy_gradient": "chain"})
    assert dict(no_energy) == {"batch": "32", "energy": "no"}
    dafl = dict(trials.overrides_of({"method": "dafl"}, shared))
    assert "langevin_steps" not in dafl
    find_recipe("standard", dafl)
    assert trials.overrides_of({"oracle": "scratch"}, shared) == (("oracle", "scratch"),)


@pytest.mark.parametrize("preset", list(trials.PAIRS))
@pytest.mark.parametrize("method", compare.METHODS)
def test_a_methods_sizes_are_the_presets_unless_the_user_gives_them(
    method: str, preset: str
) -> None:
    recipe = find_recipe("standard", dict(compare.overrides(method, preset, {})))
    own = compare.OF_METHOD[preset].get(method, {})
    for key, value in own.items():
        assert getattr(recipe, key) == int(value), key
    if method not in ("noise", "deepinversion"):
        assert recipe.generator_channels == {"small": 16, "paper": 64}[preset]
    given = dict(compare.overrides(method, preset, {key: "7" for key in own} | {"batch": "64"}))
    assert given == given | {key: "7" for key in own} | {"batch": "64"}


def test_budgets_of_the_presets_are_budgets() -> None:
    for texts in compare.BUDGETS.values():
        assert all(Budget.parse(text).amount > 0 for text in texts)


def test_every_claim_is_of_rows_there_are() -> None:
    assert {name for _, *both in ablation.CLAIMS for name in both} <= set(ablation.ROWS)


def test_data_that_are_not_there_are_refused_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for data in ("missing", "empty"):
        with pytest.raises(SystemExit, match="--data"):
            trials.check_pairs(trials.PAIRS["small"], str(tmp_path / data), None)
    with pytest.raises(SystemExit, match="--teachers"):
        trials.check_pairs(trials.PAIRS["paper"], str(tmp_path / "missing"), tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--budget", "600"], "not a budget"),
        (["--set", "batch"], "KEY=VALUE"),
        (["--methods", "genkd,magic"], "no methods magic"),
        (["--pairs", "nothing"], "no pair of small"),
    ],
)
def test_arguments_that_cannot_work_are_refused_first(
    arguments: list[str],
    message: str,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = folder / "out"
    monkeypatch.setattr(
        "sys.argv", ["compare.py", "--data", str(folder), "--out", str(out), *arguments]
    )
    monkeypatch.setattr(compare, "run_all", lambda *_: pytest.fail("a trial was started"))
    with pytest.raises(SystemExit):
        compare.main()
    assert message in capsys.readouterr().err


def test_a_key_that_no_trial_reads_is_refused() -> None:
    trial = dataclasses.replace(TRIAL, overrides=(("method", "dafl"), ("batch", "8")))
    trials.check_trials({"batch": "8"}, [trial], "data")
    with pytest.raises(SystemExit, match="--set policy_weight has no effect"):
        trials.check_trials({"batch": "8", "policy_weight": "1"}, [trial], "data")
    with pytest.raises(SystemExit, match="--set method is what a study varies"):
        trials.check_trials({"method": "dafl"}, [trial], "data")


def test_trials_that_could_not_work_are_refused_before_the_first(tmp_path: Path) -> None:
    oracle = dataclasses.replace(TRIAL, overrides=(("oracle", "distilled"),))
    with pytest.raises(SystemExit, match="train-images"):
        trials.check_trials({}, [TRIAL, oracle], str(tmp_path))
    samples = dataclasses.replace(oracle, budget="9samples")
    with pytest.raises(SystemExit, match="make no images"):
        trials.check_trials({}, [samples], str(tmp_path))
    idle = dataclasses.replace(TRIAL, overrides=(("energy", "no"), ("policy_gradient", "chain")))
    with pytest.raises(SystemExit, match=r"no effect with energy=no\nhint: "):  # noqa: SIM117
        with trials.one_line_errors():
            trials.check_trials({}, [TRIAL, idle], "data")


def test_a_trial_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"(?s)exit 2.*'600' is not a budget.*hint: for example"):
        trials._genkd("distill", "--teacher", "no.safetensors", "--budget", "600")


def test_an_oracle_is_of_the_standard_recipe_of_today(
    commands: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def oracle(*arguments: str) -> bytes:
        out = Path(arguments[-1])
        out.mkdir(parents=True)
        (out / "result.json").write_text(
            json.dumps({**row("x", 0, 0.5), "phase_seconds": {"distillation": 4.0}})
        )
        return b""

    monkeypatch.setattr(trials, "_call", oracle)
    trial = dataclasses.replace(TRIAL, label="real KD", overrides=(("oracle", "distilled"),))
    assert trials.run_trial(trial, tmp_path, "data")["synthesis_seconds"] == 0
    monkeypatch.setattr(trials, "find_recipe", lambda name, keys: Recipe(student_rate=0.1))
    with pytest.raises(SystemExit, match="another recipe"):
        trials.run_trial(trial, tmp_path, "data")


def test_a_teacher_that_is_not_there_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="--teachers"):
        trials.teacher_file(trials.PAIRS["paper"][0], tmp_path)


@pytest.mark.parametrize("pair", trials.PAIRS["small"], ids=lambda pair: pair.name)
def test_a_shipped_teacher_is_the_one_whose_digest_is_published(pair: trials.Pair) -> None:
    file = trials.teacher_file(pair, None)
    assert sha256_file(file) in file.with_name("train_teacher.py").read_text()


def test_the_table_tells_means_and_paired_differences() -> None:
    rows = [row("genkd", seed, 0.80 + 0.01 * seed) for seed in range(3)]
    rows += [row("dafl", seed, 0.70 + 0.01 * seed) for seed in range(3)]
    text = tables.summary(rows, "genkd")
    assert "| genkd | 3 | 81.00 [80.00, 82.00] | 1.00 |  | 80.0 | 3 | 1,000 | 2,000 | 4 |" in text
    assert "| 4 | 9 | 256 |" in text
    assert "| dafl | 3 | 71.00 [70.00, 72.00] | 1.00 | +10.00 [+10.00, +10.00] |" in text
    assert "**toy, 10s** (teacher 90.00%, 10,000 test images)" in text


def test_one_seed_has_no_interval() -> None:
    text = tables.summary([row("genkd", 0, 0.80), row("dafl", 0, 0.70)], "genkd")
    assert "| genkd | 1 | 80.00 |  |  | 80.0 | 3 | 1,000 | 2,000 |" in text
    assert "| dafl | 1 | 70.00 |  | +10.00 | 80.0 | 3 | 1,000 | 2,000 |" in text


@pytest.mark.parametrize(
    ("low", "high", "told"),
    [
        (500, 2200, [500, 1000, 2000]),
        (1100, 30_000, [2000, 5000, 10_000, 20_000]),
        (3, 4, [3, 3.2, 3.4, 3.6, 3.8, 4]),
        (500.155, 730.282, [550, 600, 650, 700]),
        (0.9, 2e5, [1, 10, 100, 1000, 10_000, 100_000]),
    ],
)
def test_an_axis_names_round_numbers_that_stay_apart(
    low: float, high: float, told: list[float]
) -> None:
    assert plots._round_numbers(low, high) == pytest.approx(told)


def test_plots_are_intact_svg_with_a_line_for_each_method(tmp_path: Path) -> None:
    rows = [
        row(label, seed, top1 + 0.01 * seed, budget)
        for label, top1 in (("genkd", 0.8), ("a < b", 0.7), ("dfad", 0.2))
        for seed in range(3)
        for budget in ("10s", "30s")
    ]
    files = tables.write_plots(rows, tmp_path)
    assert [file.name for file in files] == ["toy-core-seconds.svg", "toy-samples.svg"]
    for file in files:
        root = ElementTree.fromstring(file.read_text())  # noqa: S314 (our own file)
        texts = [element.text for element in root.iter() if element.tag.endswith("text")]
        assert "genkd" in texts
        assert "a < b" in texts
        assert "dfad: 21.0" in texts  # far behind: named, not drawn
        circles = [element for element in root.iter() if element.tag.endswith("circle")]
        assert len(circles) == 4  # two budgets of two methods


def test_a_claim_holds_only_outside_the_interval() -> None:
    rows = [row("4 MLE, PG stationary", seed, 0.8) for seed in range(3)]
    rows += [row("1 no EBM", seed, 0.7) for seed in range(3)]
    rows += [row("9 rejection", seed, top1) for seed, top1 in enumerate((0.75, 0.8, 0.85))]
    lines = ablation.claims(rows).splitlines()
    assert any("4 - 1" in line and "above zero" in line for line in lines)
    assert any("4 - 9" in line and "open" in line for line in lines)
    assert not any("5 - 1" in line for line in lines)  # row 5 was not run


@pytest.mark.parametrize(
    ("budget", "device"),
    [("600core-seconds", "cpu"), ("275000passes", "auto"), ("10m", "auto"), ("90 s", "auto")],
)
def test_core_seconds_are_spent_on_the_processor_that_they_count(
    budget: str, device: str, commands: Commands, tmp_path: Path
) -> None:
    trials.run_trial(dataclasses.replace(TRIAL, budget=budget), tmp_path, "data")
    asked = commands.asked[0]
    assert asked[asked.index("--device") + 1] == device
