"""Which kernels multiply each type of weights and serve each type of cache: their addresses, compiled or from disk."""

from __future__ import annotations

from dataclasses import dataclass

from localmoe.ggml import GGMLQuantizationType as T
from localmoe.native import address
from localmoe.quants.formats import FORMATS

MATVEC_ARGS = 6
MATMUL_ARGS = 12
TILE_ARGS = 7
PAIR_ARGS = 8


@dataclass(frozen=True)
class KernelSet:
    """The activation rows' format, the modules that hold `matvec_*` and `matmul_*`, what n_cols is a multiple of."""

    act: str
    modules: tuple[str, str]
    block: int


_FLOATS, _BLOCKS, _K, _IQ = (
    ("matvec_float", "matmul_float"), ("matvec_blocks", "matmul_block32"), ("matvec_k", "matmul_k"),
    ("matvec_iq", "matmul_iq"),
)  # fmt: skip
_MODULES: dict[T, tuple[str, str]] = {
    **dict.fromkeys((T.F32, T.F16, T.BF16), _FLOATS),
    **dict.fromkeys((T.Q8_0, T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1), _BLOCKS),
    **dict.fromkeys((T.Q2_K, T.Q3_K, T.Q4_K, T.Q5_K, T.Q6_K), _K),
    T.IQ4_NL: _BLOCKS,
    **dict.fromkeys((T.IQ4_XS, T.IQ3_S, T.IQ3_XXS, T.IQ2_S, T.IQ2_XS, T.IQ2_XXS, T.IQ1_S, T.IQ1_M), _IQ),
    **dict.fromkeys((T.TQ1_0, T.TQ2_0), _IQ),
    T.MXFP4: _BLOCKS,
}

KERNELS: dict[T, KernelSet] = {
    kind: KernelSet(FORMATS[kind].activation, modules, FORMATS[kind].block_size) for kind, modules in _MODULES.items()
}


def matvec_address(kind: T) -> int:
    """Address of `kind`'s matvec(w, act, out, r0, r1, n_cols)."""
    return address(f"kernels.{KERNELS[kind].modules[0]}", f"matvec_{kind.name.lower()}", MATVEC_ARGS)


def matmul_address(kind: T) -> int:
    """Address of `kind`'s matmul over many activation rows (matmul_driver)."""
    return address(f"kernels.{KERNELS[kind].modules[1]}", f"matmul_{kind.name.lower()}", MATMUL_ARGS)


def scores_address(kind: str, rows: int) -> int:
    """Address of `scores` of so many query rows over keys of a type (attention_tiles)."""
    return address("kernels.attention_tiles", "scores_kernel", TILE_ARGS, kind, rows)


def values_address(kind: str, rows: int) -> int:
    """Address of `values` of so many rows over values of a type (attention_tiles)."""
    return address("kernels.attention_tiles", "values_kernel", TILE_ARGS, kind, rows)


def key_pairs_address(kind: str) -> int:
    """Address of key_pairs(k, pairs, scales, n / K_BLOCK, head_dim, 0, 0) (attention_pairs)."""
    return address("kernels.attention_pairs", "key_pairs_kernel", TILE_ARGS, kind)


def value_pairs_address(kind: str) -> int:
    """Address of value_pairs(v, pairs, scales, n, head_dim, zeros, 0) (attention_pairs)."""
    return address("kernels.attention_pairs", "value_pairs_kernel", TILE_ARGS, kind)


def pair_scores_address() -> int:
    return address("kernels.attention_pairs", "pair_scores", PAIR_ARGS)


def pair_values_address() -> int:
    return address("kernels.attention_pairs", "pair_values", PAIR_ARGS)
