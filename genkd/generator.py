"""The class-conditional generator G(z, e_y), and the label embeddings e_y it listens to.

    embeddings = label_embeddings(teacher, 10)
    network = Generator(64, embeddings, channels=1, height=32, width=32, generator=generator)
    images = network(z, labels)  # (B, 64), (B,) -> (B, 1, 32, 32) in [0, 1]

Sources: the layout is that of DCGAN (Radford et al. 2016, arXiv:1511.06434) with up-sampling in
place of transposed convolutions, as data-free distillation uses it (DAFL, arXiv:1904.01186);
label embeddings and the re-initialised input layer follow NAYER (Tran et al. 2024,
arXiv:2310.00258), with the teacher's own last layer in place of its text embeddings.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from genkd.errors import ConfigurationError
from genkd.features import last_layer

COARSEST = 8  # the first feature map is at most this large: larger images get more stages
LEAK = 0.2  # slope of LeakyReLU below zero, as in DCGAN


def label_embeddings(teacher: nn.Module, num_classes: int) -> Tensor:
    """One unit vector a class: row W_y of the teacher's last layer with K outputs.

    Classes that the teacher finds alike have similar embeddings. Of a teacher without such a layer
    they are one-hot.

    Args:
        teacher: The teacher.
        num_classes: K.

    Returns:
        float32 (K, e) on the CPU, rows of length 1, detached.
    """
    layer = last_layer(teacher, num_classes)
    if layer is None:
        return torch.eye(num_classes)
    return nn.functional.normalize(layer.weight.detach().flatten(1).float().cpu(), dim=1)


def distinct(embeddings: Tensor) -> Tensor:
    """The embeddings without what they have in common, of length 1 again.

    The last layer of a network that was taught some of its classes only has a large part in common
    in the rows of those: normalised, they are nearly one and the same.

    Args:
        embeddings: float32 (K, e).

    Returns:
        (K, e); as given where that leaves nothing, of a single class.
    """
    if len(embeddings) < 2:
        return embeddings
    return nn.functional.normalize(embeddings - embeddings.mean(0), dim=1)


class LabelEmbedding(nn.Module):
    """A fixed table of class embeddings; lets an embedding pass in place of a label.

    Args:
        table: float (K, e).
    """

    table: Tensor

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        if table.dim() != 2:
            raise ConfigurationError(
                f"label embeddings of shape {tuple(table.shape)} are not a table",
                hint="give one row a class",
            )
        self.register_buffer("table", table.detach().clone())

    @property
    def dimension(self) -> int:
        """e, the length of an embedding."""
        return self.table.shape[1]

    def forward(self, condition: Tensor) -> Tensor:
        """Labels int64 (B,), or embeddings (B, e) themselves, to embeddings (B, e)."""
        if condition.is_floating_point():
            return condition
        return self.table[condition]


class Generator(nn.Module):
    """G(z, e_y): a linear layer to a coarse feature map, then up-sampling and convolutions.

    (B, d + e) -> (B, 2c, h, w) -> .. doubling .. -> (B, c, >= H, >= W) -> (B, C, H, W)

    Memory is channels last throughout.

    The coarse map is ceil(H / 4) high for images up to 32 pixels; larger images are doubled more
    often, so that the linear layer stays small. What exceeds H x W is cropped around the centre.

    Args:
        latent_dim: d.
        embeddings: float32 (K, e).
        channels: C of the images.
        height: H, at least 8.
        width: W, at least 8.
        base_channels: c, feature maps before the last convolution; 2c before that.
        label_weight: Factor on e_y against z (each z_i has deviation 1, e_y length 1): the smaller,
            the more the generator must listen to z.
        generator: Source of the initial weights.

    Raises:
        ConfigurationError: If the images are smaller than 8 x 8, or a width is below 1.
    """

    def __init__(
        self,
        latent_dim: int,
        embeddings: Tensor,
        *,
        channels: int,
        height: int,
        width: int,
        base_channels: int = 16,
        label_weight: float = 1.0,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        if min(height, width) < 8 or min(latent_dim, channels, base_channels) < 1:
            raise ConfigurationError(
                f"a generator of {channels}x{height}x{width} images from {latent_dim} dimensions "
                f"with {base_channels} base channels cannot be built",
                hint="images must be at least 8 x 8, everything else at least 1",
            )
        self.latent_dim, self.height, self.width = latent_dim, height, width
        self.label_weight = label_weight
        self.embedding = LabelEmbedding(embeddings)
        doublings = max(2, math.ceil(math.log2(max(height, width) / COARSEST)))
        self.coarse = (-(-height // 2**doublings), -(-width // 2**doublings))  # rounded up
        wide = 2 * base_channels
        self.input = nn.Linear(
            latent_dim + self.embedding.dimension, wide * self.coarse[0] * self.coarse[1]
        )
        layers: list[nn.Module] = [nn.BatchNorm2d(wide)]
        for stage in range(doublings):
            out = base_channels if stage == doublings - 1 else wide
            layers += [
                nn.Upsample(scale_factor=2),
                nn.Conv2d(wide, out, 3, padding=1, bias=False),  # BatchNorm would undo a bias
                nn.BatchNorm2d(out),
                nn.LeakyReLU(LEAK, inplace=True),
            ]
        self.body = nn.Sequential(*layers)
        self.output = nn.Conv2d(base_channels, channels, 3, padding=1)
        # The input layer writes channels last, so all that follows runs that way without a copy:
        # on a CPU half the time in float32, three quarters in bf16.
        self.to(memory_format=torch.channels_last)
        self.reinitialise(generator)

    def reinitialise(self, generator: torch.Generator) -> None:
        """Forget what was learned; the optimiser's moments are the caller's to forget.

        Args:
            generator: Source of the new weights: the same state gives the same network.
        """
        initialise_layers(self.modules(), generator)

    def forward(self, z: Tensor, condition: Tensor) -> Tensor:
        """Draw images.

        Args:
            z: Latents (B, d).
            condition: Labels int64 (B,), or embeddings (B, e).

        Returns:
            (B, C, H, W) in [0, 1], before any normalisation of the teacher.
        """
        embedding = self.label_weight * self.embedding(condition).to(z.dtype)
        features = self.input(torch.cat((z, embedding), dim=1))  # (B, d + e) -> (B, h w 2c)
        features = features.unflatten(1, (*self.coarse, -1)).permute(0, 3, 1, 2)  # (B, 2c, h, w)
        images = self.output(self.body(features))
        top = (images.shape[2] - self.height) // 2
        left = (images.shape[3] - self.width) // 2
        images = images[:, :, top : top + self.height, left : left + self.width]
        return torch.sigmoid(images)


@torch.no_grad()
def initialise_layers(modules: Iterable[nn.Module], generator: torch.Generator) -> None:
    """Draw the weights of linear layers and convolutions anew, and reset BatchNorm.

    PyTorch's own rule (uniform within 1 / sqrt(fan in)), but from an explicit generator, on the
    generator's device, so that a CPU generator gives the same network on every device.
    """
    for module in modules:
        if isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
        elif isinstance(module, nn.Linear | nn.Conv2d):
            bound = 1 / math.sqrt(module.weight[0].numel())
            for parameter in (module.weight, module.bias):
                if parameter is not None:
                    uniform = torch.rand(
                        parameter.shape, generator=generator, device=generator.device
                    )
                    parameter.copy_((2 * uniform - 1) * bound)
