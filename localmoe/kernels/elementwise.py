"""The steps between matrix products, over float32 rows at plain addresses: norm, residual, SiLU, rotary embedding."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.core.extending import intrinsic

from localmoe.jit import njit
from localmoe.kernels.simd import (
    F32,
    LANES,
    add,
    div,
    exp,
    fma,
    ld_f32,
    load_f32,
    mul,
    round_f16,
    splat_f32,
    st_f16,
    st_f32,
    store,
    sub,
    zero_f32,
)


@intrinsic
def hsum_f64(typingctx: Any, x: Any) -> Any:
    """The sum of float32 lanes in float64."""

    def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
        wide = b.fpext(args[0], ir.VectorType(ir.DoubleType(), LANES))
        signature = ir.FunctionType(ir.DoubleType(), [ir.DoubleType(), wide.type])
        fn = cgutils.get_or_insert_function(b.module, signature, f"llvm.vector.reduce.fadd.v{LANES}f64")
        return b.call(fn, [ir.Constant(ir.DoubleType(), 0.0), wide], fastmath=("reassoc",))

    return types.float64(F32), codegen


@njit(fast=True)
def rms_norm(x: int, weight: int, out: int, n: int, eps: float) -> None:
    """out = x / sqrt(mean(x^2) + eps) * weight, n float32 each."""
    whole = n - n % LANES
    total = 0.0  # float64, as ggml sums
    for i in range(0, whole, LANES):
        v = load_f32(x + 4 * i)
        total += hsum_f64(mul(v, v))
    for i in range(whole, n):
        total += np.float64(ld_f32(x + 4 * i) * ld_f32(x + 4 * i))
    scale = np.float32(1.0) / np.sqrt(np.float32(total / n) + np.float32(eps))
    by = splat_f32(scale)
    for i in range(0, whole, LANES):
        store(out + 4 * i, mul(mul(load_f32(x + 4 * i), by), load_f32(weight + 4 * i)))
    for i in range(whole, n):
        st_f32(out + 4 * i, ld_f32(x + 4 * i) * scale * ld_f32(weight + 4 * i))


@njit(fast=True)
def add_scaled(x: int, y: int, scale: float, n: int) -> None:
    """x += scale * y, n float32 each."""
    whole = n - n % LANES
    by = splat_f32(np.float32(scale))
    for i in range(0, whole, LANES):
        store(x + 4 * i, fma(load_f32(y + 4 * i), by, load_f32(x + 4 * i)))
    for i in range(whole, n):
        st_f32(x + 4 * i, ld_f32(x + 4 * i) + np.float32(scale) * ld_f32(y + 4 * i))


@njit(fast=True)
def copy_scaled(source: int, scale: float, target: int, n: int) -> None:
    """target = scale * source, n float32 each."""
    whole = n - n % LANES
    by = splat_f32(np.float32(scale))
    for i in range(0, whole, LANES):
        store(target + 4 * i, mul(load_f32(source + 4 * i), by))
    for i in range(whole, n):
        st_f32(target + 4 * i, ld_f32(source + 4 * i) * np.float32(scale))


@njit(fast=True)
def scale_row(x: int, scale: float, n: int) -> None:
    """x *= scale, n float32, whole vectors."""
    by = splat_f32(np.float32(scale))
    for i in range(0, n, LANES):
        store(x + 4 * i, mul(load_f32(x + 4 * i), by))


@njit(fast=True)
def zero_row(x: int, n: int) -> None:
    """x = 0, n float32, whole vectors."""
    for i in range(0, n, LANES):
        store(x + 4 * i, zero_f32())


@njit(fast=True)
def all_finite(x: int, n: int) -> bool:
    """Whether none of n float32 is infinite or NaN: either makes NaN of a sum of zeros."""
    whole = n - n % LANES
    zero = zero_f32()
    zeros = zero_f32()
    for i in range(0, whole, LANES):
        zeros = fma(load_f32(x + 4 * i), zero, zeros)
    total = hsum_f64(zeros)
    for i in range(whole, n):
        total += np.float64(ld_f32(x + 4 * i) * np.float32(0.0))
    return total == 0.0


@njit(fast=True)
def round_row_f16(x: int, n: int) -> None:
    """Round n float32 through float16, in place."""
    for i in range(n):
        st_f32(x + 4 * i, round_f16(ld_f32(x + 4 * i)))


@njit(fast=True)
def silu_multiply(gate: int, up: int, n: int) -> None:
    """gate = gate / (1 + exp(-gate)) * up, n float32 each."""
    whole = n - n % LANES
    one = splat_f32(np.float32(1.0))
    for i in range(0, whole, LANES):
        g = load_f32(gate + 4 * i)
        silu = div(g, add(one, exp(sub(zero_f32(), g))))
        store(gate + 4 * i, mul(silu, load_f32(up + 4 * i)))
    for i in range(whole, n):
        tail = ld_f32(gate + 4 * i)
        st_f32(gate + 4 * i, tail / (np.float32(1.0) + np.exp(-tail)) * ld_f32(up + 4 * i))


@njit
def rope_angles(position: int, frequencies: Any, magnitude: float, table: int) -> None:
    """table = (cos, sin) of position * frequency times `magnitude`: (n, 2) float32 for n float64 frequencies."""
    for i in range(frequencies.size):
        angle = position * frequencies[i]
        st_f32(table + 8 * i, np.float32(math.cos(angle) * magnitude))
        st_f32(table + 8 * i + 4, np.float32(math.sin(angle) * magnitude))


@njit
def rope_angles_ggml(position: int, step: float, ratios: Any, magnitude: float, table: int) -> None:
    """`rope_angles` in float32, each angle the one before times `step`, times its ratio: ggml_rope_cache_init's order.

    A float16 cache rounds keys, and int8 activations amplify where two engines round differently: so this follows
    ggml's float32 arithmetic instead of the exact angles.
    """
    theta = np.float32(position)
    for i in range(ratios.size):
        angle = theta * np.float32(ratios[i])
        st_f32(table + 8 * i, np.float32(math.cos(angle)) * np.float32(magnitude))
        st_f32(table + 8 * i + 4, np.float32(math.sin(angle)) * np.float32(magnitude))
        theta *= np.float32(step)


@njit(fast=True)
def rope_pairs(source: int, table: int, target: int, n_rot: int, head_dim: int) -> None:
    """Rotate the first `n_rot` of a head's values as neighbouring pairs (Su et al. 2021), into target."""
    for i in range(n_rot // 2):
        cos = ld_f32(table + 8 * i)
        sin = ld_f32(table + 8 * i + 4)
        a = ld_f32(source + 8 * i)
        b = ld_f32(source + 8 * i + 4)
        st_f32(target + 8 * i, a * cos - b * sin)
        st_f32(target + 8 * i + 4, a * sin + b * cos)
    for i in range(n_rot, head_dim):
        st_f32(target + 4 * i, ld_f32(source + 4 * i))


@njit(fast=True)
def rope_halves(source: int, table: int, target: int, n_rot: int, head_dim: int) -> None:
    """`rope_pairs` with pairs (i, i + n_rot / 2), as GPT-NeoX lays heads out."""
    half = n_rot // 2
    for i in range(half):
        cos = ld_f32(table + 8 * i)
        sin = ld_f32(table + 8 * i + 4)
        a = ld_f32(source + 4 * i)
        b = ld_f32(source + 4 * (i + half))
        st_f32(target + 4 * i, a * cos - b * sin)
        st_f32(target + 4 * (i + half), a * sin + b * cos)
    for i in range(n_rot, head_dim):
        st_f32(target + 4 * i, ld_f32(source + 4 * i))


@njit(fast=True)
def store_row(source: int, target: int, stride: int, half: bool, n: int) -> None:
    """Write n float32 to every `stride`-th element of a float16 (`half`) or float32 array."""
    if half:
        for i in range(n):
            st_f16(target + 2 * stride * i, ld_f32(source + 4 * i))
    else:
        for i in range(n):
            st_f32(target + 4 * stride * i, ld_f32(source + 4 * i))
