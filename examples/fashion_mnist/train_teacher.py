"""Train a shipped teacher: a ResNet-8 on Fashion-MNIST, and write its evaluation images.

    python examples/fashion_mnist/train_teacher.py FOLDER [--epochs 14]
    python examples/fashion_mnist/train_teacher.py FOLDER --classes 0,1,2 --out FILE
    python examples/fashion_mnist/train_teacher.py FOLDER --architecture lenet5 --out FILE

The second form trains a teacher that has seen some classes only, as a federation's nodes have; its
test accuracy is that on its own classes. The third is how lenet5.safetensors was made, a teacher
without BatchNorm, which takes a rate of up to 0.1 only.

FOLDER holds the four idx files of Fashion-MNIST (MIT licence, Zalando SE 2017), gzipped or not:
the Debian package `dataset-fashion-mnist` or torchvision brings them. Images of 28x28 pixels are
padded with black to 32x32. SGD with Nesterov momentum 0.9, one-cycle rate up to 0.4, batch 256,
weight decay 5e-4; shifts of up to two pixels and mirroring. About 10 minutes on 2 cores.

The two shipped files, top-1 on the 10,000 test images, and their sha256 (other processors, other
last bits):

    teacher.safetensors, the first form, 92.92 %
    95b8887cb3f37ebf3898ee2070fd35607b7792a42d9272d6fc10cdb6b49823a8
    lenet5.safetensors, the third, 90.62 %, 98 core-seconds
    ae1d88cb74b25e837a7affffed0834d3d3b3c4202f1f42a6b996425521fbf568

Writes teacher.safetensors (its card in the metadata) and test_images.npz (1,000 test images, 100 of
each class, drawn with seed 0) beside this script; with --out only that teacher.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from genkd.array_files import read_idx_pair
from genkd.card import InputCard, ModelCard, ModelSpec, card_to_json
from genkd.device import Device, choose_device
from genkd.digest import sha256_file
from genkd.models import build_model
from genkd.weights import write_model

HERE = Path(__file__).parent
CLASS_NAMES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
TITLES = {"resnet8": "ResNet-8", "lenet5": "LeNet-5"}
BATCH = 256
PEAK_RATE = 0.4
PLAIN_PEAK_RATE = 0.1  # without BatchNorm
SHIFT = 2  # pixels
WEIGHT_DECAY = 5e-4
WARM_UP = 0.2  # share of the steps during which the rate rises
TEST_IMAGES_PER_CLASS = 100


def read_part(folder: Path, part: str) -> tuple[Tensor, Tensor]:
    """Images uint8 (N, 1, 32, 32) and labels int64 (N,) of "train" or "t10k"."""
    files = sorted(folder.glob(f"{part}-images-idx3-ubyte*"))
    if not files:
        raise SystemExit(f"{folder} holds no {part}-images-idx3-ubyte file")
    images, labels = read_idx_pair(files[0])
    padded = nn.functional.pad(torch.from_numpy(images), (2, 2, 2, 2))[:, None]
    return padded, torch.from_numpy(labels).long()


def only(images: Tensor, labels: Tensor, classes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """The images of `classes`, labelled by their place in `classes`."""
    chosen = torch.isin(labels, torch.tensor(classes))
    return images[chosen], torch.bucketize(labels[chosen], torch.tensor(classes))


def train(
    images: Tensor, labels: Tensor, spec: ModelSpec, card: InputCard, device: Device, epochs: int
) -> nn.Module:
    """The network after the last epoch; the test set is not looked at."""
    random = torch.Generator().manual_seed(0)
    network = build_model(spec, generator=random)
    network.to(device.torch, memory_format=torch.channels_last)  # type: ignore[call-overload]
    steps = len(images) // BATCH
    normalised = any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    peak_rate = PEAK_RATE if normalised else PLAIN_PEAK_RATE
    optimizer = torch.optim.SGD(
        network.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=WEIGHT_DECAY
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, peak_rate, total_steps=epochs * steps, pct_start=WARM_UP
    )
    for epoch in range(epochs):
        order = torch.randperm(len(images), generator=random)
        for index in order[: steps * BATCH].view(steps, BATCH):
            batch = images[index]
            mirrored = torch.rand(BATCH, generator=random) < 0.5
            batch = torch.where(mirrored[:, None, None, None], batch.flip(3), batch)
            down, right = torch.randint(-SHIFT, SHIFT + 1, (2,), generator=random).tolist()
            batch = torch.roll(batch, (down, right), (2, 3))
            inputs = normalise(batch, card).to(device.torch)
            with device.autocast():
                logits = network(inputs)
            loss = nn.functional.cross_entropy(logits.float(), labels[index].to(device.torch))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1} of {epochs}: loss {loss.item():.3f}", flush=True)
    return network.eval()


def normalise(batch: Tensor, card: InputCard) -> Tensor:
    """uint8 images as the network sees them."""
    inputs = (batch.float() / 255 - card.mean[0]) / card.std[0]
    return inputs.contiguous(memory_format=torch.channels_last)


def write_test_images(images: Tensor, labels: Tensor) -> None:
    """A stratified sample of the test set, for evaluation."""
    random = np.random.default_rng(0)
    chosen = [
        random.choice(np.flatnonzero(labels.numpy() == label), TEST_IMAGES_PER_CLASS, replace=False)
        for label in range(len(CLASS_NAMES))
    ]
    index = np.sort(np.concatenate(chosen))
    np.savez_compressed(
        HERE / "test_images.npz", images=images.numpy()[index], labels=labels.numpy()[index]
    )


def main() -> None:
    """Read, train, say how good it is, write."""
    parser = argparse.ArgumentParser(description="Train the shipped Fashion-MNIST teacher.")
    parser.add_argument("folder", type=Path, help="where the idx files lie")
    parser.add_argument("--classes", default="0,1,2,3,4,5,6,7,8,9", help="labels, ascending")
    parser.add_argument("--architecture", default="resnet8")
    parser.add_argument("--out", type=Path, help="write this teacher, and nothing else")
    parser.add_argument("--epochs", type=int, default=14)
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    classes = tuple(sorted(int(label) for label in arguments.classes.split(",")))
    device = choose_device(arguments.device, "auto")
    images, labels = only(*read_part(arguments.folder, "train"), classes)
    pixels = images.float() / 255
    image_card = InputCard(
        32, 32, 1, (round(pixels.mean().item(), 4),), (round(pixels.std().item(), 4),)
    )
    spec = ModelSpec(arguments.architecture, num_classes=len(classes), in_channels=1)
    network = train(images, labels, spec, image_card, device, arguments.epochs)
    test_images, test_labels = read_part(arguments.folder, "t10k")
    accuracy = measure(network, *only(test_images, test_labels, classes), image_card, device)
    names = tuple(CLASS_NAMES[label] for label in classes)
    seen = "" if names == CLASS_NAMES else f", of {', '.join(names)} only"
    card = ModelCard(
        spec,
        image_card,
        names,
        f"{TITLES.get(spec.architecture, spec.architecture)} trained on Fashion-MNIST "
        f"(Zalando SE 2017, MIT licence){seen}; top-1 {accuracy:.2%}",
    )
    path = arguments.out or HERE / "teacher.safetensors"
    write_model(path, network.state_dict(), {"v": 1, "card": card_to_json(card)})
    if arguments.out is None:
        write_test_images(test_images, test_labels)
    print(f"{accuracy:.2%} of the test images; {path.name} sha256 {sha256_file(path)}")


def measure(
    network: nn.Module, images: Tensor, labels: Tensor, card: InputCard, device: Device
) -> float:
    """Share of the images that are classified rightly, 0..1."""
    correct = 0
    with torch.no_grad():
        for part, truth in zip(images.split(500), labels.split(500), strict=True):
            says = network(normalise(part, card).to(device.torch)).argmax(1).cpu()
            correct += int((says == truth).sum())
    return correct / len(labels)


if __name__ == "__main__":
    main()
