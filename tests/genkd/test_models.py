"""Networks: known sizes, the images they take, names that mean nothing, random numbers."""

import pytest
import torch
from torch import nn

from genkd.errors import UsageError
from genkd.fingerprint import expected_by, find_architectures
from genkd.models import ModelSpec, build_model, build_on_meta, builder_of, known_architectures

OURS = [name for name in known_architectures() if ":" not in name]


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(
    ("spec", "count"),
    [
        (ModelSpec("resnet8", 10, 3), 78_042),
        (ModelSpec("resnet8-half", 10, 1), 88 + 1_184 + 3_680 + 14_528 + 330),  # stage by stage
        (ModelSpec("wrn16-2", 10, 3), 691_674),  # 0.7 M in the literature
        (ModelSpec("wrn40-2", 10, 3), 2_243_546),  # 2.2 M, Zagoruyko and Komodakis 2016
        (ModelSpec("lenet5", 10, 1), 61_706),  # 6*26 + 16*151 + 120*401 + 84*121 + 10*85
        # 11.2 M in the literature: 7x7 for 3x3 in the first layer, 1,000 for 10 classes in the last
        (ModelSpec("resnet18-cifar", 10, 3), 11_689_512 - 64 * 3 * (49 - 9) - 990 * 513),
        (ModelSpec("torchvision:resnet18", 1000, 3), 11_689_512),  # torchvision's own table
    ],
    ids=lambda value: getattr(value, "architecture", ""),
)
def test_network_has_the_published_number_of_parameters(spec: ModelSpec, count: int) -> None:
    assert parameters(build_on_meta(spec)) == count


@pytest.mark.parametrize("side", [28, 32, 64, 224])
@pytest.mark.parametrize("architecture", ["resnet8-quarter", "wrn10-1", "lenet5", "lenet5-bn-half"])
@pytest.mark.parametrize("channels", [1, 3])
def test_own_networks_take_gray_and_colour_of_common_sizes(
    architecture: str, side: int, channels: int
) -> None:
    network = build_model(ModelSpec(architecture, 7, channels)).eval()
    with torch.no_grad():
        logits = network(torch.zeros(2, channels, side, side))
    assert logits.shape == (2, 7)
    assert logits.isfinite().all()


def test_a_resnet_for_small_images_keeps_their_size_to_the_second_stage() -> None:
    network = build_model(ModelSpec("resnet34-cifar", 7, 1)).eval()
    seen: list[torch.Size] = []
    network.layer1.register_forward_hook(lambda _module, _inputs, out: seen.append(out.shape))  # type: ignore[union-attr]
    with torch.no_grad():
        assert network(torch.zeros(1, 1, 32, 32)).shape == (1, 7)
    assert seen == [(1, 64, 32, 32)]


@pytest.mark.parametrize("architecture", OURS)
def test_every_own_name_builds_with_the_width_it_says(architecture: str) -> None:
    head = expected_by(ModelSpec(architecture, 11, 2))
    assert head.shapes[head.head][0] == 11
    assert head.stem is not None
    assert head.shapes[head.stem][1] == 2


@pytest.mark.parametrize(
    "name",
    [
        *(
            "",
            "resnet",
            "resnet9",
            "resnet2",
            "resnet18",
            "resnet50-cifar",
            "resnet8-cifar",
            "resnet8-third",
            "resnet8-half-half",
        ),
        *(
            "resnet1208",
            "resnet99999",
            "wrn16",
            "wrn16-0",
            "wrn16-99",
            "wrn17-2",
            "lenet",
            "RESNET8",
        ),
        *("torchvision:", "torchvision:no_such", "torchvision:fcn_resnet50", "timm:no_such", "x:y"),
        *("../resnet8", "resnet8\n", "torchvision:resnet18\n"),
    ],
    ids=ascii,
)
def test_name_of_no_architecture_is_a_usage_error_with_a_hint(name: str) -> None:
    with pytest.raises(UsageError) as caught:
        builder_of(ModelSpec(name, 10, 3))
    assert caught.value.hint
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("classes", "channels"), [(1, 3), (0, 3), (10**6, 3), (10, 0), (10, 65)])
def test_impossible_dimensions_are_refused(classes: int, channels: int) -> None:
    with pytest.raises(UsageError):
        ModelSpec("resnet8", classes, channels)


def test_same_generator_seed_gives_the_same_weights_and_leaves_the_global_one_alone() -> None:
    spec = ModelSpec("resnet8-quarter", 10, 1)
    before = torch.random.get_rng_state()
    first, second, other = (
        build_model(spec, generator=torch.Generator().manual_seed(seed)).state_dict()["fc.weight"]
        for seed in (5, 5, 6)
    )
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_meta_network_holds_no_storage_even_when_it_is_enormous() -> None:
    network = build_on_meta(ModelSpec("wrn40-20", 100_000, 64))
    assert {parameter.device.type for parameter in network.parameters()} == {"meta"}
    assert parameters(network) > 200_000_000


@pytest.mark.parametrize("architecture", known_architectures())
def test_every_known_architecture_is_found_by_its_names_and_shapes(architecture: str) -> None:
    """This also holds the table of tensor counts against the networks themselves."""
    spec = ModelSpec(architecture, 9, 3)
    assert find_architectures(expected_by(spec).shapes) == [spec]


def test_changed_shape_is_found_as_nothing() -> None:
    shapes = dict(expected_by(ModelSpec("resnet8", 9, 3)).shapes)
    shapes["layer1.0.conv1.weight"] = (16, 16, 5, 5)
    assert find_architectures(shapes) == []
    assert find_architectures({}) == []
    assert find_architectures({"fc.weight": (10, 5)}) == []
