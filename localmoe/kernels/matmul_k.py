"""Matrix products with K-quant weights: blocks of 256, activations in the q8_k format.

Block layouts: ggml's block_q2_K .. block_q6_K. Where the product of a weight and its sub-block's scale fits in a byte
(Q2_K, Q3_K) the scale is multiplied in while unpacking, so that a whole block is one integer sum; elsewhere a
sub-block's sum is scaled in float32.
"""

from __future__ import annotations

from collections.abc import Sequence

from llvmlite import ir

from localmoe.kernels.matmul_driver import FACTORS, MINS, SCALES, SUMS, SUMS_PITCH, make_matmul
from localmoe.kernels.tile import (
    BIASED,
    F32T,
    F32V,
    I16T,
    I16V,
    I32T,
    I32V,
    PITCH,
    Cells,
    Tile,
    Value,
    call,
    gather16,
    loop,
    store_vectors,
    tile_dot2,
    tile_dot4,
    tile_dot4s,
    tile_scale,
    tile_spread,
    tile_store,
    tile_zero,
    zero,
)

_BLOCK = 256
_VECTORS = _BLOCK // 4
_FLIP = 0x80808080 if BIASED else 0
_BSUMS = ir.VectorType(I16T, 16)


# --- unpacking: see make_matmul -----------------------------------------------------------------------------


def _min_pairs(v: Value) -> list[Value]:
    """Bytes 0, 1 and bytes 2, 3 of each lane as pairs of int16."""
    return [(x & 0xFF) | ((x << 8) & 0xFF0000) for x in (v, v >> 16)]


def _unpack_scales6(block: Value, step: Value, scales: Value, mins: Value, factors: Value) -> None:
    """The head of Q4_K and Q5_K: d, dmin and 8 scales and mins of 6 bits -> d * scale, pairs of mins, -dmin."""
    d, u0, u1, u2 = gather16(block, step)
    factors.store(zero(d.b, F32V) - d.half(1))
    d = d.half(0)
    low = u0 & 0x3F3F3F3F
    high = (u2 & 0x0F0F0F0F) | ((u0 >> 2) & 0x30303030)
    store_vectors(scales, [d * ((s >> (8 * j)) & 0xFF).to_f32() for s in (low, high) for j in range(4)])
    low = u1 & 0x3F3F3F3F
    high = ((u2 >> 4) & 0x0F0F0F0F) | ((u1 >> 2) & 0x30303030)
    store_vectors(mins, [*_min_pairs(low), *_min_pairs(high)])


def _unpack_q4_k(block: Value, step: Value, weights: Value, scales: Value, mins: Value, factors: Value) -> None:
    _unpack_scales6(block, step, scales, mins, factors)
    with loop(block.b, 4) as c:
        for half in range(2):
            qs = gather16(block + 16 + 16 * half + c * 32, step)
            at = weights + 4 * half * PITCH + c * (16 * PITCH)
            store_vectors(at, [q & 0x0F0F0F0F for q in qs])
            store_vectors(at + 8 * PITCH, [(q >> 4) & 0x0F0F0F0F for q in qs])


def _unpack_q6_k(block: Value, step: Value, weights: Value, scales: Value, mins: Value, factors: Value) -> None:
    d = gather16(block + 194, step)[3].half(1)
    packed = gather16(block + 192, step)
    store_vectors(scales, [d * s.signed_byte(j).to_f32() for s in packed for j in range(4)])
    low, two = 0x0F0F0F0F, 0x30303030
    with loop(block.b, 2) as n:
        for half in range(2):
            q0 = gather16(block + 16 * half + n * 64, step)
            q1 = gather16(block + 16 * half + 32 + n * 64, step)
            qh = gather16(block + 16 * half + 128 + n * 32, step)
            at = weights + 4 * half * PITCH + n * (32 * PITCH)
            store_vectors(at, [(q & low) | ((h << 4) & two) for q, h in zip(q0, qh, strict=True)])
            store_vectors(at + 8 * PITCH, [(q & low) | ((h << 2) & two) for q, h in zip(q1, qh, strict=True)])
            store_vectors(at + 16 * PITCH, [((q >> 4) & low) | (h & two) for q, h in zip(q0, qh, strict=True)])
            store_vectors(at + 24 * PITCH, [((q >> 4) & low) | ((h >> 2) & two) for q, h in zip(q1, qh, strict=True)])


# --- tiles ----------------------------------------------------------------------------------------------------


