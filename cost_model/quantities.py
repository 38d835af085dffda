"""Numbers in and out: JSON without loss, text for people."""

from __future__ import annotations

import math
from typing import Any

from cost_model.errors import ClusterError


def number_out(value: float) -> float | str:
    """Return a float as JSON holds it: infinity, which JSON lacks, becomes the string "inf"."""
    return "inf" if math.isinf(value) else value


def number_in(value: Any) -> float:
    """Invert `number_out`; anything that is no number is refused."""
    if isinstance(value, bool) or not (isinstance(value, int | float) or value == "inf"):
        raise ClusterError(f"A number was expected where {value!r} is written.")
    return float(value)


def count_in(value: Any) -> int:
    """Return a whole number from JSON; anything else is refused rather than rounded."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise ClusterError(f"A whole number was expected where {value!r} is written.")
    return value


def flag_in(value: Any) -> bool:
    """Return true or false from JSON; anything else is refused."""
    if not isinstance(value, bool):
        raise ClusterError(f"True or false was expected where {value!r} is written.")
    return value


def show_rate(rate: float, unit: str) -> str:
    """`show_rate(4.8e10, "B/s")` is "48.0 GB/s"."""
    if math.isinf(rate):
        return f"inf {unit}"
    for scale, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if rate >= scale:
            return f"{rate / scale:.1f} {prefix}{unit}"
    return f"{rate:.3g} {unit}"


def show_bytes(count: float) -> str:
    """`show_bytes(3 << 30)` is "3.0 GiB"."""
    for scale, prefix in ((1 << 60, "E"), (1 << 40, "T"), (1 << 30, "G"), (1 << 20, "M"), (1 << 10, "K")):
        if count >= scale:
            return f"{count / scale:.1f} {prefix}iB"
    return f"{count:.0f} B"


def show_seconds(seconds: float) -> str:
    """`show_seconds(3.2e-5)` is "32.0 us"."""
    for scale, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")):
        if seconds >= scale:
            return f"{seconds / scale:.1f} {unit}"
    return f"{seconds / 1e-9:.1f} ns" if seconds else "0 s"
