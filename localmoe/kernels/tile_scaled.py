"""Tiles for blocks of 256 weights whose sub-blocks of 16, 32 or 256 have a float32 scale: Q6_K and the IQ and TQ types.

Weights stand `offset` too high; that many times the sum of a sub-block's activations starts its sum.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from llvmlite import ir

from localmoe.kernels.matmul_driver import Ahead, TileCode
from localmoe.kernels.shapes import ACC, PITCH, ROW_VECS, SCALES, SUMS, SUMS_PITCH, VEC_BYTES
from localmoe.kernels.simd import call
from localmoe.kernels.tile import (
    F32T,
    F32V,
    I16T,
    I32T,
    I32V,
    Cells,
    Tile,
    Value,
    fma,
    loop,
    row_vectors,
    tile_dot4,
    tile_dot4s,
    tile_scale,
    tile_spread,
    tile_store,
    tile_zero,
    zero,
)

BLOCK = 256
_BSUMS = ir.VectorType(I16T, 16)
_WIDE = ir.VectorType(I32T, 16)


def activation_sums(tokens: Sequence[Value], n_cols: Value, k: Value, b: Value) -> list[Value]:
    """Addresses of the 16 int16 sums of block b, counted from column k, of each token."""
    return [token + n_cols + n_cols // 64 + k // 8 + b * 32 for token in tokens]


@contextmanager
def output_sums(outs: Sequence[Value], scratch: Value, k: Value) -> Iterator[Sequence[Value]]:
    """Rows of zeros for a tile to add to, which are added to its output rows in the end.

    Output rows lie apart from each other: adding to them once a block would cost more than to a place in the
    first-level cache. The sums that are kept over blocks do not fit into registers.
    """
    rows = [scratch + ACC + t * PITCH for t in range(len(outs))]
    for row in rows:
        for rv in range(ROW_VECS):
            (row + rv * VEC_BYTES).store(zero(k.b, F32V))
    yield rows
    tile_store(outs, [v for row in rows for v in row_vectors(row, F32V)], k)


def add_block(rows: Sequence[Value], total: Tile, tokens: Sequence[Value], n_cols: Value, k: Value, b: Value) -> None:
    """rows += total times the activations' d of block b."""
    for t, (row, token) in enumerate(zip(rows, tokens, strict=True)):
        d = (token + n_cols + k // 64 + b * 4).load_splat(F32T)
        for rv, before in enumerate(row_vectors(row, F32V)):
            (row + rv * VEC_BYTES).store(fma(total[t * ROW_VECS + rv], d, before))


def _sums_of(sums: Value, sub: int) -> Value:
    """Sixteen sums of 16 as those of `sub` activations."""
    b = sums.b
    if sub == 16:
        return sums
    if sub == 32:
        even, odd = (ir.Constant(ir.VectorType(I32T, 8), list(range(j, 16, 2))) for j in (0, 1))
        return Value(b, b.shuffle_vector(sums.v, sums.v, even)) + Value(b, b.shuffle_vector(sums.v, sums.v, odd))
    return Value(b, call(b, "llvm.vector.reduce.add.v16i32", I32T, [sums.v]))


def make_scaled_tile(sub: int, offset: int, most: int) -> TileCode:
    """Weights up to `most`, a scale for `sub` of them; above 127 they are bytes of the full range (`tile_dot4s`)."""

    def products(start: Tile, rows: Sequence[Value], weights: Value, count: int) -> Tile:
        if most > 127:
            return tile_dot4s(start, rows, weights, count)
        return tile_dot4(start, rows, weights, count, most)

    def run(
        tokens: Sequence[Value],
        outs: Sequence[Value],
        scratch: Value,
        k: Value,
        n_k: Value,
        n_cols: Value,
        ahead: Ahead,
    ) -> None:
        n_blocks = n_k // BLOCK
        tables = [scratch + SUMS + t * SUMS_PITCH for t in range(len(tokens))]
        if offset:
            with loop(k.b, n_blocks) as b:  # what the offset added, as int32
                for table, source in zip(tables, activation_sums(tokens, n_cols, k, b), strict=True):
                    sums = _sums_of(source.load(_BSUMS).signed(_WIDE), sub)
                    (table + b * (4 * BLOCK // sub)).store(sums * -offset)

        def start(at: Value) -> Tile:
            if not offset:
                return tile_zero(tokens, I32V)
            return tile_spread([(table + at * 4).load_splat(I32T) for table in tables])

        with output_sums(outs, scratch, k) as to, loop(k.b, n_blocks) as b:
            whole = sub == BLOCK
            total = Cells(start(b) if whole else tile_zero(tokens, F32V))
            with loop(k.b, 8) as s:
                ahead()
                tile = total.get()
                if whole:
                    at = b * 8 + s
                    tile = products(tile, [token + k + at * 32 for token in tokens], scratch + at * (8 * PITCH), 8)
                else:
                    for part in range(32 // sub):
                        at = b * (BLOCK // sub) + s * (32 // sub) + part
                        rows = [token + k + at * sub for token in tokens]
                        found = products(start(at), rows, scratch + at * (sub // 4 * PITCH), sub // 4)
                        tile = tile_scale(tile, found, scratch + SCALES + at * PITCH)
                total.put(tile)
            tile = total.get()
            if whole:
                tile = tile_scale(tile_zero(tokens, F32V), tile, scratch + SCALES + b * PITCH)
            add_block(to, tile, tokens, n_cols, k, b)

    run.__qualname__ = f"tile_scaled_{sub}_{offset}_{most}"
    return run
