"""One generation: prompt in, a Step for every token out, until something stops it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence, Sized
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from localmoe.engine.numbers import whole
from localmoe.engine.routing import Routing
from localmoe.engine.sampling import Sampler, SamplingParams
from localmoe.engine.session import OnPrompt, Session, token_ids
from localmoe.errors import UsageError
from localmoe.text.tokenizer import StreamDecoder, Tokenizer


@dataclass(frozen=True)
class Step:
    """One generated token.

    text: what it adds, "" while a character or a possible stop string is incomplete. experts (L, K) int32 and weights
    (L, K) float32 are the routing of the position that predicted it. index counts from 0, n_past are the positions in
    use. stop_reason, set on the last step: "eos", "length", "stop", "cancelled" or "context"; a cancelled generation
    ends with a step of its own whose token is -1. probs, where asked for, are the likeliest tokens and the one chosen,
    with the model's probabilities, before anything that sampling does to them.
    """

    text: str
    token: int
    experts: npt.NDArray[np.int32]
    weights: npt.NDArray[np.float32]
    index: int
    n_past: int
    stop_reason: str | None = None
    probs: tuple[tuple[int, float], ...] = ()


@dataclass
class Timings:
    """Seconds and tokens of one generation; `n_cached` prompt tokens were still in the KV cache."""

    n_prompt: int = 0
    n_cached: int = 0
    prompt_s: float = 0.0
    n_gen: int = 0
    gen_s: float = 0.0

    @property
    def prompt_rate(self) -> float:
        """Prompt tokens computed a second."""
        return (self.n_prompt - self.n_cached) / self.prompt_s if self.prompt_s else 0.0

    @property
    def rate(self) -> float:
        """Tokens a second after the first one, which comes with the prompt's last: as llama.cpp counts; 0 for none."""
        return (self.n_gen - 1) / self.gen_s if self.n_gen > 1 and self.gen_s else 0.0


class StopFilter:
    """Holds back text that may yet become one of the stop strings."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [s for s in stops if s]
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """Text that is safe to show, and whether a stop string was met (it is cut off)."""
        held = self._held + text
        found = [held.index(s) for s in self._stops if s in held]
        if found:
            self._held = ""
            return held[: min(found)], True
        keep = max((n for s in self._stops for n in range(1, len(s)) if held.endswith(s[:n])), default=0)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep], False

    def flush(self) -> str:
        held, self._held = self._held, ""
        return held


def _at_least(least: int, name: str, given: object) -> int:
    """A whole number in its range; UsageError names it."""
    number = whole(given)
    if number is None or number < least:
        raise UsageError(f"{name}: out of range", got=repr(given)[:80], expected=f"a whole number from {least} on")
    return number


@dataclass
class Generation:
    """Settings of one generation over a session; `timings` is filled as it runs."""

    session: Session
    tokenizer: Tokenizer
    routing: Routing
    params: SamplingParams
    max_tokens: int
    stops: Sequence[str] | None
    ignore_eos: bool
    n_probs: int = 0
    timings: Timings = field(default_factory=Timings)

    def __post_init__(self) -> None:
        self.max_tokens = _at_least(-1, "max_tokens", self.max_tokens)
        self.n_probs = _at_least(0, "n_probs", self.n_probs)
        stops = () if self.stops is None else self.stops
        wrong = [stop for stop in stops if not isinstance(stop, str)] if isinstance(stops, Sequence) else [stops]
        if wrong:
            raise UsageError("stop: not a text", got=repr(wrong[0])[:80])
        self.stops = tuple(stops)

    def run(
        self, ids: Sequence[int], cancel: threading.Event | None = None, on_prompt: OnPrompt | None = None
    ) -> Iterator[Step]:
        """Prefill what is not cached, then sample until a stop; the session keeps what was said.

        UsageError, when it goes on, if another request has been given the context since.
        """
        if isinstance(ids, Sized) and not len(ids):
            raise UsageError("the prompt is empty")
        session = self.session
        array = token_ids(ids, session.n_vocab)
        if array.size >= session.n_ctx:
            raise UsageError("the prompt does not fit in the context", got=f"{array.size} tokens",
                             expected=f"fewer than {session.n_ctx}")  # fmt: skip
        return self._steps(array.tolist(), cancel, on_prompt)

    def _steps(self, ids: list[int], cancel: threading.Event | None, on_prompt: OnPrompt | None) -> Iterator[Step]:
        session, timings = self.session, self.timings
        sampler = Sampler(self.params, session.n_vocab, self.tokenizer)
        for token in ids:
            sampler.accept(token)
        decoder, stop_filter = StreamDecoder(self.tokenizer), StopFilter(self.stops or ())
        session.use(self.routing)
        timings.n_prompt, timings.n_cached = len(ids), session.keep_prefix(ids)
        turn = session.turn
        started = time.perf_counter()
        result = session.prefill(ids[timings.n_cached :], cancel=cancel, on_prompt=on_prompt, interruptible=True)
        timings.prompt_s = time.perf_counter() - started
        index = 0
        while result is not None and not (cancel is not None and cancel.is_set()) and self.max_tokens != 0:
            began = time.perf_counter()
            token = sampler.sample(result.logits[-1])
            sampler.accept(token)
            probs = sampler.likeliest_with(result.logits[-1], self.n_probs, token) if self.n_probs else ()
            experts, weights = result.experts[-1].copy(), result.weights[-1].copy()
            ended = token in self.tokenizer.eog and not self.ignore_eos
            text, stopped = stop_filter.push(decoder.flush() if ended else decoder.push(token))
            reason = self._why_stop(index + 1, ended, stopped)
            if reason is not None and not stopped:
                text += stop_filter.push(decoder.flush())[0] + stop_filter.flush()
            timings.n_gen += 1
            timings.gen_s += time.perf_counter() - began
            yield Step(text, token, experts, weights, index, session.n_past, reason, probs)
            if reason is not None:
                return
            if session.turn != turn:
                raise UsageError("another request was given the model's context: this one cannot go on")
            began = time.perf_counter()
            result = session.decode(token)
            timings.gen_s += time.perf_counter() - began
            index += 1
        reason = "length" if self.max_tokens == 0 else "cancelled"
        rest = stop_filter.push(decoder.flush())[0] + stop_filter.flush()
        yield Step(rest, -1, *session.no_routing(), index, session.n_past, reason)

    def _why_stop(self, n_done: int, ended: bool, stopped: bool) -> str | None:
        if ended:
            return "eos"
        if stopped:
            return "stop"
        if 0 < self.max_tokens <= n_done:
            return "length"
        return "context" if self.session.n_past >= self.session.n_ctx else None
