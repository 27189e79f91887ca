"""The forward pass of llama-architecture models, dense and MoE: one compiled call a step, run by every thread.

For one token, what is cheap is done by every thread for itself (norms, activation quantization), so that a layer needs
a barrier only where what several threads computed comes together. For many tokens, tokens are
shared out instead, and each expert multiplies all the tokens that chose it at once.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray

from localmoe.jit import njit
from localmoe.kernels.bfloat16 import round_row
from localmoe.kernels.elementwise import all_finite, copy_scaled, rope_angles, rope_angles_ggml
from localmoe.kernels.team import as_pointer, take
from localmoe.model.forward_attention import attention_many, attention_one, write_cache
from localmoe.model.forward_experts import (
    add_experts,
    choose_experts,
    feed_forward_many,
    feed_forward_one,
    group_slots,
)
from localmoe.model.forward_products import (
    MANY_UNIT,
    PARTS_ONE,
    ROW_UNIT,
    add_row,
    multiply_many,
    multiply_one,
    norm,
    pieces_of,
    project,
    project_router,
    quantize_row,
)
from localmoe.model.forward_profile import begin, mark, meet
from localmoe.model.forward_squares import add_attention_squares, add_layer_squares
from localmoe.model.plan import (
    ADD,
    ATTENTION,
    BAD_LOGITS,
    BUFFERS,
    CACHE,
    CHOOSE,
    DOWN,
    INTERRUPTED,
    LAYER,
    LOGITS,
    MODEL,
    NORM,
    OUTPUT,
    QKV,
    ROUTER,
    STEP,
)


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
    mark(m, thread, NORM)
    if not one:
        meet(m, thread, NORM)
    if step.squares:
        add_attention_squares(m, step, mine, index, thread)
    project(m, layer.attn_q, mine.normed, step.n_tok, m.q, thread, 0)
    project(m, layer.attn_k, mine.normed, step.n_tok, m.k, thread, 1)
    project(m, layer.attn_v, mine.normed, step.n_tok, m.v, thread, 2)
    meet(m, thread, QKV)
    if one:
        attention_one(m, layer, step, mine, thread)
    else:
        write_cache(m, layer, step, thread)
        meet(m, thread, CACHE)
        attention_many(m, layer, step, mine, thread)
    meet(m, thread, ATTENTION)
    for t in range(first, last):
        if m.bfloat16:
            round_row(mine.attended.f32 + t * mine.attended.f32_stride, m.n_head * m.head_dim)
        quantize_row(mine.attended, layer.needs_output, t, m.n_head * m.head_dim)
    mark(m, thread, NORM)
    if not one:
        meet(m, thread, NORM)
    project(m, layer.attn_output, mine.attended, step.n_tok, m.projected, thread, 0)
    meet(m, thread, OUTPUT)

    # feed-forward: the router chooses experts, their outputs are added with its weights
    for t in range(first, last):
        add_row(m, mine.x + t * m.n_embd * 4, m.projected + t * m.n_embd * 4, 1.0)
        norm(m, mine, layer.ffn_norm, layer.needs_ffn, t)
    mark(m, thread, NORM)
    if m.n_expert:
        project_router(m, layer.router, mine.normed, step.n_tok, thread)
        mark(m, thread, ROUTER)
        if not one:  # the scores of its own tokens
            for t in range(first, last):
                if not choose_experts(m, step, t, t, index) and not step.failed_layer:
                    step.failed_layer = index + 1
        meet(m, thread, CHOOSE)
        # every thread for itself, in a row of the trace of its own: the first is the one that is read
        if one and not choose_experts(m, step, 0, thread, index) and thread == 0 and not step.failed_layer:
            step.failed_layer = index + 1
    if not one:
        if thread == 0:
            group_slots(m, step, index)
        meet(m, thread, CHOOSE)
    if one:
        mark(m, thread, CHOOSE)
        ids = step.experts + (thread * m.n_layer + index) * step.trace_width * 4 if m.n_expert else m.starts
        feed_forward_one(m, layer, step, mine, ids, thread)
    else:
        feed_forward_many(m, layer, step, mine, thread)
    if thread == 0 and not one and step.interrupt:
        step.failed_layer = INTERRUPTED  # before a barrier, so that all threads end at the same layer
    meet(m, thread, DOWN)
    if step.squares:
        add_layer_squares(m, step, mine, index, thread)
    for t in range(first, last):
        add_experts(m, step, mine, t, thread if one else t, index)
    mark(m, thread, ADD)


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
    mark(m, thread, NORM)
    if not one:
        meet(m, thread, NORM)
    if step.n_out == 0:
        return
    scratch = m.scratch + thread * m.scratch_bytes
    inputs = m.iota + 4 * (step.n_tok - step.n_out)
    unit = ROW_UNIT if step.n_out == 1 else MANY_UNIT
    pieces = pieces_of(m.output.expert_bytes, m.n_thread)
    first, last = take(m.sync, 0, m.n_vocab, unit, pieces, PARTS_ONE, thread, m.n_thread)
    while first < last:
        if step.n_out == 1:
            multiply_one(m.output, 0, mine.normed, step.n_tok - 1, step.logits, first, last)
        else:
            multiply_many(m.output, 0, mine.normed, inputs, step.logits, m.iota, step.n_out, first, last, scratch)
        finite = all_finite(step.logits + ((step.n_out - 1) * m.n_vocab + first) * 4, last - first)
        if not finite and not step.failed_layer:  # a router that failed says more
            step.failed_layer = BAD_LOGITS
        first, last = take(m.sync, 0, m.n_vocab, unit, pieces, PARTS_ONE, thread, m.n_thread)


@njit(inline=True)
def run_step(thread: int, models: Any, layers: Any, buffers: Any, steps: Any, frequencies: Any) -> None:
    """The whole pass, with the records as arrays."""
    m, step = models[0], steps[0]
    begin(m, thread)
    one = step.n_tok == 1
    mine = buffers[thread] if one else buffers[m.n_team]
    if one and thread:
        copy_scaled(buffers[0].x, 1.0, mine.x, m.n_embd)
    for t in range(step.n_tok * thread // m.n_thread, step.n_tok * (thread + 1) // m.n_thread):
        angles = m.angles + t * m.rope_dim * 4
        if m.k_kind:  # not float32
            rope_angles_ggml(step.pos + t, m.rope_step, frequencies[1], m.rope_magnitude, angles)
        else:
            rope_angles(step.pos + t, frequencies[0], m.rope_magnitude, angles)
        if m.bfloat16:
            round_row(angles, m.rope_dim)
    meet(m, thread, CACHE)
    for index in range(m.n_layer):
        layer_step(m, layers[index], step, mine, index, thread)
        if step.failed_layer == INTERRUPTED:
            break
    if step.failed_layer != INTERRUPTED:
        logits_step(m, step, mine, thread)
    meet(m, thread, LOGITS)


def forward(thread: int, models: int, layers: int, buffers: int, steps: int, frequencies: int) -> None:
    """One step on one of its `n_thread` threads; all of them must call it. Arguments are addresses.

    models: (1,) MODEL. layers: (n_layer,) LAYER. buffers: (n_team + 1,) BUFFERS, one a thread and the shared one,
    whose `x` holds the tokens' embeddings (thread 0's for a single token). steps: (1,) STEP. frequencies: (2, pairs)
    float64, radians a position of each rotary pair and their ratio to the unscaled ones. The KV cache, the trace's
    rows, logits and `failed_layer` are written.
    """
    model = carray(as_pointer(models), 1, MODEL)
    m = model[0]
    layer_array = carray(as_pointer(layers), m.n_layer, LAYER)
    buffer_array = carray(as_pointer(buffers), m.n_team + 1, BUFFERS)
    step_array = carray(as_pointer(steps), 1, STEP)
    pairs = carray(as_pointer(frequencies), (2, m.rope_dim // 2), np.float64)
    run_step(thread, model, layer_array, buffer_array, step_array, pairs)
