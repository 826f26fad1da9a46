"""The generator: any image size, one seed one network; label embeddings."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from genkd.errors import ConfigurationError
from genkd.generator import Generator, label_embeddings
from genkd.models import ModelSpec, build_model

EMBEDDINGS = torch.eye(3)
LABELS = torch.tensor([0, 1, 2, 1])


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def generator_network(
    seed: int = 0,
    *,
    channels: int = 1,
    size: tuple[int, int] = (8, 8),
    label_weight: float = 1.0,
) -> Generator:
    return Generator(
        6,
        EMBEDDINGS,
        channels=channels,
        height=size[0],
        width=size[1],
        base_channels=4,
        label_weight=label_weight,
        generator=seeded(seed),
    )


def latents(count: int = 4) -> Tensor:
    return torch.randn(count, 6, generator=seeded(5))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "size", [(8, 8), (9, 8), (28, 28), (32, 32), (33, 47), (64, 48), (224, 224)], ids=str
)
def test_images_have_the_exact_size_and_lie_in_the_unit_range(
    size: tuple[int, int], channels: int
) -> None:
    network = generator_network(channels=channels, size=size)
    images = network(latents(), LABELS)
    assert images.shape == (4, channels, *size)
    assert images.dtype == torch.float32
    assert float(images.detach().min()) >= 0
    assert float(images.detach().max()) <= 1


@pytest.mark.parametrize(
    ("size", "coarse"),
    [
        pytest.param((32, 32), (8, 8), id="a quarter"),
        pytest.param((28, 28), (7, 7), id="a quarter, odd"),
        pytest.param((30, 9), (8, 3), id="rounded up"),
        pytest.param((224, 224), (7, 7), id="large images start small all the same"),
    ],
)
def test_coarse_map(size: tuple[int, int], coarse: tuple[int, int]) -> None:
    assert generator_network(size=size).coarse == coarse


def test_images_depend_on_latent_and_on_class_from_the_start() -> None:
    network = generator_network().eval()
    z = latents()
    images = network(z, LABELS)
    for other in (network(z.flip(0), LABELS), network(z, (LABELS + 1) % 3)):
        assert ((images - other).abs().amax(dim=(1, 2, 3)) > 1e-4).all()


def test_smaller_label_weight_leaves_more_to_the_latent() -> None:
    z = latents(1).expand(3, -1)
    spreads = []
    for weight in (1.0, 0.1, 0.0):
        images = generator_network(label_weight=weight).eval()(z, torch.arange(3))
        spreads.append(float(images.detach().std(0).mean()))
    assert spreads[0] > spreads[1] > 1e-6 > spreads[2]


def test_embedding_and_its_label_mean_the_same() -> None:
    network = generator_network().eval()
    torch.testing.assert_close(network(latents(), LABELS), network(latents(), EMBEDDINGS[LABELS]))


def test_same_seed_same_network() -> None:
    first, second, other = (generator_network(seed) for seed in (1, 1, 2))
    images = first(latents(), LABELS)
    assert torch.equal(images, second(latents(), LABELS))
    assert not torch.equal(images, other(latents(), LABELS))


def test_reinitialising_forgets_everything() -> None:
    trained, fresh = generator_network(1), generator_network(2)
    optimiser = torch.optim.SGD(trained.parameters(), lr=1.0)
    trained(latents(), LABELS).sum().backward()
    optimiser.step()
    trained.reinitialise(seeded(2))
    states = trained.state_dict(), fresh.state_dict()
    assert states[0].keys() == states[1].keys()
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]), name


def test_every_parameter_learns() -> None:
    network = generator_network(channels=3, size=(16, 16))
    network(latents(), LABELS).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        # BatchNorm takes a constant out again, so the bias before it has no effect.
        assert float(parameter.grad.norm()) > 0 or name == "input.bias", name


def test_memory_is_channels_last_without_a_copy() -> None:
    images = generator_network(channels=3, size=(16, 16))(latents(), LABELS)
    assert images.is_contiguous(memory_format=torch.channels_last)


def test_bf16_autocast_gives_images_in_range() -> None:
    network = generator_network(channels=3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        images = network(latents(), LABELS)
    assert torch.isfinite(images).all()
    assert float(images.detach().max()) <= 1


@pytest.mark.parametrize(
    ("latent_dim", "channels", "height", "width", "base_channels"),
    [
        pytest.param(6, 1, 7, 8, 4, id="too low"),
        pytest.param(6, 1, 8, 7, 4, id="too narrow"),
        pytest.param(0, 1, 8, 8, 4, id="no latent"),
        pytest.param(6, 0, 8, 8, 4, id="no image channel"),
        pytest.param(6, 1, 8, 8, 0, id="no base channel"),
    ],
)
def test_impossible_sizes_are_refused(
    latent_dim: int, channels: int, height: int, width: int, base_channels: int
) -> None:
    with pytest.raises(ConfigurationError) as refusal:
        Generator(
            latent_dim,
            EMBEDDINGS,
            channels=channels,
            height=height,
            width=width,
            base_channels=base_channels,
            generator=seeded(0),
        )
    assert refusal.value.hint


# -- label embeddings ------------------------------------------------------------------------------


class PointwiseHead(nn.Module):
    """A classifier whose last layer is a 1x1 convolution, as SqueezeNet's."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv2d(1, 5, 3)
        self.classifier = nn.Conv2d(5, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(x)).mean((2, 3))
        return logits


def test_teacher_embeddings_are_the_normalised_rows_of_its_last_layer() -> None:
    teacher = build_model(ModelSpec("resnet8", 10, 1))
    embeddings = label_embeddings(teacher, 10)
    rows = teacher.fc.weight.detach()
    assert isinstance(rows, Tensor)
    torch.testing.assert_close(embeddings, rows / rows.norm(dim=1, keepdim=True))
    assert not embeddings.requires_grad


def test_teacher_embeddings_come_from_the_last_fitting_layer() -> None:
    teacher = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 2))
    expected = nn.functional.normalize(teacher[2].weight.detach(), dim=1)
    assert torch.equal(label_embeddings(teacher, 4), expected)


def test_teacher_embeddings_of_a_convolutional_head() -> None:
    teacher = PointwiseHead()
    expected = nn.functional.normalize(teacher.classifier.weight.detach().flatten(1), dim=1)
    assert torch.equal(label_embeddings(teacher, 4), expected)


@pytest.mark.parametrize("teacher", [nn.Identity(), nn.Linear(4, 3)])
def test_of_a_teacher_without_a_fitting_last_layer_embeddings_are_one_hot(
    teacher: nn.Module,
) -> None:
    assert torch.equal(label_embeddings(teacher, 4), torch.eye(4))
