"""The environment's variables that are numbers."""

from __future__ import annotations

import math
import os

_LEAST = {"IDP_LEASE_SECONDS": "above 0", "IDP_CACHE_GIB": "0 or more"}


def number_from_environment(name: str, default: float) -> float:
    """Return a variable's number, or the default where it is none, which `wrong_numbers` tells by name."""
    value = _number(os.environ.get(name, ""))
    return value if math.isfinite(value) and value > 0 else default


def wrong_numbers() -> list[str]:
    """Return what is wrong with variables that are to be numbers, a line for each."""
    wrong = []
    for name, expected in _LEAST.items():
        text = os.environ.get(name)
        if text is None:
            continue
        value = _number(text)
        if not math.isfinite(value) or value < 0 or (value == 0 and expected == "above 0"):
            wrong.append(f"{name}={text!r:.80}: expected a number, {expected}; or leave it unset")
    return wrong


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
