"""How far a model's predictions are from another's: a file of the base's log-probabilities, and what is made of it.

The file is llama-perplexity's of `--kl-divergence-base`, so that either program reads the other's. Little-endian:

    "_logits_" | i32 n_ctx | i32 n_vocab | i32 n_chunk | i32 tokens[n_chunk][n_ctx] | rows[n_chunk][scored]

A row is `f32 scale | f32 least | u16 q[n_vocab]`, padded to an even number of q: log p = scale * q + least. What is
more than 16 below the likeliest counts as 16 below. Source: llama.cpp, tools/perplexity/perplexity.cpp.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from localmoe.engine.api import Model
from localmoe.engine.perplexity import (
    ROWS,
    Floats,
    Perplexity,
    Sums,
    Tokens,
    check_finite,
    negative_log_likelihood,
    score,
    scored_rows,
)
from localmoe.errors import BadInputError, FileError
from localmoe.gguf_file import visible

MAGIC = b"_logits_"
_HEAD = 8 + 3 * 4
_RANGE = np.float32(16.0)
_LEVELS = np.float32(65535.0)
_MAX_CTX, _MAX_VOCAB = 1 << 20, 1 << 24
QUANTILES = (0.999, 0.99, 0.95, 0.9, 0.5, 0.1, 0.05, 0.01, 0.001)
P_DIFF_QUANTILES = (0.999, 0.99, 0.95, 0.9, 0.75, 0.5, 0.25, 0.1, 0.05, 0.01, 0.001)

Rows = npt.NDArray[np.uint16]


def row_words(n_vocab: int) -> int:
    """16-bit words of a row."""
    return 2 * ((n_vocab + 1) // 2) + 4


def base_bytes(chunks: Tokens, n_vocab: int) -> int:
    """Size of the file for these chunks."""
    n_chunk, n_ctx = (int(n) for n in chunks.shape)
    return _HEAD + n_chunk * (4 * n_ctx + scored_rows(n_ctx) * row_words(n_vocab) * 2)


def write_base(model: Model, chunks: Tokens, write: Callable[[bytes], None]) -> Iterator[tuple[int, Perplexity]]:
    """Run the base model, `write` the whole file in order; (chunks done, perplexity so far) after each chunk."""
    n_chunk, n_ctx = chunks.shape
    n_vocab = model.config.n_vocab
    write(MAGIC + np.array([n_ctx, n_vocab, n_chunk], "<i4").tobytes() + chunks.astype("<i4").tobytes())
    nll = Sums()
    for part in score(model, chunks):
        values = negative_log_likelihood(part.logits, part.targets)
        check_finite(model, values)
        nll.add(values)
        for start in range(0, len(part.targets), ROWS):
            write(encode_rows(part.logits[start : start + ROWS]).tobytes())
        if nll.n == (part.chunk + 1) * scored_rows(n_ctx):
            yield part.chunk + 1, Perplexity.of(nll)


def encode_rows(logits: Floats) -> Rows:
    """Rows of the file for logits (n, V)."""
    n_vocab = logits.shape[1]
    top = logits.max(axis=1)
    least = np.maximum(logits.min(axis=1), top - _RANGE)
    total = np.exp(logits - top[:, None]).sum(axis=1, dtype=np.float64)
    log_total = np.log(total).astype(np.float32)
    scale = (top - least) / _LEVELS
    out = np.zeros((len(logits), row_words(n_vocab)), np.uint16)
    out[:, :4] = np.stack([scale, least - top - log_total], axis=1).astype("<f4").view("<u2")
    inverse = np.divide(np.float32(1.0), scale, out=np.zeros_like(scale), where=scale != 0)
    above = np.maximum(logits - least[:, None], np.float32(0.0))
    out[:, 4 : 4 + n_vocab] = np.rint(above * inverse[:, None])
    return out


def decode_rows(rows: Rows, n_vocab: int) -> Floats:
    """The base's log-probabilities (n, V)."""
    numbers = np.ascontiguousarray(rows[:, :4]).view("<f4")
    logs: Floats = rows[:, 4 : 4 + n_vocab].astype(np.float32)
    logs *= numbers[:, :1]
    logs += numbers[:, 1:]
    return logs


