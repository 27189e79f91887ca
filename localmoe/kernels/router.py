"""The router: expert logits to the chosen experts and their weights, and tokens grouped by expert."""

from __future__ import annotations

import numpy as np

from localmoe.jit import njit
from localmoe.kernels.simd import ld_f32, ld_i32, st_f32, st_i32

MIN_WEIGHT_SUM = 6.103515625e-5  # llama.cpp clamps the sum it divides by: the smallest normal float16


@njit
def probabilities(logits: int, n_expert: int, probs: int) -> bool:
    """Softmax of logits (n_expert,) float32 to probs, the same; False if a logit is not finite."""
    top = ld_f32(logits)
    finite = True
    for e in range(n_expert):
        v = ld_f32(logits + 4 * e)
        finite = finite and np.isfinite(v)
        top = max(top, v)
    total = np.float32(0.0)
    for e in range(n_expert):
        p = np.exp(ld_f32(logits + 4 * e) - top)
        st_f32(probs + 4 * e, p)
        total += p
    for e in range(n_expert):
        st_f32(probs + 4 * e, ld_f32(probs + 4 * e) / total)
    return finite


@njit
def renormalise(weights: int, n_used: int) -> None:
    """Divide weights (n_used,) float32 by their sum, which is MIN_WEIGHT_SUM at least."""
    chosen = np.float32(0.0)
    for k in range(n_used):
        chosen += ld_f32(weights + 4 * k)
    chosen = max(chosen, np.float32(MIN_WEIGHT_SUM))
    for k in range(n_used):
        st_f32(weights + 4 * k, ld_f32(weights + 4 * k) / chosen)


@njit
def route(logits: int, n_expert: int, n_used: int, normalise: bool, probs: int, ids: int, weights: int) -> bool:
    """Softmax over all experts, then the `n_used` likeliest, ties to the lower index; False if a logit is not finite.

    logits, probs: (n_expert,) float32. ids: (n_used,) int32, weights: (n_used,) float32, in order of choice,
    divided by their sum when `normalise`.
    """
    finite = probabilities(logits, n_expert, probs)
    for k in range(n_used):
        best = -1
        for e in range(n_expert):
            taken = False
            for j in range(k):
                taken = taken or ld_i32(ids + 4 * j) == e
            if not taken and (best < 0 or ld_f32(logits + 4 * e) > ld_f32(logits + 4 * best)):
                best = e
        st_i32(ids + 4 * k, np.int32(best))
        st_f32(weights + 4 * k, ld_f32(probs + 4 * best))
    if normalise:
        renormalise(weights, n_used)
    return finite


@njit
def route_by_rules(
    logits: int, n_expert: int, n_used: int, most: int, normalise: bool, rules: int, threshold: float, probs: int,
    ids: int, weights: int,
) -> bool:  # fmt: skip
    """`route` among the experts that `rules` leave: forced ones first, then the likeliest, `most` of them at most.

    rules: (n_expert,) int32, -1 left out, 0 free, 1 forced; one expert at least is not left out. Free experts whose
    weight is below `threshold` are dropped from the last one on, but for the first of all, and the rest renormalised
    again. probs are those of all experts; ids are -1 and weights 0 from the last one used to n_used.
    """
    finite = probabilities(logits, n_expert, probs)
    n = 0
    for k in range(min(most, n_used)):
        best, best_rule = -1, np.int32(-1)
        for e in range(n_expert):
            rule = ld_i32(rules + 4 * e)
            taken = rule < 0
            for j in range(k):
                taken = taken or ld_i32(ids + 4 * j) == e
            better = best < 0 or rule > best_rule
            better = better or (rule == best_rule and ld_f32(logits + 4 * e) > ld_f32(logits + 4 * best))
            if better and not taken:
                best, best_rule = e, rule
        if best < 0:
            break
        st_i32(ids + 4 * k, np.int32(best))
        st_f32(weights + 4 * k, ld_f32(probs + 4 * best))
        n += 1
    if normalise:
        renormalise(weights, n)
    kept = n
    while kept > 1 and ld_f32(weights + 4 * (kept - 1)) < threshold:
        if ld_i32(rules + 4 * ld_i32(ids + 4 * (kept - 1))) > 0:
            break
        kept -= 1
    if normalise and kept < n:
        renormalise(weights, kept)
    for k in range(kept, n_used):
        st_i32(ids + 4 * k, np.int32(-1))
        st_f32(weights + 4 * k, np.float32(0.0))
    return finite


@njit
def group_by_expert(ids: int, n_slot: int, n_used: int, n_expert: int, starts: int, tokens: int, slots: int) -> None:
    """Sort slots (token * n_used + choice) by expert, keeping their order within one.

    ids: (n_slot,) int32. starts: (n_expert + 1,) int32, expert e owns starts[e] : starts[e + 1] of tokens and
    slots, (n_slot,) int32 each.
    """
    for e in range(n_expert + 1):
        st_i32(starts + 4 * e, np.int32(0))
    for s in range(n_slot):
        at = starts + 4 * (ld_i32(ids + 4 * s) + 1)
        st_i32(at, ld_i32(at) + np.int32(1))
    for e in range(n_expert):
        st_i32(starts + 4 * (e + 1), ld_i32(starts + 4 * (e + 1)) + ld_i32(starts + 4 * e))
    # fill, moving each start to its end, then shift the starts back
    for s in range(n_slot):
        at = starts + 4 * ld_i32(ids + 4 * s)
        place = ld_i32(at)
        st_i32(tokens + 4 * place, np.int32(s // n_used))
        st_i32(slots + 4 * place, np.int32(s))
        st_i32(at, place + np.int32(1))
    for e in range(n_expert, 0, -1):
        st_i32(starts + 4 * e, ld_i32(starts + 4 * (e - 1)))
    st_i32(starts, np.int32(0))
