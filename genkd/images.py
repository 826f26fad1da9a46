"""Labelled images for evaluation, read from the formats in which people keep them.

    data = read_images("test.npz", card)        # arrays images and labels
    data = read_images("photos/", card)         # photos/CLASS/*.png
    data = read_images("mnist/raw", card)       # idx files t10k-*, gzipped or not
    data = read_images("torchvision:CIFAR10:/data", card)   # already on disk; never downloaded

This module is for evaluating, and for training a prior on public images (`genkd.dgm`, in its own
process): distilling never imports it, and a test holds it to that.

The images come back as the model's card wants them. What had to be done to them is told in
`LabelledImages.notes`, never silently:

- Channels change only where nothing is lost or guessed: gray is repeated for a colour model, and
  colour images whose channels are all equal are gray ones. Anything else is refused.
- Images short of the card's size by at most an eighth of a side are zero-padded evenly (28 to 32).
- Other sizes are scaled, aspect ratio kept, to cover the card's size, with bilinear interpolation
  and antialiasing, and the centre is cut out.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from genkd.array_files import (
    Part,
    idx_images_in,
    read_idx_pair,
    read_npz,
    reason,
    refuse_too_large,
)
from genkd.errors import InputFileRefused, ResourceExhausted, UsageError
from genkd.picture_folder import labelled_pictures, read_picture

if TYPE_CHECKING:
    from genkd.card import InputCard, ModelCard

# Short of the card's side by at most this part of it, an image is padded and not scaled.
MAX_PADDED_PART = 1 / 8
TORCHVISION_NAMES = ("CIFAR10", "CIFAR100", "SVHN", "MNIST", "FashionMNIST")


@dataclass(frozen=True)
class LabelledImages:
    """Images with their true classes.

    Attributes:
        images: uint8 (N, C, H, W) in 0..255, N at least 1.
        labels: int64 (N,) in 0..K-1.
        notes: What was done to the images to fit the model's input, one sentence each.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)


def read_images(source: str | Path, card: ModelCard) -> LabelledImages:
    """The labelled images of `source`, as `card` wants them.

    Args:
        source: An `.npz` file (uint8 images (N, H, W), (N, C, H, W) or (N, H, W, C), where the
            second is assumed if both fit; integer labels (N,) or (N, 1)); a folder with a
            sub-folder of pictures for each class, named as in the card or by number; idx files, as
            the path of the images file or of a folder that holds `t10k-*`; or
            `torchvision:NAME:FOLDER` for the test part of a data set that lies on this disk.
        card: Card of the model that will see them: number of classes, input size and channels.

    Raises:
        UsageError: If `source` names no known kind of data, or reading it needs a library that is
            not installed.
        InputFileRefused: If the data are missing, broken, empty, too large, or do not fit the card.
        ResourceExhausted: If memory runs out.
    """
    try:
        return _read(str(source), Path(source), card)
    except MemoryError as error:
        raise ResourceExhausted(
            f"memory ran out while reading {source}", hint="evaluate on a part of the data"
        ) from error
    except OSError as error:  # a folder that may not be listed, a disk that fails
        raise InputFileRefused(
            f"{source} cannot be read: {reason(error)}", hint="check the path and its permissions"
        ) from error


def _read(text: str, path: Path, card: ModelCard) -> LabelledImages:
    if path.is_dir() and not idx_images_in(path):
        return _read_folder(path, card)
    images, labels = read_labelled_arrays(text)
    return as_card_wants(images, labels, card, text)


def read_labelled_arrays(source: str, part: Part = "test") -> tuple[NDArray[Any], NDArray[Any]]:
    """The images and labels of an `.npz` file, idx files or a torchvision data set, as they are.

    Args:
        source: As for `read_images`, but no folder of class folders.
        part: Which part of a data set of two.

    Raises:
        UsageError, InputFileRefused: As `read_images`.
    """
    path = Path(source)
    if source.startswith("torchvision:"):
        return _read_torchvision(source, part)
    if path.is_dir():
        return read_idx_pair(idx_images_in(path, part)[0])
    if not path.exists():
        raise InputFileRefused(f"{path} does not exist", hint="check the path given as data")
    if not path.is_file():
        raise InputFileRefused(f"{path} is not a file", hint="give a file or a folder as data")
    if path.suffix == ".npz":
        return read_npz(path)
    if "images" in path.name:
        return read_idx_pair(path)
    raise UsageError(
        f"{path} is no kind of data that is known",
        hint="give an .npz file, a folder of class folders, idx files (t10k-images-idx3-ubyte),"
        " or torchvision:NAME:FOLDER",
    )


