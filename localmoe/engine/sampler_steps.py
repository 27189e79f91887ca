"""The steps of llama.cpp's sampler chain as pure functions over candidates.

Each step takes candidates and returns fewer, or the same with other logits; nothing is mutated. Semantics are
llama.cpp's (src/llama-sampler.cpp), computed in float64. Where llama.cpp's order of equal logits depends on its sort,
the lower token id comes first here, so that a seed means the same on every machine.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from localmoe.kernels.shapes import MOST, ROUNDING
from localmoe.native import function

Floats = NDArray[np.floating[Any]]
Ids = NDArray[np.int64]
Likeliest = tuple[list[int], list[float]]
"""Tokens and their logits, the likeliest first."""

# Sorted prefixes that mostly hold the top-p mass already: all of 50,000 logits take 4 ms to sort, 256 take 0.05 ms.
PREFIXES = (256, 4096)
# Mirostat estimates its exponent from this many of the likeliest tokens.
MIROSTAT_M = 100


@dataclass(frozen=True, slots=True)
class Candidates:
    """Tokens still in play: `ids` (n,) and float64 `logits` (n,); `ordered` when likeliest first."""

    ids: Ids
    logits: NDArray[np.float64]
    ordered: bool = False

    def __len__(self) -> int:
        return self.ids.size

    def take(self, index: Any, *, ordered: bool) -> Candidates:
        """The candidates at `index` (positions, a slice or a mask)."""
        return Candidates(self.ids[index], self.logits[index], ordered)


def largest(values: Floats, k: int) -> Ids:
    """Positions of the k largest values, largest first, equal ones by position.

    Values are dealt out to groups. The k-th largest of the maxima of at least k groups is a lower bound of the k-th
    largest value: only the few groups that reach it are looked at again (150,000 values, k 40: 0.05 ms;
    np.argpartition takes 0.29 ms).
    """
    n = values.size
    if k >= n:
        return np.argsort(-values, kind="stable")
    groups = max(k, n // 64)
    rows = n // groups
    dealt = values[: rows * groups].reshape(rows, groups)
    maxima = dealt.max(axis=0)
    bound = np.partition(maxima, groups - k)[groups - k]
    columns = np.flatnonzero(maxima >= bound)
    row, column = np.nonzero(dealt[:, columns] >= bound)
    left = np.flatnonzero(values[rows * groups :] >= bound) + rows * groups
    reach = np.sort(np.concatenate((row * groups + columns[column], left)))
    above = values[reach] > bound
    near = np.concatenate((reach[above], reach[~above][:k]))
    return near[np.argsort(-values[near], kind="stable")[:k]]


def ordered(candidates: Candidates, k: int | None = None) -> Candidates:
    """The k likeliest candidates (all of them for None), likeliest first."""
    n = len(candidates) if k is None else min(k, len(candidates))
    if candidates.ordered:
        return candidates.take(slice(n), ordered=True)
    return candidates.take(largest(candidates.logits, n), ordered=True)


def probabilities(logits: Floats) -> NDArray[np.float64]:
    """Softmax of logits of which at least one is finite and none is NaN or +inf."""
    powers = np.exp(logits - logits.max()).astype(np.float64)
    return np.asarray(powers / powers.sum(), dtype=np.float64)


def top_n_sigma(logits: Floats, n: float) -> Floats:
    """Logits (V,) with those more than n standard deviations below the maximum set to -inf (n <= 0: as they are)."""
    if n <= 0 or logits.size <= 1:
        return logits
    finite = logits[np.isfinite(logits)].astype(np.float64)
    return np.where(logits < finite.max() - n * finite.std(), -np.inf, logits)


def from_vocabulary(logits: Floats, k: int) -> Candidates:
    """The k likeliest tokens of a vocabulary's logits (V,), likeliest first; all of them, by id, for k <= 0."""
    ids = largest(logits, k) if k > 0 else np.arange(logits.size, dtype=np.int64)
    return Candidates(ids, logits[ids].astype(np.float64), ordered=k > 0)


