"""The forward pass of llama-architecture models, dense and MoE: one compiled call a step, run by every thread.

For one token, what is cheap is done by every thread for itself (norms, activation quantization, choosing experts), so
that a layer needs only a barrier where rows computed by several threads come together. For many tokens, tokens are
shared out instead, and each expert multiplies all the tokens that chose it at once.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray

from localmoe.jit import njit
from localmoe.kernels.activations import quantize_q8_0, quantize_q8_k
from localmoe.kernels.attention import K_BLOCK
from localmoe.kernels.attention import ROWS as QUERY_ROWS
from localmoe.kernels.elementwise import (
    add_scaled,
    copy_scaled,
    rms_norm,
    rope_angles,
    rope_angles_ggml,
    rope_halves,
    rope_pairs,
    round_row_f16,
    silu_multiply,
    store_row,
)
from localmoe.kernels.router import group_by_expert, route
from localmoe.kernels.simd import call_address, ld_f32, ld_i32, st_f32, st_i32, st_i64
from localmoe.kernels.team import as_pointer, barrier, share
from localmoe.model.plan import BUFFERS, LAYER, MODEL, STEP

CHUNK = 256  # positions of one attention item in decode; fixed, so that results do not depend on the threads
ROW_UNIT = 16  # rows are shared out in whole vectors


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
def quantize_row(rows: Any, needs: int, index: int, n: int) -> None:
    """The forms in `needs` of float32 row `index`."""
    x = rows.f32 + index * rows.f32_stride
    if needs & 2:
        quantize_q8_0(x, rows.q8_0 + index * rows.q8_0_stride, n)
    if needs & 4:
        quantize_q8_k(x, rows.q8_k + index * rows.q8_k_stride, n)


@njit
def multiply_one(w: Any, expert: int, rows: Any, index: int, out: int, first: int, last: int) -> None:
    """out[first:last] = w @ row."""
    act = act_row(rows, w.act, index)
    call_address(w.matvec, (w.data + expert * w.expert_bytes, act, out, first, last, w.cols))


@njit
def multiply_many(
    w: Any, expert: int, rows: Any, inputs: int, out: int, outputs: int, n: int, first: int, last: int, scratch: int
) -> None:
    """out[outputs[i], first:last] = w @ rows[inputs[i]] for n rows; `out` is (.., w.rows) float32."""
    call_address(
        w.matmul,
        (
            w.data + expert * w.expert_bytes, act_row(rows, w.act, 0), act_stride(rows, w.act), inputs,
            out, w.rows * 4, outputs, n, first, last, w.cols, scratch,
        ),
    )  # fmt: skip


@njit
def project(m: Any, w: Any, rows: Any, n_tok: int, out: int, thread: int) -> None:
    """out[t] = w @ rows[t]: this thread's share of the rows, for all tokens."""
    first, last = share(w.rows, ROW_UNIT, thread, m.n_thread)
    if first == last:
        return
    if n_tok == 1:
        multiply_one(w, 0, rows, 0, out, first, last)
    else:
        scratch = m.scratch + thread * m.scratch_bytes
        multiply_many(w, 0, rows, m.iota, out, m.iota, n_tok, first, last, scratch)


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
    rms_norm(x, weight, mine.normed.f32 + t * mine.normed.f32_stride, m.n_embd, m.rms_eps)
    quantize_row(mine.normed, needs, t, m.n_embd)


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
    for r in range(QUERY_ROWS):
        row = first_row + min(r, n_row - 1)
        t = row // group
        target = q + r * m.head_dim * 4
        rotate(m, m.q + (t * m.n_head + head * group + row % group) * m.head_dim * 4, t, target)
        if m.half_cache:  # as llama.cpp multiplies a float16 cache
            round_row_f16(target, m.head_dim)
        st_i64(limits + 8 * r, step.pos + t + 1)
    k = layer.k_cache + head * m.n_ctx * m.head_dim * (2 if m.half_cache else 4)
    call_address(m.weights, (q, limits, k, first, last, s, m.n_ctx * 4, stats, m.attn_scale, m.head_dim))


@njit
def weigh_values(m: Any, layer: Any, head: int, first: int, last: int, s: int, factors: int, acc: int) -> None:
    """acc = the weighted values of positions first to last."""
    width = (m.head_dim + 15) // 16 * 16
    v = layer.v_cache + head * m.n_ctx * width * (2 if m.half_cache else 4)
    call_address(m.values, (s, m.n_ctx * 4, factors, v, first, last, acc, m.head_dim))


