"""Greedy pair merging, shared by byte-level BPE (lowest rank first) and SentencePiece (highest score first)."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from itertools import pairwise

NO_MERGE = float("inf")
Rank = Callable[[str, str], float]

_SHORT = 40  # symbols up to which scanning a list for its minimum beats buckets (measured on English and code)


def merge(symbols: list[str], rank: Rank) -> list[str]:
    """Merge neighbours, the lowest `rank(left, right)` first and the leftmost among equals, until none is left.

    `rank` gives NO_MERGE for a pair that does not merge. `symbols` is consumed. O(n log n) for any input.
    """
    return _merge_short(symbols, rank) if len(symbols) <= _SHORT else _merge_long(symbols, rank)


def _merge_short(symbols: list[str], rank: Rank) -> list[str]:
    ranks = [rank(left, right) for left, right in pairwise(symbols)]
    while ranks:
        best = min(ranks)
        if best == NO_MERGE:
            break
        at = ranks.index(best)
        symbols[at] += symbols[at + 1]
        del symbols[at + 1], ranks[at]
        if at:
            ranks[at - 1] = rank(symbols[at - 1], symbols[at])
        if at < len(ranks):
            ranks[at] = rank(symbols[at], symbols[at + 1])
    return symbols


class _Chain:
    """A word's symbols as a linked list; `keys[i]` is the rank of symbol i with its right neighbour.

    Pairs wait in one bucket a rank rather than in one heap: a bucket is filled from left to right and read once,
    which is what makes a word of a million equal letters cheap. A pair that turns up with a rank not above the one
    being read (unusual: a merge that could come earlier than its parts) goes to the heap `urgent`.
    """

    def __init__(self, symbols: list[str], rank: Rank) -> None:
        n = len(symbols)
        self.symbols: list[str] = symbols
        self.following = [*range(1, n), -1]
        self.preceding = [*range(-1, n - 1)]
        pairs = list(pairwise(symbols))
        self.ranks: dict[tuple[str, str], float] = {pair: rank(*pair) for pair in set(pairs)}
        self.rank = rank
        self.keys = [self.ranks[pair] for pair in pairs]
        self.keys.append(NO_MERGE)
        self.buckets: dict[float, list[int]] = {}
        for at, key in enumerate(self.keys):
            if key != NO_MERGE:
                self.buckets.setdefault(key, []).append(at)
        self.waiting = list(self.buckets)
        heapq.heapify(self.waiting)
        self.urgent: list[tuple[float, int]] = []
        self.current = NO_MERGE

    def pair_up(self, left: int, right: int) -> None:
        """Note the rank of two symbols that became neighbours."""
        pair = (self.symbols[left], self.symbols[right])
        key = self.ranks.get(pair)
        if key is None:
            key = self.ranks[pair] = self.rank(*pair)
        self.keys[left] = key
        if key == NO_MERGE:
            return
        if key <= self.current:
            heapq.heappush(self.urgent, (key, left))
        elif key in self.buckets:
            self.buckets[key].append(left)
        else:
            self.buckets[key] = [left]
            heapq.heappush(self.waiting, key)

    def join(self, left: int) -> None:
        """Merge symbol `left` with its right neighbour."""
        right = self.following[left]
        after = self.following[right]
        self.symbols[left] += self.symbols[right]
        self.symbols[right] = ""
        self.keys[right] = self.keys[left] = NO_MERGE
        self.following[left] = after
        before = self.preceding[left]
        if before >= 0:
            self.pair_up(before, left)
        if after >= 0:
            self.preceding[after] = left
            self.pair_up(left, after)

    def drain(self, limit: tuple[float, int]) -> None:
        """Do the urgent merges that come before `limit`."""
        while self.urgent and self.urgent[0] < limit:
            key, left = heapq.heappop(self.urgent)
            if self.keys[left] == key:
                self.join(left)


def _merge_long(symbols: list[str], rank: Rank) -> list[str]:
    chain = _Chain(symbols, rank)
    keys, urgent = chain.keys, chain.urgent
    while chain.waiting:
        key = chain.current = heapq.heappop(chain.waiting)
        lefts = chain.buckets.pop(key)
        lefts.sort()
        for left in lefts:
            if urgent:
                chain.drain((key, left))
            if keys[left] == key:  # else it was merged away, or its neighbour grew
                chain.join(left)
        chain.drain((key, len(keys)))
    return [symbol for symbol in symbols if symbol]