# --- What every format goes through ---------------------------------------------------------------


def as_card_wants(
    images: NDArray[Any], labels: NDArray[Any], card: ModelCard, where: str
) -> LabelledImages:
    """Check the arrays against each other and the card, and fit the images to it.

    Args:
        images: What should be uint8 (N, H, W), (N, C, H, W) or (N, H, W, C).
        labels: What should be integers (N,) or (N, 1).
        card: Of the model that will see them.
        where: How messages call the data.

    Raises:
        InputFileRefused: If they are not that.
    """
    if images.dtype != np.uint8:
        raise InputFileRefused(
            f"{where}: the images are {images.dtype}, not uint8",
            hint="save them as whole numbers 0..255: (255 * x).round().astype('uint8')",
        )
    images = _channels_first(images, card.input.channels, where)
    labels = _checked_labels(labels, card.spec.num_classes, where)
    if len(images) != len(labels):
        raise InputFileRefused(
            f"{where}: {len(images)} images but {len(labels)} labels",
            hint="images and labels must belong together, one label for each image",
        )
    size = card.input.channels * card.input.height * card.input.width
    refuse_too_large(len(images) * size, where)
    images, channel_note = _match_channels(images, card.input.channels, where)
    images, size_note = _match_size(images, card.input)
    notes = tuple(note for note in (channel_note, size_note) if note)
    return LabelledImages(np.ascontiguousarray(images), labels, notes)


def _channels_first(images: NDArray[np.uint8], channels: int, where: str) -> NDArray[np.uint8]:
    """(N, H, W) or (N, H, W, C) as (N, C, H, W)."""
    if images.ndim == 3:
        images = images[:, None]  # (N, H, W) -> (N, 1, H, W)
    usual = {1, 3, channels}
    if images.ndim != 4 or not usual & {images.shape[1], images.shape[3]}:
        raise InputFileRefused(
            f"{where}: images of shape {images.shape} are not understood",
            hint="give (N, H, W), (N, C, H, W) or (N, H, W, C)",
        )
    if 0 in images.shape:
        raise InputFileRefused(f"{where} holds no images", hint="check that it is the right file")
    if images.shape[1] not in usual:
        images = images.transpose(0, 3, 1, 2)  # (N, H, W, C) -> (N, C, H, W)
    return images


def _checked_labels(labels: NDArray[Any], num_classes: int, where: str) -> NDArray[np.int64]:
    """Labels of shape (N,) as int64, all in 0..num_classes - 1."""
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]  # (N, 1) -> (N,), as MedMNIST and Keras keep them
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise InputFileRefused(
            f"{where}: labels of type {labels.dtype} and shape {labels.shape} are not understood",
            hint="give one whole number for each image, from 0 to the number of classes less one",
        )
    if len(labels) and not (labels.min() >= 0 and labels.max() < num_classes):
        raise InputFileRefused(
            f"{where}: labels run from {labels.min()} to {labels.max()}, "
            f"but the model has {num_classes} classes (0 to {num_classes - 1})",
            hint="are these data of another problem, or labels that start at 1?",
        )
    return labels.astype(np.int64)


def _match_channels(
    images: NDArray[np.uint8], channels: int, where: str
) -> tuple[NDArray[np.uint8], str]:
    """Images (N, c, H, W) as (N, channels, H, W), where that loses nothing; and what was done."""
    found = images.shape[1]
    if found == channels:
        return images, ""
    if (found, channels) == (1, 3):
        return images.repeat(3, axis=1), "gray images were repeated over three channels"
    if (found, channels) == (3, 1) and (images == images[:, :1]).all():
        return images[:, :1], "colour images with three equal channels were taken as gray"
    kinds = {1: "gray", 3: "in colour"}
    raise InputFileRefused(
        f"{where}: the images are {kinds.get(found, f'of {found} channels')}, but the model takes "
        f"{channels} channel{'s' if channels > 1 else ''}",
        hint="give the data that the model is for, or convert them yourself",
    )


