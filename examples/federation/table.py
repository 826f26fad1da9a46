"""How much each student of a federation knows: the table at the end of the demo.

    python examples/federation/table.py demo-federation
    python examples/federation/table.py demo-federation --images FOLDER_OF_FASHION_MNIST

    figures = measure([NodeRelease("node-1", path, ("Trouser", "Coat")), ...], merged, images)
    figures.merged, figures.weight_average, figures.nodes[0].own_before

Every student is asked about all classes of the federation; right is the true class among all.
Nothing that is measured here goes back into a federation.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from genkd.averaging import average
from genkd.card import ModelCard
from genkd.errors import GenKDError
from genkd.evaluate import load_student
from genkd.images import LabelledImages, read_images
from genkd.merge import ensemble_of, member_of
from genkd.provenance.release import read_receipt
from genkd.provenance.statement import STUDENT_NAME
from genkd.weights import STUDENT_FILE, read_card, read_header

SHIPPED_IMAGES = Path(__file__).parents[1] / "fashion_mnist" / "test_images.npz"
BATCH = 500
DEMO_FILE, TABLE_FILE = "demo.json", "table.json"


@dataclass(frozen=True)
class NodeRelease:
    """A node's release of a round.

    Attributes:
        name: What people call the node.
        release: The release directory.
        classes: The classes that its teacher knows, by name.
    """

    name: str
    release: Path
    classes: tuple[str, ...]


@dataclass(frozen=True)
class NodeFigures:
    """What a node has, and what it gets. All accuracies are in 0..1.

    Attributes:
        name: What people call the node.
        classes: The classes that its teacher knows.
        accuracy: Its student's, on the images of all classes.
        own_before: Its student's, on the images of its own classes.
        own_after: The merged student's, on the images of the node's own classes.
        own_after_among_own: The same, its answer sought among those classes only, as the node
            itself may do: its own images are of no other.
    """

    name: str
    classes: tuple[str, ...]
    accuracy: float
    own_before: float
    own_after: float
    own_after_among_own: float


@dataclass(frozen=True)
class RoundFigures:
    """One round. All accuracies are on the images of all classes, in 0..1.

    Attributes:
        images: How many images were shown.
        nodes: The nodes.
        weight_average: Of the student with the mean of all weights; None if the students differ.
        uniform_ensemble: Of the mean of the students' probabilities.
        gated_ensemble: Of the students as the merge asks them, see `genkd.ensemble`.
        merged: Of the merged student.
    """

    images: int
    nodes: tuple[NodeFigures, ...]
    weight_average: float | None
    uniform_ensemble: float
    gated_ensemble: float
    merged: float


def measure(
    nodes: Sequence[NodeRelease], merged: Path, data: LabelledImages, card: ModelCard
) -> RoundFigures:
    """Measure a round.

    Args:
        nodes: The releases that were merged.
        merged: The merged student's model file.
        data: Labelled images, their labels places in the classes of `card`.
        card: The federation's student.

    Raises:
        InputFileRefused: If a release or the merged student cannot be read.
        ConfigurationError: If one has a class that the card does not name.
    """
    names = card.class_names or ()
    labels = torch.from_numpy(data.labels)
    students = [load_student(node.release / STUDENT_NAME).among(names) for node in nodes]
    said = [_probabilities(student, data) for student in students]
    by_merged = _probabilities(load_student(merged).among(names), data)
    ensemble = ensemble_of([member_of(node.release) for node in nodes], card)
    averaged = _average_of([node.release / STUDENT_NAME for node in nodes], data)
    return RoundFigures(
        images=len(labels),
        nodes=tuple(
            _node_figures(node, [names.index(one) for one in node.classes], own, by_merged, labels)
            for node, own in zip(nodes, said, strict=True)
        ),
        weight_average=None if averaged is None else _accuracy(averaged, labels),
        uniform_ensemble=_accuracy(torch.stack(said).mean(0), labels),
        gated_ensemble=_accuracy(_probabilities(ensemble, data), labels),
        merged=_accuracy(by_merged, labels),
    )


def _node_figures(
    node: NodeRelease, own: list[int], by_node: Tensor, by_merged: Tensor, labels: Tensor
) -> NodeFigures:
    here = torch.isin(labels, torch.tensor(own))
    others = torch.ones(by_merged.shape[1], dtype=torch.bool)
    others[own] = False
    return NodeFigures(
        name=node.name,
        classes=node.classes,
        accuracy=_accuracy(by_node, labels),
        own_before=_accuracy(by_node[here], labels[here]),
        own_after=_accuracy(by_merged[here], labels[here]),
        own_after_among_own=_accuracy(by_merged[here].masked_fill(others, -1.0), labels[here]),
    )


def _accuracy(probabilities: Tensor, labels: Tensor) -> float:
    return float((probabilities.argmax(1) == labels).double().mean())


@torch.inference_mode()
def _probabilities(model: Callable[[Tensor], Tensor], data: LabelledImages) -> Tensor:
    """What a model with logits or log-probabilities says of all images: float32 (N, K)."""
    images = torch.from_numpy(data.images)
    return torch.cat([model(part.float() / 255).softmax(1) for part in images.split(BATCH)])


def _average_of(students: list[Path], data: LabelledImages) -> Tensor | None:
    """What the student with the mean of all weights says; None if they cannot be averaged."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / STUDENT_NAME
        try:
            average(students, path)
        except GenKDError:
            return None
        return _probabilities(load_student(path), data)


