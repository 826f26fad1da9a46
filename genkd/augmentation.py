"""Images moved, mirrored, textured, blended: stored ones for the student, new ones while made.

The teacher labels the result, so any change of an image is a valid example of its function
("function matching", Beyer et al. 2022, arXiv:2106.05237). For a small bank of synthetic images it
is the cheapest diversity there is: one more teacher pass without gradients. An image that is still
being made is shown shifted (`random_shift`), so that what the teacher takes it for does not hang on
single pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from genkd.device import Constant
from genkd.losses import mixup

# At strength 1, drawn uniformly up to these bounds.
SCALE = 0.3  # of each side
SHEAR = 0.2
SHIFT = 0.15  # of half a side
BOUNDS = Constant((SCALE, SHEAR, SHIFT, SHEAR, SCALE, SHIFT))  # of an affine map's entries
# Pixels a random value of a texture spans; coarser ones change the light more than the surface.
GRAINS = (1, 2, 4)


def random_affine(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Each image scaled, sheared and shifted a little, and mirrored with probability 1/2.

    What comes in from outside is black (zero).

    Args:
        images: float (B, C, H, W) in [0, 1].
        strength: 0..1, factor on `SCALE`, `SHEAR` and `SHIFT`.
        generator: Source of the draws.

    Returns:
        (B, C, H, W), bilinear samples of `images`.
    """
    on = generator.device
    uniform = torch.rand(len(images), 6, generator=generator, device=on) * 2 - 1
    mirrored = torch.rand(len(images), generator=generator, device=on) < 0.5
    matrix = (strength * BOUNDS.on(on) * uniform).view(-1, 2, 3)
    matrix[:, 0, 0] += 1
    matrix[:, 1, 1] += 1
    matrix[:, 0] *= torch.where(mirrored, -1.0, 1.0).unsqueeze(1)
    return _mapped(images, matrix)


def random_shift(images: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Each image shifted by whole pixels, and mirrored with probability 1/2.

    The padded random crop that methods of the field show their teachers while they make images:
    FastDFKD (arXiv:2112.15278) and NAYER (arXiv:2310.00258) by 4 of 32 pixels.

    Args:
        images: float (B, C, H, W) in [0, 1].
        share: The largest shift as a share of each side, 0..1; what comes in is black (zero).
            0: images as they are, not mirrored either.
        generator: Source of the draws.

    Returns:
        (B, C, H, W), in channels-last memory if shifted, differentiable.
    """
    if share == 0:
        return images
    on, (height, width) = generator.device, images.shape[2:]
    matrix = torch.zeros(len(images), 2, 3, device=on)
    mirrored = torch.rand(len(images), generator=generator, device=on) < 0.5
    matrix[:, 0, 0] = torch.where(mirrored, -1.0, 1.0)
    matrix[:, 1, 1] = 1
    for row, side in enumerate((width, height)):
        most = round(share * side)
        pixels = torch.randint(-most, most + 1, (len(images),), generator=generator, device=on)
        matrix[:, row, 2] = pixels * (2 / side)  # a side is 2 long
    return _mapped(images, matrix).contiguous(memory_format=torch.channels_last)


def _mapped(images: Tensor, matrix: Tensor) -> Tensor:
    """Bilinear samples of images (B, C, H, W) at affine maps (B, 2, 3) of their places.

    In float32, also under autocast: the eight bits that bf16 has for a place are enough for a side
    of 32, blur one of 28, and are off by half a pixel at 224.
    """
    with torch.autocast(images.device.type, enabled=False):
        grid = F.affine_grid(matrix.to(images.device), list(images.shape), align_corners=False)
        return F.grid_sample(images.float(), grid, align_corners=False).to(images.dtype)


def random_texture(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """About half of the images, drawn at random, multiplied by 1 + a u: black stays black.

    u is uniform in [-1, 1] on a grid of one of `GRAINS`, interpolated, the same for all channels; a
    is uniform in [0, strength], for each image.

    Args:
        images: float (B, C, H, W) in [0, 1].
        strength: 0..1.
        generator: Source of the draws.

    Returns:
        (B, C, H, W) in [0, 1].
    """
    on, count, (height, width) = generator.device, len(images), images.shape[2:]
    fields = []
    for grain in GRAINS:
        shape = (count, 1, -(-height // grain), -(-width // grain))
        field = torch.rand(shape, generator=generator, device=on) * 2 - 1
        fields.append(F.interpolate(field, size=(height, width), mode="bilinear"))
    which = torch.randint(len(GRAINS), (count,), generator=generator, device=on)
    field = torch.stack(fields)[which, torch.arange(count, device=on)]  # (B, 1, H, W)
    amount = strength * torch.rand((count, 1, 1, 1), generator=generator, device=on)
    chosen = torch.rand((count, 1, 1, 1), generator=generator, device=on) < 0.5
    factor = (1 + amount * chosen * field).to(images.device, images.dtype)
    return (images * factor).clamp(0, 1)


def augment(
    images: Tensor,
    *,
    affine: float,
    texture: float,
    mixed_share: float,
    generator: torch.Generator,
) -> Tensor:
    """`random_affine` and `random_texture` of all, then `mixup` of the first `mixed_share` of them.

    Args:
        images: float (B, C, H, W) in [0, 1], in random order.
        affine: Strength, 0..1; 0 leaves the images where they are.
        texture: Strength, 0..1; 0 leaves their surface as it is.
        mixed_share: 0..1.
        generator: Source of the draws.

    Returns:
        (B, C, H, W) in [0, 1].
    """
    if affine > 0:
        images = random_affine(images, affine, generator)
    if texture > 0:
        images = random_texture(images, texture, generator)
    mixed = round(mixed_share * len(images))
    if mixed < 2:
        return images
    return torch.cat((mixup(images[:mixed], generator), images[mixed:]))
