"""Which kernels multiply each type of weights, and which activations they take: one row a type."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from gguf import GGMLQuantizationType as T

from localmoe.jit import kernel_address
from localmoe.kernels import matmul_block32, matmul_float, matmul_k
from localmoe.kernels import matvec_blocks as blocks
from localmoe.kernels import matvec_float as floats
from localmoe.kernels import matvec_k as k
from localmoe.kernels.activations import act_bytes

MATVEC_ARGS = 6
MATMUL_ARGS = 12


@dataclass(frozen=True)
class KernelSet:
    """The activation rows' format, the kernels as plain functions, and what n_cols is a multiple of."""

    act: str
    matvec: Callable[..., None]
    matmul: Callable[..., None]
    block: int


KERNELS: dict[T, KernelSet] = {
    T.F32: KernelSet("f32", floats.matvec_f32, matmul_float.matmul_f32, 1),
    T.F16: KernelSet("f32", floats.matvec_f16, matmul_float.matmul_f16, 1),
    T.BF16: KernelSet("f32", floats.matvec_bf16, matmul_float.matmul_bf16, 1),
    T.Q8_0: KernelSet("q8_0", blocks.matvec_q8_0, matmul_block32.matmul_q8_0, 32),
    T.Q4_0: KernelSet("q8_0", blocks.matvec_q4_0, matmul_block32.matmul_q4_0, 32),
    T.Q4_1: KernelSet("q8_0", blocks.matvec_q4_1, matmul_block32.matmul_q4_1, 32),
    T.Q5_0: KernelSet("q8_0", blocks.matvec_q5_0, matmul_block32.matmul_q5_0, 32),
    T.Q5_1: KernelSet("q8_0", blocks.matvec_q5_1, matmul_block32.matmul_q5_1, 32),
    T.Q2_K: KernelSet("q8_k", k.matvec_q2_k, matmul_k.matmul_q2_k, 256),
    T.Q3_K: KernelSet("q8_k", k.matvec_q3_k, matmul_k.matmul_q3_k, 256),
    T.Q4_K: KernelSet("q8_k", k.matvec_q4_k, matmul_k.matmul_q4_k, 256),
    T.Q5_K: KernelSet("q8_k", k.matvec_q5_k, matmul_k.matmul_q5_k, 256),
    T.Q6_K: KernelSet("q8_k", k.matvec_q6_k, matmul_k.matmul_q6_k, 256),
}

ACT_BYTES = act_bytes


def matvec_address(kind: T) -> int:
    """Address of `kind`'s matvec(w, act, out, r0, r1, n_cols), compiled or from the cache."""
    return kernel_address(KERNELS[kind].matvec, MATVEC_ARGS)


def matmul_address(kind: T) -> int:
    """Address of `kind`'s matmul over many activation rows (matmul_driver), compiled or from the cache."""
    return kernel_address(KERNELS[kind].matmul, MATMUL_ARGS)
