"""Matrix products with IQ and TQ weights in blocks of 256, activations in the q8_k format.

Code books are read a row at a time, as matvec does it (blocks256.py); what comes out is then brought into registers'
order. Types of 16 values and of 32 weights a block are in matmul_block32.py.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils

from localmoe.kernels import blocks256
from localmoe.kernels.blocks256 import Block256
from localmoe.kernels.matmul_driver import UnpackCode, make_matmul
from localmoe.kernels.shapes import PITCH
from localmoe.kernels.simd import LANES
from localmoe.kernels.tile import F32T, F32V, I64T, Value, gather16, loop, store_vectors
from localmoe.kernels.tile_scaled import BLOCK, make_scaled_tile

_FLOATS = ir.VectorType(F32T, 16)


def _room(b: Any, n_bytes: int) -> Value:
    """The address of memory of the function's own."""
    return Value(b, b.ptrtoint(cgutils.alloca_once(b, ir.ArrayType(ir.IntType(8), n_bytes)), I64T))


def _float_scales(kind: Block256, o: Value) -> Value:
    """d * factor * scale of 16 sub-blocks, float32."""
    b = o.b
    half = b.bitcast(kind.half(o).v, ir.HalfType())
    d = b.fmul(b.fpext(half, F32T), ir.Constant(F32T, kind.factor))
    one = b.insert_element(ir.Constant(_FLOATS, ir.Undefined), d, ir.IntType(32)(0))
    every = b.shuffle_vector(one, one, ir.Constant(ir.VectorType(ir.IntType(32), 16), [0] * 16))
    return Value(b, b.fmul(b.sitofp(kind.scales(o).v, _FLOATS), every))


def _make_unpack(kind: Block256, name: str) -> UnpackCode:
    def unpack(block: Value, step: Value, weights: Value, scales: Value, mins: Value, factors: Value) -> None:
        b, n_scales = block.b, BLOCK // kind.sub
        rows, row_scales = _room(b, BLOCK * LANES), _room(b, 64 * LANES)
        with loop(b, LANES // 2) as pair:
            lanes = [pair * 2, pair * 2 + 1]
            blocks = [block + step * i for i in lanes]
            for i, o, vectors in zip(lanes, blocks, kind.weights(blocks), strict=True):
                for c, vector in enumerate(vectors):
                    (rows + i * BLOCK + 64 * c).store(vector)
                (row_scales + i * 64).store(_float_scales(kind, o))
        with loop(b, BLOCK // 16) as g:
            store_vectors(weights + g * (4 * PITCH), gather16(rows + g * 16, Value(b, I64T(BLOCK))))
        found = [v for q in range(4) for v in gather16(row_scales + 16 * q, Value(b, I64T(64)))]
        store_vectors(scales, [v.bits(F32V) for v in found[:: 16 // n_scales]])

    unpack.__qualname__ = f"unpack_{name}"
    return unpack


def _make(kind: Block256, name: str) -> Any:
    return make_matmul(
        _make_unpack(kind, name),
        make_scaled_tile(kind.sub, kind.offset, kind.most),
        unit=BLOCK,
        unit_bytes=kind.size,
        vectors=BLOCK // 4,
        scales=BLOCK // kind.sub,
    )


_iq4_xs = _make(blocks256.IQ4_XS, "iq4_xs")
_iq3_s = _make(blocks256.IQ3_S, "iq3_s")
_iq3_xxs = _make(blocks256.IQ3_XXS, "iq3_xxs")
_iq2_s = _make(blocks256.IQ2_S, "iq2_s")
_iq2_xs = _make(blocks256.IQ2_XS, "iq2_xs")
_iq2_xxs = _make(blocks256.IQ2_XXS, "iq2_xxs")
_iq1_s = _make(blocks256.IQ1_S, "iq1_s")
_iq1_m = _make(blocks256.IQ1_M, "iq1_m")
_tq1_0 = _make(blocks256.TQ1_0, "tq1_0")
_tq2_0 = _make(blocks256.TQ2_0, "tq2_0")


def matmul_iq4_xs(w, act, act_stride, in_idx, out, out_stride, out_idx, n_tok, r0, r1, n_cols, scratch):  # type: ignore[no-untyped-def]
    _iq4_xs(w, act, act_stride, in_idx, out, out_stride, out_idx, n_tok, r0, r1, n_cols, scratch)


def matmul_iq3_s(w, act, act_stride, in_idx, out, out_stride, out_idx, n_tok, r0, r1, n_cols, scratch):  # type: ignore[no-untyped-def]
    _iq3_s(w, act, act_stride, in_idx, out, out_stride, out_idx, n_tok, r0, r1, n_cols, scratch)


def matmul_iq3_xxs(w, act, act_stride, in_idx, out, out_stride, out_idx, n_tok, r0, r1, n_cols, scratch):  # type: ignore[no-untyped-def]
    _iq3_xxs(w, act, act_stride, in_idx, out, out_stride, out_idx, n_tok, r0, r1, n_cols, scratch)


def matmul_iq2_s(w, act, act_stride, in_idx, out, out_stride, out_idx, n_tok, r0, r1, n_cols, scratch):  # type: ignore[no-untyped-def]
    _iq2_s(w, act, act_stride, in_idx, out, out_stride, out_idx, n_tok, r0, r1, n_cols, scratch)


def matmul_iq2_xs(w, act, act_stride, in_idx, out, out_stride, out_idx, n_tok, r0, r1, n_cols, scratch):  # type: ignore[no-untyped-def]
    _iq2_xs(w, act, act_stride, in_idx, out, out_stride, out_idx, n_tok, r0, r1, n_cols, scratch)


def matmul_iq2_xxs(w, act, act_stride, in_idx, out, out_stride, out_idx, n_tok, r0, r1, n_cols, scratch):  # type: ignore[no-untyped-def]
    _iq2_xxs(w, act, act_stride, in_idx, out, out_stride, out_idx, n_tok, r0, r1, n_cols, scratch)


def matmul_iq1_s(w, act, act_stride, in_idx, out, out_stride, out_idx, n_tok, r0, r1, n_cols, scratch):  # type: ignore[no-untyped-def]
    _iq1_s(w, act, act_stride, in_idx, out, out_stride, out_idx, n_tok, r0, r1, n_cols, scratch)


def matmul_iq1_m(w, act, act_stride, in_idx, out, out_stride, out_idx, n_tok, r0, r1, n_cols, scratch):  # type: ignore[no-untyped-def]
    _iq1_m(w, act, act_stride, in_idx, out, out_stride, out_idx, n_tok, r0, r1, n_cols, scratch)


def matmul_tq1_0(w, act, act_stride, in_idx, out, out_stride, out_idx, n_tok, r0, r1, n_cols, scratch):  # type: ignore[no-untyped-def]
    _tq1_0(w, act, act_stride, in_idx, out, out_stride, out_idx, n_tok, r0, r1, n_cols, scratch)


def matmul_tq2_0(w, act, act_stride, in_idx, out, out_stride, out_idx, n_tok, r0, r1, n_cols, scratch):  # type: ignore[no-untyped-def]
    _tq2_0(w, act, act_stride, in_idx, out, out_stride, out_idx, n_tok, r0, r1, n_cols, scratch)
