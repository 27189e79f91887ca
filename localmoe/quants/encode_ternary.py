"""TQ1_0 and TQ2_0 encoding, sixteen blocks of 256 side by side: -1, 0 or 1 times the largest magnitude.

Source: ggml-quants.c, `quantize_row_tq1_0_ref` and `quantize_row_tq2_0_ref`. Encoders take addresses: n blocks at `x`,
blocks at `out`, `SCRATCH` bytes of scratch.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from localmoe.jit import njit

from .fit import extreme
from .lanes import (
    N,
    load_f,
    load_u8,
    round_away,
    select,
    splat_f,
    splat_i,
    store_f,
    store_u8,
    to_f,
    truncate,
)  # fmt: skip
from .legacy import put_bytes, put_header
from .sixteen import BLOCK, LEVELS, PACKED, SCRATCH, X, load_blocks, pack_pairs

__all__ = ["SCRATCH"]


@njit
def _put_trits(scratch: int) -> Any:
    """0, 1 or 2 for every element to LEVELS; the scale."""
    zero, one = splat_f(np.float32(0)), splat_i(np.int32(1))
    d, _ = extreme(scratch + X, 256)
    inverse = select(d == zero, zero, splat_f(np.float32(1)) / d)
    for i in range(256):
        level = truncate(round_away(load_f(scratch + X + 64 * i) * inverse)) + one
        store_u8(scratch + LEVELS + N * i, level)
    store_f(scratch + BLOCK, d)


@njit
def _pack_trits(scratch: int, at: int, apart: int, n: int, byte: int) -> None:
    """n trits that are `apart`, the first the most significant, as a fraction of 3^5 in 256ths, rounded up."""
    total = splat_i(np.int32(0))
    for i in range(5):
        total = total + total + total  # the last of four trits is followed by a zero
        if i < n:
            total = total + load_u8(scratch + LEVELS + N * (at + apart * i))
    scaled = to_f((total << splat_i(np.int32(8))) + splat_i(np.int32(242)))
    store_u8(scratch + PACKED + N * byte, truncate(scaled / splat_f(np.float32(243))))


@njit
def encode_tq1_0(x: int, out: int, n: int, scratch: int) -> None:
    """Five trits a byte, 32 and then 16 apart, and four a byte in the last four."""
    for first in range(0, n, N):
        load_blocks(x, scratch + X, first, n - 1, n)
        _put_trits(scratch)
        for m in range(32):
            _pack_trits(scratch, m, 32, 5, m)
        for m in range(16):
            _pack_trits(scratch, 160 + m, 16, 5, 32 + m)
        for m in range(4):
            _pack_trits(scratch, 240 + m, 4, 4, 48 + m)
        put_bytes(scratch + PACKED, 52, out, first, n - 1, 54, 0)
        put_header(scratch + BLOCK, out, first, n - 1, 54, 52)


@njit
def encode_tq2_0(x: int, out: int, n: int, scratch: int) -> None:
    """Four trits a byte, 32 apart."""
    for first in range(0, n, N):
        load_blocks(x, scratch + X, first, n - 1, n)
        _put_trits(scratch)
        pack_pairs(scratch, out, first, n - 1, 66, 0)
        put_header(scratch + BLOCK, out, first, n - 1, 66, 64)
