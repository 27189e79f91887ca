"""Matrix products with Q4_0 ... Q8_0, IQ4_NL and MXFP4 weights: blocks of 32, activations in the q8_0 format.

Block layouts: ggml-common.h. Weights are unpacked to bytes that are not negative; what that added is
taken off again through the activations' block sums, before scaling.
"""

from __future__ import annotations

from collections.abc import Sequence

from localmoe.kernels.grids import half_power_of_two, of_sixteen
from localmoe.kernels.matmul_driver import Ahead, TileCode, UnpackCode, make_matmul
from localmoe.kernels.shapes import MINS, PITCH, SCALES, SUMS, SUMS_PITCH
from localmoe.kernels.simd import DOT4_BIAS, LANES
from localmoe.kernels.tile import (
    BIASED,
    F32T,
    F32V,
    I8V,
    I32T,
    I32V,
    I64T,
    Cells,
    Tile,
    Value,
    fma,
    gather16,
    gather32,
    loop,
    row_vectors,
    store_vectors,
    tile_dot4,
    tile_dot4s,
    tile_spread,
    tile_store,
    tile_zero,
)
from localmoe.quants.codebooks import e2m1, nonlinear

_BLOCK = 32
_VECTORS = _BLOCK // 4
_SECOND = SUMS_PITCH // 2  # of a token's two tables of a number a block


# --- unpacking: see make_matmul -----------------------------------------------------------------------------


def _unpack_q8_0(block: Value, step: Value, weights: Value, scales: Value, mins: Value, factors: Value) -> None:
    scales.store(gather16(block, step)[0].half(0))
    store_vectors(weights, [q ^ 0x80808080 if BIASED else q for q in gather32(block + 2, step)])


def _spread_bits(bits: Value) -> Value:
    """Bits 0..3 of each lane as bit 4 of bytes 0..3: bit i moves up by 7 i, then by 4."""
    return (((bits & 0xF) * 0x204081) & 0x01010101) << 4


def _make_unpack_nibbles(qs_at: int, *, has_min: bool, has_high: bool) -> UnpackCode:
    """Nibbles of 16 bytes, low halves first; their fifth bits in the 4 bytes before them; d and perhaps m in front."""

    def unpack(block: Value, step: Value, weights: Value, scales: Value, mins: Value, factors: Value) -> None:
        head = gather16(block, step)
        scales.store(head[0].half(0))
        if has_min:
            mins.store(head[0].half(1))
        qs = gather16(block + qs_at, step)
        low, high = [q & 0x0F0F0F0F for q in qs], [(q >> 4) & 0x0F0F0F0F for q in qs]
        if has_high:
            fifth = head[1] if has_min else (head[0] >> 16) | (head[1] << 16)
            low = [q | _spread_bits(fifth >> (4 * j)) for j, q in enumerate(low)]
            high = [q | _spread_bits(fifth >> (16 + 4 * j)) for j, q in enumerate(high)]
        store_vectors(weights, low + high)

    unpack.__qualname__ = f"unpack_nibbles_{qs_at}"
    return unpack


def _looked_up(table: Sequence[int], block: Value, step: Value, weights: Value) -> None:
    """Sixteen bytes of pairs of indices into a table, low halves first."""
    qs = gather16(block, step)
    for half in range(2):
        indices = [((q >> (4 * half)) & 0x0F0F0F0F).bits(I8V) for q in qs]
        store_vectors(weights + 4 * half * PITCH, [of_sixteen(table, index).bits(I32V) for index in indices])


def _unpack_iq4_nl(block: Value, step: Value, weights: Value, scales: Value, mins: Value, factors: Value) -> None:
    scales.store(gather16(block, step)[0].half(0))
    _looked_up([(int(v) + DOT4_BIAS) & 0xFF for v in nonlinear()], block + 2, step, weights)