# ------------------------------------------------------------------ for people


def render(rounds: Sequence[RoundFigures], source: str) -> list[str]:
    """The table of all rounds, and of each node's own classes after the last one."""
    last = rounds[-1]
    all_classes = [("", [f"round {number}" for number in range(1, len(rounds) + 1)])]
    for index, node in enumerate(last.nodes):
        label = f"{node.name}'s student ({_listed(node.classes)})"
        all_classes.append((label, [_percent(one.nodes[index].accuracy) for one in rounds]))
    for label, name in (
        ("average of their weights", "weight_average"),
        ("uniform ensemble of them", "uniform_ensemble"),
        ("gated ensemble: what the merge learns from", "gated_ensemble"),
        ("MERGED STUDENT", "merged"),
    ):
        all_classes.append((label, [_percent(getattr(one, name)) for one in rounds]))
    own = [("", ["own student", "merged", "merged, among its classes"])]
    for node in last.nodes:
        figures = (node.own_before, node.own_after, node.own_after_among_own)
        own.append((f"{node.name} ({_listed(node.classes)})", [_percent(one) for one in figures]))
    return [
        f"Right of {last.images:,} test images of all classes ({source})",
        *_aligned(all_classes),
        "",
        f"Right of the test images of a node's own classes, after round {len(rounds)}",
        *_aligned(own),
    ]


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _listed(names: Sequence[str], most: int = 4) -> str:
    return ", ".join(names) if len(names) <= most else f"{', '.join(names[:2])} ... {names[-1]}"


def _aligned(rows: Sequence[tuple[str, Sequence[str]]]) -> list[str]:
    first = max(len(label) for label, _ in rows)
    widths = [max(map(len, column)) for column in zip(*(cells for _, cells in rows), strict=True)]
    return [
        f"  {label:<{first}}" + "".join(f"  {c:>{w}}" for c, w in zip(cells, widths, strict=True))
        for label, cells in rows
    ]


# ------------------------------------------------------------------ of a demo


def measure_demo(folder: Path, images: str | Path) -> list[RoundFigures]:
    """Measure each round of a demo, from what lies in its coordinator's folder."""
    demo = json.loads((folder / DEMO_FILE).read_text(encoding="utf-8"))
    federation = folder / "coordinator" / "federation"
    card, data, figures = None, None, []
    for number in range(1, demo["rounds"] + 1):
        place = Path(demo["run_id"]) / f"round-{number:06d}"
        by_node = {
            read_receipt(path).record.node: path
            for path in sorted((federation / "releases" / place).glob("student-0x*"))
        }
        (merged,) = (federation / "merged" / place).glob("student-0x*")
        if data is None or card is None:
            card = read_card(read_header(merged / STUDENT_NAME, STUDENT_FILE))
            if card is None:
                raise SystemExit(f"{merged} has no card")
            data = read_images(images, card)
        nodes = [
            NodeRelease(one["name"], by_node[one["address"]], tuple(one["classes"]))
            for one in demo["nodes"]
        ]
        figures.append(measure(nodes, merged / STUDENT_NAME, data, card))
    return figures


def main() -> None:
    """Measure the rounds of a demo, show them, keep them in table.json."""
    parser = argparse.ArgumentParser(description="How much each student of a federation knows.")
    parser.add_argument("folder", type=Path, help="the demo's, or one like it")
    parser.add_argument(
        "--images",
        type=Path,
        default=SHIPPED_IMAGES,
        help="test images as genkd-node evaluate takes them; the shipped 1,000 if not given",
    )
    arguments = parser.parse_args()
    shipped = arguments.images == SHIPPED_IMAGES
    source = "100 of each class, shipped" if shipped else str(arguments.images)
    try:
        rounds = measure_demo(arguments.folder, arguments.images)
    except GenKDError as error:
        raise SystemExit(f"error: {error.message}\nhint: {error.hint}") from error
    print("\n".join(render(rounds, source)))
    values = {"images": source, "rounds": [asdict(one) for one in rounds]}
    (arguments.folder / TABLE_FILE).write_text(json.dumps(values, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
