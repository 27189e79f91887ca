"""Penalties for what was said before: repetition, frequency, presence, and DRY ("don't repeat yourself").

Semantics are llama.cpp's (src/llama-sampler.cpp). Both functions change a float32 logits vector (V,) in place; a token
whose logit is -inf stays impossible.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Breakers = Mapping[int, frozenset[tuple[int, ...]]]

LARGEST = float(np.finfo(np.float32).max)
# Limits of a DRY breaker: UTF-8 bytes of its text, tokens after its first.
MAX_BREAKER_BYTES = 40
MAX_BREAKER_TAIL = 20


class Vocabulary(Protocol):
    """What DRY needs of a tokenizer to find the tokens in which a breaker's text begins; ids are 0 to n_vocab - 1."""

    n_vocab: int

    def __hash__(self) -> int:
        """By identity."""
        ...

    def token(self, i: int) -> bytes:
        """The bytes a token stands for."""
        ...

    def encode(self, text: str, *, add_bos: bool | None = None, parse_special: bool = False) -> list[int]:
        """Ids of a text."""
        ...


def _change(logits: NDArray[np.float32], ids: NDArray[np.int64], changed: NDArray[np.float64]) -> None:
    """Store changed logits at `ids`, within float32's range; -inf stays -inf."""
    logits[ids] = np.where(np.isneginf(logits[ids]), -np.inf, np.clip(changed, -LARGEST, LARGEST))


def penalize(
    logits: NDArray[np.float32], counts: Mapping[int, int], repeat: float, frequency: float, presence: float
) -> None:
    """Lower the logits of tokens that occurred `counts` times lately (raise them for negative penalties)."""
    if not counts or (repeat == 1 and frequency == 0 and presence == 0):
        return
    ids = np.fromiter(counts.keys(), np.int64, len(counts))
    times = np.fromiter(counts.values(), np.float64, len(counts))
    now = logits[ids].astype(np.float64)
    _change(logits, ids, np.where(now <= 0, now * repeat, now / repeat) - (times * frequency + presence))


def dry(
    logits: NDArray[np.float32],
    history: Sequence[int],
    multiplier: float,
    base: float,
    allowed_length: int,
    breakers: Breakers,
) -> None:
    """Lower each token that would prolong a repetition of `history`'s end beyond `allowed_length` tokens.

    The penalty is multiplier * base ** (length - allowed_length); a breaker's text ends a repetition.
    """
    lengths = _repetitions(history, allowed_length, breakers)
    if not lengths:
        return
    # float32's greatest power, as in llama.cpp
    most = int(88.7228391 / math.log(base)) if base > 1.000001 else 0
    ids = np.fromiter(lengths.keys(), np.int64, len(lengths))
    powers = np.fromiter(lengths.values(), np.float64, len(lengths)) - allowed_length
    if most > 0:
        powers = np.minimum(powers, most)
    _change(logits, ids, logits[ids].astype(np.float64) - multiplier * base**powers)


def _repetitions(history: Sequence[int], allowed_length: int, breakers: Breakers) -> dict[int, int]:
    """Length of the repetition each token would prolong, for those of at least `allowed_length`."""
    if len(history) <= allowed_length:
        return {}
    back = list(reversed(history))
    limit = _since_breaker(back, breakers)
    if limit < allowed_length:
        return {}
    lengths: dict[int, int] = {}
    for k, run in enumerate(_z_function(back)):
        run = min(run, limit)
        if k and run >= allowed_length and () not in breakers.get(back[k - 1], ()):
            lengths[back[k - 1]] = max(run, lengths.get(back[k - 1], 0))
    return lengths


def _since_breaker(back: list[int], breakers: Breakers) -> int:
    """Number of tokens after the last breaker, given the history backwards."""
    for i, token in enumerate(back):
        tails = breakers.get(token, ())
        found = [len(tail) for tail in tails if len(tail) <= i and back[i - len(tail) : i] == list(reversed(tail))]
        if found:
            return i - max(found)
    return len(back)


def _z_function(items: list[int]) -> list[int]:
    """For each position k the length of the longest run from k that the start of `items` equals (0 at k = 0)."""
    n = len(items)
    z = [0] * n
    left = right = 0
    for k in range(1, n):
        run = min(right - k, z[k - left]) if k < right else 0
        while k + run < n and items[run] == items[k + run]:
            run += 1
        z[k] = run
        if k + run > right:
            left, right = k, k + run
    return z


@functools.lru_cache(maxsize=1)
def find_breakers(texts: tuple[str, ...], vocabulary: Vocabulary) -> Breakers:
    """Token sequences in which a breaker's text may appear: first token -> the tokens that must follow it.

    A token that holds the whole text needs no more; one that ends with its beginning needs the rest's tokens. The last
    answer is kept: 150,000 tokens take 0.7 s, and a chat asks at every turn.
    """
    found: dict[int, set[tuple[int, ...]]] = {}
    for wanted in (text.encode()[:MAX_BREAKER_BYTES] for text in texts):
        begins = [wanted[:n] for n in range(1, len(wanted))]
        tails = [
            tuple(vocabulary.encode(wanted[n:].decode("utf-8", "ignore"), add_bos=False)[:MAX_BREAKER_TAIL])
            for n in range(1, len(wanted))
        ]
        for token in range(vocabulary.n_vocab):
            piece = vocabulary.token(token)
            if wanted in piece:
                found.setdefault(token, set()).add(())
                continue
            for begin, tail in zip(begins, tails, strict=True):
                if piece.endswith(begin):
                    found.setdefault(token, set()).add(tail)
    return {token: frozenset(sequences) for token, sequences in found.items()}