@dataclass(frozen=True)
class Base:
    """A validated file: tokens (n_chunk, n_ctx), and rows (n_chunk, scored, words) that are read where used."""

    path: Path
    n_vocab: int
    chunks: Tokens
    rows: Rows


def open_base(path: Path) -> Base:
    """Map a base's file. FileError: the system refuses it. BadInputError: not such a file, or not a whole one."""
    shown = visible(str(path))
    try:
        size = os.stat(path).st_size
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except OSError as error:
        raise FileError(f"cannot be read: {error.strerror}", file=shown) from None
    if not head.startswith(MAGIC) or len(head) < _HEAD:
        raise BadInputError("is not a file of log-probabilities", file=shown, expected="one of --kl-divergence-base")
    n_ctx, n_vocab, n_chunk = np.frombuffer(head, "<i4", 3, len(MAGIC)).tolist()
    if not 4 <= n_ctx <= _MAX_CTX or not 1 <= n_vocab <= _MAX_VOCAB or n_chunk < 1:
        raise BadInputError("has impossible sizes", file=shown, got=f"{n_ctx}, {n_vocab} and {n_chunk}")
    shape = (n_chunk, scored_rows(n_ctx), row_words(n_vocab))
    at = _HEAD + 4 * n_chunk * n_ctx
    if size != at + 2 * math.prod(shape):
        raise BadInputError("is not whole", file=shown, got=f"{size} bytes", expected=at + 2 * math.prod(shape))
    tokens = np.array(np.memmap(path, "<i4", "r", _HEAD, (n_chunk, n_ctx)), np.int32)
    if tokens.min() < 0 or tokens.max() >= n_vocab:
        raise BadInputError("holds tokens outside the vocabulary", file=shown, expected=f"0 to {n_vocab - 1}")
    return Base(path, n_vocab, tokens, np.memmap(path, "<u2", "r", at, shape))


@dataclass
class _Totals:
    """What is summed over tokens, in a model's and its base's words: q is the model's, p the base's."""

    nll: Sums = field(default_factory=Sums)
    nll_base: Sums = field(default_factory=Sums)
    product: float = 0.0
    same_top: int = 0
    kld: list[npt.NDArray[np.float64]] = field(default_factory=list)
    p_diff: list[npt.NDArray[np.float64]] = field(default_factory=list)

    def add(self, logits: Floats, targets: Tokens, base: Floats) -> None:
        """Compare n tokens' logits (n, V) with the base's log-probabilities (n, V)."""
        at = np.arange(len(targets))
        top = logits.max(axis=1)
        total = np.exp(logits - top[:, None]).sum(axis=1, dtype=np.float64)
        log_total = (top + np.log(total).astype(np.float32))[:, None]
        nll = (log_total[:, 0] - logits[at, targets]).astype(np.float64)
        nll_base = -base[at, targets].astype(np.float64)
        self.nll.add(nll)
        self.nll_base.add(nll_base)
        self.product += float(np.dot(nll, nll_base))
        self.same_top += int((logits.argmax(axis=1) == base.argmax(axis=1)).sum())
        terms = np.exp(base) * (base - logits + log_total)
        self.kld.append(np.where(base > -_RANGE, terms, np.float32(0.0)).sum(axis=1, dtype=np.float64))
        self.p_diff.append(np.exp(-nll) - np.exp(-nll_base))


@dataclass(frozen=True)
class Divergence:
    """A model against its base over `n_tokens`; each figure with its standard error. Percentages are 0 to 100.

    `kld` is in nats a token, `p_diff` the change of the right token's probability, `same_top` how often the likeliest
    token is the same; the quantiles' keys are llama.cpp's ("99.9%", "Median", ...).
    """

    n_tokens: int
    ppl: float
    ppl_error: float
    ppl_base: float
    ppl_base_error: float
    ln_ppl_correlation: float
    ln_ppl_ratio: float
    ln_ppl_ratio_error: float
    ppl_difference: float
    ppl_difference_error: float
    kld: float
    kld_error: float
    kld_max: float
    kld_min: float
    kld_quantiles: dict[str, float]
    p_diff: float
    p_diff_error: float
    p_diff_rms: float
    p_diff_rms_error: float
    p_diff_max: float
    p_diff_min: float
    p_diff_quantiles: dict[str, float]
    same_top: float
    same_top_error: float


