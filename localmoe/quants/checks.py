"""Is every number in a run of blocks finite? What ggml_validate_row_data asks of a file."""

from __future__ import annotations

import numpy as np
from gguf import GGMLQuantizationType as Type

from localmoe.jit import njit

from . import floats
from .formats import FORMATS

_EXPONENT = {Type.F16: 0x7C00, Type.BF16: 0x7F80}


@njit
def _all_below(bits: np.ndarray, exponent: int) -> bool:
    """Whether no 16-bit float has all bits of `exponent` set."""
    found = np.uint16(0)
    mask = np.uint16(exponent)
    for i in range(bits.size):
        found |= np.uint16(1 if (bits[i] & mask) == mask else 0)
    return found == 0


@njit
def _first_bad_scale(raw: np.ndarray, stride: int, offset: int) -> int:
    """The first block whose float16 at `offset` is NaN or infinite, or -1. The exponent is in the upper byte."""
    for block in range(raw.size // stride):
        if (raw[block * stride + offset + 1] & 0x7C) == 0x7C:
            return block
    return -1


def first_not_finite(type_: Type, raw: np.ndarray) -> int | None:
    """Index of the first element that is NaN or infinite, or whose block's scale is; None if all are finite.

    `raw` is contiguous uint8, whole blocks.
    """
    form = FORMATS[type_]
    if type_ == Type.F32:
        x = raw.view(np.float32)
        return None if floats.all_finite(x) else int(np.flatnonzero(~np.isfinite(x))[0])
    if type_ in _EXPONENT:
        bits, mask = raw.view(np.uint16), _EXPONENT[type_]
        return None if _all_below(bits, mask) else int(np.flatnonzero((bits & mask) == mask)[0])
    blocks = [_first_bad_scale(raw, form.block_bytes, form.fields[name][0]) for name in form.scales]
    bad = [block for block in blocks if block >= 0]
    return min(bad) * form.block_size if bad else None
