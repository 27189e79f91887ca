"""Rows to columns, against NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from localmoe.quants.transpose import transpose


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
@pytest.mark.parametrize("shape", [(1, 1), (32, 64), (31, 33), (100, 7), (0, 5)])
def test_rows_become_columns(dtype: type, shape: tuple[int, int]) -> None:
    x = np.random.default_rng(0).integers(0, 60000, (shape[0], shape[1] + 9)).astype(dtype)[:, 4:-5]
    out = np.full(shape[::-1], 7, dtype)
    transpose(x, out)
    np.testing.assert_array_equal(out, x.T)
