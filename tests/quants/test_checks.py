"""Finding NaN and infinity in floats and in blocks' scales."""

from __future__ import annotations

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type

from localmoe.quants.checks import first_not_finite
from localmoe.quants.encode import encode
from localmoe.quants.formats import FORMATS

BAD = {Type.F32: (np.nan, np.inf, -np.inf), Type.F16: (np.nan, np.inf, -np.inf), Type.BF16: (np.nan, np.inf, -np.inf)}


@pytest.mark.parametrize("kind", BAD, ids=lambda kind: kind.name)
@pytest.mark.parametrize("index", [0, 5, 31, 99])
def test_the_first_bad_float_is_found(kind: Type, index: int) -> None:
    for value in BAD[kind]:
        x = np.linspace(-1, 1, 100, dtype=np.float32)[None]
        x[0, index] = value
        x[0, 99] = value
        assert first_not_finite(kind, encode(kind, x).reshape(-1)) == index


@pytest.mark.parametrize("kind", [form.type for form in FORMATS.values() if form.quantized], ids=lambda kind: kind.name)
def test_a_bad_scale_gives_its_blocks_first_element(kind: Type) -> None:
    form = FORMATS[kind]
    raw = np.zeros((5, form.block_bytes), np.uint8)
    assert first_not_finite(kind, raw.reshape(-1)) is None
    for name in form.scales:
        bad = raw.copy()
        bad[3, form.fields[name][0] : form.fields[name][0] + 2] = np.frombuffer(np.float16(-np.inf).tobytes(), np.uint8)
        assert first_not_finite(kind, bad.reshape(-1)) == 3 * form.block_size


def test_finite_floats_pass() -> None:
    for kind in BAD:
        x = np.array([[0.0, -0.0, 1e-38, 6e4, -6e4]], np.float32)
        assert first_not_finite(kind, encode(kind, x).reshape(-1)) is None
