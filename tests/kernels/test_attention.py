"""The attention kernels against float64 products of what the cache stands for."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest

from localmoe.kernels import attention_pairs as pairs
from localmoe.kernels import table
from localmoe.kernels.attention import NEGATIVE, softmax_part, softmax_whole, store_key, store_value
from localmoe.kernels.shapes import BLOCK, KINDS, MAX_ROWS, act_bytes, k_block_bytes, padded, v_row_bytes
from localmoe.kernels.simd import LANES
from localmoe.kernels.table import scores_address, values_address
from tests import naive

ROWS = sorted({1, 2, 3, MAX_ROWS})
DIMS = {"f32": (20, 64), "f16": (20, 80, 128), "q8_0": (32, 96)}
CASES = [(kind, dim) for kind, dims in DIMS.items() for dim in dims]


def call(address: int, *args: Any) -> None:
    """Call a kernel with numbers and arrays' addresses."""
    numbers = [a.ctypes.data if isinstance(a, np.ndarray) else a for a in args]
    ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * len(args))(address)(*numbers)


def random(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def queries_over(kind: str, q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Query rows in the form a cache type wants, and what they stand for."""
    if kind != "q8_0":
        return q, q.astype(np.float64)
    rows = np.zeros((len(q), act_bytes("q8_0", q.shape[1])), np.uint8)
    for row, x in zip(rows, q, strict=True):
        packed = naive.activation_row("q8_0", x)
        row[: packed.size] = packed
    return rows, np.stack([naive.activation_values("q8_0", x) for x in q])


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize(("kind", "dim"), CASES)
def test_scores_are_the_products_with_the_cached_keys(kind: str, dim: int, rows: int) -> None:
    n = 9 * 32
    raw, keys = naive.cached_keys(kind, random((n, dim)))
    packed, queries = queries_over(kind, random((rows, dim), 1))
    s = np.full((rows, n + 8), 7.0, np.float32)
    call(scores_address(kind, rows), packed, packed.strides[0], raw, s, s.strides[0], n, dim)
    np.testing.assert_allclose(s[:, :n], queries @ keys.T, atol=1e-4)
    assert (s[:, n:] == 7.0).all()


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize(("kind", "dim"), CASES)
def test_values_are_added_by_their_weights(kind: str, dim: int, rows: int) -> None:
    n = 133
    raw, values = naive.cached_values(kind, random((n, dim)))
    weights = random((rows, n + 3), 1)
    acc = np.ones((rows, padded(dim)), np.float32)
    call(values_address(kind, rows), weights, weights.strides[0], raw, acc, acc.strides[0], n, dim)
    np.testing.assert_allclose(acc[:, :dim], 1.0 + weights[:, :n].astype(np.float64) @ values, atol=1e-4)


@pytest.mark.parametrize(("kind", "dim"), CASES)
def test_keys_and_values_are_stored_as_the_kernels_read_them(kind: str, dim: int) -> None:
    x = random((32, dim))
    scratch = np.zeros(act_bytes("q8_0", dim) + 64, np.uint8)
    block, rows = np.zeros(k_block_bytes(kind, dim), np.uint8), np.zeros((32, v_row_bytes(kind, dim)), np.uint8)
    for i, row in enumerate(x):
        store_key(KINDS[kind], row.ctypes.data, block.ctypes.data, i, dim, scratch.ctypes.data)
        store_value(KINDS[kind], row.ctypes.data, rows[i].ctypes.data, dim, scratch.ctypes.data)
    np.testing.assert_array_equal(block, naive.cached_keys(kind, x)[0])
    np.testing.assert_array_equal(rows.ravel(), naive.cached_values(kind, x)[0])


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max())
    return e / e.sum()


@pytest.mark.parametrize("visible", [1, 15, 16, 17, 64])
def test_a_row_of_one_block_is_normalised(visible: int) -> None:
    scores, state = random((64,)) * 5, np.zeros(2, np.float32)
    wanted = softmax(scores[:visible].astype(np.float64) * 0.5)
    softmax_whole(scores.ctypes.data, visible, 64, 0.5, False, state.ctypes.data)
    np.testing.assert_allclose(scores[:visible], wanted, rtol=1e-5)
    assert (scores[visible:] == 0).all()
    assert state[1] == 1.0


def test_a_row_of_several_blocks_keeps_its_maximum_and_sum() -> None:
    scores, values = random((3, 64)) * 4, random((3, 64, 16), 1)
    scores[1] += 9  # a new maximum, then none
    wanted = softmax(scores.astype(np.float64).ravel()[:150]) @ values.reshape(-1, 16)[:150].astype(np.float64)
    state, acc = np.array([NEGATIVE, 0], np.float32), np.zeros(16, np.float32)
    for i, row in enumerate(scores):
        softmax_part(row.ctypes.data, 150 - 64 * i, 64, 1.0, state.ctypes.data, acc.ctypes.data, 16)
        acc += row @ values[i]
    np.testing.assert_allclose(acc / state[1], wanted, atol=1e-5)


# --- pairs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "dim"), [("f16", 64), ("f16", 20), ("q8_0", 96)])
def test_scores_by_pairs_are_as_close_as_float16_keeps_keys(kind: str, dim: int) -> None:
    raw, keys = naive.cached_keys(kind, random((64, dim)) * np.geomspace(0.1, 20, dim, dtype=np.float32))
    queries = random((MAX_ROWS, dim), 1)
    ints, key_scales = np.zeros((2, dim // 2, 32, 2), np.int16), np.zeros(64, np.float32)
    call(table.key_pairs_address(kind), raw, ints, key_scales, 2, dim, 0, 0)
    q = np.zeros((MAX_ROWS, dim), np.int16)
    q_scales = [pairs.query_pairs(row.ctypes.data, q[i].ctypes.data, dim) for i, row in enumerate(queries)]
    s = np.zeros((MAX_ROWS, BLOCK), np.float32)
    for b in range(2):
        call(table.pair_scores_address(), q, 2 * dim, ints[b], key_scales[32 * b :], s[:, 32 * b :], 0, 1, dim)
    lengths = np.linalg.norm(queries, axis=1)[:, None] * np.linalg.norm(keys, axis=1)
    error = np.abs(s[:, :64] * np.array(q_scales)[:, None] - queries @ keys.T) / lengths
    assert error.max() < 1e-4
    assert np.sqrt((error**2).mean()) < 2e-5


@pytest.mark.parametrize(("kind", "dim", "n"), [("f16", 64, 512), ("f16", 80, 301), ("q8_0", 32, 129)])
def test_values_by_pairs_are_as_close_as_float16_rounds_weights(kind: str, dim: int, n: int) -> None:
    raw, values = naive.cached_values(kind, random((n, dim)))
    width, seen = padded(dim), [n - 2 * r for r in range(MAX_ROWS)]
    scores = random((MAX_ROWS, BLOCK), 1) * 3
    wanted = np.stack([softmax(row[:k].astype(np.float64)) @ values[:k] for row, k in zip(scores, seen, strict=True)])
    ints, scales = np.zeros((width // LANES, BLOCK // 2, LANES, 2), np.int16), np.zeros((pairs.SUBS, width), np.float32)
    zeros = np.zeros(4 * width, np.uint8)
    call(table.value_pairs_address(kind), raw, ints, scales, n, dim, zeros, 0)
    subs = np.array([-(-n // pairs.SUB)], np.int64)
    w_scales, acc = np.zeros((MAX_ROWS, pairs.SUBS), np.float32), np.zeros((MAX_ROWS, width), np.float32)
    state = np.tile(np.array([NEGATIVE, 0], np.float32), (MAX_ROWS, 1))
    for r in range(MAX_ROWS):
        rows = (scores[r], state[r], w_scales[r], acc[r])
        at, of_state, of_scales, of_acc = (a.ctypes.data for a in rows)
        pairs.weight_pairs(at, seen[r], int(subs[0]), float(np.log2(np.e)), of_state, of_scales, of_acc, width)
    call(table.pair_values_address(), scores, w_scales, ints, scales, acc, subs, 1, width // LANES)
    got = acc[:, :dim] / state[:, 1:]
    assert ((got - wanted) ** 2).sum() / (wanted**2).sum() < 1e-6
