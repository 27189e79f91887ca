"""Greedy pair merging, shared by byte-level BPE (lowest rank first) and SentencePiece (highest score first)."""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from itertools import pairwise

NO_MERGE = float("inf")

_SHORT = 40  # symbols up to which scanning a list for its minimum beats buckets (measured on English and code)


def merge(symbols: list[str], ranks: Mapping[str, float], separator: str) -> list[str]:
    """Merge neighbours, the pair of lowest rank first and the leftmost among equals, until no pair has a rank.

    `ranks` maps left + separator + right to the pair's rank. `symbols` is consumed. O(n log n) for any input.
    """
    if len(symbols) <= _SHORT:
        return _merge_short(symbols, ranks, separator)
    return _merge_long(symbols, ranks, separator)


def _merge_short(symbols: list[str], ranks: Mapping[str, float], separator: str) -> list[str]:
    rank_of = ranks.get
    keys = [rank_of(left + separator + right, NO_MERGE) for left, right in pairwise(symbols)]
    while keys:
        best = min(keys)
        if best == NO_MERGE:
            break
        at = keys.index(best)
        merged = symbols[at] = symbols[at] + symbols[at + 1]
        del symbols[at + 1], keys[at]
        if at:
            keys[at - 1] = rank_of(symbols[at - 1] + separator + merged, NO_MERGE)
        if at < len(keys):
            keys[at] = rank_of(merged + separator + symbols[at + 1], NO_MERGE)
    return symbols


def _merge_long(symbols: list[str], ranks: Mapping[str, float], separator: str) -> list[str]:
    """The same over a linked list; `keys[i]` is the rank of symbol i with its right neighbour.

    Pairs wait in one bucket a rank rather than in one heap: a bucket is filled from left to right and read once,
    which is what makes a word of a million equal letters cheap. A pair that turns up with a rank not above the one
    being read (unusual: a merge that could come earlier than its parts) goes to the heap `urgent`. It is one
    function, and makes no tuples on its usual path, because calls and the garbage collector would double its time.
    """
    n = len(symbols)
    rank_of = ranks.get
    keys = [rank_of(left + separator + right, NO_MERGE) for left, right in pairwise(symbols)]
    keys.append(NO_MERGE)
    following, preceding = [*range(1, n), -1], [*range(-1, n - 1)]
    buckets: dict[float, list[int]] = {}
    for at, key in enumerate(keys):
        if key != NO_MERGE:
            buckets.setdefault(key, []).append(at)
    waiting = list(buckets)
    heapq.heapify(waiting)
    urgent: list[tuple[float, int]] = []
    while waiting:
        current = heapq.heappop(waiting)
        lefts = buckets.pop(current)
        lefts.sort(reverse=True)
        while lefts or urgent:
            if urgent and (not lefts or urgent[0] < (current, lefts[-1])):
                key, left = heapq.heappop(urgent)
            else:
                key, left = current, lefts.pop()
            if keys[left] != key:  # merged away, or its neighbour grew
                continue
            right = following[left]
            after = following[right]
            merged = symbols[left] = symbols[left] + symbols[right]
            symbols[right] = ""
            keys[right] = keys[left] = NO_MERGE
            following[left] = after
            before = preceding[left]
            if before >= 0:
                key = keys[before] = rank_of(symbols[before] + separator + merged, NO_MERGE)
                if key != NO_MERGE:
                    if key <= current:
                        heapq.heappush(urgent, (key, before))
                    elif key in buckets:
                        buckets[key].append(before)
                    else:
                        buckets[key] = [before]
                        heapq.heappush(waiting, key)
            if after >= 0:
                preceding[after] = left
                key = keys[left] = rank_of(merged + separator + symbols[after], NO_MERGE)
                if key != NO_MERGE:
                    if key <= current:
                        heapq.heappush(urgent, (key, left))
                    elif key in buckets:
                        buckets[key].append(left)
                    else:
                        buckets[key] = [left]
                        heapq.heappush(waiting, key)
    return [symbol for symbol in symbols if symbol]
