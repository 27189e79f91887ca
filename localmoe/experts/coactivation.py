"""How often two experts of a layer serve the same token, in memory that does not depend on the number of experts.

Up to 256 experts a layer every pair has a counter of its own. With more, a count-min sketch (Cormode & Muthukrishnan
2005) of the same size takes their place: its figures are never too low, and too high by what collides.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

CELLS = 1 << 15  # counters a layer, 128 KiB: 256 experts have 32,640 pairs
DEPTH = 4
_WIDTH_BITS = 13  # DEPTH rows of 8,192
_ODD = np.array([0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D, 0x27D4EB2F], np.uint32)  # multipliers of multiply-shift hashing


@dataclass(frozen=True)
class Pair:
    """Two experts of a layer (first < second), how many tokens chose both, and that count over what independent
    choices with the same loads would give (`lift`, NaN where unknown).
    """

    layer: int
    first: int
    second: int
    count: int
    lift: float


class PairCounts:
    """Counters of pairs, (L, rows, width) uint32: at most CELLS a layer."""

    def __init__(self, n_layer: int, n_expert: int) -> None:
        self.n_layer, self.n_expert = n_layer, n_expert
        n_pair = n_expert * (n_expert - 1) // 2
        self.exact = n_pair <= CELLS
        shape = (n_layer, 1, max(n_pair, 1)) if self.exact else (n_layer, DEPTH, 1 << _WIDTH_BITS)
        self.table = np.zeros(shape, np.uint32)

    def __add__(self, other: PairCounts) -> PairCounts:
        total = PairCounts(self.n_layer, self.n_expert)
        total.table[:] = self.table + other.table
        return total

    def add(self, experts: NDArray[np.integer[Any]]) -> None:
        """Count the pairs of tokens' choices (N, L, K); -1 and anything else outside 0..E-1 is no choice."""
        left, right = np.triu_indices(experts.shape[2], 1)
        if not left.size or self.n_expert < 2:
            return
        ordered = np.sort(experts, axis=2).astype(np.int64)
        low, high = np.take(ordered, left, axis=2), np.take(ordered, right, axis=2)
        pair = np.take(ordered * (ordered - 1) // 2, right, axis=2) + low
        n_row, width = self.table.shape[1:]
        layer = np.broadcast_to((np.arange(self.n_layer) * n_row * width)[:, None], pair.shape)
        real = (low >= 0) & (high < self.n_expert) & (low < high)
        if not real.all():
            pair, layer = pair[real], layer[real]
        flat = self.table.reshape(-1)  # one index and a value of the counters' type: NumPy's fast way
        for row, column in enumerate(self._columns(pair)):
            np.add.at(flat, (layer + row * width + column).reshape(-1), np.uint32(1))

    def _columns(self, pair: NDArray[np.int64]) -> list[NDArray[np.integer[Any]]]:
        """Where each pair is counted in every row."""
        if self.exact:
            return [pair]
        small = pair.astype(np.uint32)
        return [(small * odd) >> np.uint32(32 - _WIDTH_BITS) for odd in _ODD]

    def layer(self, layer: int) -> NDArray[np.int64]:
        """Counts of all pairs of a layer, (E x (E - 1) / 2,), the pair (a < b) at b (b - 1) / 2 + a."""
        pair = np.arange(self.n_expert * (self.n_expert - 1) // 2)
        rows = [self.table[layer, row, column] for row, column in enumerate(self._columns(pair))]
        least: NDArray[np.int64] = np.min(rows, axis=0).astype(np.int64)
        return least

    def count(self, layer: int, a: int, b: int) -> int:
        """Tokens that chose both a and b in a layer."""
        low, high = min(a, b), max(a, b)
        assert 0 <= low < high < self.n_expert
        columns = self._columns(np.array([high * (high - 1) // 2 + low]))
        return int(min(self.table[layer, row, column[0]] for row, column in enumerate(columns)))

    def top(self, layer: int, n: int, routed: NDArray[np.int64], n_token: int) -> list[Pair]:
        """The layer's n most frequent pairs, those never seen left out; `routed` (E,) are the layer's loads."""
        counts = self.layer(layer)
        order = np.argsort(-counts, kind="stable")[:n]
        found = []
        for at in order[counts[order] > 0].tolist():
            second = int((1 + np.sqrt(1 + 8 * at)) / 2)
            first = at - second * (second - 1) // 2
            chance = float(routed[first]) * float(routed[second])
            lift = float(counts[at]) * n_token / chance if chance else float("nan")
            found.append(Pair(layer, first, second, int(counts[at]), lift))
        return found
