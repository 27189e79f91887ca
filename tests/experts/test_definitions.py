"""Every figure of docs/experts.md beside its definition, over dense arrays (N tokens, L layers, E experts)."""

from __future__ import annotations

import itertools
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from localmoe.experts import report
from localmoe.experts.recording import Recording, working_set_bytes
from localmoe.experts.statistics import ExpertStatistics
from tests.experts.recordings import recording

N, L, E, K = 60, 3, 6, 3
STARTS, PROMPTS = (0, 25), (slice(0, 18), slice(25, 47))  # two texts, each a prompt and its reply


@pytest.fixture(scope="module")
def run() -> Recording:
    """Three experts a token, the last sometimes skipped; expert 5 of layer 2 is never chosen."""
    rng = np.random.default_rng(5)
    router = rng.dirichlet(np.linspace(0.4, 2, E), size=(N, L))
    router[:, 2, 5] *= 1e-4
    router = (router / router.sum(axis=2, keepdims=True)).astype(np.float16).astype(np.float32)
    experts = np.argsort(-router, axis=2, kind="stable")[:, :, :K].astype(np.int32)
    weights = np.take_along_axis(router, experts, 2)
    light = rng.random((N, L)) < 0.3
    experts[:, :, -1][light], weights[:, :, -1][light] = -1, 0.0
    weights /= weights.sum(axis=2, keepdims=True)
    phase = np.ones(N, np.int8)
    for part in PROMPTS:
        phase[part] = 0
    return recording(
        experts, n_expert=E, weights=weights, router=router.astype(np.float16), phase=phase,
        starts=np.isin(np.arange(N), STARTS), expert_bytes=np.array([7, 11, 13], np.int64) << 20,
    )  # fmt: skip


def dense(run: Recording) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which experts each token chose, their gate weights and the router's probabilities, (N, L, E) each."""
    chose, gate = np.zeros((N, L, E), bool), np.zeros((N, L, E))
    for token, layer, slot in itertools.product(range(N), range(L), range(K)):
        expert = run.experts[token, layer, slot]
        if expert >= 0:
            chose[token, layer, expert] = True
            gate[token, layer, expert] = run.weights[token, layer, slot]
    assert run.router is not None
    return chose, gate, run.router.astype(float)


def entropy(load: np.ndarray) -> float:
    share = load[load > 0] / load.sum()
    return float(-(share * np.log2(share)).sum() / np.log2(len(load)))


def margin(chose: np.ndarray, router: np.ndarray) -> float:
    """Of one layer: p of the k-th minus p of the next, mean over tokens."""
    return float(np.mean([p[c].min() - p[~c].max() for c, p in zip(chose, router, strict=True)]))


def overflow(load: np.ndarray, factor: float) -> float:
    """Fedus et al. 2021, equation 3: tokens past an expert's capacity, choices / experts x factor."""
    capacity = load.sum() / len(load) * factor
    return float(sum(max(0.0, n - capacity) for n in load) / load.sum())


# of one layer and phase: chosen (n, E), gate weights (n, E), probabilities (n, E)
DEFINITIONS: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], Any]] = {
    "tokens": lambda c, g, p: len(c),
    "routed": lambda c, g, p: c.sum(axis=0),
    "share": lambda c, g, p: c.sum(axis=0) / c.sum(),
    "weight_share": lambda c, g, p: g.sum(axis=0) / g.sum(),
    "probability": lambda c, g, p: p.mean(axis=0),
    "entropy": lambda c, g, p: entropy(c.sum(axis=0)),
    "importance_cv": lambda c, g, p: g.sum(axis=0).std() / g.sum(axis=0).mean(),
    "max_over_mean": lambda c, g, p: c.sum(axis=0).max() / c.sum(axis=0).mean(),
    "dead": lambda c, g, p: ~c.any(axis=0),
    "margin": lambda c, g, p: margin(c, p),
    "skipped": lambda c, g, p: 1 - c.sum() / (K * len(c)),
}


