"""Matrix times one activation vector for the IQ and TQ types with blocks of 256 weights, "q8_k" activations.

Kernels are as those of matvec_k.py, with its loop over a row. What differs between types is in blocks256.py: a block
becomes four vectors of 64 bytes and 16 int16 scales, and what the bytes stand too high is taken away through sums of 16
activations. Types of 16 values and of 32 weights a block are in matvec_blocks.py.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types

from localmoe.jit import njit
from localmoe.kernels import blocks256
from localmoe.kernels.blocks256 import Block256
from localmoe.kernels.matvec_iq_ymm import (
    row_iq1_m,
    row_iq1_s,
    row_iq2_s,
    row_iq2_xs,
    row_iq2_xxs,
    row_iq3_s,
    row_iq3_xxs,
)
from localmoe.kernels.matvec_k import make_matvec_row, spreads
from localmoe.kernels.matvec_k_ymm import row_iq4_xs
from localmoe.kernels.matvec_rows import ymm
from localmoe.kernels.matvec_tq_ymm import row_tq1_0, row_tq2_0
from localmoe.kernels.simd import (
    Vec,
    concat,
    dot2,
    dot4_full_scaled,
    dot4_scaled,
    fma,
    intrinsic,
    llvm_type,
    make_constant,
    make_load,
    make_shuffle,
    mul,
    st_f32,
    to_f32,
    zero_extend,
)
from localmoe.kernels.tile import Value

_H16, _B64 = Vec("i16", 16), Vec("i8", 64)
_I16, _F2 = Vec("i32", 16), Vec("f32", 2)
_load_b64, _load_sums = make_load(_B64), make_load(_H16)
_zero_i16 = make_constant(_I16, 0)
_first_half, _second_half = make_shuffle(range(8)), make_shuffle(range(8, 16))
_of_lane_0, _of_lane_1 = (make_shuffle([i] * 16) for i in range(2))


def _make_weights(kind: Block256) -> Any:
    @intrinsic
    def weights(typingctx: Any, o0: Any, o1: Any) -> Any:
        """The eight vectors of two blocks."""

        def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
            both = kind.weights([Value(b, o) for o in args])
            return cgutils.pack_array(b, [vector.v for vectors in both for vector in vectors])

        return types.containers.UniTuple(_B64, 8)(types.int64, types.int64), codegen

    return weights


def _make_scales(kind: Block256) -> Any:
    @intrinsic
    def scales(typingctx: Any, o: Any) -> Any:
        return _H16(types.int64), lambda ctx, b, sig, args: kind.scales(Value(b, args[0])).v

    return scales


def _make_d(kind: Block256) -> Any:
    @intrinsic
    def d(typingctx: Any, o0: Any, o1: Any) -> Any:
        """Two blocks' d as float32."""

        def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
            low, high = (b.zext(kind.half(Value(b, o)).v, ir.IntType(32)) for o in args)
            both = b.or_(low, b.shl(high, ir.IntType(32)(16)))
            return b.fpext(b.bitcast(both, ir.VectorType(ir.HalfType(), 2)), llvm_type(_F2))

        return _F2(types.int64, types.int64), codegen

    return d


def _make_block(dot: Any, first: int) -> Any:
    """One block's sum from the scales of two, its own from lane `first` on."""
    s0, s1, s2, s3 = spreads(16, first)

    @njit(fast=True, inline=True)
    def block(start, scales, u0, u1, u2, u3, q):  # type: ignore[no-untyped-def]
        t = dot(start, u0, _load_b64(q), s0(scales))
        t = dot(t, u1, _load_b64(q + 64), s1(scales))
        t = dot(t, u2, _load_b64(q + 128), s2(scales))
        return to_f32(dot(t, u3, _load_b64(q + 192), s3(scales)))

    return block


def _make_row(kind: Block256) -> Any:
    weights, scales_of, d_of = _make_weights(kind), _make_scales(kind), _make_d(kind)
    dot = dot4_full_scaled if kind.signed else dot4_scaled
    first, second = _make_block(dot, 0), _make_block(dot, 16)
    offset, factor = make_constant(_I16, -kind.offset), make_constant(_F2, kind.factor)

    @njit(fast=True, inline=True)
    def pair(acc, o0, o1, q0, q1, s0, s1, da):  # type: ignore[no-untyped-def]
        scales = concat(scales_of(o0), scales_of(o1))
        start = mul(dot2(_zero_i16(), scales, concat(_load_sums(s0), _load_sums(s1))), offset())
        d = mul(mul(d_of(o0, o1), factor()), da)
        u0, u1, u2, u3, v0, v1, v2, v3 = weights(o0, o1)
        acc = fma(first(zero_extend(_first_half(start)), scales, u0, u1, u2, u3, q0), _of_lane_0(d), acc)
        return fma(second(zero_extend(_second_half(start)), scales, v0, v1, v2, v3, q1), _of_lane_1(d), acc)

    return make_matvec_row(pair, kind.size)


