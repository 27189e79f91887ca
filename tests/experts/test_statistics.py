"""The router's statistics, against values worked out by hand and a naive recomputation."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest

from localmoe.experts.coactivation import PairCounts
from localmoe.experts.labels import expert_labels
from localmoe.experts.statistics import DECODE, PREFILL, ExpertStatistics, normalised_entropy


def tokens(*chosen: list[list[int]], weights: list[list[list[float]]] | None = None):
    """Experts (N, L, K) and weights of the same shape, even unless given."""
    experts = np.array(chosen, np.int32)
    if weights is None:
        return experts, np.full(experts.shape, 1.0 / experts.shape[2], np.float32)
    return experts, np.array(weights, np.float32)


def test_counts_and_shares_by_hand():
    """Three tokens, one layer, four experts, two used: 0 is chosen 3 times, 1 twice, 2 once, 3 never."""
    stats = ExpertStatistics(1, 4, 2)
    experts, weights = tokens([[0, 1]], [[0, 1]], [[0, 2]], weights=[[[0.75, 0.25]], [[0.75, 0.25]], [[0.5, 0.5]]])
    stats.update(experts, weights, None, DECODE)
    layer = stats.layers(DECODE)
    assert layer.tokens.tolist() == [3]
    assert layer.routed.tolist() == [[3, 2, 1, 0]]
    np.testing.assert_allclose(layer.share, [[3 / 6, 2 / 6, 1 / 6, 0]])
    np.testing.assert_allclose(layer.weight_share, [[2.0 / 3, 0.5 / 3, 0.5 / 3, 0]])
    np.testing.assert_allclose(layer.max_over_mean, [2.0])
    assert layer.dead.tolist() == [[False, False, False, True]]
    # importance 2, .5, .5, 0: mean .75, variance (1.5625 + .0625 + .0625 + .5625) / 4 = .5625
    np.testing.assert_allclose(layer.importance_cv, [0.75 / 0.75])
    entropy = -(0.5 * math.log(1 / 2) + 1 / 3 * math.log(1 / 3) + 1 / 6 * math.log(1 / 6)) / math.log(4)
    np.testing.assert_allclose(layer.entropy, [entropy])


def test_entropy_ends():
    """Even load is 1, a single busy expert is 0, no data is NaN, a lone expert is 1."""
    share = np.array([[0.25] * 4, [1.0, 0, 0, 0], [math.nan] * 4])
    np.testing.assert_allclose(normalised_entropy(share), [1, 0, math.nan], atol=1e-12)
    np.testing.assert_allclose(normalised_entropy(np.array([[1.0]])), [1.0])


def test_reuse_by_the_next_token():
    """Choices {0,1} then {0,2} then {3,2}: 0 is repeated 1 of 2 times, 1 never, 2 once of once."""
    stats = ExpertStatistics(1, 4, 2)
    stats.update(*tokens([[0, 1]], [[0, 2]], [[3, 2]]), None, DECODE)
    layer = stats.layers(DECODE)
    np.testing.assert_allclose(layer.reuse, [[0.5, 0.0, 1.0, math.nan]])
    np.testing.assert_allclose(layer.layer_reuse, [2 / 4])


def test_reuse_crosses_calls_and_phases_but_not_a_boundary():
    """The first decoded token follows the prompt's last; after boundary() nothing precedes."""
    stats = ExpertStatistics(1, 4, 1)
    stats.update(*tokens([[2]]), None, PREFILL)
    stats.update(*tokens([[2]]), None, DECODE)
    assert stats.layers(DECODE).reuse[0, 2] == 1.0
    assert math.isnan(stats.layers(PREFILL).reuse[0, 2])
    stats.boundary()
    stats.update(*tokens([[2]]), None, PREFILL)
    assert math.isnan(stats.layers(PREFILL).reuse[0, 2])


def test_phases_are_apart_and_add_up():
    """A mixed batch is split by phase; None gives both together."""
    stats = ExpertStatistics(1, 2, 1)
    stats.update(*tokens([[0]], [[0]], [[1]]), None, np.array([0, 0, 1]))
    assert stats.layers(PREFILL).routed.tolist() == [[2, 0]]
    assert stats.layers(DECODE).routed.tolist() == [[0, 1]]
    assert stats.layers().routed.tolist() == [[2, 1]]
    assert stats.n_tokens == 3


def test_layers_stay_apart():
    """Expert 0 in one layer says nothing about expert 0 in another."""
    stats = ExpertStatistics(2, 2, 1)
    stats.update(*tokens([[0], [1]], [[0], [1]]), None, DECODE)
    assert stats.layers().routed.tolist() == [[2, 0], [0, 2]]
    np.testing.assert_allclose(stats.layers().entropy, [0, 0], atol=1e-12)


