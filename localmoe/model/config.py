"""What a model is, from its GGUF keys: one frozen ModelConfig, checked once, trusted everywhere after.

Defaults of absent keys are llama.cpp's (src/llama-model.cpp, load_hparams).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from localmoe.errors import BadInputError
from localmoe.gguf_file import GGUFFile, visible
from localmoe.model.architectures import ARCHITECTURES, GATING_FUNCTIONS, Architecture

MAX_LAYERS = 512  # LLAMA_MAX_LAYERS
MAX_EXPERTS = 1024  # LLAMA_MAX_EXPERTS
MAX_WIDTH = 1 << 24
MAX_CONTEXT = (1 << 31) - 1
DEFAULT_CONTEXT = 4096
ROPE_SCALINGS = ("none", "linear", "yarn")
UNREAD_ROPE_SCALINGS = ("longrope",)  # llama.cpp's others
_REQUIRED = object()


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """How rotary angles are stretched beyond the context a model was first trained for.

    `factor` divides the positions (1 for type none). YaRN's own: `ext_factor` weighs the unstretched high frequencies,
    `beta_fast` and `beta_slow` are the turns within `n_ctx_orig` between which both are mixed. `mscale` multiplies
    cosines and sines.
    """

    type: str = "none"
    factor: float = 1.0
    n_ctx_orig: int = 0
    ext_factor: float = 0.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float = 1.0


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The numbers of a model, named as in llama.cpp; `n_expert` 0 is a dense model."""

    arch: str
    name: str
    n_layer: int
    n_embd: int
    n_head: int
    n_head_kv: int
    n_embd_head_k: int
    n_embd_head_v: int
    n_ff: int
    n_ff_exp: int
    n_expert: int
    n_expert_used: int
    rms_eps: float
    rope_freq_base: float
    rope_dim: int
    rope_scaling: RopeScaling
    n_ctx_train: int
    n_vocab: int
    expert_gating: str
    expert_weights_norm: bool
    tied: bool

    @property
    def n_ctx_usual(self) -> int:
        """Positions that are opened where nobody asks for more or fewer."""
        return min(DEFAULT_CONTEXT, self.n_ctx_train)

    @property
    def architecture(self) -> Architecture:
        return ARCHITECTURES[self.arch]

    @classmethod
    def from_metadata(cls, gguf: GGUFFile, *, to_run: bool = True) -> Self:
        """Read and check the keys of an open file; raises BadInputError naming the key.

        Without `to_run` only for what no program could run, not for what localmoe does not compute.
        """
        keys = _Keys(gguf.path, gguf.metadata)
        arch = keys.text("general.architecture")
        if arch not in ARCHITECTURES:
            runs = ", ".join(sorted(ARCHITECTURES))
            raise keys.error("general.architecture", "architecture not supported", visible(arch, 40), f"one of: {runs}")
        keys.arch = arch
        n_layer = keys.whole("{arch}.block_count", 1, MAX_LAYERS)
        n_embd = keys.whole("{arch}.embedding_length", 1, MAX_WIDTH)
        heads = _heads(keys, n_embd)
        n_expert, n_expert_used = _experts(keys)
        n_ff = keys.whole("{arch}.feed_forward_length", 1, MAX_WIDTH)
        n_ctx_train = keys.whole("{arch}.context_length", 1, MAX_CONTEXT)
        if to_run:
            _check_unsupported(keys, ARCHITECTURES[arch])
        return cls(
            arch=arch,
            name=keys.text("general.name", ""),
            n_layer=n_layer,
            n_embd=n_embd,
            **heads,
            n_ff=n_ff,
            n_ff_exp=keys.whole("{arch}.expert_feed_forward_length", 1, MAX_WIDTH, n_ff) if n_expert else 0,
            n_expert=n_expert,
            n_expert_used=n_expert_used,
            rms_eps=keys.number("{arch}.attention.layer_norm_rms_epsilon", above=0.0),
            rope_freq_base=keys.number("{arch}.rope.freq_base", 10000.0, above=1.0),
            rope_scaling=_rope_scaling(keys, n_ctx_train, () if to_run else UNREAD_ROPE_SCALINGS),
            n_ctx_train=n_ctx_train,
            n_vocab=_vocabulary_size(keys, gguf),
            expert_gating=ARCHITECTURES[arch].expert_gating,
            expert_weights_norm=ARCHITECTURES[arch].expert_weights_norm,
            tied="output.weight" not in gguf.tensors,
        )


