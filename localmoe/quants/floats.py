"""F32, F16 and BF16: one element a block. Widening, rounding, and the search for NaN and infinity.

Compiled functions take addresses, so that one version serves arrays read-only and not, aligned and not.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from localmoe.jit import njit

from .lanes import (
    N,
    bits,
    get_bf16,
    get_f,
    get_f16,
    get_u8,
    get_u16,
    larger,
    largest,
    load_bf16,
    load_f,
    load_f16,
    load_u16,
    put_f,
    put_f16,
    put_u8,
    select,
    splat_i,
    store_f,
    store_f16,
    store_u16,
)  # fmt: skip

_INFINITY = 0x7F800000
_NO_SIGN = 0x7FFFFFFF


@njit
def widen_f16(source: int, out: int, n: int) -> None:
    """n float16 at address `source` as float32 at `out`."""
    whole = n // N * N
    for i in range(0, whole, N):
        store_f(out + 4 * i, load_f16(source + 2 * i))
    for i in range(whole, n):
        put_f(out + 4 * i, get_f16(source + 2 * i))


@njit
def widen_bf16(source: int, out: int, n: int) -> None:
    """n bfloat16 at address `source` as float32 at `out`."""
    whole = n // N * N
    for i in range(0, whole, N):
        store_f(out + 4 * i, load_bf16(source + 2 * i))
    for i in range(whole, n):
        put_f(out + 4 * i, get_bf16(source + 2 * i))


@njit
def encode_f16(x: int, out: int, n: int, scratch: int) -> None:  # noqa: ARG001
    """n float32 at `x` to float16 at `out`, to nearest even."""
    whole = n // N * N
    for i in range(0, whole, N):
        store_f16(out + 2 * i, load_f(x + 4 * i))
    for i in range(whole, n):
        put_f16(out + 2 * i, get_f(x + 4 * i))


@njit
def _round_bf16(x: Any) -> Any:
    """Upper halves of the lanes' bits, rounded to nearest even; a NaN stays one (made quiet)."""
    u, sixteen = bits(x), splat_i(np.int32(16))
    upper = u >> sixteen
    rounded = (u + (splat_i(np.int32(0x7FFF)) + (upper & splat_i(np.int32(1))))) >> sixteen
    nan = (u & splat_i(np.int32(_NO_SIGN))) > splat_i(np.int32(_INFINITY))
    return select(nan, upper | splat_i(np.int32(64)), rounded)


@njit
def encode_bf16(x: int, out: int, n: int, scratch: int) -> None:
    """n float32 at `x` to bfloat16 at `out`; the last few go through `scratch`."""
    whole = n // N * N
    for i in range(0, whole, N):
        store_u16(out + 2 * i, _round_bf16(load_f(x + 4 * i)))
    for i in range(whole, n):
        put_f(scratch + 4 * (i - whole), get_f(x + 4 * i))
    store_u16(scratch + 4 * N, _round_bf16(load_f(scratch)))
    for i in range(2 * (n - whole)):
        put_u8(out + 2 * whole + i, get_u8(scratch + 4 * N + i))


@njit
def all_finite(x: int, n: int) -> bool:
    """Whether none of n float32 at `x` is NaN or infinite. The largest bit pattern tells, and vectorises."""
    whole = n // N * N
    sign = splat_i(np.int32(_NO_SIGN))
    most = splat_i(np.int32(0))
    for i in range(0, whole, N):
        most = larger(most, bits(load_f(x + 4 * i)) & sign)
    if largest(most) >= _INFINITY:
        return False
    for i in range(whole, n):  # noqa: SIM110
        if not np.isfinite(get_f(x + 4 * i)):
            return False
    return True


@njit
def all_finite_16(source: int, n: int, exponent: int) -> bool:
    """Whether none of n 16-bit floats at `source` has all bits of the mask `exponent` set."""
    whole = n // N * N
    mask = splat_i(np.int32(exponent))
    most = splat_i(np.int32(0))
    for i in range(0, whole, N):
        most = larger(most, load_u16(source + 2 * i) & mask)
    if largest(most) == exponent:
        return False
    for i in range(whole, n):  # noqa: SIM110
        if (get_u16(source + 2 * i) & exponent) == exponent:
            return False
    return True


@njit
def first_bad_scale(blocks: int, n: int, stride: int, at: int, mask: int, also_at: int, also_mask: int) -> int:
    """The first of n blocks whose byte `at` has all bits of `mask`, and byte `also_at` those of `also_mask`, or -1."""
    for i in range(n):
        block = blocks + i * stride
        if (get_u8(block + at) & mask) == mask and (get_u8(block + also_at) & also_mask) == also_mask:
            return i
    return -1
