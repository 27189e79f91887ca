"""Matrix products with float32, float16 and bfloat16 weights: float32 activations, FMA, float32 sums.

Weights are widened to float32 while unpacking. A chunk's products are summed apart and then added to the output row,
which keeps the rounding error of long rows that of `FLOAT_CHUNK` terms.
"""

from __future__ import annotations

from collections.abc import Sequence

from localmoe.kernels.matmul_driver import FLOAT_CHUNK, Ahead, UnpackCode, make_matmul
from localmoe.kernels.tile import (
    F16T,
    F32V,
    PITCH,
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


def matmul_f32(w, act, act_stride, in_idx, out, out_stride, out_idx, n_tok, r0, r1, n_cols, scratch):  # type: ignore[no-untyped-def]
    _f32(w, act, act_stride, in_idx, out, out_stride, out_idx, n_tok, r0, r1, n_cols, scratch)


def matmul_f16(w, act, act_stride, in_idx, out, out_stride, out_idx, n_tok, r0, r1, n_cols, scratch):  # type: ignore[no-untyped-def]
    _f16(w, act, act_stride, in_idx, out, out_stride, out_idx, n_tok, r0, r1, n_cols, scratch)


def matmul_bf16(w, act, act_stride, in_idx, out, out_stride, out_idx, n_tok, r0, r1, n_cols, scratch):  # type: ignore[no-untyped-def]
    _bf16(w, act, act_stride, in_idx, out, out_stride, out_idx, n_tok, r0, r1, n_cols, scratch)
