"""Sixteen blocks of 256 side by side, lane i being block i: reading them, weighing them, and packing their levels.

Sources: ggml-quants.c, `quantize_row_q*_K_ref` and `quantize_row_q*_K_impl`; layouts: ggml-common.h. Scratch holds,
from its start: the elements, an importance for each, one sub-block's weights and levels, and what a sub-block has once.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from localmoe.jit import njit

from .lanes import (
    N,
    clamp,
    get_f,
    get_u8,
    load_f,
    load_u8,
    nearest,
    put_f,
    put_u8,
    select,
    splat_f,
    splat_i,
    sqrt,
    store_f,
    store_u8,
)  # fmt: skip
from .legacy import put_bytes

_ROW = 64  # bytes of one element of sixteen blocks
X = 0
IMPORTANCE = X + 256 * _ROW
WEIGHTS = IMPORTANCE + 256 * _ROW
AUX = WEIGHTS + 32 * _ROW
SCALES = AUX + 32 * _ROW
MINIMA = SCALES + 16 * _ROW
SUMS = MINIMA + 16 * _ROW  # of a sub-block's weights
SCALE_LEVELS = SUMS + 16 * _ROW
MINIMUM_LEVELS = SCALE_LEVELS + 16 * _ROW
LEVELS = MINIMUM_LEVELS + 16 * _ROW  # bytes (256, 16)
PACKED = LEVELS + 256 * N  # bytes (210, 16) at most
BLOCK = PACKED + 256 * N  # float32 (16,): what a block has once
SCRATCH = BLOCK + 2 * _ROW


@njit
def load_blocks(x: int, tile: int, first: int, last: int, period: int, size: int = 256) -> None:
    """Blocks first .. first + 15, at most `last`, of `size` float32 to a tile (size, 16); b is found at b % period."""
    for lane in range(N):
        row = x + 4 * size * (min(first + lane, last) % period)
        for i in range(size):
            put_f(tile + 4 * (i * N + lane), get_f(row + 4 * i))


@njit
def mean_square(scratch: int, factor: np.float32) -> Any:
    """factor * (sum of x^2) / 256 of each block."""
    total = splat_f(np.float32(0))
    for i in range(256):
        v = load_f(scratch + X + 64 * i)
        total = total + v * v
    return splat_f(factor) * total / splat_f(np.float32(256))


@njit
def weigh(scratch: int, at: int, n: int, sigma2: Any) -> Any:
    """importance * sqrt(sigma2 + x^2) of elements at .. at + n - 1 to WEIGHTS; their sum."""
    total = splat_f(np.float32(0))
    for i in range(n):
        v = load_f(scratch + X + 64 * (at + i))
        w = load_f(scratch + IMPORTANCE + 64 * (at + i)) * sqrt(sigma2 + v * v)
        store_f(scratch + WEIGHTS + 64 * i, w)
        total = total + w
    return total


@njit
def searched_affine(scratch: int, at: int, n: int, top: int, inverse: Any, base: Any) -> None:
    """The levels of a search to LEVELS: they stay where the block's scale turns out to be zero."""
    lowest, highest = splat_i(np.int32(0)), splat_i(np.int32(top))
    for i in range(n):
        v = load_f(scratch + X + 64 * (at + i))
        store_u8(scratch + LEVELS + N * (at + i), clamp(nearest(inverse * (v - base)), lowest, highest))


@njit
def final_affine(scratch: int, at: int, n: int, top: int, d: Any, m: Any) -> None:
    """The levels nearest to (x + m) / d, unless d is zero."""
    lowest, highest = splat_i(np.int32(0)), splat_i(np.int32(top))
    none = d == splat_f(np.float32(0))
    for i in range(n):
        target = scratch + LEVELS + N * (at + i)
        q = clamp(nearest((load_f(scratch + X + 64 * (at + i)) + m) / d), lowest, highest)
        store_u8(target, select(none, load_u8(target), q))


@njit
def final_signed(scratch: int, at: int, n: int, half: int, d: Any) -> None:
    """The levels nearest to x / d, counted from 0, unless d is zero."""
    lowest, highest, middle = splat_i(np.int32(-half)), splat_i(np.int32(half - 1)), splat_i(np.int32(half))
    none = d == splat_f(np.float32(0))
    for i in range(n):
        target = scratch + LEVELS + N * (at + i)
        q = clamp(nearest(load_f(scratch + X + 64 * (at + i)) / d), lowest, highest) + middle
        store_u8(target, select(none, load_u8(target), q))


# --- packing ------------------------------------------------------------------------------------------------


@njit
def _level(scratch: int, i: int) -> Any:
    return load_u8(scratch + LEVELS + N * i)


