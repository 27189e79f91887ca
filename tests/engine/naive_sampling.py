"""The sampler chain as slow, obvious loops over Python lists of (id, logit)."""

from __future__ import annotations

import math

from localmoe.engine.sampling import SamplingParams

ROUNDING = 1e-7
Pairs = list[tuple[int, float]]


def softmax(pairs: Pairs) -> list[float]:
    top = max(logit for _, logit in pairs)
    powers = [math.exp(logit - top) for _, logit in pairs]
    return [power / sum(powers) for power in powers]


def by_logit(pairs: Pairs) -> Pairs:
    return sorted(pairs, key=lambda pair: (-pair[1], pair[0]))


def penalties(pairs: Pairs, history: list[int], p: SamplingParams) -> Pairs:
    recent = history[-p.repeat_last_n :] if p.repeat_last_n else []
    out = []
    for token, logit in pairs:
        count = recent.count(token)
        if count:
            logit = logit * p.repeat_penalty if logit <= 0 else logit / p.repeat_penalty
            logit -= count * p.frequency_penalty + p.presence_penalty
        out.append((token, logit))
    return out


def dry(pairs: Pairs, history: list[int], p: SamplingParams) -> Pairs:
    """For every token: the longest end of the history that stands earlier in it, followed by that token."""
    recent = history[-p.dry_penalty_last_n :] if p.dry_penalty_last_n else []
    if p.dry_multiplier == 0 or p.dry_base < 1 or len(recent) <= p.dry_allowed_length:
        return pairs
    out = []
    for token, logit in pairs:
        longest = -1
        for at in range(1, len(recent)):
            if recent[at] == token:
                run = 0
                while run < at and recent[at - 1 - run] == recent[len(recent) - 1 - run]:
                    run += 1
                longest = max(longest, run)
        if longest >= p.dry_allowed_length:
            logit -= p.dry_multiplier * p.dry_base ** (longest - p.dry_allowed_length)
        out.append((token, logit))
    return out


def top_n_sigma(pairs: Pairs, n: float) -> Pairs:
    if n <= 0 or len(pairs) < 2:
        return pairs
    finite = [logit for _, logit in pairs if logit > -math.inf]
    mean = sum(finite) / len(finite)
    sigma = math.sqrt(sum((logit - mean) ** 2 for logit in finite) / len(finite))
    least = max(finite) - n * sigma
    return [(token, logit if logit >= least else -math.inf) for token, logit in pairs]


def top_k(pairs: Pairs, k: int) -> Pairs:
    return by_logit(pairs)[:k] if k > 0 else pairs


def typical(pairs: Pairs, p: float, min_keep: int) -> Pairs:
    if p >= 1:
        return pairs
    pairs = by_logit(pairs)
    probs = softmax(pairs)
    entropy = -sum(q * math.log(q) for q in probs if q > 0)
    distance = [abs(-math.log(q) - entropy) if q > 0 else math.inf for q in probs]
    kept, total = [], 0.0
    for i in sorted(range(len(pairs)), key=lambda i: distance[i]):
        kept.append(pairs[i])
        total += probs[i]
        if total > p + ROUNDING and len(kept) >= min_keep:
            break
    return kept


def top_p(pairs: Pairs, p: float, min_keep: int) -> Pairs:
    if p >= 1:
        return pairs
    pairs = by_logit(pairs)
    total = 0.0
    for i, prob in enumerate(softmax(pairs)):
        total += prob
        if total >= p - ROUNDING and i + 1 >= min_keep:
            return pairs[: i + 1]
    return pairs


def min_p(pairs: Pairs, p: float, min_keep: int) -> Pairs:
    if p <= 0:
        return pairs
    least = max(logit for _, logit in pairs) + math.log(p)
    kept = [pair for pair in pairs if pair[1] >= least]
    return kept if len(kept) >= min_keep else by_logit(pairs)[:min_keep]


def temperature(pairs: Pairs, p: SamplingParams) -> Pairs:
    value = p.temperature
    if p.dynatemp_range > 0:
        if len(pairs) == 1:
            return pairs
        entropy = -sum(q * math.log(q) for q in softmax(pairs) if q > 0)
        low, high = max(0.0, value - p.dynatemp_range), value + p.dynatemp_range
        value = low + (high - low) * max(entropy / math.log(len(pairs)), 0.0) ** p.dynatemp_exponent
    if value <= 0:
        return by_logit(pairs)[:1]
    return [(token, logit / value) for token, logit in pairs]


def chain(logits: list[float], history: list[int], p: SamplingParams) -> dict[int, float]:
    """Probability of every token that may be drawn (without XTC and Mirostat, which depend on draws)."""
    pairs = [(token, logit + p.logit_bias.get(token, 0.0)) for token, logit in enumerate(logits)]
    pairs = dry(penalties(pairs, history, p), history, p)
    pairs = top_k(top_n_sigma(pairs, p.top_n_sigma), p.top_k)
    pairs = typical(pairs, p.typical_p, p.min_keep)
    pairs = min_p(top_p(pairs, p.top_p, p.min_keep), p.min_p, p.min_keep)
    pairs = temperature(pairs, p)
    return {token: prob for (token, _), prob in zip(pairs, softmax(pairs), strict=True) if prob > 0}
