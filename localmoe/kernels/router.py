"""The router: expert logits to the chosen experts and their weights, and tokens grouped by expert."""

from __future__ import annotations

import numpy as np

from localmoe.jit import njit
from localmoe.kernels.simd import ld_f32, ld_i32, st_f32, st_i32

MIN_WEIGHT_SUM = 6.103515625e-5  # llama.cpp clamps the sum it divides by: the smallest normal float16


@njit
def route(logits: int, n_expert: int, n_used: int, normalise: bool, probs: int, ids: int, weights: int) -> bool:
    """Softmax over all experts, then the `n_used` likeliest, ties to the lower index; False if a logit is not finite.

    logits, probs: (n_expert,) float32. ids: (n_used,) int32, weights: (n_used,) float32, in order of choice,
    divided by their sum when `normalise`.
    """
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
    chosen = np.float32(0.0)
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
        chosen += ld_f32(probs + 4 * best)
    if normalise:
        chosen = max(chosen, np.float32(MIN_WEIGHT_SUM))
        for k in range(n_used):
            st_f32(weights + 4 * k, ld_f32(weights + 4 * k) / chosen)
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
