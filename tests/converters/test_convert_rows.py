"""Runs of rows from type to type, wherever they lie in memory."""

from __future__ import annotations

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type

from localmoe.converters.convert_rows import convert
from localmoe.quants.decode import decode
from localmoe.quants.encode import encode

STORED = {Type.F32: np.float32, Type.F16: np.float16, Type.BF16: np.uint16, Type.Q4_0: np.uint8}


def stored(kind: Type, rows: int, columns: int) -> np.ndarray:
    """Rows as a piece gives them."""
    x = np.random.default_rng(rows).standard_normal((rows, columns)).astype(np.float32)
    return encode(kind, x).view(STORED[kind])


def displaced(array: np.ndarray) -> np.ndarray:
    """The same array, read-only, at an odd address."""
    data = b"x" + array.tobytes()
    return np.frombuffer(data, array.dtype, array.size, 1).reshape(array.shape)


@pytest.mark.parametrize("kind", STORED, ids=lambda kind: kind.name)
@pytest.mark.parametrize("target", [Type.F32, Type.F16, Type.BF16, Type.Q8_0, Type.Q4_K])
def test_rows_at_odd_addresses(kind: Type, target: Type) -> None:
    rows = stored(kind, 3, 256)
    wanted = encode(target, decode(kind, np.ascontiguousarray(rows).view(np.uint8))) if kind != target else rows
    for given in (rows, displaced(rows), np.asfortranarray(rows)):
        converted = convert(given, kind, target, 256)
        assert bytes(converted.data) == wanted.tobytes()
        assert (converted.n_elements, converted.source_bytes, converted.bad) == (768, rows.nbytes, None)


def test_rows_are_not_changed() -> None:
    rows = stored(Type.F16, 2, 256)
    before = rows.copy()
    convert(rows, Type.F16, Type.Q6_K, 256)
    np.testing.assert_array_equal(rows, before)


def test_a_vector_is_one_row() -> None:
    assert bytes(convert(np.ones(5, np.float32), Type.F32, Type.F32, 5).data) == np.ones(5, np.float32).tobytes()


@pytest.mark.parametrize("index", [0, 131071, 131072, 262143])
def test_the_first_bad_element_in_any_chunk(index: int) -> None:
    rows = np.zeros((1024, 256), np.float16)
    rows.reshape(-1)[[index, -1]] = np.inf
    for target in (Type.Q8_0, Type.F16):
        found = convert(rows, Type.F16, target, 256)
        assert (found.bad, found.finite_source) == (index, False)


def test_a_scale_too_large_for_float16() -> None:
    rows = np.zeros((4, 256), np.float32)
    rows[2, 40] = 1e9
    found = convert(rows, Type.F32, Type.Q8_0, 256)
    assert (found.bad, found.finite_source) == (2 * 256 + 32, True)  # the block's first element
