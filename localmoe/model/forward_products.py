"""Matrix products of the forward pass: activations in the forms weights want, rows shared out over the threads."""

from __future__ import annotations

from typing import Any

from localmoe.jit import njit
from localmoe.kernels import bfloat16
from localmoe.kernels.activations import quantize_q8_0, quantize_q8_k
from localmoe.kernels.elementwise import add_scaled, rms_norm, silu_multiply
from localmoe.kernels.simd import call_address, ld_i64
from localmoe.kernels.team import EQUAL, share, take

ROW_UNIT = 16  # rows are shared out in whole vectors
MANY_UNIT = 32  # and in the rows that a matmul unpacks at once when tokens are many
PIECES_MANY = 8  # pieces of a thread's rows when tokens are many
PIECE_BYTES = 64 << 10  # least bytes of weights in a piece for one token: some microseconds of reading
PARTS_ONE = 4  # of what is left, one is taken at a time for one token


@njit
def act_row(rows: Any, act: int, index: int) -> int:
    """Address of row `index` in the form `act`."""
    if act == 0:
        return rows.f32 + index * rows.f32_stride
    if act == 1:
        return rows.q8_0 + index * rows.q8_0_stride
    return rows.q8_k + index * rows.q8_k_stride


@njit
def act_stride(rows: Any, act: int) -> int:
    if act == 0:
        return rows.f32_stride
    if act == 1:
        return rows.q8_0_stride
    return rows.q8_k_stride


@njit
def quantize_from(x: int, rows: Any, needs: int, index: int, n: int, first: int, last: int) -> None:
    """The int8 forms in `needs` of values first to last, whole blocks, of the n float32 at x, to row `index`."""
    if needs & 2:
        quantize_q8_0(x, rows.q8_0 + index * rows.q8_0_stride, n, first // 32, last // 32)
    if needs & 4:
        quantize_q8_k(x, rows.q8_k + index * rows.q8_k_stride, n, first // 256, last // 256)


@njit
def quantize_part(rows: Any, needs: int, index: int, n: int, first: int, last: int) -> None:
    """The forms in `needs` of values first to last, whole blocks, of float32 row `index`, which has n."""
    quantize_from(rows.f32 + index * rows.f32_stride, rows, needs, index, n, first, last)


@njit
def quantize_row(rows: Any, needs: int, index: int, n: int) -> None:
    """The forms in `needs` of float32 row `index`."""
    quantize_part(rows, needs, index, n, 0, n)


@njit
def multiply_one(w: Any, expert: int, rows: Any, index: int, out: int, first: int, last: int) -> None:
    """out[first:last] = w @ row."""
    act = act_row(rows, w.act, index)
    call_address(w.matvec, (ld_i64(w.experts + 8 * expert), act, out, first, last, w.cols))


@njit
def multiply_to(
    w: Any, expert: int, rows: Any, inputs: int, out: int, stride: int, outputs: int, n: int, first: int, last: int,
    scratch: int,
) -> None:  # fmt: skip
    """out[outputs[i], first:last] = w @ rows[inputs[i]] for n rows; rows of `out` are `stride` bytes apart."""
    call_address(
        w.matmul,
        (
            ld_i64(w.experts + 8 * expert), act_row(rows, w.act, 0), act_stride(rows, w.act), inputs,
            out, stride, outputs, n, first, last, w.cols, scratch,
        ),
    )  # fmt: skip


@njit
def multiply_many(
    w: Any, expert: int, rows: Any, inputs: int, out: int, outputs: int, n: int, first: int, last: int, scratch: int
) -> None:
    """`multiply_to` where `out` is (.., w.rows) float32."""
    multiply_to(w, expert, rows, inputs, out, w.rows * 4, outputs, n, first, last, scratch)


@njit
def pieces_of(n_bytes: int, n_thread: int) -> int:
    """The smallest pieces of a thread's part of `n_bytes` of weights that one token is multiplied with."""
    return max(n_bytes // n_thread // PIECE_BYTES, 1)


@njit
def round_part(m: Any, out: int, n_tok: int, width: int, first: int, last: int) -> None:
    """Columns first to last of `out` (n_tok, width) to what a bfloat16 model has."""
    if m.bfloat16:
        for t in range(n_tok):
            bfloat16.round_row(out + (t * width + first) * 4, last - first)


@njit
def project(m: Any, w: Any, rows: Any, n_tok: int, out: int, thread: int, queue: int) -> None:
    """out[t] = w @ rows[t] for all tokens; rows of w are taken from `queue`."""
    if n_tok == 1:
        pieces = pieces_of(w.expert_bytes, m.n_thread)
        first, last = take(m.sync, queue, w.rows, ROW_UNIT, pieces, PARTS_ONE, thread, m.n_thread)
        while first < last:
            multiply_one(w, 0, rows, 0, out, first, last)
            round_part(m, out, 1, w.rows, first, last)
            first, last = take(m.sync, queue, w.rows, ROW_UNIT, pieces, PARTS_ONE, thread, m.n_thread)
        return
    scratch = m.scratch + thread * m.scratch_bytes
    first, last = take(m.sync, queue, w.rows, MANY_UNIT, PIECES_MANY, EQUAL, thread, m.n_thread)
    while first < last:
        multiply_many(w, 0, rows, m.iota, out, m.iota, n_tok, first, last, scratch)
        round_part(m, out, n_tok, w.rows, first, last)
        first, last = take(m.sync, queue, w.rows, MANY_UNIT, PIECES_MANY, EQUAL, thread, m.n_thread)


@njit
def project_router(m: Any, w: Any, rows: Any, n_tok: int, thread: int) -> None:
    """Router logits: experts are few, so tokens are shared out when there are many."""
    if n_tok == 1:
        first, last = share(m.n_expert, 4, thread, m.n_thread)
        if first < last:
            multiply_one(w, 0, rows, 0, m.router_logits, first, last)
        return
    first, last = share(n_tok, 1, thread, m.n_thread)
    if first < last:
        ids = m.iota + 4 * first
        scratch = m.scratch + thread * m.scratch_bytes
        multiply_many(w, 0, rows, ids, m.router_logits, ids, last - first, 0, m.n_expert, scratch)


@njit
def norm(m: Any, mine: Any, weight: int, needs: int, t: int) -> None:
    """The normed row of token t, in the forms needed."""
    x = mine.x + t * m.n_embd * 4
    out = mine.normed.f32 + t * mine.normed.f32_stride
    if m.bfloat16:
        bfloat16.rms_norm(x, weight, out, m.n_embd, m.rms_eps)
    else:
        rms_norm(x, weight, out, m.n_embd, m.rms_eps)
    quantize_row(mine.normed, needs, t, m.n_embd)


@njit
def add_row(m: Any, x: int, y: int, scale: float) -> None:
    """x += scale * y, n_embd float32 each."""
    if m.bfloat16:
        bfloat16.add_rounded(x, y, scale, m.n_embd)
    else:
        add_scaled(x, y, scale, m.n_embd)


@njit
def activate(m: Any, gate: int, up: int, n: int) -> None:
    """gate = silu(gate) * up, n float32 each."""
    if m.bfloat16:
        bfloat16.silu_multiply(gate, up, n)
    else:
        silu_multiply(gate, up, n)
