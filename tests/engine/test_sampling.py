"""The sampler chain: llama.cpp's published values, naive loops, and the rules for bad logits and bad parameters."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from localmoe.engine import sampler_steps as steps
from localmoe.engine.sampler_history import find_breakers
from localmoe.engine.sampling import Sampler, SamplingParams
from localmoe.errors import LocalMoeError, UsageError
from tests.engine import naive_sampling as naive
from tests.slowness import least, slowness

OFF: dict[str, Any] = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "seed": 1}
QUARTERS = [0.1, 0.2, 0.3, 0.4]
UNIFORM = [0.2] * 5


def log(probs: list[float]) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.log(np.array(probs)).astype(np.float32)


def kept(probs: list[float], accepted: tuple[int, ...] = (), **params: Any) -> list[float]:
    """Probabilities the sampler draws from, likeliest first."""
    sampler = Sampler(SamplingParams(**{**OFF, **params}), len(probs))
    for token in accepted:
        sampler.accept(token)
    sampler.sample(log(probs))
    return [float(p) for p in sampler.candidates()[1]]


def by_id(probs: list[float], accepted: tuple[int, ...] = (), **params: Any) -> list[float]:
    """Probability the sampler gives to each token."""
    sampler = Sampler(SamplingParams(**{**OFF, **params}), len(probs))
    for token in accepted:
        sampler.accept(token)
    sampler.sample(log(probs))
    out = [0.0] * len(probs)
    for token, p in zip(*sampler.candidates(), strict=True):
        out[token] = float(p)
    return out


# llama.cpp's tests/test-sampling.cpp
@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({"temperature": 1.0}, [0.4, 0.3, 0.2, 0.1]),
        ({"temperature": 0.0}, [1.0]),
        ({"top_k": 1}, [1.0]),
        ({"top_k": 3}, [0.44444, 0.33333, 0.22222]),
        ({"top_k": 4}, [0.4, 0.3, 0.2, 0.1]),
        ({"top_k": 0}, [0.4, 0.3, 0.2, 0.1]),
        ({"top_p": 0.0}, [1.0]),
        ({"top_p": 0.7}, [0.571429, 0.428571]),
        ({"top_p": 0.8}, [0.44444, 0.33333, 0.22222]),
        ({"top_p": 1.0}, [0.4, 0.3, 0.2, 0.1]),
        ({"min_p": 0.0}, [0.4, 0.3, 0.2, 0.1]),
        ({"min_p": 0.24}, [0.4, 0.3, 0.2, 0.1]),
        ({"min_p": 0.26}, [4 / 9, 3 / 9, 2 / 9]),
        ({"min_p": 0.49}, [4 / 9, 3 / 9, 2 / 9]),
        ({"min_p": 0.51}, [4 / 7, 3 / 7]),
        ({"min_p": 0.74}, [4 / 7, 3 / 7]),
        ({"min_p": 0.76}, [1.0]),
        ({"min_p": 1.0}, [1.0]),
        ({"top_n_sigma": 1.0}, [0.571429, 0.428571, 0.0, 0.0]),
        ({"top_n_sigma": 0.0}, [0.4, 0.3, 0.2, 0.1]),
        ({"top_n_sigma": 3.0}, [0.4, 0.3, 0.2, 0.1]),
        ({"top_p": 0.1, "min_keep": 2}, [0.571429, 0.428571]),
        ({"min_p": 1.0, "min_keep": 3}, [0.44444, 0.33333, 0.22222]),
    ],
)
def test_one_step_keeps_what_llama_cpp_keeps(params: dict[str, Any], expected: list[float]) -> None:
    assert kept(QUARTERS, **params) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("threshold", "expected"),
    [(0.09, [0.1]), (0.19, [0.2, 0.1]), (0.29, [0.3, 0.2, 0.1]), (0.39, [0.4, 0.3, 0.2, 0.1])],
)
def test_xtc_drops_the_top_choices_but_the_last(threshold: float, expected: list[float]) -> None:
    total = sum(expected)
    assert kept(QUARTERS[::-1], xtc_probability=1.0, xtc_threshold=threshold) == pytest.approx(
        [p / total for p in expected], abs=1e-5
    )


def test_xtc_happens_with_its_probability() -> None:
    sampler = Sampler(SamplingParams(**{**OFF, "xtc_probability": 0.3, "xtc_threshold": 0.09}), 4)
    dropped = 0
    for _ in range(2000):
        sampler.sample(log(QUARTERS))
        dropped += len(sampler.candidates()[0]) == 1
    assert 0.27 < dropped / 2000 < 0.33


@pytest.mark.parametrize(("probs", "ids"), [([0.97, 0.01, 0.01, 0.01], [0]), ([0.4, 0.2, 0.2, 0.2], [1, 2, 3])])
def test_typical_keeps_tokens_near_the_entropy(probs: list[float], ids: list[int]) -> None:
    assert sorted(steps.typical(steps.from_vocabulary(log(probs), 0), 0.5).ids.tolist()) == ids


@pytest.mark.parametrize(
    ("accepted", "penalties", "expected"),
    [
        ((0,), (50.0, 0.0, 0.0), [0, 0.25, 0.25, 0.25, 0.25]),
        ((0, 1, 2), (50.0, 0.0, 0.0), [0, 0, 0, 0.5, 0.5]),
        ((0, 1, 2, 0, 0), (50.0, 0.0, 0.0), [0, 0, 0, 0.5, 0.5]),
        ((0,), (1.0, 5.0, 5.0), [0.000011, 0.249997, 0.249997, 0.249997, 0.249997]),
        ((0, 1, 2), (1.0, 5.0, 5.0), [0.000023, 0.000023, 0.000023, 0.499966, 0.499966]),
        ((0, 1, 2, 0, 0), (1.0, 5.0, 5.0), [0.0, 0.000023, 0.000023, 0.499977, 0.499977]),
    ],
)
def test_penalties_lower_what_was_said(
    accepted: tuple[int, ...], penalties: tuple[float, float, float], expected: list[float]
) -> None:
    repeat, frequency, presence = penalties
    got = by_id(UNIFORM, accepted, repeat_penalty=repeat, frequency_penalty=frequency, presence_penalty=presence)
    assert got == pytest.approx(expected, abs=1e-5)


def test_penalties_forget_what_left_the_window() -> None:
    assert by_id(UNIFORM, (0, 1, 2), repeat_penalty=50.0, repeat_last_n=1)[:3] == pytest.approx(
        [0.25, 0.25, 0], abs=1e-5
    )


@pytest.mark.parametrize(
    ("n", "accepted", "params", "expected"),
    [
        (4, (0, 1), (1.0, 2, 4), [0.25] * 4),
        (4, (0, 1, 2, 0, 1), (1.0, 2, 5), [0.296923, 0.296923, 0.109232, 0.296923]),
        (5, (0, 1, 2, 0, 1), (2.0, 2, 5), [0.241818, 0.241818, 0.032727, 0.241818, 0.241818]),
        (5, (0, 1, 2, 3, 4, 0, 1), (1.0, 4, 7), [0.2] * 5),
    ],
)
def test_dry_lowers_what_would_prolong_a_repetition(
    n: int, accepted: tuple[int, ...], params: tuple[float, int, int], expected: list[float]
) -> None:
    multiplier, allowed, last_n = params
    dry = {"dry_multiplier": multiplier, "dry_base": 1.1, "dry_allowed_length": allowed, "dry_penalty_last_n": last_n}
    assert by_id([1 / n] * n, accepted, **dry) == pytest.approx(expected, abs=1e-5)


class Letters:
    """A vocabulary of six pieces."""

    pieces = ("a", "b", "c", ":", "ab:", "d:")
    n_vocab = 6

    def token(self, i: int) -> bytes:
        return self.pieces[i].encode()

    def encode(self, text: str, *, add_bos: bool | None = None, parse_special: bool = False) -> list[int]:
        assert add_bos is False
        assert not parse_special
        return [self.pieces.index(letter) for letter in text]


def test_dry_stops_at_a_sequence_breaker() -> None:
    """(0, 1, 3, 4, 0, 1) with 3 a breaker: nothing before it counts (llama.cpp's test)."""
    params = SamplingParams(**{**OFF, "dry_multiplier": 1.0, "dry_base": 1.1, "dry_sequence_breakers": (":",)})
    sampler = Sampler(params, 6, Letters())
    for token in (0, 1, 3, 2, 0, 1):
        sampler.accept(token)
    sampler.sample(log([1 / 6] * 6))
    assert sampler.candidates()[1] == pytest.approx([1 / 6] * 6, abs=1e-6)


def test_a_breaker_may_begin_inside_a_token() -> None:
    """':b' is a token that ends in ':' and then 'b'; a token that holds the text whole needs nothing after it."""
    assert find_breakers((":b",), Letters()) == {3: {(1,)}, 4: {(1,)}, 5: {(1,)}}
    assert find_breakers((":",), Letters()) == {3: {()}, 4: {()}, 5: {()}}


def numbers(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(low, high, allow_nan=False, width=32)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    logits=st.lists(numbers(-20, 20) | st.just(-math.inf), min_size=2, max_size=40).filter(
        lambda x: max(x) > -math.inf
    ),
    history=st.lists(st.integers(0, 3), max_size=30).map(lambda x: [token % 2 for token in x]),
    params=st.fixed_dictionaries(
        {},
        optional={
            "temperature": numbers(-1, 3),
            "dynatemp_range": st.sampled_from([0.0, 0.5]),
            "top_k": st.integers(0, 50),
            "top_p": numbers(0, 1),
            "min_p": numbers(0, 1),
            "typical_p": numbers(0, 1),
            "top_n_sigma": numbers(-1, 3),
            "repeat_penalty": numbers(0.5, 2),
            "repeat_last_n": st.integers(0, 20),
            "frequency_penalty": numbers(-1, 1),
            "presence_penalty": numbers(-1, 1),
            "dry_multiplier": numbers(0, 2),
            "dry_allowed_length": st.integers(0, 4),
            "dry_penalty_last_n": st.integers(0, 20),
            "min_keep": st.integers(0, 5),
            "logit_bias": st.dictionaries(st.integers(0, 1), numbers(-5, 5)),
        },
    ),
)
@example(logits=[0.0, 0.0, 2.0**-53], history=[], params={"top_k": 0, "top_p": 0.0})  # equally likely in float64
def test_chain_equals_the_naive_one(logits: list[float], history: list[int], params: dict[str, Any]) -> None:
    chosen = SamplingParams(**params, seed=3)
    sampler = Sampler(chosen, len(logits))
    for token in history:
        sampler.accept(token)
    token = sampler.sample(np.array(logits, np.float32))
    got = {int(i): float(p) for i, p in zip(*sampler.candidates(), strict=True) if p > 0}
    assert token in got
    assert got == pytest.approx(naive.chain(logits, history, chosen), abs=1e-5)


def test_top_k_of_a_large_vocabulary_equals_a_full_sort() -> None:
    values = np.random.default_rng(0).normal(size=20_011).round(2).astype(np.float32)
    for k in (1, 40, 300, 19_000, 20_011):
        np.testing.assert_array_equal(steps.largest(values, k), np.argsort(-values, kind="stable")[:k])


def test_top_k_of_equal_values_takes_the_first() -> None:
    values = np.full(5000, -np.inf, np.float32)
    values[[3000, 20, 4000]] = [1.0, 1.0, 2.0]
    assert steps.largest(values, 5).tolist() == [4000, 20, 3000, 0, 1]


def test_top_p_finds_its_end_beyond_the_first_prefix() -> None:
    values = np.random.default_rng(0).normal(size=5_000).astype(np.float32)
    got = steps.top_p(steps.from_vocabulary(values, 0), 0.9)
    expected = naive.top_p(list(enumerate(values.astype(float).tolist())), 0.9, 0)
    assert got.ids.tolist() == [token for token, _ in expected]
    assert len(expected) > steps.PREFIXES[0]


def test_greedy_takes_the_first_of_equal_logits() -> None:
    sampler = Sampler(SamplingParams(temperature=0), 4)
    assert sampler.sample(np.array([1, 3, 3, 0], np.float32)) == 1


def test_a_seed_gives_the_same_tokens_again() -> None:
    logits = np.random.default_rng(1).normal(size=1000).astype(np.float32)
    one, two = (Sampler(SamplingParams(seed=7), 1000) for _ in range(2))
    first = [one.sample(logits) for _ in range(50)]
    assert first == [two.sample(logits) for _ in range(50)]
    assert len(set(first)) > 5
    one.reset()
    assert first == [one.sample(logits) for _ in range(50)]


def test_a_drawn_seed_differs_and_is_told() -> None:
    one, two = (Sampler(SamplingParams(), 10) for _ in range(2))
    assert one.seed != two.seed


def test_draws_follow_the_probabilities() -> None:
    """Chi-squared of 8,000 draws from four tokens, 3 degrees of freedom: below 16.3 by 99.9%."""
    sampler = Sampler(SamplingParams(**OFF), 4)
    counts = np.bincount([sampler.sample(log(QUARTERS)) for _ in range(8000)], minlength=4)
    expected = np.array(QUARTERS) * 8000
    assert ((counts - expected) ** 2 / expected).sum() < 16.3


def test_an_impossible_token_is_never_drawn() -> None:
    assert steps.draw_index(np.array([0.0, 0.5, 0.5, 0.0]), 0.0) == 1
    assert steps.draw_index(np.array([0.0, 0.5, 0.5, 0.0]), 1.0) == 2


@pytest.mark.parametrize("version", [1, 2])
def test_mirostat_keeps_surprise_near_its_target(version: int) -> None:
    """On a Zipf distribution of 5,000 tokens the mean surprise of the draws goes to tau, 3 bits."""
    probs = 1 / np.arange(1, 5001)
    probs /= probs.sum()
    params = SamplingParams(temperature=1.0, mirostat=version, mirostat_tau=3.0, seed=5)
    sampler = Sampler(params, 5000)
    surprises = []
    for _ in range(400):
        token = sampler.sample(log(probs.tolist()))
        ids, left = sampler.candidates()
        surprises.append(-math.log2(left[ids.tolist().index(token)]))
    assert np.mean(surprises[100:]) == pytest.approx(3.0, abs=0.3)


def test_mirostat_2_drops_tokens_more_surprising_than_mu() -> None:
    """mu starts at 2 tau = 2 bits: of .4 .3 .2 .1 the first two are below it (1.32 and 1.74 bits)."""
    assert kept(QUARTERS, mirostat=2, mirostat_tau=1.0) == pytest.approx([4 / 7, 3 / 7], abs=1e-5)


@pytest.mark.parametrize("version", [0, 1, 2])
def test_one_possible_token_is_chosen(version: int) -> None:
    logits = np.full(50, -np.inf, np.float32)
    logits[31] = -4
    for temperature in (0.0, 0.8):
        assert Sampler(SamplingParams(mirostat=version, temperature=temperature), 50).sample(logits) == 31


@pytest.mark.parametrize("temperature", [0.0, 1e-320, 1e-30, 1e30])
def test_any_temperature_chooses_a_token(temperature: float) -> None:
    logits = np.array([-3e38, 0, 3e38], np.float32)
    assert Sampler(SamplingParams(temperature=temperature, repeat_penalty=1e30), 3).sample(logits) in (1, 2)


def test_penalties_that_overflow_choose_a_token() -> None:
    sampler = Sampler(SamplingParams(repeat_penalty=1e30, frequency_penalty=1e300, dry_multiplier=1e300), 2)
    for token in (0, 1) * 10:
        sampler.accept(token)
    assert sampler.sample(np.array([-3e38, 3e38], np.float32)) in (0, 1)


@pytest.mark.parametrize("params", [{}, {"temperature": 0.0}, {"mirostat": 1}, {"mirostat": 2}, {"top_k": 0}])
@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({7: math.nan}, "NaN logits, got NaN at token 7"),
        ({3: math.inf}, "infinite logits, got inf at token 3"),
        (dict.fromkeys(range(20), -math.inf), "every logit is -inf"),
        (dict.fromkeys(range(20), math.nan), "NaN at token 0"),
    ],
)
def test_bad_logits_are_an_error(params: dict[str, Any], bad: dict[int, float], said: str) -> None:
    logits = np.zeros(20, np.float32)
    for token, value in bad.items():
        logits[token] = value
    with pytest.raises(LocalMoeError, match=said):
        Sampler(SamplingParams(**params), 20).sample(logits)


