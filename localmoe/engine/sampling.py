"""The next token from logits: llama.cpp's sampler chain, its order and its defaults.

Chain: logit bias, penalties, DRY, top-n-sigma, top-k, typical, top-p, min-p, XTC, temperature, a draw. With Mirostat:
logit bias, temperature, Mirostat.
"""

from __future__ import annotations

import math
import secrets
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from localmoe.engine import sampler_steps as steps
from localmoe.engine.sampler_history import LARGEST, Breakers, Vocabulary, dry, find_breakers, penalize
from localmoe.engine.sampler_steps import Candidates
from localmoe.errors import LocalMoeError, UsageError
from localmoe.kernels.shapes import MOST
from localmoe.native import function

INF = math.inf
# Inclusive ranges; float fields must be finite besides.
RANGES: Mapping[str, tuple[float, float]] = {
    "temperature": (-INF, INF),
    "dynatemp_range": (0, INF),
    "dynatemp_exponent": (0, INF),
    "top_k": (-1, INF),
    "top_p": (0, 1),
    "min_p": (0, 1),
    "typical_p": (0, 1),
    "top_n_sigma": (-INF, INF),
    "xtc_probability": (0, 1),
    "xtc_threshold": (0, 1),
    "repeat_penalty": (1e-38, INF),
    "repeat_last_n": (0, 2**31 - 1),
    "frequency_penalty": (-INF, INF),
    "presence_penalty": (-INF, INF),
    "dry_multiplier": (0, INF),
    "dry_base": (0, INF),
    "dry_allowed_length": (0, INF),
    "dry_penalty_last_n": (0, 2**31 - 1),
    "mirostat": (0, 2),
    "mirostat_tau": (0, INF),
    "mirostat_eta": (0, INF),
    "min_keep": (0, INF),
    "seed": (-1, INF),
}
INTEGERS = frozenset(
    ("top_k", "repeat_last_n", "dry_allowed_length", "dry_penalty_last_n", "mirostat", "min_keep", "seed")
)


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are chosen; every default is llama.cpp's. Raises UsageError that names the field.

    temperature <= 0 is greedy; top_k <= 0, top_p 1, min_p 0, typical_p 1, top_n_sigma <= 0, xtc_probability 0,
    repeat_penalty 1, dry_multiplier 0 and mirostat 0 switch a step off; seed None or -1 draws one.
    logit_bias: token -> what is added to its logit (-inf bans it).
    """

    temperature: float = 0.8
    dynatemp_range: float = 0.0
    dynatemp_exponent: float = 1.0
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    typical_p: float = 1.0
    top_n_sigma: float = -1.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = 64
    dry_sequence_breakers: tuple[str, ...] = ("\n", ":", '"', "*")
    mirostat: int = 0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    min_keep: int = 0
    seed: int | None = None

    def __post_init__(self) -> None:
        for item in fields(self):
            if item.name in RANGES:
                object.__setattr__(self, item.name, _checked_number(item.name, getattr(self, item.name)))
        breakers = self.dry_sequence_breakers
        listed = isinstance(breakers, Iterable) and not isinstance(breakers, str)
        if not listed or not all(isinstance(text, str) and text for text in breakers):
            raise UsageError("must be a list of non-empty strings", item="dry_sequence_breakers", got=repr(breakers))
        object.__setattr__(self, "dry_sequence_breakers", tuple(breakers))
        if not isinstance(self.logit_bias, Mapping):
            raise UsageError(
                "is no mapping", item="logit_bias", got=repr(self.logit_bias)[:80], expected="{token: bias}"
            )
        for token, bias in self.logit_bias.items():
            if not _is_integer(token) or token < 0 or not _is_number(bias) or math.isnan(bias) or bias == INF:
                raise UsageError(
                    "no such bias", item="logit_bias", got=f"{token!r}: {bias!r}", expected="a token id and a number"
                )

    @property
    def repeats_matter(self) -> bool:
        """Whether repetition, frequency or presence penalties can change a logit."""
        neutral = self.repeat_penalty == 1 and self.frequency_penalty == 0 and self.presence_penalty == 0
        return self.repeat_last_n > 0 and not neutral

    @property
    def dry_matters(self) -> bool:
        """Whether DRY can change a logit."""
        return self.dry_multiplier != 0 and self.dry_base >= 1 and self.dry_penalty_last_n > 0

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is always chosen, whatever the other steps keep."""
        return self.temperature <= 0 and (self._is_plain or self.mirostat > 0)

    @property
    def is_short(self) -> bool:
        """Whether a few of the likeliest, top-p, min-p and a temperature are all that there is, as by default."""
        few = 0 < self.top_k <= MOST and self.top_n_sigma <= 0 and not self.mirostat
        return few and self._is_plain and self.temperature > 0

    @property
    def _is_plain(self) -> bool:
        return self.typical_p >= 1 and self.xtc_probability <= 0 and self.dynatemp_range <= 0


