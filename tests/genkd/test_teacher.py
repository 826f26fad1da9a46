"""A person's own teacher: loaded exactly, frozen for good, or refused with what to do next."""

import json
import struct
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torchvision
from torch import Tensor, nn

from genkd.card import InputCard, ModelCard, ModelSpec, card_to_json
from genkd.digest import sha256_file
from genkd.errors import ConfigurationError, GenKDError, InputFileRefused, UsageError
from genkd.models import build_model
from genkd.teacher import Teacher, inspect_file, load_teacher
from genkd.weights import FileLimits, LoadedTensors, read_tensors, write_model

GRAY = InputCard(32, 32, 1, (0.286,), (0.353,))
COLOUR = InputCard(32, 32, 3, (0.5, 0.4, 0.3), (0.25, 0.25, 0.2))
SPEC = ModelSpec("resnet8-quarter", 9, 1)
CARD = ModelCard(SPEC, GRAY, tuple("abcdefghi"), "a test")


def trained_like(network: nn.Module, seed: int = 0) -> nn.Module:
    """Give BatchNorm layers statistics that are not those of a fresh network."""
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            module.running_mean.normal_(0, 0.1, generator=generator)
            assert module.running_var is not None
            module.running_var.uniform_(0.5, 1.5, generator=generator)
    return network.eval()


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return trained_like(build_model(SPEC, generator=torch.Generator().manual_seed(1)))


@pytest.fixture(scope="module")
def state(network: nn.Module) -> dict[str, Tensor]:
    return dict(network.state_dict())


@pytest.fixture(scope="module")
def resnet18() -> nn.Module:
    return trained_like(torchvision.models.resnet18(weights=None, num_classes=10))


def save(path: Path, state: Mapping[str, Tensor], card: ModelCard | None = None) -> Path:
    """A file as another program writes it, with or without a card."""
    metadata = {"format": "pt"}
    if card is not None:
        metadata["genkd"] = json.dumps({"v": 1, "card": card_to_json(card)})
    safetensors.torch.save_file(
        {n: t.contiguous().clone() for n, t in state.items()}, path, metadata
    )
    return path


@pytest.fixture
def carded(tmp_path: Path, state: dict[str, Tensor]) -> Path:
    return save(tmp_path / "teacher.safetensors", state, CARD)


@pytest.fixture
def bare(tmp_path: Path, state: dict[str, Tensor]) -> Path:
    return save(tmp_path / "bare.safetensors", state)


@pytest.fixture
def images() -> Tensor:
    return torch.rand(4, 1, 32, 32, generator=torch.Generator().manual_seed(2))


def check(teacher: Teacher, network: nn.Module, images: Tensor, card: InputCard) -> None:
    mean, std = (torch.tensor(v).reshape(1, -1, 1, 1) for v in (card.mean, card.std))
    with torch.no_grad():
        assert torch.equal(teacher(images), network((images - mean) / std))


# ---------------------------------------------------------------- what must work


def test_file_with_a_card_gives_the_logits_of_the_plain_network(
    carded: Path, network: nn.Module, images: Tensor
) -> None:
    teacher = load_teacher(carded)
    check(teacher, network, images, GRAY)
    assert teacher.card == CARD
    assert teacher.sha256 == sha256_file(carded)


def test_file_this_project_wrote_is_read(
    tmp_path: Path, network: nn.Module, state: dict[str, Tensor], images: Tensor
) -> None:
    path = tmp_path / "student.safetensors"
    write_model(path, state, {"v": 1, "card": card_to_json(CARD)})
    check(load_teacher(path), network, images, GRAY)


def test_torchvision_resnet18_of_a_person_is_loaded_by_its_name(
    tmp_path: Path, resnet18: nn.Module
) -> None:
    path = save(tmp_path / "mine.safetensors", resnet18.state_dict())
    teacher = load_teacher(path, architecture="torchvision:resnet18", input_card=COLOUR)
    check(teacher, resnet18, torch.rand(2, 3, 32, 32), COLOUR)
    assert teacher.card.spec == ModelSpec("torchvision:resnet18", 10, 3)
    assert len(teacher.batch_norms()) == 20


@pytest.mark.parametrize(
    ("architecture", "side"),
    [("lenet5", 28), ("lenet5-bn-half", 64), ("wrn10-1", 48), ("torchvision:squeezenet1_1", 224)],
)
def test_other_kinds_with_and_without_batch_norm_are_loaded(
    tmp_path: Path, architecture: str, side: int
) -> None:
    network = trained_like(build_model(ModelSpec(architecture, 5, 3)))
    card = InputCard(side, side, 3, COLOUR.mean, COLOUR.std)
    path = save(tmp_path / "mine.safetensors", network.state_dict())
    teacher = load_teacher(path, architecture=architecture, input_card=card)
    check(teacher, network, torch.rand(2, 3, side, side), card)
    wanted = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(teacher.batch_norms()) == len(wanted)
    assert teacher.card.spec.num_classes == 5


