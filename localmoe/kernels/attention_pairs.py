"""Attention of many query rows over a long context in int16: twice float32's products an instruction.

A block of keys and one of values are turned into pairs of int16 once for many query rows; `dot2` multiplies two pairs a
lane and sums in int32, exactly. Whatever is multiplied is scaled by its own length: a query and a key over the head's
dimensions, weights of one row and values of one dimension over SUB positions. A length becomes LENGTH, so that no
number and, by Cauchy and Schwarz, no sum leaves its integer type, and an error is at most half of 1/LENGTH of the
length: for a head of 64 values about what float16 rounds off. Sums over more than SUB positions are float32.

    queries   (rows, head_dim) int16, rows of BLOCK queries `q_stride` apart, and a float32 scale a row
    keys      (positions / 32, head_dim / 2, 32, 2) int16, a float32 scale a position
    weights   (rows, BLOCK) int16 in the first half of each row's BLOCK float32 scores, a scale a row and SUB positions
    values    (vectors, positions / 2, LANES, 2) int16, a scale a dimension and SUB positions
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir

from localmoe.jit import njit
from localmoe.kernels.attention import NEGATIVE, keep_first
from localmoe.kernels.attention_tiles import load_f16_vector, load_f32_vector, named_kernel, value_vectors
from localmoe.kernels.elementwise import scale_row
from localmoe.kernels.shapes import BLOCK, K_BLOCK, MAX_ROWS, SUB, SUBS, k_block_bytes, v_row_bytes
from localmoe.kernels.simd import (
    LANES,
    add,
    call,
    emit_dot2,
    exp2_negative,
    fma,
    hmax,
    hsum,
    ld_f32,
    load_f32,
    maximum,
    mul,
    splat_f32,
    st_f32,
    st_i16,
    store,
    store_i16_from_i32,
    to_i32,
    zero_f32,
)
from localmoe.kernels.tile import F32T, F32V, I16V, I32T, I32V, Cells, Value, loop, zero
from localmoe.kernels.tile import fma as fma_values

LENGTH = 32767
VECTORS = 2
_TINY = 1e-30
_VALUES = BLOCK // 2 * LANES * 4  # bytes of one vector of dimensions


def _constant(b: Any, x: float) -> Value:
    return Value(b, ir.Constant(F32V, [x] * LANES))


def _length(squares: Value) -> tuple[Value, Value]:
    """What a vector of squared lengths makes of numbers: (factor to integers, and back)."""
    b = squares.b
    root = Value(b, call(b, f"llvm.sqrt.v{LANES}f32", F32V, [squares.v]))
    # a zero, and what float32 cannot invert, stay zero; a NaN stays a NaN in the scale back
    bounded = Value(b, b.select(b.fcmp_ordered("<", root.v, _constant(b, _TINY).v), _constant(b, _TINY).v, root.v))
    return Value(b, b.fdiv(_constant(b, LENGTH).v, bounded.v)), root * (1.0 / LENGTH)


def _pairs(low: Value, high: Value, factor: Value) -> Value:
    """int16 of low and high, times factor, in the halves of int32 lanes."""
    b = low.b
    low, high = (
        Value(b, b.fptosi(call(b, f"llvm.nearbyint.v{LANES}f32", F32V, [(x * factor).v]), I32V)) for x in (low, high)
    )
    return (low & 0xFFFF) | (high << 16)


# --- a block of the cache to pairs ----------------------------------------------------------------------------


def _four_keys(kind: str, block: Value, lane: Value, group: Value, head_dim: Value) -> list[Value]:
    """Dimensions 4 * group.. of a vector of keys."""
    if kind == "q8_0":
        scale = load_f16_vector(block + head_dim * K_BLOCK + (group // 8 * K_BLOCK + lane) * 2)
        quads = (block + (group * K_BLOCK + lane) * 4).load(I32V)
        return [quads.signed_byte(j).to_f32() * scale for j in range(4)]
    size, load = {"f32": (4, load_f32_vector), "f16": (2, load_f16_vector)}[kind]
    return [load(block + ((group * 4 + j) * K_BLOCK + lane) * size) for j in range(4)]


def _make_key_pairs(kind: str) -> Any:
    def emit(k: Value, pairs: Value, scales: Value, n_block: Value, head_dim: Value, *unused: Value) -> None:
        b = k.b
        with loop(b, n_block) as i, loop(b, K_BLOCK // LANES) as part:
            block, lane = k + i * k_block_bytes(kind, head_dim), part * LANES
            squares = Cells([zero(b, F32V)])
            with loop(b, head_dim // 4) as g:
                total = squares.get()[0]
                for x in _four_keys(kind, block, lane, g, head_dim):
                    total = fma_values(x, x, total)
                squares.put([total])
            factor, scale = _length(squares.get()[0])
            (scales + (i * K_BLOCK + lane) * 4).store(scale)
            with loop(b, head_dim // 4) as g:
                four = _four_keys(kind, block, lane, g, head_dim)
                to = pairs + i * head_dim * (2 * K_BLOCK) + (g * (2 * K_BLOCK) + lane) * 4
                to.store(_pairs(four[0], four[1], factor))
                (to + K_BLOCK * 4).store(_pairs(four[2], four[3], factor))

    return emit


def _make_value_pairs(kind: str) -> Any:
    def emit(v: Value, pairs: Value, scales: Value, n: Value, head_dim: Value, zeros: Value, _: Value) -> None:
        """n of BLOCK positions; a whole SUB of pairs is written, with zeros from `zeros`, a row of them."""
        b, row_bytes = v.b, v_row_bytes(kind, head_dim)
        n_vector = (head_dim + 15) // 16 * (16 // LANES)
        with loop(b, (n + (SUB - 1)) // SUB) as sub, loop(b, n_vector) as d:
            first, dims = sub * SUB, [d * LANES]
            squares = Cells([zero(b, F32V)])
            left = n - first
            with loop(b, (left < left * 0 + SUB).choose(left, left * 0 + SUB)) as t:
                x = value_vectors(kind, v + (first + t) * row_bytes, dims, head_dim)[0]
                squares.put([fma_values(x, x, squares.get()[0])])
            factor, scale = _length(squares.get()[0])
            (scales + (sub * n_vector + d) * (4 * LANES)).store(scale)
            with loop(b, SUB // 2) as t:
                both: list[Value] = []
                for at in (first + t * 2, first + t * 2 + 1):
                    row = (at < n).choose(v + at * row_bytes, zeros)
                    both += value_vectors(kind, row, dims, head_dim)
                (pairs + d * _VALUES + (first // 2 + t) * (4 * LANES)).store(_pairs(*both, factor))

    return emit


# --- products -------------------------------------------------------------------------------------------------


def _dots(tile: list[Value], rows: list[Value], columns: list[Value]) -> list[Value]:
    """tile plus one pair of every row with every column."""
    out = []
    for r, row in enumerate(rows):
        x = row.load_splat(I32T).bits(I16V)
        for p, column in enumerate(columns):
            i = r * len(columns) + p
            out.append(Value(row.b, emit_dot2(row.b, tile[i].v, column.v, x.v)))
    return out


def _emit_scores(
    q: Value, q_stride: Value, keys: Value, scales: Value, s: Value, first: Value, n_tile: Value, head_dim: Value
) -> None:
    """Scores, yet to be multiplied by the rows' scales, of K_BLOCK keys for n_tile tiles of rows from tile `first`."""
    b = q.b
    with loop(b, n_tile) as tile, loop(b, K_BLOCK // (VECTORS * LANES)) as part:
        r0, lane = (first + tile) * MAX_ROWS, part * (VECTORS * LANES * 4)
        sums = Cells([zero(b, I32V)] * (MAX_ROWS * VECTORS))
        with loop(b, head_dim // 2) as d:
            columns = [(keys + lane + d * (4 * K_BLOCK) + 4 * LANES * p).load(I16V) for p in range(VECTORS)]
            rows = [q + (r0 + r) * q_stride + d * 4 for r in range(MAX_ROWS)]
            sums.put(_dots(sums.get(), rows, columns))
        by = [(scales + lane + 4 * LANES * p).load(F32V) for p in range(VECTORS)]
        for i, total in enumerate(sums.get()):
            r, p = divmod(i, VECTORS)
            (s + (r0 + r) * (4 * BLOCK) + lane + 4 * LANES * p).store(total.to_f32() * by[p])


def _emit_values(
    w: Value, w_scales: Value, values: Value, scales: Value, acc: Value, subs: Value, n_tile: Value, n_vector: Value
) -> None:
    """acc += weights @ values for n_tile tiles of rows; int64 subs[tile] is how many SUB positions its rows see."""
    b = w.b

    def tile_of(first: Value, vectors: int, tile: Value) -> None:
        r0 = tile * MAX_ROWS
        with loop(b, (subs + tile * 8).load(ir.IntType(64))) as sub:
            sums = Cells([zero(b, I32V)] * (MAX_ROWS * vectors))
            at = values + first * _VALUES + sub * (SUB // 2 * LANES * 4)
            with loop(b, SUB // 2) as t:
                columns = [(at + _VALUES * p + t * (4 * LANES)).load(I16V) for p in range(vectors)]
                rows = [w + (r0 + r) * (4 * BLOCK) + (sub * (SUB // 2) + t) * 4 for r in range(MAX_ROWS)]
                sums.put(_dots(sums.get(), rows, columns))
            by = [(scales + (sub * n_vector + first + p) * (4 * LANES)).load(F32V) for p in range(vectors)]
            for i, total in enumerate(sums.get()):
                r, p = divmod(i, vectors)
                cell = acc + ((r0 + r) * n_vector + first + p) * (4 * LANES)
                factor = (w_scales + ((r0 + r) * SUBS + sub) * 4).load_splat(F32T)
                cell.store(fma_values(total.to_f32() * by[p], factor, cell.load(F32V)))

    whole = n_vector // VECTORS
    with loop(b, whole) as i, loop(b, n_tile) as tile:
        tile_of(i * VECTORS, VECTORS, tile)
    with loop(b, n_vector - whole * VECTORS) as i, loop(b, n_tile) as tile:
        tile_of(whole * VECTORS + i, 1, tile)


@cache
def key_pairs_kernel(kind: str) -> Callable[..., None]:
    """The plain function that turns keys of type `kind` into pairs."""
    return named_kernel(f"key_pairs_{kind}", _make_key_pairs(kind), 7)


@cache
def value_pairs_kernel(kind: str) -> Callable[..., None]:
    """The plain function that turns values of type `kind` into pairs."""
    return named_kernel(f"value_pairs_{kind}", _make_value_pairs(kind), 7)


pair_scores = named_kernel("pair_scores", _emit_scores, 8)
pair_values = named_kernel("pair_values", _emit_values, 8)


# --- rows -----------------------------------------------------------------------------------------------------


@njit(fast=True)
def query_pairs(q: int, target: int, n: int) -> float:
    """int16 of n float32; what turns them back."""
    whole = n - n % LANES
    squares = zero_f32()
    for i in range(0, whole, LANES):
        x = load_f32(q + 4 * i)
        squares = fma(x, x, squares)
    total = hsum(squares)
    for i in range(whole, n):
        total += ld_f32(q + 4 * i) * ld_f32(q + 4 * i)
    length = np.sqrt(np.float32(total))
    factor = np.float32(LENGTH) / max(length, np.float32(_TINY))
    by = splat_f32(factor)
    for i in range(0, whole, LANES):
        store_i16_from_i32(target + 2 * i, to_i32(mul(load_f32(q + 4 * i), by)))
    for i in range(whole, n):
        st_i16(target + 2 * i, np.int32(np.rint(ld_f32(q + 4 * i) * factor)))
    return length * np.float32(1.0 / LENGTH)


@njit(fast=True, inline=True)
def _greatest(s: int, visible: int) -> float:
    """The greatest of `visible` scores, NEGATIVE at the least."""
    a = splat_f32(np.float32(NEGATIVE))
    b, c, d = a, a, a
    j = 0
    while j + 4 * LANES <= visible:
        a, b = maximum(a, load_f32(s + 4 * j)), maximum(b, load_f32(s + 4 * (j + LANES)))
        c, d = maximum(c, load_f32(s + 4 * (j + 2 * LANES))), maximum(d, load_f32(s + 4 * (j + 3 * LANES)))
        j += 4 * LANES
    while j < visible:
        a = maximum(a, keep_first(load_f32(s + 4 * j), visible - j))
        j += LANES
    return hmax(maximum(maximum(a, b), maximum(c, d)))


@njit(fast=True, inline=True)
def _exponentials(s: int, n: int, by, shift, squares, total):  # type: ignore[no-untyped-def]
    """s = 2**(by * s + shift), n a multiple of LANES; `squares` and `total` with theirs added."""
    for j in range(0, n, LANES):
        e = exp2_negative(fma(load_f32(s + 4 * j), by, shift))
        store(s + 4 * j, e)
        squares = fma(e, e, squares)
        total = add(total, e)
    return squares, total


@njit(fast=True)
def weight_pairs(s: int, visible: int, subs: int, scale: float, state: int, scales: int, acc: int, width: int) -> None:
    """A row's scores to int16 weights in place, `subs` times SUB of them; state (maximum, sum) and acc follow.

    `scale` makes powers of 2 of scores; the maximum is one of scores before it, and scales get a float32 each SUB.
    """
    before = ld_f32(state)
    greatest = max(before, _greatest(s, visible))
    by, shift = splat_f32(np.float32(scale)), splat_f32(np.float32(-greatest * scale))
    total = zero_f32()
    for i in range(subs):
        at, seen = s + i * SUB * 4, visible - i * SUB
        whole = SUB if seen >= SUB else max(seen, 0) // LANES * LANES
        squares, total = _exponentials(at, whole, by, shift, zero_f32(), total)
        for j in range(whole, SUB, LANES):
            e = zero_f32()
            if j < seen:
                e = exp2_negative(keep_first(fma(load_f32(at + 4 * j), by, shift), seen - j))
            store(at + 4 * j, e)
            squares = fma(e, e, squares)
            total = add(total, e)
        st_f32(scales + 4 * i, np.float32(hsum(squares)))
    for i in range(subs):
        length = np.sqrt(ld_f32(scales + 4 * i))
        factor = splat_f32(np.float32(LENGTH) / max(length, np.float32(_TINY)))
        st_f32(scales + 4 * i, length * np.float32(1.0 / LENGTH))
        for j in range(i * SUB, (i + 1) * SUB, LANES):
            store_i16_from_i32(s + j * 2, to_i32(mul(load_f32(s + j * 4), factor)))
    kept = np.float32(1.0)
    if greatest > before:
        kept = np.float32(np.exp2((before - greatest) * scale))
        scale_row(acc, kept, width)
    st_f32(state, greatest)
    st_f32(state + 4, np.float32(ld_f32(state + 4) * kept + hsum(total)))
