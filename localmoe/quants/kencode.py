"""Q4_K, Q5_K and Q6_K encoding, sixteen sub-blocks side by side.

Source: ggml-quants.c, `quantize_row_q*_K_ref` (no importance matrix). Encoders
take addresses: n blocks of 256 float32 at `x`, blocks at `out`, `SCRATCH` bytes of scratch.
"""

from __future__ import annotations

import numpy as np

from localmoe.jit import njit

from .fit import affine_steps, fit_affine, fit_signed, signed_level, signed_steps
from .lanes import (
    N,
    absolute,
    clamp,
    divide_1,
    get_f,
    get_f16,
    get_u8,
    get_u64,
    load_f,
    nearest,
    nearest_1,
    put_f,
    put_f16,
    put_u8,
    put_u64_byte,
    select,
    splat_f,
    splat_i,
    sqrt,
    store_f,
    store_u8,
)  # fmt: skip
from .legacy import transpose

_TILE = 32 * N * 4
_W, _L, _LANES = _TILE, 2 * _TILE, 3 * _TILE  # weights, levels tried, per-lane numbers: offsets into scratch
SCRATCH = 3 * _TILE + 8 * 64

# what each step of the search adds to the number of levels: rmin + rdelta * step, and 0.1 * step
_STEPS_4, _STEPS_5 = affine_steps(-1.0, 0.1, 20, 15), affine_steps(-0.5, 0.1, 15, 31)
_STEPS_6 = signed_steps(32)


@njit
def _weigh(tile: int, weights: int) -> None:
    """w = sqrt(mean x^2) + |x| for a tile of 32."""
    total = splat_f(np.float32(0))
    for i in range(32):
        v = load_f(tile + 64 * i)
        total = total + v * v
    average = sqrt(total / splat_f(np.float32(32)))
    for i in range(32):
        store_f(weights + 64 * i, average + absolute(load_f(tile + 64 * i)))


@njit
def _pack_scales(lanes: int, out: int) -> None:
    """Eight scales and minima at `lanes` to d, dmin and 12 bytes at `out`; what they decode to goes back to `lanes`."""
    scales, minima = lanes, lanes + 64
    max_scale, max_min = np.float32(0), np.float32(0)
    for j in range(8):
        if get_f(scales + 4 * j) > max_scale:
            max_scale = get_f(scales + 4 * j)
        if get_f(minima + 4 * j) > max_min:
            max_min = get_f(minima + 4 * j)
    to_scale = divide_1(np.float32(63), max_scale) if max_scale > 0 else np.float32(0)
    to_min = divide_1(np.float32(63), max_min) if max_min > 0 else np.float32(0)
    put_f16(out, divide_1(max_scale, np.float32(63)))
    put_f16(out + 2, divide_1(max_min, np.float32(63)))
    d, dmin = get_f16(out), get_f16(out + 2)
    packed = out + 4
    for j in range(8):
        ls = min(np.int32(63), nearest_1(to_scale * get_f(scales + 4 * j)) & np.int32(255))
        lm = min(np.int32(63), nearest_1(to_min * get_f(minima + 4 * j)) & np.int32(255))
        if j < 4:
            put_u8(packed + j, np.int32(ls))
            put_u8(packed + j + 4, np.int32(lm))
        else:
            put_u8(packed + j + 4, np.int32((ls & 15) | ((lm & 15) << 4)))
            put_u8(packed + j - 4, np.int32(get_u8(packed + j - 4) | ((ls >> 4) << 6)))
            put_u8(packed + j, np.int32(get_u8(packed + j) | ((lm >> 4) << 6)))
        put_f(scales + 4 * j, d * np.float32(ls))
        put_f(minima + 4 * j, dmin * np.float32(lm))


@njit
def _pack_4(levels: int, out: int) -> None:
    """Levels (32, 16 lanes) below 16, eight lanes from `levels`, to 128 bytes: pairs of sub-blocks share a byte."""
    for i in range(32):
        lanes = get_u64(levels + N * i)
        pairs = lanes | (lanes >> np.uint64(4))
        for g in range(4):
            put_u64_byte(out + 32 * g + i, pairs >> np.uint64(16 * g))


@njit
def _pack_5(levels: int, out: int) -> None:
    """Levels (32, 16 lanes) below 32 to 32 bytes of fifth bits (bit i from sub-block i) and 128 of nibbles."""
    for i in range(32):
        lanes = get_u64(levels + N * i)
        high = (lanes >> np.uint64(4)) & np.uint64(0x0101010101010101)
        put_u64_byte(out + i, (high * np.uint64(0x0102040810204080)) >> np.uint64(56))
        low = lanes & np.uint64(0x0F0F0F0F0F0F0F0F)
        pairs = low | (low >> np.uint64(4))
        for g in range(4):
            put_u64_byte(out + 32 + 32 * g + i, pairs >> np.uint64(16 * g))


