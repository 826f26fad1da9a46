"""Over a frozen public model only the EBM learns, and the teacher is only asked."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from genkd import cost, frozen_prior
from genkd.bank import as_images
from genkd.card import InputCard
from genkd.device import Device
from genkd.distillation import DistillReport, Progress, distill
from genkd.errors import ConfigurationError, GenKDError, InputFileRefused, UsageError
from genkd.found_latents import FoundLatents
from genkd.frozen_prior import FrozenPrior, fit_images
from genkd.generative_card import GenerativeCard
from genkd.generative_model import GenerativeModel, load_generative_model, save_generative_model
from genkd.models import build_model
from genkd.recipe import Recipe, find_recipe
from genkd.safetensors_header import read_header
from genkd.teacher import Teacher, load_teacher
from genkd.weights import load_tensors

SIDE, LATENT = 16, 4
KEYS = {
    "batch": "24",
    "bank_images": "64",
    "langevin_steps": "3",
    "effective_share": "0",
    "warm_up": "0",
    "synthesis_share": "1",
    "student_steps": "2",
    "student_batch": "16",
    "student_rate": "0.01",
}
# A round is 24 images for the synthesis and 2 x 16 for the student.
FOUR_ROUNDS = "210 passes"
DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA here")
    ),
]


@pytest.fixture(scope="module", autouse=True)
def _quick_to_measure() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cost, "LATENCY_CALLS", (1, 1))
        yield


def stripes(latents: Tensor, kind: Tensor) -> Tensor:
    """What the tiny prior is to draw: the public's images, near those of the tiny teacher."""
    rows, columns = torch.meshgrid(
        torch.arange(SIDE) / SIDE, torch.arange(SIDE) / SIDE, indexing="ij"
    )
    phase, y, x = (latents[:, i, None, None].sigmoid() for i in range(3))
    drawn = torch.stack(
        (
            torch.sin(6.28 * (3 * rows + phase)),
            torch.sin(6.28 * (3 * columns + phase)),
            4 * torch.exp(-30 * ((rows - y) ** 2 + (columns - x) ** 2)) - 1,
        ),
        dim=1,
    )
    return (drawn[torch.arange(len(kind)), kind].unsqueeze(1) * 60 + 128).clamp(0, 255) / 255


def tiny_prior(classes: int, kinds: int = 3) -> GenerativeModel:
    """A decoder that draws stripes and blobs: by its label, or by the last coordinate of z."""
    card = GenerativeCard("vae", LATENT, classes, 1, SIDE, SIDE, 8)
    random = torch.Generator().manual_seed(0)
    model = GenerativeModel(card, random).train()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(250):
        latents = torch.randn(48, LATENT, generator=random)
        labels = torch.arange(48) % kinds
        if not classes:
            labels = (latents[:, 3] > 0.4).long() + (latents[:, 3] > -0.4).long()
            labels = labels.clamp_max(kinds - 1)
        loss = (model.decode(latents, labels) - stripes(latents, labels)).square().mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return model.freeze()