def test_moving_average_by_hand():
    """With window 2 a choice fades by half a token: 0 then 1 leaves 1/2 and 1, so shares 1/3 and 2/3."""
    stats = ExpertStatistics(1, 2, 1, window=2)
    stats.update(*tokens([[0]], [[1]]), None, DECODE)
    np.testing.assert_allclose(stats.moving_share(), [[1 / 3, 2 / 3]])


def test_moving_average_by_gate_weight():
    """The same fading, 1/2 and 1, of weights .9, .1 and then .3, .7: .75 and .75 of 1.5."""
    stats = ExpertStatistics(1, 2, 2, window=2)
    stats.update(*tokens([[0, 1]], [[0, 1]], weights=[[[0.9, 0.1]], [[0.3, 0.7]]]), None, DECODE)
    np.testing.assert_allclose(stats.moving_weight_share(), [[0.5, 0.5]], rtol=1e-6)
    np.testing.assert_allclose(stats.moving_share(), [[0.5, 0.5]])


def test_a_mark_tells_the_tokens_after_it_apart():
    """What follows a mark is counted as if nothing had been before, but for the reuse of the token before it."""
    rng = np.random.default_rng(3)
    experts = rng.permuted(np.tile(np.arange(8), (90, 3, 1)), axis=2)[:, :, :2].astype(np.int32)
    weights = rng.dirichlet((1, 1), (90, 3)).astype(np.float32)
    stats, after = ExpertStatistics(3, 8, 2), ExpertStatistics(3, 8, 2)
    stats.update(experts[:60], weights[:60], None, PREFILL)
    stats.mark()
    assert not stats.since_mark().tokens.any()
    for counted in (stats, after):
        counted.boundary()
        counted.update(experts[60:], weights[60:], None, DECODE)
    for name, value in vars(after.layers()).items():
        np.testing.assert_allclose(getattr(stats.since_mark(), name), value, atol=1e-12, err_msg=name)
    assert stats.layers().tokens.tolist() == [90] * 3
    stats.reset()
    stats.update(experts[:5], weights[:5], None, DECODE)
    assert stats.since_mark().tokens.tolist() == [5] * 3


def test_last_token_spread():
    """The newest token's weights stand at its experts, each row summing to 1."""
    stats = ExpertStatistics(1, 4, 2)
    assert np.isnan(stats.last_share()).all()
    stats.update(*tokens([[0, 1]], [[3, 1]], weights=[[[0.5, 0.5]], [[0.6, 0.2]]]), None, DECODE)
    np.testing.assert_allclose(stats.last_share(), [[0, 0.25, 0, 0.75]], rtol=1e-6)
    assert stats.last_token()[0].tolist() == [[3, 1]]


def test_router_probability_is_averaged_over_tokens_that_bring_one():
    """Tokens without a router row do not pull the mean down."""
    stats = ExpertStatistics(1, 2, 1)
    experts, weights = tokens([[0]], [[1]])
    stats.update(experts, weights, np.array([[[0.75, 0.25]], [[0.25, 0.75]]], np.float32), DECODE)
    stats.update(experts, weights, None, DECODE)
    np.testing.assert_allclose(stats.layers(DECODE).probability, [[0.5, 0.5]])


def test_top_k_may_change_and_unused_slots_are_left_out():
    """A slot of -1 is no choice, and K may differ between calls."""
    stats = ExpertStatistics(1, 3, 2)
    stats.update(*tokens([[0, -1]]), None, DECODE)
    stats.update(*tokens([[0, 1, 2]]), None, DECODE)
    assert stats.layers().routed.tolist() == [[2, 1, 1]]


def test_empty_and_dense():
    """No tokens: NaN figures and nobody dead. A dense model (K = 0) counts nothing."""
    empty = ExpertStatistics(2, 4, 2).layers()
    assert np.isnan(empty.share).all()
    assert np.isnan(empty.entropy).all()
    assert not empty.dead.any()
    dense = ExpertStatistics(2, 0, 0)
    dense.update(np.zeros((3, 2, 0), np.int32), np.zeros((3, 2, 0), np.float32), None, DECODE)
    assert dense.n_tokens == 0
    assert dense.layers().share.shape == (2, 0)