_row_iq4_xs = row_iq4_xs if ymm("iq4_xs") else _make_row(blocks256.IQ4_XS)
_row_iq3_s = row_iq3_s if ymm("iq3_s") else _make_row(blocks256.IQ3_S)
_row_iq3_xxs = row_iq3_xxs if ymm("iq3_xxs") else _make_row(blocks256.IQ3_XXS)
_row_iq2_s = row_iq2_s if ymm("iq2_s") else _make_row(blocks256.IQ2_S)
_row_iq2_xs = row_iq2_xs if ymm("iq2_xs") else _make_row(blocks256.IQ2_XS)
_row_iq2_xxs = row_iq2_xxs if ymm("iq2_xxs") else _make_row(blocks256.IQ2_XXS)
_row_iq1_s = row_iq1_s if ymm("iq1_s") else _make_row(blocks256.IQ1_S)
_row_iq1_m = row_iq1_m if ymm("iq1_m") else _make_row(blocks256.IQ1_M)
_row_tq1_0 = row_tq1_0 if ymm("tq1_0") else _make_row(blocks256.TQ1_0)
_row_tq2_0 = row_tq2_0 if ymm("tq2_0") else _make_row(blocks256.TQ2_0)


def matvec_iq4_xs(w: int, act: int, out: int, r0: int, r1: int, n_cols: int) -> None:
    for r in range(r0, r1):
        st_f32(out + 4 * r, _row_iq4_xs(w + r * (n_cols // 256 * 136), act, n_cols))


def matvec_iq3_s(w: int, act: int, out: int, r0: int, r1: int, n_cols: int) -> None:
    for r in range(r0, r1):
        st_f32(out + 4 * r, _row_iq3_s(w + r * (n_cols // 256 * 110), act, n_cols))


def matvec_iq3_xxs(w: int, act: int, out: int, r0: int, r1: int, n_cols: int) -> None:
    for r in range(r0, r1):
        st_f32(out + 4 * r, _row_iq3_xxs(w + r * (n_cols // 256 * 98), act, n_cols))


def matvec_iq2_s(w: int, act: int, out: int, r0: int, r1: int, n_cols: int) -> None:
    for r in range(r0, r1):
        st_f32(out + 4 * r, _row_iq2_s(w + r * (n_cols // 256 * 82), act, n_cols))


def matvec_iq2_xs(w: int, act: int, out: int, r0: int, r1: int, n_cols: int) -> None:
    for r in range(r0, r1):
        st_f32(out + 4 * r, _row_iq2_xs(w + r * (n_cols // 256 * 74), act, n_cols))


def matvec_iq2_xxs(w: int, act: int, out: int, r0: int, r1: int, n_cols: int) -> None:
    for r in range(r0, r1):
        st_f32(out + 4 * r, _row_iq2_xxs(w + r * (n_cols // 256 * 66), act, n_cols))


def matvec_iq1_s(w: int, act: int, out: int, r0: int, r1: int, n_cols: int) -> None:
    for r in range(r0, r1):
        st_f32(out + 4 * r, _row_iq1_s(w + r * (n_cols // 256 * 50), act, n_cols))


def matvec_iq1_m(w: int, act: int, out: int, r0: int, r1: int, n_cols: int) -> None:
    for r in range(r0, r1):
        st_f32(out + 4 * r, _row_iq1_m(w + r * (n_cols // 256 * 56), act, n_cols))


def matvec_tq1_0(w: int, act: int, out: int, r0: int, r1: int, n_cols: int) -> None:
    for r in range(r0, r1):
        st_f32(out + 4 * r, _row_tq1_0(w + r * (n_cols // 256 * 54), act, n_cols))


def matvec_tq2_0(w: int, act: int, out: int, r0: int, r1: int, n_cols: int) -> None:
    for r in range(r0, r1):
        st_f32(out + 4 * r, _row_tq2_0(w + r * (n_cols // 256 * 66), act, n_cols))
