"""Whole numbers that a caller gives: Python's and NumPy's, and nothing that would have to be rounded or parsed."""

from __future__ import annotations

import operator
from typing import Any


def whole(value: Any) -> int | None:
    """The number as an int; None for what is none, as a bool, a float or text."""
    if isinstance(value, bool):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None
