"""Matrix products of float weights with a few activation rows: weights as the file has them, lanes being columns.

With few tokens, bringing weights into registers' order costs as much as multiplying them, and for float weights it
is not needed: each vector of a row's columns is loaded (and widened) once and multiplied with as many activations as
registers can keep sums of, and only the end of a chunk adds up the lanes. F32 at 8 tokens: 0.74 of the peak, 0.44 in
registers' order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir

from localmoe.jit import njit
from localmoe.kernels.shapes import PITCH, VEC_BYTES
from localmoe.kernels.simd import ISA, LANES, splat
from localmoe.kernels.tile import (
    F32T,
    F32V,
    I32T,
    I32V,
    I64T,
    Cells,
    Value,
    compiled,
    fma,
    loop,
    output_rows,
    token_rows,
    zero,
)

FEW = 8  # tokens: 16 at 2,048 columns reach 0.5 to 0.6 of the peak, less than from registers' order
TURN = 2  # weight rows at a time
TOKENS = 8 if ISA in ("avx512vnni", "neon") else 4  # TURN * TOKENS sums in 32 or 16 vector registers
_CHUNK, _GROUP = 1024, 128  # columns, of which FEW tokens take 32 KB, and rows whose sums wait in scratch
_SUMS_BYTES, _SPARE_BYTES = TURN * TOKENS * 4, TOKENS * PITCH

Load = Callable[[Value, int], Value]  # float32 of n weights at an address


def _of_first(x: Value) -> Value:
    """One float32 in lane 0, zeros in the others."""
    return Value(x.b, x.b.insert_element(zero(x.b, F32V).v, x.v, I32T(0)))


def _lane_sums(vectors: Sequence[Value]) -> list[Value]:
    """The sum over the lanes of each of the vectors (a multiple of LANES), in their order, LANES of them a vector."""
    b, found, width = vectors[0].b, list(vectors), LANES
    picks = [ir.Constant(ir.VectorType(I32T, LANES), list(range(odd, 2 * LANES, 2))) for odd in (0, 1)]
    while width > 1:
        pairs = list(zip(found[::2], found[1::2], strict=True))
        parts = [[Value(b, b.shuffle_vector(x.v, y.v, pick)) for pick in picks] for x, y in pairs]
        found, width = [even + odd for even, odd in parts], width // 2
    return found


def _rows_of(r: Value, last: Value) -> list[Value]:
    """TURN row numbers from r on, none past the last."""
    return [(r + i < last).choose(r + i, last) for i in range(TURN)]


def _make_step(load: Load, size: int, name: str) -> Any:
    """Code that adds the products of TURN rows' columns k .. k + n_k and TOKENS tokens to `sums`, or starts those."""

    def emit(*args: Value) -> None:
        w, row_bytes, r, last, act, act_stride, in_idx, first, n_tok, k, n_k, sums_at = args
        b = w.b
        tokens = [token + k * 4 for token in token_rows(TOKENS, act, act_stride, in_idx, first, n_tok)]
        sources = [w + row * row_bytes + k * size for row in _rows_of(r, last)]
        sums = Cells([zero(b, F32V)] * (TURN * TOKENS))

        def add(xs: Sequence[Value], ws: Sequence[Value]) -> None:
            sums.put([fma(xs[i % TOKENS], ws[i // TOKENS], total) for i, total in enumerate(sums.get())])

        line = max(64 // size, LANES)  # columns
        with loop(b, n_k // line) as turn:
            for source in sources:  # the same columns of the rows after these
                (source + turn * (line * size) + row_bytes * TURN).prefetch()
            for i in range(0, line, LANES):
                at = turn * line + i
                ws = [load(source + at * size, LANES) for source in sources]
                add([(token + at * 4).load(F32V) for token in tokens], ws)
        done = n_k // line * line
        with loop(b, n_k - done) as extra:
            at = done + extra
            ws = [_of_first(load(source + at * size, 1)) for source in sources]
            add([_of_first((token + at * 4).load(F32T)) for token in tokens], ws)
        mask = Value(b, splat(b, b.sext(b.icmp_signed("!=", k.v, I64T(0)), I32T), LANES))
        for i, vector in enumerate(_lane_sums(sums.get())):
            place = sums_at + i * VEC_BYTES
            place.store((place.load(I32V) & mask).bits(F32V) + vector)

    emit.__qualname__ = f"few_{name}"
    return compiled(emit, 12)


def _emit_finish(*args: Value) -> None:
    """Write what `_make_step` has summed; tokens that are not there go to spare rows."""
    r, last, out, out_stride, out_idx, first, n_tok, sums_at, spare = args
    outs = output_rows(TOKENS, out + r * 4, out_stride, out_idx, first, n_tok, spare)
    for i, row in enumerate(_rows_of(r, last)):
        for t, target in enumerate(outs):
            (target + (row - r) * 4).store((sums_at + 4 * (i * TOKENS + t)).load(F32T))


_finish = compiled(_emit_finish, 9)


def make_few(load: Load, size: int, name: str) -> Any:
    """The product with up to FEW tokens for weights of `size` bytes, a matmul's arguments, inlined into its kernel.

    Columns are taken a chunk at a time, for a group of rows, so that the activations stay in the first-level cache.
    """
    step = _make_step(load, size, name)

    def product(w, act, act_stride, in_idx, out, out_stride, out_idx, n_tok, r0, r1, n_cols, scratch):  # type: ignore[no-untyped-def]
        for group in range(r0, r1, _GROUP):
            end = min(group + _GROUP, r1)
            for k in range(0, n_cols, _CHUNK):
                n_k = min(_CHUNK, n_cols - k)
                sums = scratch + _SPARE_BYTES
                for r in range(group, end, TURN):
                    for first in range(0, n_tok, TOKENS):
                        step((w, n_cols * size, r, r1 - 1, act, act_stride, in_idx, first, n_tok, k, n_k, sums))
                        sums += _SUMS_BYTES
            sums = scratch + _SPARE_BYTES
            for r in range(group, end, TURN):
                for first in range(0, n_tok, TOKENS):
                    _finish((r, r1 - 1, out, out_stride, out_idx, first, n_tok, sums, scratch))
                    sums += _SUMS_BYTES

    return njit(inline=True)(product)
