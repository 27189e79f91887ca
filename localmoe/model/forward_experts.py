"""Experts of the forward pass: the router's choice, tokens grouped by expert, the chosen experts' outputs added up."""

from __future__ import annotations

from typing import Any

import numpy as np

from localmoe.jit import njit
from localmoe.kernels.atomics import atomic_add, atomic_store
from localmoe.kernels.elementwise import copy_scaled
from localmoe.kernels.router import group_by_expert, route, route_by_rules
from localmoe.kernels.simd import ld_f32, ld_i32, st_i32
from localmoe.kernels.team import EQUAL, take
from localmoe.model.forward_products import (
    MANY_UNIT,
    PARTS_ONE,
    PIECES_MANY,
    ROW_UNIT,
    activate,
    add_row,
    multiply_many,
    multiply_one,
    multiply_to,
    pieces_of,
    quantize_from,
    quantize_part,
)
from localmoe.model.forward_profile import mark, meet
from localmoe.model.plan import GATE_UP, PART_BYTES, SILU

# A thread's gate and up values of one item stay in its caches until they are multiplied and quantized. Rows are a gap
# apart, so that they do not compete for the same few places of the first level.
PART_GAP = 128
HIDDEN_UNIT = 64  # rows of gate and up that a thread takes for one token at least, though 256 may be quantized together
EXPERT_ROWS, EXPERT_TOKENS = 256, 64  # rows of an expert taken at a time if it has so many tokens; else up to 4 times


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
def quantized_unit(needs: int) -> int:
    """Values that are quantized together in the widest of the forms in `needs`."""
    return 256 if needs & 4 else 32 if needs & 2 else ROW_UNIT


@njit
def n_chosen(step: Any, ids: int) -> int:
    """How many of a token's slots have an expert: all of them, unless rules took some away."""
    n = step.n_used
    while step.rules and ld_i32(ids + 4 * (n - 1)) < 0:
        n -= 1
    return n


@njit
def hidden_part(m: Any, layer: Any, mine: Any, ids: int, k: int, first: int, last: int, thread: int) -> None:
    """Values first to last of hidden[k] = silu(gate @ x) * (up @ x) of one token's k-th expert."""
    e = ld_i32(ids + 4 * k)
    gate, up = mine.hidden.f32 + k * mine.hidden.f32_stride, m.up + k * m.n_ff * 4
    multiply_one(layer.gate, e, mine.normed, 0, gate, first, last)
    multiply_one(layer.up, e, mine.normed, 0, up, first, last)
    mark(m, thread, GATE_UP)
    activate(m, gate + first * 4, up + first * 4, last - first)