@pytest.fixture(scope="module")
def priors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Of a model without labels, of one with them, and of one that draws two kinds of three."""
    folder = tmp_path_factory.mktemp("priors")
    made = {"plain": tiny_prior(0), "labelled": tiny_prior(3), "poor": tiny_prior(0, kinds=1)}
    for name, model in made.items():
        save_generative_model(folder / f"{name}.safetensors", model)
    return {name: folder / f"{name}.safetensors" for name in made}


@pytest.fixture(scope="module")
def box(tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny teacher as a black box."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from genkd.export import export_onnx

    path = tmp_path_factory.mktemp("box") / "box.onnx"
    export_onnx(load_teacher(tiny_teacher), path)
    return path


@pytest.fixture
def teacher(tiny_teacher: Path) -> Teacher:
    return load_teacher(tiny_teacher)


def pupil(teacher: Teacher) -> nn.Module:
    return build_model(teacher.card.spec, generator=torch.Generator().manual_seed(1)).eval()


def recipe_with(**keys: object) -> Recipe:
    recipe = find_recipe("quick", {"method": "frozen-prior", **KEYS})
    return dataclasses.replace(recipe, **keys)  # type: ignore[arg-type]


def synthesiser_of(
    teacher: Teacher, prior: Path, device: str = "cpu", seed: int = 0, **keys: object
) -> FrozenPrior:
    place = Device(torch.device(device), "fp32")
    model = load_generative_model(prior)
    return FrozenPrior(teacher, recipe_with(**keys), place, place.generator(seed), model)


# -- a round ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("prior", ["plain", "labelled"])
@pytest.mark.parametrize("estimator", ["none", "stationary", "chain", "greedy"])
def test_every_image_is_what_the_teacher_says_it_is(
    teacher: Teacher, priors: dict[str, Path], estimator: str, prior: str, device: str
) -> None:
    teacher = teacher.to(device)
    synthesiser = synthesiser_of(teacher, priors[prior], device, policy_gradient=estimator)
    student = pupil(teacher).to(device)
    for _ in range(2):
        batch = synthesiser.synthesise(student, steer=True)
    assert batch.images.dtype is torch.uint8
    assert batch.images.shape == (24, 1, SIDE, SIDE)
    with torch.no_grad():
        probability = teacher(as_images(batch.images)).softmax(1)
    assert torch.equal(probability.argmax(1), batch.labels)
    assert torch.allclose(probability.amax(1), batch.confidence, atol=1e-5)
    assert ("policy_gradient" in batch.losses) == (estimator != "none")
    for figure in (*batch.losses.values(), *batch.health.values()):
        assert figure.shape == ()
        assert not figure.requires_grad
        assert bool(figure.isfinite())


def test_only_the_energy_learns(teacher: Teacher, priors: dict[str, Path]) -> None:
    synthesiser = synthesiser_of(teacher, priors["plain"])
    student = pupil(teacher)
    assert synthesiser.prior is not None
    models = {
        "model": synthesiser.model,
        "teacher": teacher,
        "student": student,
        "energy": synthesiser.prior.energy,
    }
    before = {name: copy.deepcopy(model.state_dict()) for name, model in models.items()}
    synthesiser.synthesise(student, steer=True)
    for name, model in models.items():
        same = all(torch.equal(v, before[name][k]) for k, v in model.state_dict().items())
        assert same == (name != "energy"), name


@pytest.mark.parametrize("estimator", ["stationary", "chain"])
def test_no_gradient_goes_through_teacher_student_or_decoder(
    teacher: Teacher, priors: dict[str, Path], estimator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A teacher that cannot be differentiated at all, as behind a wall, teaches the same."""
    synthesiser = synthesiser_of(teacher, priors["plain"], policy_gradient=estimator)
    student = pupil(teacher)
    for model in (teacher.network, student, synthesiser.model):
        ask = model.forward

        def asked(*inputs: Tensor, ask: Callable[..., Tensor] = ask) -> Tensor:
            assert not torch.is_grad_enabled()
            return ask(*inputs)

        monkeypatch.setattr(model, "forward", asked)
    synthesiser.synthesise(student, steer=True)


def test_the_likelihood_makes_what_is_asked_for_likelier(
    teacher: Teacher, priors: dict[str, Path]
) -> None:
    """Without the EBM a third of the latents show the class that was asked for; with it more."""
    rates = {}
    for energy in (False, True):
        synthesiser = synthesiser_of(
            teacher, priors["plain"], batch=96, energy=energy, langevin_steps=10, energy_rate=1e-2
        )
        student = pupil(teacher)
        found = [synthesiser.synthesise(student, steer=False) for _ in range(25)]
        rates[energy] = sum(float(one.health["acceptance"]) for one in found[-10:]) / 10
    assert rates[True] > rates[False] + 0.1, rates


def test_labels_that_draw_the_wanted_class_are_found_out(
    teacher: Teacher, priors: dict[str, Path]
) -> None:
    synthesiser = synthesiser_of(teacher, priors["labelled"], batch=96, energy=False)
    student = pupil(teacher)
    accepted = [
        float(synthesiser.synthesise(student, steer=False).health["acceptance"]) for _ in range(20)
    ]
    assert accepted[0] < 0.6
    assert sum(accepted[-5:]) / 5 > accepted[0] + 0.15


