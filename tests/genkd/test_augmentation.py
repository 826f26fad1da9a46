"""What the student sees of an image is an image, and comes from the generator alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from genkd.augmentation import (
    SCALE,
    SHEAR,
    SHIFT,
    augment,
    random_affine,
    random_shift,
    random_texture,
)

DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA here")
    ),
]


def noise(count: int = 32, channels: int = 1, side: int = 16, device: str = "cpu") -> Tensor:
    seeded = torch.Generator().manual_seed(0)
    return torch.rand(count, channels, side, side, generator=seeded).round().to(device)


def seeded(seed: int = 0, device: str = "cpu") -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("channels", [1, 3])
def test_images_stay_images(channels: int, device: str) -> None:
    images = noise(64, channels, device=device)
    out = augment(images, affine=1.0, texture=1.0, mixed_share=0.5, generator=seeded(device=device))
    assert out.shape == images.shape
    assert out.dtype is torch.float32
    assert out.device == images.device
    assert out.min() >= 0
    assert out.max() <= 1 + 1e-6  # bilinear weights add up to 1 within rounding


def test_same_generator_state_same_images_and_the_global_one_is_left_alone() -> None:
    images, before = noise(), torch.get_rng_state()
    first, second = (
        augment(images, affine=1.0, texture=1.0, mixed_share=0.5, generator=seeded(7))
        for _ in range(2)
    )
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), before)
    other = augment(images, affine=1.0, texture=1.0, mixed_share=0.5, generator=seeded(8))
    assert not torch.equal(first, other)


def test_a_stored_image_is_never_changed() -> None:
    images = noise()
    before = images.clone()
    augment(images, affine=1.0, texture=1.0, mixed_share=1.0, generator=seeded())
    assert torch.equal(images, before)


def test_no_strength_and_no_mixing_leaves_images_where_they_are() -> None:
    images = noise()
    assert torch.equal(
        augment(images, affine=0, texture=0, mixed_share=0, generator=seeded()), images
    )


def test_at_strength_zero_half_of_the_images_are_mirrored_and_nothing_else_happens() -> None:
    images = noise(200)
    out = random_affine(images, 0.0, seeded())
    as_it_was = (out - images).abs().amax((1, 2, 3)) < 1e-5
    mirrored = (out - images.flip(3)).abs().amax((1, 2, 3)) < 1e-5
    assert bool((as_it_was ^ mirrored).all())
    assert 70 <= int(mirrored.sum()) <= 130


def test_each_image_moves_by_itself_and_no_further_than_the_bounds() -> None:
    side, count = 33, 256
    dots = torch.zeros(count, 1, side, side)
    dots[:, :, 16, 16] = 1  # the very centre, which scale and shear leave in place
    out = random_affine(dots, 1.0, seeded())
    place = torch.linspace(-1 + 1 / side, 1 - 1 / side, side)  # of a pixel's centre, -1..1
    weight = out.sum((1, 2, 3))
    x = (out.sum((1, 2)) @ place) / weight
    y = (out.sum((1, 3)) @ place) / weight
    # An output point u shows the input at A u + t; the dot is at A u + t = 0.
    furthest = SHIFT / (1 - SCALE - SHEAR)
    for coordinate in (x, y):
        assert float(coordinate.abs().max()) < furthest + 1 / side
        assert float(coordinate.std()) > 0.05


def test_what_comes_in_from_outside_is_black() -> None:
    white = torch.ones(64, 1, 16, 16)
    corners = random_affine(white, 1.0, seeded())[:, 0, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert float(corners.min()) == 0
    assert float(random_affine(white, 1.0, seeded())[:, 0, 7:9, 7:9].min()) > 0.999


def test_a_shift_is_of_whole_pixels_with_black_behind_it_and_every_one_comes_up() -> None:
    images = torch.rand(400, 2, 16, 24, generator=seeded())  # not square
    out = random_shift(images, 0.125, seeded())
    places = [(y, x) for y in range(-2, 3) for x in range(-3, 4)]
    seen = set()
    for image, shifted in zip(images, out, strict=True):
        framed = torch.nn.functional.pad(image, (3, 3, 2, 2))
        fits = [
            (y, x, mirrored)
            for y, x in places
            for mirrored in (False, True)
            if torch.allclose(
                framed[:, 2 + y : 18 + y, 3 + x : 27 + x],
                shifted.flip(2) if mirrored else shifted,
                atol=1e-4,
            )
        ]
        assert len(fits) == 1
        seen.add(fits[0])
    assert {(y, x) for y, x, _ in seen} == set(places)
    assert {mirrored for _, _, mirrored in seen} == {False, True}


def test_a_shift_lets_the_gradient_through_and_none_leaves_images_as_they_are() -> None:
    images = noise().requires_grad_()
    random_shift(images, 0.125, seeded()).sum().backward()  # type: ignore[no-untyped-call]
    assert images.grad is not None
    middle = images.grad[:, :, 4:12, 4:12]
    assert torch.allclose(middle, torch.ones_like(middle), atol=1e-4)
    assert torch.equal(random_shift(images.detach(), 0.0, seeded()), images)


def test_half_of_the_images_get_a_texture_of_their_own_and_black_stays_black() -> None:
    grey = torch.full((400, 3, 16, 16), 0.5)
    grey[:, :, :4] = 0
    out = random_texture(grey, 0.8, seeded())
    changed = (out != grey).flatten(1).any(1)
    assert 150 <= int(changed.sum()) <= 250
    assert not bool(out[:, :, :4].any())
    assert torch.equal(out[:, 0], out[:, 2])  # of a colour only the brightness changes
    below = out[changed][:, 0, 4:]
    assert float((below / 0.5 - 1).abs().max()) <= 0.8
    assert float((below[0] - below[1]).abs().max()) > 0
    rough = (below[:, 1:] - below[:, :-1]).abs().mean((1, 2)) / below.std((1, 2))
    assert float(rough.max()) > 2 * float(rough.min())  # of more than one grain


def test_a_texture_keeps_images_in_range_and_is_none_without_strength() -> None:
    images = torch.rand(64, 1, 13, 9, generator=seeded())  # sides that no grain divides
    out = random_texture(images, 1.0, seeded())
    assert float(out.min()) >= 0
    assert float(out.max()) <= 1
    assert torch.equal(random_texture(images, 0.0, seeded()), images)


@pytest.mark.parametrize(("share", "mixed"), [(0.0, 0), (0.03, 0), (0.25, 8), (0.5, 16), (1.0, 32)])
def test_only_the_first_share_is_blended(share: float, mixed: int) -> None:
    images = noise(32)
    out = augment(images, affine=0, texture=0, mixed_share=share, generator=seeded())
    assert torch.equal(out[mixed:], images[mixed:])
    blended = (out[:mixed] != images[:mixed]).flatten(1).any(1)
    assert int(blended.sum()) >= 0.7 * mixed  # some may be blended with themselves


def test_a_single_image_has_nobody_to_be_blended_with() -> None:
    image = noise(1)
    assert torch.equal(
        augment(image, affine=0, texture=0, mixed_share=1, generator=seeded()), image
    )


def shifted(side: int, channels: int, autocast: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Images, the same shifted by up to half a side, and the gradient that reaches them."""
    images = torch.rand(64, channels, side, side, generator=seeded()).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = random_shift(images, 0.5, seeded(1))
    out.backward(torch.randn(out.shape, generator=seeded(2)))  # type: ignore[no-untyped-call]
    assert images.grad is not None
    return images.detach(), out.detach(), images.grad


