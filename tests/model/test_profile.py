"""The profile of passes: what a step has to read and multiply, counted by hand, and that its times add up."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from statistics import median

import pytest

import localmoe
from localmoe.model.profile import Cost, Limits, Profile
from tests import tiny

D, FF, LAYERS, HEADS, KV_HEADS, HEAD = 64, 96, 2, 4, 2, 16


def profiles_of(path: Path, n_tok: int, n_threads: int, n: int) -> Iterator[Profile]:
    """`n` times the same pass, each profiled by itself."""
    with localmoe.load(path, n_ctx=64, n_threads=n_threads) as model:
        session = model.session()
        ids = [5 + i % 100 for i in range(n_tok)]
        session.prefill(ids)
        for _ in range(n):
            profile = model.profile()
            session.reset()
            profile.start()
            session.prefill(ids)
            profile.stop()
            session.reset()
            session.prefill(ids)  # not counted any more
            yield profile


def profile_of(path: Path, n_tok: int, n_threads: int) -> Profile:
    return next(profiles_of(path, n_tok, n_threads, 1))


def test_what_a_batch_costs(tmp_path: Path) -> None:
    """Every token chooses the favoured expert; float32 weights, float16 cache."""
    tiny.write_tiny(tmp_path / "m.gguf", n_expert_used=1, favoured=3)
    profile = profile_of(tmp_path / "m.gguf", 10, 1)
    costs, vocab = profile.costs, profile.runner.config.n_vocab
    one_expert = D * FF
    assert costs["gate, up"] == Cost(LAYERS * 2 * one_expert * 4, 0, LAYERS * 2 * one_expert * 10)
    assert costs["down"] == Cost(LAYERS * one_expert * 4, 0, LAYERS * one_expert * 10)
    assert costs["logits"] == Cost(vocab * D * 4, 0, vocab * D)
    pairs = 10 * 11 // 2
    cached = LAYERS * 10 * KV_HEADS * 2 * HEAD * 2
    assert costs["attention"] == Cost(cached, 0, LAYERS * pairs * HEADS * 2 * HEAD)
    assert costs["norm, quantize"] == Cost()


def test_a_token_reads_the_experts_it_uses(tmp_path: Path) -> None:
    tiny.write_tiny(tmp_path / "m.gguf", type="Q8_0", n_expert_used=3)
    profile = profile_of(tmp_path / "m.gguf", 1, 2)
    experts = LAYERS * 3 * D * FF
    assert profile.costs["down"] == Cost(experts // 32 * 34, experts, 0)
    with localmoe.load(tmp_path / "m.gguf", n_ctx=64) as model:
        assert model.decode_bytes(0) == sum(cost.n_bytes for cost in profile.costs.values())
        per_position = LAYERS * KV_HEADS * 2 * HEAD * 2
        assert model.decode_bytes(7) - model.decode_bytes(0) == 7 * per_position


@pytest.mark.parametrize("n_tok", [1, 20])
def test_times_of_steps_add_up_to_the_pass(tmp_path: Path, n_tok: int) -> None:
    tiny.write_tiny(tmp_path / "m.gguf")
    shares = []
    for profile in profiles_of(tmp_path / "m.gguf", n_tok, 2, 20):
        assert profile.n_tok == n_tok
        assert profile.step_s.shape[0] == 2
        assert (profile.step_s >= 0).all()
        names = list(profile.costs)
        for name in ("norm, quantize", "q, k, v", "attention", "gate, up", "down", "barriers"):
            assert profile.step_s[:, names.index(name)].sum() > 0, name  # one thread may take all of it
        shares.append(profile.step_s[0].sum() / profile.pass_s)
    assert median(shares) <= 1
    assert max(shares) > 0.5  # other programs can hold a thread off between its steps, though not in every pass


def test_the_least_time_of_a_step() -> None:
    limits = Limits(read=50.0, int_macs=800.0, float_macs=200.0)
    assert limits.seconds(Cost(100_000_000_000, 800, 0)) == 2.0
    assert limits.seconds(Cost(8, 1_600_000_000_000, 200_000_000_000)) == 3.0
    assert Limits(50.0, 0.0, 200.0).seconds(Cost(0, 10**12, 0)) == 0.0
