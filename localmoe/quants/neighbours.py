"""What encoders look up in a grid: the point with a group's levels, or those nearest to it.

Source: ggml-quants.c, `iq2xs_init_impl` and `iq3xs_init_impl`.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np

from localmoe.jit import njit

from .codebooks import grid

_DISTANCES = {"IQ1_S": 3, "IQ2_S": 1, "IQ3_S": 3}  # of which all neighbours count; else 2


class Book(NamedTuple):
    """A grid as encoders search it.

    `levels` uint8 (points, 8 or 4): 0, 1, 2, or to 7. `by_code` int32: for a group's levels, 2 or 3 bits each from the
    lowest on, the point, or -1 - start, where `neighbours[start]` says how many points follow it there.
    """

    levels: np.ndarray
    by_code: np.ndarray
    neighbours: np.ndarray


@cache
def book(name: str) -> Book:
    """The grid of a type by its name, and its neighbours."""
    values = grid(name)
    steps = np.unique(values)
    levels = np.searchsorted(steps, values).astype(np.uint8)
    bits = 2 if values.shape[1] == 8 else 3
    shifts = bits * np.arange(values.shape[1])
    codes = (np.arange(1 << (bits * values.shape[1]))[:, None] >> shifts) & ((1 << bits) - 1)
    index = np.full(len(codes), np.iinfo(np.int32).min, np.int32)
    index[(levels.astype(np.int64) << shifts).sum(axis=1)] = np.arange(len(levels))
    elsewhere = np.flatnonzero((codes.max(axis=1) < len(steps)) & (index < 0))
    starts = np.empty(len(elsewhere), np.int32)
    places = np.ascontiguousarray(codes[elsewhere], np.uint8)
    neighbours = list_neighbours(places, np.ascontiguousarray(levels), _DISTANCES.get(name, 2), starts)
    index[elsewhere] = -1 - starts
    return Book(np.ascontiguousarray(levels), index, neighbours)


@njit
def list_neighbours(places: np.ndarray, levels: np.ndarray, wanted: int, starts: np.ndarray) -> np.ndarray:
    """For each place the number of points at the `wanted` smallest distances, and then these, the nearest first.

    Points at one distance are in the grid's order. Where a place's list begins is put to `starts`.
    """
    out, n = np.empty(len(places) * 64, np.int32), 0
    squares, counts = np.empty(len(levels), np.int32), np.empty(256, np.int32)
    for place in range(len(places)):
        counts[:] = 0
        for point in range(len(levels)):
            square = 0
            for i in range(levels.shape[1]):
                difference = int(places[place, i]) - int(levels[point, i])
                square += difference * difference
            squares[point] = square
            counts[square] += 1
        if n + len(levels) + 1 > len(out):
            longer = np.empty(2 * len(out) + len(levels), np.int32)
            longer[:n] = out[:n]
            out = longer
        first, found = n, 0
        starts[place] = first
        n += 1
        for square in range(256):
            if counts[square] == 0:
                continue
            for point in range(len(levels)):
                if squares[point] == square:
                    out[n] = point
                    n += 1
            found += 1
            if found == wanted:
                break
        out[first] = n - first - 1
    return out[:n].copy()
