"""What encoders look up in a grid: the point with a group's levels, or of those near it the best one.

Source: ggml-quants.c, `iq2xs_init_impl`, `iq3xs_init_impl`, `iq2_find_best_neighbour` and its like.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np

from localmoe.jit import njit

from .codebooks import grid
from .lanes import (
    N,
    bits,
    get_f,
    load_u8,
    numbers,
    select,
    smallest,
    splat_f,
    splat_i,
    to_f,
)  # fmt: skip

HEAD = 2  # numbers before a list's points
_MOST = np.float32(np.finfo(np.float32).max)
_LAST = np.int32(np.iinfo(np.int32).max)
_DISTANCES = {"IQ1_S": 3, "IQ2_S": 1, "IQ3_S": 3}  # of which all neighbours count; else 2


class Book(NamedTuple):
    """A grid as encoders search it.

    `levels` uint8 (points, 8 or 4): 0, 1, 2, or to 7. `by_code` int32: for a group's levels, 2 or 3 bits each from the
    lowest on, the point, or -1 - start: at `neighbours[start]` are the number of points near it, the tile in which
    their levels begin, and the points. `tiles` uint8 (tiles, 8 or 4, 16): level i of sixteen points, the last repeated.
    `words` int32 (2, points): the levels as bytes, four a word.
    """

    levels: np.ndarray
    by_code: np.ndarray
    neighbours: np.ndarray
    tiles: np.ndarray
    words: np.ndarray


@cache
def book(name: str) -> Book:
    """The grid of a type by its name, and its neighbours."""
    values = grid(name)
    steps = np.unique(values)
    levels = np.searchsorted(steps, values).astype(np.uint8)
    width = 2 if values.shape[1] == 8 else 3
    shifts = width * np.arange(values.shape[1])
    codes = (np.arange(1 << (width * values.shape[1]))[:, None] >> shifts) & ((1 << width) - 1)
    index = np.full(len(codes), np.iinfo(np.int32).min, np.int32)
    index[(levels.astype(np.int64) << shifts).sum(axis=1)] = np.arange(len(levels))
    elsewhere = np.flatnonzero((codes.max(axis=1) < len(steps)) & (index < 0))
    starts = np.empty(len(elsewhere), np.int32)
    places = np.ascontiguousarray(codes[elsewhere], np.uint8)
    levels = np.ascontiguousarray(levels)
    neighbours = list_neighbours(places, levels, _DISTANCES.get(name, 2), starts)
    index[elsewhere] = -1 - starts
    eight = np.zeros((len(levels), 8), np.uint8)
    eight[:, : levels.shape[1]] = levels
    words = np.ascontiguousarray(eight.view(np.int32).T)
    return Book(levels, index, neighbours, _tiles(neighbours, starts, levels), words)


def _tiles(neighbours: np.ndarray, starts: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """The tiles of all lists one after the other; where each list's begin is put into its head."""
    counts = neighbours[starts]
    ends = np.cumsum(-(-counts // N))
    neighbours[starts + 1] = ends - -(-counts // N)
    tiles = np.empty((ends[-1] if len(ends) else 0, levels.shape[1], N), np.uint8)
    for start, count, first, end in zip(starts, counts, neighbours[starts + 1], ends, strict=True):
        at = np.minimum(np.arange((end - first) * N), count - 1)
        points = neighbours[start + HEAD + at].reshape(-1, N)
        tiles[first:end] = levels[points].transpose(0, 2, 1)
    return tiles


@njit
def nearest_neighbour(book: Book, start: int, values: int, roots: int, scale: Any, factor: Any, moved: Any) -> Any:
    """The first point of the list at `start` with the least weighted distance from a group.

    `values` and `roots` are the addresses of the group's numbers and of their weights; a point's numbers are
    factor * level + moved, times `scale`. The first of all where no distance is finite.
    """
    group = book.levels.shape[1]
    best, found = splat_f(_MOST), splat_i(np.int32(0))
    by, times, add = splat_f(scale), splat_f(factor), splat_f(moved)
    count = book.neighbours[start]
    tile = book.tiles.ctypes.data + book.neighbours[start + 1] * (group * N)
    for c in range((count + N - 1) // N):
        distance = splat_f(np.float32(0))
        for i in range(group):
            number = times * to_f(load_u8(tile + (c * group + i) * N)) + add
            difference = by * number - splat_f(get_f(values + 4 * i))
            distance = distance + splat_f(get_f(roots + 4 * i)) * difference * difference
        nearer = distance < best
        best = select(nearer, distance, best)
        found = select(nearer, splat_i(np.int32(c * N)), found)
    least = smallest(bits(best))  # no distance is negative, so their bits are in their order
    other = bits(best) != splat_i(least)
    at = smallest(select(other, splat_i(_LAST), found + numbers()))
    return book.neighbours[start + HEAD + at]


@njit
def list_neighbours(places: np.ndarray, levels: np.ndarray, wanted: int, starts: np.ndarray) -> np.ndarray:
    """For each place the number of points at the `wanted` smallest distances, an empty number, and the points.

    The nearest are first, those at one distance in the grid's order. Where a place's list begins is put to `starts`.
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
        if n + len(levels) + HEAD > len(out):
            longer = np.empty(2 * len(out) + len(levels), np.int32)
            longer[:n] = out[:n]
            out = longer
        first, found = n, 0
        starts[place] = first
        n += HEAD
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
        out[first] = n - first - HEAD
    return out[:n].copy()
