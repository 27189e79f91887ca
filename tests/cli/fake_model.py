"""A model of the Python API's shape that says a fixed text: the commands are tested on it, not on real weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np

from localmoe.engine.generation import Timings
from localmoe.model.profile import Cost, Limits

LAYERS, EXPERTS, USED = 2, 4, 2


@dataclass(frozen=True)
class Step:
    text: str
    token: int
    experts: np.ndarray
    weights: np.ndarray
    index: int
    n_past: int
    stop_reason: str | None


@dataclass
class FakeSession:
    n_past: int = 0
    calls: list[tuple[str, int]] = field(default_factory=list)

    def prefill(self, ids: list[int]) -> None:
        self.calls.append(("prefill", len(ids)))
        self.n_past += len(ids)

    def decode(self, token: int) -> None:
        self.calls.append(("decode", token))
        self.n_past += 1

    def keep_prefix(self, ids: list[int]) -> int:
        self.n_past = min(self.n_past, len(ids) - 1)
        self.calls.append(("keep", self.n_past))
        return self.n_past


class FakeProfile:
    """Two threads that took 3 and 1 seconds for 100 GB, with 20 tokens and 3 seconds in all."""

    n_tok, pass_s = 20, 3.0
    costs: ClassVar[dict[str, Cost]] = {"norm, quantize": Cost(), "down": Cost(100_000_000_000, 80_000_000_000)}
    step_s = np.array([[0.0, 3.0], [0.5, 1.0]])

    def start(self) -> None:
        pass

    def stop(self) -> None:
        pass


class FakeModel:
    """Tokens are UTF-8 code points; every answer is `reply`, then an end-of-text token (id 0) that is not shown."""

    def __init__(self, reply: str = "Hello there", n_ctx: int = 64) -> None:
        self.reply, self.n_ctx = reply, n_ctx
        self.asked: list[tuple[Any, dict[str, Any]]] = []
        self.timings = Timings()
        self.tokenizer = SimpleNamespace(eog=frozenset((0, 3)))
        self.config = SimpleNamespace(n_layer=LAYERS, n_expert=EXPERTS, n_expert_used=USED, n_vocab=128, n_ctx_train=64)
        self.gguf = SimpleNamespace(
            n_bytes=3 * 2**20, tensors={"a": SimpleNamespace(n_elements=2_000_000)}, metadata={}, parts=()
        )
        self.chat_template: object | None = "a template"
        self.sessions: list[FakeSession] = []
        self.closed = self.interrupted = False
        self.n_used = USED
        self.on_step: Any = None

    def interrupt(self) -> None:
        self.interrupted = True

    def close(self) -> None:
        self.closed = True

    def tokenize(self, text: str, add_bos: bool | None = None, parse_special: bool = False) -> list[int]:
        return [1] * (add_bos is not False) + ([2] if parse_special else []) + [ord(letter) for letter in text]

    def session(self) -> FakeSession:
        self.sessions.append(FakeSession())
        return self.sessions[-1]

    def read_speed(self) -> float:
        return 50.0

    def decode_bytes(self, n_past: int) -> int:
        return 1_000_000 + 1_000 * n_past

    def limits(self) -> Limits:
        return Limits(read=50.0, int_macs=800.0, float_macs=200.0)

    def profile(self) -> FakeProfile:
        return FakeProfile()

    def generate(self, prompt: list[int], *, max_tokens: int = -1, **options: Any) -> Iterator[Step]:
        self.asked.append((prompt, {"max_tokens": max_tokens, **options}))
        return self._steps(len(prompt), max_tokens, options)

    def chat(self, messages: list[dict[str, str]], *, max_tokens: int = -1, **options: Any) -> Iterator[Step]:
        self.asked.append(([dict(message) for message in messages], {"max_tokens": max_tokens, **options}))
        return self._steps(sum(len(message["content"]) for message in messages), max_tokens, options)

    def _steps(self, n_prompt: int, max_tokens: int, options: dict[str, Any]) -> Iterator[Step]:
        """Like the engine: the end-of-text token is a step; any other end is a step without a token."""
        cancel = options.get("cancel")
        for i, letter in enumerate([*self.reply, ""]):
            self.timings = Timings(n_prompt, 0, 0.5, i, 0.25)
            stopped = "cancelled" if cancel is not None and cancel.is_set() else "length" if i == max_tokens else None
            if stopped:
                none = np.zeros((LAYERS, 0))
                yield Step("", -1, none.astype(np.int32), none.astype(np.float32), i, n_prompt + i, stopped)
                return
            experts = np.array([[i % EXPERTS, 3], [0, 1]], np.int32)[:, : self.n_used]
            weights = np.full(experts.shape, 0.5, np.float32)
            token = ord(letter) if letter else 0
            yield Step(letter, token, experts, weights, i, n_prompt + i, None if letter else "eos")
            if self.on_step:
                self.on_step(i)
