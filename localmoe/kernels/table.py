"""Which kernels multiply each type of weights, and which activations they take: one row a type."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from gguf import GGMLQuantizationType as T

from localmoe.jit import kernel_address
from localmoe.kernels import matvec_blocks as blocks
from localmoe.kernels import matvec_float as floats
from localmoe.kernels import matvec_k as k
from localmoe.kernels.activations import act_bytes

MATVEC_ARGS = 6


@dataclass(frozen=True)
class KernelSet:
    """act: the activation rows' format; block: what n_cols is a multiple of; matmul: None where there is none yet."""

    act: str
    matvec: Callable[..., None]
    matmul: Callable[..., None] | None
    block: int


KERNELS: dict[T, KernelSet] = {
    T.F32: KernelSet("f32", floats.matvec_f32, None, 1),
    T.F16: KernelSet("f32", floats.matvec_f16, None, 1),
    T.BF16: KernelSet("f32", floats.matvec_bf16, None, 1),
    T.Q8_0: KernelSet("q8_0", blocks.matvec_q8_0, None, 32),
    T.Q4_0: KernelSet("q8_0", blocks.matvec_q4_0, None, 32),
    T.Q4_1: KernelSet("q8_0", blocks.matvec_q4_1, None, 32),
    T.Q5_0: KernelSet("q8_0", blocks.matvec_q5_0, None, 32),
    T.Q5_1: KernelSet("q8_0", blocks.matvec_q5_1, None, 32),
    T.Q2_K: KernelSet("q8_k", k.matvec_q2_k, None, 256),
    T.Q3_K: KernelSet("q8_k", k.matvec_q3_k, None, 256),
    T.Q4_K: KernelSet("q8_k", k.matvec_q4_k, None, 256),
    T.Q5_K: KernelSet("q8_k", k.matvec_q5_k, None, 256),
    T.Q6_K: KernelSet("q8_k", k.matvec_q6_k, None, 256),
}

ACT_BYTES = act_bytes


def matvec_address(kind: T) -> int:
    """Address of `kind`'s matvec(w, act, out, r0, r1, n_cols), compiled or from the cache."""
    return kernel_address(KERNELS[kind].matvec, MATVEC_ARGS)
