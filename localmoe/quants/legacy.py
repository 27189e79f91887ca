"""Encoders of Q8_0, Q4_0, Q4_1, Q5_0, Q5_1: 32 elements share a float16 scale `d` (and a minimum `m`).

Source: ggml-quants.c, `quantize_row_*_ref`. Encoders take addresses: n blocks of 32 float32
at `x`, blocks at `out`, `SCRATCH` bytes of scratch.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from localmoe.jit import njit

from .lanes import (
    N,
    absolute,
    bits,
    clamp,
    divide_1,
    from_bits_1,
    get_f,
    get_u8,
    larger,
    largest,
    load_f,
    put_f,
    put_f16,
    put_u8,
    round_away,
    select,
    splat_f,
    splat_i,
    store_f,
    store_i,
    store_u8,
    truncate,
)  # fmt: skip

_TILE = 32 * N * 4  # bytes of one tile of float32: element i of 16 blocks side by side
SCRATCH = _TILE + 32 * N + 16 * N


@njit
def transpose(x: int, tile: int, first: int, last: int, size: int) -> None:
    """Blocks first .. first + 15 of `size` float32 at `x` to a tile (size, 16); blocks past `last` repeat it."""
    for lane in range(N):
        row = x + 4 * size * min(first + lane, last)
        for i in range(size):
            put_f(tile + 4 * (i * N + lane), get_f(row + 4 * i))


@njit
def encode_q8_0(x: int, out: int, n: int, scratch: int) -> None:  # noqa: ARG001
    """d = max |x| / 127; q = round(x / d), half away from zero. Lanes are elements here: nothing is summed."""
    sign, byte = splat_i(np.int32(0x7FFFFFFF)), splat_i(np.int32(0xFF))
    for block in range(n):
        source, target = x + 128 * block, out + 34 * block
        low, high = load_f(source), load_f(source + 64)
        amax = from_bits_1(largest(larger(bits(low) & sign, bits(high) & sign)))
        d = divide_1(amax, np.float32(127))
        inverse = splat_f(divide_1(np.float32(1), d) if d != 0 else np.float32(0))
        put_f16(target, d)
        store_u8(target + 2, truncate(round_away(low * inverse)) & byte)
        store_u8(target + 18, truncate(round_away(high * inverse)) & byte)


@njit
def _signed_scale(tile: int, levels: int) -> Any:
    """d = (the element of largest magnitude, the first of equals) / -levels, and 1 / d or 0."""
    amax = splat_f(np.float32(0))
    extreme = splat_f(np.float32(0))
    for i in range(32):
        v = load_f(tile + 64 * i)
        size = absolute(v)
        more = amax < size
        amax = select(more, size, amax)
        extreme = select(more, v, extreme)
    d = extreme / splat_f(np.float32(-levels))
    zero = splat_f(np.float32(0))
    return d, select(d == zero, zero, splat_f(np.float32(1)) / d)


@njit
def _affine_scale(tile: int, levels: int) -> Any:
    """m = min x, d = (max x - m) / levels, and 1 / d or 0."""
    low = splat_f(np.float32(np.finfo(np.float32).max))
    high = splat_f(-np.float32(np.finfo(np.float32).max))
    for i in range(32):
        v = load_f(tile + 64 * i)
        low = select(v < low, v, low)
        high = select(v > high, v, high)
    d = (high - low) / splat_f(np.float32(levels))
    zero = splat_f(np.float32(0))
    return low, d, select(d == zero, zero, splat_f(np.float32(1)) / d)


@njit
def _as_int8(x: Any) -> Any:
    """The low byte of each lane, sign-extended: what a cast to int8_t leaves."""
    sign = splat_i(np.int32(128))
    return ((x + sign) & splat_i(np.int32(255))) + splat_i(np.int32(-128))


@njit
def put_header(lanes: int, out: int, first: int, last: int, stride: int, offset: int) -> None:
    """Sixteen float32 at `lanes` as float16 at `offset` of their blocks."""
    for lane in range(min(N, last + 1 - first)):
        put_f16(out + stride * (first + lane) + offset, get_f(lanes + 4 * lane))


@njit
def put_bytes(rows: int, n: int, out: int, first: int, last: int, stride: int, offset: int) -> None:
    """Bytes (n, 16 lanes) at `rows` to `offset` of their blocks."""
    for lane in range(min(N, last + 1 - first)):
        target = out + stride * (first + lane) + offset
        for j in range(n):
            put_u8(target + j, get_u8(rows + N * j + lane))


@njit
def put_words(lanes: int, out: int, first: int, last: int, stride: int, offset: int) -> None:
    """Sixteen 32-bit words at `lanes` to `offset` of their blocks."""
    for lane in range(min(N, last + 1 - first)):
        for byte in range(4):
            put_u8(out + stride * (first + lane) + offset + byte, get_u8(lanes + 4 * lane + byte))


@njit
def _encode_signed(x: int, out: int, n: int, scratch: int, levels: int, stride: int) -> None:
    """Q4_0 (levels 8) and Q5_0 (levels 16): q = min(2 * levels - 1, int8(x / d + levels + 0.5))."""
    tile, nibbles, lanes = scratch, scratch + _TILE, scratch + _TILE + 16 * N
    half = splat_f(np.float32(levels + 0.5))
    top, low_bits = splat_i(np.int32(2 * levels - 1)), splat_i(np.int32(15))
    lowest = splat_i(np.int32(-128))
    four = splat_i(np.int32(4))
    for first in range(0, n, N):
        transpose(x, tile, first, n - 1, 32)
        d, inverse = _signed_scale(tile, levels)
        store_f(lanes, d)
        put_header(lanes, out, first, n - 1, stride, 0)
        high = splat_i(np.int32(0))
        for j in range(16):
            q0 = clamp(_as_int8(truncate(load_f(tile + 64 * j) * inverse + half)), lowest, top)
            q1 = clamp(_as_int8(truncate(load_f(tile + 64 * (j + 16)) * inverse + half)), lowest, top)
            if levels == 8:
                store_u8(nibbles + N * j, q0 | (q1 << four))
            else:
                store_u8(nibbles + N * j, (q0 & low_bits) | ((q1 & low_bits) << four))
                high = high | fifth(q0, j) | fifth(q1, j + 16)
        put_bytes(nibbles, 16, out, first, n - 1, stride, stride - 16)
        if levels == 16:
            store_i(lanes, high)
            put_words(lanes, out, first, n - 1, stride, 2)


@njit
def fifth(q: Any, position: int) -> Any:
    """Bit 4 of each lane, moved to `position`."""
    bit = (q >> splat_i(np.int32(4))) & splat_i(np.int32(1))
    return bit << splat_i(np.int32(position))


@njit
def _encode_affine(x: int, out: int, n: int, scratch: int, levels: int, stride: int) -> None:
    """Q4_1 (levels 15) and Q5_1 (levels 31): q = trunc((x - m) / d + 0.5), capped at 15 in Q4_1 alone."""
    tile, nibbles, lanes = scratch, scratch + _TILE, scratch + _TILE + 16 * N
    half = splat_f(np.float32(0.5))
    lowest, top, low_bits = splat_i(np.int32(-128)), splat_i(np.int32(15)), splat_i(np.int32(15))
    four = splat_i(np.int32(4))
    for first in range(0, n, N):
        transpose(x, tile, first, n - 1, 32)
        m, d, inverse = _affine_scale(tile, levels)
        store_f(lanes, d)
        put_header(lanes, out, first, n - 1, stride, 0)
        store_f(lanes, m)
        put_header(lanes, out, first, n - 1, stride, 2)
        high = splat_i(np.int32(0))
        for j in range(16):
            q0 = truncate((load_f(tile + 64 * j) - m) * inverse + half)
            q1 = truncate((load_f(tile + 64 * (j + 16)) - m) * inverse + half)
            if levels == 15:
                q0, q1 = clamp(_as_int8(q0), lowest, top), clamp(_as_int8(q1), lowest, top)
                store_u8(nibbles + N * j, q0 | (q1 << four))
            else:
                store_u8(nibbles + N * j, (q0 & low_bits) | ((q1 & low_bits) << four))
                high = high | fifth(q0, j) | fifth(q1, j + 16)
        put_bytes(nibbles, 16, out, first, n - 1, stride, stride - 16)
        if levels == 31:
            store_i(lanes, high)
            put_words(lanes, out, first, n - 1, stride, 4)


@njit
def encode_q4_0(x: int, out: int, n: int, scratch: int) -> None:
    """q = min(15, x / d + 8.5) with d = extreme / -8."""
    _encode_signed(x, out, n, scratch, 8, 18)


@njit
def encode_q5_0(x: int, out: int, n: int, scratch: int) -> None:
    """q = min(31, x / d + 16.5) with d = extreme / -16."""
    _encode_signed(x, out, n, scratch, 16, 22)


@njit
def encode_q4_1(x: int, out: int, n: int, scratch: int) -> None:
    """q = min(15, (x - m) / d + 0.5) with d = (max - m) / 15."""
    _encode_affine(x, out, n, scratch, 15, 20)


@njit
def encode_q5_1(x: int, out: int, n: int, scratch: int) -> None:
    """q = (x - m) / d + 0.5 with d = (max - m) / 31."""
    _encode_affine(x, out, n, scratch, 31, 24)