def _sums(tokens: Sequence[Value], n_cols: Value, k: Value, b: Value) -> list[Value]:
    """Addresses of the 16 int16 sums of block b, counted from column k, of each token."""
    return [token + n_cols + n_cols // 64 + k // 8 + b * 32 for token in tokens]


def _add_to_outputs(
    outs: Sequence[Value], total: Tile, tokens: Sequence[Value], n_cols: Value, k: Value, b: Value
) -> None:
    """Multiply with the activations' d of block b and store."""
    ds = [(token + n_cols + k // 64 + b * 4).load_splat(F32T) for token in tokens]
    tile_store(outs, total, k + b, ds)


def _tile_min32(
    tokens: Sequence[Value], outs: Sequence[Value], scratch: Value, k: Value, n_k: Value, n_cols: Value
) -> None:
    """Sub-blocks of 32 with a scale and a min (Q4_K, Q5_K)."""
    n_blocks = n_k // _BLOCK
    tables = [scratch + SUMS + t * SUMS_PITCH for t in range(len(tokens))]
    with loop(k.b, n_blocks) as b:  # sums of 32 as int16
        for table, source in zip(tables, _sums(tokens, n_cols, k, b), strict=True):
            s = source.load(_BSUMS)
            even, odd = (ir.Constant(ir.VectorType(I32T, 8), list(range(j, 16, 2))) for j in (0, 1))
            pair = [Value(s.b, s.b.shuffle_vector(s.v, s.v, mask)) for mask in (even, odd)]
            (table + b * 16).store(pair[0] + pair[1])
    with loop(k.b, n_blocks) as b:
        total = Cells(tile_zero(tokens, F32V))
        with loop(k.b, 8) as s:
            at = b * 8 + s
            rows = [token + k + at * 32 for token in tokens]
            part = tile_dot4(tile_zero(tokens, I32V), rows, scratch + at * (8 * PITCH), 8)
            total.put(tile_scale(total.get(), part, scratch + SCALES + at * PITCH))
        pairs = [table + b * 16 for table in tables]
        part = tile_dot2(tile_zero(tokens, I32V), pairs, scratch + MINS + b * (4 * PITCH), 4)
        sums = tile_scale(total.get(), part, scratch + FACTORS + b * PITCH)
        _add_to_outputs(outs, sums, tokens, n_cols, k, b)


def _tile_q6_k(
    tokens: Sequence[Value], outs: Sequence[Value], scratch: Value, k: Value, n_k: Value, n_cols: Value
) -> None:
    """Sub-blocks of 16 with a scale, weights plus 32."""
    n_blocks = n_k // _BLOCK
    tables = [scratch + SUMS + t * SUMS_PITCH for t in range(len(tokens))]
    with loop(k.b, n_blocks) as b:  # what the 32 added, as int32
        for table, source in zip(tables, _sums(tokens, n_cols, k, b), strict=True):
            (table + b * 64).store(source.load(_BSUMS).signed(ir.VectorType(I32T, 16)) * -32)
    with loop(k.b, n_blocks) as b:
        total = Cells(tile_zero(tokens, F32V))
        with loop(k.b, 16) as s:
            at = b * 16 + s
            rows = [token + k + at * 16 for token in tokens]
            start = tile_spread([(table + at * 4).load_splat(I32T) for table in tables])
            part = tile_dot4(start, rows, scratch + at * (4 * PITCH), 4)
            total.put(tile_scale(total.get(), part, scratch + SCALES + at * PITCH))
        _add_to_outputs(outs, total.get(), tokens, n_cols, k, b)


# --- kernels: see matmul_driver -------------------------------------------------------------------------------

_q4_k = make_matmul(
    _unpack_q4_k, _tile_min32, unit=_BLOCK, unit_bytes=144, vectors=_VECTORS, scales=8, mins=4, factors=1
)
_q6_k = make_matmul(_unpack_q6_k, _tile_q6_k, unit=_BLOCK, unit_bytes=210, vectors=_VECTORS, scales=16)


def matmul_q4_k(w, act, act_stride, in_idx, out, out_stride, out_idx, n_tok, r0, r1, n_cols, scratch):  # type: ignore[no-untyped-def]
    _q4_k(w, act, act_stride, in_idx, out, out_stride, out_idx, n_tok, r0, r1, n_cols, scratch)


def matmul_q6_k(w, act, act_stride, in_idx, out, out_stride, out_idx, n_tok, r0, r1, n_cols, scratch):  # type: ignore[no-untyped-def]
    _q6_k(w, act, act_stride, in_idx, out, out_stride, out_idx, n_tok, r0, r1, n_cols, scratch)
