"""config.json of a Hugging Face Llama, Mistral or Mixtral, and the GGUF keys that llama.cpp's converter makes of it.

Keys that are missing default as in transformers 5's LlamaConfig, MistralConfig and MixtralConfig, and the rotary
parameters of transformers 4 (`rope_theta`, `rope_scaling`) and 5 (`rope_parameters`) are read alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFValueType

from localmoe.errors import BadInputError

from .source import MetaValue

Warn = Callable[[str], None]

# Architecture -> model family. What only ever differs between families is in FAMILIES.
ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "LLaMAForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "MixtralForCausalLM": "mixtral",
}

COMMON_DEFAULTS: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"intermediate_size": 11008, "max_position_embeddings": 2048, "rope_theta": 10000.0},
    "mistral": {
        "intermediate_size": 14336,
        "max_position_embeddings": 131072,
        "num_key_value_heads": 8,
        "rope_theta": 10000.0,
        "sliding_window": 4096,
    },
    "mixtral": {
        "intermediate_size": 14336,
        "max_position_embeddings": 131072,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1000000.0,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
    },
}

# What a size may be. They bound memory and loops long before a tensor's shape is compared with them.
LIMITS = {
    "num_hidden_layers": 1024,
    "hidden_size": 1 << 20,
    "intermediate_size": 1 << 22,
    "num_attention_heads": 4096,
    "num_key_value_heads": 4096,
    "head_dim": 1 << 16,
    "vocab_size": 1 << 24,
    "max_position_embeddings": (1 << 32) - 1,
    "num_local_experts": 1024,
    "num_experts_per_tok": 1024,
}

# Keys that these models do not use and llama.cpp's converter writes where one of them is there.
LAYER_NORM_EPS = ("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon")

ROPE_TYPES = ("default", "linear", "llama3", "yarn", "dynamic")

# yarn parameter of config.json -> GGUF key, in the order in which they are written; the first name present counts
YARN_KEYS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("rope.scaling.yarn_ext_factor", ("extrapolation_factor",)),
    ("rope.scaling.yarn_attn_factor", ("attention_factor", "attn_factor")),
    ("rope.scaling.yarn_beta_fast", ("beta_fast",)),
    ("rope.scaling.yarn_beta_slow", ("beta_slow",)),
)


@dataclass(frozen=True)
class HParams:
    """A checkpoint's hyperparameters after validation, named as in config.json.

    `head_dim` is always set; `head_dim_given` says whether the converter writes it. `rope` holds `rope_type`,
    `rope_theta` and what belongs to that type. A dense model has no experts.
    """

    family: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    head_dim_given: bool
    max_position_embeddings: int
    rms_norm_eps: float
    layer_norm_eps: float | None
    rope: dict[str, Any]
    tie_word_embeddings: bool
    num_local_experts: int
    num_experts_per_tok: int


def read_hparams(config: dict[str, Any], file: Path, warn: Warn) -> HParams:
    """The validated hyperparameters in `config`, the content of `file`; BadInputError names the key that is wrong."""
    family = _family(config, file)
    given = {key: value for key, value in config.items() if value is not None}
    if family == "mixtral" and "num_experts" in given:  # another name that transformers has for it
        given.setdefault("num_local_experts", given["num_experts"])
    values = {**COMMON_DEFAULTS, **FAMILIES[family], **given}
    _refuse_unsupported(values, file)
    size = _SizeReader(values, file)
    head_dim_given = "head_dim" in values or family != "mixtral"
    _complete_heads(values, size, file)
    n_expert, n_used = _experts(family, size, file)
    _note_window(config.get("sliding_window", values.get("sliding_window")), values["max_position_embeddings"], warn)
    return HParams(
        family=family,
        vocab_size=size("vocab_size"),
        hidden_size=size("hidden_size"),
        intermediate_size=size("intermediate_size"),
        num_hidden_layers=size("num_hidden_layers"),
        num_attention_heads=size("num_attention_heads"),
        num_key_value_heads=size("num_key_value_heads"),
        head_dim=size("head_dim"),
        head_dim_given=head_dim_given,
        max_position_embeddings=size("max_position_embeddings"),
        rms_norm_eps=_positive(values, "rms_norm_eps", file),
        layer_norm_eps=next((_positive(values, name, file) for name in LAYER_NORM_EPS if name in values), None),
        rope=_rope(values, file, warn),
        tie_word_embeddings=bool(values["tie_word_embeddings"]),
        num_local_experts=n_expert,
        num_experts_per_tok=n_used,
    )


def _family(config: dict[str, Any], file: Path) -> str:
    names = config.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    model_type = config.get("model_type")
    if name is None and isinstance(model_type, str) and model_type in FAMILIES:
        return model_type
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise BadInputError("architecture is not converted", file=file, got=name, expected=", ".join(ARCHITECTURES))
    return ARCHITECTURES[name]


def _refuse_unsupported(values: dict[str, Any], file: Path) -> None:
    """Raise for what changes the mathematics and the runtime does not do."""
    if "quantization_config" in values:
        quantization = values["quantization_config"]
        method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
        raise BadInputError("quantized checkpoints are not read", file=file, item="quantization_config", got=method)
    for key, wanted in (("attention_bias", False), ("mlp_bias", False), ("hidden_act", "silu")):
        if values.get(key, wanted) != wanted:
            raise BadInputError("is not supported", file=file, item=key, got=values[key], expected=wanted)
    if values.get("partial_rotary_factor", 1) != 1:
        raise BadInputError(
            "is not supported", file=file, item="partial_rotary_factor", got=values["partial_rotary_factor"], expected=1
        )


def _note_window(window: object, context: object, warn: Warn) -> None:
    """Say that a sliding window is dropped, where it would have had an effect; null in config.json means none."""
    if isinstance(window, int) and isinstance(context, int) and window < context:
        warn(f"sliding_window {window} is not kept: attention reaches over the whole context, as in llama.cpp")


class _SizeReader:
    """Reads a size of config.json within LIMITS."""

    def __init__(self, values: dict[str, Any], file: Path) -> None:
        self.values, self.file = values, file

    def __call__(self, key: str) -> int:
        value = self.values[key]
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= LIMITS[key]:
            raise BadInputError(
                "is not a usable size", file=self.file, item=key, got=value, expected=f"1..{LIMITS[key]}"
            )
        return value


def _complete_heads(values: dict[str, Any], size: _SizeReader, file: Path) -> None:
    """Set the head size and the key-value heads where config.json leaves them out, and check that they divide."""
    n_head = size("num_attention_heads")
    if "head_dim" not in values:
        if size("hidden_size") % n_head:
            raise BadInputError(
                "does not divide hidden_size",
                file=file,
                item="num_attention_heads",
                got=n_head,
                expected=values["hidden_size"],
            )
        values["head_dim"] = values["hidden_size"] // n_head
    if size("head_dim") % 2:
        raise BadInputError(
            "is odd: rotary pairs need an even size", file=file, item="head_dim", got=values["head_dim"]
        )
    values.setdefault("num_key_value_heads", n_head)
    if n_head % size("num_key_value_heads"):
        raise BadInputError(
            "does not divide num_attention_heads",
            file=file,
            item="num_key_value_heads",
            got=values["num_key_value_heads"],
            expected=n_head,
        )


def _experts(family: str, size: _SizeReader, file: Path) -> tuple[int, int]:
    if family != "mixtral":
        return 0, 0
    n_expert, n_used = size("num_local_experts"), size("num_experts_per_tok")
    if n_used > n_expert:
        raise BadInputError(
            "is more than num_local_experts", file=file, item="num_experts_per_tok", got=n_used, expected=n_expert
        )
    return n_expert, n_used


def _positive(values: dict[str, Any], key: str, file: Path, default: float | None = None) -> float:
    """values[key] as a positive number; a missing one is set to `default`."""
    value = values.setdefault(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e30:
        raise BadInputError("is not a positive number", file=file, item=key, got=value)
    return float(value)


def _rope(values: dict[str, Any], file: Path, warn: Warn) -> dict[str, Any]:
    """`rope_parameters` in the form of transformers 5, from either version's keys.

    As there, `rope_scaling` comes before `rope_parameters`, and a `rope_theta` inside before one outside.
    """
    rope = values.get("rope_scaling") or values.get("rope_parameters") or {}
    if not isinstance(rope, dict):
        raise BadInputError("is not a table", file=file, item="rope_parameters", got=rope)
    if isinstance(rope.get("full_attention"), dict):  # parameters of each kind of layer, of which one is kept
        rope = rope["full_attention"]
    rope = {key: value for key, value in rope.items() if value is not None}
    rope.setdefault("rope_theta", values["rope_theta"])
    kind = rope.setdefault("rope_type", rope.get("type", "default"))
    if kind not in ROPE_TYPES:
        raise BadInputError(
            "rope type is not supported", file=file, item="rope_type", got=kind, expected=", ".join(ROPE_TYPES)
        )
    if rope.get("partial_rotary_factor", 1) != 1:
        raise BadInputError("is not supported", file=file, item="partial_rotary_factor", expected=1)
    if kind == "dynamic":
        warn("dynamic rope scaling is not kept: it acts only beyond the trained context, and llama.cpp drops it too")
    if kind == "yarn":
        _note_yarn(rope, warn)
    _complete_scaling(rope, values, file)
    _positive(rope, "rope_theta", file)
    return rope


def _note_yarn(rope: dict[str, Any], warn: Warn) -> None:
    """Say which of transformers' variations of YaRN GGUF has no keys for."""
    if rope.get("truncate") is False:
        warn("yarn's truncate of false is not kept: frequencies are mixed between whole pairs, as in llama.cpp")
    both = rope.get("mscale") and rope.get("mscale_all_dim")
    if both and "attention_factor" not in rope:
        warn("yarn's mscale and mscale_all_dim are not kept: attention is scaled by factor alone, as in llama.cpp")


