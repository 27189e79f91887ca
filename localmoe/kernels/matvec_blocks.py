"""Matrix times one activation vector for blocks of 32 weights: Q8_0 ... Q5_1, IQ4_NL, MXFP4; "q8_0" activations.

Every kernel: (w, act, out, r0, r1, n_cols), all int64. `w` is the address of row 0 of a (rows, n_cols) matrix as the
file stores it, `act` that of a "q8_0" activation row; float32 results go to out + 4 * r for r in [r0, r1). No kernel
reads outside of a row's own bytes: a file may end there.

Two blocks fill a vector of 64 bytes, and the scales of four are made at a time; the blocks that a last step lacks
repeat its last one at d = 0. An offset of the weights (8 in Q4_0, 16 in Q5_0, and 128 where the hardware wants them
unsigned) starts the integer sum off at minus the offset times the block's sum of activations, an eighth of it in each
of the block's eight lanes. Layouts: ggml-common.h.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types

from localmoe.jit import njit
from localmoe.kernels.grids import half_power_of_two, of_sixteen
from localmoe.kernels.matvec_near import make_near
from localmoe.kernels.matvec_rows import by_row, ymm
from localmoe.kernels.matvec_ymm import five_bits, four_bits, make_rows, of_values
from localmoe.kernels.simd import (
    DOT4_BIAS,
    Vec,
    add,
    ask_ahead,
    concat,
    dot4,
    dot4_biased,
    dot4s,
    fma,
    hsum,
    intrinsic,
    ld_f32,
    ld_i32,
    llvm_type,
    load_at,
    load_halves_apart,
    make_add_bits,
    make_constant,
    make_field,
    make_load,
    make_load_twice,
    make_shuffle,
    make_shuffle2,
    make_splat,
    mul,
    to_f32,
)
from localmoe.kernels.tile import Value
from localmoe.quants.codebooks import e2m1, nonlinear

_B32, _B64 = Vec("i8", 32), Vec("i8", 64)
_I4, _I16 = Vec("i32", 4), Vec("i32", 16)
_F4, _F8, _F16 = Vec("f32", 4), Vec("f32", 8), Vec("f32", 16)

_load_b32 = make_load(_B32)
_load_b64 = make_load(_B64)
_load_b16_twice = make_load_twice(_B32)
_load_f4 = make_load(_F4)
_load_i4 = make_load(_I4)
_four_halves = load_halves_apart(1, 4)
_four_pairs = load_halves_apart(2, 4)
_splat_f1 = make_splat(Vec("f32", 1))
_splat_i1 = make_splat(Vec("i32", 1))
_zero_i16 = make_constant(_I16, 0)
_zero_f16 = make_constant(_F16, 0)
_zero_f8 = make_constant(_F8, 0)
_each_01, _each_23 = make_shuffle([0] * 8 + [1] * 8), make_shuffle([2] * 8 + [3] * 8)
_each_02, _each_46 = make_shuffle([0] * 8 + [2] * 8), make_shuffle([4] * 8 + [6] * 8)
_odd = make_shuffle((1, 3, 5, 7))
_interleave = make_shuffle2((0, 4, 1, 5, 2, 6, 3, 7))
_nibbles = make_field([0, 4, 0, 4], 0x0F)
_add_fifth = make_add_bits(16)


@njit(fast=True, inline=True)
def _q4(at0, at1):  # type: ignore[no-untyped-def]
    """64 weights from two runs of 16 bytes; each run's low nibbles come before its high ones."""
    return _nibbles(concat(_load_b16_twice(at0), _load_b16_twice(at1)))


@njit(fast=True, inline=True)
def _q8_0_weights(o0, o1):  # type: ignore[no-untyped-def]
    return concat(_load_b32(o0 + 2), _load_b32(o1 + 2))


@njit(fast=True, inline=True)
def _q4_0_weights(o0, o1):  # type: ignore[no-untyped-def]
    return _q4(o0 + 2, o1 + 2)


@njit(fast=True, inline=True)
def _q4_1_weights(o0, o1):  # type: ignore[no-untyped-def]
    return _q4(o0 + 4, o1 + 4)


@njit(fast=True, inline=True)
def _q5_0_weights(o0, o1):  # type: ignore[no-untyped-def]
    return _add_fifth(_q4(o0 + 6, o1 + 6), o0 + 2, o1 + 2)


@njit(fast=True, inline=True)
def _q5_1_weights(o0, o1):  # type: ignore[no-untyped-def]
    return _add_fifth(_q4(o0 + 8, o1 + 8), o0 + 4, o1 + 4)


@njit(fast=True, inline=True)
def _q(q0, q1):  # type: ignore[no-untyped-def]
    return concat(_load_b32(q0), _load_b32(q1))


