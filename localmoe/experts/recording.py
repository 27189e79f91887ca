"""A recorded trace: what every token was, and where every layer sent it."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from localmoe.experts.statistics import ExpertStatistics

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Recording:
    """N tokens in order: ids `tokens` (N,) int32 and their texts `pieces`, `phase` (N,) 0 prefill or 1 decode, `starts`
    (N,) whether a token begins a text of its own, `n_used` (N, L) experts it was to use, `experts` (N, L, K) int32 with
    -1 for an unused slot, `weights` (N, L, K) float32, `router` (N, L, E) probabilities or None.

    `expert_bytes` (L,) is what one expert of each layer takes; `labels` are () or one an expert; `model` and `settings`
    say in words what ran. The texts are as the model has them.
    """

    tokens: npt.NDArray[np.int32]
    pieces: tuple[str, ...]
    phase: npt.NDArray[np.int8]
    starts: npt.NDArray[np.bool_]
    n_used: npt.NDArray[np.int32]
    experts: npt.NDArray[np.int32]
    weights: npt.NDArray[np.float32]
    router: npt.NDArray[np.float16] | None
    n_expert: int
    expert_bytes: npt.NDArray[np.int64]
    labels: tuple[str, ...] = ()
    model: str = ""
    settings: str = ""

    @property
    def n_token(self) -> int:
        return len(self.tokens)

    @property
    def n_layer(self) -> int:
        return int(self.experts.shape[1])

    def statistics(self) -> ExpertStatistics:
        """All of it counted."""
        slots = int(self.experts.shape[2])
        counted = ExpertStatistics(self.n_layer, self.n_expert, slots)
        cuts = sorted({0, self.n_token, *np.flatnonzero(self.starts).tolist()})
        for first, last in itertools.pairwise(cuts):
            counted.boundary()
            part = slice(first, last)
            router = None if self.router is None else self.router[part]
            counted.update(self.experts[part], self.weights[part], router, self.phase[part], self.n_used[part])
        return counted

    def first_experts(self) -> npt.NDArray[np.int32]:
        """Each token's expert with the largest weight, (N, L)."""
        if not self.experts.shape[2]:
            return np.full(self.experts.shape[:2], -1, np.int32)
        heaviest = self.weights.argmax(axis=2)[:, :, None]
        return np.take_along_axis(self.experts, heaviest, 2)[:, :, 0]


def working_set_bytes(counted: ExpertStatistics, expert_bytes: npt.NDArray[np.int64], n_token: int) -> int:
    """Bytes of the different experts that the last `n_token` tokens went through, all layers' together."""
    return int((counted.working_set(n_token) * expert_bytes).sum())
