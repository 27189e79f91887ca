"""Matrix products with K-quant weights: blocks of 256, activations in the q8_k format.

Block layouts: ggml's block_q2_K .. block_q6_K. Where the product of a weight and its sub-block's scale fits in a byte
(Q2_K, Q3_K) the scale is multiplied in while unpacking, so that a whole block is one integer sum; elsewhere a
sub-block's sum is scaled in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from llvmlite import ir

from localmoe.kernels.matmul_driver import Ahead, TileCode, make_matmul
from localmoe.kernels.shapes import FACTORS, MINS, PITCH, SCALES
from localmoe.kernels.simd import ISA, LANES, VBMI, call, splat
from localmoe.kernels.tile import (
    BIASED,
    F32V,
    I8V,
    I16T,
    I16V,
    I32T,
    I32V,
    Cells,
    Tile,
    Value,
    gather16,
    gather32,
    loop,
    store_vectors,
    tile_dot2,
    tile_dot4,
    tile_dot4_scaled,
    tile_dot4s,
    tile_scale,
    tile_spread,
    tile_zero,
    zero,
)
from localmoe.kernels.tile_scaled import BLOCK, activation_sums, add_block, make_scaled_tile, output_sums

_VECTORS = BLOCK // 4
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
        qs = gather32(block + 16 + c * 32, step)
        at = weights + c * (16 * PITCH)
        store_vectors(at, [q & 0x0F0F0F0F for q in qs])
        store_vectors(at + 8 * PITCH, [(q >> 4) & 0x0F0F0F0F for q in qs])


def _unpack_q5_k(block: Value, step: Value, weights: Value, scales: Value, mins: Value, factors: Value) -> None:
    _unpack_scales6(block, step, scales, mins, factors)
    low, high = 0x0F0F0F0F, 0x10101010
    later = Cells(gather32(block + 16, step))  # bits 0 and 1 of each byte belong to the two sub-blocks at hand
    with loop(block.b, 4) as c:
        qs = gather32(block + 48 + c * 32, step)
        at = weights + c * (16 * PITCH)
        h = later.get()
        store_vectors(at, [(q & low) | ((x << 4) & high) for q, x in zip(qs, h, strict=True)])
        store_vectors(at + 8 * PITCH, [((q >> 4) & low) | ((x << 3) & high) for q, x in zip(qs, h, strict=True)])
        later.put([x >> 2 for x in h])


def _unpack_q2_k(block: Value, step: Value, weights: Value, scales: Value, mins: Value, factors: Value) -> None:
    packed = gather16(block, step)
    tail = gather16(block + 68, step)[3]
    store_vectors(factors, [tail.half(0), zero(block.b, F32V) - tail.half(1)])
    store_vectors(mins, [pair for p in packed for pair in _min_pairs((p >> 4) & 0x0F0F0F0F)])
    for n in range(2):
        qs = gather32(block + 16 + 32 * n, step)
        for j in range(4):
            for half in range(2):
                sub = 8 * n + 2 * j + half
                scale = (packed[sub // 4] >> (8 * (sub % 4))) & 0xF
                # no byte exceeds 3 * 15, so one multiplication does four
                threes = [(q >> (2 * j)) & 0x03030303 for q in qs[4 * half : 4 * half + 4]]
                store_vectors(weights + 4 * sub * PITCH, [q * scale for q in threes])


# Of bytes q (0..3), and bit `bit` of the bytes of m, which stands for 4: (q + bit * 4 - 4) * scale, as bytes
Times = Callable[[Value, Value, int], Value]


def _make_product(scale: Value) -> Times:
    pair = ((scale & 0xFFFF) | (scale << 16)).bits(I16V)

    def times(q: Value, m: Value, bit: int) -> Value:
        three = q | (((m >> bit) & 0x01010101) << 2)
        even, odd = (((three >> up) & 0x00FF00FF).bits(I16V) - 4 for up in (0, 8))
        low, high = ((x * pair).bits(I32V) for x in (even, odd))
        return ((low & 0x00FF00FF) | ((high << 8) & 0xFF00FF00)) ^ _FLIP

    return times


def _make_lookup(scale: Value) -> Times:
    """`_make_product` by a table of all rows' products, plus 128: 5 instructions instead of 15."""
    b = scale.b
    table = (scale * 0x03020100 + 0x80808080).bits(I8V)  # no byte leaves 0..255, so one multiplication does four
    four = (((scale << 2) & 0xFF) * 0x01010101).bits(I8V)
    rows = Value(b, ir.Constant(I32V, [0x04040404 * row for row in range(LANES)]))

    def times(q: Value, m: Value, bit: int) -> Value:
        index = (q | rows).bits(I8V)
        found = Value(b, call(b, "llvm.x86.avx512.permvar.qi.512", I8V, [table.v, index.v]))
        unset = b.icmp_unsigned("==", (m & (0x01010101 << bit)).bits(I8V).v, ir.Constant(I8V, None))
        return Value(b, b.select(unset, (found - four).v, found.v))

    return times


