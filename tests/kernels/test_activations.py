"""Quantized activation rows against ggml's definition in NumPy, byte for byte."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from localmoe.kernels.activations import quantize_q8_0, quantize_q8_k
from localmoe.kernels.shapes import act_bytes
from tests import naive

QUANTIZE = {
    "q8_0": lambda x, row, n: quantize_q8_0(x, row, n, 0, n // 32),
    "q8_k": lambda x, row, n: quantize_q8_k(x, row, n, 0, n // 256),
}


def quantized(fmt: str, x: np.ndarray) -> np.ndarray:
    """The row's bytes; the bytes after it must stay as they were."""
    row = np.full(act_bytes(fmt, x.size) + 64, 0xA5, np.uint8)
    QUANTIZE[fmt](x.ctypes.data, row.ctypes.data, x.size)
    size = naive.activation_row(fmt, np.ones(x.size, np.float32)).size
    assert (row[size:] == 0xA5).all()
    return row[:size]


@pytest.mark.parametrize("fmt", QUANTIZE)
@pytest.mark.parametrize("n", [256, 768, 2048, 2816])
@pytest.mark.parametrize("scale", [1.0, 1e-4, 3e4])
def test_rows_equal_the_reference(fmt: str, n: int, scale: float) -> None:
    x = (np.random.default_rng(n).normal(size=n) * scale).astype(np.float32)
    np.testing.assert_array_equal(quantized(fmt, x), naive.activation_row(fmt, x))


def test_short_rows() -> None:
    x = np.random.default_rng(1).normal(size=96).astype(np.float32)
    for n in (32, 96):
        np.testing.assert_array_equal(quantized("q8_0", x[:n].copy()), naive.activation_row("q8_0", x[:n]))


def test_zeros_and_numbers_too_small_to_invert_become_zero() -> None:
    for fmt in ("q8_0", "q8_k"):
        for value in (0.0, 1e-44, 1e-38):
            row = quantized(fmt, np.full(256, value, np.float32))
            assert not row[:256].any()


def test_values_stay_within_127_whatever_the_sign_of_the_largest() -> None:
    for sign in (-1, 1):
        x = np.random.default_rng(2).uniform(-1, 1, 512).astype(np.float32)
        x[[5, 300]] = sign * np.float32(1.7)
        for fmt in ("q8_0", "q8_k"):
            qs = quantized(fmt, x)[:512].view(np.int8)
            assert abs(int(qs.min())) <= 127
            assert abs(int(qs[5])) == 127


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_block_with_nan_or_infinity_gets_nan_scale_and_zero_values(bad: float) -> None:
    x = np.random.default_rng(3).normal(size=512).astype(np.float32)
    x[300] = bad
    for fmt, blocks, at in (("q8_0", 16, 9), ("q8_k", 2, 1)):
        row = quantized(fmt, x)
        d = row[512 : 512 + 4 * blocks].view(np.float32)
        assert np.isnan(d[at])
        assert np.isfinite(np.delete(d, at)).all()
        size = 512 // blocks
        assert not row[at * size : (at + 1) * size].any()


def test_rows_start_on_64_bytes() -> None:
    assert act_bytes("f32", 100) == 448
    assert act_bytes("q8_0", 32) == 64
    assert act_bytes("q8_0", 2048) == 2048 + 768
    assert act_bytes("q8_k", 2048) == 2496  # 2048 + 32 + 256 + 128, rounded up


@pytest.mark.parametrize(("quantize", "fmt", "block"), [(quantize_q8_0, "q8_0", 32), (quantize_q8_k, "q8_k", 256)])
def test_a_row_in_parts_is_the_same_row(quantize: Any, fmt: str, block: int) -> None:
    x = np.random.default_rng(5).normal(size=1024).astype(np.float32)
    row = np.zeros(act_bytes(fmt, x.size), np.uint8)
    for first, last in ((2, 1024 // block), (0, 2)):
        quantize(x.ctypes.data, row.ctypes.data, x.size, first, last)
    wanted = naive.activation_row(fmt, x)
    np.testing.assert_array_equal(row[: wanted.size], wanted)