@njit
def _encode_affine(x: int, out: int, n: int, scratch: int, top: int, steps: np.ndarray, stride: int) -> None:
    """Q4_K (top 15) and Q5_K (top 31): two blocks, that is 16 sub-blocks of 32, at a time."""
    tile, levels, lanes = scratch, scratch + _L, scratch + _LANES
    zero, lowest, highest = splat_f(np.float32(0)), splat_i(np.int32(0)), splat_i(np.int32(top))
    for first in range(0, n, 2):
        transpose(x, tile, 8 * first, 8 * n - 1, 32)
        _weigh(tile, scratch + _W)
        scale, minimum, inverse, base = fit_affine(tile, scratch + _W, levels, 32, top, steps, True)
        both = min(2, n - first)
        store_f(lanes, scale)
        store_f(lanes + 64, minimum)
        for half in range(both):
            _pack_scales(lanes + 32 * half, out + stride * (first + half))
        d, m = load_f(lanes), load_f(lanes + 64)
        unscaled = d == zero  # these keep the levels of the search
        for i in range(32):
            v = load_f(tile + 64 * i)
            q = clamp(nearest((v + m) / d), lowest, highest)
            searched = clamp(nearest(inverse * (v - base)), lowest, highest)
            store_u8(levels + N * i, select(unscaled, searched, q))
        for half in range(both):
            target = out + stride * (first + half) + 16
            if top == 15:
                _pack_4(levels + 8 * half, target)
            else:
                _pack_5(levels + 8 * half, target)


@njit
def encode_q4_k(x: int, out: int, n: int, scratch: int) -> None:
    """Eight sub-blocks of 32 in 4 bits with 6-bit scales and minima."""
    _encode_affine(x, out, n, scratch, 15, _STEPS_4, 144)


@njit
def encode_q5_k(x: int, out: int, n: int, scratch: int) -> None:
    """Eight sub-blocks of 32 in 5 bits with 6-bit scales and minima."""
    _encode_affine(x, out, n, scratch, 31, _STEPS_5, 176)


@njit
def _scale_signed(lanes: int, out: int) -> bool:
    """Sixteen scales at `lanes` to 16 int8 and d at `out` (offset 192); decoded ones go back. False: all are zero."""
    max_scale, max_abs = np.float32(0), np.float32(0)
    for j in range(16):
        size = abs(get_f(lanes + 4 * j))
        if size > max_abs:
            max_abs = size
            max_scale = get_f(lanes + 4 * j)
    if max_abs < np.float32(1e-15):
        return False
    inverse = divide_1(np.float32(-128), max_scale)
    put_f16(out + 208, divide_1(np.float32(1), inverse))
    d = get_f16(out + 208)
    for j in range(16):
        level = np.int32(min(np.int32(127), nearest_1(inverse * get_f(lanes + 4 * j))))
        put_u8(out + 192 + j, level)
        stored = ((level + np.int32(128)) & np.int32(255)) - np.int32(128)
        put_f(lanes + 4 * j, d * np.float32(stored))
    return True


@njit
def _pack_6(levels: int, out: int) -> None:
    """Levels (16, 16 lanes) below 64 to 128 bytes of nibbles and 64 of two bits; lanes 0-7 are the first half."""
    for half in range(2):
        ql, qh = out + 64 * half, out + 128 + 32 * half
        for i in range(16):
            lanes = get_u64(levels + N * i + 8 * half)
            low = lanes & np.uint64(0x0F0F0F0F0F0F0F0F)
            nibbles = low | (low >> np.uint64(28))
            for g in range(4):
                put_u64_byte(ql + 16 * g + i, nibbles >> np.uint64(8 * g))
            high = (lanes >> np.uint64(4)) & np.uint64(0x0303030303030303)
            pairs = high | (high >> np.uint64(14)) | (high >> np.uint64(28)) | (high >> np.uint64(42))
            put_u64_byte(qh + i, pairs)
            put_u64_byte(qh + 16 + i, pairs >> np.uint64(8))


@njit
def encode_q6_k(x: int, out: int, n: int, scratch: int) -> None:
    """Sixteen sub-blocks of 16 in 6 bits with int8 scales: one block a tile."""
    tile, levels, lanes = scratch, scratch + _L, scratch + _LANES
    zero, middle = splat_f(np.float32(0)), splat_i(np.int32(32))
    lowest, highest = splat_i(np.int32(-32)), splat_i(np.int32(31))
    for block in range(n):
        target = out + 210 * block
        transpose(x, tile, 16 * block, 16 * n - 1, 16)
        for i in range(16):
            v = load_f(tile + 64 * i)
            store_f(scratch + _W + 64 * i, v * v)
        scale, inverse, empty = fit_signed(tile, scratch + _W, 16, 32, _STEPS_6)
        store_f(lanes, scale)
        if not _scale_signed(lanes, target):
            for byte in range(210):
                put_u8(target + byte, np.int32(0))
            continue
        d = load_f(lanes)
        unscaled = d == zero  # these keep the levels of the search
        for i in range(16):
            v = load_f(tile + 64 * i)
            q = clamp(nearest(v / d), lowest, highest) + middle
            store_u8(levels + N * i, select(unscaled, signed_level(v, inverse, empty, 32), q))
        _pack_6(levels, target)
