"""The Python API: `localmoe.load(path)` gives a Model that tokenizes, evaluates, generates and chats."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from localmoe.engine.compiling import compiling_said
from localmoe.engine.generation import Generation, Step, Timings
from localmoe.engine.numbers import whole
from localmoe.engine.routing import ExpertsByLayer
from localmoe.engine.sampling import SamplingParams
from localmoe.engine.session import OnPrompt, Session, token_ids
from localmoe.engine.threads import physical_cores
from localmoe.errors import UsageError
from localmoe.experts.trace import RoutingTrace
from localmoe.gguf_file import GGUFFile, open_gguf, visible
from localmoe.model.config import ModelConfig
from localmoe.model.memory import check_memory
from localmoe.model.profile import Limits, Profile, decode_bytes, measure_limits, read_limit
from localmoe.model.runner import Runner
from localmoe.model.weights import load_weights
from localmoe.text.chat_template import ChatTemplate
from localmoe.text.tokenizer import Tokenizer
from localmoe.text.tokenizer import load as load_tokenizer

Progress = Callable[[str], None]

__all__ = ["EvalResult", "Model", "Step", "Timings", "load"]


@dataclass(frozen=True)
class EvalResult:
    """logits (T, V) float32; experts (T, L, K) int32; weights (T, L, K) float32; router (T, L, E) float32."""

    logits: npt.NDArray[np.float32]
    experts: npt.NDArray[np.int32]
    weights: npt.NDArray[np.float32]
    router: npt.NDArray[np.float32]


class Model:
    """An open model with one conversation in its KV cache. Not for two threads at once."""

    def __init__(self, gguf: GGUFFile, config: ModelConfig, tokenizer: Tokenizer, runner: Runner) -> None:
        self.gguf = gguf
        self.config = config
        self.tokenizer = tokenizer
        self.chat_template = ChatTemplate.from_gguf(gguf, tokenizer)
        self.trace = RoutingTrace(config.n_layer, config.n_expert)
        self.timings = Timings()
        self._runner = runner
        self._session = Session(runner, self.trace, visible(str(gguf.path)))

    @property
    def n_ctx(self) -> int:
        return self._runner.n_ctx

    @property
    def n_threads(self) -> int:
        return self._runner.n_thread

    @property
    def expert_bytes(self) -> npt.NDArray[np.int64]:
        """Bytes of one expert's three matrices in each layer, (L,); of a dense model all of a layer's."""
        layers = self._runner.weights.layers
        stacks = [(layer.ffn_gate, layer.ffn_up, layer.ffn_down) for layer in layers]
        return np.array([sum(w.rows * w.row_bytes for w in layer) for layer in stacks], np.int64)

    @property
    def memory_map(self) -> dict[str, int]:
        """Bytes of the experts, of all other weights and of the KV cache."""
        experts = int(self.expert_bytes.sum()) * self.config.n_expert
        weights = sum(tensor.n_bytes for tensor in self.gguf.tensors.values())
        return {"experts": experts, "other weights": weights - experts, "KV cache": self._runner.cache.n_bytes}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the threads and unmap the file."""
        self._runner.close()
        self.gguf.close()

    def session(self) -> Session:
        """The model's conversation, for callers that choose tokens themselves."""
        return self._session

    def profile(self) -> Profile:
        """A profile of the passes between its `start` and `stop`."""
        return Profile(self._runner)

    def read_speed(self) -> float:
        """GB/s of a plain read loop over the model's own weights, on as many threads."""
        return read_limit(self._runner.weights, self.n_threads)

    def decode_bytes(self, n_past: int) -> int:
        """Bytes of weights and cache that one token reads after `n_past` others."""
        return decode_bytes(self._runner, n_past, self._session.n_used if self.config.n_expert else 0)

    def limits(self) -> Limits:
        """What this machine could do at most, on as many threads."""
        return measure_limits(self._runner.weights, self.n_threads)

    def tokenize(self, text: str, *, add_bos: bool | None = None, parse_special: bool = False) -> list[int]:
        """Token ids of `text`; `add_bos` None does what the model's vocabulary asks for."""
        return self.tokenizer.encode(text, add_bos=add_bos, parse_special=parse_special)

    def detokenize(self, ids: Sequence[int]) -> str:
        given = list(ids) if isinstance(ids, Iterable) else ids
        return self.tokenizer.decode(token_ids(given, self.tokenizer.n_vocab).tolist() if given != [] else [])

    def eval(
        self,
        ids: Sequence[int],
        *,
        n_expert_used: int | Sequence[int] | None = None,
        leave_out: ExpertsByLayer | None = None,
        force_experts: ExpertsByLayer | None = None,
        expert_threshold: float | None = None,
    ) -> EvalResult:
        """Run `ids` from an empty context and keep every token's logits and routing; routing as for `generate`."""
        self._session.reset()
        self._session.route(
            n_expert_used=n_expert_used,
            leave_out=leave_out,
            force_experts=force_experts,
            expert_threshold=expert_threshold,
        )
        parts = self._session.run_all(ids)
        joined = (
            np.concatenate([getattr(p, name) for p in parts]) for name in ("logits", "experts", "weights", "router")
        )
        return EvalResult(*joined)

    def hidden_states(self, ids: Sequence[int], *, bfloat16: bool = False) -> npt.NDArray[np.float32]:
        """The residual stream (L + 1, T, D): what enters each layer, then what enters the output norm.

        bfloat16: every operation's result is rounded, as transformers computes a model that it loads in bfloat16; over
        an f32 cache, with bfloat16 weights.
        """
        self._session.reset()
        self._session.route()
        self._runner.round_to_bfloat16(bfloat16)
        try:
            parts = self._session.run_all(ids, want_logits=False, want_hidden=True)
        finally:
            self._runner.round_to_bfloat16(False)
        self._session.reset()
        return np.concatenate([p.hidden for p in parts if p.hidden is not None], axis=1)

    def generate(
        self,
        prompt: str | Sequence[int],
        *,
        max_tokens: int = -1,
        n_expert_used: int | Sequence[int] | None = None,
        leave_out: ExpertsByLayer | None = None,
        force_experts: ExpertsByLayer | None = None,
        expert_threshold: float | None = None,
        stop: str | Sequence[str] | None = (),
        ignore_eos: bool = False,
        n_probs: int = 0,
        cancel: threading.Event | None = None,
        on_prompt: OnPrompt | None = None,
        **sampling: Any,
    ) -> Iterator[Step]:
        """Continue `prompt`: a Step for every token, the last one with its `stop_reason`.

        n_expert_used: experts a token uses, or a number for every layer. leave_out and force_experts: experts by layer
        ({3: [1, 5]}, or ["3:1,5", "*:7"]) that are never or always chosen; where fewer are left than used, those.
        expert_threshold: a choice whose gate weight is below it is skipped, but for the likeliest. An unused slot is
        expert -1 with weight 0.
        n_probs: so many of the likeliest tokens come with each Step, as in llama.cpp's server.
        `sampling` are SamplingParams' fields. What the cache already holds of the prompt is not computed again.
        A model has one context: a generation that another request has taken it from ends with UsageError, which is also
        raised for a prompt that does not fit.
        """
        ids = self.tokenize(prompt) if isinstance(prompt, str) else prompt
        routing = self._session.checked_routing(
            n_expert_used=n_expert_used,
            leave_out=leave_out,
            force_experts=force_experts,
            expert_threshold=expert_threshold,
        )
        stops = (stop,) if isinstance(stop, str) else stop
        generation = Generation(
            self._session, self.tokenizer, routing, SamplingParams(**sampling), max_tokens, stops, ignore_eos, n_probs
        )
        self.timings = generation.timings
        return generation.run(ids, cancel, on_prompt)

    def interrupt(self) -> None:
        """End the reading of a prompt in another thread, within a layer: its generation ends as "cancelled".

        A batch of 512 tokens, between which `cancel` is looked at, can take seconds. A reply that has begun goes on.
        """
        self._session.interrupt()

    def chat(self, messages: Sequence[Mapping[str, str]], **options: Any) -> Iterator[Step]:
        """Answer the last of `messages` ({"role", "content"} each) by the chat template; options as for `generate`."""
        if self.chat_template is None:
            raise UsageError("the model has no chat template", file=self.gguf.path)
        return self.generate(self.chat_template.encode(self.tokenizer, messages), **options)


