"""Experts of the forward pass: the router's choice, tokens grouped by expert, the chosen experts' outputs added up."""

from __future__ import annotations

from typing import Any

import numpy as np

from localmoe.jit import njit
from localmoe.kernels.elementwise import add_scaled, silu_multiply
from localmoe.kernels.router import group_by_expert, route, route_by_rules
from localmoe.kernels.simd import ld_f32, ld_i32, st_i32
from localmoe.kernels.team import barrier, share
from localmoe.model.forward_products import ROW_UNIT, multiply_many, multiply_one, quantize_part, quantize_row


@njit
def choose_experts(m: Any, step: Any, t: int, row: int, layer_index: int) -> bool:
    """Token t's experts from its router logits, to the trace's `row`; False if a logit is not finite."""
    at = (row * m.n_layer + layer_index) * step.trace_width * 4
    probs = step.probs + (row * m.n_layer + layer_index) * m.n_expert * 4
    logits = m.router_logits + t * m.n_expert * 4
    ids, weights = step.experts + at, step.weights + at
    if step.rules == 0:
        return route(logits, m.n_expert, step.n_used, m.weights_norm != 0, probs, ids, weights)
    rules, most = step.rules + layer_index * m.n_expert * 4, ld_i32(step.limits + layer_index * 4)
    return route_by_rules(
        logits, m.n_expert, step.n_used, most, m.weights_norm != 0, rules, step.threshold, probs, ids, weights
    )


@njit
def hidden_one(m: Any, layer: Any, step: Any, mine: Any, ids: int, thread: int) -> None:
    """hidden[k] = silu(gate @ x) * (up @ x) of the chosen experts of one token, quantized for `down`."""
    unit = 256 if layer.needs_down & 4 else 32 if layer.needs_down & 2 else ROW_UNIT
    blocks = (m.n_ff + unit - 1) // unit
    # a thread quantizes what it computed itself, without waiting, where whole blocks share out evenly
    alone = unit == ROW_UNIT or blocks % m.n_thread == 0 or blocks >= 8 * m.n_thread
    first, last = share(m.n_ff, unit if alone else ROW_UNIT, thread, m.n_thread)
    for k in range(step.n_used):
        e = ld_i32(ids + 4 * k)
        if e < 0:  # fewer experts than slots
            break
        gate, up = mine.hidden.f32 + k * mine.hidden.f32_stride, m.up + k * m.n_ff * 4
        multiply_one(layer.gate, e, mine.normed, 0, gate, first, last)
        multiply_one(layer.up, e, mine.normed, 0, up, first, last)
        silu_multiply(gate + first * 4, up + first * 4, last - first)
    if not alone:
        barrier(m.sync, m.n_thread, m.yield_to)
        first, last = share(m.n_ff, unit, thread, m.n_thread)
    for k in range(step.n_used):
        if ld_i32(ids + 4 * k) < 0:
            break
        quantize_part(mine.hidden, layer.needs_down, k, m.n_ff, first, last)


@njit
def feed_forward_one(m: Any, layer: Any, step: Any, mine: Any, ids: int, thread: int) -> None:
    """The chosen experts of one token: outputs, not yet weighted, to expert_out[k]."""
    hidden_one(m, layer, step, mine, ids, thread)
    barrier(m.sync, m.n_thread, m.yield_to)
    first, last = share(m.n_embd, ROW_UNIT, thread, m.n_thread)
    for k in range(step.n_used):
        e = ld_i32(ids + 4 * k)
        if e < 0:
            break
        out = m.expert_out + k * m.n_embd * 4
        multiply_one(layer.down, e, mine.hidden, k, out, first, last)


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
        if ld_i32(m.slot_ids + 4 * s) == n_expert:  # a slot without an expert
            continue
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
    """Sort the batch's slots by expert, those without one last; a dense layer is one expert for every token."""
    n_slot, n_expert = step.n_tok * step.n_used, max(m.n_expert, 1)
    for t in range(step.n_tok):
        row = step.experts + (t * m.n_layer + layer_index) * step.trace_width * 4
        for k in range(step.n_used):
            expert = ld_i32(row + 4 * k) if m.n_expert else np.int32(0)
            st_i32(m.slot_ids + 4 * (t * step.n_used + k), expert if expert >= 0 else np.int32(n_expert))
    group_by_expert(m.slot_ids, n_slot, step.n_used, n_expert + 1, m.starts, m.slot_tokens, m.slots)


@njit
def add_experts(m: Any, step: Any, mine: Any, t: int, row: int, layer_index: int) -> None:
    """x[t] += the sum of its experts' outputs times the weights in the trace's `row`, in the order chosen."""
    at = (row * m.n_layer + layer_index) * step.trace_width * 4
    ids, weights = step.experts + at, step.weights + at
    for k in range(step.n_used):
        if m.n_expert and ld_i32(ids + 4 * k) < 0:
            break
        weight = ld_f32(weights + 4 * k) if m.n_expert else np.float32(1.0)
        out = m.expert_out + (t * step.n_used + k) * m.n_embd * 4
        add_scaled(mine.x + t * m.n_embd * 4, out, weight, m.n_embd)
