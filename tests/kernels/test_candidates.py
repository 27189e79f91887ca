"""The largest of many float32 in one pass, against a stable sort."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localmoe.kernels.candidates import sum_exp, top_k
from localmoe.kernels.elementwise import all_finite
from localmoe.kernels.shapes import MOST


def found(values: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray] | None:
    ids, kept = np.empty(k, np.int64), np.empty(k, np.float32)
    ok = top_k(values.ctypes.data, values.size, k, ids.ctypes.data, kept.ctypes.data)
    return (ids, kept) if ok else None


@settings(deadline=None)  # the first call may compile
@given(st.integers(0, 2**32 - 1), st.integers(2, 3000), st.integers(1, MOST), st.sampled_from([0, 1, 3, 1000]))
def test_they_are_those_of_a_stable_sort(seed: int, n: int, k: int, n_level: int) -> None:
    """Also with many equal values, of which the first count."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=n) if n_level == 0 else rng.integers(0, n_level, n)
    values = values.astype(np.float32)
    k = min(k, n - 1)
    order = np.argsort(-values, kind="stable")[:k]
    got = found(values, k)
    assert got is not None
    np.testing.assert_array_equal(got[0], order)
    np.testing.assert_array_equal(got[1], values[order])


@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [0, 63, 64, 100, 998])
def test_what_is_not_finite_is_noticed(bad: float, at: int) -> None:
    values = np.random.default_rng(0).normal(size=999).astype(np.float32)
    assert all_finite(values.ctypes.data, values.size)
    assert found(values, 40) is not None
    values[at] = bad
    assert not all_finite(values.ctypes.data, values.size)
    assert found(values, 40) is None


def test_great_and_tiny_numbers_are_finite() -> None:
    values = np.full(999, 3.4e38, np.float32)
    values[::3], values[1::3] = -3.4e38, 1e-45
    assert all_finite(values.ctypes.data, values.size)
    assert found(values, 5) is not None


@pytest.mark.parametrize("n", [1, 15, 64, 100, 32_000])
def test_the_sum_of_exponentials_is_float64s(n: int) -> None:
    values = np.random.default_rng(n).normal(0, 8, n).astype(np.float32)
    values[n // 2] = -1e30
    wanted = np.exp(values.astype(np.float64) - values.max()).sum()
    assert sum_exp(values.ctypes.data, n, float(values.max())) == pytest.approx(wanted, rel=1e-5)
