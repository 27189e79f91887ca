"""Matrix times one activation vector for blocks of 32 weights: Q8_0, Q4_0, Q4_1, Q5_0, Q5_1; "q8_0" activations.

Every kernel: (w, act, out, r0, r1, n_cols), all int64. `w` is the address of row 0 of a (rows, n_cols) matrix as the
file stores it, `act` that of a "q8_0" activation row; float32 results go to out + 4 * r for r in [r0, r1). No kernel
reads outside of a row's own bytes: a file may end there.

Two blocks fill a vector of 64 bytes; a last odd block goes through half a vector. An offset of the weights (8 in Q4_0,
16 in Q5_0, and 128 where the hardware wants them unsigned) starts the integer sum off at minus the offset times the
block's sum of activations, an eighth of it in each of the block's eight lanes. Layouts: ggml-common.h.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from localmoe.jit import njit
from localmoe.kernels.simd import (
    DOT4_BIAS,
    Vec,
    add,
    bit_or,
    concat,
    dot4,
    dot4_biased,
    fma,
    fold,
    hsum,
    ld_f16,
    ld_f32,
    ld_i32,
    load_bits,
    load_bits_pair,
    load_halves_apart,
    make_constant,
    make_load,
    make_load_twice,
    make_mask,
    make_shift,
    make_shuffle,
    make_shuffle2,
    make_splat,
    mul,
    st_f32,
    to_f32,
)

_B32, _B64 = Vec("i8", 32), Vec("i8", 64)
_I2, _I8, _I16 = Vec("i32", 2), Vec("i32", 8), Vec("i32", 16)
_F2, _F8, _F16 = Vec("f32", 2), Vec("f32", 8), Vec("f32", 16)

_load_b32 = make_load(_B32)
_load_b64 = make_load(_B64)
_load_b16_twice = make_load_twice(_B32)
_load_f2 = make_load(_F2)
_load_i2 = make_load(_I2)
_two_halves = load_halves_apart(1)
_four_halves = load_halves_apart(2)
_splat_f8 = make_splat(_F8)
_splat_i8 = make_splat(_I8)
_zero_i8 = make_constant(_I8, 0)
_zero_i16 = make_constant(_I16, 0)
_zero_f16 = make_constant(_F16, 0)
_zero_f8 = make_constant(_F8, 0)
_eighth = make_constant(_F2, 0.125)
_each = make_shuffle([0] * 8 + [1] * 8)  # lane 0 for the first block, lane 1 for the second
_even_each = make_shuffle([0] * 8 + [2] * 8)
_odd_each = make_shuffle([1] * 8 + [3] * 8)
_interleave = make_shuffle2((0, 2, 1, 3))
_nibbles_32 = make_shift("lshr", Vec("i16", 16), [0] * 8 + [4] * 8)
_nibbles_64 = make_shift("lshr", Vec("i16", 32), ([0] * 8 + [4] * 8) * 2)
_low4_32 = make_mask(_B32, 0x0F)
_low4_64 = make_mask(_B64, 0x0F)
_fifth_32 = load_bits(16)
_fifth_64 = load_bits_pair(16)


@njit(fast=True, inline=True)
def _q4_pair(o0, o1):  # type: ignore[no-untyped-def]
    """64 weights from two runs of 16 bytes; each run's low nibbles come before its high ones."""
    return _low4_64(_nibbles_64(concat(_load_b16_twice(o0), _load_b16_twice(o1))))


@njit(fast=True, inline=True)
def _q4_one(o):  # type: ignore[no-untyped-def]
    return _low4_32(_nibbles_32(_load_b16_twice(o)))


# One table row a type: how 64 weights of two blocks and 32 of one block are read, given the blocks' addresses.


@njit(fast=True, inline=True)
def _q8_0_pair(o0, o1):  # type: ignore[no-untyped-def]
    return concat(_load_b32(o0 + 2), _load_b32(o1 + 2))


@njit(fast=True, inline=True)
def _q8_0_one(o):  # type: ignore[no-untyped-def]
    return _load_b32(o + 2)


@njit(fast=True, inline=True)
def _q4_0_pair(o0, o1):  # type: ignore[no-untyped-def]
    return _q4_pair(o0 + 2, o1 + 2)


@njit(fast=True, inline=True)
def _q4_0_one(o):  # type: ignore[no-untyped-def]
    return _q4_one(o + 2)


@njit(fast=True, inline=True)
def _q4_1_pair(o0, o1):  # type: ignore[no-untyped-def]
    return _q4_pair(o0 + 4, o1 + 4)


@njit(fast=True, inline=True)
def _q4_1_one(o):  # type: ignore[no-untyped-def]
    return _q4_one(o + 4)


@njit(fast=True, inline=True)
def _q5_0_pair(o0, o1):  # type: ignore[no-untyped-def]
    return bit_or(_q4_pair(o0 + 6, o1 + 6), _fifth_64(o0 + 2, o1 + 2))


