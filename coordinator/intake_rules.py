"""What a student must be to count in a round, beyond being signed: the rules of the federation.

    shared = SharedStudent.read(Path(".../student.safetensors"))      # what the round starts from
    rules = IntakeRules(domain, run_id, 1, shared)
    facts = rules.check(Path(".../student.safetensors"))              # or raises, saying why not

Nothing that a node says about itself is believed here. What is measured are the file's card, its
tensors' names and shapes, and the size of its numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final

from coordinator.weight_size import WeightSize, weight_size
from genkd.card import ModelCard
from genkd.digest import tensor_root
from genkd.errors import InputFileRefused, VerificationFailed
from genkd.provenance.typed_data import Domain
from genkd.safetensors_header import Header
from genkd.weights import STUDENT_FILE, read_card, read_header

MAX_RELEASE_BYTES: Final = 2**30
# Between honest networks the root mean square of the weights differs by a factor of some twenty:
# 0.01 (VGG) to 0.2 (a quarter of ResNet-8); distilling changes it by less than three. An attacker
# scales up; a network scaled down says little and is gated out of the merge.
TIMES_LARGER: Final = 10.0
TIMES_SMALLER: Final = 100.0
# Variances go with the square of a layer's scale, which means nothing behind BatchNorm: an honest
# student of the demo, right on 94 % of the test images of its classes, had 1,180.
STATISTICS_TIMES_LARGER: Final = 1e5  # than those of the shared student, and than 1
WHOSE: Final = "those of the shared student"
MEDIAN_OF: Final = 3  # how many releases a median says something about

Layout = Mapping[str, tuple[str, tuple[int, ...]]]


@dataclass(frozen=True)
class SharedStudent:
    """The student that a round starts from: the start student, or the one merged last.

    Attributes:
        card: What it is; its class names are those of the federation.
        layout: Dtype and shape of each tensor.
        tensor_root: 32 bytes.
        size: How large its numbers are.
    """

    card: ModelCard
    layout: Layout
    tensor_root: bytes
    size: WeightSize

    @classmethod
    def read(cls, path: Path) -> SharedStudent:
        """Read a student.safetensors of our own.

        Raises:
            InputFileRefused: If it is no student, or its card does not name its classes.
        """
        header = read_header(path, STUDENT_FILE)
        card = read_card(header)
        if card is None or card.class_names is None:
            raise InputFileRefused(
                f"{path} does not name its classes",
                hint="a federation knows classes by their names: give a student that has them",
            )
        root = bytes.fromhex(tensor_root(path))
        return cls(card, layout_of(header), root, weight_size(path, header))


@dataclass(frozen=True)
class StudentFacts:
    """What was found in a student that the rules allow.

    Attributes:
        architecture: Its architecture's name.
        norm: Root mean square of its weights.
    """

    architecture: str
    norm: float


@dataclass(frozen=True)
class IntakeRules:
    """What counts in one round.

    Attributes:
        domain: The trusted registry.
        run_id: The run, 32 bytes.
        round: The round.
        shared: What the round starts from.
        averaging: Whether students are averaged, and must therefore be alike in everything; if not,
            they are distilled together, and only their images and classes must be the federation's.
        max_release_bytes: The four files together.
        nodes: The nodes that take part, by address; None lets every enrolled one.
    """

    domain: Domain
    run_id: bytes
    round: int
    shared: SharedStudent
    averaging: bool = False
    max_release_bytes: int = MAX_RELEASE_BYTES
    nodes: frozenset[str] | None = None

    def check(self, path: Path) -> StudentFacts:
        """Check a student whose release was verified as signed.

        Args:
            path: Its student.safetensors.

        Raises:
            InputFileRefused, VerificationFailed: If a rule forbids it; the message says which.
        """
        header = read_header(path, STUDENT_FILE)
        card = read_card(header)
        if card is None:
            raise _refused("its student has no card")
        self._check_card(card)
        self._check_layout(card, header)
        if bytes.fromhex(tensor_root(path)) == self.shared.tensor_root:
            raise _refused("it is the shared student itself: nothing was learnt")
        size = weight_size(path, header)
        self._check_size(size)
        return StudentFacts(card.spec.architecture, size.weights)

    def _check_card(self, card: ModelCard) -> None:
        ours = self.shared.card
        if self.averaging:
            for what, one, other in (
                ("architecture, classes or channels", card.spec, ours.spec),
                ("class names", card.class_names, ours.class_names),
                ("images", card.input, ours.input),
            ):
                if one != other:
                    raise _refused(f"its {what} are not the shared student's, as averaging needs")
            return
        theirs, wanted = ((c.input.channels, c.input.height, c.input.width) for c in (card, ours))
        if theirs != wanted:
            raise _refused(f"it takes images of {_times(theirs)}, not {_times(wanted)}")
        names = card.class_names
        if names is None or len(set(names)) != len(names):
            raise _refused("its card does not name each of its classes, each by another name")
        unknown = [name for name in names if name not in set(ours.class_names or ())]
        if unknown:
            raise _refused(f"the federation does not know its class {unknown[0][:40]!a}")

    def _check_layout(self, card: ModelCard, header: Header) -> None:
        """The tensors are those of the architecture that the card names."""
        layout = layout_of(header)
        if card.spec == self.shared.card.spec and layout == self.shared.layout:
            return
        if self.averaging:
            raise _refused("its tensors are not those of the shared student, as averaging needs")
        # Only now: torch takes seconds and half a gigabyte.
        from genkd.fingerprint import expected_by, require_match

        described = f"{card.spec.architecture} with {card.spec.num_classes} classes"
        require_match(expected_by(card.spec), header, described)

    def _check_size(self, size: WeightSize) -> None:
        usual = self.shared.size
        if not plausible(size.weights, usual.weights):
            raise _refused(_out_of_size("weights", size.weights, usual.weights, WHOSE))
        if not size.statistics <= max(usual.statistics, 1.0) * STATISTICS_TIMES_LARGER:
            raise _refused(
                _out_of_size("running statistics", size.statistics, usual.statistics, WHOSE)
            )


def outliers(norms: Iterable[tuple[bytes, float]]) -> list[tuple[bytes, str]]:
    """Which releases' weights are of another size than the median's, and why that is too much.

    Args:
        norms: Record id and norm of each release of a round.
    """
    found = list(norms)
    if len(found) < MEDIAN_OF:
        return []
    usual = median(norm for _, norm in found)
    return [
        (record_id, _out_of_size("weights", norm, usual, "the median of its round"))
        for record_id, norm in found
        if not plausible(norm, usual)
    ]


def plausible(norm: float, usual: float) -> bool:
    """Whether weights of a root mean square can belong among those of the usual one."""
    return usual / TIMES_SMALLER <= norm <= usual * TIMES_LARGER


def layout_of(header: Header) -> Layout:
    """Dtype and shape of each tensor of a file."""
    return {name: (info.dtype, info.shape) for name, info in header.tensors.items()}


def _refused(reason: str) -> VerificationFailed:
    return VerificationFailed(reason, hint="publish a student that the federation can merge")


def _out_of_size(what: str, found: float, usual: float, whose: str) -> str:
    return (
        f"its {what} have a root mean square of {found:.3g}, out of proportion to {whose}, "
        f"{usual:.3g}"
    )


def _times(sizes: tuple[int, ...]) -> str:
    return "x".join(map(str, sizes))
