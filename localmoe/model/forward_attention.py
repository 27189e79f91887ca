"""Attention of the forward pass: rotary keys into the cache, then each KV head's query rows over its positions."""

from __future__ import annotations

from typing import Any

import numpy as np

from localmoe.jit import njit
from localmoe.kernels import bfloat16
from localmoe.kernels.activations import dequantize_q8_0, quantize_q8_0
from localmoe.kernels.attention import F16, NEGATIVE, Q8_0, softmax_part, softmax_whole, store_key, store_value
from localmoe.kernels.attention_pairs import query_pairs, weight_pairs
from localmoe.kernels.elementwise import add_scaled, copy_scaled, rope_halves, rope_pairs, round_row_f16, zero_row
from localmoe.kernels.shapes import BLOCK, K_BLOCK, MAX_ROWS, QUERY_ROWS, SUB, SUBS
from localmoe.kernels.simd import LANES, call_address, ld_f32, st_f32, st_i16, st_i64
from localmoe.kernels.team import EQUAL, barrier, take
from localmoe.model.plan import MAX_CHUNKS

LOG2_E = 1.4426950408889634


@njit
def cache_token(m: Any, layer: Any, step: Any, t: int, head: int, work: int) -> None:
    """Rotate one KV head's key of token t, and store key and value at the token's position."""
    pos = step.pos + t
    at = (t * m.n_head_kv + head) * m.head_dim * 4
    rotate(m, m.k + at, t, work)
    scratch = work + m.head_dim * 4
    block = layer.k_cache + head * m.k_head + pos // K_BLOCK * m.k_block
    store_key(m.k_kind, work, block, pos % K_BLOCK, m.head_dim, scratch)
    store_value(m.v_kind, m.v + at, layer.v_cache + head * m.v_head + pos * m.v_row, m.head_dim, scratch)