def _make_sixteen(values: np.ndarray, plus: int) -> Any:
    """An intrinsic that gives values[i] + plus for 64 bytes i < 16."""
    table = [(int(value) + plus) & 0xFF for value in values]

    @intrinsic
    def look_up(typingctx: Any, index: Any) -> Any:
        return index(index), lambda ctx, b, sig, args: of_sixteen(table, Value(b, args[0])).v

    return look_up


_iq4_value = _make_sixteen(nonlinear(), DOT4_BIAS)
_mxfp4_value = _make_sixteen(e2m1(), 16)


@njit(fast=True, inline=True)
def _iq4_nl_weights(o0, o1):  # type: ignore[no-untyped-def]
    return _iq4_value(_q4(o0 + 2, o1 + 2))


@njit(fast=True, inline=True)
def _mxfp4_weights(o0, o1):  # type: ignore[no-untyped-def]
    return _mxfp4_value(_q4(o0 + 1, o1 + 1))


@intrinsic
def _four_powers(typingctx: Any, o0: Any, o1: Any, o2: Any, o3: Any) -> Any:
    """2 ** (e - 128) of four blocks' exponents, as float32; what lies below normal numbers as well."""

    def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
        word = ir.IntType(32)
        es = [b.zext(load_at(b, o, ir.IntType(8)), word) for o in args]
        both = b.or_(b.or_(es[0], b.shl(es[1], word(8))), b.or_(b.shl(es[2], word(16)), b.shl(es[3], word(24))))
        wide = b.zext(b.bitcast(both, ir.VectorType(ir.IntType(8), 4)), llvm_type(_I4))
        return half_power_of_two(Value(b, wide)).v

    return _F4(types.int64, types.int64, types.int64, types.int64), codegen


