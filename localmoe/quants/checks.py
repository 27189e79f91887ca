"""Is every number in a run of blocks finite? What ggml_validate_row_data asks of a file."""

from __future__ import annotations

import numpy as np

from localmoe.ggml import GGMLQuantizationType as Type

from . import floats
from .formats import FORMATS, Format

_EXPONENT = {Type.F16: 0x7C00, Type.BF16: 0x7F80}
# (offset, mask, offset, mask): the block's scale is not finite if both bytes have all bits of their masks. IQ1_M's
# float16 lies in the top nibbles of four words; an E8M0 exponent of 255 is NaN.
_OTHER_SCALES = {Type.IQ1_M: (55, 0x70, 53, 0xC0), Type.MXFP4: (0, 0xFF, 0, 0xFF)}


def _patterns(form: Format) -> list[tuple[int, int, int, int]]:
    if form.type in _OTHER_SCALES:
        return [_OTHER_SCALES[form.type]]
    high_bytes = [form.fields[name][0] + 1 for name in form.scales]
    return [(at, 0x7C, at, 0x7C) for at in high_bytes]


def first_not_finite(type_: Type, raw: np.ndarray) -> int | None:
    """Index of the first element that is NaN or infinite, or whose block's scale is; None if all are finite.

    `raw` is contiguous uint8, whole blocks. Of types that localmoe does not know, F64 alone is looked into.
    """
    if type_ == Type.F64:
        bad = np.flatnonzero(~np.isfinite(raw.view(np.float64)))
        return int(bad[0]) if bad.size else None
    if type_ not in FORMATS:
        return None
    form = FORMATS[type_]
    if type_ == Type.F32:
        x = raw.view(np.float32)
        return None if floats.all_finite(x.ctypes.data, x.size) else int(np.flatnonzero(~np.isfinite(x))[0])
    if type_ in _EXPONENT:
        bits, mask = raw.view(np.uint16), _EXPONENT[type_]
        return (
            None
            if floats.all_finite_16(bits.ctypes.data, bits.size, mask)
            else int(np.flatnonzero((bits & mask) == mask)[0])
        )
    n, address = raw.size // form.block_bytes, raw.ctypes.data
    blocks = [floats.first_bad_scale(address, n, form.block_bytes, *pattern) for pattern in _patterns(form)]
    found = [block for block in blocks if block >= 0]
    return min(found) * form.block_size if found else None