@njit
def quantize_finished(m: Any, layer: Any, mine: Any, k: int, unit: int, first: int, last: int) -> None:
    """Quantize the blocks of `unit` values that are complete with hidden values first to last of slot k.

    Counts the values of each block, whichever threads compute them.
    """
    blocks = (m.n_ff + unit - 1) // unit
    for block in range(first // unit, (last + unit - 1) // unit):
        start, stop = block * unit, min(block * unit + unit, m.n_ff)
        now = min(last, stop) - max(first, start)
        done = m.hidden_done + 8 * (k * blocks + block)
        if now == stop - start:
            quantize_part(mine.hidden, layer.needs_down, k, m.n_ff, start, stop)
        elif atomic_add(done, now) + now == stop - start:
            atomic_store(done, 0)  # for the next layer
            quantize_part(mine.hidden, layer.needs_down, k, m.n_ff, start, stop)


@njit
def hidden_one(m: Any, layer: Any, step: Any, mine: Any, ids: int, thread: int) -> None:
    """The hidden values of the chosen experts of one token, quantized for `down`."""
    unit = quantized_unit(layer.needs_down)
    rows = HIDDEN_UNIT if unit > HIDDEN_UNIT else unit
    per_slot = (m.n_ff + rows - 1) // rows
    n = n_chosen(step, ids) * per_slot
    pieces = pieces_of(2 * n_chosen(step, ids) * layer.gate.expert_bytes, m.n_thread)
    at, stop = take(m.sync, 0, n, 1, pieces, PARTS_ONE, thread, m.n_thread)
    while at < stop:
        k = at // per_slot
        end = min(stop, (k + 1) * per_slot)
        first, last = (at - k * per_slot) * rows, min((end - k * per_slot) * rows, m.n_ff)
        hidden_part(m, layer, mine, ids, k, first, last, thread)
        quantize_finished(m, layer, mine, k, unit, first, last)
        mark(m, thread, SILU)
        at = end
        if at == stop:
            at, stop = take(m.sync, 0, n, 1, pieces, PARTS_ONE, thread, m.n_thread)


@njit
def feed_forward_one(m: Any, layer: Any, step: Any, mine: Any, ids: int, thread: int) -> None:
    """The chosen experts of one token: outputs, not yet weighted, to expert_out[k]."""
    hidden_one(m, layer, step, mine, ids, thread)
    meet(m, thread, SILU)
    units = (m.n_embd + ROW_UNIT - 1) // ROW_UNIT
    used = n_chosen(step, ids)
    pieces = pieces_of(used * layer.down.expert_bytes, m.n_thread)
    at, stop = take(m.sync, 0, used * units, 1, pieces, PARTS_ONE, thread, m.n_thread)
    while at < stop:
        k = at // units
        end = min(stop, (k + 1) * units)
        first, last = (at - k * units) * ROW_UNIT, min((end - k * units) * ROW_UNIT, m.n_embd)
        out = m.expert_out + k * m.n_embd * 4
        multiply_one(layer.down, ld_i32(ids + 4 * k), mine.hidden, k, out, first, last)
        at = end
        if at == stop:
            at, stop = take(m.sync, 0, used * units, 1, pieces, PARTS_ONE, thread, m.n_thread)


@njit
def rows_of_item(m: Any, step: Any, n_rows: int, unit: int) -> int:
    """Rows of one expert that a thread takes at a time: more where an expert has few tokens, some pieces a thread."""
    n_expert = max(m.n_expert, 1)
    tokens = max(step.n_tok * step.n_used // n_expert, 1)
    wanted = EXPERT_ROWS * min(max(EXPERT_TOKENS // tokens, 1), 4)
    most = max(n_rows * n_expert // (PIECES_MANY * m.n_thread), unit)
    return max(min(wanted, most, n_rows) // unit, 1) * unit


@njit
def hidden_many(m: Any, layer: Any, step: Any, shared: Any, item: int, rows: int, thread: int) -> None:
    """Hidden values of one expert's tokens, quantized; item is expert * parts + part, a part `rows` of n_ff."""
    parts = (m.n_ff + rows - 1) // rows
    e, first = item // parts, item % parts * rows
    last = min(first + rows, m.n_ff)
    start, stop = ld_i32(m.starts + 4 * e), ld_i32(m.starts + 4 * e + 4)
    scratch = m.scratch + thread * m.scratch_bytes
    pitch = 4 * rows + PART_GAP
    gate = m.parts + thread * 2 * PART_BYTES
    up = gate + PART_BYTES
    for at in range(start, stop, PART_BYTES // pitch):
        tokens, n = m.slot_tokens + 4 * at, min(PART_BYTES // pitch, stop - at)
        multiply_to(layer.gate, e, shared.normed, tokens, gate - 4 * first, pitch, m.iota, n, first, last, scratch)
        multiply_to(layer.up, e, shared.normed, tokens, up - 4 * first, pitch, m.iota, n, first, last, scratch)
        mark(m, thread, GATE_UP)
        for i in range(n):
            s = np.int64(ld_i32(m.slots + 4 * (at + i)))
            values = gate + i * pitch
            activate(m, values, up + i * pitch, last - first)
            quantize_from(values - 4 * first, shared.hidden, layer.needs_down, s, m.n_ff, first, last)
            if layer.needs_down & 1 or step.squares:
                copy_scaled(values, 1.0, shared.hidden.f32 + s * shared.hidden.f32_stride + 4 * first, last - first)
        mark(m, thread, SILU)


@njit
def feed_forward_many(m: Any, layer: Any, step: Any, shared: Any, thread: int) -> None:
    """Every expert on all tokens that chose it; rows of expert_out are slots, token * n_used + choice."""
    n_expert = max(m.n_expert, 1)
    rows = rows_of_item(m, step, m.n_ff, max(quantized_unit(layer.needs_down), MANY_UNIT))
    n = n_expert * ((m.n_ff + rows - 1) // rows)
    item, end = take(m.sync, 0, n, 1, n, EQUAL, thread, m.n_thread)
    while item < end:
        hidden_many(m, layer, step, shared, item, rows, thread)
        item, end = take(m.sync, 0, n, 1, n, EQUAL, thread, m.n_thread)
    meet(m, thread, SILU)
    scratch = m.scratch + thread * m.scratch_bytes
    rows = rows_of_item(m, step, m.n_embd, MANY_UNIT)
    parts = (m.n_embd + rows - 1) // rows
    n = n_expert * parts
    item, end = take(m.sync, 0, n, 1, n, EQUAL, thread, m.n_thread)
    while item < end:
        e, first = item // parts, item % parts * rows
        start, stop = ld_i32(m.starts + 4 * e), ld_i32(m.starts + 4 * e + 4)
        if start < stop:
            slots, last = m.slots + 4 * start, min(first + rows, m.n_embd)
            multiply_many(layer.down, e, shared.hidden, slots, m.expert_out, slots, stop - start, first, last, scratch)
        item, end = take(m.sync, 0, n, 1, n, EQUAL, thread, m.n_thread)


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
        add_row(m, mine.x + t * m.n_embd * 4, out, weight)
