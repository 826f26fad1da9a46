"""The contract ABI, as far as the registry uses it: words, structs of words, bytes, lists of words.

    data = encode_call("verify", record_values, signature, proof)
    words = Words(answer, count=3)
    identity = words.take("address")

An answer is checked as it is read: its length, and that each word fits its type. The full coder of
the Ethereum libraries takes longer to import than a verification takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from contracts.artifact import artifact, selector
from genkd.errors import CannotCheck
from genkd.provenance.typed_data import WORD, encode_word, to_address

BITS: Final = {"address": 160, "bool": 1, "uint8": 8, "uint32": 32, "uint48": 48, "uint256": 256}


def encode_call(function: str, *arguments: Any) -> bytes:
    """The call data of one of the registry's functions.

    Args:
        function: Its name.
        arguments: One for each parameter: bytes for bytes32 and bytes, a checksum address, a
            number, a sequence of values for a struct, of bytes for bytes32[].

    Raises:
        KeyError: If there is no such function.
        ValueError: If an argument does not fit its parameter.
    """
    return selector(function) + encode(_parameters(function), arguments)


def encode_creation(owner: str) -> bytes:
    """The creation code of a registry with this owner: the compiled code, then the argument."""
    return bytes.fromhex(artifact()["bytecode"][2:]) + encode(["address"], [owner])


def _parameters(function: str) -> list[str]:
    """The types of a function's parameters; a struct as its members', in parentheses."""
    for signature in artifact()["methodIdentifiers"]:
        name, _, inside = signature.partition("(")
        if name == function:
            return _split(inside[:-1])
    raise KeyError(function)


def _split(types: str) -> list[str]:
    """`(bytes32,address),bytes` at its outer commas."""
    found, depth = [""], 0
    for letter in types:
        depth += (letter == "(") - (letter == ")")
        if letter == "," and depth == 0:
            found.append("")
        else:
            found[-1] += letter
    return [one for one in found if one]


def encode(types: Sequence[str], values: Sequence[Any]) -> bytes:
    """Head and tail of the contract ABI's `enc`: what is of no fixed length comes last.

    Raises:
        ValueError: If a value does not fit its type.
    """
    parts = [
        (_is_dynamic(kind), _encode(kind, value)) for kind, value in zip(types, values, strict=True)
    ]
    tail_at = sum(WORD if dynamic else len(encoded) for dynamic, encoded in parts)
    head, tail = b"", b""
    for dynamic, encoded in parts:
        head += encode_word("uint256", tail_at + len(tail)) if dynamic else encoded
        tail += encoded if dynamic else b""
    return head + tail


def _is_dynamic(kind: str) -> bool:
    return kind == "bytes" or kind.endswith("[]")


def _encode(kind: str, value: Any) -> bytes:
    if kind.startswith("("):
        return encode(_split(kind[1:-1]), value)
    if kind == "bytes":
        padded = bytes(value) + bytes(-len(value) % WORD)
        return encode_word("uint256", len(value)) + padded
    if kind == "bytes32[]":
        return encode_word("uint256", len(value)) + encode(["bytes32"] * len(value), value)
    return encode_word(kind, value)


class Words:
    """The words of an answer, taken one after the other.

    Args:
        data: What a call returned.
        count: How many words it must be.

    Raises:
        CannotCheck: If it is longer or shorter.
    """

    def __init__(self, data: bytes, count: int) -> None:
        if len(data) != count * WORD:
            raise malformed()
        self._data = data
        self._next = 0

    def take(self, kind: str) -> Any:
        """The next word: bytes for `bytes32`, a checksum address, a bool or a number.

        Raises:
            CannotCheck: If it does not fit its type.
        """
        word = self._data[self._next : self._next + WORD]
        self._next += WORD
        if kind == "bytes32":
            return word
        number = int.from_bytes(word, "big")
        if number >> BITS[kind]:
            raise malformed()
        if kind == "address":
            return to_address(word[12:])
        return bool(number) if kind == "bool" else number


def malformed() -> CannotCheck:
    """The error for an answer that our registry would not give."""
    return CannotCheck(
        "the endpoint's answer is not one of this version's registry",
        hint="check the registry's address and the chain it is on, or ask another endpoint",
    )
