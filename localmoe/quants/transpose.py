"""Turning rows into columns by way of a small square."""

from __future__ import annotations

import numpy as np

from localmoe.jit import njit

_SIDE = 32


@njit
def transpose(x: np.ndarray, out: np.ndarray) -> None:
    """out[c, r] = x[r, c].

    Whole cache lines are read into a square and written from it: rows are often a power of two apart, so that lines of
    several rows push each other out of the cache before they are used up.
    """
    rows, columns = x.shape
    square = np.empty((_SIDE, _SIDE), out.dtype)
    for r in range(0, rows, _SIDE):
        n_rows = min(_SIDE, rows - r)
        for c in range(0, columns, _SIDE):
            n_columns = min(_SIDE, columns - c)
            for i in range(n_rows):
                for j in range(n_columns):
                    square[j, i] = x[r + i, c + j]
            for j in range(n_columns):
                for i in range(n_rows):
                    out[c + j, r + i] = square[j, i]
