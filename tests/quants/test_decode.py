"""Decoding against ggml's own code, bit for bit."""

from __future__ import annotations

import gguf
import libgguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type

from localmoe.errors import BadInputError
from localmoe.quants.decode import decode
from localmoe.quants.formats import FORMATS, Format, format_of

QUANTIZED = [form for form in FORMATS.values() if form.quantized]


def random_blocks(form: Format, rows: int, blocks: int, *, scales: str) -> np.ndarray:
    """Random bytes; the float16 scales are normal numbers, subnormal ones, or any bits."""
    rng = np.random.default_rng(form.type)
    raw = rng.integers(0, 256, (rows, blocks, form.block_bytes), dtype=np.uint8)
    for name in form.scales:
        offset, _ = form.fields[name]
        low, high = {"normal": (0x0400, 0x7BFF), "subnormal": (0, 0x03FF), "any": (0, 0x7FFF)}[scales]
        bits = rng.integers(low, high + 1, (rows, blocks)) | (rng.integers(0, 2, (rows, blocks)) << 15)
        raw[..., offset : offset + 2] = bits.astype("<u2")[..., None].view(np.uint8)
    return raw.reshape(rows, -1)


def assert_same_bits(got: np.ndarray, want: np.ndarray) -> None:
    """Equal bits, except that one NaN is as good as another."""
    nan = np.isnan(want)
    np.testing.assert_array_equal(np.isnan(got), nan)
    np.testing.assert_array_equal(got.view(np.uint32)[~nan], want.view(np.uint32)[~nan])


@pytest.mark.parametrize("scales", ["normal", "subnormal", "any"])
@pytest.mark.parametrize("form", QUANTIZED, ids=lambda form: form.name)
def test_blocks_decode_to_ggmls_bits(form: Format, scales: str) -> None:
    raw = random_blocks(form, 7, 3, scales=scales)
    assert_same_bits(decode(form.type, raw), np.asarray(libgguf.dequantize_rows(raw, form.type)))


@pytest.mark.parametrize("kind", [Type.F32, Type.F16, Type.BF16])
def test_plain_floats_decode_to_gguf_pys_bits(kind: Type) -> None:
    raw = np.random.default_rng(kind).integers(0, 256, (5, 64 * FORMATS[kind].block_bytes), dtype=np.uint8)
    with np.errstate(all="ignore"):
        assert_same_bits(decode(kind, raw), gguf.quants.dequantize(raw, kind))


def test_leading_axes_are_kept() -> None:
    raw = random_blocks(FORMATS[Type.Q4_K], 6, 2, scales="normal")
    np.testing.assert_array_equal(decode(Type.Q4_K, raw.reshape(2, 3, -1)), decode(Type.Q4_K, raw).reshape(2, 3, 512))


def test_an_unknown_type_is_named() -> None:
    with pytest.raises(BadInputError, match=r"t\.gguf: blk\.0: type is not supported, got Q1_0, expected one of F32"):
        format_of(Type.Q1_0, file="t.gguf", item="blk.0")


@pytest.mark.parametrize("form", FORMATS.values(), ids=lambda form: form.name)
def test_fields_fill_the_block(form: Format) -> None:
    """Sizes are gguf-py's; fields follow one another and end where the block does."""
    assert (form.block_size, form.block_bytes) == gguf.GGML_QUANT_SIZES[form.type]
    ends = [offset + size for offset, size in form.fields.values()]
    assert [offset for offset, _ in form.fields.values()] == [0, *ends[:-1]]
    assert ends[-1] == form.block_bytes
