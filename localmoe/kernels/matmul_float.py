"""Matrix products with float32, float16 and bfloat16 weights: float32 activations, FMA, float32 sums.

A few tokens are multiplied in the file's order (matmul_few.py), with sums in another order than many: a token's result
is the same bits whatever tokens are beside it, as long as they are few or many. For many, weights are widened to
float32 while unpacking. A chunk's products are summed apart and then added to the output row, which keeps the rounding
error of long rows that of `FLOAT_CHUNK` terms.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir

from localmoe.kernels.matmul_driver import FLOAT_CHUNK, Ahead, UnpackCode, make_matmul
from localmoe.kernels.matmul_few import FEW, make_few
from localmoe.kernels.shapes import PITCH
from localmoe.kernels.tile import (
    F16T,
    F32T,
    F32V,
    I16T,
    I32T,
    Cells,
    Value,
    gather16,
    loop,
    store_vectors,
    tile_fma,
    tile_store,
    tile_zero,
)

_UNIT = 16  # columns unpacked at a time
_UNROLL = 8


def _unpack_f32(block: Value, step: Value, weights: Value, scales: Value, mins: Value, factors: Value) -> None:
    for g in range(4):
        store_vectors(weights + 4 * g * PITCH, gather16(block + 16 * g, step))


def _make_unpack_half(kind: object) -> UnpackCode:
    def unpack(block: Value, step: Value, weights: Value, scales: Value, mins: Value, factors: Value) -> None:
        for g in range(2):
            pairs = gather16(block + 16 * g, step)
            store_vectors(weights + 8 * g * PITCH, [pair.half(high, kind) for pair in pairs for high in (0, 1)])

    return unpack


def _tile_f32(
    tokens: Sequence[Value], outs: Sequence[Value], scratch: Value, k: Value, n_k: Value, n_cols: Value, ahead: Ahead
) -> None:
    total = Cells(tile_zero(tokens, F32V))
    with loop(k.b, n_k // _UNROLL) as i:
        ahead()
        rows = [token + k * 4 + i * (4 * _UNROLL) for token in tokens]
        total.put(tile_fma(total.get(), rows, scratch + i * (_UNROLL * PITCH), _UNROLL))
    done = n_k // _UNROLL * _UNROLL
    with loop(k.b, n_k - done) as i:
        rows = [token + (k + done + i) * 4 for token in tokens]
        total.put(tile_fma(total.get(), rows, scratch + (done + i) * PITCH, 1))
    tile_store(outs, total.get(), k)


_f32 = make_matmul(
    _unpack_f32, _tile_f32, unit=_UNIT, unit_bytes=64, vectors=_UNIT, chunk=FLOAT_CHUNK, ahead_every=_UNROLL
)
_f16 = make_matmul(
    _make_unpack_half(F16T), _tile_f32, unit=_UNIT, unit_bytes=32, vectors=_UNIT, chunk=FLOAT_CHUNK, ahead_every=_UNROLL
)
_bf16 = make_matmul(
    _make_unpack_half(None), _tile_f32, unit=_UNIT, unit_bytes=32, vectors=_UNIT, chunk=FLOAT_CHUNK, ahead_every=_UNROLL
)


def _vector(kind: Any, n: int) -> Any:
    return kind if n == 1 else ir.VectorType(kind, n)


def _few_f32(at: Value, n: int) -> Value:
    return at.load(_vector(F32T, n))


def _few_f16(at: Value, n: int) -> Value:
    return Value(at.b, at.b.fpext(at.load(_vector(F16T, n)).v, _vector(F32T, n)))


def _few_bf16(at: Value, n: int) -> Value:
    b, wide = at.b, _vector(I32T, n)
    bits = Value(b, b.zext(at.load(_vector(I16T, n)).v, wide)) << 16
    return bits.bits(_vector(F32T, n))


_f32_few, _f16_few, _bf16_few = (
    make_few(_few_f32, 4, "f32"),
    make_few(_few_f16, 2, "f16"),
    make_few(_few_bf16, 2, "bf16"),
)


def matmul_f32(w, act, act_stride, in_idx, out, out_stride, out_idx, n_tok, r0, r1, n_cols, scratch):  # type: ignore[no-untyped-def]
    if n_tok <= FEW:
        _f32_few(w, act, act_stride, in_idx, out, out_stride, out_idx, n_tok, r0, r1, n_cols, scratch)
    else:
        _f32(w, act, act_stride, in_idx, out, out_stride, out_idx, n_tok, r0, r1, n_cols, scratch)


def matmul_f16(w, act, act_stride, in_idx, out, out_stride, out_idx, n_tok, r0, r1, n_cols, scratch):  # type: ignore[no-untyped-def]
    if n_tok <= FEW:
        _f16_few(w, act, act_stride, in_idx, out, out_stride, out_idx, n_tok, r0, r1, n_cols, scratch)
    else:
        _f16(w, act, act_stride, in_idx, out, out_stride, out_idx, n_tok, r0, r1, n_cols, scratch)


def matmul_bf16(w, act, act_stride, in_idx, out, out_stride, out_idx, n_tok, r0, r1, n_cols, scratch):  # type: ignore[no-untyped-def]
    if n_tok <= FEW:
        _bf16_few(w, act, act_stride, in_idx, out, out_stride, out_idx, n_tok, r0, r1, n_cols, scratch)
    else:
        _bf16(w, act, act_stride, in_idx, out, out_stride, out_idx, n_tok, r0, r1, n_cols, scratch)
