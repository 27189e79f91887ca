"""A matvec of many rows, made from what computes one."""

from __future__ import annotations

from typing import Any

from localmoe.jit import njit
from localmoe.kernels.simd import st_f32


def by_row(row: Any, block: int, size: int) -> Any:
    """rows((w, act, out, r0, r1, n_cols)) from row(w, act, n_cols): blocks of `block` weights in `size` bytes."""

    @njit(fast=True, inline=True)
    def rows(args):  # type: ignore[no-untyped-def]
        w, act, out, r0, r1, n_cols = args
        for r in range(r0, r1):
            st_f32(out + 4 * r, row(w + r * (n_cols // block * size), act, n_cols))

    return rows