@njit
def pack_pairs(scratch: int, out: int, first: int, last: int, stride: int, offset: int) -> None:
    """Two bits of every level to 64 bytes: byte l of a half holds those of l, l + 32, l + 64 and l + 96."""
    two, three = splat_i(np.int32(2)), splat_i(np.int32(3))
    four, six = splat_i(np.int32(4)), splat_i(np.int32(6))
    for j in range(64):
        i = j // 32 * 128 + j % 32
        low = (_level(scratch, i) & three) | ((_level(scratch, i + 32) & three) << two)
        high = ((_level(scratch, i + 64) & three) << four) | ((_level(scratch, i + 96) & three) << six)
        store_u8(scratch + PACKED + N * j, low | high)
    put_bytes(scratch + PACKED, 64, out, first, last, stride, offset)


@njit
def pack_bits(scratch: int, shift: int, out: int, first: int, last: int, stride: int, offset: int) -> None:
    """Bit `shift` of every level to 32 bytes: bit j of byte i is that of level 32 * j + i."""
    one, move = splat_i(np.int32(1)), splat_i(np.int32(shift))
    for i in range(32):
        byte = splat_i(np.int32(0))
        for j in range(8):
            byte = byte | (((_level(scratch, 32 * j + i) >> move) & one) << splat_i(np.int32(j)))
        store_u8(scratch + PACKED + N * i, byte)
    put_bytes(scratch + PACKED, 32, out, first, last, stride, offset)


@njit
def pack_nibbles(
    scratch: int, apart: int, out: int, first: int, last: int, stride: int, offset: int, n_bytes: int = 128
) -> None:
    """Four bits of every level to `n_bytes`: a byte holds those of levels i and i + apart (16, 32 or 64)."""
    low, four = splat_i(np.int32(15)), splat_i(np.int32(4))
    for j in range(n_bytes):
        i = j // apart * 2 * apart + j % apart
        byte = (_level(scratch, i) & low) | ((_level(scratch, i + apart) & low) << four)
        store_u8(scratch + PACKED + N * j, byte)
    put_bytes(scratch + PACKED, n_bytes, out, first, last, stride, offset)


@njit
def pack_sixes(scratch: int, out: int, first: int, last: int, stride: int) -> None:
    """Levels below 64 as Q6_K has them: 128 bytes of nibbles, then 64 of two bits."""
    pack_nibbles(scratch, 64, out, first, last, stride, 0)
    two, three = splat_i(np.int32(2)), splat_i(np.int32(3))
    four, six = splat_i(np.int32(4)), splat_i(np.int32(6))
    for j in range(64):
        i = j // 32 * 128 + j % 32
        low = ((_level(scratch, i) >> four) & three) | (((_level(scratch, i + 32) >> four) & three) << two)
        third, fourth = _level(scratch, i + 64) >> four, _level(scratch, i + 96) >> four
        store_u8(scratch + PACKED + N * j, low | ((third & three) << four) | ((fourth & three) << six))
    put_bytes(scratch + PACKED, 64, out, first, last, stride, 128)


@njit
def put_scales_6(packed: int, scales: int, minima: int) -> None:
    """Eight scales and minima, bytes 64 apart, to the 12 bytes of Q4_K and Q5_K."""
    for j in range(4):
        scale, high_scale = get_u8(scales + 64 * j), get_u8(scales + 64 * (j + 4))
        minimum, high_minimum = get_u8(minima + 64 * j), get_u8(minima + 64 * (j + 4))
        put_u8(packed + j, np.int32(scale | ((high_scale >> 4) << 6)))
        put_u8(packed + j + 4, np.int32(minimum | ((high_minimum >> 4) << 6)))
        put_u8(packed + j + 8, np.int32((high_scale & 15) | ((high_minimum & 15) << 4)))


@njit
def get_scale_6(packed: int, j: int) -> Any:
    """Scale and minimum j as they are read again (`get_scale_min_k4`)."""
    if j < 4:
        return get_u8(packed + j) & 63, get_u8(packed + j + 4) & 63
    both = get_u8(packed + j + 4)
    scale = (both & 15) | ((get_u8(packed + j - 4) >> 6) << 4)
    minimum = (both >> 4) | ((get_u8(packed + j) >> 6) << 4)
    return scale, minimum


@njit
def put_scale_3(packed: int, j: int, level: np.int32) -> None:
    """Scale j of sixteen, 0 .. 63, into the 12 zeroed bytes of Q3_K."""
    at = packed + j % 8
    put_u8(at, np.int32(get_u8(at) | ((level & 15) << (4 * (j // 8)))))
    at = packed + 8 + j % 4
    put_u8(at, np.int32(get_u8(at) | ((level >> 4) << (2 * (j // 4)))))