class _Keys:
    """Typed, bounded access to metadata; `{arch}` in a key stands for the architecture."""

    def __init__(self, path: Path, metadata: Mapping[str, Any]) -> None:
        self.path = path
        self.metadata = metadata
        self.arch = ""

    def error(self, key: str, reason: str, got: object = None, expected: object = None) -> BadInputError:
        item = key.format(arch=self.arch)
        return BadInputError(reason, file=visible(str(self.path)), item=item, got=got, expected=expected)

    def get(self, key: str, default: Any) -> Any:
        value = self.metadata.get(key.format(arch=self.arch), default)
        if value is _REQUIRED:
            raise self.error(key, "the key is missing")
        # one value a layer: fine as long as all layers agree
        if isinstance(value, np.ndarray) and value.size and (value == value[0]).all():
            return value[0].item()
        return value

    def whole(self, key: str, low: int, high: int, default: Any = _REQUIRED) -> int:
        value = self.get(key, default)
        if isinstance(value, np.ndarray):
            raise self.error(key, "differs between layers, which is not supported", expected="one value for all layers")
        if not isinstance(value, int) or isinstance(value, bool):
            raise self.error(key, "is of the wrong type", _shown(value), "a whole number")
        if not low <= value <= high:
            raise self.error(key, "is out of range", value, f"{low} to {high}")
        return value

    def number(
        self, key: str, default: Any = _REQUIRED, *, above: float = -math.inf, at_least: float = -math.inf
    ) -> float:
        value = self.get(key, default)
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise self.error(key, "is of the wrong type", _shown(value), "a number")
        if not (math.isfinite(value) and value > above and value >= at_least):
            bound = f" > {above:g}" if math.isfinite(above) else f" >= {at_least:g}" if math.isfinite(at_least) else ""
            raise self.error(key, "is out of range", value, f"a finite number{bound}")
        return float(value)

    def text(self, key: str, default: Any = _REQUIRED) -> str:
        value = self.get(key, default)
        if not isinstance(value, str):
            raise self.error(key, "is of the wrong type", _shown(value), "a string")
        return value


def _shown(value: object) -> str:
    return visible(repr(value), 60)