@njit
def write_cache(m: Any, layer: Any, step: Any, thread: int) -> None:
    """Keys and values of a batch into the cache; items are (token, KV head)."""
    n_item = step.n_tok * m.n_head_kv
    work = m.attn_work + thread * m.attn_bytes
    for item in range(n_item * thread // m.n_thread, n_item * (thread + 1) // m.n_thread):
        cache_token(m, layer, step, item // m.n_head_kv, item % m.n_head_kv, work)


@njit
def rotate(m: Any, source: int, t: int, target: int) -> None:
    """The head at `source` rotated by token t's angles, to `target`."""
    angles = m.angles + t * m.rope_dim * 4
    if m.bfloat16:
        bfloat16.rope(source, angles, target, m.rope_dim, m.head_dim, m.interleaved != 0)
    elif m.interleaved:
        rope_pairs(source, angles, target, m.rope_dim, m.head_dim)
    else:
        rope_halves(source, angles, target, m.rope_dim, m.head_dim)


@njit
def load_query(m: Any, t: int, head: int, target: int, work: int) -> None:
    """The rotated query of token t's head in the form that the keys' type wants."""
    source = m.q + (t * m.n_head + head) * m.head_dim * 4
    if m.k_kind == Q8_0:
        rotate(m, source, t, work)
        quantize_q8_0(work, target, m.head_dim, 0, m.head_dim // 32)
        return
    rotate(m, source, t, target)
    if m.k_kind == F16:  # as llama.cpp multiplies a float16 cache
        round_row_f16(target, m.head_dim)


@njit
def load_queries(m: Any, head: int, first_row: int, n_row: int, n_room: int, target: int, work: int) -> None:
    """Query rows first_row.. of a KV head (row = token * heads a KV head + head); the last again up to n_room."""
    group = m.n_head // m.n_head_kv
    for r in range(n_room):
        row = first_row + min(r, n_row - 1)
        load_query(m, row // group, head * group + row % group, target + r * m.q_row, work)


@njit
def attend(
    m: Any, layer: Any, step: Any, head: int, scores: int, values: int, q: int, first_row: int, n_row: int, n_room: int,
    first: int, last: int, s: int, acc: int, state: int,
) -> None:  # fmt: skip
    """acc = weighted values of positions first to last for n_row rows, state = (maximum, sum) of each; by blocks.

    `first` is a multiple of BLOCK. The kernels compute n_room rows.
    """
    group, width = m.n_head // m.n_head_kv, (m.head_dim + 15) // 16 * 16
    zero_row(acc, n_room * width)
    for r in range(n_row):
        st_f32(state + 8 * r, NEGATIVE)
        st_f32(state + 8 * r + 4, np.float32(0.0))
    k, v, scale = layer.k_cache + head * m.k_head, layer.v_cache + head * m.v_head, ld_f32(m.attn_scale)
    for block in range(first, last, BLOCK):
        n = min(BLOCK, last - block)
        padded = (n + K_BLOCK - 1) // K_BLOCK * K_BLOCK
        call_address(scores, (q, m.q_row, k + block // K_BLOCK * m.k_block, s, 4 * BLOCK, padded, m.head_dim))
        for r in range(n_row):
            limit = step.pos + (first_row + r) // group + 1
            row, row_state = s + r * 4 * BLOCK, state + 8 * r
            if limit <= BLOCK and block == 0 and not m.bfloat16:
                softmax_whole(row, limit, padded, scale, m.v_kind == F16, row_state)
            else:
                softmax_part(row, limit - block, padded, scale, row_state, acc + r * width * 4, width)
            if m.bfloat16:
                bfloat16.round_row(row, padded)
        call_address(values, (s, 4 * BLOCK, v + block * m.v_row, acc, width * 4, n, m.head_dim))


@njit
def chunk_size(n: int) -> int:
    """Positions of one item of decode when there are n."""
    return (n + MAX_CHUNKS * BLOCK - 1) // (MAX_CHUNKS * BLOCK) * BLOCK


@njit
def attention_one(m: Any, layer: Any, step: Any, mine: Any, thread: int) -> None:
    """Attention of one token, whose key and value it stores: items are (KV head, chunk of positions)."""
    group, width, n = m.n_head // m.n_head_kv, (m.head_dim + 15) // 16 * 16, step.pos + 1
    room = (group + m.rows_one - 1) // m.rows_one * m.rows_one
    chunk = chunk_size(n)
    chunks = (n + chunk - 1) // chunk
    n_item = m.n_head_kv * chunks
    work = m.attn_work + thread * m.attn_bytes
    s = work + m.head_dim * 16
    q = s + MAX_ROWS * BLOCK * 4
    before = -1
    for item in range(n_item * thread // m.n_thread, n_item * (thread + 1) // m.n_thread):
        head, first = item // chunks, item % chunks * chunk
        if first + chunk >= n:  # nobody else reads the new position
            cache_token(m, layer, step, 0, head, work)
        if head != before:
            load_queries(m, head, 0, group, room, q, work)
            before = head
        for row in range(0, group, m.rows_one):
            rows, at = min(m.rows_one, group - row), item * room + row
            acc, state = m.partial + at * width * 4, m.stats + at * 8
            attend(
                m, layer, step, head, m.scores_one, m.values_one, q + row * m.q_row, 0, rows, m.rows_one, first,
                min(first + chunk, n), s, acc, state,
            )  # fmt: skip
    if chunks > 1:
        barrier(m.sync, thread, m.n_thread, m.yield_to)
        first_head, last_head = m.n_head * thread // m.n_thread, m.n_head * (thread + 1) // m.n_thread
    else:
        first_head = m.n_head_kv * thread // m.n_thread * group
        last_head = m.n_head_kv * (thread + 1) // m.n_thread * group
    for h in range(first_head, last_head):
        at = h // group * chunks * room + h % group
        join_chunks(m, at, chunks, room, width, mine.attended.f32 + h * m.head_dim * 4)


@njit(fast=True)
def join_chunks(m: Any, at: int, chunks: int, room: int, width: int, out: int) -> None:
    """out = one head's attention, from the sums of its chunks: rows `at`, `at` + room, ... of partial and stats."""
    top = ld_f32(m.stats + at * 8)
    for c in range(1, chunks):
        top = max(top, ld_f32(m.stats + (at + c * room) * 8))
    total = np.float32(0.0)
    for c in range(chunks):
        state = m.stats + (at + c * room) * 8
        total += np.exp(ld_f32(state) - top) * ld_f32(state + 4)
    for c in range(chunks):
        factor = np.exp(ld_f32(m.stats + (at + c * room) * 8) - top) / total
        acc = m.partial + (at + c * room) * width * 4
        if c == 0:
            copy_scaled(acc, factor, out, m.head_dim)
        else:
            add_scaled(out, acc, factor, m.head_dim)


@njit
def attention_many(m: Any, layer: Any, step: Any, shared: Any, thread: int) -> None:
    """Attention of a batch. Tokens that see more than a block are multiplied as pairs where that is faster."""
    few = min(max(BLOCK - step.pos, 0), step.n_tok) if m.pair_scores else step.n_tok
    attention_floats(m, layer, step, shared, few, thread)
    if few < step.n_tok:
        attention_pairs(m, layer, step, shared, few, thread)


@njit
def store_heads(m: Any, shared: Any, head: int, first_row: int, n_row: int, acc: int, width: int, state: int) -> None:
    """Query rows' sums, divided by their weights' sums, to where attention's output is wanted."""
    group = m.n_head // m.n_head_kv
    for r in range(n_row):
        t, h = (first_row + r) // group, head * group + (first_row + r) % group
        out = shared.attended.f32 + t * shared.attended.f32_stride + h * m.head_dim * 4
        copy_scaled(acc + r * width * 4, np.float32(1.0) / ld_f32(state + 8 * r + 4), out, m.head_dim)


@njit
def attention_floats(m: Any, layer: Any, step: Any, shared: Any, n_tok: int, thread: int) -> None:
    """The first tokens in float32: items are (KV head, MAX_ROWS query rows), one taken at a time."""
    group, width = m.n_head // m.n_head_kv, (m.head_dim + 15) // 16 * 16
    n_row = n_tok * group
    tiles = (n_row + MAX_ROWS - 1) // MAX_ROWS
    work = m.attn_work + thread * m.attn_bytes
    s = work + m.head_dim * 16
    q = s + MAX_ROWS * BLOCK * 4
    acc = q + MAX_ROWS * m.q_row
    state = acc + MAX_ROWS * width * 4
    n = m.n_head_kv * tiles
    item, end = take(m.sync, 0, n, 1, max(n, 1), EQUAL, thread, m.n_thread)
    while item < end:
        head, first_row = item // tiles, item % tiles * MAX_ROWS
        rows = min(MAX_ROWS, n_row - first_row)
        load_queries(m, head, first_row, rows, MAX_ROWS, q, work)
        last = step.pos + (first_row + rows - 1) // group + 1
        attend(m, layer, step, head, m.scores_many, m.values_many, q, first_row, rows, MAX_ROWS, 0, last, s, acc, state)
        store_heads(m, shared, head, first_row, rows, acc, width, state)
        item, end = take(m.sync, 0, n, 1, max(n, 1), EQUAL, thread, m.n_thread)


@njit
def attention_pairs(m: Any, layer: Any, step: Any, shared: Any, first_tok: int, thread: int) -> None:
    """Tokens from `first_tok` on by pairs of int16: items are (KV head, QUERY_ROWS query rows), one taken at a time."""
    group, width = m.n_head // m.n_head_kv, (m.head_dim + 15) // 16 * 16
    begin, end = first_tok * group, step.n_tok * group
    tiles = (end - begin + QUERY_ROWS - 1) // QUERY_ROWS
    work = m.attn_work + thread * m.attn_bytes
    n = m.n_head_kv * tiles
    item, stop = take(m.sync, 1, n, 1, n, EQUAL, thread, m.n_thread)
    while item < stop:
        head, first_row = item // tiles, begin + item % tiles * QUERY_ROWS
        rows = min(QUERY_ROWS, end - first_row)
        state = attend_pairs(m, layer, step, head, first_row, rows, work)
        acc = state + QUERY_ROWS * 8
        store_heads(m, shared, head, first_row, rows, acc, width, state)
        item, stop = take(m.sync, 1, n, 1, n, EQUAL, thread, m.n_thread)


@njit
def attend_pairs(m: Any, layer: Any, step: Any, head: int, first_row: int, n_row: int, work: int) -> int:
    """Attention of n_row query rows over all their positions; where (maximum, sum) of each is, sums behind them."""
    group, width = m.n_head // m.n_head_kv, (m.head_dim + 15) // 16 * 16
    keys = work + m.head_dim * 16
    key_scales = keys + BLOCK * 2 * m.head_dim
    values = key_scales + BLOCK * 4
    value_scales = values + BLOCK * 2 * width
    q = value_scales + SUBS * width * 4
    q_scales = q + QUERY_ROWS * 2 * m.head_dim
    s = q_scales + QUERY_ROWS * 4
    w_scales = s + QUERY_ROWS * 4 * BLOCK
    subs = w_scales + QUERY_ROWS * 4 * SUBS
    state = subs + QUERY_ROWS * 8
    acc = state + QUERY_ROWS * 8
    zeros = acc + QUERY_ROWS * width * 4  # never written
    pair_queries(m, head, first_row, n_row, q, q_scales, work)
    zero_row(acc, QUERY_ROWS * width)
    for r in range(n_row):
        st_f32(state + 8 * r, NEGATIVE)
        st_f32(state + 8 * r + 4, np.float32(0.0))
    k, v = layer.k_cache + head * m.k_head, layer.v_cache + head * m.v_head
    last, n_tile = step.pos + (first_row + n_row - 1) // group + 1, (n_row + MAX_ROWS - 1) // MAX_ROWS
    for block in range(0, last, BLOCK):
        n = min(BLOCK, last - block)
        call_address(
            m.key_pairs,
            (k + block // K_BLOCK * m.k_block, keys, key_scales, (n + K_BLOCK - 1) // K_BLOCK, m.head_dim, 0, 0),
        )
        call_address(m.value_pairs, (v + block * m.v_row, values, value_scales, n, m.head_dim, zeros, 0))
        for j in range(0, n, K_BLOCK):
            # the first tile of rows whose last row sees position block + j
            unseen = max(0, (block + j - step.pos) * group - first_row) // MAX_ROWS
            call_address(
                m.pair_scores,
                (
                    q, 2 * m.head_dim, keys + j * 2 * m.head_dim, key_scales + 4 * j, s + 4 * j, unseen,
                    n_tile - unseen, m.head_dim,
                ),
            )  # fmt: skip
        for tile in range(n_tile):
            last_row = min(n_row, (tile + 1) * MAX_ROWS) - 1
            seen = min(n, step.pos + (first_row + last_row) // group + 1 - block)
            n_sub = max(0, seen + SUB - 1) // SUB
            st_i64(subs + 8 * tile, n_sub)
            for r in range(tile * MAX_ROWS, last_row + 1):
                limit = step.pos + (first_row + r) // group + 1
                weight_pairs(
                    s + r * 4 * BLOCK, min(n, limit - block), n_sub, ld_f32(q_scales + 4 * r), state + 8 * r,
                    w_scales + r * 4 * SUBS, acc + r * width * 4, width,
                )  # fmt: skip
        call_address(m.pair_values, (s, w_scales, values, value_scales, acc, subs, n_tile, width // LANES))
    return state


@njit
def pair_queries(m: Any, head: int, first_row: int, n_row: int, q: int, scales: int, work: int) -> None:
    """Rotated queries as int16, and what turns their scores into exponents of 2; rows up to whole tiles are zero."""
    group = m.n_head // m.n_head_kv
    by = ld_f32(m.attn_scale) * np.float32(LOG2_E)
    row, plain = work + m.head_dim * 4, work + m.head_dim * 8
    for r in range((n_row + MAX_ROWS - 1) // MAX_ROWS * MAX_ROWS):
        if r < n_row:
            t = (first_row + r) // group
            load_query(m, t, head * group + (first_row + r) % group, row, work)
            if m.k_kind == Q8_0:
                dequantize_q8_0(row, plain, m.head_dim)
            values = plain if m.k_kind == Q8_0 else row
            st_f32(scales + 4 * r, query_pairs(values, q + r * 2 * m.head_dim, m.head_dim) * by)
        else:
            for i in range(m.head_dim):
                st_i16(q + (r * m.head_dim + i) * 2, np.int32(0))
