"""Training a prior: budgets, checkpoints, resuming, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from genkd.device import choose_device
from genkd.dgm.public_images import PublicImages
from genkd.dgm.sample_grid import draw_grid
from genkd.dgm.training import BATCH, STEPS_A_ROUND, TrainedPrior, train_prior
from genkd.errors import ConfigurationError, UsageError
from genkd.generative_model import FAMILIES, Family, GenerativeCard, load_generative_model
from genkd.recipe import Budget
from genkd.run_directory import RunDirectory
from genkd.train import Progress

ROUND = BATCH * STEPS_A_ROUND


def images_of(num_classes: int = 2, seed: int = 0) -> PublicImages:
    random = np.random.default_rng(seed)
    labels = np.arange(40) % max(1, num_classes)
    images = (
        random.integers(0, 100, (40, 1, 8, 8), np.uint8)
        + (100 * labels).astype(np.uint8)[:, None, None, None]
    )
    return PublicImages(images, labels.astype(np.int64), num_classes)


def train(
    out: Path, family: Family = "vae", budget: str = f"{2 * ROUND}samples", **options: object
) -> TrainedPrior:
    data = options.pop("data", images_of())
    assert isinstance(data, PublicImages)
    latent_dim = 0 if family == "pixel-ebm" else 3
    card = GenerativeCard(family, latent_dim, data.num_classes, 1, 8, 8, 2)
    device = choose_device("cpu", "fp32")
    return train_prior(card, data, out, Budget.parse(budget), device, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_training_stopped_and_resumed_ends_as_one_that_was_not(
    family: Family, tmp_path: Path
) -> None:
    class Stop(Exception):
        pass

    def stop(progress: Progress) -> None:
        raise Stop

    whole = train(tmp_path / "whole", family, checkpoints=2)
    with pytest.raises(Stop):
        train(tmp_path / "stopped", family, checkpoints=2, on_progress=stop)
    assert not (tmp_path / "stopped" / "prior.safetensors").exists()
    resumed = train(tmp_path / "stopped", family, checkpoints=2)
    assert resumed.prior.read_bytes() == whole.prior.read_bytes()
    assert resumed.samples == whole.samples == 2 * ROUND
    for one, other in zip(resumed.checkpoints, whole.checkpoints, strict=True):
        assert one.read_bytes() == other.read_bytes()
    # What is finished is not trained further, nor is its folder taken by another training.
    again = train(tmp_path / "whole", family, checkpoints=2)
    assert again.prior.read_bytes() == whole.prior.read_bytes()


def test_checkpoints_are_models_of_equal_shares_of_the_budget(tmp_path: Path) -> None:
    trained = train(tmp_path / "run", budget=f"{4 * ROUND}samples", checkpoints=3)
    assert [path.name for path in trained.checkpoints] == [
        f"prior-00{number}.safetensors" for number in (1, 2, 3)
    ]
    written = [path.read_bytes() for path in (*trained.checkpoints, trained.prior)]
    assert len(set(written)) == 4
    assert load_generative_model(trained.checkpoints[0]).card.family == "vae"


def test_more_checkpoints_than_rounds_are_all_written(tmp_path: Path) -> None:
    trained = train(tmp_path / "run", budget=f"{ROUND}samples", checkpoints=4)
    assert all(path.exists() for path in trained.checkpoints)


def test_the_seed_decides(tmp_path: Path) -> None:
    first = train(tmp_path / "first", seed=1).prior.read_bytes()
    assert train(tmp_path / "again", seed=1).prior.read_bytes() == first
    assert train(tmp_path / "other", seed=2).prior.read_bytes() != first


@pytest.mark.parametrize("budget", ["0.2s", "0.1core-seconds"])
def test_a_budget_in_time_is_kept(budget: str, tmp_path: Path) -> None:
    trained = train(tmp_path / "run", budget=budget)
    assert trained.samples >= ROUND
    spent = trained.core_seconds if "core" in budget else trained.seconds
    assert spent >= Budget.parse(budget).amount


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"seed": 1}, "seed"),
        ({"data": images_of(seed=1)}, "public_images"),
        ({"family": "gan"}, "prior"),
        ({"budget": f"{3 * ROUND}samples"}, "budget"),
        ({"checkpoints": 1}, "checkpoints"),
    ],
)
def test_the_folder_of_another_training_is_refused(
    options: dict[str, object], what: str, tmp_path: Path
) -> None:
    train(tmp_path / "run")
    with pytest.raises(ConfigurationError, match=what):
        train(tmp_path / "run", **options)  # type: ignore[arg-type]


def test_a_fresh_start_deletes_the_models_of_the_training_before(tmp_path: Path) -> None:
    train(tmp_path / "run", checkpoints=2)
    (tmp_path / "run" / "prior-mine.safetensors").write_bytes(b"mine")
    train(tmp_path / "run", checkpoints=1, seed=1, fresh=True)
    left = sorted(path.name for path in (tmp_path / "run").glob("*.safetensors"))
    assert left == ["prior-001.safetensors", "prior-mine.safetensors", "prior.safetensors"]


def test_a_folder_with_files_of_others_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(ConfigurationError, match="not a run directory"):
        train(tmp_path)
    with RunDirectory.open(tmp_path / "run", {"seed": 0}):
        pass
    with pytest.raises(ConfigurationError, match="another configuration"):
        train(tmp_path / "run")


def test_budgets_and_checkpoints_that_mean_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="passes"):
        train(tmp_path / "run", budget="100passes")
    with pytest.raises(UsageError, match="checkpoints"):
        train(tmp_path / "run", checkpoints=-1)
    card = GenerativeCard("vae", 3, 5, 1, 8, 8, 2)
    device = choose_device("cpu", "fp32")
    with pytest.raises(UsageError, match="5"):
        train_prior(card, images_of(), tmp_path / "run", Budget.parse("1s"), device)
    assert not (tmp_path / "run").exists()


def test_a_training_that_diverges_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("genkd.dgm.vae.LEARNING_RATE", 1e30)
    with pytest.raises(ConfigurationError, match="diverged within 10 steps"):
        train(tmp_path / "run")
    assert not (tmp_path / "run" / "prior.safetensors").exists()


@pytest.mark.parametrize(("num_classes", "rows"), [(0, 8), (2, 2)])
def test_the_grid_has_a_row_for_each_class(num_classes: int, rows: int, tmp_path: Path) -> None:
    import io

    from PIL import Image

    trained = train(tmp_path / "run", data=images_of(num_classes))
    model = load_generative_model(trained.prior)
    grid = draw_grid(model, 3, torch.Generator().manual_seed(0))
    assert grid.rows == rows
    with Image.open(io.BytesIO(grid.png)) as picture:
        assert picture.size == (3 * 64, rows * 64)
        assert picture.mode == "L"
    assert draw_grid(model, 3, torch.Generator().manual_seed(0)) == grid
