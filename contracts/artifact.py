"""The compiled registry: its ABI, its code, and whether code found on a chain is that code.

    fault = fault_of_code(rpc.data("eth_getCode", address, "latest"), domain)

The constructor writes seven immutables into the code: what `domain` makes them is known, so the
code is compared byte for byte with those filled in, which is stricter than leaving them out: a
registry that claims the domain of another would pass a comparison with holes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from genkd.provenance.typed_data import NAME, VERSION, Domain, encode_word, keccak256

PATH: Final = Path(__file__).with_name("StudentRegistry.json")
WORD = 32


@lru_cache(maxsize=1)
def artifact() -> Mapping[str, Any]:
    """The committed artifact, as `compile.cjs` wrote it."""
    content: Mapping[str, Any] = json.loads(PATH.read_text(encoding="utf-8"))
    return content


def selector(function: str) -> bytes:
    """The four bytes that call a function of the registry, given by name (none is overloaded).

    Raises:
        KeyError: If the registry has no such function.
    """
    return _selectors()[function]


@lru_cache(maxsize=1)
def _selectors() -> dict[str, bytes]:
    found = artifact()["methodIdentifiers"].items()
    return {signature.partition("(")[0]: bytes.fromhex(digits) for signature, digits in found}


@lru_cache(maxsize=1)
def _errors() -> dict[bytes, str]:
    errors = {}
    for entry in artifact()["abi"]:
        if entry["type"] == "error":
            kinds = ",".join(one["type"] for one in entry["inputs"])
            errors[keccak256(f"{entry['name']}({kinds})".encode())[:4]] = entry["name"]
    return errors


def error_name(revert_data: bytes) -> str | None:
    """The name of the custom error that a reverted call returned, None if it is not one of ours."""
    return _errors().get(revert_data[:4])


def event_topic(event: str) -> bytes:
    """The first topic of an event's logs, 32 bytes.

    Raises:
        KeyError: If the registry has no such event.
    """
    for entry in artifact()["abi"]:
        if entry["type"] == "event" and entry["name"] == event:
            return keccak256(f"{event}({','.join(map(_canonical, entry['inputs']))})".encode())
    raise KeyError(event)


def _canonical(member: Mapping[str, Any]) -> str:
    """A member's type as signatures spell it: a struct is the tuple of its members' types."""
    kind: str = member["type"]
    if not kind.startswith("tuple"):
        return kind
    inside = ",".join(map(_canonical, member["components"]))
    return f"({inside}){kind.removeprefix('tuple')}"


def expected_code(domain: Domain) -> bytes:
    """The runtime code that the registry of this domain has."""
    code = bytearray.fromhex(artifact()["deployedBytecode"][2:])
    for name, value in _immutables(domain).items():
        for start in artifact()["immutableReferences"][name]:
            code[start : start + WORD] = value
    return bytes(code)


def _immutables(domain: Domain) -> dict[str, bytes]:
    """What OpenZeppelin's EIP712 constructor writes."""
    return {
        "_cachedChainId": encode_word("uint256", domain.chain_id),
        "_cachedDomainSeparator": domain.separator(),
        "_cachedThis": encode_word("address", domain.contract),
        "_hashedName": keccak256(NAME.encode()),
        "_hashedVersion": keccak256(VERSION.encode()),
        "_name": _short_string(NAME),
        "_version": _short_string(VERSION),
    }


def _short_string(text: str) -> bytes:
    """At most 31 bytes and, in the last one, how many (OpenZeppelin's ShortString)."""
    return text.encode().ljust(WORD - 1, b"\0") + bytes([len(text)])


def fault_of_code(code: bytes, domain: Domain) -> str | None:
    """One line on why the code at the domain's address is not this project's registry.

    Args:
        code: What the chain has there; empty if nothing.
        domain: The chain and address that the caller trusts.

    Returns:
        None if it is exactly ours.
    """
    if not code:
        return f"there is no contract at {domain.contract} on chain {domain.chain_id}"
    expected = expected_code(domain)
    if code == expected:
        return None
    if _without_immutables(code) == _without_immutables(expected):
        return f"the contract at {domain.contract} was set up for another chain or address"
    return f"the contract at {domain.contract} is not this version's registry"


def _without_immutables(code: bytes) -> bytes:
    masked = bytearray(code)
    for places in artifact()["immutableReferences"].values():
        for start in places:
            masked[start : start + WORD] = bytes(len(masked[start : start + WORD]))
    return bytes(masked)
