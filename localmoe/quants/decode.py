"""Bytes of any supported type to float32, with ggml's bits."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from localmoe.ggml import GGMLQuantizationType as Type

from . import decode_legacy as legacy
from . import iquants, kquants, ternary
from .formats import format_of


def _decode_f32(raw: np.ndarray) -> np.ndarray:
    """float32 (..., cols) from its bytes (..., 4 * cols)."""
    return raw.view(np.float32).copy()


def _decode_f16(raw: np.ndarray) -> np.ndarray:
    """float32 (..., cols) from float16 bytes (..., 2 * cols)."""
    return raw.view(np.float16).astype(np.float32)


def _decode_bf16(raw: np.ndarray) -> np.ndarray:
    """float32 (..., cols) from bfloat16 bytes (..., 2 * cols): the upper half of a float32."""
    return (raw.view(np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32)


_PLAIN: Mapping[Type, Callable[[np.ndarray], np.ndarray]] = {
    Type.F32: _decode_f32,
    Type.F16: _decode_f16,
    Type.BF16: _decode_bf16,
}

_BLOCKS: Mapping[Type, Callable[[np.ndarray], np.ndarray]] = {
    Type.Q8_0: legacy.decode_q8_0,
    Type.Q4_0: legacy.decode_q4_0,
    Type.Q4_1: legacy.decode_q4_1,
    Type.Q5_0: legacy.decode_q5_0,
    Type.Q5_1: legacy.decode_q5_1,
    Type.Q2_K: kquants.decode_q2_k,
    Type.Q3_K: kquants.decode_q3_k,
    Type.Q4_K: kquants.decode_q4_k,
    Type.Q5_K: kquants.decode_q5_k,
    Type.Q6_K: kquants.decode_q6_k,
    Type.IQ4_NL: iquants.decode_iq4_nl,
    Type.IQ4_XS: iquants.decode_iq4_xs,
    Type.IQ3_S: iquants.decode_iq3_s,
    Type.IQ3_XXS: iquants.decode_iq3_xxs,
    Type.IQ2_S: iquants.decode_iq2_s,
    Type.IQ2_XS: iquants.decode_iq2_xs,
    Type.IQ2_XXS: iquants.decode_iq2_xxs,
    Type.IQ1_S: iquants.decode_iq1_s,
    Type.IQ1_M: iquants.decode_iq1_m,
    Type.TQ1_0: ternary.decode_tq1_0,
    Type.TQ2_0: ternary.decode_tq2_0,
    Type.MXFP4: iquants.decode_mxfp4,
}


def decode(type_: Type, raw: np.ndarray) -> np.ndarray:
    """float32 (..., columns) from uint8 (..., row bytes), rows of whole blocks. BadInputError: unsupported type."""
    form = format_of(type_)
    raw = np.ascontiguousarray(raw)
    assert raw.dtype == np.uint8
    assert raw.shape[-1] % form.block_bytes == 0
    if type_ in _PLAIN:
        return _PLAIN[type_](raw)
    blocks = raw.reshape(*raw.shape[:-1], raw.shape[-1] // form.block_bytes, form.block_bytes)
    with np.errstate(invalid="ignore", over="ignore"):  # a file may hold an infinite scale: 0 * inf is then NaN
        values = _BLOCKS[type_](blocks)
    return values.reshape(*raw.shape[:-1], -1)