def test_card_in_a_file_beside_it_is_read_and_goes_before_the_metadata(
    carded: Path, network: nn.Module, images: Tensor
) -> None:
    other = ModelCard(SPEC, InputCard(32, 32, 1, (0.0,), (1.0,)))
    carded.with_suffix(".json").write_text(json.dumps(card_to_json(other)))
    teacher = load_teacher(carded)
    assert teacher.card == other
    check(teacher, network, images, other.input)


def test_flags_go_before_every_card(carded: Path, network: nn.Module, images: Tensor) -> None:
    flag = InputCard(32, 32, 1, (0.1,), (0.2,))
    check(load_teacher(carded, input_card=flag), network, images, flag)


def test_timm_configuration_names_the_architecture(
    bare: Path, monkeypatch: pytest.MonkeyPatch, network: nn.Module, images: Tensor
) -> None:
    """With our network in the place of timm's, which need not be installed."""
    bare.with_name("config.json").write_text(
        '{"architecture": "resnet8-quarter", "num_classes": 9, "model_args": {"in_chans": 1},'
        ' "pretrained_cfg": {"url": "http://example.invalid", "crop_pct": 0.9}}'
    )
    monkeypatch.setattr(
        "genkd.models._timm_builder",
        lambda name, spec: lambda: build_model(ModelSpec(name, spec.num_classes, spec.in_channels)),
    )
    teacher = load_teacher(bare, input_card=GRAY)
    assert teacher.card.spec.architecture == "timm:resnet8-quarter"
    check(teacher, network, images, GRAY)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "_orig_mod.module."])
def test_names_of_data_parallel_and_compiled_models_are_understood(
    tmp_path: Path, state: dict[str, Tensor], network: nn.Module, images: Tensor, prefix: str
) -> None:
    path = save(tmp_path / "t.safetensors", {prefix + n: t for n, t in state.items()}, CARD)
    check(load_teacher(path), network, images, GRAY)


@pytest.mark.parametrize("counters", ["missing", "as floats"])
def test_counters_of_batch_norm_do_not_matter(
    tmp_path: Path, state: dict[str, Tensor], network: nn.Module, images: Tensor, counters: str
) -> None:
    changed = {
        name: tensor.float() if name.endswith("num_batches_tracked") else tensor
        for name, tensor in state.items()
        if counters != "missing" or not name.endswith("num_batches_tracked")
    }
    path = save(tmp_path / "t.safetensors", changed, CARD)
    check(load_teacher(path), network, images, GRAY)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_become_float32(
    tmp_path: Path, state: dict[str, Tensor], images: Tensor, dtype: torch.dtype
) -> None:
    cast = {n: t.to(dtype) if t.is_floating_point() else t for n, t in state.items()}
    teacher = load_teacher(save(tmp_path / "t.safetensors", cast, CARD))
    reference = build_model(SPEC).eval()
    reference.load_state_dict(
        {n: t.float() if t.is_floating_point() else t for n, t in cast.items()}
    )
    assert {p.dtype for p in teacher.parameters()} == {torch.float32}
    check(teacher, reference, images, GRAY)


def test_teacher_cannot_be_woken(carded: Path, images: Tensor) -> None:
    teacher = load_teacher(carded)
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    outside = nn.Sequential(teacher)
    outside.train()
    teacher.train()
    images.requires_grad_(True)
    teacher(images).sum().backward()
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert all(torch.equal(t, before[n]) for n, t in teacher.state_dict().items())
    assert images.grad is not None
    assert images.grad.abs().sum() > 0  # gradients still reach the images


def test_normalisation_moves_with_the_module(carded: Path) -> None:
    teacher = load_teacher(carded).to("meta")
    assert teacher.mean.device.type == teacher.std.device.type == "meta"
    assert teacher.mean.shape == (1, 1, 1, 1)


def test_loading_leaves_the_global_random_numbers_alone(carded: Path) -> None:
    before = torch.random.get_rng_state()
    load_teacher(carded)
    assert torch.equal(torch.random.get_rng_state(), before)


# ---------------------------------------------------------------- what is refused


