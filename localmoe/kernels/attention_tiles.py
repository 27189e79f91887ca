"""Products of a few query rows with cached keys, and of their weights with cached values, for each type of cache.

Both are an outer product of `rows` broadcast numbers with a few vectors read from the cache: positions for keys, which
are kept transposed in blocks of 32, dimensions for values. There is a kernel for each number of rows, so that a model
whose KV heads serve 1, 3 or 4 query heads pays for no more. Written into LLVM as in tile.py.

    scores(q, q_stride, k, s, s_stride, n, head_dim)       s[r, 0:n] = q[r] . keys, n a multiple of K_BLOCK
    values(s, s_stride, v, acc, acc_stride, n, head_dim)   acc[r] += s[r, 0:n] @ values

A block of K_BLOCK keys: `f32`, `f16` (head_dim, 32). `q8_0` (head_dim / 4, 32, 4) int8, then (head_dim / 32, 32)
float16 scales. A row of values: padded(head_dim) numbers; `q8_0` head_dim int8, then head_dim / 32 float16 scales.
Queries are float32; over `q8_0` keys they are "q8_0" activation rows (activations.py), as ggml multiplies them.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from functools import cache
from typing import Any

from llvmlite import ir

from localmoe.kernels.shapes import K_BLOCK, k_block_bytes, v_row_bytes
from localmoe.kernels.simd import LANES, emit_dot4, emit_dot4s, splat
from localmoe.kernels.tile import (
    BIASED,
    F16T,
    F32T,
    F32V,
    I8V,
    I16T,
    I32T,
    I64T,
    Cells,
    Tile,
    Value,
    compiled,
    fma,
    loop,
    zero,
)

_WINDOW = 64  # positions whose values are added for all dimensions before the next ones: they stay in the L1 cache
_REGISTERS = 14 if LANES == 8 else 30

_F16V, _BYTES = ir.VectorType(F16T, LANES), ir.VectorType(ir.IntType(8), LANES)

Keys = list[tuple[Value, Value, Value]]  # a vector's block of keys, its first lane's place in it, the block's bytes


def _vectors(rows: int, sums: int = 1) -> int:
    """Vectors of a tile: as many, up to 8, as leave its sums, themselves and a broadcast in registers."""
    return next(n for n in (8, 4, 2, 1) if n == 1 or sums * rows * n + n + 1 <= _REGISTERS)


def load_f32_vector(at: Value) -> Value:
    return at.load(F32V)


def load_f16_vector(at: Value) -> Value:
    return Value(at.b, at.b.fpext(at.load(_F16V).v, F32V))


def _splat_f16(at: Value) -> Value:
    wide = at.b.fpext(at.b.bitcast(at.load(I16T).v, F16T), F32T)
    return Value(at.b, splat(at.b, wide, LANES))


def _integer(b: Any, n: int) -> Value:
    return Value(b, I64T(n))


# --- queries and keys ---------------------------------------------------------------------------------------


def _next_keys(keys: Keys) -> Value:
    """Bytes from a tile's keys to the next tile's: what is asked for ahead."""
    blocks = max(1, len(keys) * LANES // K_BLOCK)
    return keys[0][2] * blocks


def _float_keys(load: Callable[[Value], Value], size: int) -> Any:
    def tile(queries: list[Value], keys: Keys, head_dim: Value) -> Tile:
        n, ahead = len(keys), _next_keys(keys)
        sums = Cells([zero(head_dim.b, F32V)] * (len(queries) * n))
        with loop(head_dim.b, head_dim) as d:
            total = sums.get()
            columns = [block + lane * size + d * (K_BLOCK * size) for block, lane, _ in keys]
            for column in columns[:: K_BLOCK // LANES]:
                (column + ahead).prefetch()
            vectors = [load(column) for column in columns]
            for r, query in enumerate(queries):
                x = (query + d * 4).load_splat(F32T)
                total[r * n : r * n + n] = [fma(x, v, t) for v, t in zip(vectors, total[r * n :], strict=False)]
            sums.put(total)
        return sums.get()

    return tile


def _integer_dots(queries: list[Value], keys: Keys, head_dim: Value, block: Value) -> Tile:
    """The int32 sums of 32 dimensions, number `block`."""
    n, b, ahead = len(keys), head_dim.b, _next_keys(keys)
    dot = emit_dot4 if BIASED else emit_dot4s
    start = []
    for query in queries:
        of_32 = (query + head_dim + head_dim // 8 + block * 4).load(I32T)
        # emit_dot4 multiplies keys plus 128
        start += [Value(b, splat(b, (of_32 * (-128 if BIASED else 0)).v, LANES))] * n
    sums = Cells(start)
    with loop(b, 8) as g:
        total = sums.get()
        columns = [at + lane * 4 + (block * 8 + g) * (K_BLOCK * 4) for at, lane, _ in keys]
        for column in columns:
            (column + ahead).prefetch()
        vectors = [column.load(I8V) ^ (-128 if BIASED else 0) for column in columns]
        for r, query in enumerate(queries):
            x = (query + (block * 8 + g) * 4).load_splat(I32T).bits(I8V)
            for p, vector in enumerate(vectors):
                total[r * n + p] = Value(b, dot(b, total[r * n + p].v, vector.v, x.v))
        sums.put(total)
    return sums.get()


def _q8_0_keys(queries: list[Value], keys: Keys, head_dim: Value) -> Tile:
    n = len(keys)
    sums = Cells([zero(head_dim.b, F32V)] * (len(queries) * n))
    with loop(head_dim.b, head_dim // 32) as i:
        dots = _integer_dots(queries, keys, head_dim, i)
        scales = [load_f16_vector(at + head_dim * K_BLOCK + i * (2 * K_BLOCK) + lane * 2) for at, lane, _ in keys]
        total = sums.get()
        for r, query in enumerate(queries):
            d = (query + head_dim + i * 4).load_splat(F32T)
            for p, scale in enumerate(scales):
                total[r * n + p] = fma(dots[r * n + p].to_f32(), scale * d, total[r * n + p])
        sums.put(total)
    return sums.get()


_KEYS = {  # one tile's code, sums a tile holds for each row and vector
    "f32": (_float_keys(load_f32_vector, 4), 1),
    "f16": (_float_keys(load_f16_vector, 2), 1),
    "q8_0": (_q8_0_keys, 2),
}


def _make_scores(kind: str, rows: int) -> Callable[..., None]:
    run_tile, sums = _KEYS[kind]
    most = max(_vectors(rows, sums), 2 if K_BLOCK > LANES else 1)

    def emit(q: Value, q_stride: Value, k: Value, s: Value, s_stride: Value, n: Value, head_dim: Value) -> None:
        queries = [q + q_stride * r for r in range(rows)]
        block_bytes = k_block_bytes(kind, head_dim)

        def tile(j: Value, vectors: int) -> None:
            positions = [j + p * LANES for p in range(vectors)]
            keys = [(k + at // K_BLOCK * block_bytes, at - at // K_BLOCK * K_BLOCK, block_bytes) for at in positions]
            done = run_tile(queries, keys, head_dim)
            for r in range(rows):
                for p, at in enumerate(positions):
                    (s + s_stride * r + at * 4).store(done[r * vectors + p])

        whole = n // (most * LANES)
        with loop(q.b, whole) as i:
            tile(i * (most * LANES), most)
        if most * LANES > K_BLOCK:
            first = whole * (most * LANES)
            with loop(q.b, (n - first) // (2 * LANES)) as i:
                tile(first + i * (2 * LANES), 2)

    return emit


# --- weights and values -------------------------------------------------------------------------------------


def value_vectors(kind: str, row: Value, dims: list[Value], head_dim: Value) -> list[Value]:
    """The vectors of a row's values from each of `dims` on, which follow each other."""
    if kind == "f32":
        return [load_f32_vector(row + dim * 4) for dim in dims]
    if kind == "f16":
        return [load_f16_vector(row + dim * 2) for dim in dims]
    each = max(1, 32 // LANES)  # vectors that share a scale
    scales = [_splat_f16(row + head_dim + dim // 32 * 2) for dim in dims[::each]]
    wide = [(row + dim).load(_BYTES).signed(ir.VectorType(I32T, LANES)) for dim in dims]
    return [w.to_f32() * scales[p // each] for p, w in enumerate(wide)]


def _make_values(kind: str, rows: int) -> Callable[..., None]:
    most = _vectors(rows)
    sizes = sorted({most, min(most, 4), 1}, reverse=True)
    lane_bytes = {"f32": 4, "f16": 2, "q8_0": 1}[kind]

    def emit(s: Value, s_stride: Value, v: Value, acc: Value, acc_stride: Value, n: Value, head_dim: Value) -> None:
        b = s.b
        row_bytes = v_row_bytes(kind, head_dim)

        def tile(t0: Value, steps: Value, first: Value, vectors: int) -> None:
            dims = [first + p * LANES for p in range(vectors)]
            cells = [acc + acc_stride * r + dim * 4 for r in range(rows) for dim in dims]
            sums = Cells([cell.load(F32V) for cell in cells])
            with loop(b, steps) as i:
                row, total = v + (t0 + i) * row_bytes, sums.get()
                for dim in dims[:: max(1, 64 // (lane_bytes * LANES))]:
                    (row + dim * lane_bytes + row_bytes * _WINDOW).prefetch()
                columns = value_vectors(kind, row, dims, head_dim)
                for r in range(rows):
                    x = (s + s_stride * r + (t0 + i) * 4).load_splat(F32T)
                    for p, column in enumerate(columns):
                        total[r * vectors + p] = fma(x, column, total[r * vectors + p])
                sums.put(total)
            for cell, value in zip(cells, sums.get(), strict=True):
                cell.store(value)

        n_vectors = (head_dim + 15) // 16 * (16 // LANES)
        with loop(b, (n + (_WINDOW - 1)) // _WINDOW) as w:
            t0 = w * _WINDOW
            left = n - t0
            steps = (left < _integer(b, _WINDOW)).choose(left, _integer(b, _WINDOW))
            done = _integer(b, 0)
            for size in sizes:
                count = (n_vectors - done) // size
                with loop(b, count) as i:
                    tile(t0, steps, (done + i * size) * LANES, size)
                done = done + count * size

    return emit


# --- kernels ------------------------------------------------------------------------------------------------


def _call_7(a: int, b: int, c: int, d: int, e: int, f: int, g: int) -> None:
    _run((a, b, c, d, e, f, g))  # type: ignore[name-defined]  # noqa: F821  # bound in named_kernel


def _call_8(a: int, b: int, c: int, d: int, e: int, f: int, g: int, h: int) -> None:
    _run((a, b, c, d, e, f, g, h))  # type: ignore[name-defined]  # noqa: F821


_CALLS = {7: _call_7, 8: _call_8}


def named_kernel(name: str, emit: Callable[..., None], n_args: int) -> Callable[..., None]:
    """`emit`'s code as a function of its own name: Numba caches by it, and cannot cache closures over code."""
    emit.__module__, emit.__qualname__ = __name__, name
    function = types.FunctionType(_CALLS[n_args].__code__, {**globals(), "_run": compiled(emit, n_args)}, name)
    function.__qualname__ = name
    return function


@cache
def scores_kernel(kind: str, rows: int) -> Callable[..., None]:
    """The plain function that multiplies `rows` queries with keys of type `kind`."""
    return named_kernel(f"scores_{kind}_{rows}", _make_scores(kind, rows), 7)


@cache
def values_kernel(kind: str, rows: int) -> Callable[..., None]:
    """The plain function that adds values of type `kind`, weighted by `rows` rows."""
    return named_kernel(f"values_{kind}_{rows}", _make_values(kind, rows), 7)
