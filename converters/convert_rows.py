"""A run of rows from the type it is stored as to the type it is written as, checked for NaN and infinity."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np
from gguf import GGMLQuantizationType as Type

from localmoe.quants import checks, floats
from localmoe.quants.decode import decode
from localmoe.quants.encode import encode_into, needs_compiling
from localmoe.quants.formats import FORMATS, Format, stored_format

_ROW = 256  # elements: whole blocks of every type
CHUNK = 1 << 17  # elements widened to float32 at a time: they and the result stay in the cache


@dataclass(frozen=True)
class Rows:
    """Bytes to write, or the element (in this run) at which something is not finite.

    `finite_source` tells whether the value itself was finite and only became too large for the new type.
    """

    data: memoryview
    n_elements: int
    source_bytes: int
    bad: int | None = None
    finite_source: bool = False


def convert(rows: np.ndarray, source: Type, target: Type, n_columns: int, importance: np.ndarray | None = None) -> Rows:
    """Convert rows as a `Piece` gives them; `n_columns` is the length of a row. Does not change `rows`.

    `importance`, contiguous float32 (n_columns,), weighs the columns.
    """
    form = stored_format(source)
    raw = np.ascontiguousarray(rows).reshape(-1).view(np.uint8)
    n = raw.size // form.block_bytes * form.block_size
    assert n % n_columns == 0
    if source == target:
        bad = checks.first_not_finite(source, raw)
        return Rows(raw.data, n, raw.size, bad)
    # whole blocks of either type: both sizes divide a chunk, and a row
    chunk = CHUNK if importance is None else max(1, CHUNK // n_columns) * n_columns
    return _encode(raw, form, FORMATS[target], n, chunk, importance)


def prepare(kinds: Collection[tuple[Type, Type, bool]], notify: Callable[[str], None]) -> None:
    """Compile, or load, all that converting these (source, target, weighed) takes; announced if it takes a while."""
    if needs_compiling([(target, weighed) for source, target, weighed in kinds if source != target]):
        notify("compiling the encoders, this first time only ...")
    for source, target, weighed in sorted(kinds):
        rows = np.zeros((1, stored_format(source).row_bytes(_ROW)), np.uint8)
        convert(rows, source, target, _ROW, np.ones(_ROW, np.float32) if weighed else None)


def _encode(raw: np.ndarray, source: Format, target: Format, n: int, chunk: int, importance: np.ndarray | None) -> Rows:
    out = np.empty(n // target.block_size * target.block_bytes, np.uint8)
    scratch = np.empty(min(n, chunk), np.float32)
    for start in range(0, n, chunk):
        stop = min(n, start + chunk)
        blocks = raw[_span(source, start, stop)]
        # MXFP4's exponent of 255 is NaN to ggml's check of a file, and a number to its decoder
        bad = checks.first_not_finite(source.type, blocks) if source.quantized else None
        if bad is not None:
            return Rows(memoryview(b""), n, raw.size, start + bad)
        x = _widen(blocks, source, scratch[: stop - start])
        if not floats.all_finite(x.ctypes.data, x.size):
            first = int(np.flatnonzero(~np.isfinite(x))[0])
            return Rows(memoryview(b""), n, raw.size, start + first)
        part = out[_span(target, start, stop)]
        encode_into(target.type, x, part, importance)
        bad = checks.first_not_finite(target.type, part)
        if bad is not None:
            return Rows(memoryview(b""), n, raw.size, start + bad, finite_source=True)
    return Rows(out.data, n, raw.size)


def _span(form: Format, start: int, stop: int) -> slice:
    """The bytes of elements start .. stop - 1, which are whole blocks."""
    return slice(start // form.block_size * form.block_bytes, stop // form.block_size * form.block_bytes)


def _widen(raw: np.ndarray, source: Format, scratch: np.ndarray) -> np.ndarray:
    """The elements of `raw` as float32, in `scratch` where they have to be made."""
    if source.type == Type.F32:
        return raw.view(np.float32)
    if source.type == Type.F16:
        floats.widen_f16(raw.ctypes.data, scratch.ctypes.data, scratch.size)
        return scratch
    if source.type == Type.BF16:
        floats.widen_bf16(raw.ctypes.data, scratch.ctypes.data, scratch.size)
        return scratch
    return decode(source.type, raw)
