"""Recording what a model routes: texts it reads, and what it writes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import numpy as np

from localmoe.engine.api import Model, Step
from localmoe.errors import UsageError
from localmoe.experts.labels import expert_labels
from localmoe.experts.recording import Recording
from localmoe.experts.trace import TraceSlice
from localmoe.gguf_file import visible
from localmoe.text.tokenizer import StreamDecoder

_ROUTING = ("n_expert_used", "leave_out", "force_experts", "expert_threshold")


class Recorder:
    """Collects a model's routing while it runs; `router` False leaves the probabilities out (E values a layer).

    Take it in before the trace's ring laps it: after every batch of a prompt and every few generated tokens.
    """

    def __init__(self, model: Model, *, router: bool = True) -> None:
        if not model.config.n_expert:
            raise UsageError("this model has no experts to record", file=visible(str(model.gguf.path)))
        self._model, self._router = model, router
        self._since = model.trace.count
        self._parts: list[TraceSlice] = []
        self._starts: set[int] = set()
        self._n = 0

    def begin_text(self) -> None:
        """The next token begins a text of its own."""
        self.take()
        self._starts.add(self._n)

    def skip(self) -> None:
        """Leave out what was routed since the last time."""
        self._since = self._model.trace.count

    def keep_up(self) -> None:
        """Copy what was routed since the last time once it fills half the ring: each copy has its price."""
        if self._model.trace.count - self._since >= self._model.trace.capacity // 2:
            self.take()

    def take(self) -> None:
        """Copy what was routed since the last time."""
        part = self._model.trace.read(self._since, router=self._router)
        if len(part.tokens):
            assert part.first == self._since
            self._since += len(part.tokens)
            self._n += len(part.tokens)
            self._parts.append(part)

    def finish(self) -> Recording:
        """Everything taken so far."""
        self.take()
        return _joined(self._model, self._parts, self._starts, router=self._router)


def record_trace(model: Model, since: int = 0) -> Recording:
    """What the model's trace still holds of the tokens from number `since` on; UsageError where that is nothing.

    It may run beside the thread that generates. The settings it names are those of now.
    """
    part = model.trace.read(since)
    return _joined(model, [part] if len(part.tokens) else [], set(), router=True)


def _joined(model: Model, parts: Sequence[TraceSlice], begin: Collection[int], *, router: bool) -> Recording:
    """Parts of a trace as one recording, in which texts of their own begin at the places `begin`."""
    if not parts:
        raise UsageError("nothing was recorded: there are no tokens")
    width = max(part.experts.shape[2] for part in parts)
    tokens = np.concatenate([part.tokens for part in parts])
    starts = np.isin(np.arange(len(tokens)), [0, *begin])
    return Recording(
        tokens=tokens,
        pieces=_pieces(model, tokens.tolist(), starts.tolist()),
        phase=np.concatenate([part.phase for part in parts]),
        starts=starts,
        n_used=np.concatenate([part.n_used for part in parts]),
        experts=np.concatenate([_padded(part.experts, width, -1) for part in parts]),
        weights=np.concatenate([_padded(part.weights, width, 0) for part in parts]),
        router=np.concatenate([part.router for part in parts if part.router is not None]) if router else None,
        n_expert=model.config.n_expert,
        expert_bytes=model.expert_bytes,
        labels=expert_labels(model.gguf.metadata, model.config.n_expert),
        model=model.gguf.path.name,
        settings=model.session().routing.describe(model.config.n_expert),
    )


def _pieces(model: Model, tokens: Sequence[int], starts: Sequence[bool]) -> tuple[str, ...]:
    """What each token adds to its text; a character's bytes all count for its last token."""
    pieces: list[str] = []
    decoder = StreamDecoder(model.tokenizer, special=True)
    for token, starting in zip(tokens, starts, strict=True):
        if starting:
            if pieces:
                pieces[-1] += decoder.flush()
            decoder = StreamDecoder(model.tokenizer, special=True)
        pieces.append(decoder.push(token))
    pieces[-1] += decoder.flush()
    return tuple(pieces)


def _padded(values: np.ndarray[Any, Any], width: int, fill: int) -> np.ndarray[Any, Any]:
    return np.pad(values, ((0, 0), (0, 0), (0, width - values.shape[2])), constant_values=fill)


def windows(model: Model, ids: Sequence[int], size: int | None = None) -> Iterator[list[int]]:
    """`ids` in pieces that fit the context (of `size` tokens at most), the last one as short as it comes."""
    room = min(size or model.n_ctx, model.n_ctx)
    for start in range(0, len(ids), room):
        yield list(ids[start : start + room])


def record_text(model: Model, ids: Sequence[int], *, router: bool = True, **routing: Any) -> Recording:
    """Read `ids` in windows of the context, each from an empty one, and record how they are routed.

    `routing` as for `Model.generate`: n_expert_used, leave_out, force_experts, expert_threshold.
    """
    recorder, session = Recorder(model, router=router), model.session()
    session.route(**routing)
    for window in windows(model, ids):
        session.reset()
        recorder.begin_text()
        _read(model, recorder, window)
    return recorder.finish()


def _read(model: Model, recorder: Recorder, ids: Sequence[int]) -> None:
    """Prefill in steps that the trace's ring can hold."""
    size = min(model.trace.capacity, 512)
    for start in range(0, len(ids), size):
        model.session().prefill(ids[start : start + size])
        recorder.take()


def record_generation(
    model: Model,
    prompt: str | Sequence[int],
    *,
    router: bool = True,
    on_step: Callable[[Step], object] | None = None,
    **options: Any,
) -> Recording:
    """Read a prompt and generate, options as for `Model.generate`; `on_step` sees what is generated."""
    ids = model.tokenize(prompt) if isinstance(prompt, str) else list(prompt)
    if len(ids) >= model.n_ctx:
        got, expected = f"{len(ids)} tokens", f"fewer than {model.n_ctx}"
        raise UsageError("the prompt does not fit in the context", got=got, expected=expected)
    recorder, session = Recorder(model, router=router), model.session()
    session.route(**{name: options[name] for name in _ROUTING if name in options})
    session.reset()
    recorder.begin_text()
    _read(model, recorder, ids[:-1])
    for step in model.generate(ids, **options):
        if on_step is not None:
            on_step(step)
        recorder.keep_up()
    return recorder.finish()