@njit(fast=True)
def chunk_factors(stats: int, n_chunk: int, chunk: int, factors: int) -> None:
    """What turns a chunk's exp(s - its max) into softmax weights over all chunks, for QUERY_ROWS rows."""
    stride = QUERY_ROWS * 8
    for r in range(QUERY_ROWS):
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
        first = chunk * CHUNK
        chunk_factors(m.stats + pair * chunks * stats_bytes, chunks, chunk, scratch)
        weigh_values(
            m, layer, pair // tiles, first, min(first + CHUNK, step.pos + 1), m.scores + pair * s_bytes + first * 4,
            scratch, m.partial + item * acc_bytes,
        )  # fmt: skip
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
        chunk_factors(stats, 1, 0, factors)
        weigh_values(m, layer, head, 0, last, scores, factors, acc)
        for r in range(rows):
            t, h = (first_row + r) // group, head * group + (first_row + r) % group
            out = shared.attended.f32 + t * shared.attended.f32_stride + h * m.head_dim * 4
            copy_scaled(acc + r * width * 4, 1.0, out, m.head_dim)


@njit
def choose_experts(m: Any, step: Any, t: int, layer_index: int) -> bool:
    """Token t's experts from its router logits, written to the trace; False if a logit is not finite."""
    row = (t * m.n_layer + layer_index) * step.trace_width * 4
    probs = step.probs + (t * m.n_layer + layer_index) * m.n_expert * 4
    logits = m.router_logits + t * m.n_expert * 4
    return route(logits, m.n_expert, step.n_used, m.weights_norm != 0, probs, step.experts + row, step.weights + row)


@njit
def hidden_one(m: Any, layer: Any, step: Any, mine: Any, ids: int, thread: int) -> None:
    """hidden[k] = silu(gate @ x) * (up @ x) of the chosen experts of one token, quantized for `down`."""
    first, last = share(m.n_ff, ROW_UNIT, thread, m.n_thread)
    for k in range(step.n_used):
        e = ld_i32(ids + 4 * k)
        gate, up = mine.hidden.f32 + k * mine.hidden.f32_stride, m.up + k * m.n_ff * 4
        multiply_one(layer.gate, e, mine.normed, 0, gate, first, last)
        multiply_one(layer.up, e, mine.normed, 0, up, first, last)
        silu_multiply(gate + first * 4, up + first * 4, last - first)
    barrier(m.sync, m.n_thread, m.yield_to)
    for k in range(thread, step.n_used, m.n_thread):
        quantize_row(mine.hidden, layer.needs_down, k, m.n_ff)


@njit
def feed_forward_one(m: Any, layer: Any, step: Any, mine: Any, ids: int, thread: int) -> None:
    """The chosen experts of one token: outputs, not yet weighted, to expert_out[k]."""
    hidden_one(m, layer, step, mine, ids, thread)
    barrier(m.sync, m.n_thread, m.yield_to)
    first, last = share(m.n_embd, ROW_UNIT, thread, m.n_thread)
    for k in range(step.n_used):
        out = m.expert_out + k * m.n_embd * 4
        multiply_one(layer.down, ld_i32(ids + 4 * k), mine.hidden, k, out, first, last)


