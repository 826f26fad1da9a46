"""Priors: what they draw, that they come back as they were saved, and which files are refused."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from genkd.canonical import canonical_json
from genkd.errors import ConfigurationError, InputFileRefused, UsageError
from genkd.generative_card import generative_card_from_json, generative_card_to_json
from genkd.generative_model import (
    CARD_KEY,
    FAMILIES,
    Family,
    GenerativeCard,
    GenerativeModel,
    load_generative_model,
    save_generative_model,
)
from genkd.teacher import load_teacher
from genkd.weights import write_model

WITH_DECODER: tuple[Family, ...] = ("vae", "gan", "latent-ebm")


def card_of(family: Family, num_classes: int = 3) -> GenerativeCard:
    latent_dim = 0 if family == "pixel-ebm" else 5
    return GenerativeCard(family, latent_dim, num_classes, 1, 18, 11, 4, "stripes")


def model_of(family: Family, num_classes: int = 3) -> GenerativeModel:
    model = GenerativeModel(card_of(family, num_classes), torch.Generator().manual_seed(0))
    if family == "pixel-ebm":
        random = torch.Generator().manual_seed(1)
        model.replay.random_(0, 256, generator=random)
    return model


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "prior.safetensors"
    save_generative_model(path, model_of("vae"))
    return path


# -- what they draw --------------------------------------------------------------------------------


@pytest.mark.parametrize("num_classes", [0, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_prior_comes_back_as_it_was_saved_and_draws_the_same(
    family: Family, num_classes: int, tmp_path: Path
) -> None:
    model = model_of(family, num_classes)
    path = tmp_path / "prior.safetensors"
    save_generative_model(path, model)
    loaded = load_generative_model(path)
    assert loaded.card == model.card
    assert loaded.sha256 is not None
    labels = loaded.draw_labels(7, seeded())
    drawn = loaded.sample(labels, seeded(1))
    assert torch.equal(drawn, model.eval().sample(labels, seeded(1)))
    assert drawn.shape == (7, 1, 18, 11)
    assert drawn.dtype == torch.float32
    assert 0 <= drawn.min() <= drawn.max() <= 1
    assert not torch.equal(drawn, loaded.sample(labels, seeded(2)))


@pytest.mark.parametrize("family", WITH_DECODER)
def test_images_are_differentiable_in_the_latents_and_no_weight_learns(family: Family) -> None:
    model = model_of(family).freeze()
    latents = torch.randn(4, 5, generator=seeded(), requires_grad=True)
    images = model.decode(latents, torch.tensor([0, 1, 2, 0]))
    assert 0 <= images.min() <= images.max() <= 1
    images.sum().backward()  # type: ignore[no-untyped-call]
    assert latents.grad is not None
    assert latents.grad.abs().sum(1).min() > 0
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("family", WITH_DECODER)
def test_the_label_and_the_latent_both_matter(family: Family) -> None:
    model = model_of(family).freeze()
    latents = model.sample_latents(torch.tensor([1, 1]), seeded())
    first, second = model.decode(latents[:1].repeat(2, 1), torch.tensor([0, 1]))
    assert not torch.allclose(first, second)
    first, second = model.decode(latents, torch.tensor([1, 1]))
    assert not torch.allclose(first, second)


def test_the_pixel_ebm_has_nothing_to_decode() -> None:
    model = model_of("pixel-ebm")
    with pytest.raises(ConfigurationError, match="no latents to decode"):
        model.decode(torch.zeros(1, 5), torch.zeros(1, dtype=torch.int64))
    with pytest.raises(ConfigurationError, match="no latents"):
        model.sample_latents(torch.zeros(1, dtype=torch.int64), seeded())


def test_the_pixel_ebm_starts_from_the_replay_images_of_the_class_and_climbs() -> None:
    model = model_of("pixel-ebm").freeze()
    energy = model.pixel_energy
    assert energy is not None
    for label in range(3):
        model.replay[label * model.chains : (label + 1) * model.chains] = 100 * label
    labels = torch.tensor([0, 1, 2])
    start = model.sample(labels, seeded(), steps=0)
    assert torch.equal((255 * start).round()[:, 0, 0, 0], torch.tensor([0.0, 100.0, 200.0]))
    end = model.sample(labels, seeded(), steps=60)
    with torch.no_grad():
        climb = energy(end) - energy(start)
    assert climb[range(3), labels].min() > 0


def test_a_prior_with_classes_asks_for_labels_and_one_without_does_not() -> None:
    latents = torch.zeros(2, 5)
    with pytest.raises(ConfigurationError, match="3 classes"):
        model_of("vae").decode(latents)
    assert model_of("vae", 0).decode(latents).shape == (2, 1, 18, 11)


def test_labels_are_of_all_classes_and_of_one_without_classes() -> None:
    drawn = model_of("vae").draw_labels(100, seeded())
    assert drawn.dtype == torch.int64
    assert set(drawn.tolist()) == {0, 1, 2}
    assert set(model_of("vae", 0).draw_labels(100, seeded()).tolist()) == {0}


def test_a_loaded_prior_cannot_be_woken(saved: Path) -> None:
    model = load_generative_model(saved).train()
    assert not any(module.training for module in model.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_initial_weights_leave_the_global_random_state_alone() -> None:
    before = torch.random.get_rng_state()
    for family in FAMILIES:
        first, second = model_of(family), model_of(family)
        assert all(
            torch.equal(tensor, second.state_dict()[name])
            for name, tensor in first.state_dict().items()
        )
    assert torch.equal(before, torch.random.get_rng_state())


# -- files -----------------------------------------------------------------------------------------


def rewritten(path: Path, change: Callable[[dict[str, object]], object]) -> None:
    """The prior of `path` with another card."""
    model = load_generative_model(path)
    card = generative_card_to_json(model.card)
    write_model(path, model.state_dict(), {"v": 1, CARD_KEY: change(card)})


HOSTILE_CARDS: dict[str, Callable[[dict[str, object]], object]] = {
    "not-an-object": lambda card: [card],
    "another-version": lambda card: {**card, "v": 2},
    "true-for-a-version": lambda card: {**card, "v": True},
    "a-field-more": lambda card: {**card, "code": "import os"},
    "a-field-less": lambda card: {k: v for k, v in card.items() if k != "height"},
    "an-unknown-family": lambda card: {**card, "family": "diffusion"},
    "a-text-for-a-number": lambda card: {**card, "height": "18"},
    "true-for-a-number": lambda card: {**card, "channels": True},
    "a-huge-image": lambda card: {**card, "height": 10**9},
    "huge-networks": lambda card: {**card, "base_channels": 10**6},
    "many-classes": lambda card: {**card, "num_classes": 10**7},
    "a-negative-size": lambda card: {**card, "width": -11},
    "one-class": lambda card: {**card, "num_classes": 1},
    "no-latents": lambda card: {**card, "latent_dim": 0},
    "control-characters": lambda card: {**card, "description": "a\x1b[2Jb"},
    "a-long-text": lambda card: {**card, "description": "a" * 10_000},
    "other-sizes-than-the-tensors": lambda card: {**card, "latent_dim": 6},
    "the-largest-sizes": lambda card: {
        **card,
        **{"latent_dim": 1024, "base_channels": 64, "num_classes": 1000, "height": 512},
    },
    "another-family": lambda card: {**card, "family": "latent-ebm"},
}


@pytest.mark.parametrize("name", HOSTILE_CARDS)
def test_a_prior_whose_card_lies_is_refused(name: str, saved: Path) -> None:
    rewritten(saved, HOSTILE_CARDS[name])
    with pytest.raises(InputFileRefused) as refused:
        load_generative_model(saved)
    assert "\n" not in str(refused.value)
    assert str(saved) in str(refused.value)
    assert refused.value.hint


def _extended(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def _header_of(path: Path, length: int) -> None:
    path.write_bytes(length.to_bytes(8, "little") + path.read_bytes()[8:])


def _nan(path: Path) -> None:
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    # The first tensors are int64 counters; the last four bytes are of a float32.
    assert len(data) > end
    path.write_bytes(data[:-4] + b"\0\0\xc0\x7f")


def _pickle(path: Path) -> None:
    torch.save({"weight": torch.zeros(1)}, path)


def _without_a_tensor(path: Path) -> None:
    model = load_generative_model(path)
    state = model.state_dict()
    del state["decoder.input.weight"]
    write_model(path, state, {"v": 1, CARD_KEY: generative_card_to_json(model.card)})


def _with_a_tensor_more(path: Path) -> None:
    model = load_generative_model(path)
    state = {**model.state_dict(), "hook": torch.zeros(3)}
    write_model(path, state, {"v": 1, CARD_KEY: generative_card_to_json(model.card)})


def _of_another_dtype(path: Path) -> None:
    model = load_generative_model(path)
    state = {name: tensor.double() for name, tensor in model.state_dict().items()}
    write_model(path, state, {"v": 1, CARD_KEY: generative_card_to_json(model.card)})


HOSTILE_FILES: dict[str, Callable[[Path], object]] = {
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "a-folder": lambda path: (path.unlink(), path.mkdir()),
    "truncated-in-the-header": lambda path: path.write_bytes(path.read_bytes()[:100]),
    "truncated-in-the-data": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "bytes-at-the-end": _extended,
    "a-header-of-terabytes": lambda path: _header_of(path, 2**42),
    "a-pickle": _pickle,
    "not-a-number": _nan,
    "a-tensor-less": _without_a_tensor,
    "a-tensor-more": _with_a_tensor_more,
    "doubles": _of_another_dtype,
}


@pytest.mark.parametrize("name", HOSTILE_FILES)
def test_a_broken_file_is_refused_in_one_line(name: str, saved: Path) -> None:
    HOSTILE_FILES[name](saved)
    with pytest.raises(InputFileRefused) as refused:
        load_generative_model(saved)
    assert "\n" not in str(refused.value)
    assert refused.value.hint


def test_a_file_of_many_gigabytes_is_refused_unread(saved: Path) -> None:
    with saved.open("r+b") as file:
        file.truncate(2**33)  # a hole: no disk is taken
    with pytest.raises(InputFileRefused, match="more than"):
        load_generative_model(saved)


def test_a_classifier_is_no_prior_and_a_prior_no_classifier(
    tiny_teacher: Path, saved: Path
) -> None:
    with pytest.raises(InputFileRefused, match="is a classifier, no generative model"):
        load_generative_model(tiny_teacher)
    with pytest.raises(InputFileRefused):
        load_teacher(saved)


def test_a_diverged_model_is_not_written(tmp_path: Path) -> None:
    model = model_of("gan")
    assert model.decoder is not None
    with torch.no_grad():
        model.decoder.input.weight[0, 0] = torch.nan
    with pytest.raises(InputFileRefused, match="NaN"):
        save_generative_model(tmp_path / "prior.safetensors", model)
    assert list(tmp_path.iterdir()) == []


# -- cards -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_a_card_comes_back_from_its_json(family: Family) -> None:
    card = card_of(family)
    text = canonical_json(generative_card_to_json(card))
    assert generative_card_from_json(json.loads(text), "prior") == card


@pytest.mark.parametrize(
    "change",
    [
        {"family": "pixel-ebm"},
        {"latent_dim": 0},
        {"latent_dim": 2000},
        {"num_classes": 1},
        {"num_classes": -1},
        {"height": 7},
        {"channels": 0},
        {"base_channels": 0},
        {"description": "two\nlines"},
    ],
    ids=lambda change: "-".join(f"{k}-{v!r}" for k, v in change.items()),
)
def test_a_card_of_an_impossible_model_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(UsageError) as refused:
        dataclasses.replace(card_of("vae"), **change)  # type: ignore[arg-type]
    assert refused.value.hint