def test_bias_bans_and_forces_tokens() -> None:
    assert by_id(QUARTERS, logit_bias={3: -math.inf}) == pytest.approx([1 / 6, 2 / 6, 3 / 6, 0], abs=1e-5)
    assert Sampler(SamplingParams(logit_bias={0: 1e300}), 4).sample(log(QUARTERS)) == 0
    with pytest.raises(LocalMoeError, match="bias leaves no token"):
        Sampler(SamplingParams(logit_bias=dict.fromkeys(range(4), -math.inf)), 4).sample(log(QUARTERS))


def test_logits_are_left_as_they_are() -> None:
    logits = log(QUARTERS)
    before = logits.copy()
    sampler = Sampler(SamplingParams(repeat_penalty=2, dry_multiplier=1, top_n_sigma=1, logit_bias={0: 3}), 4)
    for token in (0, 1, 0, 1):
        sampler.accept(token)
    sampler.sample(logits)
    np.testing.assert_array_equal(logits, before)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("temperature", "hot"),
        ("top_k", 1.5),
        ("top_k", -2),
        ("top_k", True),
        ("top_p", 1.01),
        ("top_p", -0.1),
        ("min_p", 2),
        ("typical_p", -1),
        ("xtc_probability", 1.5),
        ("repeat_penalty", 0),
        ("repeat_last_n", -1),
        ("frequency_penalty", math.inf),
        ("dry_multiplier", -1),
        ("dry_sequence_breakers", "ab"),
        ("dry_sequence_breakers", ("",)),
        ("mirostat", 3),
        ("min_keep", -1),
        ("seed", -2),
        ("seed", 1.0),
        ("logit_bias", {-1: 1.0}),
        ("logit_bias", {1: math.nan}),
        ("logit_bias", {1: math.inf}),
    ],
)
def test_a_bad_parameter_is_named(field: str, value: object) -> None:
    with pytest.raises(UsageError, match=f"^{field}: "):
        SamplingParams(**{field: value})  # type: ignore[arg-type]


