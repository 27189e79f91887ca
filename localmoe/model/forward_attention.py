"""Attention of the forward pass: rotary keys into the cache, then each KV head's query rows over its positions."""

from __future__ import annotations

from typing import Any

import numpy as np

from localmoe.jit import njit
from localmoe.kernels.attention import K_BLOCK
from localmoe.kernels.attention import ROWS as QUERY_ROWS
from localmoe.kernels.elementwise import add_scaled, copy_scaled, rope_halves, rope_pairs, round_row_f16, store_row
from localmoe.kernels.simd import call_address, ld_f32, st_f32, st_i64
from localmoe.kernels.team import barrier

CHUNK = 256  # positions of one attention item in decode; fixed, so that results do not depend on the threads


@njit
def write_cache(m: Any, layer: Any, step: Any, thread: int) -> None:
    """Rotate this step's keys and store keys and values; items are (token, KV head)."""
    width = (m.head_dim + 15) // 16 * 16
    size = 2 if m.half_cache else 4
    n_item = step.n_tok * m.n_head_kv
    scratch = m.scratch + thread * m.scratch_bytes
    for item in range(n_item * thread // m.n_thread, n_item * (thread + 1) // m.n_thread):
        t, head = item // m.n_head_kv, item % m.n_head_kv
        pos = step.pos + t
        rotate(m, m.k + item * m.head_dim * 4, t, scratch)
        base = layer.k_cache + head * m.n_ctx * m.head_dim * size
        at = (pos // K_BLOCK * K_BLOCK * m.head_dim + pos % K_BLOCK) * size
        store_row(scratch, base + at, K_BLOCK, m.half_cache != 0, m.head_dim)
        values = layer.v_cache + (head * m.n_ctx + pos) * width * size
        store_row(m.v + item * m.head_dim * 4, values, 1, m.half_cache != 0, m.head_dim)


@njit
def rotate(m: Any, source: int, t: int, target: int) -> None:
    """The head at `source` rotated by token t's angles, to `target`."""
    angles = m.angles + t * m.rope_dim * 4
    if m.interleaved:
        rope_pairs(source, angles, target, m.rope_dim, m.head_dim)
    else:
        rope_halves(source, angles, target, m.rope_dim, m.head_dim)


@njit
def softmax_weights(
    m: Any, layer: Any, step: Any, head: int, first_row: int, n_row: int, first: int, last: int, s: int, stats: int,
    scratch: int,
) -> None:  # fmt: skip
    """Query rows first_row.. of a KV head (row = token * heads a KV head + head) against positions first to last."""
    group = m.n_head // m.n_head_kv
    q, limits = scratch, scratch + QUERY_ROWS * m.head_dim * 4
    for r in range(n_row):
        row = first_row + r
        t = row // group
        target = q + r * m.head_dim * 4
        rotate(m, m.q + (t * m.n_head + head * group + row % group) * m.head_dim * 4, t, target)
        if m.half_cache:  # as llama.cpp multiplies a float16 cache
            round_row_f16(target, m.head_dim)
        st_i64(limits + 8 * r, step.pos + t + 1)
    k = layer.k_cache + head * m.n_ctx * m.head_dim * (2 if m.half_cache else 4)
    call_address(m.weights, (q, limits, n_row, k, first, last, s, m.n_ctx * 4, stats, m.attn_scale, m.head_dim))


@njit
def weigh_values(
    m: Any, layer: Any, head: int, n_row: int, first: int, last: int, s: int, factors: int, acc: int
) -> None:
    """acc = the weighted values of positions first to last, for n_row rows."""
    width = (m.head_dim + 15) // 16 * 16
    v = layer.v_cache + head * m.n_ctx * width * (2 if m.half_cache else 4)
    call_address(m.values, (n_row, s, m.n_ctx * 4, factors, v, first, last, acc, m.head_dim))


@njit(fast=True)
def chunk_factors(stats: int, n_row: int, n_chunk: int, chunk: int, factors: int) -> None:
    """What turns a chunk's exp(s - its max) into softmax weights over all chunks, for n_row rows."""
    stride = QUERY_ROWS * 8
    for r in range(n_row):
        row = stats + 8 * r
        top = ld_f32(row)
        for c in range(1, n_chunk):
            top = max(top, ld_f32(row + c * stride))
        total = np.float32(0.0)
        for c in range(n_chunk):
            total += np.exp(ld_f32(row + c * stride) - top) * ld_f32(row + c * stride + 4)
        scale = np.exp(ld_f32(row + chunk * stride) - top) if n_chunk > 1 else np.float32(1.0)
        st_f32(factors + 4 * r, scale * (np.float32(1.0) / total))


@njit
def heads_stay(m: Any, step: Any) -> bool:
    """Whether attention of one token shares out KV heads just as `write_cache` does: a thread then needs no other."""
    return step.pos < CHUNK and m.n_head // m.n_head_kv <= QUERY_ROWS


@njit
def attention_one(m: Any, layer: Any, step: Any, mine: Any, thread: int) -> None:
    """Attention of one token: items are (KV head, tile of its query heads, chunk of positions)."""
    group = m.n_head // m.n_head_kv
    width = (m.head_dim + 15) // 16 * 16
    tiles = (group + QUERY_ROWS - 1) // QUERY_ROWS
    chunks = (step.pos + CHUNK) // CHUNK
    n_item = m.n_head_kv * tiles * chunks
    scratch = m.scratch + thread * m.scratch_bytes
    first_item, last_item = n_item * thread // m.n_thread, n_item * (thread + 1) // m.n_thread
    s_bytes, stats_bytes, acc_bytes = QUERY_ROWS * m.n_ctx * 4, QUERY_ROWS * 8, QUERY_ROWS * width * 4
    for item in range(first_item, last_item):
        pair, first = item // chunks, item % chunks * CHUNK
        row = pair % tiles * QUERY_ROWS
        softmax_weights(
            m, layer, step, pair // tiles, row, min(QUERY_ROWS, group - row), first,
            min(first + CHUNK, step.pos + 1), m.scores + pair * s_bytes + first * 4,
            m.stats + item * stats_bytes, scratch,
        )  # fmt: skip
    if chunks > 1:
        barrier(m.sync, m.n_thread, m.yield_to)
    for item in range(first_item, last_item):
        pair, chunk = item // chunks, item % chunks
        head, row = pair // tiles, pair % tiles * QUERY_ROWS
        rows, first = min(QUERY_ROWS, group - row), chunk * CHUNK
        scores, acc = m.scores + pair * s_bytes + first * 4, m.partial + item * acc_bytes
        chunk_factors(m.stats + pair * chunks * stats_bytes, rows, chunks, chunk, scratch)
        weigh_values(m, layer, head, rows, first, min(first + CHUNK, step.pos + 1), scores, scratch, acc)
        if chunks == 1:
            for r in range(rows):
                out = mine.attended.f32 + (head * group + row + r) * m.head_dim * 4
                copy_scaled(acc + r * width * 4, 1.0, out, m.head_dim)
    if chunks == 1:
        return
    barrier(m.sync, m.n_thread, m.yield_to)
    for h in range(m.n_head * thread // m.n_thread, m.n_head * (thread + 1) // m.n_thread):
        head, row = h // group, h % group
        acc = m.partial + (head * tiles + row // QUERY_ROWS) * chunks * acc_bytes + row % QUERY_ROWS * width * 4
        out = mine.attended.f32 + h * m.head_dim * 4
        copy_scaled(acc, 1.0, out, m.head_dim)
        for c in range(1, chunks):
            add_scaled(out, acc + c * acc_bytes, 1.0, m.head_dim)


@njit
def attention_many(m: Any, layer: Any, step: Any, shared: Any, thread: int) -> None:
    """Attention of a batch: items are (KV head, QUERY_ROWS query rows), dealt out in turn: later ones cost more."""
    group = m.n_head // m.n_head_kv
    width = (m.head_dim + 15) // 16 * 16
    n_row = step.n_tok * group
    tiles = (n_row + QUERY_ROWS - 1) // QUERY_ROWS
    scratch = m.scratch + thread * m.scratch_bytes
    acc = scratch + QUERY_ROWS * (m.head_dim * 4 + 8)
    stats = acc + QUERY_ROWS * width * 4
    factors = stats + QUERY_ROWS * 8
    scores = m.scores + thread * QUERY_ROWS * m.n_ctx * 4
    for item in range(thread, m.n_head_kv * tiles, m.n_thread):
        head, first_row = item // tiles, item % tiles * QUERY_ROWS
        rows = min(QUERY_ROWS, n_row - first_row)
        last = step.pos + (first_row + rows - 1) // group + 1
        softmax_weights(m, layer, step, head, first_row, rows, 0, last, scores, stats, scratch)
        chunk_factors(stats, rows, 1, 0, factors)
        weigh_values(m, layer, head, rows, 0, last, scores, factors, acc)
        for r in range(rows):
            t, h = (first_row + r) // group, head * group + (first_row + r) % group
            out = shared.attended.f32 + t * shared.attended.f32_stride + h * m.head_dim * 4
            copy_scaled(acc + r * width * 4, 1.0, out, m.head_dim)