def load(
    path: str | os.PathLike[str],
    *,
    n_ctx: int | None = None,
    n_threads: int | None = None,
    n_expert_used: int | Sequence[int] | None = None,
    leave_out: ExpertsByLayer | None = None,
    force_experts: ExpertsByLayer | None = None,
    expert_threshold: float | None = None,
    cache_type_k: str = "f16",
    cache_type_v: str = "f16",
    progress: Progress | None = None,
) -> Model:
    """Open a GGUF for inference.

    n_ctx: positions of context, by default the model's own up to 4096 (0: all of the model's own). n_threads: by
    default one a physical core. n_expert_used: experts a token, instead of the file's; it, leave_out, force_experts and
    expert_threshold, see `Model.generate`, hold wherever a request says nothing else. cache_type_k/v: "f32", "f16" or
    "q8_0" (heads of a multiple of 32 values). `progress` is told in a line what is being waited for. Raises
    BadInputError for a file that cannot run, MemoryLimitError when its KV cache does not fit.
    """
    gguf = open_gguf(Path(path))
    config = ModelConfig.from_metadata(gguf)
    weights = load_weights(gguf, config)
    context = _context(n_ctx, config)
    warning = check_memory(gguf, config, context, cache_type_k, cache_type_v)
    if warning and progress is not None:
        progress(warning)
    with compiling_said(progress):
        runner = Runner(config, weights, context, _threads(n_threads), cache_type_k, cache_type_v)
    model = Model(gguf, config, load_tokenizer(gguf), runner)
    model.session().route(
        by_default=True,
        n_expert_used=n_expert_used,
        leave_out=leave_out,
        force_experts=force_experts,
        expert_threshold=expert_threshold,
    )
    return model


def _context(n_ctx: int | None, config: ModelConfig) -> int:
    if n_ctx is None:
        return config.n_ctx_usual
    number = whole(n_ctx)
    if number is None or number < 0:
        raise UsageError("n_ctx: out of range", got=repr(n_ctx), expected="a whole number from 0 on")
    return number or config.n_ctx_train


def _threads(n_threads: int | None) -> int:
    if n_threads is None:
        return physical_cores()
    number = whole(n_threads)
    if number is None or not 1 <= number <= 512:
        raise UsageError("number of threads is out of range", got=repr(n_threads), expected="1 to 512")
    return number