def likeliest(logits: NDArray[np.float32], k: int) -> Candidates | None:
    """`from_vocabulary` for k from 1 to MOST in one pass; None where a logit is not finite, or there are no more."""
    if k >= logits.size:
        return None
    ids, kept = np.empty(k, np.int64), np.empty(k, np.float32)
    logits = np.ascontiguousarray(logits)
    found = np.zeros(1, np.int64)
    top_k = function("kernels.candidates", "top_k_call", 6)
    top_k(logits.ctypes.data, logits.size, k, ids.ctypes.data, kept.ctypes.data, found.ctypes.data)
    if not found[0]:
        return None
    return Candidates(ids, kept.astype(np.float64), ordered=True)


def likeliest_with(
    logits: NDArray[np.float32], n: int, chosen: int, known: Likeliest | None = None
) -> tuple[tuple[int, float], ...]:
    """The n likeliest tokens with their probabilities, the softmax of logits (V,), and `chosen` last if it is another.

    Logits must be finite or -inf, one of them finite. `known`: the n likeliest, where they were found already.
    """
    logits = np.ascontiguousarray(logits)
    if known is None and n <= MOST and (found := likeliest(logits, n)) is not None:
        known = found.ids.tolist(), found.logits.tolist()
    if known is None:
        order = np.argsort(-logits, kind="stable")[:n]
        ids, values = order.tolist(), logits[order].tolist()
        total = float(np.exp(logits - logits[order[0]]).sum(dtype=np.float64))
    else:
        ids, values = known
        number = ctypes.c_double(values[0])
        sum_exp = function("kernels.candidates", "sum_exp_call", 3)
        sum_exp(logits.ctypes.data, logits.size, ctypes.addressof(number))
        total = number.value
    probs = [(token, math.exp(value - values[0]) / total) for token, value in zip(ids, values, strict=True)]
    if chosen not in ids:
        probs.append((chosen, math.exp(float(logits[chosen]) - values[0]) / total))
    return tuple(probs)


def greedy(logits: Floats) -> Candidates:
    """The likeliest token of a vocabulary's logits (V,) alone."""
    best = np.array([np.argmax(logits)])
    return Candidates(best, logits[best].astype(np.float64), ordered=True)


def typical(candidates: Candidates, p: float, min_keep: int = 0) -> Candidates:
    """Locally typical sampling: tokens whose surprise is nearest to the entropy, until their sum exceeds p."""
    if p >= 1:
        return candidates
    candidates = ordered(candidates)
    probs = probabilities(candidates.logits)
    surprise = -np.log(probs)
    entropy = float((probs * np.where(probs > 0, surprise, 0)).sum())
    order = np.argsort(np.abs(surprise - entropy), kind="stable")
    n = int(np.searchsorted(np.cumsum(probs[order]), p + ROUNDING, side="right")) + 1
    return candidates.take(order[: max(n, min_keep)], ordered=False)


def top_p(candidates: Candidates, p: float, min_keep: int = 0) -> Candidates:
    """The shortest run of the likeliest whose probabilities add up to p, likeliest first."""
    if p >= 1:
        return candidates
    if candidates.ordered:
        running = np.exp(candidates.logits - candidates.logits[0]).cumsum()
        n = int(running.searchsorted((p - ROUNDING) * running[-1])) + 1
        return candidates.take(slice(max(n, min_keep)), ordered=True)
    probs = probabilities(candidates.logits)
    for k in (*PREFIXES, len(candidates)):
        order = largest(candidates.logits, k)  # which differ where the probabilities round to the same
        n = int(np.searchsorted(np.cumsum(probs[order]), p - ROUNDING, side="left")) + 1
        n = max(n, min_keep)
        if n <= order.size:
            break
    return candidates.take(order[:n], ordered=True)


