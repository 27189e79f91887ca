"""Sums of squared inputs of every matrix, for importance matrices: an ordinary step does none of this.

`step.squares` is 0, or the address of (n_layer, width) float32 that a step adds to. A layer's row holds, one after the
other: the input of q, k and v (n_embd), of the attention's output matrix (heads x head size), of the router (n_embd),
of each expert's gate and up (experts, n_embd), and of each expert's down (experts, n_ff); a dense layer is one expert.
"""

from __future__ import annotations

from typing import Any

from localmoe.jit import njit
from localmoe.kernels.simd import ld_f32, ld_i32, st_f32
from localmoe.kernels.team import barrier, share

LANES = 16  # columns are shared out in whole vectors


@njit
def add_squares(m: Any, source: int, stride: int, rows: int, n: int, n_cols: int, out: int, thread: int) -> None:
    """out[j] += x[j] * x[j] of the rows numbered by n int32 at `rows`, for this thread's share of the columns."""
    first, last = share(n_cols, LANES, thread, m.n_thread)
    for i in range(n):
        x = source + ld_i32(rows + 4 * i) * stride
        for j in range(first, last):
            value = ld_f32(x + 4 * j)
            st_f32(out + 4 * j, ld_f32(out + 4 * j) + value * value)


@njit
def add_attention_squares(m: Any, step: Any, mine: Any, index: int, thread: int) -> None:
    """The input of q, k and v, once all threads have normed their tokens."""
    at = step.squares + index * step.squares_width * 4
    add_squares(m, mine.normed.f32, mine.normed.f32_stride, m.iota, step.n_tok, m.n_embd, at, thread)


@njit
def add_layer_squares(m: Any, step: Any, mine: Any, index: int, thread: int) -> None:
    """All other inputs of a layer, when its outputs are complete; the threads meet before any of them goes on."""
    n_attended = m.n_head * m.head_dim
    n_expert = max(m.n_expert, 1)
    attended = step.squares + (index * step.squares_width + m.n_embd) * 4
    router = attended + n_attended * 4
    gate = router + m.n_embd * 4
    down = gate + n_expert * m.n_embd * 4
    normed, hidden = mine.normed, mine.hidden
    add_squares(m, mine.attended.f32, mine.attended.f32_stride, m.iota, step.n_tok, n_attended, attended, thread)
    add_squares(m, normed.f32, normed.f32_stride, m.iota, step.n_tok, m.n_embd, router, thread)
    if step.n_tok == 1:
        ids = step.experts + (thread * m.n_layer + index) * step.trace_width * 4
        for k in range(step.n_used):
            e = ld_i32(ids + 4 * k) if m.n_expert else 0
            add_squares(m, normed.f32, 0, m.iota, 1, m.n_embd, gate + e * m.n_embd * 4, thread)
            row = hidden.f32 + k * hidden.f32_stride
            add_squares(m, row, 0, m.iota, 1, m.n_ff, down + e * m.n_ff * 4, thread)
    else:
        for e in range(n_expert):
            start, stop = ld_i32(m.starts + 4 * e), ld_i32(m.starts + 4 * e + 4)
            tokens, slots, n = m.slot_tokens + 4 * start, m.slots + 4 * start, stop - start
            add_squares(m, normed.f32, normed.f32_stride, tokens, n, m.n_embd, gate + e * m.n_embd * 4, thread)
            add_squares(m, hidden.f32, hidden.f32_stride, slots, n, m.n_ff, down + e * m.n_ff * 4, thread)
    barrier(m.sync, thread, m.n_thread, m.yield_to)
