"""The public images a prior is trained on: the user's own choice, never the node's data.

    data = read_public_images("photos/")                      # photos/CLASS/*.png
    data = read_public_images("mnist/raw", size=(32, 32))     # idx files train-*
    data = read_public_images("torchvision:SVHN:/data")       # its training part, already on disk

`genkd.images` tells what kinds of data there are, reads them and fits them. Here the number of
classes, the size and the channels are those of the data themselves, and a data set of two parts
gives its training part.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from genkd.array_files import idx_images_in, listing, reason
from genkd.card import InputCard, ModelCard, ModelSpec
from genkd.errors import InputFileRefused, UsageError
from genkd.generative_card import CARD_BOUNDS
from genkd.images import LabelledImages, as_card_wants, read_images, read_labelled_arrays
from genkd.picture_folder import PICTURE_SUFFIXES, read_picture


@dataclass(frozen=True)
class PublicImages:
    """Public images, with the classes of their own data set.

    Attributes:
        images: uint8 (N, C, H, W) in 0..255, N at least 1.
        labels: int64 (N,) in 0..K-1; zeros if there are no classes.
        num_classes: K, at least 2; or 0: no classes.
        notes: What was done to the images to fit the size, one sentence each.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    num_classes: int
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        _, channels, height, width = self.images.shape
        return channels, height, width

    def sha256(self) -> str:
        """Hex digest of the images and labels as they are used."""
        digest = hashlib.sha256(repr((self.images.shape, self.num_classes)).encode())
        digest.update(np.ascontiguousarray(self.images).data)
        digest.update(np.ascontiguousarray(self.labels).data)
        return digest.hexdigest()


def read_public_images(
    source: str,
    *,
    size: tuple[int, int] | None = None,
    channels: int | None = None,
    with_labels: bool = True,
) -> PublicImages:
    """Read the public images of `source`.

    Args:
        source: An `.npz` file, idx files or a folder of them (`train-*`), a folder with a
            sub-folder of pictures for each class (a single one: no classes), or
            `torchvision:NAME:FOLDER`.
        size: Height and width to fit them to; None: as they are, for pictures as the first is.
        channels: 1 or 3 likewise.
        with_labels: Whether to keep the classes apart.

    Raises:
        UsageError: If `source` names no known kind of data, or the size cannot be drawn.
        InputFileRefused: If the data are missing, broken, empty or too large.
        ResourceExhausted: If memory runs out.
    """
    path = Path(source)
    try:
        if path.is_dir() and not idx_images_in(path, "train"):
            names, shape = _class_folders(path)
            found = read_images(path, _card(names, shape, size, channels))
            count = len(names)
        else:
            images, labels = read_labelled_arrays(source, "train")
            count = _count(labels, source)
            names = [str(number) for number in range(count)]
            card = _card(names, _shape(images, source), size, channels)
            found = as_card_wants(images, labels, card, source)
    except OSError as error:
        raise InputFileRefused(
            f"{source} cannot be read: {reason(error)}", hint="check the path and its permissions"
        ) from error
    return _public(found, count if with_labels and count > 1 else 0)


def _public(found: LabelledImages, num_classes: int) -> PublicImages:
    labels = found.labels if num_classes else np.zeros_like(found.labels)
    return PublicImages(found.images, labels, num_classes, found.notes)


def _card(
    names: list[str],
    shape: tuple[int, int, int],
    size: tuple[int, int] | None,
    channels: int | None,
) -> ModelCard:
    """The card of a classifier of these data, by which `genkd.images` reads."""
    channels = channels or shape[0]
    height, width = size or shape[1:]
    # A classifier has two classes or more; a place without images makes up for a second folder.
    names = [*names, "(none)"] if len(names) == 1 else names
    half = (0.5,) * channels
    return ModelCard(
        ModelSpec("resnet8", len(names), channels),
        InputCard(height, width, channels, half, half),
        tuple(names),
    )


def _class_folders(folder: Path) -> tuple[list[str], tuple[int, int, int]]:
    """The names of the class folders, and the shape of the first picture (C, H, W)."""
    folders = sorted(f for f in folder.iterdir() if f.is_dir() and not f.name.startswith("."))
    for class_folder in folders:
        for path in sorted(class_folder.iterdir()):
            if path.suffix.lower() in PICTURE_SUFFIXES and not path.name.startswith("."):
                channels, height, width = read_picture(path).shape
                return [f.name for f in folders], (channels, height, width)
    raise InputFileRefused(
        f"{folder} holds no pictures in folders of their own "
        f"(it holds {listing(sorted(f.name for f in folder.iterdir()))})",
        hint="put pictures into FOLDER/CLASS/*.png, all into one such folder if there are no "
        "classes, or give idx files train-images-idx3-ubyte",
    )


def _count(labels: NDArray[np.generic], source: str) -> int:
    """How many classes there are: one more than the largest label."""
    if labels.dtype.kind not in "iu" or labels.size == 0 or int(labels.max()) < 0:
        raise InputFileRefused(
            f"{source}: labels of type {labels.dtype} and shape {labels.shape} are not understood",
            hint="give one whole number for each image, from 0 on",
        )
    count = int(labels.max()) + 1
    most = CARD_BOUNDS["num_classes"][1]
    if count > most:
        raise InputFileRefused(
            f"{source}: labels up to {count - 1}, for {count} classes; a prior has at most {most}",
            hint="number the classes from 0 on without gaps, or leave some out",
        )
    return count


def _shape(images: NDArray[np.generic], source: str) -> tuple[int, int, int]:
    """(C, H, W) of images (N, H, W), (N, C, H, W) or (N, H, W, C)."""
    if images.ndim == 3:
        return 1, images.shape[1], images.shape[2]
    if images.ndim == 4 and images.shape[1] in (1, 3):
        return images.shape[1], images.shape[2], images.shape[3]
    if images.ndim == 4 and images.shape[3] in (1, 3):
        return images.shape[3], images.shape[1], images.shape[2]
    raise InputFileRefused(
        f"{source}: images of shape {images.shape} are not understood",
        hint="give (N, H, W), (N, C, H, W) or (N, H, W, C)",
    )


def parse_size(text: str) -> tuple[int, int]:
    """`32x32` as height and width.

    Raises:
        UsageError: If it is none.
    """
    height, times, width = text.strip().partition("x")
    if not (times and height.isascii() and height.isdigit() and width.isascii()):
        raise _no_size(text)
    try:
        return int(height), int(width)
    except ValueError as error:
        raise _no_size(text) from error


def _no_size(text: str) -> UsageError:
    return UsageError(f"--size {text[:40]!r} is not a size", hint="for example 32x32")
