"""Attention of a few query rows over one KV head, block by block with an online softmax (Milakov & Gimelshein 2018).

K is kept in blocks of 16 positions, transposed: (n_ctx / 16, head_dim, 16), so that a vector's lanes are positions
and scores need no horizontal sums. V is kept as (n_ctx, head_dim). Query rows that share a KV head are computed
together: `ROWS` of them a call, the last one repeated when there are fewer.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.core.datamodel import models
from numba.core.extending import intrinsic, register_model

from localmoe.jit import njit
from localmoe.kernels.simd import (
    F32,
    ISA,
    LANES,
    Vec,
    add,
    call,
    exp,
    hmax,
    hsum,
    ld_f32,
    ld_i64,
    llvm_type,
    load_at,
    load_f16,
    load_f32,
    maximum,
    mul,
    splat,
    splat_f32,
    st_f32,
    store,
    sub,
    zero_f32,
)

K_BLOCK = 16  # positions interleaved in K
BLOCK = 64  # positions scored before their values are added
ROWS = 8 if ISA == "avx512vnni" else 4
N_ARGS = 10
NEGATIVE = -1e30  # below every score, and not an infinity: exp(NEGATIVE - NEGATIVE) must be 1


class Tile(types.Type):
    """`n` vector registers as one value."""

    def __init__(self, vec: Vec, n: int) -> None:
        self.vec = vec
        self.n = n
        super().__init__(name=f"Tile({vec.name}x{n})")


@register_model(Tile)
class TileModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Tile) -> None:
        super().__init__(dmm, fe_type, ir.ArrayType(llvm_type(fe_type.vec), fe_type.n))


TILE = Tile(F32, ROWS)


@intrinsic
def rows_zero(typingctx: Any) -> Any:
    def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
        return ir.Constant(ctx.get_value_type(TILE), None)

    return TILE(), codegen


@intrinsic
def rows_load(typingctx: Any, address: Any, stride: Any) -> Any:
    """Row r is the vector at address + r * stride."""

    def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
        tile = ir.Constant(ctx.get_value_type(TILE), ir.Undefined)
        at = args[0]
        for r in range(ROWS):
            tile = b.insert_value(tile, load_at(b, at, llvm_type(F32)), r)
            at = b.add(at, args[1])
        return tile

    return TILE(types.int64, types.int64), codegen


@intrinsic
def rows_store(typingctx: Any, address: Any, stride: Any, tile: Any) -> Any:
    """The vector of row r to address + r * stride."""

    def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
        at = args[0]
        for r in range(ROWS):
            done = b.store(b.extract_value(args[2], r), b.inttoptr(at, llvm_type(F32).as_pointer()))
            done.align = 1
            at = b.add(at, args[1])
        return ctx.get_dummy_value()

    return types.void(types.int64, types.int64, TILE), codegen


@intrinsic
def rows_fma(typingctx: Any, tile: Any, address: Any, stride: Any, vec: Any) -> Any:
    """Row r + (the float32 at address + r * stride) * vec."""

    def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
        tile, at, stride, vec = args
        for r in range(ROWS):
            scalar = splat(b, load_at(b, at, ir.FloatType()), LANES)
            row = call(b, f"llvm.fma.v{LANES}f32", llvm_type(F32), [scalar, vec, b.extract_value(tile, r)])
            tile = b.insert_value(tile, row, r)
            at = b.add(at, stride)
        return tile

    return TILE(TILE, types.int64, types.int64, F32), codegen


@intrinsic
def keep_first(typingctx: Any, x: Any, n: Any) -> Any:
    """Lanes at and after `n` become minus infinity."""

    def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
        i64s = ir.VectorType(ir.IntType(64), LANES)
        lane = ir.Constant(i64s, list(range(LANES)))
        inside = b.icmp_signed("<", lane, splat(b, args[1], LANES))
        return b.select(inside, args[0], ir.Constant(llvm_type(F32), [float("-inf")] * LANES))

    return F32(F32, types.int64), codegen


@intrinsic
def first_lane(typingctx: Any, x: Any) -> Any:
    zero = ir.Constant(ir.IntType(32), 0)
    return types.float32(F32), lambda ctx, b, sig, args: b.extract_element(args[0], zero)


@njit(inline=True)
def load_half(address: int, index: int) -> Any:
    return load_f16(address + index * 2)


@njit(inline=True)
def load_full(address: int, index: int) -> Any:
    return load_f32(address + index * 4)


def padded(head_dim: int) -> int:
    """Floats a row of V and of an accumulator takes: whole vectors on every instruction set."""
    return (head_dim + 15) // 16 * 16


@njit(fast=True, inline=True)
def _scores(load: Any, q: int, k: int, p: int, block: int, head_dim: int) -> None:
    """p[r, 0:BLOCK] = q[r] . k[block : block + BLOCK]."""
    for j in range(0, BLOCK, LANES):
        base = (block + j) // K_BLOCK * K_BLOCK * head_dim + j % K_BLOCK
        s = rows_zero()
        for d in range(head_dim):
            s = rows_fma(s, q + 4 * d, 4 * head_dim, load(k, base + d * K_BLOCK))
        rows_store(p + 4 * j, 4 * BLOCK, s)


@njit(fast=True, inline=True)
def _softmax_block(p: int, state: int, limits: int, block: int, acc: int, width: int) -> None:
    """Turn scores into weights against the running maximum, and rescale what was summed under the older one."""
    for r in range(ROWS):
        row = p + 4 * r * BLOCK
        visible = ld_i64(limits + 8 * r) - block
        top = splat_f32(np.float32(NEGATIVE))
        for j in range(0, BLOCK, LANES):
            s = keep_first(load_f32(row + 4 * j), visible - j)
            store(row + 4 * j, s)
            top = maximum(top, s)
        before = ld_f32(state + 8 * r)
        now = max(before, hmax(top))
        shift = splat_f32(now)
        total = zero_f32()
        for j in range(0, BLOCK, LANES):
            e = exp(sub(load_f32(row + 4 * j), shift))
            store(row + 4 * j, e)
            total = add(total, e)
        scale = exp(splat_f32(before - now))
        scaled = ld_f32(state + 8 * r + 4) * first_lane(scale)
        st_f32(state + 8 * r, now)
        st_f32(state + 8 * r + 4, scaled + hsum(total))
        if before < now:
            for d in range(0, width, LANES):
                store(acc + 4 * (r * width + d), mul(load_f32(acc + 4 * (r * width + d)), scale))


@njit(fast=True, inline=True)
def _add_values(load: Any, p: int, v: int, acc: int, block: int, n: int, width: int) -> None:
    """acc[r] += p[r, 0:n] @ v[block : block + n]."""
    for d in range(0, width, LANES):
        tile = rows_load(acc + 4 * d, 4 * width)
        for t in range(n):
            tile = rows_fma(tile, p + 4 * t, 4 * BLOCK, load(v, (block + t) * width + d))
        rows_store(acc + 4 * d, 4 * width, tile)


@njit(fast=True, inline=True)
def _attend(
    load: Any, q: int, limits: int, k: int, v: int, first: int, last: int, acc: int, state: int, p: int, head_dim: int
) -> None:
    width = (head_dim + 15) // 16 * 16
    for block in range(first, last, BLOCK):
        _scores(load, q, k, p, block, head_dim)
        _softmax_block(p, state, limits, block, acc, width)
        _add_values(load, p, v, acc, block, min(BLOCK, last - block), width)


def attend_f16(
    q: int, limits: int, k: int, v: int, first: int, last: int, acc: int, state: int, p: int, head_dim: int
) -> None:
    """Add positions `first` (a multiple of BLOCK) to `last` of a float16 KV head to ROWS running softmax sums.

    q: (ROWS, head_dim) float32, already scaled. limits: (ROWS,) int64, positions each row may see. acc: (ROWS,
    padded(head_dim)) float32 and state: (ROWS, 2) float32 (maximum, sum) are updated; the result is acc / sum.
    p: (ROWS, BLOCK) float32 scratch.
    """
    _attend(load_half, q, limits, k, v, first, last, acc, state, p, head_dim)


def attend_f32(
    q: int, limits: int, k: int, v: int, first: int, last: int, acc: int, state: int, p: int, head_dim: int
) -> None:
    """`attend_f16` over a float32 KV head."""
    _attend(load_full, q, limits, k, v, first, last, acc, state, p, head_dim)


ATTEND = {"f16": attend_f16, "f32": attend_f32}
