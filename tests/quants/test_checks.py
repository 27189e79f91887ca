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


@pytest.mark.parametrize("kind", [form.type for form in FORMATS.values() if form.scales], ids=lambda kind: kind.name)
def test_a_bad_scale_gives_its_blocks_first_element(kind: Type) -> None:
    form = FORMATS[kind]
    raw = np.zeros((5, form.block_bytes), np.uint8)
    assert first_not_finite(kind, raw.reshape(-1)) is None
    for name in form.scales:
        bad = raw.copy()
        bad[3, form.fields[name][0] : form.fields[name][0] + 2] = np.frombuffer(np.float16(-np.inf).tobytes(), np.uint8)
        assert first_not_finite(kind, bad.reshape(-1)) == 3 * form.block_size


def test_every_quantized_type_has_a_scale_that_is_checked() -> None:
    assert {form.type for form in FORMATS.values() if form.quantized and not form.scales} == {Type.IQ1_M, Type.MXFP4}


@pytest.mark.parametrize("half", [0.0, -0.0, 65504.0, -1.0, 6e-8, np.inf, -np.inf, np.nan])
def test_the_scattered_scale_of_iq1_m_is_put_together(half: float) -> None:
    """Its float16 lies in the top nibbles of four words; what else is in them does not matter."""
    bits = int(np.float16(half).view(np.uint16))
    raw = np.full((3, 56), 0xFF, np.uint8)
    words = np.full((3, 4), 0x0FFF, np.uint16)
    words[1] |= np.array([(bits >> (4 * i) & 0xF) << 12 for i in range(4)], np.uint16)
    raw[:, 48:] = words.view(np.uint8)
    assert first_not_finite(Type.IQ1_M, raw.reshape(-1)) == (None if np.isfinite(half) else 256)


def test_an_exponent_of_255_is_no_number() -> None:
    raw = np.full((3, 17), 0xFF, np.uint8)
    raw[:, 0] = [0, 254, 255]
    assert first_not_finite(Type.MXFP4, raw.reshape(-1)) == 64
    assert first_not_finite(Type.MXFP4, raw[:2].reshape(-1)) is None


def test_finite_floats_pass() -> None:
    for kind in BAD:
        x = np.array([[0.0, -0.0, 1e-38, 6e4, -6e4]], np.float32)
        assert first_not_finite(kind, encode(kind, x).reshape(-1)) is None
