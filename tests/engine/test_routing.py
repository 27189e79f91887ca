"""Leaving experts out, forcing them, skipping light ones, and other routers, against a float64 model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import localmoe
from localmoe.engine.routing import parse_experts
from localmoe.errors import UsageError
from tests import naive_model as naive
from tests.tiny import tiny_weights, write_tiny

IDS = np.random.default_rng(0).integers(3, 250, 70).tolist()


def open_f32(path: Path, **options: Any) -> localmoe.Model:
    return localmoe.load(str(path), cache_type_k="f32", cache_type_v="f32", n_ctx=128, n_threads=2, **options)


def rules_of(layer: int, n_used: int, options: dict[str, Any]) -> tuple[set[int], set[int], int, float]:
    limits = options.get("n_expert_used", n_used)
    limit = limits if isinstance(limits, int) else limits[layer]
    left, forced = (set(options.get(name, {}).get(layer, ())) for name in ("leave_out", "force_experts"))
    return left, forced, limit, options.get("expert_threshold", 0.0)


def naive_choice(probs: np.ndarray, rules: tuple[set[int], set[int], int, float], width: int) -> tuple[list, list]:
    """One token's experts and weights, by the words of the documentation."""
    left, forced, limit, threshold = rules
    by_probability = sorted(range(len(probs)), key=lambda e: -probs[e])
    order = [e for e in by_probability if e in forced] + [e for e in by_probability if e not in forced | left]
    chosen = order[:limit]
    weights = [probs[e] / sum(probs[c] for c in chosen) for e in chosen]
    while len(chosen) > 1 and weights[-1] < threshold and chosen[-1] not in forced:
        chosen.pop()
        weights.pop()
    weights = [w / sum(weights) for w in weights]
    return chosen + [-1] * (width - len(chosen)), weights + [0.0] * (width - len(chosen))


def with_rules(monkeypatch: pytest.MonkeyPatch, n_used: int, options: dict[str, Any]) -> None:
    """Make the naive model route by `options`; it asks for one layer after the other."""
    layer = iter(range(10**6))
    width = max(rules_of(i, n_used, options)[2] for i in range(2))

    def experts_of(x: np.ndarray, w: dict[str, np.ndarray], _: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        probs = naive.softmax(x @ w["ffn_gate_inp"].T)
        rules = rules_of(next(layer) % 2, n_used, options)
        pairs = [naive_choice(row, rules, width) for row in probs]
        return np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs]), probs

    monkeypatch.setattr(naive, "experts_of", experts_of)


CASES: dict[str, dict[str, Any]] = {
    "left out in one layer": {"leave_out": {1: [0, 3, 7]}},
    "one left": {"leave_out": {0: [0, 1, 2, 3, 4, 5, 6]}},
    "forced": {"force_experts": {0: [5], 1: [2, 6]}},
    "forced and left out": {"force_experts": {0: [5]}, "leave_out": {0: [1], 1: [4]}},
    "light ones skipped": {"expert_threshold": 0.3},
    "only the first kept": {"expert_threshold": 1.0},
    "forced ones are never skipped": {"expert_threshold": 1.0, "force_experts": {1: [0]}},
    "top 4, light ones skipped": {"n_expert_used": 4, "expert_threshold": 0.15},
    "layer by layer": {"n_expert_used": [1, 5]},
    "all in one layer": {"n_expert_used": [8, 2]},
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("kind", ["F32", "Q8_0"])
def test_rules_give_what_the_naive_model_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, kind: str
) -> None:
    """Prompts and single tokens; the trace says what ran, and -1 where nothing did."""
    options = CASES[name]
    with open_f32(write_tiny(tmp_path / "m.gguf", type=kind)) as model:
        got = model.eval(IDS, **options)
        session = model.session()
        session.reset()
        steps = np.array([session.decode(token).logits[0].copy() for token in IDS])
        assert naive.nmse(steps, got.logits) < (1e-9 if kind == "F32" else 1e-5)
        if kind != "F32":
            return
        with_rules(monkeypatch, 2, options)
        wanted = naive.naive_model(tiny_weights(), model.config, IDS)
    np.testing.assert_array_equal(got.experts, wanted.experts)
    np.testing.assert_allclose(got.weights, wanted.weights, atol=1e-5)
    np.testing.assert_allclose(got.router, wanted.router, atol=1e-5)
    assert naive.nmse(got.logits, wanted.logits) < 1e-11


def test_rules_last_for_one_request_and_the_cache_knows_them(tmp_path: Path) -> None:
    with open_f32(write_tiny(tmp_path / "m.gguf")) as model:
        plain = model.eval(IDS).logits
        list(model.generate(IDS[:40], max_tokens=2, temperature=0.0, leave_out={0: [1]}))
        list(model.generate(IDS[:40], max_tokens=2, temperature=0.0, leave_out={0: [1]}))
        assert model.timings.n_cached == 39
        list(model.generate(IDS[:40], max_tokens=2, temperature=0.0))
        assert model.timings.n_cached == 0
        np.testing.assert_array_equal(model.eval(IDS).logits, plain)


def test_another_router_runs_and_goes_away_again(tmp_path: Path) -> None:
    rows = np.random.default_rng(4).normal(size=(8, 64)).astype(np.float32)
    with open_f32(write_tiny(tmp_path / "m.gguf")) as model:
        plain = model.eval(IDS).logits
        model.session().replace_router(1, rows)
        got = model.eval(IDS)
        model.session().replace_router(1, None)
        np.testing.assert_array_equal(model.eval(IDS).logits, plain)
        wanted = naive.naive_model(tiny_weights() | {"blk.1.ffn_gate_inp.weight": rows}, model.config, IDS)
    np.testing.assert_array_equal(got.experts, wanted.experts)
    assert naive.nmse(got.logits, wanted.logits) < 1e-11


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"leave_out": {2: [0]}}, "no such layer, got 2, expected 0 to 1"),
        ({"leave_out": {0: [8]}}, "no such expert in layer 0, got 8"),
        ({"leave_out": {0: [-1]}}, "no such expert"),
        ({"leave_out": {1: range(8)}}, "no expert is left in layer 1"),
        ({"force_experts": {0: [0, 1, 2]}}, "too many experts are forced in layer 0"),
        ({"force_experts": {0: [1]}, "leave_out": {0: [1]}}, "cannot be forced and left out"),
        ({"expert_threshold": float("nan")}, "threshold"),
        ({"expert_threshold": -0.1}, "threshold"),
        ({"n_expert_used": [1]}, "every layer"),
        ({"n_expert_used": [1, 9]}, "1 to 8"),
    ],
)
def test_nothing_impossible_reaches_a_kernel(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    with open_f32(write_tiny(tmp_path / "m.gguf")) as model, pytest.raises(UsageError, match=said):
        model.eval(IDS[:3], **options)


def test_a_dense_model_has_nothing_to_leave_out(tmp_path: Path) -> None:
    with open_f32(write_tiny(tmp_path / "m.gguf", n_expert=0)) as model, pytest.raises(UsageError, match="no experts"):
        model.eval(IDS[:3], leave_out={0: [0]})


def test_choices_of_experts_are_read() -> None:
    assert parse_experts(["3:1,5", "0-1:2", "3:0"], 4) == {3: (1, 5, 0), 0: (2,), 1: (2,)}
    assert parse_experts(["*:2"], 2) == {0: (2,), 1: (2,)}
    for bad in ("3", "3:", ":1", "3:a", "4:0", "2-1:0", "0-4:0", "-1:0"):
        with pytest.raises(UsageError):
            parse_experts([bad], 4)