def test_passes_are_counted(teacher: Teacher, priors: dict[str, Path]) -> None:
    synthesiser = synthesiser_of(teacher, priors["plain"], policy_gradient="chain")
    batch = synthesiser.synthesise(pupil(teacher), steer=True)
    # Once for the images, once for the start of the chains.
    assert batch.teacher_passes == synthesiser.teacher_passes == 48


# -- classes that the prior does not draw ----------------------------------------------------------


def test_a_class_that_never_comes_is_told_once_and_asked_for_no_more(
    teacher: Teacher, priors: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frozen_prior, "PATIENCE_ROUNDS", 3)
    synthesiser = synthesiser_of(teacher, priors["poor"])
    student = pupil(teacher)
    seen: set[int] = set()
    told: list[str] = []
    for _ in range(6):
        batch = synthesiser.synthesise(student, steer=True)
        seen |= set(batch.labels.tolist())
        told += batch.warnings
    names = teacher.card.class_names or ()
    assert len(seen) < 3
    assert len(told) == 1
    for label, name in enumerate(names):
        assert (name in told[0]) == (label not in seen)
    assert set(synthesiser._propose().labels.tolist()) == seen


def test_a_run_with_a_poor_prior_ends_and_says_so(
    tiny_teacher: Path, priors: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frozen_prior, "PATIENCE_ROUNDS", 2)
    run(tiny_teacher, tmp_path / "run", priors["poor"])
    lines = (tmp_path / "run" / "events.jsonl").read_text().splitlines()
    warnings = [e for e in map(json.loads, lines) if e["event"] == "warning"]
    assert len(warnings) == 1
    assert "draws no image that the teacher takes for" in warnings[0]["message"]
    assert None in json.loads((tmp_path / "run" / "result.json").read_text())["agreement_per_class"]


# -- from file to file -----------------------------------------------------------------------------


def run(teacher: Path, out: Path, prior: Path | None, **more: Any) -> DistillReport:
    return distill(
        teacher=teacher,
        out=out,
        student="lenet5-bn-quarter",
        prior=prior,
        device="cpu",
        precision="fp32",
        overrides={**KEYS, **more.pop("overrides", {})},
        **{"budget": FOUR_ROUNDS, **more},
    )


def test_a_run_records_its_prior_and_lowers_the_students_loss(
    tiny_teacher: Path, priors: dict[str, Path], tmp_path: Path
) -> None:
    run(tiny_teacher, tmp_path / "run", priors["labelled"], budget="2000 passes")
    written = {
        name: json.loads((tmp_path / "run" / name).read_text())
        for name in ("config.json", "result.json")
    }
    sha256 = load_generative_model(priors["labelled"]).sha256
    assert written["config.json"]["prior_sha256"] == sha256
    assert written["result.json"]["prior"] == {"family": "vae", "sha256": sha256}
    assert written["result.json"]["recipe"]["method"] == "frozen-prior"
    assert str(tmp_path) not in (tmp_path / "run" / "result.json").read_text()
    lines = (tmp_path / "run" / "events.jsonl").read_text().splitlines()
    losses = [e["losses"]["distillation"] for e in map(json.loads, lines) if "losses" in e]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def test_a_black_box_teaches_by_its_answers(
    tiny_teacher: Path, box: Path, priors: dict[str, Path], tmp_path: Path
) -> None:
    """The same student, up to rounding, as from the network that the box hides."""
    students = []
    for name, teacher in (("box", box), ("open", tiny_teacher)):
        path = run(teacher, tmp_path / name, priors["plain"]).student
        students.append(load_tensors(path, read_header(path)))
    for name, value in students[0].items():
        assert torch.allclose(value.float(), students[1][name].float(), atol=1e-2), name
    result = json.loads((tmp_path / "box" / "result.json").read_text())
    assert result["teacher"]["architecture"] == "resnet8-quarter"
    assert result["teacher"]["parameters"] > 1000


