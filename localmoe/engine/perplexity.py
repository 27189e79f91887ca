"""Perplexity of a text, as llama.cpp's llama-perplexity measures it.

The text's tokens are cut into chunks of n_ctx, what is left over is dropped. Each chunk runs from an empty context, its
first token replaced by BOS where the model asks for one, and the second half is scored: the logits of tokens n_ctx / 2
to n_ctx - 2 against the token that follows. Source: llama.cpp, tools/perplexity/perplexity.cpp.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from localmoe.engine.api import Model
from localmoe.errors import BadInputError, UsageError
from localmoe.gguf_file import visible

CHUNK = 512
ROWS = 16  # tokens whose logits are worked on at a time: they stay in the cache
_LEAST = 4  # of a chunk: two halves, and something to score
_LOGIT_BYTES = 128 << 20  # of one step at most

Floats = npt.NDArray[np.float32]
Tokens = npt.NDArray[np.int32]


class Scored(NamedTuple):
    """Some tokens of chunk number `chunk`: logits (n, V), views that the next step overwrites, and what followed."""

    chunk: int
    logits: Floats
    targets: Tokens


@dataclass
class Sums:
    """Running sums of a quantity over tokens."""

    n: int = 0
    total: float = 0.0
    squares: float = 0.0

    def add(self, values: npt.NDArray[np.floating]) -> None:
        wide = values.astype(np.float64)
        self.n += wide.size
        self.total += float(wide.sum())
        self.squares += float(np.dot(wide, wide))

    @property
    def mean(self) -> float:
        return self.total / self.n if self.n else 0.0

    @property
    def error(self) -> float:
        """Standard error of the mean, 0 for too few tokens to tell."""
        variance = self.squares / self.n - self.mean**2 if self.n > 1 else 0.0
        return math.sqrt(variance / (self.n - 1)) if variance > 0 else 0.0


@dataclass(frozen=True)
class Perplexity:
    """exp of the mean negative log-likelihood of `n_tokens`, and its standard error."""

    ppl: float
    ppl_error: float
    n_tokens: int

    @classmethod
    def of(cls, nll: Sums) -> Perplexity:
        ppl = math.exp(min(nll.mean, 700.0))
        return cls(ppl, ppl * nll.error, nll.n)


def cut_chunks(ids: Sequence[int], n_ctx: int, most: int | None = None) -> Tokens:
    """Whole chunks (n_chunk, n_ctx) of a text's tokens, at most `most`.

    UsageError for a text of less than two chunks, or chunks too short to score.
    """
    if n_ctx < _LEAST:
        raise UsageError("a chunk is too short to score", got=f"{n_ctx} tokens", expected=f"at least {_LEAST} (-c)")
    if len(ids) < 2 * n_ctx:
        raise UsageError(
            f"the text is too short for chunks of {n_ctx} tokens", got=f"{len(ids)} tokens", expected=f">= {2 * n_ctx}"
        )
    n_chunk = len(ids) // n_ctx
    n_chunk = n_chunk if most is None else min(n_chunk, most)
    return np.array(ids[: n_chunk * n_ctx], np.int32).reshape(n_chunk, n_ctx)


def scored_rows(n_ctx: int) -> int:
    """Tokens of a chunk that are scored."""
    return n_ctx - 1 - n_ctx // 2


def score(model: Model, chunks: Tokens) -> Iterator[Scored]:
    """Run all chunks; a chunk's scored tokens come in order, in one part or several."""
    session = model.session()
    n_ctx = chunks.shape[1]
    first = n_ctx // 2
    most = max(1, _LOGIT_BYTES // (4 * session.n_vocab))
    for number, chunk in enumerate(chunks):
        session.reset()
        at = first + 1
        for logits in session.prefill_scored(with_bos(model, chunk)[: n_ctx - 1].tolist(), first, most):
            yield Scored(number, logits, chunk[at : at + len(logits)])
            at += len(logits)


def with_bos(model: Model, chunk: Tokens) -> Tokens:
    """The chunk as it runs: the first token is BOS where the model's vocabulary asks for one."""
    bos = model.tokenizer.bos
    if not model.tokenizer.add_bos or bos is None:
        return chunk
    chunk = chunk.copy()
    chunk[0] = bos
    return chunk


def negative_log_likelihood(logits: Floats, targets: Tokens) -> npt.NDArray[np.float64]:
    """-log p of each row's target, (n,)."""
    out = np.empty(len(targets), np.float64)
    for start in range(0, len(targets), ROWS):
        rows = logits[start : start + ROWS]
        at = np.arange(len(rows))
        top = rows.max(axis=1)
        total = np.exp(rows - top[:, None]).sum(axis=1, dtype=np.float64)
        chosen = (rows[at, targets[start : start + ROWS]] - top).astype(np.float64)
        out[start : start + ROWS] = np.log(total) - chosen
    return out


def check_finite(model: Model, values: npt.NDArray[np.floating]) -> None:
    """BadInputError where a model's logits led to a NaN or an infinity."""
    if not np.isfinite(values).all():
        raise BadInputError(
            "the model gave logits that are not finite: the weights are damaged", file=visible(str(model.gguf.path))
        )


def perplexity(model: Model, chunks: Tokens) -> Iterator[tuple[int, Perplexity]]:
    """(chunks done, estimate so far) after each chunk."""
    nll = Sums()
    n_row = scored_rows(chunks.shape[1])
    for part in score(model, chunks):
        values = negative_log_likelihood(part.logits, part.targets)
        check_finite(model, values)
        nll.add(values)
        if nll.n == (part.chunk + 1) * n_row:
            yield part.chunk + 1, Perplexity.of(nll)
