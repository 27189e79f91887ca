"""Merging against the obvious way of doing it."""

from __future__ import annotations

import random

import pytest

from localmoe.text.merge import merge


def naive(symbols: list[str], ranks: dict[str, float], separator: str) -> list[str]:
    """Look at all pairs, merge the best, again."""
    while True:
        found = [
            (ranks[symbols[i] + separator + symbols[i + 1]], i)
            for i in range(len(symbols) - 1)
            if symbols[i] + separator + symbols[i + 1] in ranks
        ]
        if not found:
            return symbols
        _, at = min(found)
        symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]


@pytest.mark.parametrize("separator", ["", " "])
@pytest.mark.parametrize("length", [0, 1, 2, 12, 40, 41, 90])
def test_merge_equals_the_naive_way(separator: str, length: int) -> None:
    """Few distinct ranks: many ties, and parts that rank after what they make."""
    rng = random.Random(length)
    for _ in range(60):
        pieces = ["".join(rng.choices("abc", k=rng.randint(1, 3))) for _ in range(40)]
        pairs = [rng.choice(pieces) + separator + rng.choice(pieces) for _ in range(200)]
        ranks = {
            pair: float(rng.randint(-4, 4)) for pair in [*pairs, *(a + separator + b for a in "abc" for b in "ab")]
        }
        symbols = rng.choices("abc", k=length)
        assert merge(list(symbols), ranks, separator) == naive(list(symbols), ranks, separator)