def _heads(keys: _Keys, n_embd: int) -> dict[str, int]:
    """Head counts, head sizes and rotary width, which must fit each other."""
    n_head = keys.whole("{arch}.attention.head_count", 1, MAX_WIDTH)
    n_head_kv = keys.whole("{arch}.attention.head_count_kv", 1, MAX_WIDTH, n_head)
    if n_head % n_head_kv:
        raise keys.error(
            "{arch}.attention.head_count_kv", "does not divide the heads", n_head_kv, f"a divisor of {n_head}"
        )
    stated = f"{keys.arch}.attention.key_length" in keys.metadata
    if n_embd % n_head and not stated:
        raise keys.error(
            "{arch}.attention.head_count", "does not divide the embedding", n_head, f"a divisor of {n_embd}"
        )
    head_k = keys.whole("{arch}.attention.key_length", 1, MAX_WIDTH, n_embd // n_head)
    head_v = keys.whole("{arch}.attention.value_length", 1, MAX_WIDTH, n_embd // n_head)
    rope_dim = keys.whole("{arch}.rope.dimension_count", 1, MAX_WIDTH, head_k)
    if head_v != head_k:
        raise keys.error("{arch}.attention.value_length", "differs from the key length", head_v, head_k)
    if rope_dim != head_k or rope_dim % 2:
        expected = f"{head_k}, the size of a head" if head_k % 2 == 0 else "an even number"
        raise keys.error("{arch}.rope.dimension_count", "does not fit the heads", rope_dim, expected)
    return {
        "n_head": n_head,
        "n_head_kv": n_head_kv,
        "n_embd_head_k": head_k,
        "n_embd_head_v": head_v,
        "rope_dim": rope_dim,
    }


def _experts(keys: _Keys) -> tuple[int, int]:
    """Experts a layer and experts used a token; (0, 0) for a dense model."""
    n_expert = keys.whole("{arch}.expert_count", 0, MAX_EXPERTS, 0)
    key = "{arch}.expert_used_count"
    n_used = keys.whole(key, 0, (1 << 32) - 1, 0)
    if n_expert == 0 and n_used:
        raise keys.error(key, "set in a model without experts", n_used, 0)
    if n_expert and not 1 <= n_used <= n_expert:
        raise keys.error(key, "is out of range", n_used, f"1 to {n_expert}, the number of experts")
    return n_expert, n_used


def _check_unsupported(keys: _Keys, architecture: Architecture) -> None:
    """Refuse keys that ask for another computation than the architecture's own."""
    code = keys.whole("{arch}.expert_gating_func", 0, 255, 0)
    if code and GATING_FUNCTIONS.get(code) != architecture.expert_gating:
        raise keys.error("{arch}.expert_gating_func", "not supported", code, architecture.expert_gating)
    fixed = {
        "{arch}.expert_weights_norm": architecture.expert_weights_norm,
        "{arch}.attention.causal": True,
    }
    for key, wanted in fixed.items():
        value = keys.get(key, wanted)
        if value is not wanted:
            raise keys.error(key, "not supported", _shown(value), wanted)
    if keys.whole("{arch}.nextn_predict_layers", 0, MAX_LAYERS, 0):
        raise keys.error("{arch}.nextn_predict_layers", "layers that predict further tokens are not supported")
    if keys.whole("{arch}.expert_group_count", 0, MAX_EXPERTS, 0) > 1:
        raise keys.error("{arch}.expert_group_count", "grouped experts are not supported")
    if keys.number("{arch}.expert_weights_scale", 0.0) not in (0.0, 1.0):
        raise keys.error("{arch}.expert_weights_scale", "scaled expert weights are not supported")


def _vocabulary_size(keys: _Keys, gguf: GGUFFile) -> int:
    """The number of tokens, which must be the embedding's rows; like llama.cpp, the list itself beats `vocab_size`."""
    tokens = keys.metadata.get("tokenizer.ggml.tokens")
    embedding = gguf.tensors.get("token_embd.weight")
    rows = embedding.shape[0] if embedding else None
    if isinstance(tokens, list) and tokens:
        key, size = "tokenizer.ggml.tokens", len(tokens)
    else:
        key, size = (
            "{arch}.vocab_size",
            keys.whole("{arch}.vocab_size", 1, MAX_WIDTH, _REQUIRED if rows is None else rows),
        )
    if rows is not None and rows != size:
        raise keys.error(key, "does not fit token_embd.weight", f"{size} tokens", f"{rows}, the embedding's rows")
    return size


def _rope_scaling(keys: _Keys, n_ctx_train: int, let_pass: tuple[str, ...]) -> RopeScaling:
    """The scaling keys; `mscale` as llama-context.cpp and ggml's rope_yarn arrive at it together."""
    key = "{arch}.rope.scaling.type"
    kind = keys.text(key, "linear")
    if kind not in (*ROPE_SCALINGS, *let_pass):
        raise keys.error(key, "not supported", visible(kind, 40), f"one of: {', '.join(ROPE_SCALINGS)}")
    old = keys.number("{arch}.rope.scale_linear", 0.0, at_least=0.0)
    factor = keys.number("{arch}.rope.scaling.factor", old, at_least=0.0) or 1.0
    if not 1e-6 <= factor <= 1e6:
        raise keys.error("{arch}.rope.scaling.factor", "is out of range", factor, "1e-06 to 1e+06")
    n_ctx_orig = keys.whole("{arch}.rope.scaling.original_context_length", 0, MAX_CONTEXT, 0) or n_ctx_train
    attn_factor = keys.number("{arch}.rope.scaling.attn_factor", 1.0, above=0.0)
    if kind != "yarn":
        factor = factor if kind == "linear" else 1.0
        return RopeScaling("none" if factor == 1.0 else "linear", factor, n_ctx_orig, mscale=attn_factor)
    ext_factor = keys.number("{arch}.rope.scaling.yarn_ext_factor", -1.0)
    ext_factor = 1.0 if ext_factor < 0.0 else ext_factor  # negative: not set
    log_mul = keys.number("{arch}.rope.scaling.yarn_log_multiplier", 0.0)
    stretched = _mscale(factor, 1.0) / (_mscale(factor, log_mul) if log_mul else 1.0) if ext_factor else 1.0
    stated = keys.number("{arch}.rope.scaling.yarn_attn_factor", stretched, above=0.0)
    return RopeScaling(
        "yarn", factor, n_ctx_orig, ext_factor,
        beta_fast=keys.number("{arch}.rope.scaling.yarn_beta_fast", 32.0, above=0.0),
        beta_slow=keys.number("{arch}.rope.scaling.yarn_beta_slow", 1.0, above=0.0),
        mscale=stated * attn_factor,
    )  # fmt: skip


def _mscale(factor: float, weight: float) -> float:
    """YaRN's magnitude for a stretch (Peng et al. 2023, section 3.4)."""
    return 1.0 if factor <= 1.0 else 0.1 * weight * math.log(factor) + 1.0


def rope_frequencies(
    config: ModelConfig, freq_factors: npt.NDArray[np.float32] | None = None
) -> npt.NDArray[np.float64]:
    """Radians a position for each of the rope_dim // 2 pairs, float64.

    `freq_factors` is rope_freqs.weight (llama3's scaling), which divides the frequencies. Formulas: ggml's rope_yarn
    and ggml_rope_yarn_corr_dims.
    """
    scaling, half = config.rope_scaling, config.rope_dim // 2
    pair = np.arange(half, dtype=np.float64)
    plain = config.rope_freq_base ** (-pair / half)
    if freq_factors is not None:
        plain /= np.asarray(freq_factors, np.float64)
    stretched = plain / scaling.factor
    if scaling.type != "yarn":
        return stretched

    def pair_of(turns: float) -> float:
        """The pair that turns so often within the original context."""
        return half * math.log(scaling.n_ctx_orig / (turns * 2 * math.pi)) / math.log(config.rope_freq_base)

    low = max(0.0, math.floor(pair_of(scaling.beta_fast)))
    high = min(config.rope_dim - 1.0, math.ceil(pair_of(scaling.beta_slow)))
    keep = (1.0 - np.clip((pair - low) / max(0.001, high - low), 0.0, 1.0)) * scaling.ext_factor
    return stretched * (1.0 - keep) + plain * keep