def _complete_scaling(rope: dict[str, Any], values: dict[str, Any], file: Path) -> None:
    """Set what a rope type's parameters default to, and check that they are numbers."""
    kind = rope["rope_type"]
    if kind in ("llama3", "yarn"):
        rope.setdefault("original_max_position_embeddings", values["max_position_embeddings"])
        _positive(rope, "original_max_position_embeddings", file)
    if kind in ("linear", "yarn", "llama3"):
        _positive(rope, "factor", file, 8.0 if kind == "llama3" else None)
    if kind == "yarn":
        for _, names in YARN_KEYS:
            for name in names:
                if name in rope:
                    _positive(rope, name, file)
    if kind == "llama3":
        low = _positive(rope, "low_freq_factor", file, 1.0)
        high = _positive(rope, "high_freq_factor", file, 4.0)
        if high <= low:
            raise BadInputError(
                "is not above low_freq_factor", file=file, item="high_freq_factor", got=high, expected=low
            )


def rope_factors(hparams: HParams) -> np.ndarray[Any, np.dtype[np.float32]] | None:
    """The `rope_freqs.weight` tensor of llama3 scaling, (head_dim / 2,) float32; None for the other types.

    Wavelengths below `high_freq` stay, those above `low_freq` are divided by `factor`, those between are blended. The
    operations are those of llama.cpp's converter, in float32, where torch divides a number by a tensor: it multiplies
    by the reciprocal.
    """
    rope = hparams.rope
    if rope["rope_type"] != "llama3":
        return None
    dim = hparams.head_dim
    exponents = (np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)).astype(np.float64)
    # A power in doubles, rounded, is what torch's float32 power is for Llama 3's numbers; for others one in some 100 of
    # torch's, which depend on the CPU, is one unit in the last place off. NumPy's is for one in six.
    one = np.float32(1)
    freqs = one / np.power(float(rope["rope_theta"]), exponents).astype(np.float32)
    factor, low, high = rope["factor"], rope["low_freq_factor"], rope["high_freq_factor"]
    context = rope["original_max_position_embeddings"]
    factors = np.empty(len(freqs), dtype=np.float32)
    for i, freq in enumerate(freqs):
        wavelength = one / freq * np.float32(2 * math.pi)
        if wavelength < context / high:
            factors[i] = 1
        elif wavelength > context / low:
            factors[i] = factor
        else:
            smooth = (one / wavelength * np.float32(context) - np.float32(low)) / np.float32(high - low)
            factors[i] = one / ((one - smooth) / np.float32(factor) + smooth)
    return factors