@pytest.mark.parametrize(("n_layer", "n_expert", "n_used"), [(3, 8, 2), (2, 5, 3), (2, 64, 8)])
def test_agrees_with_a_naive_recomputation(n_layer, n_expert, n_used):
    """Fed in uneven pieces, everything equals loops over the whole history."""
    rng = np.random.default_rng(n_expert)
    n = 70
    router = rng.dirichlet(np.ones(n_expert), size=(n, n_layer)).astype(np.float32)
    experts = np.argsort(-router, axis=2)[:, :, :n_used].astype(np.int32)
    experts[rng.random(experts.shape) < 0.2] = -1  # in any slot: nothing ran there
    weights = rng.dirichlet(np.ones(n_used), size=(n, n_layer)).astype(np.float32)
    stats = ExpertStatistics(n_layer, n_expert, n_used, window=16)
    for start, stop in [(0, 1), (1, 40), (40, 41), (41, 70)]:
        stats.update(experts[start:stop], weights[start:stop], router[start:stop], DECODE)
    got = stats.layers(DECODE)
    for layer in range(n_layer):
        routed, weight, moving = np.zeros(n_expert), np.zeros(n_expert), np.zeros(n_expert)
        again, followed, margins = 0, 0, []
        for t in range(n):
            moving *= 1 - 1 / 16
            chosen = [e for e in experts[t, layer] if e >= 0]
            for k in range(n_used):
                if experts[t, layer, k] >= 0:
                    weight[experts[t, layer, k]] += weights[t, layer, k]
            for e in chosen:
                routed[e] += 1
                moving[e] += 1
                if t + 1 < n:
                    followed += 1
                    again += e in experts[t + 1, layer]
            rest = [router[t, layer, e] for e in range(n_expert) if e not in chosen]
            if chosen:
                margins.append(min(router[t, layer, e] for e in chosen) - max(rest))
        np.testing.assert_array_equal(got.routed[layer], routed)
        np.testing.assert_allclose(got.weight_share[layer], weight / weight.sum(), rtol=1e-6)
        np.testing.assert_allclose(got.importance_cv[layer], weight.std() / weight.mean(), rtol=1e-6)
        np.testing.assert_allclose(stats.moving_share()[layer], moving / moving.sum(), rtol=1e-9)
        np.testing.assert_allclose(got.layer_reuse[layer], again / followed)
        np.testing.assert_allclose(got.margin[layer], np.mean(margins), rtol=1e-4, atol=1e-7)
        np.testing.assert_allclose(got.probability[layer], router[:, layer].mean(axis=0), rtol=1e-5)
        late = {e for e in experts[n - 10 :, layer].ravel().tolist() if e >= 0}
        assert stats.working_set(10)[layer] == len(late)


def test_margin_by_hand():
    """Chosen .5 and .3 against .2 left out is .1; a token that uses every expert has no margin."""
    stats = ExpertStatistics(1, 3, 2)
    router = np.array([[[0.5, 0.3, 0.2]], [[0.1, 0.6, 0.3]]], np.float32)
    stats.update(*tokens([[0, 1]], [[1, 2]]), router, DECODE)
    np.testing.assert_allclose(stats.layers().margin, [(0.1 + 0.2) / 2], rtol=1e-6)
    full = ExpertStatistics(1, 2, 2)
    full.update(*tokens([[0, 1]]), np.array([[[0.5, 0.5]]], np.float32), DECODE)
    assert np.isnan(full.layers().margin).all()


def test_overflow_by_hand():
    """Loads 5, 2, 1, 0 of 8: capacity 2 loses 3; at 1.25 it is 2.5 and loses 2.5."""
    stats = ExpertStatistics(1, 4, 1)
    stats.update(*tokens(*[[[e]] for e in (0, 0, 0, 0, 0, 1, 1, 2)]), None, DECODE)
    np.testing.assert_allclose(stats.layers().overflow, [[3 / 8], [2.5 / 8]])
    even = ExpertStatistics(1, 2, 1)
    even.update(*tokens([[0]], [[1]]), None, DECODE)
    np.testing.assert_allclose(even.layers().overflow, [[0], [0]])


def test_working_set_by_hand():
    """Experts 0, 1, 0, 2: the last token touched one, the last two {0, 2}, the last three and all {0, 1, 2}."""
    stats = ExpertStatistics(1, 4, 1)
    assert stats.working_set(10).tolist() == [0]
    stats.update(*tokens([[0]], [[1]], [[0]]), None, PREFILL)
    stats.update(*tokens([[2]]), None, DECODE)
    assert [int(stats.working_set(n)[0]) for n in (1, 2, 3, 4, 100)] == [1, 2, 3, 3, 3]