def _match_size(images: NDArray[np.uint8], card: InputCard) -> tuple[NDArray[np.uint8], str]:
    """Images (N, C, h, w) as (N, C, card.height, card.width), and what was done to them."""
    count, channels, height, width = images.shape
    wanted = (card.height, card.width)
    if (height, width) == wanted:
        return images, ""
    sizes = f"from {height}x{width} to {card.height}x{card.width}"
    missing = (card.height - height, card.width - width)
    if all(0 <= m <= side * MAX_PADDED_PART for m, side in zip(missing, wanted, strict=True)):
        # Of an odd number of missing rows or columns, the last one goes below or to the right.
        margins = [(0, 0), (0, 0), *((m // 2, m - m // 2) for m in missing)]
        return np.pad(images, margins), f"images were zero-padded {sizes}"
    from PIL import Image, ImageOps

    fitted = np.empty((count, channels, *wanted), np.uint8)
    for index in np.ndindex(count, channels):
        # Pillow widens the filter when it shrinks an image, so this is antialiased.
        picture = Image.fromarray(np.ascontiguousarray(images[index]))
        size = (card.width, card.height)
        fitted[index] = np.asarray(ImageOps.fit(picture, size, method=Image.Resampling.BILINEAR))
    return fitted, f"images were scaled and centre-cropped {sizes}"


# --- A folder of class folders --------------------------------------------------------------------


def _read_folder(folder: Path, card: ModelCard) -> LabelledImages:
    try:
        import PIL.Image  # noqa: F401
    except ImportError as error:
        raise UsageError(
            "reading pictures needs Pillow", hint="pip install 'genkd-node[distill]'"
        ) from error
    pictures = labelled_pictures(folder, card)
    size = (card.input.channels, card.input.height, card.input.width)
    refuse_too_large(len(pictures) * math.prod(size), str(folder))
    images = np.empty((len(pictures), *size), np.uint8)
    notes: dict[str, None] = {}  # a set that keeps its order
    for row, (path, _label) in enumerate(pictures):
        pixels, channel_note = _match_channels(
            read_picture(path)[None], card.input.channels, str(path)
        )
        fitted, size_note = _match_size(pixels, card.input)
        images[row] = fitted[0]
        notes.update({note: None for note in (channel_note, size_note) if note})
    labels = np.array([label for _path, label in pictures], np.int64)
    return LabelledImages(images, labels, _few(notes))


def _few(notes: Sequence[str] | dict[str, None]) -> tuple[str, ...]:
    """Pictures of a thousand sizes make a thousand notes; the first four tell the story."""
    listed = list(notes)
    return (*listed[:4], "and other sizes likewise") if len(listed) > 4 else tuple(listed)


# --- torchvision ----------------------------------------------------------------------------------


def torchvision_set(source: str) -> tuple[str, str]:
    """Name and folder of `torchvision:NAME:FOLDER`, without reading anything in it.

    Raises:
        UsageError: If there is no such data set.
        InputFileRefused: If there is no such folder.
    """
    _, name, folder = (*source.split(":", 2), "", "")[:3]
    folder = os.path.expanduser(folder)  # the shell expands ~ only at the start of a word
    if name not in TORCHVISION_NAMES or not folder:
        raise UsageError(
            f"{source!r} names no data set",
            hint=f"torchvision:NAME:FOLDER with one of {', '.join(TORCHVISION_NAMES)}",
        )
    if not Path(folder).is_dir():
        raise _not_there(name, folder)
    return name, folder


def _read_torchvision(source: str, part: Part) -> tuple[NDArray[Any], NDArray[Any]]:
    """A part of `torchvision:NAME:FOLDER`, FOLDER being torchvision's `root`."""
    name, folder = torchvision_set(source)
    if name in ("MNIST", "FashionMNIST"):
        # idx files, which our own reader takes no chances with.
        found = idx_images_in(Path(folder) / name / "raw", part)
        if not found:
            raise _not_there(name, folder, part)
        return read_idx_pair(found[0])
    try:
        from torchvision import datasets
    except ImportError as error:
        raise UsageError(
            "torchvision is not installed", hint="pip install 'genkd-node[distill]'"
        ) from error
    split = {"split": part} if name == "SVHN" else {"train": part == "train"}
    try:
        with warnings.catch_warnings():
            # The pickles of CIFAR are from 2009, and numpy says so.
            warnings.simplefilter("ignore")
            # These are pickles, but torchvision loads them only after comparing their MD5 with the
            # one in its source: nobody has a second file with the MD5 of a given one.
            data = getattr(datasets, name)(folder, download=False, **split)
    except ImportError as error:
        raise UsageError(f"reading {name} needs scipy", hint="pip install scipy") from error
    except (RuntimeError, OSError) as error:
        raise _not_there(name, folder, part) from error
    labels = data.labels if name == "SVHN" else data.targets
    return np.asarray(data.data), np.asarray(labels)


def _not_there(name: str, folder: str, part: Part = "test") -> InputFileRefused:
    split = f"split='{part}', " if name == "SVHN" else ""  # of the others all parts come together
    return InputFileRefused(
        f"no intact torchvision data set {name} lies in {folder}",
        hint=f"python -c \"from torchvision.datasets import {name}; {name}('{folder}', "
        f'{split}download=True)" fetches it; evaluating never does',
    )