@njit(fast=True, inline=True)
def _q5_0_one(o):  # type: ignore[no-untyped-def]
    return bit_or(_q4_one(o + 6), _fifth_32(o + 2))


@njit(fast=True, inline=True)
def _q5_1_pair(o0, o1):  # type: ignore[no-untyped-def]
    return bit_or(_q4_pair(o0 + 8, o1 + 8), _fifth_64(o0 + 4, o1 + 4))


@njit(fast=True, inline=True)
def _q5_1_one(o):  # type: ignore[no-untyped-def]
    return bit_or(_q4_one(o + 8), _fifth_32(o + 4))


def _make_symmetric(pair: Any, one: Any, size: int, offset: int, product: Any) -> Any:
    """One row's product for [d][...] blocks of `size` bytes whose weights stand `offset` too high."""
    eighth = offset // 8
    take = make_constant(_I2, -eighth)

    @njit(fast=True, inline=True)
    def row(o, act, n):  # type: ignore[no-untyped-def]
        ds = act + n
        sums = ds + n // 8
        acc = _zero_f16()
        for p in range(n // 64):
            start = _each(mul(_load_i2(sums + 8 * p), take()))
            t = product(start, pair(o, o + size), _load_b64(act + 64 * p))
            d = mul(_two_halves(o, o + size), _load_f2(ds + 8 * p))
            acc = fma(to_f32(t), _each(d), acc)
            o += 2 * size
        half = fold(acc)
        if n % 64:
            b = n // 32 - 1
            start_one = _splat_i8(np.int32(ld_i32(sums + 4 * b) * -eighth))
            t_one = product(start_one, one(o), _load_b32(act + 32 * b))
            half = fma(to_f32(t_one), _splat_f8(ld_f16(o) * ld_f32(ds + 4 * b)), half)
        return hsum(half)

    return row


def _make_with_minimum(pair: Any, one: Any, size: int) -> Any:
    """One row's product for [d][m][...] blocks of `size` bytes."""

    @njit(fast=True, inline=True)
    def row(o, act, n):  # type: ignore[no-untyped-def]
        ds = act + n
        sums = ds + n // 8
        acc = _zero_f16()
        for p in range(n // 64):
            t = dot4(_zero_i16(), pair(o, o + size), _load_b64(act + 64 * p))
            da = _load_f2(ds + 8 * p)
            of_sum = mul(mul(to_f32(_load_i2(sums + 8 * p)), da), _eighth())
            d = mul(_four_halves(o, o + size), _interleave(da, of_sum))
            acc = add(fma(to_f32(t), _even_each(d), acc), _odd_each(d))
            o += 2 * size
        half = fold(acc)
        total = np.float32(0.0)
        if n % 64:
            b = n // 32 - 1
            t_one = dot4(_zero_i8(), one(o), _load_b32(act + 32 * b))
            da_one = ld_f32(ds + 4 * b)
            half = fma(to_f32(t_one), _splat_f8(ld_f16(o) * da_one), half)
            total = ld_f16(o + 2) * da_one * np.float32(ld_i32(sums + 4 * b))
        return hsum(half) + total

    return row


_row_q8_0 = _make_symmetric(_q8_0_pair, _q8_0_one, 34, DOT4_BIAS, dot4_biased)
_row_q4_0 = _make_symmetric(_q4_0_pair, _q4_0_one, 18, 8, dot4)
_row_q5_0 = _make_symmetric(_q5_0_pair, _q5_0_one, 22, 16, dot4)
_row_q4_1 = _make_with_minimum(_q4_1_pair, _q4_1_one, 20)
_row_q5_1 = _make_with_minimum(_q5_1_pair, _q5_1_one, 24)


def matvec_q8_0(w: int, act: int, out: int, r0: int, r1: int, n_cols: int) -> None:
    for r in range(r0, r1):
        st_f32(out + 4 * r, _row_q8_0(w + r * (n_cols // 32 * 34), act, n_cols))


def matvec_q4_0(w: int, act: int, out: int, r0: int, r1: int, n_cols: int) -> None:
    for r in range(r0, r1):
        st_f32(out + 4 * r, _row_q4_0(w + r * (n_cols // 32 * 18), act, n_cols))


def matvec_q4_1(w: int, act: int, out: int, r0: int, r1: int, n_cols: int) -> None:
    for r in range(r0, r1):
        st_f32(out + 4 * r, _row_q4_1(w + r * (n_cols // 32 * 20), act, n_cols))


def matvec_q5_0(w: int, act: int, out: int, r0: int, r1: int, n_cols: int) -> None:
    for r in range(r0, r1):
        st_f32(out + 4 * r, _row_q5_0(w + r * (n_cols // 32 * 22), act, n_cols))


def matvec_q5_1(w: int, act: int, out: int, r0: int, r1: int, n_cols: int) -> None:
    for r in range(r0, r1):
        st_f32(out + 4 * r, _row_q5_1(w + r * (n_cols // 32 * 24), act, n_cols))