def test_pairs_by_hand():
    """{0,1} twice, {1,2} once: lift of 0 and 1 is 2 / (2 x 3 / 3) = 1, of 1 and 2 is 1 / (3 x 1 / 3) = 1."""
    stats = ExpertStatistics(1, 4, 2)
    stats.update(*tokens([[0, 1]], [[1, 0]], [[2, 1]]), None, DECODE)
    (pairs,) = stats.pairs(DECODE)
    assert [(p.first, p.second, p.count) for p in pairs] == [(0, 1, 2), (1, 2, 1)]
    np.testing.assert_allclose([p.lift for p in pairs], [1.0, 1.0])
    assert stats.pairs(PREFILL) == [[]]


def test_skipped_share_by_hand():
    """Two tokens that were to use two experts, one of which used one: a quarter was skipped."""
    stats = ExpertStatistics(1, 3, 2)
    stats.update(*tokens([[0, 1]], [[2, -1]]), None, DECODE, np.array([[2], [2]]))
    np.testing.assert_allclose(stats.layers().skipped, [0.25])
    stats.update(*tokens([[0, -1]]), None, PREFILL)
    np.testing.assert_allclose(stats.layers(PREFILL).skipped, [0.0])


@pytest.mark.parametrize(("n_expert", "n_used"), [(7, 3), (256, 8)])
def test_pair_counts_equal_a_count_of_every_pair(n_expert, n_used):
    """Up to 256 experts exact, in every layer, whatever the order of a token's choices."""
    rng = np.random.default_rng(1)
    experts = np.stack([[rng.permutation(n_expert)[:n_used] for _ in range(2)] for _ in range(40)])
    counts = PairCounts(2, n_expert)
    counts.add(experts[:15])
    counts.add(experts[15:])
    assert counts.exact
    for layer in range(2):
        wanted = np.zeros((n_expert, n_expert), int)
        for token in experts[:, layer]:
            for a in token:
                for b in token:
                    wanted[a, b] += a < b
        first, second = np.nonzero(wanted)
        got = counts.layer(layer)
        assert got.sum() == wanted.sum()
        assert [got[b * (b - 1) // 2 + a] for a, b in zip(first, second, strict=True)] == wanted[wanted > 0].tolist()
        assert counts.count(layer, int(second[0]), int(first[0])) == wanted[first[0], second[0]]


def test_a_sketch_of_pairs_is_bounded_never_too_low_and_finds_the_frequent_ones():
    """512 experts: more pairs than counters. 400 tokens share two experts, the rest is noise."""
    rng = np.random.default_rng(2)
    experts = np.stack([rng.permutation(510)[:8] for _ in range(1000)])[:, None, :]
    experts[:400, 0, :2] = [511, 510]
    counts = PairCounts(1, 512)
    counts.add(experts)
    assert not counts.exact
    assert counts.table.nbytes <= 1 << 17
    wanted = {}
    for token in experts[:, 0]:
        for i, a in enumerate(token):
            for b in token[i + 1 :]:
                key = (min(a, b), max(a, b))
                wanted[key] = wanted.get(key, 0) + 1
    assert all(counts.count(0, *map(int, pair)) >= n for pair, n in wanted.items())
    (best,) = counts.top(0, 1, np.bincount(experts.ravel(), minlength=512), 1000)
    assert (best.first, best.second) == (510, 511)
    assert 400 <= best.count <= 420


def test_256_experts_in_96_layers_stay_within_40_mib():
    tracemalloc.start()
    stats = ExpertStatistics(96, 256, 8)
    batch = np.random.default_rng(0).integers(0, 256, size=(4, 96, 8)).astype(np.int32)
    stats.update(batch, np.full(batch.shape, 0.125, np.float32), None, PREFILL)
    stats.layers()
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert held < 40 << 20


def test_memory_does_not_grow_with_tokens():
    """The same memory after 2,000 tokens as after 200, a long prompt included."""
    stats = ExpertStatistics(4, 32, 4)
    rng = np.random.default_rng(0)
    batch = rng.integers(0, 32, size=(200, 4, 4)).astype(np.int32)
    weights = np.full(batch.shape, 0.25, np.float32)
    stats.update(batch, weights, None, PREFILL)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for _ in range(9):
        stats.update(batch, weights, None, PREFILL)
    after = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert after - before < 20_000


def test_labels_are_taken_only_where_they_fit():
    """An array of strings, one an expert; anything else is no labels."""
    key = "localmoe.expert.labels"
    assert expert_labels({key: ["a story", "some code"]}, 2) == ("a story", "some code")
    for bad in (["one"], "ab", [1, 2], ["", ""], None):
        assert expert_labels({key: bad}, 2) == ()
    assert expert_labels({}, 2) == ()