def _is_integer(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return (_is_integer(value) and abs(cast(int, value)) < 2**53) or isinstance(value, float | np.floating)


def _checked_number(name: str, value: Any) -> Any:
    """The number as Python's own; UsageError naming the field unless it is one in its range."""
    if name == "seed" and value is None:
        return None
    low, high = RANGES[name]
    kind = "an integer" if name in INTEGERS else "a number"
    right_kind = _is_integer(value) or (name not in INTEGERS and isinstance(value, float | np.floating))
    if not right_kind or not math.isfinite(value) or not low <= value <= high:
        least = "" if low == -INF else f" of at least {low:g}"
        most = "" if high == INF else f" and at most {high:g}"
        raise UsageError("out of range", item=name, got=repr(value), expected=kind + least + most)
    return value.item() if isinstance(value, np.generic) else value


_Candidates = Callable[[], tuple[NDArray[np.int64], NDArray[np.float64]]]


class TopDraw:
    """Top-k, top-p, min-p, temperature and the draw in one compiled call: short chains of steps, as the default."""

    def __init__(self, params: SamplingParams) -> None:
        k = params.top_k
        self._ids, self._logits, self._probs = np.empty(k, np.int64), np.empty(k, np.float32), np.empty(k, np.float64)
        self._numbers = np.array([params.top_p, params.min_p, params.min_keep, params.temperature, 0.0])
        self._out = np.zeros(2, np.int64)
        self._places = [array.ctypes.data for array in (self._ids, self._logits, self._probs, self._numbers, self._out)]
        self._draw = function("kernels.candidates", "draw_from_top", 8)
        self._n = 0

    def draw(self, logits: NDArray[np.float32], uniform: float) -> int | None:
        """The token that a number in [0, 1) draws from logits (V,); None where one is not finite."""
        logits = np.ascontiguousarray(logits)
        self._numbers[4] = uniform
        self._draw(logits.ctypes.data, logits.size, self._ids.size, *self._places)
        place, self._n = self._out.tolist()
        return None if place < 0 else int(self._ids[place])

    def likeliest(self, n: int) -> steps.Likeliest | None:
        """The n likeliest tokens of the last draw's logits; None where it kept fewer, or found one not finite."""
        return (self._ids[:n].tolist(), self._logits[:n].tolist()) if 0 < n <= self._ids.size and self._n else None

    def candidates(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Ids and probabilities that the last draw was from, likeliest first."""
        return self._ids[: self._n].copy(), self._probs[: self._n].copy()


class Sampler:
    """Chooses tokens by `params` from logits of `n_vocab` entries; remembers accepted tokens for the penalties.

    `tokenizer` is needed for DRY's sequence breakers alone; without one there are none. The same seed and the same
    logits give the same tokens. `seed` is the one in use, also where it was drawn.
    """

    def __init__(self, params: SamplingParams, n_vocab: int, tokenizer: Vocabulary | None = None) -> None:
        wrong = [token for token in params.logit_bias if token >= n_vocab]
        if wrong:
            raise UsageError("no such token", item="logit_bias", got=wrong[0], expected=f"an id below {n_vocab}")
        self.params = params
        self.n_vocab = n_vocab
        self.seed = secrets.randbits(32) if params.seed is None or params.seed < 0 else int(params.seed)
        changed = params.repeats_matter or params.dry_matters or params.logit_bias
        self._only_greedy = params.is_greedy and not changed
        short = params.is_short and not changed and params.top_k < n_vocab
        self._top = TopDraw(params) if short else None
        self._breakers: Breakers = {}
        if params.dry_matters and tokenizer is not None:
            self._breakers = find_breakers(params.dry_sequence_breakers, tokenizer)
        self.reset()

    def reset(self) -> None:
        """Forget what was accepted and start again from the seed."""
        params = self.params
        self._rng = np.random.Generator(np.random.PCG64(self.seed))
        self._recent: deque[int] = deque(maxlen=params.repeat_last_n)
        self._counts: Counter[int] = Counter()
        self._dry: deque[int] = deque(maxlen=params.dry_penalty_last_n)
        self._mu = 2.0 * params.mirostat_tau
        self._last: _Candidates | None = None

    def accept(self, token: int) -> None:
        """Remember a token of the prompt or one that was chosen."""
        if self.params.repeats_matter:
            if len(self._recent) == self._recent.maxlen:
                oldest = self._recent[0]
                self._counts[oldest] -= 1
                if not self._counts[oldest]:
                    del self._counts[oldest]
            self._recent.append(token)
            self._counts[token] += 1
        self._dry.append(token)

    def candidates(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Ids and probabilities, likeliest first, that the last `sample` drew from."""
        if self._last is None:
            raise LocalMoeError("nothing was sampled yet")
        ids, probs = self._last()
        order = np.argsort(-probs, kind="stable")
        return ids[order], probs[order]

    def sample(self, logits: NDArray[np.float32]) -> int:
        """Choose a token from float32 logits (V,), which are left as they are.

        Raises LocalMoeError where a logit is NaN or +inf, or where none is above -inf.
        """
        assert logits.shape == (self.n_vocab,)
        logits = logits.astype(np.float32, copy=False)
        if self._only_greedy:
            return self._likeliest(logits)
        if self._top is not None:
            token = self._top.draw(logits, self._rng.random())
            if token is not None:
                self._last = self._top.candidates
                return token
        with np.errstate(over="ignore", under="ignore", divide="ignore", invalid="ignore"):
            _check_logits(logits)
            logits = self._biased(logits)
            kept = self._mirostat(logits) if self.params.mirostat else self._chain(logits)
            probs = steps.probabilities(kept.logits)
            index = steps.draw_index(probs, self._rng.random())
            if self.params.mirostat:
                surprise = -float(np.log2(probs[index]))
                self._mu -= self.params.mirostat_eta * (surprise - self.params.mirostat_tau)
        self._last = lambda: (kept.ids, probs)
        return int(kept.ids[index])

    def likeliest_with(self, logits: NDArray[np.float32], n: int, token: int) -> tuple[tuple[int, float], ...]:
        """`sampler_steps.likeliest_with` of the logits that the last `sample` chose `token` from."""
        return steps.likeliest_with(logits, n, token, self._top.likeliest(n) if self._top is not None else None)

    def _likeliest(self, logits: NDArray[np.float32]) -> int:
        """Greedy, with nothing that changes a logit: one pass over them. NaN is greater than all."""
        best = int(logits.argmax())
        if not math.isfinite(logits[best]):
            _check_logits(logits)
        self._last = lambda: (np.array([best]), np.ones(1))
        return best

    def _biased(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """The logits after bias; the same array where there is none."""
        bias = self.params.logit_bias
        if not bias:
            return logits
        logits = logits.copy()
        for token, value in bias.items():
            logits[token] = min(float(logits[token]) + value, LARGEST)
        _check_logits(logits, "the logit bias leaves no token")
        return logits

    def _chain(self, logits: NDArray[np.float32]) -> Candidates:
        p = self.params
        repeats = p.repeats_matter and self._counts
        repeats_dry = p.dry_matters and len(self._dry) > p.dry_allowed_length
        if repeats or repeats_dry:
            logits = logits.copy()
        if repeats:
            penalize(logits, self._counts, p.repeat_penalty, p.frequency_penalty, p.presence_penalty)
        if repeats_dry:
            dry(logits, self._dry, p.dry_multiplier, p.dry_base, p.dry_allowed_length, self._breakers)
        if p.is_greedy:
            return steps.greedy(logits)
        kept = steps.from_vocabulary(steps.top_n_sigma(logits, p.top_n_sigma), p.top_k)
        kept = steps.typical(kept, p.typical_p, p.min_keep)
        kept = steps.top_p(kept, p.top_p, p.min_keep)
        kept = steps.min_p(kept, p.min_p, p.min_keep)
        kept = steps.xtc(kept, p.xtc_probability, p.xtc_threshold, p.min_keep, self._rng.random)
        return steps.dynamic_temperature(kept, p.temperature, p.dynatemp_range, p.dynatemp_exponent)

    def _mirostat(self, logits: NDArray[np.float32]) -> Candidates:
        p = self.params
        if p.is_greedy:
            return steps.greedy(logits)
        kept = steps.temperature(steps.from_vocabulary(logits, 0), p.temperature)
        return steps.mirostat_1(kept, self._mu, self.n_vocab) if p.mirostat == 1 else steps.mirostat_2(kept, self._mu)


def _check_logits(logits: NDArray[np.float32], nothing_left: str = "every logit is -inf") -> None:
    """Raise LocalMoeError unless the greatest logit is finite (NaN is greater than all)."""
    greatest = float(logits.max())
    if math.isnan(greatest):
        raise LocalMoeError("the model computed NaN logits", got=f"NaN at token {int(np.argmax(np.isnan(logits)))}")
    if greatest == INF:
        raise LocalMoeError("the model computed infinite logits", got=f"inf at token {int(np.argmax(logits))}")
    if greatest == -INF:
        raise LocalMoeError(nothing_left)
