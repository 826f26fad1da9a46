"""The latent energy-based model: N(0, I) over latents z, tilted per class by a small network.

    p(z | y)  is proportional to  exp f(z, y) N(z; 0, I)

    energy = LatentEnergy(latent_dim=64, embeddings=torch.eye(10), generator=generator)
    higher_is_likelier = energy(z, labels)  # (B, d), (B,) -> (B,)

**One sign rule in the whole package: higher f = more likely; energy = -f.**

Sources: latent-space EBM prior, Pang et al. 2020 (arXiv:2006.08205, eq. 2, whose f has our sign);
spectral normalisation, Miyato et al. 2018 (arXiv:1802.05957).
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from genkd.errors import ConfigurationError
from genkd.generator import LabelEmbedding, initialise_layers

# f: latents (B, d) and a condition, labels int64 (B,) or embeddings (B, e), to f (B,).
# Every function below and in langevin.py, policy_gradient.py takes any such callable, so that a
# test can give it f = a z, and a caller an EBM of another shape.
Tilt = Callable[[Tensor, Tensor], Tensor]


class LatentEnergy(nn.Module):
    """f(z, y): an MLP with two hidden SiLU layers on [z, e_y], each layer spectrally normalised.

    In `train()` every call refines the spectral norm by one power iteration (a change of f of
    rounding size once trained for a few steps); in `eval()` the function is fixed.

    Args:
        latent_dim: d.
        embeddings: float32 (K, e), one row a class (`label_embeddings`, or `torch.eye(K)`).
        hidden: Width of the two hidden layers.
        gain: Factor on the output. The normalised layers alone allow |grad_z f| <= 1.21 (SiLU's
            slope is at most 1.1), too little to move a prior whose own score is as long as
            sqrt(d); the gain is what f may tilt by.
        generator: Source of the initial weights; the global random state is neither read nor moved.

    Raises:
        ConfigurationError: If a width is below 1, or the gain is not positive.
    """

    def __init__(
        self,
        latent_dim: int,
        embeddings: Tensor,
        *,
        hidden: int = 128,
        gain: float = 4.0,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        if latent_dim < 1 or hidden < 1 or not gain > 0:
            raise ConfigurationError(
                f"a latent EBM of {latent_dim} dimensions, {hidden} hidden units, gain {gain}",
                hint="all three must be positive",
            )
        self.gain = gain
        self.embedding = LabelEmbedding(embeddings)
        widths = (latent_dim + self.embedding.dimension, hidden, hidden, 1)
        # torch's spectral_norm starts its power iteration from the global random state, which is
        # therefore seeded from our generator and put back afterwards.
        seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            layers = [nn.Linear(i, o) for i, o in pairwise(widths)]
            initialise_layers(layers, generator)
            self.layers = nn.ModuleList(spectral_norm(layer) for layer in layers)

    def forward(self, z: Tensor, condition: Tensor) -> Tensor:
        """Higher = more likely.

        Args:
            z: Latents (B, d), of the network's dtype (float32).
            condition: Labels int64 (B,), or embeddings (B, e).

        Returns:
            f (B,), before the prior: log p(z | y) = f - |z|^2 / 2 + constant.
        """
        # Langevin steps are small differences of these values: bf16 would lose them.
        with torch.autocast(z.device.type, enabled=False):
            hidden = torch.cat((z, self.embedding(condition).to(z.dtype)), dim=1)  # (B, d + e)
            first, second, last = self.layers
            hidden = nn.functional.silu(first(hidden))
            hidden = nn.functional.silu(second(hidden))
            f: Tensor = self.gain * last(hidden).squeeze(1)  # (B, 1) -> (B,)
        return f


def tilt_gradient(f: Tilt, z: Tensor, condition: Tensor, *, create_graph: bool = False) -> Tensor:
    """grad_z f(z, y), sample by sample.

    Args:
        f: Maps (z, condition) to (B,), each value depending on its own row of z only.
        z: Latents (B, d); the gradient is taken at these values, cut from any graph they are in.
        condition: Labels (B,) or embeddings (B, e).
        create_graph: Keep the result differentiable with respect to the parameters of f.

    Returns:
        (B, d).
    """
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(f(z, condition).sum(), z, create_graph=create_graph)
    return gradient


def score(f: Tilt, z: Tensor, condition: Tensor) -> Tensor:
    """grad_z log p(z | y) = grad_z [f(z, y) - |z|^2 / 2], (B, d), without a graph."""
    return tilt_gradient(f, z, condition) - z.detach()
