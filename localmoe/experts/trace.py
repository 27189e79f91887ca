"""The routing trace: which experts every token chose in every layer, in a ring of the most recent tokens."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

PREFILL, DECODE = 0, 1
MAX_BYTES = 64 << 20  # of a trace's ring, unless LEAST tokens take more
LEAST, MOST = 512, 8192  # tokens that a ring holds; a batch of a prompt always fits


@dataclass(frozen=True)
class TraceSlice:
    """N consecutive tokens: their ids (N,), phases (N,) 0 prefill or 1 decode, experts (N, L, K) int32 with -1 where a
    token used fewer, weights (N, L, K) float32, router probabilities (N, L, E) float16 (None where they were not asked
    for), and how many experts each token was to use in each layer n_used (N, L).

    `first` counts from the first token ever recorded.
    """

    first: int
    tokens: npt.NDArray[np.int32]
    phase: npt.NDArray[np.int8]
    experts: npt.NDArray[np.int32]
    weights: npt.NDArray[np.float32]
    router: npt.NDArray[np.float16] | None
    n_used: npt.NDArray[np.int32]


class _Ring:
    """Arrays of `capacity` tokens with room for `slots` experts in a layer, in the smallest types that hold them."""

    def __init__(self, n_layer: int, n_expert: int, slots: int, capacity: int) -> None:
        self.capacity, self.slots = capacity, slots
        self.tokens = np.zeros(capacity, np.int32)
        self.phase = np.zeros(capacity, np.int8)
        self.n_used = np.zeros((capacity, n_layer), _signed(n_expert))
        self.experts = np.zeros((capacity, n_layer, slots), _signed(n_expert - 1))
        self.weights = np.zeros((capacity, n_layer, slots), np.float32)
        self.router = np.zeros((capacity, n_layer, n_expert), np.float16)

    @staticmethod
    def fitting(n_layer: int, n_expert: int, slots: int) -> int:
        """The tokens that a ring of this shape may hold."""
        choice = _signed(n_expert - 1).itemsize + 4
        row = n_layer * (2 * n_expert + slots * choice + _signed(n_expert).itemsize) + 5
        return max(LEAST, min(MOST, MAX_BYTES // row))

    def take_from(self, old: _Ring, count: int) -> None:
        """Copy the newest of the `count` tokens that went through another ring with no more slots."""
        numbers = np.arange(max(0, count - min(self.capacity, old.capacity)), count)
        here, there, width = numbers % self.capacity, numbers % old.capacity, old.slots
        for name in ("tokens", "phase", "n_used", "router"):
            getattr(self, name)[here] = getattr(old, name)[there]
        self.experts[here, :, :width], self.experts[here, :, width:] = old.experts[there], -1
        self.weights[here, :, :width] = old.weights[there]


class RoutingTrace:
    """A ring of the last `capacity` tokens' routing; written by the engine, sampled by anyone.

    One writer, which says in `_claimed` how far it writes before it does. A reader may run beside it: `read` checks
    afterwards that nothing it copied was overwritten meanwhile.
    The ring has as many slots as the most experts a token used so far, and holds fewer tokens once they are more,
    unless `capacity` was given.
    """

    def __init__(self, n_layer: int, n_expert: int, capacity: int | None = None) -> None:
        self.n_layer = n_layer
        self.n_expert = n_expert
        self.count = self._claimed = 0
        self._given = capacity
        self._ring = self._make(0)

    @property
    def capacity(self) -> int:
        return self._ring.capacity

    def _make(self, slots: int) -> _Ring:
        capacity = self._given or _Ring.fitting(self.n_layer, self.n_expert, slots)
        return _Ring(self.n_layer, self.n_expert, slots, capacity)

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
        width = experts.shape[2]
        if width > self._ring.slots:
            wider = self._make(width)
            wider.take_from(self._ring, self.count)
            self._ring = wider
        ring = self._ring
        skip = max(0, len(tokens) - ring.capacity)
        self.count += skip
        done = skip
        while done < len(tokens):
            at = self.count % ring.capacity
            n = min(len(tokens) - done, ring.capacity - at)
            here, there = slice(at, at + n), slice(done, done + n)
            self._claimed = self.count + n
            ring.tokens[here] = tokens[there]
            ring.phase[here] = phase
            ring.n_used[here] = width if n_used is None else n_used
            ring.experts[here, :, :width] = experts[there]
            ring.weights[here, :, :width] = weights[there]
            if width < ring.slots:
                ring.experts[here, :, width:] = -1
                ring.weights[here, :, width:] = 0.0
            ring.router[here] = router[there]
            self.count += n
            done += n

    def read(self, since: int = 0, *, router: bool = True) -> TraceSlice:
        """Copies of all tokens from number `since` on that are still there; `first` tells where they begin."""
        while True:
            ring, stop = self._ring, self.count
            first = max(since, self._claimed - ring.capacity, 0)
            index = np.arange(first, max(first, stop)) % ring.capacity
            n_used = ring.n_used[index].astype(np.int32)
            width = int(n_used.max()) if n_used.size else 0
            taken = TraceSlice(
                first,
                ring.tokens[index],
                ring.phase[index],
                ring.experts[index, :, :width].astype(np.int32),
                ring.weights[index, :, :width],
                ring.router[index] if router else None,
                n_used,
            )
            if ring is self._ring and first >= self._claimed - ring.capacity:  # else the writer lapped this copy
                return taken

    def router_of(self, number: int) -> npt.NDArray[np.float16] | None:
        """The router's probabilities (L, E) for one token, None where it is not held any more."""
        ring = self._ring
        row = ring.router[number % ring.capacity].copy()
        held = ring is self._ring and self._claimed - ring.capacity <= number < self.count
        return row if held else None


def _signed(most: int) -> np.dtype[np.signedinteger]:
    """The smallest signed type that holds -1 to `most`."""
    return np.dtype(next((kind for kind in (np.int8, np.int16) if most <= np.iinfo(kind).max), np.int32))
