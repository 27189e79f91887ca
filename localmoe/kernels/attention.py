"""Attention of a few query rows over one KV head: softmax weights of all their positions, then values added by them.

K is kept in blocks of 16 positions, transposed: (n_ctx / 16, head_dim, 16), so that a vector's lanes are positions
and scores need no horizontal sums. V is kept as (n_ctx, head_dim). Query rows that share a KV head are computed
together: `ROWS` of them a call, the last one repeated when there are fewer.

Weights are normalised before they meet the values, and over a float16 cache rounded to float16, as llama.cpp does: an
online softmax saves writing them out, but int8 activations amplify the different rounding to an NMSE above 1e-4.
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
BLOCK = 64  # positions scored, or whose values are added, at a time
ROWS = 8 if ISA == "avx512vnni" else 4
NEGATIVE = -1e30  # below every score, and not an infinity: exp(NEGATIVE - NEGATIVE) must be 1


class Tile(types.Type):
    """`n` vector registers as one value."""

    def __init__(self, vec: Vec, n: int) -> None:
        self.vec = vec
        self.n = n
        super().__init__(name=f"Tile({vec.name}x{n})")


@register_model(Tile)
class TileModel(models.PrimitiveModel):  # type: ignore[misc]
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
def round_half(typingctx: Any, x: Any) -> Any:
    """float32 lanes rounded to the nearest float16."""
    half = ir.VectorType(ir.HalfType(), LANES)
    return F32(F32), lambda ctx, b, sig, args: b.fpext(b.fptrunc(args[0], half), llvm_type(F32))


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
def _scores(load: Any, q: int, k: int, s: int, stride: int, block: int, n: int, head_dim: int) -> None:
    """s[r, 0:n] = q[r] . k[block : block + n]."""
    for j in range(0, n, LANES):
        base = (block + j) // K_BLOCK * K_BLOCK * head_dim + j % K_BLOCK
        tile = rows_zero()
        for d in range(head_dim):
            tile = rows_fma(tile, q + 4 * d, 4 * head_dim, load(k, base + d * K_BLOCK))
        rows_store(s + 4 * j, stride, tile)


@njit(fast=True, inline=True)
def _exponentials(s: int, visible: int, n: int, scale: float, stats: int) -> None:
    """s = exp(scale * s - max) of the first `visible` of n scores, 0 for the rest; stats = (max, sum)."""
    by = splat_f32(np.float32(scale))
    top = splat_f32(np.float32(NEGATIVE))
    for j in range(0, n, LANES):
        x = keep_first(mul(load_f32(s + 4 * j), by), visible - j)
        store(s + 4 * j, x)
        top = maximum(top, x)
    greatest = hmax(top)
    shift = splat_f32(greatest)
    total = 0.0  # float64
    for j in range(0, n, LANES):
        e = exp(sub(load_f32(s + 4 * j), shift))
        store(s + 4 * j, e)
        total += hsum(e)
    st_f32(stats, greatest)
    st_f32(stats + 4, np.float32(total))


@njit(fast=True, inline=True)
def _weights(
    load: Any, q: int, limits: int, n_row: int, k: int, first: int, last: int, s: int, stride: int, stats: int,
    scale: float, head_dim: int,
) -> None:  # fmt: skip
    n = (last - first + K_BLOCK - 1) // K_BLOCK * K_BLOCK
    for block in range(first, last, BLOCK):
        _scores(load, q, k, s + 4 * (block - first), stride, block, min(BLOCK, first + n - block), head_dim)
    for r in range(n_row):
        _exponentials(s + r * stride, ld_i64(limits + 8 * r) - first, n, scale, stats + 8 * r)


@njit(fast=True, inline=True)
def _values(
    load: Any, half: bool, n_row: int, s: int, stride: int, factors: int, v: int, first: int, last: int, acc: int,
    head_dim: int,
) -> None:  # fmt: skip
    width = (head_dim + 15) // 16 * 16
    for i in range(0, ROWS * width, LANES):
        store(acc + 4 * i, zero_f32())
    for block in range(first, last, BLOCK):
        n = min(BLOCK, last - block)
        at = s + 4 * (block - first)
        for r in range(n_row):
            factor = splat_f32(ld_f32(factors + 4 * r))
            for j in range(0, n, LANES):
                weight = mul(load_f32(at + r * stride + 4 * j), factor)
                store(at + r * stride + 4 * j, round_half(weight) if half else weight)
        for d in range(0, width, LANES):
            tile = rows_load(acc + 4 * d, 4 * width)
            for t in range(n):
                tile = rows_fma(tile, at + 4 * t, stride, load(v, (block + t) * width + d))
            rows_store(acc + 4 * d, 4 * width, tile)


def weights_f16(
    q: int, limits: int, n_row: int, k: int, first: int, last: int, s: int, stride: int, stats: int, scale: int,
    head_dim: int,
) -> None:  # fmt: skip
    """Softmax weights, not yet normalised, of positions `first` (a multiple of BLOCK) to `last` of a float16 KV head.

    q: (ROWS, head_dim) float32, of which the first `n_row` count. limits: (n_row,) int64, positions each row may see.
    s: ROWS rows `stride` bytes apart of float32, blocks of 16 of which are written: exp(scale * score - max). stats:
    (n_row, 2) float32, written: max and sum. scale: address of a float32.
    """
    _weights(load_half, q, limits, n_row, k, first, last, s, stride, stats, ld_f32(scale), head_dim)


def weights_f32(
    q: int, limits: int, n_row: int, k: int, first: int, last: int, s: int, stride: int, stats: int, scale: int,
    head_dim: int,
) -> None:  # fmt: skip
    """`weights_f16` over a float32 KV head."""
    _weights(load_full, q, limits, n_row, k, first, last, s, stride, stats, ld_f32(scale), head_dim)


def values_f16(
    n_row: int, s: int, stride: int, factors: int, v: int, first: int, last: int, acc: int, head_dim: int
) -> None:
    """acc = (s * factors, rounded to float16) @ v[first:last] of a float16 KV head.

    s: as `weights_f16` leaves it, the first `n_row` rows scaled in place. factors: (n_row,) float32, 1 / sum where all
    positions are here. acc: (ROWS, padded(head_dim)) float32, written; its rows from `n_row` on mean nothing.
    """
    _values(load_half, True, n_row, s, stride, factors, v, first, last, acc, head_dim)


def values_f32(
    n_row: int, s: int, stride: int, factors: int, v: int, first: int, last: int, acc: int, head_dim: int
) -> None:
    """`values_f16` over a float32 KV head, without the rounding."""
    _values(load_full, False, n_row, s, stride, factors, v, first, last, acc, head_dim)


WEIGHTS_ARGS, VALUES_ARGS = 11, 9
WEIGHTS = {"f16": weights_f16, "f32": weights_f32}
VALUES = {"f16": values_f16, "f32": values_f32}
