"""`genkd-prior`: trains, shows, and says what is wrong in one line with the right exit code."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from genkd.generative_model import load_generative_model
from node.prior_cli import main


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


def train_arguments(images: Path, out: str, *more: str) -> list[str]:
    small = ["--width", "2", "--budget", "640samples", "--device", "cpu"]
    latent = [] if "pixel-ebm" in more else ["--latent-dim", "3"]
    return ["train", "--images", str(images), "--out", out, *small, *latent, *more]


def test_a_prior_is_trained_and_looked_at(
    tiny_images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    description = ["--description", "Stripes"]
    arguments = train_arguments(tiny_images, "run", "--family", "vae", "--checkpoints", "1")
    assert main([*arguments, *description, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)["data"]
    assert data["family"] == "vae"
    assert data["image_shape"] == [1, 16, 16]
    assert data["num_classes"] == 3
    assert data["samples"] == 640
    assert data["checkpoints"] == ["run/prior-001.safetensors"]
    assert load_generative_model(data["prior"]).card.description == "Stripes"

    assert main(["sample", data["prior"], "--out", "grid.png", "--device", "cpu"]) == 0
    err = capsys.readouterr().err
    assert "vae, 3 classes, 1x16x16" in err
    with Image.open("grid.png") as picture:
        assert picture.size == (10 * 64, 3 * 64)
    # The same command resumes, and finds nothing left to do.
    before = Path(data["prior"]).read_bytes()
    assert main([*arguments, *description]) == 0
    assert Path(data["prior"]).read_bytes() == before


@pytest.mark.parametrize("family", ["gan", "latent-ebm", "pixel-ebm"])
def test_every_family_can_be_trained_without_labels(family: str, tiny_images: Path) -> None:
    arguments = train_arguments(tiny_images, "run", "--family", family, "--no-labels")
    assert main([*arguments, "--size", "12x8"]) == 0
    card = load_generative_model("run/prior.safetensors").card
    assert (card.family, card.num_classes, card.image_shape) == (family, 0, (1, 12, 8))


@pytest.mark.parametrize(
    ("change", "code", "says"),
    [
        (["--family", "diffusion"], 2, "diffusion"),
        (["--images", "nothing.npz"], 4, "does not exist"),
        (["--images", "torchvision:CIFAR10:nowhere"], 4, "CIFAR10"),
        (["--budget", "soon"], 2, "not a budget"),
        (["--budget", "100passes"], 2, "passes"),
        (["--size", "large"], 2, "not a size"),
        (["--size", "4x4"], 2, "height"),
        (["--size", "32x9999"], 2, "9999"),
        (["--channels", "2"], 2, "channels"),
        (["--channels", "3", "--checkpoints", "-1"], 2, "checkpoints"),
        (["--latent-dim", "0"], 2, "latent-dim"),
        (["--family", "pixel-ebm", "--latent-dim", "4"], 2, "a pixel-ebm has no z"),
        (["--description", "two\nlines"], 2, "description"),
        (["--out", "taken"], 3, "not a run directory"),
        (["--seed", "-1"], 3, "seed"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_are_told_in_one_line(
    change: list[str],
    code: int,
    says: str,
    tiny_images: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("taken").mkdir()
    Path("taken/mine").write_text("x")
    assert main([*train_arguments(tiny_images, "run"), "--family", "vae", *change]) == code
    err = capsys.readouterr().err.strip().splitlines()
    errors = [line for line in err if line.startswith("error: ")]
    assert len(errors) == 1
    assert says in errors[0]
    assert err[-1].startswith("hint: ")
    assert not Path("run").exists()


def test_sampling_refuses_what_is_no_prior(
    tiny_teacher: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sample", str(tiny_teacher), "--out", "grid.png"]) == 4
    assert "no generative model" in capsys.readouterr().err
    assert not Path("grid.png").exists()


def test_a_picture_that_cannot_be_written_is_told(
    tiny_images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(train_arguments(tiny_images, "run", "--family", "vae")) == 0
    prior = "run/prior.safetensors"
    assert main(["sample", prior, "--out", "nowhere/grid.png", "--device", "cpu"]) == 8
    assert "nowhere" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["--version"]], ids=str)
def test_asking_for_help_loads_no_torch(arguments: list[str]) -> None:
    script = (
        "import sys; from node.prior_cli import main\n"
        f"code = main({arguments!r})\n"
        "sys.exit('loaded torch' if 'torch' in sys.modules else code)"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stderr


def test_the_command_is_installed() -> None:
    assert shutil.which("genkd-prior", path=str(Path(sys.executable).parent))