def _q3_scales(tail: list[Value]) -> Callable[[int], Value]:
    """From the last 16 bytes of blocks: the scale, less 32, of each of 16 sub-blocks, as int32."""
    u0, u1, u2 = ((tail[i] >> 16) | (tail[i + 1] << 16) for i in range(3))
    low, two = 0x0F0F0F0F, 0x30303030
    packed = [
        (u0 & low) | ((u2 << 4) & two),
        (u1 & low) | ((u2 << 2) & two),
        ((u0 >> 4) & low) | (u2 & two),
        ((u1 >> 4) & low) | ((u2 >> 2) & two),
    ]
    return lambda sub: ((packed[sub // 4] >> (8 * (sub % 4))) & 0xFF) - 32


def _unpack_q3_k(block: Value, step: Value, weights: Value, scales: Value, mins: Value, factors: Value) -> None:
    """Stores -(q - 4) * (scale - 32): from -128 to 124, which fits a byte where its negative does not."""
    tail = gather16(block + 94, step)
    factors.store(zero(block.b, F32V) - tail[3].half(1))
    scale = _q3_scales(tail)
    nothing, mask = zero(block.b, I32V), gather32(block, step)
    product = _make_lookup if VBMI else _make_product
    for n in range(2):
        qs = gather32(block + 32 + 32 * n, step)
        for j in range(4):
            for half in range(2):
                sub, bit = 8 * n + 2 * j + half, 4 * n + j
                times = product(nothing - scale(sub))
                for g in range(4):
                    q, m = qs[4 * half + g] >> (2 * j), mask[4 * half + g]
                    (weights + (4 * sub + g) * PITCH).store(times(q & 0x03030303, m, bit))


def _unpack_q3_k_unscaled(
    block: Value, step: Value, weights: Value, scales: Value, mins: Value, factors: Value
) -> None:
    """Weights from 0 to 7, scales as pairs of int16, and minus four times those of two neighbours."""
    tail = gather16(block + 94, step)
    factors.store(tail[3].half(1))
    scale = _q3_scales(tail)
    for sub in range(0, 16, 2):
        both = [scale(sub), scale(sub + 1)]
        for i, s in enumerate(both):
            (scales + (sub + i) * PITCH).store((s & 0xFFFF) | (s << 16))
        first, second = (s * -4 for s in both)
        (mins + sub // 2 * PITCH).store((first & 0xFFFF) | (second << 16))
    with loop(block.b, 2) as n:
        by = Value(block.b, splat(block.b, block.b.trunc((n * 4).v, I32T), LANES))
        mask = [x >> by for x in gather32(block, step)]  # third bits of this half's four weights, in a byte's low half
        qs = gather32(block + 32 + n * 32, step)
        for j in range(4):
            at = weights + n * (32 * PITCH) + 8 * j * PITCH
            third = [(m << (2 - j) if j < 2 else m >> (j - 2)) & 0x04040404 for m in mask]
            store_vectors(at, [((q >> (2 * j)) & 0x03030303) | bit for q, bit in zip(qs, third, strict=True)])


def _unpack_q6_k(block: Value, step: Value, weights: Value, scales: Value, mins: Value, factors: Value) -> None:
    d = gather16(block + 194, step)[3].half(1)
    packed = gather16(block + 192, step)
    store_vectors(scales, [d * s.signed_byte(j).to_f32() for s in packed for j in range(4)])
    low, two = 0x0F0F0F0F, 0x30303030
    with loop(block.b, 2) as n:
        at = weights + n * (32 * PITCH)
        qh = gather32(block + 128 + n * 32, step)
        q0 = gather32(block + n * 64, step)
        store_vectors(at, [(q & low) | ((h << 4) & two) for q, h in zip(q0, qh, strict=True)])
        store_vectors(at + 16 * PITCH, [((q >> 4) & low) | (h & two) for q, h in zip(q0, qh, strict=True)])
        q1 = gather32(block + 32 + n * 64, step)
        store_vectors(at + 8 * PITCH, [(q & low) | ((h << 2) & two) for q, h in zip(q1, qh, strict=True)])
        store_vectors(at + 24 * PITCH, [((q >> 4) & low) | ((h >> 2) & two) for q, h in zip(q1, qh, strict=True)])


# --- tiles ----------------------------------------------------------------------------------------------------


def _make_tile_min32(most: int) -> TileCode:
    """Sub-blocks of 32 with a scale and a min, weights up to `most` (Q4_K, Q5_K)."""

    def run(
        tokens: Sequence[Value],
        outs: Sequence[Value],
        scratch: Value,
        k: Value,
        n_k: Value,
        n_cols: Value,
        ahead: Ahead,
    ) -> None:
        with output_sums(outs, scratch, k) as to, loop(k.b, n_k // BLOCK) as b:
            total = Cells(tile_zero(tokens, F32V))
            with loop(k.b, 8) as s:
                ahead()
                at = b * 8 + s
                rows = [token + k + at * 32 for token in tokens]
                part = tile_dot4(tile_zero(tokens, I32V), rows, scratch + at * (8 * PITCH), 8, most)
                total.put(tile_scale(total.get(), part, scratch + SCALES + at * PITCH))
            pairs = [token + n_cols + n_cols // 64 + n_cols // 8 + k // 16 + b * 16 for token in tokens]  # sums of 32
            part = tile_dot2(tile_zero(tokens, I32V), pairs, scratch + MINS + b * (4 * PITCH), 4)
            add_block(to, tile_scale(total.get(), part, scratch + FACTORS + b * PITCH), tokens, n_cols, k, b)

    run.__qualname__ = f"tile_min32_{most}"
    return run


def _block_sums(start: Tile, tokens: Sequence[Value], weights: Value, ahead: Ahead, signed: bool) -> Tile:
    """A block's 256 products, of unsigned weights up to 45, summed in int32."""
    total = Cells(start)
    with loop(weights.b, 8) as s:
        ahead()
        rows = [token + s * 32 for token in tokens]
        at = weights + s * (8 * PITCH)
        if signed:
            total.put(tile_dot4s(total.get(), rows, at, 8))
        else:
            total.put(tile_dot4(total.get(), rows, at, 8, 45))
    return total.get()


def _tile_q2_k(
    tokens: Sequence[Value], outs: Sequence[Value], scratch: Value, k: Value, n_k: Value, n_cols: Value, ahead: Ahead
) -> None:
    """Weights with their scales multiplied in, and a min for 16 of them."""
    with output_sums(outs, scratch, k) as to, loop(k.b, n_k // BLOCK) as b:
        rows = [token + k + b * BLOCK for token in tokens]
        part = _block_sums(tile_zero(tokens, I32V), rows, scratch + b * (_VECTORS * PITCH), ahead, False)
        factors = scratch + FACTORS + b * (2 * PITCH)
        total = tile_scale(tile_zero(tokens, F32V), part, factors)
        sums = activation_sums(tokens, n_cols, k, b)
        mins = tile_dot2(tile_zero(tokens, I32V), sums, scratch + MINS + b * (8 * PITCH), 8)
        add_block(to, tile_scale(total, mins, factors + PITCH), tokens, n_cols, k, b)


def _tile_q3_k(
    tokens: Sequence[Value], outs: Sequence[Value], scratch: Value, k: Value, n_k: Value, n_cols: Value, ahead: Ahead
) -> None:
    """Signed weights with their scales multiplied in."""
    i32x16 = ir.VectorType(I32T, 16)
    with output_sums(outs, scratch, k) as to, loop(k.b, n_k // BLOCK) as b:
        start = tile_zero(tokens, I32V)
        if BIASED:
            totals = []
            for source in activation_sums(tokens, n_cols, k, b):
                s = source.load(_BSUMS).signed(i32x16)
                total = call(k.b, "llvm.vector.reduce.add.v16i32", I32T, [s.v])
                totals.append(Value(k.b, splat(k.b, k.b.mul(total, I32T(-128)), LANES)))
            start = tile_spread(totals)
        rows = [token + k + b * BLOCK for token in tokens]
        part = _block_sums(start, rows, scratch + b * (_VECTORS * PITCH), ahead, True)
        total = tile_scale(tile_zero(tokens, F32V), part, scratch + FACTORS + b * PITCH)
        add_block(to, total, tokens, n_cols, k, b)


def _tile_q3_k_unscaled(
    tokens: Sequence[Value], outs: Sequence[Value], scratch: Value, k: Value, n_k: Value, n_cols: Value, ahead: Ahead
) -> None:
    """Small weights on AVX2, whose sums of 16 take their scale in the instruction that brings pairs to int32."""
    with output_sums(outs, scratch, k) as to, loop(k.b, n_k // BLOCK) as b:
        sums = activation_sums(tokens, n_cols, k, b)
        total = Cells(tile_dot2(tile_zero(tokens, I32V), sums, scratch + MINS + b * (8 * PITCH), 8))
        with loop(k.b, 8) as s:
            ahead()
            for part in range(2):
                at = b * 16 + s * 2 + part
                rows = [token + k + at * 16 for token in tokens]
                scales = scratch + SCALES + at * PITCH
                total.put(tile_dot4_scaled(total.get(), rows, scratch + at * (4 * PITCH), 4, scales))
        scaled = tile_scale(tile_zero(tokens, F32V), total.get(), scratch + FACTORS + b * PITCH)
        add_block(to, scaled, tokens, n_cols, k, b)


# --- kernels: see matmul_driver -------------------------------------------------------------------------------

_q2_k = make_matmul(_unpack_q2_k, _tile_q2_k, unit=BLOCK, unit_bytes=84, vectors=_VECTORS, mins=8, factors=2)
_q3_k = (
    make_matmul(
        _unpack_q3_k_unscaled, _tile_q3_k_unscaled, unit=BLOCK, unit_bytes=110, vectors=_VECTORS, scales=16, mins=8,
        factors=1,
    )
    if ISA == "avx2"
    else make_matmul(_unpack_q3_k, _tile_q3_k, unit=BLOCK, unit_bytes=110, vectors=_VECTORS, factors=1)
)  # fmt: skip
_q4_k = make_matmul(
    _unpack_q4_k, _make_tile_min32(15), unit=BLOCK, unit_bytes=144, vectors=_VECTORS, scales=8, mins=4, factors=1
)
_q5_k = make_matmul(
    _unpack_q5_k, _make_tile_min32(31), unit=BLOCK, unit_bytes=176, vectors=_VECTORS, scales=8, mins=4, factors=1
)
_q6_k = make_matmul(_unpack_q6_k, make_scaled_tile(16, 32, 63), unit=BLOCK, unit_bytes=210, vectors=_VECTORS, scales=16)


def matmul_q2_k(w, act, act_stride, in_idx, out, out_stride, out_idx, n_tok, r0, r1, n_cols, scratch):  # type: ignore[no-untyped-def]
    _q2_k(w, act, act_stride, in_idx, out, out_stride, out_idx, n_tok, r0, r1, n_cols, scratch)


def matmul_q3_k(w, act, act_stride, in_idx, out, out_stride, out_idx, n_tok, r0, r1, n_cols, scratch):  # type: ignore[no-untyped-def]
    _q3_k(w, act, act_stride, in_idx, out, out_stride, out_idx, n_tok, r0, r1, n_cols, scratch)


def matmul_q4_k(w, act, act_stride, in_idx, out, out_stride, out_idx, n_tok, r0, r1, n_cols, scratch):  # type: ignore[no-untyped-def]
    _q4_k(w, act, act_stride, in_idx, out, out_stride, out_idx, n_tok, r0, r1, n_cols, scratch)


def matmul_q5_k(w, act, act_stride, in_idx, out, out_stride, out_idx, n_tok, r0, r1, n_cols, scratch):  # type: ignore[no-untyped-def]
    _q5_k(w, act, act_stride, in_idx, out, out_stride, out_idx, n_tok, r0, r1, n_cols, scratch)


def matmul_q6_k(w, act, act_stride, in_idx, out, out_stride, out_idx, n_tok, r0, r1, n_cols, scratch):  # type: ignore[no-untyped-def]
    _q6_k(w, act, act_stride, in_idx, out, out_stride, out_idx, n_tok, r0, r1, n_cols, scratch)
