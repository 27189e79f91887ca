"""Matrix times one activation vector for float weights: F32, F16 and BF16 rows of any length, float32 activations.

Every kernel: (w, act, out, r0, r1, n_cols), all int64. `w` is the address of row 0 of a (rows, n_cols) matrix as the
file stores it, `act` that of an "f32" activation row; float32 results go to out + 4 * r for r in [r0, r1).
"""

from __future__ import annotations

from typing import Any

from localmoe.jit import njit
from localmoe.kernels.simd import (
    Vec,
    add,
    ask_ahead,
    fma,
    hsum,
    ld_bf16,
    ld_f16,
    ld_f32,
    make_constant,
    make_load,
    make_load_bf16,
    make_load_f16,
    st_f32,
)

_F32 = Vec("f32", 16)
_zero = make_constant(_F32, 0)
_load_f32 = make_load(_F32)
_load_f16 = make_load_f16(16)
_load_bf16 = make_load_bf16(16)


def _make_row(load: Any, load_one: Any, size: int) -> Any:
    """A function that gives one row's product; the weights are `size` bytes each."""

    @njit(fast=True, inline=True)
    def row(w, act, n):  # type: ignore[no-untyped-def]
        a0 = _zero()
        a1 = _zero()
        a2 = _zero()
        a3 = _zero()
        i = 0
        while i + 64 <= n:
            p = w + size * i
            x = act + 4 * i
            for line in range(size):
                ask_ahead(p + 64 * line)
            a0 = fma(load(p), _load_f32(x), a0)
            a1 = fma(load(p + 16 * size), _load_f32(x + 64), a1)
            a2 = fma(load(p + 32 * size), _load_f32(x + 128), a2)
            a3 = fma(load(p + 48 * size), _load_f32(x + 192), a3)
            i += 64
        while i + 16 <= n:
            a0 = fma(load(w + size * i), _load_f32(act + 4 * i), a0)
            i += 16
        total = hsum(add(add(a0, a1), add(a2, a3)))
        while i < n:
            total += load_one(w + size * i) * ld_f32(act + 4 * i)
            i += 1
        return total

    return row


_row_f32 = _make_row(_load_f32, ld_f32, 4)
_row_f16 = _make_row(_load_f16, ld_f16, 2)
_row_bf16 = _make_row(_load_bf16, ld_bf16, 2)


def matvec_f32(w: int, act: int, out: int, r0: int, r1: int, n_cols: int) -> None:
    for r in range(r0, r1):
        st_f32(out + 4 * r, _row_f32(w + r * n_cols * 4, act, n_cols))


def matvec_f16(w: int, act: int, out: int, r0: int, r1: int, n_cols: int) -> None:
    for r in range(r0, r1):
        st_f32(out + 4 * r, _row_f16(w + r * n_cols * 2, act, n_cols))


def matvec_bf16(w: int, act: int, out: int, r0: int, r1: int, n_cols: int) -> None:
    for r in range(r0, r1):
        st_f32(out + 4 * r, _row_bf16(w + r * n_cols * 2, act, n_cols))