@pytest.mark.parametrize("name", DEFINITIONS)
@pytest.mark.parametrize("phase", report.PHASES)
def test_a_figure_is_its_definition_in_every_layer_and_phase(run: Recording, phase: str, name: str) -> None:
    number = report.PHASES[phase]
    kept = np.ones(N, bool) if number is None else run.phase == number
    chose, gate, router = dense(run)
    for layer, row in enumerate(report.as_json(run)["phases"][phase]):
        wanted = DEFINITIONS[name](chose[kept, layer], gate[kept, layer], router[kept, layer])
        np.testing.assert_allclose(row[name], wanted, rtol=1e-6)


@pytest.mark.parametrize("factor", [1.0, 1.25])
@pytest.mark.parametrize("phase", report.PHASES)
def test_overflow_is_what_lies_past_the_capacity(run: Recording, phase: str, factor: float) -> None:
    number = report.PHASES[phase]
    kept = np.ones(N, bool) if number is None else run.phase == number
    for layer, row in enumerate(report.as_json(run)["phases"][phase]):
        wanted = overflow(dense(run)[0][kept, layer].sum(axis=0), factor)
        assert row["overflow"][f"{factor:g}"] == pytest.approx(wanted)
        assert wanted > 0


@pytest.mark.parametrize("phase", report.PHASES)
def test_reuse_is_by_the_next_token_of_the_same_text(run: Recording, phase: str) -> None:
    """Counted in the later token's phase; a text's last token has no next one."""
    number, chose = report.PHASES[phase], dense(run)[0]
    nexts = [t for t in range(1, N) if t not in STARTS and number in (None, run.phase[t])]
    for layer, row in enumerate(report.as_json(run)["phases"][phase]):
        used = sum(chose[t - 1, layer].astype(int) for t in nexts)
        again = sum((chose[t - 1, layer] & chose[t, layer]).astype(int) for t in nexts)
        wanted = [a / u if u else None for a, u in zip(again, used, strict=True)]
        assert row["reuse"] == pytest.approx(wanted)
        assert row["layer_reuse"] == pytest.approx(again.sum() / used.sum())


@pytest.mark.parametrize("phase", report.PHASES)
def test_pairs_are_those_most_tokens_chose_together(run: Recording, phase: str) -> None:
    number, chose = report.PHASES[phase], dense(run)[0]
    kept = np.ones(N, bool) if number is None else run.phase == number
    for layer, row in enumerate(report.as_json(run)["phases"][phase]):
        c = chose[kept, layer]
        together = {(a, b): int((c[:, a] & c[:, b]).sum()) for a, b in itertools.combinations(range(E), 2)}
        assert [pair["count"] for pair in row["pairs"]] == sorted(together.values(), reverse=True)[:3]
        for pair in row["pairs"]:
            a, b = pair["experts"]
            assert pair["count"] == together[a, b]
            assert pair["lift"] == pytest.approx(together[a, b] / (c[:, a].sum() * c[:, b].sum() / len(c)))


@pytest.mark.parametrize("last", [1, 2, 7, N])
def test_the_working_set_is_the_bytes_of_the_distinct_experts(run: Recording, last: int) -> None:
    chose = dense(run)[0][N - last :]
    wanted = sum(int(chose[:, layer].any(axis=0).sum()) * int(run.expert_bytes[layer]) for layer in range(L))
    assert working_set_bytes(run.statistics(), run.expert_bytes, last) == wanted
    if last == N:
        assert f"went through {wanted / 2**20:.1f} MiB" in report.working_set_line(run.statistics(), run)


def test_a_token_costs_the_same_after_a_hundred_as_after_ten_thousand() -> None:
    """O(1) in what came before: an update allocates as much, and nothing stays."""
    stats, rng = ExpertStatistics(4, 16, 2), np.random.default_rng(0)

    def peak_of_an_update() -> int:
        experts = np.argsort(rng.random((1, 4, 16)), axis=2)[:, :, :2].astype(np.int32)
        tracemalloc.start()
        stats.update(experts, np.full((1, 4, 2), 0.5, np.float32), None, 1)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return peak

    early = max(peak_of_an_update() for _ in range(100))
    experts = np.argsort(rng.random((10_000, 4, 16)), axis=2)[:, :, :2].astype(np.int32)
    stats.update(experts, np.full((10_000, 4, 2), 0.5, np.float32), None, 1)
    assert max(peak_of_an_update() for _ in range(100)) < early + 2_000
