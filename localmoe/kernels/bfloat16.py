"""The steps between matrix products as a bfloat16 model computes them: each result rounded to the nearest bfloat16.

PyTorch runs a bfloat16 model so: operations take bfloat16 values, compute in float32 and round their result. Rows here
are float32 that hold bfloat16 values. A pass with these steps instead of `elementwise`'s gives the hidden states that
mergekit makes a router's rows of; it is slower, and nothing else uses it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.core.extending import intrinsic

from localmoe.jit import njit
from localmoe.kernels.simd import ld_f32, st_f32

_I32, _F32 = ir.IntType(32), ir.FloatType()


@intrinsic
def round_bf16(typingctx: Any, value: Any) -> Any:
    """A float32 rounded to the nearest bfloat16, ties to even, as float32; NaN stays NaN."""

    def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
        bits = b.bitcast(args[0], _I32)
        odd = b.and_(b.lshr(bits, _I32(16)), _I32(1))
        rounded = b.and_(b.add(b.add(bits, _I32(0x7FFF)), odd), _I32(0xFFFF0000))
        return b.select(b.fcmp_unordered("uno", args[0], args[0]), args[0], b.bitcast(rounded, _F32))

    return types.float32(types.float32), codegen


@njit
def round_row(x: int, n: int) -> None:
    """Round n float32 in place."""
    for i in range(n):
        st_f32(x + 4 * i, round_bf16(ld_f32(x + 4 * i)))


@njit
def rms_norm(x: int, weight: int, out: int, n: int, eps: float) -> None:
    """out = round(round(x / sqrt(mean(x^2) + eps)) * weight), n float32 each; the weights are rounded too."""
    total = 0.0
    for i in range(n):
        total += np.float64(ld_f32(x + 4 * i)) ** 2
    scale = np.float32(1.0) / np.sqrt(np.float32(total / n) + np.float32(eps))
    for i in range(n):
        st_f32(out + 4 * i, round_bf16(round_bf16(ld_f32(x + 4 * i) * scale) * round_bf16(ld_f32(weight + 4 * i))))


@njit
def add_rounded(x: int, y: int, scale: float, n: int) -> None:
    """x = round(x + round(scale * round(y))), n float32 each."""
    for i in range(n):
        term = round_bf16(np.float32(scale) * round_bf16(ld_f32(y + 4 * i)))
        st_f32(x + 4 * i, round_bf16(ld_f32(x + 4 * i) + term))


@njit
def silu_multiply(gate: int, up: int, n: int) -> None:
    """gate = round(round(silu(round(gate))) * round(up)), n float32 each."""
    for i in range(n):
        g = round_bf16(ld_f32(gate + 4 * i))
        silu = round_bf16(g / (np.float32(1.0) + np.exp(-g)))
        st_f32(gate + 4 * i, round_bf16(silu * round_bf16(ld_f32(up + 4 * i))))


@njit
def rope(source: int, table: int, target: int, n_rot: int, head_dim: int, interleaved: bool) -> None:
    """`rope_pairs` or `rope_halves`, each product and each sum rounded; values and angles hold bfloat16 values."""
    near, apart = (2, 1) if interleaved else (1, n_rot // 2)
    for i in range(n_rot // 2):
        cos, sin = ld_f32(table + 8 * i), ld_f32(table + 8 * i + 4)
        at = 4 * near * i
        a, b = ld_f32(source + at), ld_f32(source + at + 4 * apart)
        st_f32(target + at, round_bf16(round_bf16(a * cos) - round_bf16(b * sin)))
        st_f32(target + at + 4 * apart, round_bf16(round_bf16(b * cos) + round_bf16(a * sin)))
    for i in range(n_rot, head_dim):
        st_f32(target + 4 * i, ld_f32(source + 4 * i))
