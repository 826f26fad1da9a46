"""JSON values as people read them: numbers, proportions, durations, sizes."""

from __future__ import annotations

ABSENT = "\N{EN DASH}"
# A longer list in a table is cut off.
MAX_ITEMS = 100


def figure(value: object) -> str:
    """A JSON value for people: four significant digits, thousands set off."""
    if value is None:
        return ABSENT
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        value = int(value)
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    if isinstance(value, float):
        return f"{value:,.0f}" if 1000 <= abs(value) < 1e9 else f"{value:.4g}"
    if isinstance(value, list):
        return ", ".join(figure(item) for item in value[:MAX_ITEMS])
    return str(value)


def percent(value: float | None) -> str:
    """0.914 as "91.4 %"."""
    return ABSENT if value is None else f"{value * 100:.1f} %"


def duration(seconds: float) -> str:
    """Seconds as "4.2 s", "9 min 58 s", "1 h 02 min"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def size(count: object) -> str:
    """Bytes as "81.2 kB", "1.3 GB": powers of 1000."""
    left = number(count)
    if left is None:
        return figure(count)
    for unit in ("B", "kB", "MB"):
        if abs(left) < 999.5:
            return f"{left:.3g} {unit}"
        left /= 1000
    return f"{left:.3g} GB"


def number(value: object) -> float | None:
    """`value` if it is a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e300:
        return None
    return value
