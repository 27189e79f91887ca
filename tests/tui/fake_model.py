"""A model that answers at once and routes like a real one: what `localmoe.load` returns, as far as the app looks."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .settling import DEADLINE

ANSWER = (
    "A **mixture of experts** has several feed-forward networks in each layer.\n\n"
    "- a *router* scores them for every token\n"
    "- only the best `k` of them run\n\n"
    "```python\nfor expert in chosen:\n    out += weight[expert] * expert(x)\n```\n\n"
    "So a model can hold many more weights than one token needs."
)


@dataclass(frozen=True)
class Step:
    text: str
    token: int
    experts: np.ndarray
    weights: np.ndarray
    index: int
    n_past: int
    stop_reason: str | None = None
    probs: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Timings:
    n_prompt: int
    prompt_s: float
    n_gen: int
    gen_s: float
    n_cached: int = 0


@dataclass(frozen=True)
class Config:
    n_layer: int
    n_expert: int
    n_expert_used: int
    n_ctx_train: int = 8192

    @property
    def n_ctx_usual(self) -> int:
        return min(4096, self.n_ctx_train)


class FakeTokenizer:
    """Every token is its number in brackets."""

    add_space_prefix = False

    def token(self, i: int) -> bytes:
        return f"<{i}>".encode()

    def is_control(self, i: int) -> bool:  # noqa: ARG002
        return False


class FakeTemplate:
    """Takes a token for four characters, and six around each message, as a FakeModel does."""

    def encode(self, tokenizer: object, messages: list[dict[str, str]]) -> list[int]:  # noqa: ARG002
        return list(range(sum(len(m["content"]) // 4 + 6 for m in messages)))


@dataclass(frozen=True)
class FakeGGUF:
    path: Path
    metadata: dict[str, Any]


@dataclass(frozen=True)
class TraceSlice:
    first: int
    tokens: np.ndarray
    phase: np.ndarray
    experts: np.ndarray
    weights: np.ndarray
    router: np.ndarray | None = None
    n_used: np.ndarray | None = None


@dataclass
class FakeTrace:
    """Keeps everything, which the engine's ring does not."""

    n_layer: int
    rows: list[tuple[int, int, np.ndarray, np.ndarray]] = field(default_factory=list)
    capacity: int = 4096

    @property
    def count(self) -> int:
        return len(self.rows)

    def router_of(self, number: int) -> None:
        """Probabilities are not kept."""

    def read(self, since: int, *, router: bool = True) -> TraceSlice:  # noqa: ARG002
        first = max(since, self.count - self.capacity)
        rows = self.rows[first:]
        token, phase, experts, weights = zip(*rows, strict=True)
        used = np.full((len(rows), self.n_layer), experts[0].shape[1])
        return TraceSlice(first, np.array(token), np.array(phase), np.stack(experts), np.stack(weights), n_used=used)