def test_a_stopped_run_resumes_to_the_same_student(
    tiny_teacher: Path, priors: dict[str, Path], tmp_path: Path
) -> None:
    def stop(progress: Progress) -> None:
        if progress.round == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tiny_teacher, tmp_path / "stopped", priors["labelled"], on_progress=stop)
    students = []
    for name in ("stopped", "through"):
        path = run(tiny_teacher, tmp_path / name, priors["labelled"]).student
        students.append(load_tensors(path, read_header(path)))
    assert all(torch.equal(value, students[1][key]) for key, value in students[0].items())


def test_a_run_is_not_continued_with_another_prior(
    tiny_teacher: Path, priors: dict[str, Path], tmp_path: Path
) -> None:
    run(tiny_teacher, tmp_path / "run", priors["plain"], budget="30 passes")
    with pytest.raises(ConfigurationError, match="prior_sha256"):
        run(tiny_teacher, tmp_path / "run", priors["poor"], budget="30 passes")


# -- what is refused -------------------------------------------------------------------------------


REFUSED: dict[str, tuple[dict[str, Any], type[GenKDError], str]] = {
    "another-method": ({"method": "dafl"}, UsageError, "dafl reads no --prior"),
    "genkd-by-name": ({"method": "genkd"}, UsageError, "genkd reads no --prior"),
    "another-method-as-a-key": (
        {"overrides": {"method": "nayer"}},
        UsageError,
        "both frozen-prior and",
    ),
    "a-key-without-effect": (
        {"overrides": {"generator_steps": "3"}},
        ConfigurationError,
        "does not read",
    ),
    "pathwise": (
        {"overrides": {"policy_gradient": "pathwise"}},
        ConfigurationError,
        "asks the teacher only",
    ),
    "the-method-without-a-prior": (
        {"prior": None, "method": "frozen-prior"},
        UsageError,
        "public generative model",
    ),
}


@pytest.mark.parametrize("name", list(REFUSED))
def test_what_does_not_fit_together_is_refused_before_anything_begins(
    tiny_teacher: Path, priors: dict[str, Path], tmp_path: Path, name: str
) -> None:
    arguments, kind, why = REFUSED[name]
    with pytest.raises(kind, match=why):
        run(tiny_teacher, tmp_path / "run", **{"prior": priors["plain"], **arguments})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("method", ["genkd", "noise", "genkd-pixel", "nayer"])
def test_a_black_box_without_a_prior_is_refused_with_the_way_out(
    box: Path, tmp_path: Path, method: str
) -> None:
    with pytest.raises(UsageError, match="needs gradients") as caught:
        distill(teacher=box, out=tmp_path / "run", method=method)
    assert "--prior FILE" in caught.value.hint
    assert not (tmp_path / "run").exists()


def test_a_pixel_ebm_has_no_latents(tiny_teacher: Path, tmp_path: Path) -> None:
    card = GenerativeCard("pixel-ebm", 0, 0, 1, SIDE, SIDE, 4)
    model = GenerativeModel(card, torch.Generator().manual_seed(0))
    save_generative_model(tmp_path / "pixels.safetensors", model)
    with pytest.raises(InputFileRefused, match="no latents that could be steered"):
        run(tiny_teacher, tmp_path / "run", tmp_path / "pixels.safetensors")


def test_channels_that_cannot_be_converted_are_refused(tiny_teacher: Path, tmp_path: Path) -> None:
    card = GenerativeCard("vae", 4, 0, 2, SIDE, SIDE, 4)
    image = InputCard(SIDE, SIDE, 3, (0.5,) * 3, (0.5,) * 3)
    with pytest.raises(InputFileRefused, match="2 channels, the teacher takes 3"):
        frozen_prior._require_convertible(card, image)


def test_a_file_that_is_no_prior_is_refused(tiny_teacher: Path, tmp_path: Path) -> None:
    save_file({"w": torch.zeros(3)}, tmp_path / "other.safetensors")
    for path in (tiny_teacher, tmp_path / "other.safetensors", tmp_path / "missing.safetensors"):
        with pytest.raises(InputFileRefused):
            run(tiny_teacher, tmp_path / "run", path)
    assert not (tmp_path / "run").exists()


