"""Running statistics of what the router chose, one layer at a time.

Axes: N tokens, L layers, K experts used by a token, E experts. An expert's index means nothing across layers (expert 3
of layer 0 and expert 3 of layer 1 share nothing), so every figure belongs to a layer and nothing is summed over them.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from localmoe.experts.coactivation import Pair, PairCounts

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

PREFILL, DECODE = 0, 1
CAPACITY_FACTORS = (1.0, 1.25)
_MASK_CELLS = 1 << 22  # tokens are taken in groups whose (N, L, E) mask stays below 4 MiB


@dataclass(frozen=True)
class LayerStatistics:
    """What the router did in one phase (or in both), a row a layer.

    tokens (L,) routed; routed (L, E) how often each expert was chosen; share (L, E) of the choices, 1/E where load is
    even; weight_share (L, E) the same with choices counted by their gate weight; probability (L, E) the router's mean
    probability over the tokens that brought one; entropy (L,) of the share over log E, 1 when even, 0 when one expert
    does everything; max_over_mean (L,) load of the busiest expert over the mean; dead (L, E) never chosen;
    importance_cv (L,) standard deviation over mean of the summed gate weights (Shazeer et al. 2017, section 4);
    reuse (L, E) how often a token's expert was chosen by the next token too, layer_reuse (L,) the same over the layer's
    choices; margin (L,) how far the least likely choice's probability was above the likeliest expert's left out, mean
    over the tokens that brought probabilities; overflow (F, L) the share of choices beyond an expert's capacity, its
    even share times each of CAPACITY_FACTORS (Fedus et al. 2021, section 2.2, all tokens of the phase as one batch);
    skipped (L,) share of the choices asked for that were not run. Figures without data are NaN.
    """

    tokens: IntArray
    routed: IntArray
    share: FloatArray
    weight_share: FloatArray
    probability: FloatArray
    entropy: FloatArray
    max_over_mean: FloatArray
    dead: BoolArray
    importance_cv: FloatArray
    reuse: FloatArray
    layer_reuse: FloatArray
    margin: FloatArray
    overflow: FloatArray
    skipped: FloatArray


@dataclass
class _Counts:
    """Everything that is added up in one phase; its size is fixed by L and E."""

    tokens: IntArray
    routed: IntArray
    weight: FloatArray
    probability: FloatArray
    with_probability: int
    followed: IntArray
    again: IntArray
    margin: FloatArray
    with_margin: IntArray
    asked: IntArray

    @classmethod
    def zeros(cls, n_layer: int, n_expert: int) -> _Counts:
        def whole() -> IntArray:
            return np.zeros((n_layer, n_expert), np.int64)

        def real() -> FloatArray:
            return np.zeros((n_layer, n_expert), np.float64)

        def layers() -> IntArray:
            return np.zeros(n_layer, np.int64)

        margin = np.zeros(n_layer, np.float64)
        return cls(layers(), whole(), real(), real(), 0, whole(), whole(), margin, layers(), layers())

    def __add__(self, other: _Counts) -> _Counts:
        names = [field.name for field in fields(self)]
        return _Counts(*(getattr(self, name) + getattr(other, name) for name in names))

    def __sub__(self, other: _Counts) -> _Counts:
        names = [field.name for field in fields(self)]
        return _Counts(*(getattr(self, name) - getattr(other, name) for name in names))


class ExpertStatistics:
    """Counts the router's choices in O(1) a token and O(L x E) memory, and 256 KiB a layer for pairs.

    `window` is the number of tokens the moving average looks back over: a token's part shrinks by 1/window with every
    token after it. `n_used` is the usual K; a call may bring any K from 0 to E, since top-k can change by request.
    Choices outside 0..E-1 are taken as an unused slot.
    """

    def __init__(self, n_layer: int, n_expert: int, n_used: int, window: int = 64) -> None:
        assert n_layer >= 0
        assert n_expert >= 0
        assert window >= 1
        self.n_layer, self.n_expert, self.n_used, self.window = n_layer, n_expert, n_used, window
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._phases = {p: _Counts.zeros(self.n_layer, self.n_expert) for p in (PREFILL, DECODE)}
        self._pairs = {p: PairCounts(self.n_layer, self.n_expert) for p in (PREFILL, DECODE)}
        self._moving = np.zeros((self.n_layer, self.n_expert), np.float64)
        self._moving_weight = np.zeros_like(self._moving)
        self._seen = 0
        self._last_use = np.full((self.n_layer, self.n_expert), -1, np.int64)
        self._last_mask: BoolArray | None = None
        self._last_experts = np.zeros((self.n_layer, 0), np.int32)
        self._last_weights = np.zeros((self.n_layer, 0), np.float32)
        self._last_phase = DECODE
        self._marked = _Counts.zeros(self.n_layer, self.n_expert)

    def mark(self) -> None:
        """Let `since_mark` tell what comes from now on; before the first mark and after a reset it tells all."""
        self._marked = self._both()

    def boundary(self) -> None:
        """Say that the next token does not follow the last one: it starts another prompt."""
        self._last_mask = None

    def update(
        self,
        experts: NDArray[np.int32],
        weights: NDArray[np.float32],
        router: NDArray[np.floating[Any]] | None,
        phase: int | NDArray[np.integer[Any]],
        n_used: NDArray[np.integer[Any]] | None = None,
    ) -> None:
        """Add tokens in order: experts and weights (N, L, K), router (N, L, E) or None, phase 0, 1 or (N,) of them.

        `n_used` (N, L) is how many experts each token was to use in each layer; without it no choice counts as skipped.
        """
        n = experts.shape[0]
        assert experts.shape == weights.shape
        assert experts.shape[1] == self.n_layer
        if n == 0 or experts.shape[2] == 0 or self.n_expert == 0:
            return
        phases = np.broadcast_to(np.asarray(phase), (n,))
        step = max(1, _MASK_CELLS // (self.n_layer * self.n_expert))
        cuts = {*range(0, n, step), *(np.flatnonzero(np.diff(phases)) + 1).tolist(), n}
        for start, stop in itertools.pairwise(sorted(cuts)):
            part = slice(start, stop)
            probability = None if router is None else router[part].astype(np.float32, copy=False)
            self._add(experts[part], weights[part], probability, int(phases[start]))
            if n_used is not None:
                self._phases[int(phases[start])].asked += n_used[part].sum(axis=0)
            else:
                real = (experts[part] >= 0) & (experts[part] < self.n_expert)
                self._phases[int(phases[start])].asked += real.sum(axis=(0, 2))
        self._last_experts = np.array(experts[-1])
        self._last_weights = np.array(weights[-1])
        self._last_phase = int(phases[-1])

    def _add(
        self,
        experts: NDArray[np.int32],
        weights: NDArray[np.float32],
        router: NDArray[np.float32] | None,
        phase: int,
    ) -> None:
        counts = self._phases[phase]
        n, cells = experts.shape[0], self.n_layer * self.n_expert
        shape = (self.n_layer, self.n_expert)
        used = (experts >= 0) & (experts < self.n_expert)
        cell = (experts + np.arange(self.n_layer)[None, :, None] * self.n_expert)[used]
        token = np.repeat(np.arange(n), used.sum(axis=(1, 2)))
        mask = np.zeros((n, cells), np.bool_)
        mask[token, cell] = True
        counts.tokens += n
        counts.routed += np.bincount(cell, minlength=cells).reshape(shape)
        counts.weight += np.bincount(cell, weights[used], minlength=cells).reshape(shape)
        if router is not None:
            counts.probability += router.sum(axis=0, dtype=np.float64)
            counts.with_probability += n
            _add_margins(np.where(used, experts, -1), token * cells + cell, router, counts)
        keep = 1.0 - 1.0 / self.window
        part = (keep ** np.arange(n - 1, -1, -1))[token]
        for moving, amount in ((self._moving, part), (self._moving_weight, part * weights[used])):
            moving *= keep**n
            moving += np.bincount(cell, amount, minlength=cells).reshape(shape)
        self._follow(mask, token, cell, counts)
        self._pairs[phase].add(experts)
        self._last_use.reshape(-1)[cell] = self._seen + token  # in the order of tokens: the latest one stays
        self._seen += n

    def _follow(self, mask: BoolArray, token: IntArray, cell: IntArray, counts: _Counts) -> None:
        """Count, under the later token's phase, which choices the next token repeated; mask (N, L x E)."""
        shape = (self.n_layer, self.n_expert)
        if self._last_mask is not None:
            counts.followed += self._last_mask.reshape(shape)
            counts.again += (self._last_mask & mask[0]).reshape(shape)
        n_before = int(np.searchsorted(token, len(mask) - 1))
        token, cell = token[:n_before], cell[:n_before]
        counts.followed += np.bincount(cell, minlength=mask.shape[1]).reshape(shape)
        counts.again += np.bincount(cell[mask[token + 1, cell]], minlength=mask.shape[1]).reshape(shape)
        self._last_mask = mask[-1].copy()

    @property
    def n_tokens(self) -> int:
        """Tokens counted so far, both phases."""
        return int(sum(c.tokens[0] for c in self._phases.values())) if self.n_layer else 0

    def working_set(self, n_token: int) -> IntArray:
        """How many different experts of each layer (L,) the last `n_token` tokens went through, either phase."""
        distinct: IntArray = (self._last_use >= max(0, self._seen - n_token)).sum(axis=1)
        return distinct

    def pairs(self, phase: int | None = None, n: int = 3) -> list[list[Pair]]:
        """The n pairs of experts that most tokens chose together, a list a layer."""
        both = phase is None
        counts = self._pairs[PREFILL] + self._pairs[DECODE] if both else self._pairs[phase or PREFILL]
        c = self._phases[PREFILL] + self._phases[DECODE] if both else self._phases[phase or PREFILL]
        return [counts.top(i, n, c.routed[i], int(c.tokens[i])) for i in range(self.n_layer)]

    def moving_share(self) -> FloatArray:
        """Each expert's share (L, E) of the choices of the last tokens, either phase, later ones counting more."""
        return _rows(self._moving)

    def moving_weight_share(self) -> FloatArray:
        """The same with choices counted by their gate weight."""
        return _rows(self._moving_weight)

    def last_token(self) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """The newest token's experts and weights, (L, K) each; K is 0 before the first."""
        return self._last_experts, self._last_weights

    def last_share(self) -> FloatArray:
        """The newest token's gate weights spread over (L, E), each row summing to 1; NaN before the first."""
        spread = np.zeros((self.n_layer, self.n_expert), np.float64)
        if self._last_experts.shape[1]:
            used = (self._last_experts >= 0) & (self._last_experts < self.n_expert)
            layer = np.broadcast_to(np.arange(self.n_layer)[:, None], used.shape)
            np.add.at(spread, (layer[used], self._last_experts[used]), self._last_weights[used])
        return _rows(spread)

    def layers(self, phase: int | None = None) -> LayerStatistics:
        """Everything known about each layer in one phase, or in both for None."""
        return self._figures(self._phases[phase] if phase is not None else self._both())

    def since_mark(self) -> LayerStatistics:
        """The same of the tokens of both phases that came since `mark`, and of no other."""
        return self._figures(self._both() - self._marked)

    def _both(self) -> _Counts:
        return self._phases[PREFILL] + self._phases[DECODE]

    def _figures(self, c: _Counts) -> LayerStatistics:
        share, weight_share = _rows(c.routed), _rows(c.weight)
        seen = c.with_probability
        with np.errstate(divide="ignore", invalid="ignore"):
            mean = c.weight.mean(axis=1) if self.n_expert else np.zeros(self.n_layer)
            return LayerStatistics(
                tokens=c.tokens.copy(),
                routed=c.routed.copy(),
                share=share,
                weight_share=weight_share,
                probability=c.probability / seen if seen else np.full_like(c.probability, np.nan),
                entropy=normalised_entropy(share),
                max_over_mean=share.max(axis=1, initial=0.0) * self.n_expert,
                dead=(c.routed == 0) & (c.tokens > 0)[:, None],
                importance_cv=c.weight.std(axis=1) / mean if self.n_expert else mean * np.nan,
                reuse=c.again / c.followed,
                layer_reuse=c.again.sum(axis=1) / c.followed.sum(axis=1),
                margin=c.margin / c.with_margin,
                overflow=np.stack([overflow(c.routed, factor) for factor in CAPACITY_FACTORS]),
                skipped=1.0 - c.routed.sum(axis=1) / c.asked,
            )