def _unpack_mxfp4(block: Value, step: Value, weights: Value, scales: Value, mins: Value, factors: Value) -> None:
    scales.store(half_power_of_two(gather16(block, step)[0] & 0xFF))
    _looked_up([int(v) + 16 for v in e2m1()], block + 1, step, weights)


# --- tiles ----------------------------------------------------------------------------------------------------


def _scale_both(total: Tile, part: Tile, scales: Value, ds: Sequence[Value]) -> Tile:
    """total + part * scales * d: one float32 a row at `scales`, one a token in ds."""
    by = row_vectors(scales, F32V)
    pairs = [d * x for d in ds for x in by]
    return [fma(p.to_f32(), scale, t) for t, p, scale in zip(total, part, pairs, strict=True)]


def _add_mins(total: Tile, mins: Value, xs: Sequence[Value]) -> Tile:
    """total + mins * x: one float32 a row at `mins`, one a token in xs, its block's scale times its sum."""
    by = row_vectors(mins, F32V)
    return [fma(x, m, t) for t, (x, m) in zip(total, [(x, m) for x in xs for m in by], strict=True)]


def _copy_numbers(source: Value, n: Value, target: Value, times: int) -> None:
    """n int32 or float32 beside each other, times a number: whole vectors, the last of which overlaps."""
    b, few = source.b, n < Value(n.b, I64T(LANES))
    with loop(b, few.choose(n, n - n)) as i:
        (target + i * 4).store((source + i * 4).load(I32T) * times)
    with loop(b, few.choose(n - n, (n + (LANES - 1)) // LANES)) as i:
        first, last = i * LANES, n - LANES
        at = (first < last).choose(first, last) * 4
        (target + at).store((source + at).load(I32V) * times)


def _make_tile(shift: int | None, *, signed: bool = False) -> TileCode:
    """Blocks with a scale, weights plus 1 << shift; or with a scale and a min (no shift)."""

    def run(
        tokens: Sequence[Value],
        outs: Sequence[Value],
        scratch: Value,
        k: Value,
        n_k: Value,
        n_cols: Value,
        ahead: Ahead,
    ) -> None:
        total = Cells(tile_zero(tokens, F32V))
        n_blocks = n_k // _BLOCK
        offset = -(1 << shift) if shift is not None and (BIASED or not signed) else 0
        tables = [scratch + SUMS + t * SUMS_PITCH for t in range(len(tokens))]
        for table, token in zip(tables, tokens, strict=True):  # at one distance from each other, unlike the tokens
            ds = token + n_cols + k // 8
            _copy_numbers(ds, n_blocks, table, 1)
            if offset:  # what it starts a block's product with
                _copy_numbers(ds + n_cols // 8, n_blocks, table + _SECOND, offset)
            elif shift is None:
                _copy_numbers(ds + n_cols // 4, n_blocks, table + _SECOND, 1)
        with loop(k.b, n_blocks) as b:
            ahead()
            first, second = ([table + b * 4 + at for table in tables] for at in (0, _SECOND))
            start = tile_zero(tokens, I32V)
            if offset:
                start = tile_spread([at.load_splat(I32T) for at in second])
            rows = [token + k + b * _BLOCK for token in tokens]
            weights = scratch + b * (_VECTORS * PITCH)
            if signed:
                part = tile_dot4s(start, rows, weights, _VECTORS)
            else:
                part = tile_dot4(start, rows, weights, _VECTORS, 15 if shift == 3 else 31)
            splat = [at.load_splat(F32T) for at in first]
            sums_f = _scale_both(total.get(), part, scratch + SCALES + b * PITCH, splat)
            if shift is None:
                sums_f = _add_mins(sums_f, scratch + MINS + b * PITCH, [at.load_splat(F32T) for at in second])
            total.put(sums_f)
        tile_store(outs, total.get(), k)

    run.__qualname__ = f"tile_{shift}_{signed}"
    return run


# --- kernels: see matmul_driver -------------------------------------------------------------------------------

_tile_8, _tile_16, _tile_min, _tile_signed = _make_tile(3), _make_tile(4), _make_tile(None), _make_tile(7, signed=True)

_q8_0 = make_matmul(_unpack_q8_0, _tile_signed, unit=_BLOCK, unit_bytes=34, vectors=_VECTORS, scales=1)
_q4_0 = make_matmul(
    _make_unpack_nibbles(2, has_min=False, has_high=False),
    _tile_8,
    unit=_BLOCK,
    unit_bytes=18,
    vectors=_VECTORS,
    scales=1,
)
_q4_1 = make_matmul(
    _make_unpack_nibbles(4, has_min=True, has_high=False),
    _tile_min,
    unit=_BLOCK,
    unit_bytes=20,
    vectors=_VECTORS,
    scales=1,
    mins=1,
)
_q5_0 = make_matmul(
    _make_unpack_nibbles(6, has_min=False, has_high=True),
    _tile_16,
    unit=_BLOCK,
    unit_bytes=22,
    vectors=_VECTORS,
    scales=1,
)
_q5_1 = make_matmul(
    _make_unpack_nibbles(8, has_min=True, has_high=True),
    _tile_min,
    unit=_BLOCK,
    unit_bytes=24,
    vectors=_VECTORS,
    scales=1,
    mins=1,
)

_iq4_nl = make_matmul(_unpack_iq4_nl, _tile_signed, unit=_BLOCK, unit_bytes=18, vectors=_VECTORS, scales=1)
_mxfp4 = make_matmul(_unpack_mxfp4, _tile_16, unit=_BLOCK, unit_bytes=17, vectors=_VECTORS, scales=1)


def matmul_q8_0(w, act, act_stride, in_idx, out, out_stride, out_idx, n_tok, r0, r1, n_cols, scratch):  # type: ignore[no-untyped-def]
    _q8_0(w, act, act_stride, in_idx, out, out_stride, out_idx, n_tok, r0, r1, n_cols, scratch)


def matmul_q4_0(w, act, act_stride, in_idx, out, out_stride, out_idx, n_tok, r0, r1, n_cols, scratch):  # type: ignore[no-untyped-def]
    _q4_0(w, act, act_stride, in_idx, out, out_stride, out_idx, n_tok, r0, r1, n_cols, scratch)


def matmul_q4_1(w, act, act_stride, in_idx, out, out_stride, out_idx, n_tok, r0, r1, n_cols, scratch):  # type: ignore[no-untyped-def]
    _q4_1(w, act, act_stride, in_idx, out, out_stride, out_idx, n_tok, r0, r1, n_cols, scratch)


def matmul_q5_0(w, act, act_stride, in_idx, out, out_stride, out_idx, n_tok, r0, r1, n_cols, scratch):  # type: ignore[no-untyped-def]
    _q5_0(w, act, act_stride, in_idx, out, out_stride, out_idx, n_tok, r0, r1, n_cols, scratch)


def matmul_q5_1(w, act, act_stride, in_idx, out, out_stride, out_idx, n_tok, r0, r1, n_cols, scratch):  # type: ignore[no-untyped-def]
    _q5_1(w, act, act_stride, in_idx, out, out_stride, out_idx, n_tok, r0, r1, n_cols, scratch)


def matmul_iq4_nl(w, act, act_stride, in_idx, out, out_stride, out_idx, n_tok, r0, r1, n_cols, scratch):  # type: ignore[no-untyped-def]
    _iq4_nl(w, act, act_stride, in_idx, out, out_stride, out_idx, n_tok, r0, r1, n_cols, scratch)


def matmul_mxfp4(w, act, act_stride, in_idx, out, out_stride, out_idx, n_tok, r0, r1, n_cols, scratch):  # type: ignore[no-untyped-def]
    _mxfp4(w, act, act_stride, in_idx, out, out_stride, out_idx, n_tok, r0, r1, n_cols, scratch)
