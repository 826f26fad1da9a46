"""Where a bare student file says it comes from: chain, registry, node, run and round.

    data = stamp(student, origin)
    read_origin(data) == origin

The file alone then tells where to look for its release, and a copycat who publishes it under
another name contradicts the file itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from genkd.canonical import canonical_json
from genkd.errors import InputFileRefused
from genkd.provenance.typed_data import Domain, parse_address, parse_bytes32, to_hex
from genkd.safetensors_header import METADATA_KEY, OUR_METADATA
from genkd.weights import STUDENT_FILE, check_finite, read_card, read_header, read_metadata

ORIGIN_KEY = "provenance"


@dataclass(frozen=True)
class Origin:
    """Where a bare student file says it comes from, so that its release can be looked for.

    Attributes:
        domain: The registry of its federation.
        node: The node that made it.
        run_id: The run, 32 bytes.
        round: The round.
    """

    domain: Domain
    node: str
    run_id: bytes
    round: int

    def to_json(self) -> dict[str, str | int]:
        """Plain values for the file's metadata."""
        return {
            "chainId": self.domain.chain_id,
            "registry": self.domain.contract,
            "node": self.node,
            "runId": to_hex(self.run_id),
            "round": self.round,
        }

    @classmethod
    def from_json(cls, value: object) -> Origin:
        """The inverse of `to_json`.

        Raises:
            InputFileRefused: If it is anything else.
        """
        wanted = {"chainId", "registry", "node", "runId", "round"}
        if not isinstance(value, Mapping) or set(value) != wanted:
            raise _no_origin("does not name chain, registry, node, run and round")
        if type(value["chainId"]) is not int or type(value["round"]) is not int:
            raise _no_origin("names a chain or a round that is not a number")
        domain = Domain(value["chainId"], parse_address(value["registry"]))
        run_id = parse_bytes32(value["runId"])
        return cls(domain, parse_address(value["node"]), run_id, value["round"])


def _no_origin(reason: str) -> InputFileRefused:
    return InputFileRefused(
        f"the student file {reason}", hint="only a published student carries its provenance"
    )


def stamp(student: bytes, origin: Origin) -> bytes:
    """A student file with its origin in the metadata; card and tensors stay as they are.

    Args:
        student: The bytes of a model file of this project.
        origin: Replaces an origin that is there.

    Raises:
        InputFileRefused: If it is no such file.
    """
    header = read_header(student, STUDENT_FILE)
    metadata = canonical_json({**read_metadata(header), ORIGIN_KEY: origin.to_json()})
    fields: dict[str, object] = {METADATA_KEY: {OUR_METADATA: metadata.decode("utf-8")}}
    for name, info in header.tensors.items():
        fields[name] = {
            "dtype": info.dtype,
            "shape": list(info.shape),
            "data_offsets": [info.start, info.end],
        }
    text = json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + student[header.data_offset :]


def read_origin(student: bytes) -> Origin:
    """Check a student file strictly and return where it says it comes from.

    Raises:
        InputFileRefused: If the file is hostile, damaged, holds values that are not finite, has no
            model card, or does not say where it comes from.
    """
    header = read_header(student, STUDENT_FILE)
    check_finite(student, header)
    read_card(header)
    return Origin.from_json(read_metadata(header).get(ORIGIN_KEY))
