"""MXFP4 encoding, sixteen blocks of 32 side by side: one of fifteen values times a power of two.

Source: ggml-quants.c, `quantize_row_mxfp4_ref`. The encoder takes addresses: n blocks of 32 float32 at `x`, blocks at
`out`, `SCRATCH` bytes of scratch.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from gguf import quants

from localmoe.jit import njit

from .fit import extreme
from .lanes import (
    N,
    absolute,
    from_bits_1,
    get_f,
    get_u8,
    get_u16,
    load_f,
    put_f,
    put_u8,
    select,
    splat_f,
    splat_i,
    store_f,
    store_u8,
)  # fmt: skip
from .sixteen import BLOCK, LEVELS, SCRATCH, X, load_blocks, pack_nibbles

__all__ = ["SCRATCH"]

_VALUES = np.array(quants.MXFP4.kvalues, np.float32)  # twice the numbers of OCP's E2M1
_LOWEST = -149  # the exponent of the smallest float32
_TINY, _UP = np.float32(2.0**-126), np.float32(2.0**23)


def _rounded_up() -> np.ndarray:
    """For each exponent, how many mantissas below the next power of two have a float32 logarithm that reaches it."""
    exponents = np.arange(_LOWEST + 1, 129)[:, None]
    logarithms = exponents + np.log2(1 - np.arange(1, 200) * 2.0**-24)
    return np.asarray((logarithms.astype(np.float32) == exponents).sum(axis=1), np.int32)


_ROUNDED_UP = _rounded_up()


@njit
def _exponent(amax: int) -> np.int32:
    """floor(log2f(amax)) - 2 + 127 as the low byte it is stored in; 0 for 0. The logarithm is rounded to float32."""
    v, exponent = get_f(amax), np.int32(-127)
    if v == 0:
        return np.int32(0)
    if v < _TINY:
        put_f(amax, v * _UP)
        exponent = np.int32(-150)
    bits = np.int32(get_u16(amax) | (get_u16(amax + 2) << 16))
    exponent = np.int32(exponent + (bits >> 23))
    if (bits & 0x7FFFFF) + _ROUNDED_UP[exponent - _LOWEST] > 0x7FFFFF:
        exponent = np.int32(exponent + 1)
    return np.int32((exponent + 125) & 255)


@njit
def _half_scale(e: int) -> np.float32:
    """Half of 2^(e - 127), which is what the values, twice their size, are multiplied by."""
    return from_bits_1(np.int32(0x00200000 << e)) if e < 2 else from_bits_1(np.int32((e - 1) << 23))


@njit
def _nearest_index(v: Any, d: Any) -> Any:
    """The first of the values, times d, at the least distance."""
    best, least = splat_i(np.int32(0)), absolute(splat_f(_VALUES[0]) * d - v)
    for k in range(1, 16):
        distance = absolute(splat_f(_VALUES[k]) * d - v)
        closer = distance < least
        best = select(closer, splat_i(np.int32(k)), best)
        least = select(closer, distance, least)
    return best


@njit
def encode_mxfp4(x: int, out: int, n: int, scratch: int) -> None:
    """An exponent and sixteen pairs of nibbles."""
    for first in range(0, n, N):
        load_blocks(x, scratch + X, first, n - 1, n, 32)
        amax, _ = extreme(scratch + X, 32)
        store_f(scratch + BLOCK, amax)
        for lane in range(min(N, n - first)):
            target = out + 17 * (first + lane)
            put_u8(target, _exponent(scratch + BLOCK + 4 * lane))
            put_f(scratch + BLOCK + 4 * lane, _half_scale(get_u8(target)))
        d = load_f(scratch + BLOCK)
        for i in range(32):
            store_u8(scratch + LEVELS + N * i, _nearest_index(load_f(scratch + X + 64 * i), d))
        pack_nibbles(scratch, 16, out, first, n - 1, 17, 1, 16)
