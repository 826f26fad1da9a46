"""Values as JSON holds them: made plain, written, flattened, compared.

    difference({"recipe": {"rounds": 3}}, {"recipe": {"rounds": 4}})
    # 'recipe.rounds is 3 there, 4 here'

For configurations and events, which people read. What is signed goes through
`genkd.digest.canonical_json` instead.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

DIFFERENCES_SHOWN = 5


def plain(value: object) -> object:
    """`value` as JSON would give it back: mappings to dicts, sequences to lists, paths to strings.

    Raises:
        TypeError: If JSON cannot hold it: a tensor, a set, an object.
    """
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def finite(value: object) -> object:
    """`plain(value)` with None for NaN and infinity, which JSON does not have."""
    value = plain(value)
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def encode(values: Mapping[str, object]) -> bytes:
    """Plain values as indented UTF-8 JSON with sorted keys; equal values give equal bytes.

    Raises:
        ValueError: If a number is NaN or infinite.
    """
    text = json.dumps(values, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False)
    return text.encode() + b"\n"


def flat(value: object, name: str = "") -> Iterator[tuple[str, object]]:
    """`{"recipe": {"rounds": 3}}` as `("recipe.rounds", 3)`."""
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from flat(item, f"{name}.{key}" if name else str(key))
    else:
        yield name, value


def numbers(values: Mapping[str, object]) -> Iterator[tuple[str, float]]:
    """The finite numbers among `flat(values)` under TensorBoard's names: `losses/kd`."""
    for name, value in flat(values):
        if isinstance(value, int | float) and math.isfinite(value):
            yield name.replace(".", "/"), float(value)


def difference(there: Mapping[str, object], here: Mapping[str, object]) -> str:
    """In which keys two plain mappings differ, and how; at most `DIFFERENCES_SHOWN` of them."""
    known, wanted = dict(flat(there)), dict(flat(here))
    absent = object()  # differs from null, which is a value
    names = sorted(
        name for name in {*known, *wanted} if known.get(name, absent) != wanted.get(name, absent)
    )

    def shown(values: Mapping[str, object], name: str) -> str:
        return json.dumps(values[name], ensure_ascii=False) if name in values else "absent"

    parts = [f"{name} is {shown(known, name)} there, {shown(wanted, name)} here" for name in names]
    if len(parts) > DIFFERENCES_SHOWN:
        parts[DIFFERENCES_SHOWN:] = [f"and {len(parts) - DIFFERENCES_SHOWN} more"]
    return "; ".join(parts)
