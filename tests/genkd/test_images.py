"""Evaluation data in every format, whole and broken."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from genkd.card import InputCard, ModelCard, ModelSpec
from genkd.errors import InputFileRefused, UsageError
from genkd.images import read_images, read_labelled_arrays


def card_of(
    side: int = 8,
    channels: int = 1,
    classes: int = 10,
    names: tuple[str, ...] | None = None,
) -> ModelCard:
    half = (0.5,) * channels
    return ModelCard(
        ModelSpec("resnet8", classes, channels), InputCard(side, side, channels, half, half), names
    )


def pictures(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


LABELS = np.array([3, 1, 4, 1, 5])


# --- .npz -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        ("images", "labels"),
        ("x_test", "y_test"),
        ("test_images", "test_labels"),
        ("x", "y"),
    ],
)
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_is_read_under_every_usual_name(
    tmp_path: Path, images: str, labels: str, save: Callable[..., None]
) -> None:
    array = pictures(5, 8, 8)
    # The training part of a Keras or MedMNIST file must not be taken for the test part.
    save(tmp_path / "a.npz", **{images: array, labels: LABELS, "x_train": array[:1]})
    data = read_images(tmp_path / "a.npz", card_of())
    assert data.images.dtype == np.uint8
    assert data.labels.dtype == np.int64
    np.testing.assert_array_equal(data.images, array[:, None])
    np.testing.assert_array_equal(data.labels, LABELS)
    assert data.notes == ()
    assert len(data) == 5


@pytest.mark.parametrize("label_type", [np.uint8, np.int32, np.uint64, ">i4"])
def test_labels_of_any_whole_number_type_and_one_column_are_taken(
    tmp_path: Path, label_type: str | type
) -> None:
    np.savez(
        tmp_path / "a.npz", images=pictures(5, 8, 8), labels=LABELS[:, None].astype(label_type)
    )
    np.testing.assert_array_equal(read_images(tmp_path / "a.npz", card_of()).labels, LABELS)


def test_channels_last_and_fortran_order_come_back_channels_first(tmp_path: Path) -> None:
    array = pictures(5, 8, 8, 3)
    np.savez(tmp_path / "a.npz", images=np.asfortranarray(array), labels=LABELS)
    data = read_images(tmp_path / "a.npz", card_of(channels=3))
    np.testing.assert_array_equal(data.images, array.transpose(0, 3, 1, 2))
    assert data.images.flags.c_contiguous
    assert data.images.flags.writeable  # torch.from_numpy warns of arrays that are not


def test_channels_first_is_kept(tmp_path: Path) -> None:
    array = pictures(5, 3, 8, 8)
    np.savez(tmp_path / "a.npz", images=array, labels=LABELS)
    np.testing.assert_array_equal(
        read_images(tmp_path / "a.npz", card_of(channels=3)).images, array
    )


def npz_with(**arrays: object) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def npz_of_members(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)
    return buffer.getvalue()


def npy(header: str, data: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    text = header.encode()
    return b"\x93NUMPY" + version + struct.pack("<H", len(text)) + text + data


HUGE = "{'descr': '|u1', 'fortran_order': False, 'shape': (1000000, 60, 60), }"
NEGATIVE = "{'descr': '|u1', 'fortran_order': False, 'shape': (-5, 8, 8), }"
SMALL = "{'descr': '|u1', 'fortran_order': False, 'shape': (1, 8, 8), }"
OBJECT = "{'descr': '|O', 'fortran_order': False, 'shape': (5,), }"
GOOD = pictures(5, 8, 8)
WHOLE = npz_with(images=GOOD, labels=LABELS)

BROKEN_NPZ = {
    "empty file": (b"", "not an intact"),
    "not a zip": (b"PK\x03\x04 and then nothing of the kind", "not an intact"),
    "cut in half": (WHOLE[: len(WHOLE) // 2], "not an intact"),
    "a flipped bit in the images": (
        WHOLE.replace(GOOD.tobytes()[:16], bytes(16)),
        "not an intact",
    ),
    "no labels": (npz_with(images=GOOD), "no arrays"),
    "nothing in it": (npz_of_members(), "no arrays"),
    "pickled objects": (
        npz_of_members(images=npy(OBJECT, pickle.dumps([1])), labels=npy(OBJECT)),
        "not an array of numbers",
    ),
    "huge shape": (npz_of_members(images=npy(HUGE), labels=npy(HUGE)), "more than the file holds"),
    "beyond memory": (
        npz_of_members(images=npy(HUGE.replace("60", "6000")), labels=b""),
        "GiB of memory",
    ),
    "beyond all numbers": (
        npz_of_members(images=npy(HUGE.replace("60, 60", "9" * 400)), labels=b""),
        "GiB of memory",
    ),
    "a header of many megabytes": (
        npz_of_members(
            images=b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**24) + b" " * 2**24, labels=b""
        ),
        "not an intact",
    ),
    "negative shape": (npz_of_members(images=npy(NEGATIVE), labels=b""), "not an array"),
    "data after the end": (
        npz_of_members(images=npy(SMALL, bytes(65)), labels=npy(SMALL)),
        "goes on after",
    ),
    "header is code": (npz_of_members(images=npy("__import__('os')"), labels=b""), "not an intact"),
    "header nested deeply": (
        npz_of_members(images=npy("-" * 9000 + "1"), labels=b""),
        "not an intact",
    ),
    "unknown array version": (
        npz_of_members(images=npy(SMALL, bytes(64), b"\x07\x00"), labels=b""),
        "7.0",
    ),
    "float images": (npz_with(images=GOOD / 255, labels=LABELS), "not uint8"),
    "float labels with NaN": (
        npz_with(images=GOOD, labels=np.array([0, 1, 2, np.nan, 1])),
        "not understood",
    ),
    "one-hot labels": (npz_with(images=GOOD, labels=np.eye(10, dtype=int)[:5]), "not understood"),
    "no images": (npz_with(images=GOOD[:0], labels=LABELS[:0]), "no images"),
    "fewer labels": (npz_with(images=GOOD, labels=LABELS[:4]), "5 images but 4 labels"),
    "label beyond the classes": (npz_with(images=GOOD, labels=LABELS + 6), "7 to 11"),
    "negative label": (npz_with(images=GOOD, labels=LABELS - 2), "-1 to 3"),
    "flat images": (npz_with(images=GOOD.reshape(5, 64), labels=LABELS), "not understood"),
    "five channels": (npz_with(images=pictures(5, 5, 8, 8), labels=LABELS), "not understood"),
}


@pytest.mark.parametrize(("data", "message"), BROKEN_NPZ.values(), ids=BROKEN_NPZ.keys())
def test_broken_npz_is_refused(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "a.npz").write_bytes(data)
    with pytest.raises(InputFileRefused, match=message) as caught:
        read_images(tmp_path / "a.npz", card_of())
    assert "\n" not in caught.value.message
    assert caught.value.hint


def test_encrypted_npz_is_refused(tmp_path: Path) -> None:
    data = bytearray(WHOLE)
    # Bit 0 of the flags, in the local and in the central header of each member.
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        start = 0
        while (start := data.find(signature, start)) >= 0:
            data[start + offset] |= 1
            start += 4
    (tmp_path / "a.npz").write_bytes(data)
    with pytest.raises(InputFileRefused, match="encrypted"):
        read_images(tmp_path / "a.npz", card_of())


# --- Fitting to the card --------------------------------------------------------------------------


def test_images_a_little_small_are_zero_padded_evenly(tmp_path: Path) -> None:
    array = pictures(5, 28, 28)
    np.savez(tmp_path / "a.npz", images=array, labels=LABELS)
    data = read_images(tmp_path / "a.npz", card_of(32))
    np.testing.assert_array_equal(data.images[:, 0, 2:30, 2:30], array)
    assert data.images.sum() == array.sum()
    assert data.notes == ("images were zero-padded from 28x28 to 32x32",)


def test_odd_padding_goes_below_and_to_the_right(tmp_path: Path) -> None:
    array = pictures(5, 15, 16)
    np.savez(tmp_path / "a.npz", images=array, labels=LABELS)
    data = read_images(tmp_path / "a.npz", card_of(16))
    np.testing.assert_array_equal(data.images[:, 0, :15], array)


def test_larger_images_are_averaged_down_without_aliasing(tmp_path: Path) -> None:
    # Columns of black and white, one pixel wide: without antialiasing they would stay either.
    stripes = np.zeros((5, 64, 64), np.uint8)
    stripes[:, :, ::2] = 255
    np.savez(tmp_path / "a.npz", images=stripes, labels=LABELS)
    data = read_images(tmp_path / "a.npz", card_of(8))
    assert data.images.shape == (5, 1, 8, 8)
    assert np.abs(data.images.astype(int) - 128).max() < 16
    assert data.notes == ("images were scaled and centre-cropped from 64x64 to 8x8",)


def test_wide_images_keep_their_aspect_ratio_and_lose_their_margins(tmp_path: Path) -> None:
    wide = np.zeros((5, 16, 48), np.uint8)
    wide[:, :, 16:32] = 200
    np.savez(tmp_path / "a.npz", images=wide, labels=LABELS)
    data = read_images(tmp_path / "a.npz", card_of(16))
    assert (data.images == 200).all()


def test_small_images_for_a_large_model_are_scaled_and_not_framed(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=np.full((5, 8, 8), 9, np.uint8), labels=LABELS)
    assert (read_images(tmp_path / "a.npz", card_of(32)).images == 9).all()


def test_gray_images_are_repeated_for_a_colour_model(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=GOOD, labels=LABELS)
    data = read_images(tmp_path / "a.npz", card_of(channels=3))
    for channel in range(3):
        np.testing.assert_array_equal(data.images[:, channel], GOOD)
    assert "repeated" in data.notes[0]


def test_colour_images_that_are_gray_are_taken_by_a_gray_model(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=GOOD[..., None].repeat(3, -1), labels=LABELS)
    data = read_images(tmp_path / "a.npz", card_of())
    np.testing.assert_array_equal(data.images[:, 0], GOOD)
    assert "taken as gray" in data.notes[0]


def test_true_colours_are_refused_by_a_gray_model(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=pictures(5, 8, 8, 3), labels=LABELS)
    with pytest.raises(InputFileRefused, match="in colour, but the model takes 1 channel"):
        read_images(tmp_path / "a.npz", card_of())


# --- idx ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [(False, False), (True, True), (True, False)])
@pytest.mark.parametrize("by_folder", [True, False])
def test_idx_files_are_read_packed_or_not(
    tmp_path: Path, packed: tuple[bool, bool], by_folder: bool
) -> None:
    contents = (("images-idx3", GOOD), ("labels-idx1", LABELS.astype(np.uint8)))
    for (name, array), is_packed in zip(contents, packed, strict=True):
        data = idx(array)
        path = tmp_path / f"t10k-{name}-ubyte{'.gz' if is_packed else ''}"
        path.write_bytes(gzip.compress(data) if is_packed else data)
        if "images" in name:
            images = path
    data = read_images(tmp_path if by_folder else images, card_of())
    np.testing.assert_array_equal(data.images[:, 0], GOOD)
    np.testing.assert_array_equal(data.labels, LABELS)


def test_idx_images_without_labels_are_refused(tmp_path: Path) -> None:
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(idx(GOOD))
    with pytest.raises(InputFileRefused, match="no labels file") as caught:
        read_images(tmp_path, card_of())
    assert "t10k-labels-idx1-ubyte" in caught.value.hint


PACKED = gzip.compress(idx(pictures(50, 8, 8)))
BROKEN_IDX = {
    "empty": (b"", False, "not an idx file"),
    "empty gz": (b"", True, "not an idx file"),
    "not an idx": (b"GIF89a" + bytes(100), False, "not an idx file"),
    "not a gz": (idx(GOOD), True, "not an intact idx"),
    "floats": (b"\0\0\x0d\x03" + bytes(100), False, "unsigned bytes"),
    "truncated header": (idx(GOOD)[:9], False, "not an intact idx"),
    "truncated": (idx(GOOD)[:-1], False, "more than the file can hold|truncated"),
    "one byte too many": (idx(GOOD) + b"x", False, "goes on after"),
    "truncated gz": (PACKED[: len(PACKED) // 2], True, "not an intact idx|truncated"),
    "gz with a wrong checksum": (PACKED[:-8] + bytes(8), True, "not an intact idx"),
    "huge sides": (b"\0\0\x08\x03" + b"\xff" * 12, False, "more than the file can hold"),
    "huge sides in gz": (
        gzip.compress(b"\0\0\x08\x03" + b"\xff" * 12),
        True,
        "more than the file can hold",
    ),
    "rank 255": (b"\0\0\x08\xff" + b"\0\0\0\1" * 255 + b"x", False, "more than the file can hold"),
    "rank 0": (b"\0\0\x08\x00" + b"x", False, "more than the file can hold"),
    "no images": (idx(GOOD[:0]), False, "no images"),
}


@pytest.mark.parametrize(("data", "packed", "message"), BROKEN_IDX.values(), ids=BROKEN_IDX.keys())
def test_broken_idx_is_refused(tmp_path: Path, data: bytes, packed: bool, message: str) -> None:
    path = tmp_path / f"t10k-images-idx3-ubyte{'.gz' if packed else ''}"
    path.write_bytes(data)
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx(LABELS.astype(np.uint8)))
    with pytest.raises(InputFileRefused, match=message):
        read_images(tmp_path, card_of())


# --- Folders --------------------------------------------------------------------------------------


def class_folders(root: Path, *names: str, side: int = 8) -> list[np.ndarray]:
    """One gray picture in each folder, in the order of `names`."""
    made = []
    for seed, name in enumerate(names):
        array = np.random.default_rng(seed).integers(0, 256, (side, side), dtype=np.uint8)
        (root / name).mkdir()
        (root / name / "a.png").write_bytes(png(array))
        made.append(array)
    return made


def test_folders_are_labelled_by_the_names_of_the_card(tmp_path: Path) -> None:
    zebra, ant = class_folders(tmp_path, "zebra", "ant")
    data = read_images(tmp_path, card_of(classes=3, names=("zebra", "bee", "ant")))
    assert dict(zip(data.labels.tolist(), data.images[:, 0].tolist(), strict=True)) == {
        0: zebra.tolist(),
        2: ant.tolist(),
    }


def test_numbered_folders_are_labelled_by_number_and_not_in_sorted_order(tmp_path: Path) -> None:
    made = class_folders(tmp_path, *(str(n) for n in range(11)))
    data = read_images(tmp_path, card_of(classes=11, names=tuple("abcdefghijk")))
    for label, image in zip(data.labels, data.images[:, 0], strict=True):
        np.testing.assert_array_equal(image, made[label])


def test_folders_of_a_nameless_model_are_labelled_in_sorted_order(tmp_path: Path) -> None:
    bird, ant = class_folders(tmp_path, "bird", "ant")
    data = read_images(tmp_path, card_of(classes=2))
    np.testing.assert_array_equal(data.images[:, 0], [ant, bird])
    assert data.labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("folders", "names", "classes", "message"),
    [
        (("cat", "dog"), ("cat", "fox"), 2, "'dog'.*not the model's classes"),
        (("cat", "dog"), None, 3, "3 folders"),
        (("0", "7"), None, 3, "3 folders"),
        (("1", "01"), None, 3, "3 folders"),
        ((), None, 3, "no class folders"),
    ],
    ids=["stranger", "too few", "number beyond the classes", "the same number twice", "none"],
)
def test_folders_that_are_not_the_models_classes_are_refused(
    tmp_path: Path,
    folders: tuple[str, ...],
    names: tuple[str, ...] | None,
    classes: int,
    message: str,
) -> None:
    class_folders(tmp_path, *folders)
    with pytest.raises(InputFileRefused, match=message):
        read_images(tmp_path, card_of(classes=classes, names=names))


def test_hidden_files_and_other_files_in_a_folder_are_passed_over(tmp_path: Path) -> None:
    class_folders(tmp_path, "0", "1")
    (tmp_path / ".cache").mkdir()
    (tmp_path / "0" / "notes.txt").write_text("not a picture")
    (tmp_path / "0" / "._a.png").write_bytes(b"what macOS leaves behind")
    assert len(read_images(tmp_path, card_of(classes=2))) == 2


def test_folders_without_pictures_are_refused(tmp_path: Path) -> None:
    (tmp_path / "0").mkdir()
    (tmp_path / "1").mkdir()
    with pytest.raises(InputFileRefused, match="no pictures"):
        read_images(tmp_path, card_of(classes=2))


@pytest.mark.parametrize("mode", ["RGB", "P", "LA", "RGBA", "1"])
def test_gray_pictures_are_gray_in_whatever_mode_they_were_saved(tmp_path: Path, mode: str) -> None:
    array = np.zeros((8, 8), np.uint8)
    array[2:5] = 255
    (tmp_path / "0").mkdir()
    Image.fromarray(array).convert(mode).save(tmp_path / "0" / "a.png")
    np.testing.assert_array_equal(
        read_images(tmp_path, card_of(names=tuple("0123456789"))).images[0, 0], array
    )


def test_pictures_of_many_sizes_come_back_in_one(tmp_path: Path) -> None:
    (tmp_path / "0").mkdir()
    for side in range(20, 30):
        Image.new("RGB", (side, side + 5), (10, 20, 30)).save(tmp_path / "0" / f"{side}.png")
    data = read_images(tmp_path, card_of(channels=3))
    assert data.images.shape == (10, 3, 8, 8)
    assert (data.images[:, 2] == 30).all()
    assert data.notes[-1] == "and other sizes likewise"


def bomb(width: int, height: int) -> bytes:
    """A PNG that says it is of that size, with hardly any data."""
    data = bytearray(png(np.zeros((1, 1), np.uint8)))
    data[16:24] = struct.pack(">II", width, height)
    import zlib

    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    return bytes(data)


def half_transparent() -> bytes:
    return png(np.full((8, 8, 4), 128, np.uint8))


def sixteen_bits() -> bytes:
    return png(np.full((8, 8), 4096, np.uint16))


BROKEN_PICTURES = {
    "empty": (b"", "not an intact picture"),
    "text": (b"<svg/>", "not an intact picture"),
    "truncated": (png(pictures(64, 64))[:-600], "not an intact picture"),
    "too many pixels": (bomb(9000, 9000), "too large"),
    "a bomb": (bomb(60000, 60000), "not an intact picture|too large"),
    "transparent": (half_transparent(), "transparent"),
    "sixteen bits": (sixteen_bits(), "not 8 bits"),
    "a program in PostScript": (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n",
        "not an intact picture",
    ),
}


@pytest.mark.parametrize(("data", "message"), BROKEN_PICTURES.values(), ids=BROKEN_PICTURES.keys())
def test_broken_picture_is_refused_by_name(tmp_path: Path, data: bytes, message: str) -> None:
    class_folders(tmp_path, "0", "1")
    (tmp_path / "1" / "bad.png").write_bytes(data)
    with pytest.raises(InputFileRefused, match=rf"bad\.png.*({message})"):
        read_images(tmp_path, card_of(classes=2))


# --- torchvision ----------------------------------------------------------------------------------


def test_torchvision_mnist_is_read_from_its_idx_files(tmp_path: Path) -> None:
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    (raw / "t10k-images-idx3-ubyte").write_bytes(idx(GOOD))
    (raw / "t10k-labels-idx1-ubyte").write_bytes(idx(LABELS.astype(np.uint8)))
    data = read_images(f"torchvision:FashionMNIST:{tmp_path}", card_of())
    np.testing.assert_array_equal(data.images[:, 0], GOOD)


@pytest.mark.parametrize(
    ("name", "labels_key", "names_key"),
    [("CIFAR10", "labels", "label_names"), ("CIFAR100", "fine_labels", "fine_label_names")],
)
def test_torchvision_cifar_is_read_from_its_batches(
    name: str, labels_key: str, names_key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each part from its own file; of CIFAR-100 the hundred classes, not the twenty kinds."""
    from torchvision import datasets

    data_set = getattr(datasets, name)
    folder = tmp_path / data_set.base_folder
    folder.mkdir()

    def write(file: str, content: dict[str, object]) -> str:
        data = pickle.dumps(content)
        (folder / file).write_bytes(data)
        return hashlib.md5(data).hexdigest()  # noqa: S324

    test, train = pictures(5, 3, 32, 32), 255 - pictures(5, 3, 32, 32)
    for part, array in (("test", test), ("train", train)):
        content = {"data": array.reshape(5, -1), labels_key: LABELS.tolist()}
        content |= {"coarse_labels": [19] * 5} if name == "CIFAR100" else {}
        monkeypatch.setattr(data_set, f"{part}_list", [[part, write(part, content)]])
    names = {names_key: list("0123456789")}
    meta = {**data_set.meta, "md5": write(data_set.meta["filename"], names)}
    monkeypatch.setattr(data_set, "meta", meta)
    data = read_images(f"torchvision:{name}:{tmp_path}", card_of(32, 3))
    np.testing.assert_array_equal(data.images, test)
    np.testing.assert_array_equal(data.labels, LABELS)
    images, labels = read_labelled_arrays(f"torchvision:{name}:{tmp_path}", "train")
    np.testing.assert_array_equal(images, train.transpose(0, 2, 3, 1))
    np.testing.assert_array_equal(labels, LABELS)


