"""Public images: each kind of data is read as it is, and what cannot be is refused."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from genkd.dgm.public_images import parse_size, read_public_images
from genkd.errors import GenKDError, InputFileRefused, UsageError


def write_idx(folder: Path, prefix: str, images: np.ndarray, labels: np.ndarray) -> None:
    for name, array in (("images-idx3", images), ("labels-idx1", labels)):
        sides = struct.pack(f">{array.ndim}I", *array.shape)
        data = bytes((0, 0, 8, array.ndim)) + sides + array.astype(np.uint8).tobytes()
        (folder / f"{prefix}-{name}-ubyte.gz").write_bytes(gzip.compress(data))


def write_pictures(folder: Path, classes: dict[str, int], size: tuple[int, int] = (9, 10)) -> None:
    for number, (name, count) in enumerate(classes.items()):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            picture = Image.new("RGB", size, (40 * number, index, 7))
            picture.save(folder / name / f"{index}.png")


def test_the_training_part_of_idx_files_is_taken(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (6, 8, 9))
    write_idx(tmp_path, "train", images, np.array([0, 1, 2, 0, 1, 3]))
    write_idx(tmp_path, "t10k", np.zeros((2, 8, 9)), np.zeros(2))
    data = read_public_images(str(tmp_path))
    assert np.array_equal(data.images, images[:, None])
    assert data.labels.tolist() == [0, 1, 2, 0, 1, 3]
    assert (data.num_classes, data.image_shape, len(data)) == (4, (1, 8, 9), 6)


def test_npz_files_of_colour_images_are_taken(tmp_path: Path) -> None:
    path = tmp_path / "images.npz"
    images = np.random.default_rng(0).integers(0, 256, (5, 12, 10, 3), np.uint8)
    np.savez(path, images=images, labels=np.array([[0], [1], [1], [0], [2]]))
    data = read_public_images(str(path))
    assert np.array_equal(data.images, images.transpose(0, 3, 1, 2))
    assert data.labels.tolist() == [0, 1, 1, 0, 2]


def test_class_folders_are_numbered_as_they_are_sorted(tmp_path: Path) -> None:
    write_pictures(tmp_path, {"cat": 2, "bird": 3})
    data = read_public_images(str(tmp_path))
    assert data.image_shape == (3, 10, 9)
    assert data.labels.tolist() == [0, 0, 0, 1, 1]  # bird, cat
    assert data.images[3, 0, 0, 0] == 0  # of cat


def test_a_single_folder_has_no_classes_and_labels_may_be_left_out(tmp_path: Path) -> None:
    write_pictures(tmp_path / "one", {"all": 4})
    data = read_public_images(str(tmp_path / "one"))
    assert (data.num_classes, data.labels.tolist()) == (0, [0, 0, 0, 0])
    write_pictures(tmp_path / "two", {"a": 1, "b": 2})
    data = read_public_images(str(tmp_path / "two"), with_labels=False)
    assert (data.num_classes, data.labels.tolist()) == (0, [0, 0, 0])


def test_images_are_fitted_to_the_size_that_is_asked_for_and_it_is_told(tmp_path: Path) -> None:
    write_pictures(tmp_path, {"a": 1, "b": 1}, (40, 30))
    data = read_public_images(str(tmp_path), size=(16, 16))
    assert data.image_shape == (3, 16, 16)
    assert any("scaled" in note for note in data.notes)


def test_other_images_or_labels_have_another_digest(tmp_path: Path) -> None:
    images, labels = np.zeros((4, 8, 8), np.uint8), np.array([0, 1, 0, 1])
    digests = set()
    for name, other in (("a", images), ("b", images + 1), ("a-again", images)):
        np.savez(tmp_path / f"{name}.npz", images=other, labels=labels)
        digests.add(read_public_images(str(tmp_path / f"{name}.npz")).sha256())
    np.savez(tmp_path / "c.npz", images=images, labels=labels[::-1])
    digests.add(read_public_images(str(tmp_path / "c.npz")).sha256())
    assert len(digests) == 3


def _npz(path: Path, images: np.ndarray, labels: np.ndarray) -> str:
    np.savez(path / "images.npz", images=images, labels=labels)
    return str(path / "images.npz")


def _flat(path: Path) -> str:
    Image.new("L", (9, 9)).save(path / "image.png")
    return str(path)


def _text(path: Path) -> str:
    (path / "images.csv").write_text("1,2,3")
    return str(path / "images.csv")


def _bomb(path: Path) -> str:
    (path / "a").mkdir()
    (path / "a" / "image.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"\0" * 40)
    return str(path)


UINT8 = np.zeros((2, 8, 8), np.uint8)
REFUSED = {
    "missing": lambda path: str(path / "nothing"),
    "an-empty-folder": str,
    "pictures-without-a-folder": _flat,
    "a-broken-picture": _bomb,
    "a-text-file": _text,
    "floats": lambda path: _npz(path, UINT8.astype(float), np.array([0, 1])),
    "labels-that-are-no-numbers": lambda path: _npz(path, UINT8, np.array([0.5, 1])),
    "negative-labels": lambda path: _npz(path, UINT8, np.array([0, -1])),
    "no-labels": lambda path: _npz(path, UINT8, np.zeros(0, np.int64)),
    "fewer-labels": lambda path: _npz(path, UINT8, np.array([1])),
    "no-images": lambda path: _npz(path, UINT8[:0], np.array([0, 1])),
    "a-vector": lambda path: _npz(path, np.zeros(2, np.uint8), np.array([0, 1])),
    "huge-labels": lambda path: _npz(path, UINT8, np.array([0, 10**12])),
    "an-unknown-data-set": lambda path: f"torchvision:Nothing:{path}",
    "a-data-set-that-is-not-there": lambda path: f"torchvision:FashionMNIST:{path}",
}


@pytest.mark.parametrize("name", REFUSED)
def test_data_that_cannot_be_used_are_refused_in_one_line(name: str, tmp_path: Path) -> None:
    source = REFUSED[name](tmp_path)
    with pytest.raises(GenKDError) as refused:
        read_public_images(source)
    assert isinstance(refused.value, InputFileRefused | UsageError)
    assert "\n" not in str(refused.value)
    assert refused.value.hint


def test_a_size_is_read() -> None:
    assert parse_size("32x28") == (32, 28)


@pytest.mark.parametrize("text", ["", "32", "x", "32x", "x32", "-1x3", "3x3x3", "²x3", "axb"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not a size"):
        parse_size(text)