class FakeModel:
    """Says `answer` in small pieces; `delay` seconds a token, `prompt_delay` a prompt chunk; `gate` holds tokens."""

    def __init__(
        self,
        *,
        n_layer: int = 30,
        n_expert: int = 4,
        n_used: int = 2,
        name: str = "SmolLM2 4x135M demo",
        labels: list[str] | None = None,
        answer: str | list[str] = ANSWER,
        delay: float = 0.0,
        prompt_delay: float = 0.0,
        n_ctx: int = 2048,
        n_ctx_train: int = 8192,
        chat_template: object | None = FakeTemplate(),
        error: Exception | None = None,
    ) -> None:
        self.config = Config(n_layer, n_expert, n_used, n_ctx_train)
        self.gguf = FakeGGUF(Path("demo.gguf"), {"general.name": name})
        if labels:
            self.gguf.metadata["localmoe.expert.labels"] = labels
        self.n_ctx, self.chat_template = n_ctx, chat_template
        self.tokenizer = FakeTokenizer()
        self.expert_bytes = np.full(n_layer, 3 << 20, np.int64)
        self.memory_map = {"experts": n_layer * n_expert * (3 << 20), "other weights": 80 << 20, "KV cache": 45 << 20}
        self.trace = FakeTrace(n_layer)
        self.timings = Timings(0, 0.0, 0, 0.0)
        self.pieces = _pieces(answer) if isinstance(answer, str) else answer
        self.delay, self.prompt_delay, self.error = delay, prompt_delay, error
        self.asked: list[dict[str, Any]] = []
        self.gate: threading.Semaphore | None = None
        self.closed = self.interrupted = False
        self.n_past = 0
        self._rng = np.random.default_rng(7)
        self._taste = self._rng.normal(0, 1.1, (n_layer, max(1, n_expert)))

    def chat(self, messages: list[dict[str, str]], **options: Any) -> Iterator[Step]:
        return self._run("chat", messages, sum(len(m["content"]) // 4 + 6 for m in messages), **options)

    def generate(self, prompt: str, **options: Any) -> Iterator[Step]:
        return self._run("generate", prompt, len(prompt) // 4 + 1, **options)

    def interrupt(self) -> None:
        self.interrupted = True

    def close(self) -> None:
        self.closed = True

    def tokenize(self, text: str) -> list[int]:
        return list(range(len(text) // 4 + 1))

    def _run(
        self,
        how: str,
        prompt: object,
        n_prompt: int,
        *,
        cancel: threading.Event,
        on_prompt: Callable[[int, int], None],
        n_expert_used: int | list[int] | None = None,
        n_probs: int = 0,
        **sampling: Any,
    ) -> Iterator[Step]:
        self.asked.append({"how": how, "prompt": prompt, "n_expert_used": n_expert_used, **sampling})
        k = max(n_expert_used) if isinstance(n_expert_used, list) else n_expert_used or self.config.n_expert_used
        began = time.perf_counter()
        on_prompt(0, n_prompt)
        for done in range(0, n_prompt, 16):
            size = min(16, n_prompt - done)
            for _ in range(size):
                self._route(k, 0)
            time.sleep(self.prompt_delay)
            on_prompt(done + size, n_prompt)
        prompt_s = time.perf_counter() - began
        self.n_past = n_prompt
        if self.error is not None:
            raise self.error
        if sampling.get("max_tokens") == 0:
            none = np.zeros((self.config.n_layer, 0))
            self.timings = Timings(n_prompt, prompt_s, 0, 0.0)
            yield Step("", -1, none.astype(np.int32), none.astype(np.float32), 0, self.n_past, "length")
            return
        for index, text in enumerate(self.pieces):
            if self.gate is not None:
                self.gate.acquire(timeout=DEADLINE)
            time.sleep(self.delay)
            if cancel.is_set():
                none = np.zeros((self.config.n_layer, 0))
                yield Step("", -1, none.astype(np.int32), none.astype(np.float32), index, self.n_past, "cancelled")
                return
            experts, weights = self._route(k, 1)
            self.n_past += 1
            last = index == len(self.pieces) - 1
            reason = "eos" if last else "length" if index + 1 == sampling.get("max_tokens") else None
            gen_s = time.perf_counter() - began - prompt_s
            self.timings = Timings(n_prompt, prompt_s, index + 1, gen_s)
            token = self.trace.count  # the number of the next row: the token that this step chooses is run next
            probs = tuple((token + 1000 * n, 0.5 / 2**n) for n in range(n_probs))
            yield Step(text, token, experts, weights, index, self.n_past, reason, probs)
            if reason:
                return

    def _route(self, k: int, phase: int) -> tuple[np.ndarray, np.ndarray]:
        n_layer, n_expert = self.config.n_layer, self.config.n_expert
        if not n_expert:
            experts, weights = np.zeros((n_layer, 0), np.int32), np.zeros((n_layer, 0), np.float32)
        else:
            score = self._taste + self._rng.normal(0, 1, (n_layer, n_expert))
            experts = np.argsort(-score, axis=1)[:, :k].astype(np.int32)
            top = np.exp(np.take_along_axis(score, experts, 1))
            weights = (top / top.sum(1, keepdims=True)).astype(np.float32)
        self.trace.rows.append((self.trace.count, phase, experts, weights))
        return experts, weights


def _pieces(text: str) -> list[str]:
    """Pieces of a few characters, as tokens have."""
    out: list[str] = []
    for word in text.replace(" ", "\x00 ").split("\x00"):
        out += [word[:5], word[5:]] if len(word) > 7 else [word]
    return out
