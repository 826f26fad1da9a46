"""Folders of pictures, one folder for each class: whose label is whose, and reading a picture."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from genkd.array_files import BROKEN_FILE, listing, reason
from genkd.errors import InputFileRefused

if TYPE_CHECKING:
    from PIL.Image import Image

    from genkd.card import ModelCard

# 64 million pixels a picture: a large photograph, and no decompression bomb.
MAX_PICTURE_PIXELS = 64 * 2**20
PICTURE_FORMATS = ("PNG", "JPEG", "BMP", "PPM", "TIFF", "WEBP")
PICTURE_SUFFIXES = (
    *(".png", ".jpg", ".jpeg"),
    *(".bmp", ".pgm", ".ppm", ".tif", ".tiff", ".webp"),
)


def labelled_pictures(folder: Path, card: ModelCard) -> list[tuple[Path, int]]:
    """The pictures in `folder`/CLASS/, sorted by folder and name, and the labels.

    Class folders are told apart by the card's class names, or by number (`0`, `1`, ...); for a
    model without class names their sorted order serves if there are exactly as many as classes.
    Hidden files, and files that are not called as pictures are, are passed over.

    Raises:
        InputFileRefused: If the folders are not the model's classes, or hold no picture.
    """
    pictures = [
        (path, label)
        for class_folder, label in _class_folders(folder, card)
        for path in sorted(class_folder.iterdir())
        if path.suffix.lower() in PICTURE_SUFFIXES and not path.name.startswith(".")
    ]
    if not pictures:
        raise InputFileRefused(
            f"{folder}: no pictures in its class folders",
            hint="put files such as image.png or image.jpg into FOLDER/CLASS/",
        )
    return pictures


def _class_folders(folder: Path, card: ModelCard) -> list[tuple[Path, int]]:
    """The class folders and their labels: by the card's names, by number, or in sorted order."""
    folders = sorted(f for f in folder.iterdir() if f.is_dir() and not f.name.startswith("."))
    names, count = [f.name for f in folders], card.spec.num_classes
    known = {} if card.class_names is None else {n: i for i, n in enumerate(card.class_names)}
    if not folders:
        raise InputFileRefused(
            f"{folder} holds no class folders", hint="put the pictures into FOLDER/CLASS/*.png"
        )
    if known and set(names) <= set(known):
        return [(f, known[f.name]) for f in folders]
    # By number before by order: sorted, "10" comes before "2".
    if all(name.isascii() and name.isdigit() for name in names):
        labels = [int(name) for name in names if len(name) <= 9]
        if len(set(labels)) == len(names) and max(labels) < count:
            return list(zip(folders, labels, strict=True))
    if known or len(folders) != count:
        strangers = [name for name in names if name not in known]
        expected = listing(list(known)) if known else f"{count} folders, one for each class"
        raise InputFileRefused(
            f"{folder}: the folders {listing(strangers)} are not the model's classes ({expected})",
            hint=f"name the folders as the model's classes, or by number from 0 to {count - 1}",
        )
    return [(f, label) for label, f in enumerate(folders)]


def read_picture(path: Path) -> NDArray[np.uint8]:
    """One picture, uint8 (1 or 3, H, W): gray or colour.

    Raises:
        InputFileRefused: If it is broken or huge, transparent, or not of 8 bits a channel.
    """
    from PIL import Image

    try:
        with warnings.catch_warnings():
            # Pillow only warns of what may be a bomb; the size is looked at before decoding.
            warnings.simplefilter("ignore")
            with Image.open(path, formats=PICTURE_FORMATS) as picture:
                if picture.width * picture.height > MAX_PICTURE_PIXELS:
                    raise InputFileRefused(
                        f"{path} is of {picture.width}x{picture.height} pixels, too large",
                        hint="scale it down first",
                    )
                return _pixels(picture, path)
    except (*BROKEN_FILE, Image.DecompressionBombError) as error:
        raise InputFileRefused(
            f"{path} is not an intact picture: {reason(error)}",
            hint="remove it or fetch it again",
        ) from error


def _pixels(picture: Image, path: Path) -> NDArray[np.uint8]:
    """Gray as (1, H, W), colour as (3, H, W); what would lose information is refused."""
    if picture.mode in ("1", "L"):
        return np.array(picture.convert("L"))[None]
    if picture.mode in ("LA", "P", "PA", "RGBA"):
        rgba = np.array(picture.convert("RGBA"))
        if rgba[..., 3].min() < 255:
            raise InputFileRefused(
                f"{path} has transparent pixels", hint="save it without an alpha channel"
            )
        return rgba[..., :3].transpose(2, 0, 1)  # (H, W, 4) -> (3, H, W)
    if picture.mode in ("RGB", "CMYK", "YCbCr"):
        return np.array(picture.convert("RGB")).transpose(2, 0, 1)  # (H, W, 3) -> (3, H, W)
    raise InputFileRefused(
        f"{path} has pixels of kind {picture.mode}, not 8 bits a channel",
        hint="convert it to 8 bits yourself, with the window that the model was trained with",
    )
