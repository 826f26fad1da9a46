"""EIP-712: the bytes a wallet signs for a structured message, without an Ethereum library.

    separator = Domain(chain_id=1, contract="0x...").separator()
    digest = typed_digest(separator, hash_struct("Teacher(bytes32 commitment,...)", values))

Every struct of this project has only static members, so each is one 32-byte word and the encoding
is a concatenation (EIP-712, "Definition of encodeData"). Importing an ABI coder for it would cost
a verifier a tenth of a second.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from Crypto.Hash import keccak as _keccak

from genkd.errors import InputFileRefused

WORD = 32
NAME: Final = "GenKD"
VERSION: Final = "1"
# JSON numbers above this lose digits in other languages; EIP-2294 bounds chain ids far above it.
MAX_SAFE_INTEGER = 2**53 - 1

MEMBER = re.compile(r"(bytes32|address|uint(?:8|32|48|64|256)) ([A-Za-z]+)")
ADDRESS = re.compile(r"0x[0-9a-fA-F]{40}")
BYTES32 = re.compile(r"0x[0-9a-f]{64}")


def keccak256(data: bytes) -> bytes:
    """The Keccak-256 of Ethereum (not the later SHA3-256), 32 bytes."""
    return _keccak.new(data=data, digest_bits=256).digest()


def to_address(raw: bytes) -> str:
    """20 bytes as an address with the mixed-case checksum of EIP-55."""
    if len(raw) != 20:
        raise ValueError(f"an address has 20 bytes, not {len(raw)}")
    digits = raw.hex()
    nibbles = keccak256(digits.encode()).hex()
    pairs = zip(digits, nibbles, strict=False)
    return "0x" + "".join(d.upper() if int(n, 16) >= 8 else d for d, n in pairs)


def parse_address(text: object) -> str:
    """An address as a person or a file gives it, in checksum form.

    All-lower-case and all-upper-case digits carry no checksum and are accepted, as wallets do.

    Raises:
        InputFileRefused: If it is not an address, or its checksum is wrong (a typing mistake).
    """
    if not isinstance(text, str) or not ADDRESS.fullmatch(text):
        raise InputFileRefused(
            f"{_shortened(text)} is not an Ethereum address",
            hint="an address is 0x and 40 hexadecimal digits",
        )
    digits = text[2:]
    address = to_address(bytes.fromhex(digits))
    if digits not in (digits.lower(), digits.upper()) and text != address:
        raise InputFileRefused(
            f"the checksum of the address {text} is wrong",
            hint="copy the address again: a character was changed (EIP-55)",
        )
    return address


def parse_bytes32(text: object) -> bytes:
    """`0x` and 64 lower-case hexadecimal digits as 32 bytes.

    Raises:
        InputFileRefused: If it is anything else.
    """
    if not isinstance(text, str) or not BYTES32.fullmatch(text):
        raise InputFileRefused(
            f"{_shortened(text)} is not a 32-byte value",
            hint="a hash is 0x and 64 lower-case hexadecimal digits",
        )
    return bytes.fromhex(text[2:])


def to_hex(data: bytes) -> str:
    """Bytes as `0x` and lower-case digits."""
    return "0x" + data.hex()


def _shortened(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


@lru_cache(maxsize=32)
def members(type_string: str) -> tuple[tuple[str, str], ...]:
    """(type, name) of each member of a type string such as `Teacher(bytes32 commitment)`."""
    inside = type_string[type_string.index("(") + 1 : -1]
    found = []
    for member in inside.split(","):
        match = MEMBER.fullmatch(member)
        if match is None:
            raise ValueError(f"{member!r} is not a member this encoder knows")
        found.append((match[1], match[2]))
    return tuple(found)


def encode_word(kind: str, value: bytes | str | int) -> bytes:
    """One member as its 32-byte word.

    Raises:
        ValueError: If the value does not fit its type.
    """
    if kind == "bytes32" and isinstance(value, bytes) and len(value) == WORD:
        return value
    if kind == "address" and isinstance(value, str) and ADDRESS.fullmatch(value):
        return bytes(12) + bytes.fromhex(value[2:])
    if kind.startswith("uint") and isinstance(value, int) and not isinstance(value, bool):
        if 0 <= value < 2 ** int(kind[4:]):
            return value.to_bytes(WORD, "big")
        raise ValueError(f"{value} does not fit a {kind}")
    raise ValueError(f"a {type(value).__name__} is not a {kind}")


def hash_struct(type_string: str, values: Sequence[bytes | str | int]) -> bytes:
    """`hashStruct` of EIP-712: keccak of the type's hash and the members' words.

    Args:
        type_string: `Name(type name,...)` with no spaces after commas.
        values: One value for each member, in order.

    Raises:
        ValueError: If a value does not fit its member.
    """
    pairs = zip(members(type_string), values, strict=True)
    words = [encode_word(kind, value) for (kind, _), value in pairs]
    return keccak256(keccak256(type_string.encode()) + b"".join(words))


def typed_digest(separator: bytes, struct_hash: bytes) -> bytes:
    r"""What is signed: keccak(0x19 0x01 | domain separator | struct hash)."""
    return keccak256(b"\x19\x01" + separator + struct_hash)


# A node profile is made before any chain is chosen, so its domain names neither chain nor contract.
PROFILE_SEPARATOR = keccak256(
    keccak256(b"EIP712Domain(string name,string version)")
    + keccak256(NAME.encode())
    + keccak256(VERSION.encode())
)


@dataclass(frozen=True)
class Domain:
    """Where a signature counts: one contract on one chain. Anywhere else it is a replay.

    Attributes:
        chain_id: EIP-155 chain id, 1 to 2^53 - 1.
        contract: The registry's address, checksum form.
    """

    chain_id: int
    contract: str

    def __post_init__(self) -> None:
        if isinstance(self.chain_id, bool) or not 1 <= self.chain_id <= MAX_SAFE_INTEGER:
            raise InputFileRefused(
                f"{_shortened(self.chain_id)} is not a chain id",
                hint=f"a chain id is a number from 1 to {MAX_SAFE_INTEGER}",
            )
        object.__setattr__(self, "contract", parse_address(self.contract))

    def separator(self) -> bytes:
        """The domain separator of {GenKD, 1, chainId, contract}, 32 bytes."""
        kind = "EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"
        return keccak256(
            keccak256(kind.encode())
            + keccak256(NAME.encode())
            + keccak256(VERSION.encode())
            + encode_word("uint256", self.chain_id)
            + encode_word("address", self.contract)
        )