def _make_symmetric(offset: int, product: Any) -> Any:
    """Adds four blocks whose weights stand `offset` too high."""
    take = make_constant(_I4, -(offset // 8))

    @njit(fast=True, inline=True)
    def four(sums, d, w0, w1, q0, q1, da, s):  # type: ignore[no-untyped-def]
        acc0, acc1, mins = sums
        start = mul(s, take())
        both = mul(d, da)
        t0 = product(_each_01(start), w0, q0)
        t1 = product(_each_23(start), w1, q1)
        return fma(to_f32(t0), _each_01(both), acc0), fma(to_f32(t1), _each_23(both), acc1), mins

    return four


@njit(fast=True, inline=True)
def _four_with_minimum(sums, d, w0, w1, q0, q1, da, s):  # type: ignore[no-untyped-def]
    """Adds four blocks whose scales alternate with minima; a minimum times the sum goes to the odd lanes of `mins`."""
    acc0, acc1, mins = sums
    both = mul(d, _interleave(da, s))
    t0 = dot4(_zero_i16(), w0, q0)
    t1 = dot4(_zero_i16(), w1, q1)
    return fma(to_f32(t0), _each_02(both), acc0), fma(to_f32(t1), _each_46(both), acc1), add(mins, both)


def _make_near(scales: Any, weights: Any, size: int) -> Any:
    """What `matvec_near` makes, from loads of each part."""

    @njit(fast=True, inline=True)
    def near(o):  # type: ignore[no-untyped-def]
        o1 = o + size
        o2 = o1 + size
        o3 = o2 + size
        return scales(o, o1, o2, o3), weights(o, o1), weights(o2, o3)

    return near


@njit(fast=True, inline=True)
def _up_to_three(at, left):  # type: ignore[no-untyped-def]
    """Float32 of the `left` blocks that there are, and zeros."""
    x1 = ld_f32(at + 4) if left > 1 else np.float32(0.0)
    x2 = ld_f32(at + 8) if left > 2 else np.float32(0.0)
    return concat(concat(_splat_f1(ld_f32(at)), _splat_f1(x1)), concat(_splat_f1(x2), _splat_f1(np.float32(0.0))))


@njit(fast=True, inline=True)
def _sums_of_up_to_three(at, left):  # type: ignore[no-untyped-def]
    """Int32 of the `left` blocks that there are, and the last one's again."""
    s2 = _splat_i1(ld_i32(at + 4 * (left - 1)))
    return concat(concat(_splat_i1(ld_i32(at)), _splat_i1(ld_i32(at + 4 * min(1, left - 1)))), concat(s2, s2))


def _make_row(four: Any, weights: Any, size: int, scales: Any = _four_halves, near: Any = None) -> Any:
    """One row's product from blocks of `size` bytes, four at a time; `near` reads four that lie side by side."""
    has_minimum = four is _four_with_minimum  # which wants d * sum, behind the sums
    load_s, last_s = (_load_f4, _up_to_three) if has_minimum else (_load_i4, _sums_of_up_to_three)
    near = near or _make_near(scales, weights, size)
    lines = -(-4 * size // 64)

    @njit(fast=True, inline=True)
    def row(o, act, n):  # type: ignore[no-untyped-def]
        n_blocks = n // 32
        q = act
        ds = act + n
        ss = ds + 4 * n_blocks * (1 + has_minimum)
        sums = _zero_f16(), _zero_f16(), _zero_f8()  # one sum alone would wait for itself twice a turn
        for _ in range(n_blocks // 4):
            for line in range(lines):
                ask_ahead(o + 64 * line)
            d, w0, w1 = near(o)
            sums = four(sums, d, w0, w1, _load_b64(q), _load_b64(q + 64), _load_f4(ds), load_s(ss))
            o += 4 * size
            q += 128
            ds += 16
            ss += 16
        left = n_blocks % 4
        if left:
            i1 = min(1, left - 1)
            i2 = left - 1
            o1 = o + i1 * size
            o2 = o + i2 * size
            q1 = q + 32 * i1
            q2 = q + 32 * i2
            w0 = weights(o, o1)
            w1 = weights(o2, o2)
            sums = four(
                sums, scales(o, o1, o2, o2), w0, w1, _q(q, q1), _q(q2, q2), _up_to_three(ds, left), last_s(ss, left)
            )
        acc0, acc1, mins = sums
        return hsum(add(acc0, acc1)) + hsum(_odd(mins))

    return row


_less_8, _less_16 = _make_symmetric(8, dot4), _make_symmetric(16, dot4)
_rows_q8_0 = by_row(_make_row(_make_symmetric(DOT4_BIAS, dot4_biased), _q8_0_weights, 34), 32, 34)
_iq4_dot, _iq4_values = dot4 if DOT4_BIAS else dot4s, (nonlinear().astype(int) + DOT4_BIAS).tolist()
_near_q5_1 = make_near(24, 2, 8, fifth=4)
_rows_q4_0 = (
    make_rows("rows_q4_0", 18, four_bits(2), 4, offset=8)
    if ymm("q4_0")
    else by_row(_make_row(_less_8, _q4_0_weights, 18, near=make_near(18, 1, 2)), 32, 18)
)
_rows_q5_0 = (
    make_rows("rows_q5_0", 22, five_bits(6), 5, offset=16)
    if ymm("q5_0")
    else by_row(_make_row(_less_16, _q5_0_weights, 22, near=make_near(22, 1, 6, fifth=2)), 32, 22)
)
_rows_iq4_nl = (
    make_rows("rows_iq4_nl", 18, of_values(2, _iq4_values), 8, offset=DOT4_BIAS)
    if ymm("iq4_nl")
    else by_row(_make_row(_make_symmetric(DOT4_BIAS, _iq4_dot), _iq4_nl_weights, 18), 32, 18)
)
_rows_mxfp4 = (
    make_rows("rows_mxfp4", 17, of_values(1, (e2m1() + 16).tolist()), 5, offset=16, power=True)
    if ymm("mxfp4")
    else by_row(_make_row(_less_16, _mxfp4_weights, 17, _four_powers), 32, 17)
)
_rows_q4_1 = (
    make_rows("rows_q4_1", 20, four_bits(4), 4, minimum=True)
    if ymm("q4_1")
    else by_row(_make_row(_four_with_minimum, _q4_1_weights, 20, _four_pairs, make_near(20, 2, 4)), 32, 20)
)
_rows_q5_1 = (
    make_rows("rows_q5_1", 24, five_bits(8), 5, minimum=True)
    if ymm("q5_1")
    else by_row(_make_row(_four_with_minimum, _q5_1_weights, 24, _four_pairs, _near_q5_1), 32, 24)
)


def matvec_q8_0(w: int, act: int, out: int, r0: int, r1: int, n_cols: int) -> None:
    _rows_q8_0((w, act, out, r0, r1, n_cols))


def matvec_q4_0(w: int, act: int, out: int, r0: int, r1: int, n_cols: int) -> None:
    _rows_q4_0((w, act, out, r0, r1, n_cols))


def matvec_q4_1(w: int, act: int, out: int, r0: int, r1: int, n_cols: int) -> None:
    _rows_q4_1((w, act, out, r0, r1, n_cols))


def matvec_q5_0(w: int, act: int, out: int, r0: int, r1: int, n_cols: int) -> None:
    _rows_q5_0((w, act, out, r0, r1, n_cols))


def matvec_q5_1(w: int, act: int, out: int, r0: int, r1: int, n_cols: int) -> None:
    _rows_q5_1((w, act, out, r0, r1, n_cols))


def matvec_iq4_nl(w: int, act: int, out: int, r0: int, r1: int, n_cols: int) -> None:
    _rows_iq4_nl((w, act, out, r0, r1, n_cols))


def matvec_mxfp4(w: int, act: int, out: int, r0: int, r1: int, n_cols: int) -> None:
    _rows_mxfp4((w, act, out, r0, r1, n_cols))
