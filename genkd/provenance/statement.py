"""The provenance statement: what a student was made from and how, in a form others' tools read.

    data = statement.to_bytes()                 # provenance.json; its sha256 is in the record
    Statement.from_bytes(data) == statement

An in-toto Statement v1 (https://in-toto.io/Statement/v1) with the SLSA provenance predicate v1
(https://slsa.dev/spec/v1.0/provenance). Digests identify; names and figures only inform. It is
canonical JSON: no floating-point numbers (figures are decimal strings), no paths, one spelling.
Unknown fields and versions are refused, because what a verifier does not understand it cannot vouch
for. Reading and writing round-trip byte for byte.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from types import MappingProxyType

from genkd.canonical import canonical_json, parse_json
from genkd.errors import InputFileRefused
from genkd.provenance.typed_data import (
    MAX_SAFE_INTEGER,
    parse_address,
    parse_bytes32,
    to_hex,
)

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "urn:genkd:distillation:1"
NODE_URN = "urn:genkd:node:"
STUDENT_NAME = "student.safetensors"

MAX_STATEMENT_BYTES = 2**20
MAX_PARENTS = 10_000
MAX_ENTRIES = 4096  # a thousand classes with a few figures each; bytes are bounded besides
NAME = re.compile(r"[A-Za-z0-9_.:@-]{1,80}")
# Text of a recipe: printable, and nothing that could be a path or a URL of the node.
TEXT = re.compile(r"[^\x00-\x1f\x7f/\\]{0,200}")
# Any finite float64 without an exponent: at most 309 digits before the point, 340 after it.
DECIMAL = re.compile(r"-?(?:0|[1-9][0-9]{0,308})(?:\.[0-9]{1,340})?")
VERSION = re.compile(r"[0-9A-Za-z.+-]{1,40}")

RecipeValue = str | int | bool | None


def competence_figure(label: int) -> str:
    """The name of the figure that tells how well a student knows the class at that position.

    Whoever merges students reads it; see `genkd.ensemble`.
    """
    return f"competence.{label}"


def decimal_string(value: float) -> str:
    """A finite number as the shortest decimal text that reads back to it, without an exponent.

    Raises:
        ValueError: If it is NaN or infinite.
    """
    if not math.isfinite(value):
        raise ValueError(f"{value} has no decimal form")
    text = format(Decimal(repr(float(value))), "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


@dataclass(frozen=True)
class Statement:
    """What provenance.json says.

    Attributes:
        file_hash: sha256 of student.safetensors, 32 bytes.
        tensor_root: Its tensor root, 32 bytes.
        teacher_commitment: `record.commit_to_teacher`, 32 bytes.
        parents: Record ids of the students it was made from, sorted.
        run_id: 32 bytes.
        round: 0 to 2^32 - 1.
        node: The node's address.
        profile_hash: Hash of the node's profile, so that the keys cannot be swapped afterwards.
        version: Version of the program that made it.
        recipe: The settings of the distillation; text, whole numbers, truth values, None; numbers
            with a fraction as decimal strings.
        evaluation: Figures by name, decimal strings. What the node claims; nobody else measured it.

    Raises:
        InputFileRefused: If a value does not fit.
    """

    file_hash: bytes
    tensor_root: bytes
    teacher_commitment: bytes
    parents: tuple[bytes, ...]
    run_id: bytes
    round: int
    node: str
    profile_hash: bytes
    version: str
    recipe: Mapping[str, RecipeValue]
    evaluation: Mapping[str, str]

    def __post_init__(self) -> None:
        object.__setattr__(self, "recipe", MappingProxyType(dict(self.recipe)))
        object.__setattr__(self, "evaluation", MappingProxyType(dict(self.evaluation)))
        if list(self.parents) != sorted(set(self.parents)) or len(self.parents) > MAX_PARENTS:
            raise _bad("its parents are not sorted, or one is named twice")
        if not 0 <= self.round < 2**32:
            raise _bad("its round is out of range")
        if not VERSION.fullmatch(self.version):
            raise _bad("its version is malformed")
        if max(len(self.recipe), len(self.evaluation)) > MAX_ENTRIES:
            raise _bad(f"it has more than {MAX_ENTRIES} settings or figures")
        for name, value in self.recipe.items():
            _check_setting(name, value)
        for name, figure in self.evaluation.items():
            _check_figure(name, figure)

    def to_bytes(self) -> bytes:
        """Canonical JSON; what is hashed, signed and stored.

        Raises:
            InputFileRefused: If that is larger than anybody reads.
        """
        teacher = {
            "name": "teacher",
            "digest": {"genkdTeacherCommitment": self.teacher_commitment.hex()},
        }
        parents = [{"name": "parent", "digest": {"genkdRecordId": p.hex()}} for p in self.parents]
        profile = {"name": "node-profile", "digest": {"genkdProfile": self.profile_hash.hex()}}
        subject = {
            "name": STUDENT_NAME,
            "digest": {"sha256": self.file_hash.hex(), "genkdTensorRoot": self.tensor_root.hex()},
        }
        data = canonical_json(
            {
                "_type": STATEMENT_TYPE,
                "subject": [subject],
                "predicateType": PREDICATE_TYPE,
                "predicate": {
                    "buildDefinition": {
                        "buildType": BUILD_TYPE,
                        "externalParameters": {
                            "runId": to_hex(self.run_id),
                            "round": self.round,
                            "recipe": self.recipe,
                        },
                        "resolvedDependencies": [teacher, *parents],
                    },
                    "runDetails": {
                        "builder": {
                            "id": NODE_URN + self.node,
                            "version": {"genkd-node": self.version},
                            "builderDependencies": [profile],
                        },
                        # SLSA: fields of one's own carry the producer's prefix.
                        "metadata": {"genkd_evaluation": self.evaluation},
                    },
                },
            }
        )
        if len(data) > MAX_STATEMENT_BYTES:
            raise _bad(f"it is larger than {MAX_STATEMENT_BYTES} bytes")
        return data

    @classmethod
    def from_bytes(cls, data: bytes) -> Statement:
        """Parse bytes whose hash was checked.

        Raises:
            InputFileRefused: If they are not exactly what `to_bytes` writes for some statement.
        """
        if len(data) > MAX_STATEMENT_BYTES:
            raise _bad(f"it is larger than {MAX_STATEMENT_BYTES} bytes")
        try:
            statement = _parse(parse_json(data))
            spelled_alike = statement.to_bytes() == data
        except ValueError as error:  # also of a lone surrogate, which UTF-8 cannot spell
            raise _bad(str(error)) from error
        # One comparison refuses every unknown field, other type URI and second spelling.
        if not spelled_alike:
            raise _bad("it has unknown fields, another version, or another spelling")
        return statement


def _parse(value: object) -> Statement:
    """Read what a statement holds; the caller compares what it would write."""
    predicate = _object(_object(value), "predicate")
    definition, details = _object(predicate, "buildDefinition"), _object(predicate, "runDetails")
    parameters = _object(definition, "externalParameters")
    digests = _object(_first(_object(value), "subject"), "digest")
    dependencies = _list(definition, "resolvedDependencies")
    builder = _object(details, "builder")
    profile = _object(_first(builder, "builderDependencies"), "digest")
    teacher, *parents = (_object(_object(one), "digest") for one in dependencies)
    node = str(builder.get("id")).removeprefix(NODE_URN)
    recipe, evaluation = (
        _object(parameters, "recipe"),
        _object(_object(details, "metadata"), "genkd_evaluation"),
    )
    round_number = parameters.get("round")
    if type(round_number) is not int:
        raise ValueError("its round is not a number")
    return Statement(
        file_hash=_digest(digests, "sha256"),
        tensor_root=_digest(digests, "genkdTensorRoot"),
        teacher_commitment=_digest(teacher, "genkdTeacherCommitment"),
        parents=tuple(_digest(one, "genkdRecordId") for one in parents),
        run_id=parse_bytes32(parameters.get("runId")),
        round=round_number,
        node=parse_address(node),
        profile_hash=_digest(profile, "genkdProfile"),
        version=str(_object(builder, "version").get("genkd-node")),
        recipe=recipe,  # type: ignore[arg-type] # Statement checks every value
        evaluation=evaluation,  # type: ignore[arg-type]
    )


def _object(value: object, name: str | None = None) -> dict[str, object]:
    if name is not None:
        value = value.get(name) if isinstance(value, dict) else None
    if not isinstance(value, dict):
        raise ValueError(f"it has no {name or 'object'} where one is expected")
    return value


def _list(parent: dict[str, object], name: str) -> list[object]:
    value = parent.get(name)
    if not isinstance(value, list) or not value:
        raise ValueError(f"it has no {name}")
    return value


def _first(parent: dict[str, object], name: str) -> dict[str, object]:
    return _object(_list(parent, name)[0])


def _digest(digests: dict[str, object], name: str) -> bytes:
    return parse_bytes32(f"0x{digests.get(name)}")


def _check_setting(name: object, value: object) -> None:
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise _bad("a setting has no proper name")
    if value is None or (isinstance(value, int) and abs(value) <= MAX_SAFE_INTEGER):
        return  # a bool is an int
    if not isinstance(value, str) or not TEXT.fullmatch(value):
        raise _bad(f"the setting {name} is neither a short text without paths nor a whole number")


def _check_figure(name: object, figure: object) -> None:
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise _bad("a figure has no proper name")
    if not isinstance(figure, str) or not DECIMAL.fullmatch(figure):
        raise _bad(f"the figure {name} is not a decimal string")


def _bad(reason: str) -> InputFileRefused:
    return InputFileRefused(
        f"the provenance statement is not usable: {reason}",
        hint="ask the node for its release again",
    )