@njit
def feed_forward_many(m: Any, layer: Any, step: Any, shared: Any, thread: int) -> None:
    """Every expert on all tokens that chose it; rows of expert_out are slots, token * n_used + choice."""
    scratch = m.scratch + thread * m.scratch_bytes
    n_slot = step.n_tok * step.n_used
    n_expert = max(m.n_expert, 1)
    first, last = share(m.n_ff, ROW_UNIT, thread, m.n_thread)
    for e in range(n_expert):
        start, stop = ld_i32(m.starts + 4 * e), ld_i32(m.starts + 4 * e + 4)
        if start == stop or first == last:
            continue
        tokens, slots = m.slot_tokens + 4 * start, m.slots + 4 * start
        n = stop - start
        multiply_many(layer.gate, e, shared.normed, tokens, shared.hidden.f32, slots, n, first, last, scratch)
        multiply_many(layer.up, e, shared.normed, tokens, m.up, slots, n, first, last, scratch)
    barrier(m.sync, m.n_thread, m.yield_to)
    for s in range(n_slot * thread // m.n_thread, n_slot * (thread + 1) // m.n_thread):
        silu_multiply(shared.hidden.f32 + s * shared.hidden.f32_stride, m.up + s * m.n_ff * 4, m.n_ff)
        quantize_row(shared.hidden, layer.needs_down, s, m.n_ff)
    barrier(m.sync, m.n_thread, m.yield_to)
    first, last = share(m.n_embd, ROW_UNIT, thread, m.n_thread)
    for e in range(n_expert):
        start, stop = ld_i32(m.starts + 4 * e), ld_i32(m.starts + 4 * e + 4)
        if start < stop and first < last:
            slots = m.slots + 4 * start
            multiply_many(layer.down, e, shared.hidden, slots, m.expert_out, slots, stop - start, first, last, scratch)


@njit
def group_slots(m: Any, step: Any, layer_index: int) -> None:
    """Sort the batch's slots by expert; a dense layer is one expert that every token chooses."""
    for t in range(step.n_tok):
        row = step.experts + (t * m.n_layer + layer_index) * step.trace_width * 4
        for k in range(step.n_used):
            expert = ld_i32(row + 4 * k) if m.n_expert else np.int32(0)
            st_i32(m.slot_ids + 4 * (t * step.n_used + k), expert)
    n_slot, n_expert = step.n_tok * step.n_used, max(m.n_expert, 1)
    group_by_expert(m.slot_ids, n_slot, step.n_used, n_expert, m.starts, m.slot_tokens, m.slots)


@njit
def add_experts(m: Any, step: Any, mine: Any, t: int, layer_index: int) -> None:
    """x[t] += the sum of its experts' outputs times their weights, in the order chosen."""
    weights = step.weights + (t * m.n_layer + layer_index) * step.trace_width * 4
    for k in range(step.n_used):
        weight = ld_f32(weights + 4 * k) if m.n_expert else np.float32(1.0)
        out = m.expert_out + (t * step.n_used + k) * m.n_embd * 4
        add_scaled(mine.x + t * m.n_embd * 4, out, weight, m.n_embd)


@njit
def layer_step(m: Any, layer: Any, step: Any, mine: Any, index: int, thread: int) -> None:
    """One block. On entry this thread's tokens of x are complete, but not yet seen by the others."""
    one = step.n_tok == 1
    first = 0 if one else step.n_tok * thread // m.n_thread
    last = 1 if one else step.n_tok * (thread + 1) // m.n_thread

    # attention: q, k, v of the normed rows, the cache, softmax(q k') v, and the output projection
    for t in range(first, last):
        if step.hidden and (not one or thread == 0):
            copy_scaled(mine.x + t * m.n_embd * 4, 1.0, step.hidden + (index * step.n_tok + t) * m.n_embd * 4, m.n_embd)
        norm(m, mine, layer.attn_norm, layer.needs_attn, t)
    if not one:
        barrier(m.sync, m.n_thread, m.yield_to)
    project(m, layer.attn_q, mine.normed, step.n_tok, m.q, thread)
    project(m, layer.attn_k, mine.normed, step.n_tok, m.k, thread)
    project(m, layer.attn_v, mine.normed, step.n_tok, m.v, thread)
    barrier(m.sync, m.n_thread, m.yield_to)
    write_cache(m, layer, step, thread)
    barrier(m.sync, m.n_thread, m.yield_to)
    if one:
        attention_one(m, layer, step, mine, thread)
    else:
        attention_many(m, layer, step, mine, thread)
    barrier(m.sync, m.n_thread, m.yield_to)
    for t in range(first, last):
        quantize_row(mine.attended, layer.needs_output, t, m.n_head * m.head_dim)
    if not one:
        barrier(m.sync, m.n_thread, m.yield_to)
    project(m, layer.attn_output, mine.attended, step.n_tok, m.projected, thread)
    barrier(m.sync, m.n_thread, m.yield_to)

    # feed-forward: the router chooses experts, their outputs are added with its weights
    for t in range(first, last):
        add_scaled(mine.x + t * m.n_embd * 4, m.projected + t * m.n_embd * 4, 1.0, m.n_embd)
        norm(m, mine, layer.ffn_norm, layer.needs_ffn, t)
    if m.n_expert:
        if not one:
            barrier(m.sync, m.n_thread, m.yield_to)
        project_router(m, layer.router, mine.normed, step.n_tok, thread)
        barrier(m.sync, m.n_thread, m.yield_to)
        if thread == 0:
            for t in range(step.n_tok):
                if not choose_experts(m, step, t, index) and not step.failed_layer:
                    step.failed_layer = index + 1
            if not one:
                group_slots(m, step, index)
    elif thread == 0 and not one:
        group_slots(m, step, index)
    if m.n_expert or not one:
        barrier(m.sync, m.n_thread, m.yield_to)
    if one:
        ids = step.experts + index * step.trace_width * 4 if m.n_expert else m.starts
        feed_forward_one(m, layer, step, mine, ids, thread)
    else:
        feed_forward_many(m, layer, step, mine, thread)
    barrier(m.sync, m.n_thread, m.yield_to)
    for t in range(first, last):
        add_experts(m, step, mine, t, index)


@njit
def logits_step(m: Any, step: Any, mine: Any, thread: int) -> None:
    """Logits of the last n_out tokens, from the normed residual."""
    one = step.n_tok == 1
    first = 0 if one else step.n_tok * thread // m.n_thread
    last = 1 if one else step.n_tok * (thread + 1) // m.n_thread
    for t in range(first, last):
        if step.hidden and (not one or thread == 0):
            at = step.hidden + (m.n_layer * step.n_tok + t) * m.n_embd * 4
            copy_scaled(mine.x + t * m.n_embd * 4, 1.0, at, m.n_embd)
        if t >= step.n_tok - step.n_out:
            norm(m, mine, m.output_norm, m.needs_logits, t)
    if not one:
        barrier(m.sync, m.n_thread, m.yield_to)
    first, last = share(m.n_vocab, ROW_UNIT, thread, m.n_thread)
    if first == last or step.n_out == 0:
        return
    if step.n_out == 1:
        multiply_one(m.output, 0, mine.normed, step.n_tok - 1, step.logits, first, last)
    else:
        scratch = m.scratch + thread * m.scratch_bytes
        inputs = m.iota + 4 * (step.n_tok - step.n_out)
        multiply_many(m.output, 0, mine.normed, inputs, step.logits, m.iota, step.n_out, first, last, scratch)


@njit(inline=True)
def run_step(thread: int, models: Any, layers: Any, buffers: Any, steps: Any, frequencies: Any) -> None:
    """The whole pass, with the records as arrays."""
    m, step = models[0], steps[0]
    one = step.n_tok == 1
    mine = buffers[thread] if one else buffers[m.n_thread]
    if one and thread:
        copy_scaled(buffers[0].x, 1.0, mine.x, m.n_embd)
    for t in range(step.n_tok * thread // m.n_thread, step.n_tok * (thread + 1) // m.n_thread):
        angles = m.angles + t * m.rope_dim * 4
        if m.half_cache:
            rope_angles_ggml(step.pos + t, m.rope_step, frequencies[1], m.rope_magnitude, angles)
        else:
            rope_angles(step.pos + t, frequencies[0], m.rope_magnitude, angles)
    barrier(m.sync, m.n_thread, m.yield_to)
    for index in range(m.n_layer):
        layer_step(m, layers[index], step, mine, index, thread)
    logits_step(m, step, mine, thread)
    barrier(m.sync, m.n_thread, m.yield_to)


def forward(thread: int, models: int, layers: int, buffers: int, steps: int, frequencies: int) -> None:
    """One step on one of the team's threads; all of them must call it. Arguments are addresses.

    models: (1,) MODEL. layers: (n_layer,) LAYER. buffers: (n_thread + 1,) BUFFERS, one a thread and the shared one,
    whose `x` holds the tokens' embeddings (thread 0's for a single token). steps: (1,) STEP. frequencies: (2, pairs)
    float64, radians a position of each rotary pair and their ratio to the unscaled ones. The KV cache, the trace's rows, logits and `failed_layer` are written.
    """
    model = carray(as_pointer(models), 1, MODEL)
    n_thread, n_layer, n_pair = model[0].n_thread, model[0].n_layer, model[0].rope_dim // 2
    run_step(
        thread, model, carray(as_pointer(layers), n_layer, LAYER), carray(as_pointer(buffers), n_thread + 1, BUFFERS),
        carray(as_pointer(steps), 1, STEP), carray(as_pointer(frequencies), (2, n_pair), np.float64),
    )  # fmt: skip


N_ARGS = 6
