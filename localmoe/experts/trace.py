"""The routing trace: which experts every token chose in every layer, in a ring of the most recent tokens."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

PREFILL, DECODE = 0, 1
MAX_BYTES = 32 << 20  # of all rings of one trace together


@dataclass(frozen=True)
class TraceSlice:
    """N consecutive tokens: their ids (N,), phases (N,) 0 prefill or 1 decode, experts (N, L, K) int32 with -1 where a
    token used fewer, weights (N, L, K) float32, router probabilities (N, L, E) float32, and how many experts each
    token was to use in each layer n_used (N, L).

    `first` counts from the first token ever recorded.
    """

    first: int
    tokens: npt.NDArray[np.int32]
    phase: npt.NDArray[np.int8]
    experts: npt.NDArray[np.int32]
    weights: npt.NDArray[np.float32]
    router: npt.NDArray[np.float32]
    n_used: npt.NDArray[np.int32]


class RoutingTrace:
    """A ring of the last `capacity` tokens' routing; written by the engine, sampled by anyone.

    One writer. A reader may run beside it: `read` checks afterwards that nothing it copied was overwritten meanwhile.
    """

    def __init__(self, n_layer: int, n_expert: int, capacity: int | None = None) -> None:
        row = n_layer * max(n_expert, 1) * 12
        self.capacity = capacity or max(64, min(8192, MAX_BYTES // row))
        self.n_layer = n_layer
        self.n_expert = n_expert
        self.count = 0
        self._tokens = np.zeros(self.capacity, np.int32)
        self._phase = np.zeros(self.capacity, np.int8)
        self._n_used = np.zeros((self.capacity, n_layer), np.int32)
        self._experts = np.full((self.capacity, n_layer, n_expert), -1, np.int32)
        self._weights = np.zeros((self.capacity, n_layer, n_expert), np.float32)
        self._router = np.zeros((self.capacity, n_layer, n_expert), np.float32)

    def append(
        self,
        tokens: npt.NDArray[np.int32],
        phase: int,
        experts: npt.NDArray[np.int32],
        weights: npt.NDArray[np.float32],
        router: npt.NDArray[np.float32],
        n_used: npt.NDArray[np.int32] | None = None,
    ) -> None:
        """Add N tokens: tokens (N,), experts and weights (N, L, K), router (N, L, E). Only the last `capacity` stay.

        `n_used` (L,) is how many experts a token was to use in each layer, K without it.
        """
        skip = max(0, len(tokens) - self.capacity)
        self.count += skip
        width = experts.shape[2]
        done = skip
        while done < len(tokens):
            at = self.count % self.capacity
            n = min(len(tokens) - done, self.capacity - at)
            here, there = slice(at, at + n), slice(done, done + n)
            self._tokens[here] = tokens[there]
            self._phase[here] = phase
            self._n_used[here] = width if n_used is None else n_used
            self._experts[here, :, :width] = experts[there]
            self._experts[here, :, width:] = -1
            self._weights[here, :, :width] = weights[there]
            self._weights[here, :, width:] = 0.0
            self._router[here] = router[there]
            self.count += n
            done += n

    def read(self, since: int = 0) -> TraceSlice:
        """Copies of all tokens from number `since` on that are still there; `first` tells where they begin."""
        while True:
            stop = self.count
            first = max(since, stop - self.capacity, 0)
            index = np.arange(first, max(first, stop)) % self.capacity
            n_used = self._n_used[index]
            width = int(n_used.max()) if n_used.size else 0
            taken = TraceSlice(
                first,
                self._tokens[index],
                self._phase[index],
                self._experts[index][:, :, :width],
                self._weights[index][:, :, :width],
                self._router[index],
                n_used,
            )
            if first >= self.count - self.capacity:  # else the writer lapped this copy
                return taken