def refused(kind: type[GenKDError], path: Path, **arguments: Any) -> GenKDError:
    with pytest.raises(kind) as caught:
        load_teacher(path, **arguments)
    assert "\n" not in str(caught.value) + caught.value.hint
    return caught.value


def test_bare_file_is_recognised_and_the_person_confirms(
    tmp_path: Path, resnet18: nn.Module
) -> None:
    path = save(tmp_path / "mine.safetensors", resnet18.state_dict())
    error = refused(ConfigurationError, path, input_card=COLOUR)
    assert "looks like torchvision:resnet18, num_classes=10" in str(error)
    assert "--arch torchvision:resnet18 --num-classes 10" in error.hint


def test_file_of_an_unknown_network_is_said(tmp_path: Path) -> None:
    path = save(tmp_path / "mine.safetensors", nn.Linear(4, 3).state_dict())
    assert "none known here" in str(refused(ConfigurationError, path))


def test_missing_input_card_names_the_flags(bare: Path) -> None:
    error = refused(ConfigurationError, bare, architecture="resnet8-quarter")
    assert "which images it takes" in str(error)
    assert "--input-size 32x32 --mean 0.5 --std 0.5" in error.hint


def test_wrong_number_of_classes_is_said_with_the_right_one(bare: Path) -> None:
    error = refused(
        InputFileRefused, bare, architecture="resnet8-quarter", num_classes=10, input_card=GRAY
    )
    assert "has 9 classes, not 10" in str(error)
    assert "--num-classes 9" in error.hint


def test_wrong_number_of_channels_is_said(bare: Path) -> None:
    error = refused(InputFileRefused, bare, architecture="resnet8-quarter", input_card=COLOUR)
    assert "takes images of 1 channel(s), not 3" in str(error)


def test_wrong_architecture_proposes_the_right_one(bare: Path) -> None:
    for wrong in ("resnet8", "resnet14", "torchvision:vgg11"):
        error = refused(InputFileRefused, bare, architecture=wrong, input_card=GRAY)
        assert f"is not {wrong}" in str(error)
        assert "--arch resnet8-quarter" in error.hint


def test_architecture_nobody_knows_is_a_usage_error_and_in_a_card_a_bad_file(
    bare: Path, tmp_path: Path, state: dict[str, Tensor]
) -> None:
    refused(UsageError, bare, architecture="resnet9000", input_card=GRAY)
    card = ModelCard(ModelSpec("resnet9000", 9, 1), GRAY)
    error = refused(InputFileRefused, save(tmp_path / "c.safetensors", state, card))
    assert "no architecture is called 'resnet9000'" in str(error)


def test_missing_and_extra_tensors_are_named(tmp_path: Path, state: dict[str, Tensor]) -> None:
    changed = dict(state)
    changed["fc.scale"] = changed.pop("fc.bias")
    error = refused(InputFileRefused, save(tmp_path / "t.safetensors", changed, CARD))
    assert "missing: fc.bias; extra: fc.scale" in str(error)


def test_long_differences_are_cut_short(tmp_path: Path, resnet18: nn.Module) -> None:
    path = save(tmp_path / "t.safetensors", resnet18.state_dict(), CARD)
    assert len(str(refused(InputFileRefused, path))) < 400 + len(str(path))


def test_saved_without_batch_norm_statistics_is_explained(
    tmp_path: Path, network: nn.Module
) -> None:
    path = save(tmp_path / "t.safetensors", dict(network.named_parameters()), CARD)
    assert "state_dict()" in refused(InputFileRefused, path).hint


def test_names_behind_an_attribute_are_explained(tmp_path: Path, state: dict[str, Tensor]) -> None:
    path = save(tmp_path / "t.safetensors", {f"model.{n}": t for n, t in state.items()}, CARD)
    assert "every name begins with 'model.'" in refused(InputFileRefused, path).hint


def test_quantised_weights_are_refused(tmp_path: Path, state: dict[str, Tensor]) -> None:
    changed = {**state, "fc.weight": torch.ones(9, 16, dtype=torch.int8)}
    error = refused(InputFileRefused, save(tmp_path / "t.safetensors", changed, CARD))
    assert "fc.weight is stored as I8" in str(error)


def nan(state: dict[str, Tensor]) -> None:
    state["fc.weight"] = torch.full((9, 16), float("nan"))


def beyond_float32(state: dict[str, Tensor]) -> None:
    state["fc.weight"] = torch.full((9, 16), 1e300, dtype=torch.float64)