def model_keys(hparams: HParams) -> dict[str, MetaValue]:
    """The `llama.*` keys in the order in which llama.cpp's converter writes them."""
    sizes = (
        ("block_count", hparams.num_hidden_layers),
        ("context_length", hparams.max_position_embeddings),
        ("embedding_length", hparams.hidden_size),
        ("feed_forward_length", hparams.intermediate_size),
        ("attention.head_count", hparams.num_attention_heads),
        ("attention.head_count_kv", hparams.num_key_value_heads),
    )
    keys = {name: _u32(value) for name, value in sizes}
    keys |= _rope_keys(hparams.rope)
    keys["rope.freq_base"] = _f32(hparams.rope["rope_theta"])
    keys["attention.layer_norm_rms_epsilon"] = _f32(hparams.rms_norm_eps)
    if hparams.layer_norm_eps is not None:
        keys["attention.layer_norm_epsilon"] = _f32(hparams.layer_norm_eps)
    if hparams.num_local_experts:
        keys["expert_count"] = _u32(hparams.num_local_experts)
        keys["expert_used_count"] = _u32(hparams.num_experts_per_tok)
    if hparams.head_dim_given:
        keys["attention.key_length"] = _u32(hparams.head_dim)
        keys["attention.value_length"] = _u32(hparams.head_dim)
    table = {f"llama.{name}": value for name, value in keys.items()}
    table["general.file_type"] = _u32(1)  # its place in the order; the writer sets the value
    table["llama.vocab_size"] = _u32(hparams.vocab_size)
    table["llama.rope.dimension_count"] = _u32(hparams.head_dim)
    table["general.quantization_version"] = _u32(2)
    return table


def _rope_keys(rope: dict[str, Any]) -> dict[str, MetaValue]:
    if rope["rope_type"] not in ("linear", "yarn"):
        return {}
    keys = {
        "rope.scaling.type": MetaValue(rope["rope_type"], GGUFValueType.STRING),
        "rope.scaling.factor": _f32(rope["factor"]),
    }
    if rope["rope_type"] == "yarn":
        keys["rope.scaling.original_context_length"] = _u32(int(rope["original_max_position_embeddings"]))
        for key, names in YARN_KEYS:
            value = next((rope[name] for name in names if name in rope), None)
            if value is not None:
                keys[key] = _f32(value)
    return keys


def _u32(value: int) -> MetaValue:
    return MetaValue(value, GGUFValueType.UINT32)


def _f32(value: float) -> MetaValue:
    return MetaValue(float(value), GGUFValueType.FLOAT32)
