"""The one thread that touches the model: it loads, generates and closes, and never waits for the screen.

The screen polls `drain()` at its own pace, so a fast model cannot flood it with messages. Only rare events are posted.
"""

from __future__ import annotations

import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

from textual.message import Message

from localmoe.errors import LocalMoeError
from localmoe.scheduling import giving_way
from localmoe.sessions.record import Pieces

from .alternatives import N_PROBS, Alternatives
from .context import Messages, fitting_in, plain_text
from .messages import (
    Compared,
    ComparePart,
    EngineDied,
    LoadFailed,
    LoadProgress,
    ModelReady,
    ReplyDone,
    ReplyFailed,
)

if TYPE_CHECKING:
    from localmoe.engine.api import Model, Step

Progress = Callable[..., None]
DRAWN = 0.3
"""Seconds that a reply waits at most for its question to be drawn, which takes twice as long beside a busy engine."""
PART_EVERY = 0.1
"""Seconds between two messages about how far a comparison is."""


class Closing(Exception):
    """Raised out of a loader's progress: the app is left, and what is being made is not wanted any more."""


class Loader(Protocol):
    """Opens a model; `progress` is called with a text, amounts done and total, or any of these."""

    def __call__(self, progress: Progress) -> Model: ...


@dataclass(frozen=True)
class Request:
    """One reply to make: chat messages, the number of experts a token uses (None: the model's), sampling keywords.

    routing: further keywords of `Model.generate` about experts. keep: takes the text on the engine's thread, in pieces
    of `KEEP_EVERY` seconds. forget: leave out the oldest turns where not all fit; `skip` of them were left out before.
    """

    messages: Sequence[Mapping[str, str]]
    n_expert_used: int | Sequence[int] | None
    sampling: Mapping[str, Any]
    routing: Mapping[str, Any] = field(default_factory=dict)
    keep: Callable[[str], None] | None = None
    forget: bool = False
    skip: int = 0


@dataclass(frozen=True)
class Comparison:
    """A prompt to answer with the options A and B of `Model.generate`."""

    prompt: str
    a: Mapping[str, Any]
    b: Mapping[str, Any]


@dataclass
class Progressed:
    """What happened since the last look: new text, and where things stand."""

    text: str = ""
    prompt_done: int = 0
    prompt_total: int = 0
    n_gen: int = 0
    n_past: int = 0
    prompt_s: float = 0.0
    gen_s: float = 0.0
    skipped: int = 0
    step: Step | None = None