def test_bias_of_a_token_beyond_the_vocabulary_is_refused() -> None:
    with pytest.raises(UsageError, match="logit_bias: no such token, got 4"):
        Sampler(SamplingParams(logit_bias={4: 1.0}), 4)


def test_defaults_are_llama_cpps() -> None:
    p = SamplingParams()
    assert (p.temperature, p.top_k, p.top_p, p.min_p, p.typical_p, p.seed) == (0.8, 40, 0.95, 0.05, 1.0, None)
    assert (p.repeat_penalty, p.repeat_last_n, p.frequency_penalty, p.presence_penalty) == (1.0, 64, 0.0, 0.0)
    assert (p.dry_multiplier, p.dry_base, p.dry_allowed_length, p.dry_penalty_last_n) == (0.0, 1.75, 2, 64)
    assert (p.mirostat, p.mirostat_tau, p.mirostat_eta) == (0, 5.0, 0.1)
    assert (p.xtc_probability, p.xtc_threshold, p.top_n_sigma) == (0.0, 0.1, -1.0)


def test_a_large_vocabulary_is_not_sorted() -> None:
    """50,000 logits with the defaults: 0.1 ms here; a stable sort alone takes 4 ms. The least of 20 runs counts."""
    logits = np.random.default_rng(0).normal(size=50_000).astype(np.float32)
    sampler = Sampler(SamplingParams(seed=1), 50_000)
    assert least(20, lambda: sampler.sample(logits)) < 1e-3 * slowness()


