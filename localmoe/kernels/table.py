"""Which kernels multiply each type of weights, and which activations they take: one row a type."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from gguf import GGMLQuantizationType as T

from localmoe.jit import kernel_address
from localmoe.kernels import matmul_block32, matmul_float, matmul_iq, matmul_k
from localmoe.kernels import matvec_blocks as blocks
from localmoe.kernels import matvec_float as floats
from localmoe.kernels import matvec_iq as iq
from localmoe.kernels import matvec_k as k
from localmoe.quants.formats import FORMATS

MATVEC_ARGS = 6
MATMUL_ARGS = 12


@dataclass(frozen=True)
class KernelSet:
    """The activation rows' format, the kernels as plain functions, and what n_cols is a multiple of."""

    act: str
    matvec: Callable[..., None]
    matmul: Callable[..., None]
    block: int


_FUNCTIONS: dict[T, tuple[Callable[..., None], Callable[..., None]]] = {
    T.F32: (floats.matvec_f32, matmul_float.matmul_f32),
    T.F16: (floats.matvec_f16, matmul_float.matmul_f16),
    T.BF16: (floats.matvec_bf16, matmul_float.matmul_bf16),
    T.Q8_0: (blocks.matvec_q8_0, matmul_block32.matmul_q8_0),
    T.Q4_0: (blocks.matvec_q4_0, matmul_block32.matmul_q4_0),
    T.Q4_1: (blocks.matvec_q4_1, matmul_block32.matmul_q4_1),
    T.Q5_0: (blocks.matvec_q5_0, matmul_block32.matmul_q5_0),
    T.Q5_1: (blocks.matvec_q5_1, matmul_block32.matmul_q5_1),
    T.Q2_K: (k.matvec_q2_k, matmul_k.matmul_q2_k),
    T.Q3_K: (k.matvec_q3_k, matmul_k.matmul_q3_k),
    T.Q4_K: (k.matvec_q4_k, matmul_k.matmul_q4_k),
    T.Q5_K: (k.matvec_q5_k, matmul_k.matmul_q5_k),
    T.Q6_K: (k.matvec_q6_k, matmul_k.matmul_q6_k),
    T.IQ4_NL: (blocks.matvec_iq4_nl, matmul_block32.matmul_iq4_nl),
    T.IQ4_XS: (iq.matvec_iq4_xs, matmul_iq.matmul_iq4_xs),
    T.IQ3_S: (iq.matvec_iq3_s, matmul_iq.matmul_iq3_s),
    T.IQ3_XXS: (iq.matvec_iq3_xxs, matmul_iq.matmul_iq3_xxs),
    T.IQ2_S: (iq.matvec_iq2_s, matmul_iq.matmul_iq2_s),
    T.IQ2_XS: (iq.matvec_iq2_xs, matmul_iq.matmul_iq2_xs),
    T.IQ2_XXS: (iq.matvec_iq2_xxs, matmul_iq.matmul_iq2_xxs),
    T.IQ1_S: (iq.matvec_iq1_s, matmul_iq.matmul_iq1_s),
    T.IQ1_M: (iq.matvec_iq1_m, matmul_iq.matmul_iq1_m),
    T.TQ1_0: (iq.matvec_tq1_0, matmul_iq.matmul_tq1_0),
    T.TQ2_0: (iq.matvec_tq2_0, matmul_iq.matmul_tq2_0),
    T.MXFP4: (blocks.matvec_mxfp4, matmul_block32.matmul_mxfp4),
}

KERNELS: dict[T, KernelSet] = {
    kind: KernelSet(FORMATS[kind].activation, matvec, matmul, FORMATS[kind].block_size)
    for kind, (matvec, matmul) in _FUNCTIONS.items()
}


def matvec_address(kind: T) -> int:
    """Address of `kind`'s matvec(w, act, out, r0, r1, n_cols), compiled or from the cache."""
    return kernel_address(KERNELS[kind].matvec, MATVEC_ARGS)


def matmul_address(kind: T) -> int:
    """Address of `kind`'s matmul over many activation rows (matmul_driver), compiled or from the cache."""
    return kernel_address(KERNELS[kind].matmul, MATMUL_ARGS)