def compare(model: Model, base: Base) -> Iterator[tuple[int, Callable[[], Divergence]]]:
    """Run the base's tokens; (chunks done, how to get the comparison so far) after each chunk.

    BadInputError where the base is of another vocabulary.
    """
    shown = visible(str(base.path))
    if base.n_vocab != model.config.n_vocab:
        got = f"{base.n_vocab} tokens"
        raise BadInputError("is of another vocabulary", file=shown, got=got, expected=model.config.n_vocab)
    totals = _Totals()
    n_row = base.rows.shape[1]
    at = 0
    for part in score(model, base.chunks):
        for start in range(0, len(part.targets), ROWS):
            stop = min(start + ROWS, len(part.targets))
            rows = decode_rows(base.rows[part.chunk, at + start : at + stop], base.n_vocab)
            if not np.isfinite(rows).all():
                reason = "holds log-probabilities that are not finite"
                raise BadInputError(reason, file=shown, item=f"chunk {part.chunk}")
            totals.add(part.logits[start:stop], part.targets[start:stop], rows)
            check_finite(model, totals.kld[-1])
        at += len(part.targets)
        if at == n_row:
            at = 0
            yield part.chunk + 1, lambda: _divergence(totals)


def _divergence(totals: _Totals) -> Divergence:
    kld, p_diff = np.concatenate(totals.kld), np.concatenate(totals.p_diff)
    n = len(kld)
    nll, nll_base = totals.nll, totals.nll_base
    covariance = (totals.product / n - nll.mean * nll_base.mean) / max(n - 1, 1)
    ratio_variance = nll.error**2 + nll_base.error**2 - 2 * covariance
    errors = nll.error * nll_base.error
    squares = _sums(p_diff**2)
    rms = math.sqrt(squares.mean)
    same = totals.same_top / n
    quality, base = Perplexity.of(nll), Perplexity.of(nll_base)
    difference_variance = quality.ppl_error**2 + base.ppl_error**2 - 2 * quality.ppl * base.ppl * covariance
    return Divergence(
        n_tokens=n,
        ppl=quality.ppl, ppl_error=quality.ppl_error, ppl_base=base.ppl, ppl_base_error=base.ppl_error,
        ln_ppl_correlation=100 * covariance / errors if errors else 0.0,
        ln_ppl_ratio=nll.mean - nll_base.mean, ln_ppl_ratio_error=math.sqrt(max(ratio_variance, 0.0)),
        ppl_difference=quality.ppl - base.ppl, ppl_difference_error=math.sqrt(max(difference_variance, 0.0)),
        kld=_sums(kld).mean, kld_error=_sums(kld).error, kld_max=float(kld.max()), kld_min=float(kld.min()),
        kld_quantiles=_quantiles(kld, QUANTILES),
        p_diff=100 * _sums(p_diff).mean, p_diff_error=100 * _sums(p_diff).error,
        p_diff_rms=100 * rms, p_diff_rms_error=100 * (0.5 / rms * squares.error if rms else 0.0),
        p_diff_max=100 * float(p_diff.max()), p_diff_min=100 * float(p_diff.min()),
        p_diff_quantiles=_quantiles(100 * p_diff, P_DIFF_QUANTILES),
        same_top=100 * same, same_top_error=100 * math.sqrt(same * (1 - same) / max(n - 1, 1)),
    )  # fmt: skip


def _sums(values: npt.NDArray[Any]) -> Sums:
    sums = Sums()
    sums.add(values)
    return sums


def _quantiles(values: npt.NDArray[np.float64], wanted: Sequence[float]) -> dict[str, float]:
    found = np.quantile(values, wanted)
    return {"Median" if q == 0.5 else f"{100 * q:.1f}%": float(x) for q, x in zip(wanted, found, strict=True)}
