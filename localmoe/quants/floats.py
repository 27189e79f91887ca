"""F32, F16 and BF16: one element a block. Widening, rounding, and the search for NaN and infinity."""

from __future__ import annotations

import numpy as np

from localmoe.jit import njit

from .lanes import (
    N,
    bits,
    get_f,
    get_f16,
    larger,
    largest,
    load_f,
    load_f16,
    put_f,
    put_f16,
    splat_i,
    store_f,
    store_f16,
)  # fmt: skip

_INFINITY = 0x7F800000
_NO_SIGN = 0x7FFFFFFF


def decode_f32(raw: np.ndarray) -> np.ndarray:
    """float32 (..., cols) from its bytes (..., 4 * cols)."""
    return raw.view(np.float32).copy()


def decode_f16(raw: np.ndarray) -> np.ndarray:
    """float32 (..., cols) from float16 bytes (..., 2 * cols)."""
    return raw.view(np.float16).astype(np.float32)


def decode_bf16(raw: np.ndarray) -> np.ndarray:
    """float32 (..., cols) from bfloat16 bytes (..., 2 * cols): the upper half of a float32."""
    return (raw.view(np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32)


@njit
def widen_f16(source: int, out: int, n: int) -> None:
    """n float16 at address `source` as float32 at `out`."""
    whole = n // N * N
    for i in range(0, whole, N):
        store_f(out + 4 * i, load_f16(source + 2 * i))
    for i in range(whole, n):
        put_f(out + 4 * i, get_f16(source + 2 * i))


@njit
def widen_bf16(source: np.ndarray, out: np.ndarray) -> None:
    """bfloat16 bits (n,) uint16 as the bits of float32, into (n,) uint32."""
    for i in range(source.size):
        out[i] = np.uint32(source[i]) << np.uint32(16)


@njit
def encode_f16(x: int, out: int, n: int, scratch: int) -> None:  # noqa: ARG001
    """n float32 at `x` to float16 at `out`, to nearest even."""
    whole = n // N * N
    for i in range(0, whole, N):
        store_f16(out + 2 * i, load_f(x + 4 * i))
    for i in range(whole, n):
        put_f16(out + 2 * i, get_f(x + 4 * i))


@njit
def encode_bf16(x: np.ndarray, out: np.ndarray) -> None:
    """float32 bits (n,) uint32 to bfloat16 bits (n,) uint16: to nearest even, a NaN stays one (made quiet)."""
    for i in range(x.size):
        u = x[i]
        rounded = (u + (np.uint32(0x7FFF) + ((u >> np.uint32(16)) & np.uint32(1)))) >> np.uint32(16)
        quiet = (u >> np.uint32(16)) | np.uint32(64)
        out[i] = np.uint16(quiet if (u & np.uint32(_NO_SIGN)) > np.uint32(_INFINITY) else rounded)


@njit
def all_finite(x: np.ndarray) -> bool:
    """Whether no element of (n,) float32 is NaN or infinite. The larger of bit patterns, so that it vectorises."""
    address, n = x.ctypes.data, x.size
    whole = n // N * N
    sign = splat_i(np.int32(_NO_SIGN))
    most = splat_i(np.int32(0))
    for i in range(0, whole, N):
        most = larger(most, bits(load_f(address + 4 * i)) & sign)
    if largest(most) >= _INFINITY:
        return False
    for i in range(whole, n):  # noqa: SIM110
        if not np.isfinite(x[i]):
            return False
    return True