def negative_variance(state: dict[str, Tensor]) -> None:
    state["bn1.running_var"] = torch.full((4,), -1.0)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (nan, "fc.weight holds NaN"),
        (beyond_float32, "fc.weight does not fit into float32"),
        (negative_variance, "gives NaN or infinite logits"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_weights_that_give_no_numbers_are_refused(
    tmp_path: Path,
    state: dict[str, Tensor],
    damage: Callable[[dict[str, Tensor]], None],
    message: str,
) -> None:
    changed = dict(state)
    damage(changed)
    error = refused(InputFileRefused, save(tmp_path / "t.safetensors", changed, CARD))
    assert message in str(error)


def test_file_swapped_between_header_and_weights_is_refused(
    carded: Path, state: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    def swap_and_read(path: Path, limits: FileLimits) -> LoadedTensors:
        save(path, {**state, "fc.bias": torch.ones(1)})
        return read_tensors(path, limits)

    monkeypatch.setattr("genkd.teacher.read_tensors", swap_and_read)
    assert "changed while it was being read" in str(refused(InputFileRefused, carded))


def test_images_too_small_for_the_network_are_said(tmp_path: Path) -> None:
    network = torchvision.models.squeezenet1_1(weights=None, num_classes=4)
    path = save(tmp_path / "t.safetensors", network.state_dict())
    small = InputCard(4, 4, 3, COLOUR.mean, COLOUR.std)
    error = refused(
        ConfigurationError, path, architecture="torchvision:squeezenet1_1", input_card=small
    )
    assert "cannot take images of 3x4x4" in str(error)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("teacher.json", "{", "not valid JSON"),
        ("teacher.json", "[" * 5000, "not valid JSON"),
        ("teacher.json", "{}", "card is not valid"),
        ("teacher.json", '{"v": 1, "v": 1}', "stands twice"),
        ("teacher.json", " " * (2**20 + 1), "more than"),
        ("config.json", "{", "not valid JSON"),
        ("config.json", '{"architecture": "hf_hub:somebody/model"}', "architecture or model_args"),
        ("config.json", '{"architecture": "resnet18", "model_args": [1]}', "model_args"),
        ("config.json", '{"architecture": "resnet18", "model_args": {"act": "f"}}', "'act' is not"),
        ("config.json", '{"architecture": "resnet18", "num_classes": "9"}', "whole number"),
    ],
    ids=lambda value: value[:50],
)
def test_hostile_files_beside_the_teacher_are_refused(
    tmp_path: Path, state: dict[str, Tensor], name: str, text: str, message: str
) -> None:
    path = save(tmp_path / "teacher.safetensors", state)
    (tmp_path / name).write_text(text)
    error = refused(InputFileRefused, path)
    assert message in str(error)
    assert name in str(error)


def test_somebody_elses_configuration_is_ignored(bare: Path) -> None:
    bare.with_name("config.json").write_text('{"architectures": ["ResNet"], "seed": 0.5}')
    assert "looks like resnet8-quarter" in str(refused(ConfigurationError, bare))


def test_pickle_is_refused_without_being_opened(tmp_path: Path) -> None:
    path = tmp_path / "teacher.pt"
    torch.save({"a": torch.zeros(1)}, path)
    error = refused(InputFileRefused, path)
    assert "never opened" in error.hint
    assert "safetensors.torch.save_file" in error.hint


# ---------------------------------------------------------------- a person's own code


FACTORY = """
import torch
from torch import nn

class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        self.last = nn.Linear(4, 5)

    def forward(self, x):
        return self.last(self.body(x).flatten(1))

class Picky(Own):
    def forward(self, x):
        assert x.shape[-1] == 224, "Wrong image width!"

make = Own

def raises():
    raise RuntimeError("first line\\nsecond line")

def returns_text():
    return "text"

not_callable = 5
"""


@pytest.fixture
def own_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "own_networks_of_a_test.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "own_networks_of_a_test", raising=False)
    state = nn.Sequential()
    state.add_module("body", nn.Sequential(nn.Conv2d(1, 4, 3)))
    state.add_module("last", nn.Linear(4, 5))
    return save(tmp_path / "own.safetensors", state.state_dict())


