"""JSON with one byte sequence per value, and a strict reader for JSON from others.

    canonical_json({"b": 1, "a": ["x"]}) == b'{"a":["x"],"b":1}'

What is signed or hashed must have one spelling: UTF-8, keys sorted by code point, no spaces, and no
floating-point numbers (write them as decimal strings). Integers stay within +-(2^53 - 1), the range
every JSON implementation reads exactly (RFC 8259, section 6).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from itertools import accumulate
from typing import NoReturn

MAX_INTEGER = 2**53 - 1
MAX_DEPTH = 32
# Reading a number takes time by the square of its digits; none that is of use has as many.
MAX_DIGITS = 32
# Strings, whose brackets do not count, and what lies between brackets. One that never ends is taken
# to the end of the text: to try each of its quotes anew would take time by the square.
NO_BRACKETS = re.compile(r'(?:[^\[\]{}"]++|"(?:[^"\\]++|\\.)*+(?:"|\\?\Z))++', re.DOTALL)
DEPTH_STEP = {"[": 1, "{": 1, "]": -1, "}": -1}


def canonical_json(value: object) -> bytes:
    """The canonical UTF-8 bytes of `value`.

    Args:
        value: None, a bool, an int in +-(2^53 - 1), a str, or a list, tuple or string-keyed mapping
            of such values, at most `MAX_DEPTH` deep.

    Raises:
        ValueError: If `value` holds anything else, such as a float, or text that is not Unicode.
    """
    plain = _plain(value, MAX_DEPTH)
    text = json.dumps(plain, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return text.encode("utf-8")  # UnicodeEncodeError, of a lone surrogate, is a ValueError


def _plain(value: object, depth: int) -> object:
    if depth < 0:
        raise ValueError(f"nested deeper than {MAX_DEPTH}")
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        if abs(value) > MAX_INTEGER:
            raise ValueError("an integer beyond 2^53 - 1 is written as a string")
        return int(value)
    if isinstance(value, list | tuple):
        return [_plain(item, depth - 1) for item in value]
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise ValueError(f"keys are strings, not {type(key).__name__}")
        return {key: _plain(item, depth - 1) for key, item in value.items()}
    raise ValueError(f"{type(value).__name__} has no canonical form (floats are decimal strings)")


def parse_json(data: bytes | str, *, allow_floats: bool = False) -> object:
    """The value of JSON text from somebody else; no key may stand twice in an object.

    Args:
        data: The text, UTF-8 if bytes. The caller bounds its length.
        allow_floats: Whether numbers with a fraction or an exponent are read; if not, they are
            refused. NaN, Infinity and integers of more than `MAX_DIGITS` digits always are.

    Raises:
        ValueError: If it is not such JSON, in one short line.
    """
    try:
        text = data if isinstance(data, str) else data.decode("utf-8")
        _require_shallow(text)
        value = json.loads(
            text,
            object_pairs_hook=_unique,
            parse_constant=_refuse_number,
            parse_int=_integer,
            parse_float=float if allow_floats else _refuse_number,
        )
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start}") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON at character {error.pos}") from error
    result: object = value  # json gives Any; `object` makes callers look
    return result


def _require_shallow(text: str) -> None:
    """Refuse text nested deeper than `MAX_DEPTH` before the parser sees it.

    Python's parser recurses in C: where a library has raised the recursion limit, as some do when
    they are imported, deep text does not raise an error but ends the process.
    """
    steps = map(DEPTH_STEP.__getitem__, NO_BRACKETS.sub("", text))
    if max(accumulate(steps), default=0) > MAX_DEPTH:
        raise ValueError(f"nested too deeply: more than {MAX_DEPTH} levels")


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"the key {key[:64]!a} stands twice")
            seen.add(key)
    return result


def _integer(text: str) -> int:
    return int(text) if len(text) <= MAX_DIGITS else _refuse_number(text)


def _refuse_number(text: str) -> NoReturn:
    raise ValueError(f"the number {text[:32]} is not allowed here")
