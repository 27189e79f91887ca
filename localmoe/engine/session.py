"""A session: the tokens in the KV cache, prefill in batches, decode one by one, and what was routed on the way."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from localmoe.engine.routing import Routing, make_routing
from localmoe.errors import BadInputError, LocalMoeError, UsageError
from localmoe.experts.trace import DECODE, PREFILL, RoutingTrace
from localmoe.model.runner import Runner
from localmoe.model.step import Interrupted, StepResult

OnPrompt = Callable[[int, int], None]


class Session:
    """The one conversation a runner holds. `tokens` are those in the cache, in order; errors name `file`."""

    def __init__(self, runner: Runner, trace: RoutingTrace, file: str) -> None:
        self._runner = runner
        self._file = file
        self.trace = trace
        self.tokens: list[int] = []
        self.turn = 0  # changes when the context is given to another request
        self._default_routing = Routing(runner.config.n_expert_used)
        self.use(self._default_routing)
        self._cached_routing = self.routing

    @property
    def n_used(self) -> int:
        """Experts a token uses at most."""
        return self.routing.n_used

    @property
    def n_vocab(self) -> int:
        return self._runner.config.n_vocab

    @property
    def n_past(self) -> int:
        """Positions in use."""
        return len(self.tokens)

    @property
    def n_ctx(self) -> int:
        """Positions there is room for."""
        return self._runner.n_ctx

    def reset(self) -> None:
        """Forget everything."""
        self.tokens = []
        self.turn += 1

    def route(self, *, by_default: bool = False, **options: Any) -> None:
        """Route by `make_routing`'s options from now on; what is not given is as by default, which `by_default` sets.

        UsageError where they ask for what the model has not.
        """
        self.use(self.checked_routing(**options))
        if by_default:
            self._default_routing = self.routing

    def checked_routing(self, **options: Any) -> Routing:
        """The routing that `make_routing`'s options ask for; UsageError where the model has not what they name."""
        return make_routing(self._runner.config, self._default_routing, **options)

    def use(self, routing: Routing) -> None:
        """Route by a checked routing from now on."""
        self.routing = routing
        self._rules = routing.rules(self._runner.config)
        self._limits = np.array(routing.limits, np.int32) if routing.limits else None

    def replace_router(self, layer: int, rows: npt.NDArray[np.float32] | None) -> None:
        """Let a layer's router be `rows` (E, D), None: its own again; what is in the cache is forgotten."""
        self._runner.replace_router(layer, rows)
        self.reset()

    def no_routing(self) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
        """Experts and weights (L, 0) of a step that ran nothing."""
        shape = (self._runner.config.n_layer, 0)
        return np.zeros(shape, np.int32), np.zeros(shape, np.float32)

    def keep_prefix(self, ids: Sequence[int]) -> int:
        """Cut the cache to what it shares with `ids`, less the last token, which must be run; how many stay.

        Nothing stays when what is cached was routed otherwise.
        """
        self.turn += 1
        n = 0
        if self._cached_routing == self.routing:
            limit = min(len(self.tokens), len(ids) - 1)
            while n < limit and self.tokens[n] == ids[n]:
                n += 1
        del self.tokens[n:]
        return len(self.tokens)

    def prefill(
        self,
        ids: Sequence[int],
        *,
        cancel: threading.Event | None = None,
        on_prompt: OnPrompt | None = None,
        interruptible: bool = False,
    ) -> StepResult | None:
        """Run `ids` after what is cached, in batches; the last batch with its last token's logits, None if cancelled.

        `on_prompt(done, total)` is called after every batch. `interrupt` ends a batch that runs, if `interruptible`.
        """
        array = self._check(ids)
        size = self._runner.batch_size(self.n_used)
        self._runner.heed(interruptible)
        try:
            for start in range(0, len(array), size):
                if cancel is not None and cancel.is_set():
                    return None
                batch = array[start : start + size]
                last = start + size >= len(array)
                result = self._run(batch, 1 if last else 0, PREFILL)
                if on_prompt is not None:
                    on_prompt(start + len(batch), len(array))
        except Interrupted:
            return None
        finally:
            self._runner.heed(False)
        return result

    def interrupt(self) -> None:
        """End an interruptible `prefill` in another thread after a layer, with what whole batches it has done."""
        self._runner.interrupt()

    def decode(self, token: int) -> StepResult:
        """Run one generated token; `logits` is (1, V). Views that the next step overwrites."""
        self._check_room(1)
        if not 0 <= token < self.n_vocab:
            raise _no_such_token(token, self.n_vocab)
        return self._run(np.array([token], np.int32), 1, DECODE)

    def prefill_scored(self, ids: Sequence[int], first: int, most: int) -> Iterator[npt.NDArray[np.float32]]:
        """Run `ids` after what is cached; logits of those from number `first` on, at most `most` rows at a time.

        Views that the next step overwrites.
        """
        array = self._check(ids)
        size = self._runner.batch_size(self.n_used)
        start = 0
        while start < len(array):
            scored = max(start, first)
            stop = min(start + size, scored + most, len(array))
            result = self._run(array[start:stop], max(0, stop - scored), PREFILL)
            if len(result.logits):
                yield result.logits
            start = stop

    def prefill_squares(self, ids: Sequence[int], squares: npt.NDArray[np.float32]) -> Iterator[StepResult]:
        """Run `ids` after what is cached; steps add their inputs' squares to `squares` (model/forward_squares.py)."""
        array = self._check(ids)
        n_step = -(-len(array) // self._runner.batch_size(self.n_used))
        self._runner.add_squares_to(squares)
        try:
            for batch in np.array_split(array, n_step):
                yield self._run(batch, 0, PREFILL)
        finally:
            self._runner.add_squares_to(None)

    def run_all(self, ids: Sequence[int], *, want_logits: bool = True, want_hidden: bool = False) -> list[StepResult]:
        """Run `ids`, with logits (or hidden states) of every token; copies, one result a batch."""
        array = self._check(ids)
        size = min(self._runner.batch_size(self.n_used), 128 if want_logits else len(array))
        results = []
        for start in range(0, len(array), size):
            batch = array[start : start + size]
            r = self._run(batch, len(batch) if want_logits else 0, PREFILL, want_hidden=want_hidden)
            copies = (r.logits.copy(), r.experts.copy(), r.weights.copy(), r.router.copy())
            results.append(StepResult(*copies, r.hidden))
        return results

    def _check(self, ids: Sequence[int]) -> npt.NDArray[np.int32]:
        """`token_ids` as int32; UsageError when the context has no room for them, or the model is closed."""
        array = token_ids(ids, self.n_vocab)
        self._check_room(array.size)
        return array

    def _check_room(self, n: int) -> None:
        if self._runner.closed:
            raise UsageError("the model is closed")
        if self._runner.orphaned:
            raise UsageError(
                "the model was opened before this process was forked, and its threads are not in it: open it here"
            )
        needed = self.n_past + n
        if needed > self.n_ctx:
            raise UsageError("the context is full", got=f"{needed} tokens", expected=f"at most {self.n_ctx}")

    def _run(self, batch: npt.NDArray[np.int32], n_out: int, phase: int, *, want_hidden: bool = False) -> StepResult:
        if not self.tokens:
            self._cached_routing = self.routing
        try:
            result = self._runner.step(
                batch, self.n_past, n_out, self.n_used, rules=self._rules, want_hidden=want_hidden
            )
        except LocalMoeError as damaged:  # the runner knows the layer, not the file
            raise BadInputError(damaged.reason, file=self._file) from None
        self.tokens.extend(batch.tolist())
        if result.experts.size:
            self.trace.append(batch, phase, result.experts, result.weights, result.router, self._limits)
        return result


def token_ids(ids: Sequence[int], n_vocab: int) -> npt.NDArray[np.int32]:
    """Ids as an array; UsageError when there are none, when they are no whole numbers or not in the vocabulary."""
    given = "text, which `tokenize` makes ids of" if isinstance(ids, (str, bytes)) else type(ids).__name__
    try:
        array = np.asarray(ids)
    except ValueError:  # lists of several lengths
        raise UsageError("token ids must be a sequence of whole numbers", got=given) from None
    if array.ndim == 1 and array.size == 0:
        raise UsageError("there are no tokens to run")
    if array.ndim != 1 or array.dtype.kind not in "iu":
        got = given if array.ndim != 1 else str(array.dtype)
        raise UsageError("token ids must be a sequence of whole numbers", got=got)
    bad = array[(array < 0) | (array >= n_vocab)]
    if bad.size:
        raise _no_such_token(int(bad[0]), n_vocab)
    return array.astype(np.int32)


def _no_such_token(token: int, n_vocab: int) -> UsageError:
    return UsageError("token id outside the vocabulary", got=token, expected=f"0 to {n_vocab - 1}")