COMMANDS = {
    "another-method": (["--prior", "{prior}", "--method", "dafl"], 2, "reads no --prior"),
    "no-prior": (["--method", "frozen-prior"], 2, "hint: add --prior FILE"),
    "no-such-file": (["--prior", "missing.safetensors"], 4, "does not exist"),
    "a-teacher-as-prior": (["--prior", "{teacher}"], 4, "is a classifier, no generative model"),
    "a-black-box-without-it": (["--teacher", "{box}"], 2, "hint: add --prior FILE"),
    "a-black-box-of-an-architecture": (
        ["--teacher", "{box}", "--arch", "resnet8", "--prior", "{prior}"],
        2,
        "which holds its network itself",
    ),
}


@pytest.mark.parametrize("name", list(COMMANDS))
def test_the_command_says_in_two_lines_what_is_wrong(
    tiny_teacher: Path,
    box: Path,
    priors: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
) -> None:
    from node.cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    flags, code, message = COMMANDS[name]
    paths = {"prior": priors["plain"], "teacher": tiny_teacher, "box": box}
    given = [flag.format(**paths) for flag in flags]
    teacher = [] if "--teacher" in given else ["--teacher", str(tiny_teacher)]
    assert main(["distill", "--out", "run", *teacher, *given]) == code
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said
    assert not (tmp_path / "run").exists()


# -- the parts -------------------------------------------------------------------------------------


def test_images_are_resized_and_their_channels_converted() -> None:
    colour = InputCard(4, 6, 3, (0.5,) * 3, (0.5,) * 3)
    gray = InputCard(8, 8, 1, (0.5,), (0.5,))
    flat = torch.full((2, 1, 8, 8), 0.25)
    assert torch.allclose(fit_images(flat, colour), torch.full((2, 3, 4, 6), 0.25), atol=1e-6)
    coloured = torch.tensor([0.0, 0.3, 0.9]).view(1, 3, 1, 1).expand(2, 3, 8, 8)
    assert torch.allclose(fit_images(coloured, gray), torch.full((2, 1, 8, 8), 0.4))
    assert fit_images(flat, gray) is flat or torch.equal(fit_images(flat, gray), flat)


def test_found_latents_come_back_with_their_class_and_value_evenly() -> None:
    found = FoundLatents(3, 2, torch.device("cpu"))
    labels = torch.tensor([0, 0, 0, 0, 2])
    found.add(torch.arange(10.0).view(5, 2), labels, torch.arange(5.0))
    latents, drawn, values = found.draw(400, torch.Generator().manual_seed(0))
    assert torch.bincount(drawn, minlength=3).tolist() == [200, 0, 200]
    assert torch.equal(latents[:, 0], 2 * values)
    assert set(values[drawn == 0].tolist()) == {0.0, 1.0, 2.0, 3.0}


def test_found_latents_make_room_for_new_ones() -> None:
    found = FoundLatents(2, 1, torch.device("cpu"))
    many = found.capacity + 10
    found.add(torch.full((many, 1), 1.0), torch.zeros(many).long(), torch.full((many,), 1.0))
    assert found.counts().tolist() == [found.capacity, 0]
    for _ in range(2):
        half = found.capacity // 2
        found.add(torch.full((half, 1), 2.0), torch.zeros(half).long(), torch.full((half,), 2.0))
    latents, _, values = found.draw(500, torch.Generator().manual_seed(0))
    assert set(values.tolist()) == {2.0}
    assert set(latents.flatten().tolist()) == {2.0}


def test_a_checkpoint_of_another_model_is_refused(
    teacher: Teacher, priors: dict[str, Path]
) -> None:
    state = synthesiser_of(teacher, priors["labelled"]).state_dict()
    with pytest.raises(InputFileRefused, match="another method or prior"):
        synthesiser_of(teacher, priors["plain"]).load_state_dict(state)
