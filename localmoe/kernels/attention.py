"""Softmax of attention, a block of positions at a time, and where keys and values lie in the cache.

Positions are taken in blocks of BLOCK. A row of weights that sees one block only is normalised before it meets the
values, and over a float16 cache rounded to float16, as llama.cpp does: int8 activations amplify a different rounding to
an NMSE above 1e-4. A row that sees more keeps its maximum and its sum from block to block (an online softmax), so that
neither memory nor the cache's share of it grows with the context.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.core.extending import intrinsic

from localmoe.jit import njit
from localmoe.kernels.activations import quantize_q8_0
from localmoe.kernels.elementwise import scale_row, store_row
from localmoe.kernels.shapes import K_BLOCK, KINDS
from localmoe.kernels.simd import (
    F32,
    LANES,
    add,
    exp,
    hmax,
    hsum,
    ld_f32,
    ld_i32,
    llvm_type,
    load_f32,
    maximum,
    mul,
    splat,
    splat_f32,
    st_f16,
    st_f32,
    st_i32,
    store,
    sub,
    zero_f32,
)

NEGATIVE = -1e30  # below every score, and not an infinity: exp(NEGATIVE - NEGATIVE) must be 1
F16, Q8_0 = KINDS["f16"], KINDS["q8_0"]


@intrinsic
def keep_first(typingctx: Any, x: Any, n: Any) -> Any:
    """Lanes at and after `n` become NEGATIVE."""

    def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
        i64s = ir.VectorType(ir.IntType(64), LANES)
        lane = ir.Constant(i64s, list(range(LANES)))
        inside = b.icmp_signed("<", lane, splat(b, args[1], LANES))
        return b.select(inside, args[0], ir.Constant(llvm_type(F32), [NEGATIVE] * LANES))

    return F32(F32, types.int64), codegen


@intrinsic
def round_half(typingctx: Any, x: Any) -> Any:
    """float32 lanes rounded to the nearest float16."""
    half = ir.VectorType(ir.HalfType(), LANES)
    return F32(F32), lambda ctx, b, sig, args: b.fpext(b.fptrunc(args[0], half), llvm_type(F32))


@njit(fast=True)
def _scale_and_mask(s: int, visible: int, n: int, scale: float) -> float:
    """s = scale * s of the first `visible` of n scores, NEGATIVE for the rest; the greatest."""
    by = splat_f32(np.float32(scale))
    top = splat_f32(np.float32(NEGATIVE))
    for j in range(0, n, LANES):
        x = mul(load_f32(s + 4 * j), by)
        if j + LANES > visible:
            x = keep_first(x, visible - j)
        store(s + 4 * j, x)
        top = maximum(top, x)
    return hmax(top)


@njit(fast=True)
def softmax_whole(s: int, visible: int, n: int, scale: float, half: bool, state: int) -> None:
    """Scores to weights of a row that sees `visible` positions, all of them here; state (maximum, sum) has sum 1."""
    greatest = _scale_and_mask(s, visible, n, scale)
    shift = splat_f32(greatest)
    total = 0.0  # float64
    for j in range(0, n, LANES):
        e = exp(sub(load_f32(s + 4 * j), shift))
        store(s + 4 * j, e)
        total += hsum(e)
    factor = splat_f32(np.float32(1.0) / np.float32(total))
    for j in range(0, n, LANES):
        weight = mul(load_f32(s + 4 * j), factor)
        store(s + 4 * j, round_half(weight) if half else weight)
    st_f32(state, greatest)
    st_f32(state + 4, np.float32(1.0))


@njit(fast=True)
def softmax_part(s: int, visible: int, n: int, scale: float, state: int, acc: int, width: int) -> None:
    """Scores of one block to exp(score - maximum so far); `state` and the row's sums in `acc` follow the maximum."""
    if visible <= 0:
        for j in range(0, n, LANES):
            store(s + 4 * j, zero_f32())
        return
    before = ld_f32(state)
    greatest = max(before, _scale_and_mask(s, visible, n, scale))
    shift = splat_f32(greatest)
    sums = zero_f32()
    for j in range(0, n, LANES):
        e = exp(sub(load_f32(s + 4 * j), shift))
        store(s + 4 * j, e)
        sums = add(sums, e)
    total = hsum(sums)
    if greatest > before:
        factor = np.exp(before - greatest)
        total += ld_f32(state + 4) * factor
        scale_row(acc, factor, width)
    else:
        total += ld_f32(state + 4)
    st_f32(state, greatest)
    st_f32(state + 4, np.float32(total))


# --- into the cache -----------------------------------------------------------------------------------------


@njit
def store_key(kind: int, source: int, block: int, lane: int, head_dim: int, scratch: int) -> None:
    """A key's float32 values into place `lane` of a block of K_BLOCK keys; `scratch` takes a "q8_0" row."""
    if kind != Q8_0:
        size = 2 if kind == F16 else 4
        store_row(source, block + lane * size, K_BLOCK, kind == F16, head_dim)
        return
    quantize_q8_0(source, scratch, head_dim, 0, head_dim // 32)
    for i in range(head_dim // 4):
        st_i32(block + (i * K_BLOCK + lane) * 4, ld_i32(scratch + 4 * i))
    for i in range(head_dim // 32):
        st_f16(block + head_dim * K_BLOCK + (i * K_BLOCK + lane) * 2, ld_f32(scratch + head_dim + 4 * i))


@njit
def store_value(kind: int, source: int, row: int, head_dim: int, scratch: int) -> None:
    """A value's float32 into its row of the cache; `scratch` takes a "q8_0" row."""
    if kind != Q8_0:
        store_row(source, row, 1, kind == F16, head_dim)
        return
    quantize_q8_0(source, scratch, head_dim, 0, head_dim // 32)
    for i in range(head_dim // 4):
        st_i32(row + 4 * i, ld_i32(scratch + 4 * i))
    for i in range(head_dim // 32):
        st_f16(row + head_dim + 2 * i, ld_f32(scratch + head_dim + 4 * i))
