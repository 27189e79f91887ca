"""The likeliest tokens of a position: the sampler hands on what it found while it drew, and nothing changes by it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from localmoe.engine.sampler_steps import likeliest_with
from localmoe.engine.sampling import Sampler, SamplingParams

WAYS: dict[str, dict[str, Any]] = {
    "by default": {},
    "fewer are kept than asked for": {"top_k": 2},
    "as many": {"top_k": 5},
    "greedy": {"temperature": 0.0},
    "a longer chain": {"top_k": 0, "typical_p": 0.9},
    "penalties": {"repeat_penalty": 1.5},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["finite", "equal", "some never"])
def test_it_is_the_softmax_of_the_models_logits(way: str, kind: str) -> None:
    rng = np.random.default_rng(7)
    sampler = Sampler(SamplingParams(seed=3, **WAYS[way]), 900)
    for _ in range(20):
        logits = rng.normal(0, 3, 900).astype(np.float32)
        if kind == "equal":
            logits = np.round(logits)
        elif kind == "some never":
            logits[rng.integers(0, 900, 30)] = -np.inf
        token = sampler.sample(logits)
        sampler.accept(token)
        found = sampler.likeliest_with(logits, 5, token)
        assert found == likeliest_with(logits, 5, token)
        powers = np.exp(logits.astype(np.float64))
        ids = np.argsort(-powers, kind="stable")[:5].tolist()
        ids += [] if token in ids else [token]
        assert [each for each, _ in found] == ids
        np.testing.assert_allclose([p for _, p in found], (powers / powers.sum())[ids], rtol=1e-5)