@pytest.mark.parametrize(("side", "channels"), [(28, 1), (32, 1), (32, 3), (56, 3)])
def test_a_shift_under_autocast_is_that_of_float32(side: int, channels: int) -> None:
    (_, *found), (_, *expected) = (shifted(side, channels, autocast) for autocast in (True, False))
    for one, other in zip(found, expected, strict=True):
        assert one.dtype is torch.float32
        assert torch.equal(one, other)


@pytest.mark.parametrize(("side", "tolerance"), [(28, 1e-5), (32, 0.0)])
def test_a_shift_under_autocast_blurs_nothing(side: int, tolerance: float) -> None:
    images, out, _ = shifted(side, 1, True)
    half = side // 2
    framed = torch.nn.functional.pad(images, (half, half, half, half))
    places = framed.unfold(2, side, 1).unfold(3, side, 1)[:, 0]  # (B, y, x, side, side)
    for crops, image in zip(places, out[:, 0], strict=True):
        distance = torch.minimum(
            *((crops - one).abs().amax((2, 3)) for one in (image, image.flip(1)))
        )
        assert float(distance.min()) <= tolerance


def test_a_map_leaves_images_of_half_precision_in_it() -> None:
    images = noise().bfloat16()
    for autocast in (True, False):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out = random_shift(images, 0.125, seeded())
        assert out.dtype is torch.bfloat16
        assert torch.equal(out, random_shift(images.float(), 0.125, seeded()).bfloat16())