def test_factory_of_a_person_is_used_when_allowed(own_code: Path, images: Tensor) -> None:
    teacher = load_teacher(
        own_code,
        factory="own_networks_of_a_test:make",
        allow_local_code=True,
        input_card=GRAY,
    )
    assert teacher.card.spec == ModelSpec("factory:own_networks_of_a_test:make", 5, 1)
    assert teacher(images).shape == (4, 5)
    assert teacher.batch_norms() == []


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"allow_local_code": False}, UsageError, "would run code"),
        ({"factory": "no_colon"}, UsageError, "is not module:function"),
        ({"factory": "no_such_module_at_all:make"}, ConfigurationError, "ModuleNotFoundError"),
        ({"factory": "own_networks_of_a_test:none"}, ConfigurationError, "AttributeError"),
        ({"factory": "own_networks_of_a_test:raises"}, ConfigurationError, "first line"),
        ({"factory": "own_networks_of_a_test:returns_text"}, ConfigurationError, "returned str"),
        ({"factory": "own_networks_of_a_test:not_callable"}, ConfigurationError, "TypeError"),
        (
            {"factory": "own_networks_of_a_test:Picky", "num_classes": 5},
            ConfigurationError,
            "cannot take images of 1x32x32: Wrong image width!",
        ),
        ({"num_classes": 6}, InputFileRefused, "no layer with 6 outputs"),
        ({"input_card": COLOUR}, ConfigurationError, "cannot take images"),
        ({"input_card": None}, ConfigurationError, "which images it takes"),
        ({"architecture": "resnet8"}, UsageError, "exclude each other"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_factory_that_fails_is_said_in_one_line(
    own_code: Path, arguments: dict[str, Any], kind: type[GenKDError], message: str
) -> None:
    usual: dict[str, Any] = {
        "factory": "own_networks_of_a_test:make",
        "allow_local_code": True,
        "input_card": GRAY,
    }
    assert message in str(refused(kind, own_code, **{**usual, **arguments}))


def test_no_code_runs_unless_allowed(own_code: Path) -> None:
    refused(UsageError, own_code, factory="own_networks_of_a_test:make", input_card=GRAY)
    assert "own_networks_of_a_test" not in sys.modules


# ---------------------------------------------------------------- inspection


def test_inspection_of_a_file_with_a_card_is_complete(carded: Path) -> None:
    seen = inspect_file(carded)
    assert (seen.architecture, seen.num_classes, seen.in_channels) == ("resnet8-quarter", 9, 1)
    assert seen.found_in == seen.input_found_in == "the file's metadata"
    assert seen.input == GRAY
    assert seen.missing == ()
    assert seen.problem is None
    assert seen.bytes == carded.stat().st_size
    assert seen.sha256 == sha256_file(carded)
    assert json.loads(json.dumps(seen.as_json()))["input"]["mean"] == [0.286]


def test_inspection_of_a_bare_file_says_what_it_looks_like_and_what_is_missing(
    tmp_path: Path, resnet18: nn.Module
) -> None:
    seen = inspect_file(save(tmp_path / "mine.safetensors", resnet18.state_dict()))
    assert (seen.architecture, seen.num_classes) == ("torchvision:resnet18", 10)
    assert seen.found_in == "names and shapes"
    assert seen.dtypes == {"F32": 102, "I64": 20}
    assert seen.tensors == 122
    assert seen.missing == (
        "--arch torchvision:resnet18 --num-classes 10",
        "--input-size 32x32 --mean 0.5 --std 0.5",
    )


def test_inspection_loads_no_weights(carded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("a tensor was loaded")

    monkeypatch.setattr(torch, "frombuffer", never)
    inspect_file(carded)


def test_inspection_of_a_mismatch_says_the_problem(carded: Path) -> None:
    assert "has 9 classes, not 4" in (inspect_file(carded, num_classes=4).problem or "")
    problem = inspect_file(carded, architecture="resnet20").problem or ""
    assert "is not resnet20" in problem


def test_inspection_of_an_unknown_network_asks_for_its_name(tmp_path: Path) -> None:
    seen = inspect_file(save(tmp_path / "mine.safetensors", nn.Linear(4, 3).state_dict()))
    assert seen.architecture is None
    assert seen.missing[0].startswith("--arch")


def test_inspection_shows_metadata_without_control_characters(tmp_path: Path) -> None:
    path = tmp_path / "mine.safetensors"
    safetensors.torch.save_file(
        {"a": torch.ones(1)}, path, {"\x1b[2Jkey": "\x1b[31mred\n", "long": "x" * 5000}
    )
    shown = inspect_file(path).metadata
    assert all(key.isprintable() and text.isprintable() for key, text in shown.items())
    assert len(shown["long"]) == 200


def test_inspection_refuses_nan(tmp_path: Path, state: dict[str, Tensor]) -> None:
    path = save(tmp_path / "t.safetensors", state, CARD)
    data = bytearray(path.read_bytes())
    data[-4:] = struct.pack("<f", float("nan"))
    path.write_bytes(data)
    with pytest.raises(InputFileRefused, match="NaN"):
        inspect_file(path)
