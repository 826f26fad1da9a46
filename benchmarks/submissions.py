"""Signed submissions through the coordinator's intake: each valid one counts exactly once.

    python benchmarks/submissions.py [--count 1000] [--student-bytes 100000] [--json]

Every node of a federation in memory sends one signed release for one round; some are sent twice or
more, some are altered in one of the ways of `INVALID`. What came in is compared with the store and
with the disk. `run_submissions` is the same for other benchmarks and for the tests.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import resource
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec

from coordinator.intake import Intake
from coordinator.intake_rules import IntakeRules, SharedStudent
from coordinator.store import Store
from genkd.canonical import canonical_json
from genkd.provenance.chain import Answer, Block, Entry, Verdict
from genkd.provenance.draft import Draft, sign_draft
from genkd.provenance.node_keys import NodeKeys
from genkd.provenance.profile import make_profile
from genkd.provenance.receipt import Receipt
from genkd.provenance.record import StudentRecord, commit_to_teacher, key_hash
from genkd.provenance.release import RECEIPT_NAME, read_release
from genkd.provenance.secp256k1 import address_of
from genkd.provenance.statement import STUDENT_NAME
from genkd.provenance.typed_data import Domain, keccak256
from genkd.safetensors_header import read_header

DOMAIN = Domain(31337, "0x5FbDB2315678afecb367f032d93F642f64180aa3")
RUN = keccak256(b"submissions")
ROUND = 1
NOW = 1_800_000_000
CLASSES = ("shirt", "shoe", "bag", "coat")
CARD: Mapping[str, object] = {
    "v": 1,
    "architecture": "resnet8-half",
    "num_classes": len(CLASSES),
    "input": {"height": 32, "width": 32, "channels": 1, "mean": ["0.5"], "std": ["0.25"]},
    "class_names": list(CLASSES),
    "description": "",
}


def student_file(
    seed: int,
    *,
    size: int = 4096,
    card: Mapping[str, object] = CARD,
    change: Callable[[dict[str, np.ndarray]], object] = lambda tensors: None,
) -> bytes:
    """A model file of this project, written without torch.

    Args:
        seed: Of its weights.
        size: About how many bytes.
        card: Its card's JSON.
        change: Alters its tensors.
    """
    values = np.random.default_rng(seed).standard_normal((max(1, size // 16), 4)) / 10
    tensors = {
        "fc.weight": values.astype("<f4"),
        "bn.running_mean": np.zeros(4, "<f4"),
        "bn.running_var": np.ones(4, "<f4"),
    }
    change(tensors)
    fields: dict[str, object] = {
        "__metadata__": {"genkd": canonical_json({"v": 1, "card": card}).decode()}
    }
    position = 0
    for name, array in tensors.items():
        dtype = {"<f4": "F32", "<f8": "F64", "<f2": "F16", "|u1": "F8_E4M3"}[array.dtype.str]
        offsets = [position, position + array.nbytes]
        fields[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": offsets}
        position += array.nbytes
    text = json.dumps(fields, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    head = len(text).to_bytes(8, "little") + text
    return head + b"".join(array.tobytes() for array in tensors.values())


def make_keys(secret: int) -> NodeKeys:
    """The keys of a node, made from a number; the key after `secret` is `secret + 1`."""
    signing_key = ec.derive_private_key(secret + 1000, ec.SECP256R1())
    profile = make_profile(secret, signing_key, bytes(32), key_hash(address_of(secret + 1)))
    return NodeKeys(secret, signing_key, profile)


def signed_release(keys: NodeKeys, student: bytes, **changes: object) -> dict[str, bytes]:
    """The four files of a release of `ROUND`.

    Args:
        keys: Its node's.
        student: The distilled model file.
        **changes: Other values of its `Draft`.
    """
    draft = Draft(
        student=student,
        domain=DOMAIN,
        run_id=RUN,
        round=ROUND,
        parents=(),
        teacher_commitment=teacher_of(keys),
        recipe={"name": "quick"},
        evaluation={"competence.0": "0.9"},
        version="0.1.0",
        deadline=NOW + 3600,
    )
    return sign_draft(replace(draft, **changes), keys)  # type: ignore[arg-type]


def teacher_of(keys: NodeKeys) -> bytes:
    """What the node committed to."""
    return commit_to_teacher(keys.address, keccak256(b"teacher"), keccak256(b"salt"))


class EnrolledNodes:
    """A registry in which nodes are enrolled and have committed; nothing is recorded yet.

    `MemoryChain` keeps a copy of its state for each block, too much for a thousand nodes.
    """

    def __init__(self, domain: Domain) -> None:
        self.domain = domain
        self.profiles: dict[str, bytes] = {}

    def enrol(self, keys: NodeKeys) -> None:
        """Enrol a node, its teacher committed."""
        self.profiles[keys.address] = keys.profile.profile_hash()

    def chain_id(self) -> int:
        """The chain id."""
        return self.domain.chain_id

    def fault_of_contract(self) -> str | None:
        """None."""
        return None

    def look_up(self, record: StudentRecord, signature: bytes, proof: Sequence[bytes]) -> Answer:
        """The verdict on a record that nobody has recorded."""
        profile = self.profiles.get(record.node)
        since, until, teacher = (NOW - 3600, 2**48 - 1, NOW - 1800) if profile else (0, 0, 0)
        record_id = record.digest(self.domain)
        times = (since, until, 0, 0, teacher, 0)
        verdict = Verdict(1, record_id, profile or bytes(32), record.node, *times, False, 0, 0, 0)
        return Answer(verdict, verdict)

    def block(self, number: int) -> Block | None:
        """The one block."""
        return Block(NOW, frozenset())

    def entries(self, record_ids: Sequence[bytes]) -> Sequence[Entry | None]:
        """Nothing is recorded."""
        return [None for _ in record_ids]


def _flip_a_bit(files: dict[str, bytes], keys: NodeKeys) -> dict[str, bytes]:
    student = bytearray(files[STUDENT_NAME])
    student[-1] ^= 1
    return files | {STUDENT_NAME: bytes(student)}


def _of_another_round(files: dict[str, bytes], keys: NodeKeys) -> dict[str, bytes]:
    return signed_release(keys, files[STUDENT_NAME], round=ROUND + 1)


def _not_enrolled(files: dict[str, bytes], keys: NodeKeys) -> dict[str, bytes]:
    stranger = make_keys(7)  # enrolled nowhere
    return signed_release(stranger, files[STUDENT_NAME], deadline=NOW + 3600 + len(keys.address))


def _a_thousand_times(files: dict[str, bytes], keys: NodeKeys) -> dict[str, bytes]:
    student = files[STUDENT_NAME]
    header = read_header(student)
    weights = header.tensors["fc.weight"]
    start, end = header.data_offset + weights.start, header.data_offset + weights.end
    larger = np.frombuffer(student[start:end], "<f4") * np.float32(1000)
    return signed_release(keys, student[:start] + larger.tobytes() + student[end:])


def _signed_by_another(files: dict[str, bytes], keys: NodeKeys) -> dict[str, bytes]:
    receipt = Receipt.from_bytes(files[RECEIPT_NAME])
    signature = make_keys(7).sign(receipt.record, DOMAIN)
    return files | {RECEIPT_NAME: replace(receipt, signature=signature).to_bytes()}


INVALID: Mapping[str, Callable[[dict[str, bytes], NodeKeys], dict[str, bytes]]] = {
    "bit flipped": _flip_a_bit,
    "another round": _of_another_round,
    "node not enrolled": _not_enrolled,
    "weights x1000": _a_thousand_times,
    "signed by another": _signed_by_another,
}


@dataclass(frozen=True)
class Outcome:
    """What became of the submissions.

    Attributes:
        submitted: How many there were.
        valid: How many different valid ones.
        accepted: How many times the intake said that one counts, which did not before.
        duplicates: How many times it said that one counted before.
        refused: How many it refused.
        lost: Valid ones that do not count, or whose files are not on the disk as they were sent.
        intruders: What counts and should not.
        seconds: In the intake alone.
        grown_bytes: By how much the process grew at its largest.
    """

    submitted: int
    valid: int
    accepted: int
    duplicates: int
    refused: int
    lost: int
    intruders: int
    seconds: float
    grown_bytes: int

    @property
    def exactly_once(self) -> bool:
        """Whether each valid release counts once, and nothing else does."""
        return self.accepted == self.valid and not self.lost and not self.intruders


def run_submissions(
    folder: Path,
    count: int = 1000,
    *,
    duplicates: float = 0.1,
    invalid: float = 0.05,
    student_bytes: int = 100_000,
    seed: int = 0,
) -> Outcome:
    """Send signed releases through an intake and compare with what it kept.

    Args:
        folder: An empty federation folder.
        count: How many submissions.
        duplicates: Share of them that repeats an earlier valid one.
        invalid: Share of them that is altered.
        student_bytes: About the size of a student.
        seed: Of the order in which they come.
    """
    chance = random.Random(seed)  # noqa: S311 (no secret)
    again, altered = round(count * duplicates), round(count * invalid)
    plan = ["valid"] * (count - again - altered) + ["again"] * again + ["altered"] * altered
    chance.shuffle(plan)
    plan.sort(key=lambda kind: kind == "again" and not chance.randrange(4))  # some come at the end
    start = folder / "start.safetensors"
    folder.mkdir(parents=True, exist_ok=True)
    start.write_bytes(student_file(0, size=student_bytes))
    rules = IntakeRules(DOMAIN, RUN, ROUND, SharedStudent.read(start))
    chain, expected, said = EnrolledNodes(DOMAIN), dict[bytes, bytes](), Counter[str]()
    ways = list(INVALID.values())
    seconds, before = 0.0, _peak()
    with Store.open(folder) as store:
        intake = Intake(store, folder, rules, chain, clock=lambda: NOW)
        for number, kind in enumerate(plan):
            if kind == "again" and expected:
                files = _stored(store, chance.choice(list(expected)))
            else:
                keys = make_keys(10_000 + 10 * number)
                chain.enrol(keys)
                files = signed_release(keys, student_file(number + 1, size=student_bytes))
                if kind == "altered":
                    files = ways[number % len(ways)](files, keys)
                else:
                    expected[Receipt.from_bytes(files[RECEIPT_NAME]).record_id()] = _hash(files)
            began = time.perf_counter()
            result = intake.submit(files, sender=number + 1)
            seconds += time.perf_counter() - began
            said["duplicate" if result.duplicate else str(result.accepted)] += 1
        counted = [one.record_id for one in store.accepted(RUN, ROUND)]
        lost = [
            record_id
            for record_id, content in expected.items()
            if counted.count(record_id) != 1 or _hash(_stored(store, record_id)) != content
        ]
    return Outcome(
        submitted=count,
        valid=len(expected),
        accepted=said["True"],
        duplicates=said["duplicate"],
        refused=said["False"],
        lost=len(lost),
        intruders=len(set(counted) - expected.keys()),
        seconds=seconds,
        grown_bytes=_peak() - before,
    )


def _stored(store: Store, record_id: bytes) -> dict[str, bytes]:
    """The files of an accepted release, as they lie on the disk."""
    found = store.accepted_record(record_id)
    if found is None or found.path is None or not found.path.is_dir():
        return {}
    read_release(found.path)  # exactly the four
    return {path.name: path.read_bytes() for path in found.path.iterdir()}


def _hash(files: Mapping[str, bytes]) -> bytes:
    return b"".join(hashlib.sha256(files[name]).digest() for name in sorted(files))


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--student-bytes", type=int, default=100_000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        outcome = run_submissions(
            Path(folder) / "federation", options.count, student_bytes=options.student_bytes
        )
    figures = asdict(outcome) | {"exactly_once": outcome.exactly_once}
    if options.json:
        print(json.dumps(figures))
    else:
        print("\n".join(f"{name:<14} {value}" for name, value in figures.items()))


if __name__ == "__main__":
    main()