def overflow(routed: IntArray, factor: float) -> FloatArray:
    """Share (L,) of the choices `routed` (L, E) beyond an expert's capacity, its even share times `factor`.

    Fedus et al. 2021 (Switch Transformers), equation 3: capacity = tokens / experts x factor; here every choice of a
    token counts as one, and all tokens counted are the batch.
    """
    total = routed.sum(axis=1)
    capacity = total / max(routed.shape[1], 1) * factor
    with np.errstate(divide="ignore", invalid="ignore"):
        lost: FloatArray = np.maximum(routed - capacity[:, None], 0.0).sum(axis=1) / total
    return lost


def _add_margins(experts: NDArray[np.int32], chosen: IntArray, router: NDArray[np.float32], counts: _Counts) -> None:
    """Add each token's margin between the least likely expert chosen and the likeliest left out.

    experts (N, L, K), -1 unused; `chosen` are the places of all that are used in router (N, L, E).
    """
    probability = np.take_along_axis(router, np.maximum(experts, 0), 2)
    rest = router.copy()
    rest.reshape(-1)[chosen] = -np.inf
    margin = np.where(experts >= 0, probability, np.inf).min(axis=2) - rest.max(axis=2)
    known = np.isfinite(margin)
    counts.margin += np.where(known, margin, 0.0).sum(axis=0, dtype=np.float64)
    counts.with_margin += known.sum(axis=0)


def normalised_entropy(share: FloatArray) -> FloatArray:
    """Entropy of each row of `share` (L, E) over log E: 1 even, 0 all on one; NaN rows stay NaN, one expert is 1."""
    n_expert = share.shape[1]
    empty = np.isnan(share).any(axis=1) if n_expert else np.ones(share.shape[0], np.bool_)
    if n_expert <= 1:
        return np.where(empty, np.nan, 1.0)
    p = np.where(share > 0, share, 1.0)
    return np.where(empty, np.nan, np.abs((p * np.log(p)).sum(axis=1)) / np.log(n_expert))


def _rows(amount: FloatArray | IntArray) -> FloatArray:
    """Each row over its sum; NaN where a row has nothing."""
    total = amount.sum(axis=1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(total > 0, amount / total, np.nan)