class EngineWorker:
    """Owns the engine's thread; every method may be called from the screen's thread and returns at once.

    `post` takes its news; who listens may change while the thread is idle.
    """

    def __init__(self, loader: Loader, post: Callable[[Message], object]) -> None:
        self._loader, self.post = loader, post
        self.alternatives = Alternatives()
        self._jobs: queue.SimpleQueue[Request | Comparison | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._cancel = threading.Event()
        self._drawn = threading.Event()
        self._closing = False
        self._state = Progressed()
        self._text: list[str] = []
        self._model: Model | None = None
        self._thread = threading.Thread(target=self._main, name="localmoe-engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def generate(self, request: Request) -> None:
        """Queue a reply, which begins at `drawn` or soon after; the one before it must have ended."""
        self._cancel.clear()
        self._drawn.clear()
        with self._lock:
            self._state, self._text = Progressed(), []
        self._jobs.put(request)

    def drawn(self) -> None:
        """Say that what is to be answered is on the screen."""
        self._drawn.set()

    def compare(self, comparison: Comparison) -> None:
        """Queue a comparison, told of by ComparePart and Compared; a reply before it must have ended."""
        self._cancel.clear()
        self._jobs.put(comparison)

    def stop(self) -> None:
        """End the reply after the token that is being computed, or the prompt after a layer."""
        self._cancel.set()
        self._drawn.set()
        if (model := self._model) is not None:
            model.interrupt()

    def close(self, timeout: float = 2.0) -> None:
        """Stop, close the model and wait a little; a thread that does not answer ends with the process."""
        self._closing = True
        self.stop()
        self._jobs.put(None)
        if self._thread.is_alive():
            self._thread.join(timeout)

    def drain(self) -> Progressed:
        """The text since the last call and the newest figures."""
        with self._lock:
            text, self._text = "".join(self._text), []
            return replace(self._state, text=text)

    def _main(self) -> None:
        finished = False
        try:
            with giving_way():  # once: for each token it takes two calls of the system's
                self._serve()
            finished = True
        finally:
            error = sys.exc_info()[1]
            if not finished and error is not None:  # a bug: the screen's thread raises it, the terminal is restored
                self.post(EngineDied(error))

    def _serve(self) -> None:
        try:
            self._model = self._loader(self._on_progress)
        except Closing:
            return
        except LocalMoeError as error:
            self.post(LoadFailed(str(error), error.exit_code))
            return
        except (OSError, MemoryError) as error:
            self.post(LoadFailed(str(error) or "out of memory", 5 if isinstance(error, MemoryError) else 4))
            return
        self.post(ModelReady(self._model))
        try:
            while (job := self._jobs.get()) is not None:
                if isinstance(job, Comparison):
                    self._compare(self._model, job)
                else:
                    self._reply(self._model, job)
        finally:
            self._model.close()

    def _on_progress(self, *said: Any) -> None:
        if self._closing:
            raise Closing
        words = [str(item) for item in said if isinstance(item, str)]
        amounts = [float(item) for item in said if isinstance(item, (int, float))]
        part = None
        if len(amounts) >= 2 and amounts[1] > 0:
            part = min(1.0, amounts[0] / amounts[1])
        elif len(amounts) == 1 and 0 <= amounts[0] <= 1:
            part = amounts[0]
        self.post(LoadProgress(" ".join(words), part))

    def _reply(self, model: Model, request: Request) -> None:
        self._drawn.wait(DRAWN)
        started = time.perf_counter()

        def on_prompt(done: int, total: int) -> None:
            with self._lock:
                self._state.prompt_done, self._state.prompt_total = done, total
                self._state.prompt_s = time.perf_counter() - started

        reason = "cancelled"
        kept = Pieces(request.keep)
        try:
            steps = self._steps(model, request, on_prompt)
            began = 0.0
            for step in steps:
                now = time.perf_counter()
                began = began or now
                kept.add(step.text, now)
                self.alternatives.keep(model.trace.count, step)
                self._record(step, started, began, now)
                reason = step.stop_reason or reason
            kept.write()
            self._measured(model)
        except LocalMoeError as error:
            kept.write()
            self.post(ReplyFailed(str(error)))
        except MemoryError:
            kept.write()
            self.post(ReplyFailed("out of memory"))
        else:
            self.post(ReplyDone(reason))

    def _compare(self, model: Model, job: Comparison) -> None:
        from localmoe.engine.side_by_side import Stopped, side_by_side

        said = 0.0

        def on_part(what: str, part: float) -> None:
            nonlocal said
            if time.perf_counter() - said > PART_EVERY:
                said = time.perf_counter()
                self.post(ComparePart(what, part))

        try:
            result = side_by_side(model, job.prompt, job.a, job.b, cancel=self._cancel, on_part=on_part)
        except LocalMoeError as error:
            self.post(Compared(None, str(error)))
        except MemoryError:
            self.post(Compared(None, "out of memory"))
        except Stopped:
            self.post(Compared(None, "stopped"))
        else:
            self.post(Compared(result))

    def _steps(self, model: Model, request: Request, on_prompt: Callable[[int, int], None]) -> Iterator[Step]:
        """A reply to the chat, or, for a model without a chat template, the text's continuation."""
        keywords = {**request.sampling, **request.routing}
        keywords.update(n_expert_used=request.n_expert_used, cancel=self._cancel, on_prompt=on_prompt, n_probs=N_PROBS)
        messages = self._fitting(model, request) if request.forget else request.messages
        if model.chat_template is not None:
            return model.chat([dict(m) for m in messages], **keywords)
        return model.generate(plain_text(messages), **keywords)

    def _fitting(self, model: Model, request: Request) -> Messages:
        messages, skipped = fitting_in(model, request.messages, request.skip)
        with self._lock:
            self._state.skipped = skipped
        return messages

    def _measured(self, model: Model) -> None:
        """Take the engine's own figures for a whole reply in place of those seen from outside."""
        timings = model.timings
        with self._lock:
            self._state.prompt_total = self._state.prompt_done = timings.n_prompt - timings.n_cached
            self._state.prompt_s, self._state.gen_s = timings.prompt_s, timings.gen_s
            self._state.n_gen = timings.n_gen

    def _record(self, step: Step, started: float, began: float, now: float) -> None:
        with self._lock:
            if step.text:
                self._text.append(step.text)
            state = self._state
            state.n_past = step.n_past
            if step.token < 0:  # the end of a generation that was stopped: no token ran
                return
            state.step = step
            state.n_gen += 1
            state.prompt_s = began - started
            state.gen_s = now - began