def min_p(candidates: Candidates, p: float, min_keep: int = 0) -> Candidates:
    """Tokens at least p times as likely as the likeliest."""
    if p <= 0:
        return candidates
    logits = candidates.logits
    kept = logits >= (logits[0] if candidates.ordered else logits.max()) + math.log(p)
    n = int(np.count_nonzero(kept))
    if n < min_keep:
        return ordered(candidates, min_keep)
    return candidates.take(slice(n) if candidates.ordered else kept, ordered=candidates.ordered)


def xtc(
    candidates: Candidates, probability: float, threshold: float, min_keep: int, draw: Callable[[], float]
) -> Candidates:
    """Exclude top choices: by the chance given, drop all tokens above the threshold but the least likely of them."""
    if probability <= 0 or threshold > 0.5 or len(candidates) < 2 or draw() > probability:
        return candidates
    candidates = ordered(candidates)
    last = int((probabilities(candidates.logits) >= threshold).sum()) - 1
    if last <= 0 or len(candidates) - last < min_keep:
        return candidates
    return candidates.take(slice(last, None), ordered=True)


def temperature(candidates: Candidates, value: float) -> Candidates:
    """Divide the logits by a temperature; at 0 and below only the likeliest is left."""
    if value <= 0:
        best = int(np.argmax(candidates.logits))
        return candidates.take(slice(best, best + 1), ordered=True)
    scaled = (candidates.logits - candidates.logits.max()) / value
    return Candidates(candidates.ids, scaled, candidates.ordered)


def dynamic_temperature(candidates: Candidates, value: float, spread: float, exponent: float) -> Candidates:
    """A temperature within `value` +- `spread`, higher the nearer the distribution is to uniform."""
    if spread <= 0:
        return temperature(candidates, value)
    if len(candidates) <= 1:
        return candidates
    low, high = max(0.0, value - spread), value + spread
    probs = probabilities(candidates.logits)
    probs = probs[probs > 0]
    uniformity = -float((probs * np.log(probs)).sum()) / math.log(len(candidates))
    return temperature(candidates, low + (high - low) * max(uniformity, 0.0) ** exponent)


def mirostat_1(candidates: Candidates, mu: float, n_vocab: int) -> Candidates:
    """Mirostat's first form: the k likeliest, k from a Zipf exponent estimated on the likeliest 100 and `mu`."""
    head = ordered(candidates, MIROSTAT_M).logits
    head = head[np.isfinite(head)]
    if head.size < 2:
        return ordered(candidates, 1)
    rank = np.arange(1, head.size)
    steps = np.log((rank + 1) / rank)
    exponent = float((steps * -np.diff(head)).sum() / (steps * steps).sum())
    return ordered(candidates, _mirostat_k(exponent, mu, n_vocab, len(candidates)))


def _mirostat_k(exponent: float, mu: float, n_vocab: int, n: int) -> int:
    """Number of candidates out of n whose expected surprise is `mu` bits under a Zipf law of that exponent."""
    s, epsilon = np.float64(exponent), np.float64(exponent - 1)
    k = ((epsilon * np.exp2(np.float64(mu))) / (1 - np.float64(n_vocab) ** -epsilon)) ** (1 / s)
    return int(k) if 1 <= k < n else (1 if k < 1 else n)


def mirostat_2(candidates: Candidates, mu: float) -> Candidates:
    """Mirostat's second form: tokens of a surprise up to `mu` bits, at least one."""
    surprise = -np.log2(probabilities(candidates.logits))
    kept = surprise <= mu
    return candidates.take(kept, ordered=candidates.ordered) if kept.any() else ordered(candidates, 1)


def draw_index(probs: NDArray[np.float64], uniform: float) -> int:
    """The position drawn by a number in [0, 1) from probabilities (n,) in their order; never one of probability 0."""
    running = probs.cumsum()
    index = int(running.searchsorted(uniform * running[-1], side="right"))
    return index if index < probs.size else int(np.flatnonzero(probs)[-1])
