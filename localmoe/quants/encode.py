"""float32 to the bytes of any type that can be written: those of ggml's reference encoders, without compiler or FMA."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType as Type

from localmoe.errors import UsageError
from localmoe.target import cache_dir

from . import (
    encode_grid,
    encode_iq1,
    encode_iq4,
    encode_mxfp4,
    encode_ternary,
    floats,
    kblocks,
    kencode,
    legacy,
    weighted,
)
from .formats import FORMATS, Format

# (address of n blocks of float32, address of the result, n, address of scratch)
_BLOCKS: Mapping[Type, Callable[[int, int, int, int], Any]] = {
    Type.F16: floats.encode_f16,
    Type.BF16: floats.encode_bf16,
    Type.Q8_0: legacy.encode_q8_0,
    Type.Q4_0: legacy.encode_q4_0,
    Type.Q4_1: legacy.encode_q4_1,
    Type.Q5_0: legacy.encode_q5_0,
    Type.Q5_1: legacy.encode_q5_1,
    Type.Q2_K: kblocks.encode_q2_k,
    Type.Q3_K: kblocks.encode_q3_k,
    Type.Q4_K: kencode.encode_q4_k,
    Type.Q5_K: kencode.encode_q5_k,
    Type.Q6_K: kencode.encode_q6_k,
    Type.IQ4_NL: encode_iq4.encode_iq4_nl,
    Type.IQ4_XS: encode_iq4.encode_iq4_xs,
    Type.MXFP4: encode_mxfp4.encode_mxfp4,
    Type.TQ1_0: encode_ternary.encode_tq1_0,
    Type.TQ2_0: encode_ternary.encode_tq2_0,
}
# also (importances of a row, blocks in a row, mean x^2 of each row); the other types ignore an importance matrix
_WEIGHTED: Mapping[Type, Callable[[int, int, int, int, int, int, int], Any]] = {
    Type.Q4_0: weighted.weighted_q4_0,
    Type.Q4_1: weighted.weighted_q4_1,
    Type.Q5_0: weighted.weighted_q5_0,
    Type.Q5_1: weighted.weighted_q5_1,
    Type.Q2_K: kblocks.weighted_q2_k,
    Type.Q3_K: kblocks.weighted_q3_k,
    Type.Q4_K: kblocks.weighted_q4_k,
    Type.Q5_K: kblocks.weighted_q5_k,
    Type.Q6_K: kblocks.weighted_q6_k,
    Type.IQ4_NL: encode_iq4.weighted_iq4_nl,
    Type.IQ4_XS: encode_iq4.weighted_iq4_xs,
}
# (type, blocks of float32 (n, 256), importances of a row or None, uint8 (n, block bytes))
_GRIDS: Mapping[Type, Callable[[Type, np.ndarray, np.ndarray | None, np.ndarray], None]] = {
    **dict.fromkeys(encode_grid.COMPILED, encode_grid.encode_grid),
    **dict.fromkeys(encode_iq1.COMPILED, encode_iq1.encode_iq1),
}
_COMPILED = {**encode_grid.COMPILED, **encode_iq1.COMPILED}
NEED_IMPORTANCES = (Type.IQ2_XXS, Type.IQ2_XS, Type.IQ1_S)  # ggml has no encoder without
_BY_ROW = (Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1)  # whose weights depend on the whole row
_SCRATCH = max(legacy.SCRATCH, kencode.SCRATCH, kblocks.SCRATCH, weighted.SCRATCH)


def encoder_of(type_: Type) -> Format:
    """The format of a type that can be written; UsageError for any other."""
    form = FORMATS.get(type_)
    if form is None or not form.encodes:
        expected = ", ".join(f.name for f in FORMATS.values() if f.encodes)
        raise UsageError("cannot write this type", got=type_.name, expected=f"one of {expected}")
    return form


def needs_compiling(kinds: Collection[tuple[Type, bool]]) -> bool:
    """Whether an encoder among these (type, with importances) has yet to be compiled: seconds, to be announced."""
    encoders: list[Callable[..., Any] | None] = [
        (_WEIGHTED.get(type_) if weighed else None) or _BLOCKS.get(type_) for type_, weighed in kinds
    ]
    names = [encoder.__name__ for encoder in encoders if encoder is not None]
    names += [_COMPILED[type_] for type_, _ in kinds if type_ in _COMPILED]
    return not all(any(cache_dir().rglob(f"*.{name}-*.nbc")) for name in names)


def encode(type_: Type, x: np.ndarray, importance: np.ndarray | None = None) -> np.ndarray:
    """uint8 (rows, row bytes) from float32 (rows, columns); columns must divide into blocks.

    `importance` (columns,) float32 weighs the columns. UsageError: the type cannot be written, or not without
    importances. Releases the GIL.
    """
    form = encoder_of(type_)
    if importance is None and type_ in NEED_IMPORTANCES:
        raise UsageError("cannot be written without importances", got=type_.name)
    rows, columns = x.shape
    out = np.empty((rows, form.row_bytes(columns)), np.uint8)
    if importance is not None:
        importance = np.ascontiguousarray(importance, np.float32)
    encode_into(type_, np.ascontiguousarray(x, np.float32).reshape(-1), out.reshape(-1), importance)
    return out


def encode_into(type_: Type, x: np.ndarray, out: np.ndarray, importance: np.ndarray | None = None) -> None:
    """Encode contiguous float32 (n,), whole blocks, into uint8 `out` of exactly its encoded size.

    With `importance`, contiguous float32 (columns,), x is whole rows of as many columns.
    """
    form = FORMATS[type_]
    assert importance is not None or type_ not in NEED_IMPORTANCES
    n = x.size // form.block_size
    assert x.dtype == np.float32
    assert x.flags.c_contiguous
    assert out.flags.c_contiguous
    assert n * form.block_size == x.size
    assert out.size == n * form.block_bytes
    if type_ == Type.F32:
        out[:] = x.view(np.uint8)
        return
    if type_ in _GRIDS:
        _GRIDS[type_](type_, x.reshape(n, form.block_size), importance, out.reshape(n, form.block_bytes))
        return
    scratch = np.empty(_SCRATCH + 64, np.uint8)
    aligned = -(-scratch.ctypes.data // 64) * 64
    if importance is None or type_ not in _WEIGHTED:
        _BLOCKS[type_](x.ctypes.data, out.ctypes.data, n, aligned)
    else:
        _encode_weighted(type_, x, out, importance, aligned)


def _encode_weighted(type_: Type, x: np.ndarray, out: np.ndarray, importance: np.ndarray, scratch: int) -> None:
    form, rows = FORMATS[type_], x.size // importance.size
    assert importance.dtype == np.float32
    assert importance.flags.c_contiguous
    assert rows * importance.size == x.size
    means = np.empty(rows if type_ in _BY_ROW else 0, np.float32)
    if type_ in _BY_ROW:
        weighted.row_means(x.ctypes.data, rows, importance.size, means.ctypes.data)
    _WEIGHTED[type_](
        x.ctypes.data, out.ctypes.data, x.size // form.block_size, scratch, importance.ctypes.data,
        importance.size // form.block_size, means.ctypes.data,
    )  # fmt: skip