def test_torchvision_svhn_is_read_from_its_mat_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scipy_io = pytest.importorskip("scipy.io")
    from torchvision.datasets import SVHN

    array = pictures(5, 3, 32, 32)
    path = tmp_path / "test_32x32.mat"
    labels = np.where(LABELS == 0, 10, LABELS)  # SVHN calls its zeros 10
    scipy_io.savemat(path, {"X": array.transpose(2, 3, 1, 0), "y": labels[:, None]})
    md5 = hashlib.md5(path.read_bytes()).hexdigest()  # noqa: S324
    parts = {"test": ["", path.name, md5], "train": ["", "train_32x32.mat", md5]}
    monkeypatch.setattr(SVHN, "split_list", parts)
    data = read_images(f"torchvision:SVHN:{tmp_path}", card_of(32, 3))
    with pytest.raises(InputFileRefused, match="no intact torchvision data set SVHN") as caught:
        read_labelled_arrays(f"torchvision:SVHN:{tmp_path}", "train")
    assert "split='train'" in caught.value.hint
    (tmp_path / "train_32x32.mat").write_bytes(path.read_bytes())
    images, _ = read_labelled_arrays(f"torchvision:SVHN:{tmp_path}", "train")
    np.testing.assert_array_equal(images, array)
    np.testing.assert_array_equal(data.images, array)
    np.testing.assert_array_equal(data.labels, LABELS)


