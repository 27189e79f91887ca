"""The ring of routed tokens: what it holds comes back as it was, and its size is bounded."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from localmoe.experts.trace import MAX_BYTES, MOST, RoutingTrace


def some(n: int, n_layer: int, n_expert: int, n_used: int, seed: int = 0) -> dict[str, Any]:
    """Tokens with their routing, as the engine hands them over."""
    rng = np.random.default_rng(seed)
    router = rng.dirichlet(np.ones(n_expert), (n, n_layer)).astype(np.float32)
    experts = np.argsort(-router, axis=2)[:, :, :n_used].astype(np.int32)
    weights = np.take_along_axis(router, experts, 2)
    return {"tokens": np.arange(n, dtype=np.int32), "experts": experts, "weights": weights, "router": router}


def add(trace: RoutingTrace, given: dict[str, Any], phase: int = 0, **more: Any) -> None:
    trace.append(given["tokens"], phase, given["experts"], given["weights"], given["router"], **more)


@pytest.mark.parametrize(("n_expert", "n_used"), [(1, 1), (8, 2), (127, 3), (128, 8), (129, 8), (300, 300)])
def test_what_was_added_comes_back(n_expert: int, n_used: int) -> None:
    """Experts and weights exactly, probabilities as a recording keeps them, for any number of experts."""
    trace, given = RoutingTrace(2, n_expert), some(20, 2, n_expert, n_used)
    given["experts"][3, 1, 0] = -1
    add(trace, given)
    got = trace.read()
    np.testing.assert_array_equal(got.experts, given["experts"])
    np.testing.assert_array_equal(got.weights, given["weights"])
    np.testing.assert_array_equal(got.n_used, np.full((20, 2), n_used))
    np.testing.assert_array_equal(got.router, given["router"].astype(np.float16))
    np.testing.assert_array_equal(trace.router_of(7), given["router"][7].astype(np.float16))
    assert (got.experts.dtype, got.weights.dtype) == (np.int32, np.float32)
    assert trace.read(router=False).router is None


def test_the_newest_stay_when_more_come_than_it_holds() -> None:
    trace, given = RoutingTrace(2, 8, capacity=10), some(27, 2, 8, 2)
    for start in range(0, 27, 4):
        add(trace, {name: values[start : start + 4] for name, values in given.items()}, start % 2)
    got = trace.read()
    assert (got.first, trace.count) == (17, 27)
    np.testing.assert_array_equal(got.tokens, given["tokens"][17:])
    np.testing.assert_array_equal(got.experts, given["experts"][17:])
    assert trace.router_of(16) is None
    assert trace.router_of(27) is None
    assert trace.read(25).tokens.tolist() == [25, 26]


def test_more_experts_a_token_leave_older_tokens_as_they_were() -> None:
    """Top-k went from 2 to 5 and back: every token has its own choices, and unused slots are none."""
    trace, parts = RoutingTrace(2, 8, capacity=12), [some(6, 2, 8, k, seed=k) for k in (2, 5, 1)]
    for given in parts:
        add(trace, given)
    got = trace.read()
    assert got.first == 6
    assert got.experts.shape == (12, 2, 5)
    np.testing.assert_array_equal(got.experts[:6], parts[1]["experts"])
    np.testing.assert_array_equal(got.experts[6:, :, :1], parts[2]["experts"])
    assert (got.experts[6:, :, 1:] == -1).all()
    assert not got.weights[6:, :, 1:].any()
    wider = RoutingTrace(2, 8, capacity=12)
    for given in parts[:2]:
        add(wider, given)
    np.testing.assert_array_equal(wider.read().experts[:6, :, :2], parts[0]["experts"])
    assert (wider.read().experts[:6, :, 2:] == -1).all()


@pytest.mark.parametrize(("n_layer", "n_expert", "n_used"), [(6, 8, 2), (30, 4, 2), (48, 128, 8), (94, 128, 8)])
def test_a_long_reply_of_a_large_model_is_held_in_bounded_memory(n_layer: int, n_expert: int, n_used: int) -> None:
    trace = RoutingTrace(n_layer, n_expert)
    add(trace, some(1, n_layer, n_expert, n_used))
    assert 2300 <= trace.capacity <= MOST
    ring = trace._ring
    assert sum(array.nbytes for array in vars(ring).values() if isinstance(array, np.ndarray)) <= MAX_BYTES


def test_top_k_of_all_experts_keeps_the_bound() -> None:
    """Fewer tokens are held then, but those that are were there before."""
    trace, given = RoutingTrace(48, 128), some(3, 48, 128, 8)
    add(trace, given)
    before = trace.capacity
    add(trace, some(1, 48, 128, 128))
    assert 512 <= trace.capacity < before
    assert sum(array.nbytes for array in vars(trace._ring).values() if isinstance(array, np.ndarray)) <= MAX_BYTES
    np.testing.assert_array_equal(trace.read().experts[:3, :, :8], given["experts"])