@settings(deadline=None)  # the first call may compile
@given(
    st.integers(0, 2**32 - 1), st.integers(2, 2000), st.integers(1, 200), st.booleans(),
    st.sampled_from([0.0, 1e-30, 0.3, 0.8, 2.0]), st.sampled_from([0.0, 0.3, 0.95, 1.0]),
    st.sampled_from([0.0, 1e-30, 0.05, 0.6, 1.0]), st.integers(0, 50),
)  # fmt: skip
def test_the_quick_way_to_the_likeliest_chooses_the_same(
    seed: int, n: int, k: int, ties: bool, temperature: float, top_p: float, min_p: float, min_keep: int
) -> None:
    """A logit bias of nothing takes the long way, with the same numbers drawn."""
    rng = np.random.default_rng(seed)
    logits = (rng.integers(0, 9, n) if ties else rng.normal(size=n) * 3).astype(np.float32)
    params = SamplingParams(
        top_k=k, temperature=temperature, top_p=top_p, min_p=min_p, min_keep=min_keep, seed=seed
    )  # fmt: skip
    quick, long = Sampler(params, n), Sampler(replace(params, logit_bias={0: 0.0}), n)
    for _ in range(3):
        assert quick.sample(logits) == long.sample(logits)
        (ids, probs), (wanted, wanted_probs) = quick.candidates(), long.candidates()
        np.testing.assert_array_equal(ids, wanted)
        np.testing.assert_allclose(probs, wanted_probs, rtol=1e-12)


def test_a_logit_that_is_not_finite_takes_the_long_way() -> None:
    """-inf is a token that cannot be chosen; NaN is an error, wherever it stands."""
    logits = np.linspace(0, 3, 100, dtype=np.float32)
    logits[[3, 99]] = -np.inf
    sampler = Sampler(SamplingParams(seed=1), 100)
    assert all(sampler.sample(logits) not in (3, 99) for _ in range(50))
    logits[40] = np.nan
    with pytest.raises(LocalMoeError, match="NaN at token 40"):
        sampler.sample(logits)