class Trap:
    def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
        return os.mkdir, (os.environ["GENKD_TEST_TRAP"],)


def test_a_forged_cifar_pickle_is_never_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GENKD_TEST_TRAP", str(tmp_path / "sprung"))
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in ("test_batch", "batches.meta", *(f"data_batch_{n}" for n in range(1, 6))):
        (folder / name).write_bytes(pickle.dumps(Trap()))
    with pytest.raises(InputFileRefused, match="no intact torchvision data set CIFAR10"):
        read_images(f"torchvision:CIFAR10:{tmp_path}", card_of(32, 3))
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("name", ["CIFAR10", "CIFAR100", "SVHN", "MNIST", "FashionMNIST"])
def test_torchvision_data_that_are_not_there_are_never_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise AssertionError("a socket was asked for")

    monkeypatch.setattr("socket.socket.connect", no_network)
    with pytest.raises(InputFileRefused, match=f"no intact torchvision data set {name}") as caught:
        read_images(f"torchvision:{name}:{tmp_path}", card_of(32, 3))
    assert "download=True" in caught.value.hint
    assert ("split='test'" in caught.value.hint) == (name == "SVHN")  # else it fetches the other
    assert list(tmp_path.iterdir()) == []


# --- Sources that are nothing ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "source", ["torchvision:ImageNet:/data", "torchvision:CIFAR10", "torchvision:"]
)
def test_unknown_torchvision_source_is_a_usage_error(source: str) -> None:
    with pytest.raises(UsageError, match="names no data set"):
        read_images(source, card_of())


def test_missing_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputFileRefused, match="does not exist"):
        read_images(tmp_path / "none.npz", card_of())


def test_unknown_kind_of_file_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("1,2,3")
    with pytest.raises(UsageError, match="no kind of data"):
        read_images(tmp_path / "data.csv", card_of())


def test_a_pipe_is_refused_and_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.npz")
    with pytest.raises(InputFileRefused, match="not a file"):
        read_images(tmp_path / "a.npz", card_of())
