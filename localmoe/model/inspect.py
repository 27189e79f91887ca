"""What a GGUF is, what it needs, and what would keep it from running: also of a file that cannot run."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from localmoe.errors import LocalMoeError
from localmoe.experts.labels import expert_labels
from localmoe.gguf_file import GGUFFile, open_gguf, trimmed, visible
from localmoe.model.config import ModelConfig
from localmoe.model.kv_cache import GROUP
from localmoe.model.memory import available_memory, check_sizes, kv_cache_bytes, model_size
from localmoe.model.weights import read_floats, runnable_types, tensor_problems

MAX_REASONS = 8
MAX_TEXT = 200
NEAR_COPY = 0.99  # a cosine between two router rows that hardly tells their experts apart
USUAL_CONTEXT = 4096

# shown -> key, where a config could not be made
_KEYS = {
    "n_layer": "block_count",
    "n_embd": "embedding_length",
    "n_head": "attention.head_count",
    "n_head_kv": "attention.head_count_kv",
    "n_ff": "feed_forward_length",
    "n_expert": "expert_count",
    "n_expert_used": "expert_used_count",
    "n_ctx_train": "context_length",
    "n_vocab": "vocab_size",
    "rope_freq_base": "rope.freq_base",
}
_CONFIG_FIELDS = (*_KEYS, "n_embd_head_k", "n_ff_exp", "rope_dim", "rms_eps", "tied")
_SPECIAL = ("bos", "eos", "eot", "eom", "unknown", "padding", "separator")


def describe(path: str | os.PathLike[str], check_text: Callable[[GGUFFile], object] | None = None) -> dict[str, Any]:
    """Everything known about a model without running it, as JSON-able values; sizes in bytes.

    `runnable` with `reasons` why not, `warnings` that do not stop it. `check_text` opens the vocabulary and raises
    LocalMoeError where that cannot be. Text from the file has its control characters escaped. Raises FileError or
    BadInputError only where the file is no valid GGUF at all.
    """
    with open_gguf(path) as gguf:
        reasons: list[str] = []
        config = _config(gguf, reasons)
        if not gguf.tensors:
            reasons.append("the file holds no tensors: it is a vocabulary or metadata alone")
        elif config is not None:
            _tensor_reasons(gguf, config, reasons)
        _text_reasons(gguf, check_text, reasons)
        router = _router(gguf, config, reasons)
        memory, warnings = _memory(gguf, config, reasons)
        return {
            "file": visible(str(gguf.path)),
            "parts": len(gguf.parts),
            "file_bytes": gguf.n_bytes,
            "gguf_version": gguf.version,
            "architecture": _text(gguf.metadata.get("general.architecture")),
            "name": _text(gguf.metadata.get("general.name")),
            "runnable": not reasons,
            "reasons": [visible(reason) for reason in reasons],
            "warnings": warnings,
            "parameters": _parameters(gguf, config),
            "types": _types(gguf),
            "config": _numbers(gguf.metadata, config),
            "rope_scaling": _scaling(config, gguf),
            "vocabulary": _vocabulary(gguf.metadata),
            "chat_template": isinstance(gguf.metadata.get("tokenizer.chat_template"), str),
            "memory": memory,
            "router": router,
            "expert_labels": _labels(gguf.metadata, config),
        }


def _text(value: object) -> str | None:
    return visible(value, MAX_TEXT) if isinstance(value, str) else None


def _reason(error: LocalMoeError) -> str:
    return str(error).removeprefix(f"{error.file}: ")


def _config(gguf: GGUFFile, reasons: list[str]) -> ModelConfig | None:
    try:
        return ModelConfig.from_metadata(gguf)
    except LocalMoeError as error:
        reasons.append(_reason(error))
        return None


def _tensor_reasons(gguf: GGUFFile, config: ModelConfig, reasons: list[str]) -> None:
    problems = tensor_problems(gguf, config, runnable_types())
    reasons += [_reason(problem) for problem in itertools.islice(problems, MAX_REASONS)]
    more = sum(1 for _ in problems)
    if more:
        reasons.append(f"and {more} more tensors")


def _text_reasons(gguf: GGUFFile, check_text: Callable[[GGUFFile], object] | None, reasons: list[str]) -> None:
    if "tokenizer.ggml.model" not in gguf.metadata:
        reasons.append("tokenizer.ggml.model: there is no vocabulary")
    elif check_text is not None:
        try:
            check_text(gguf)
        except LocalMoeError as error:
            reasons.append(_reason(error))


def _parameters(gguf: GGUFFile, config: ModelConfig | None) -> dict[str, int | None]:
    if config is None:
        total = sum(tensor.n_elements for tensor in gguf.tensors.values())
        return {"total": total, "active": None, "bytes_per_token": None}
    size = model_size(gguf.tensors.values(), config)
    return {"total": size.parameters, "active": size.active, "bytes_per_token": size.bytes_per_token}


def _types(gguf: GGUFFile) -> dict[str, dict[str, int]]:
    """Tensors and bytes a type, the largest share first."""
    found: dict[str, dict[str, int]] = {}
    for tensor in gguf.tensors.values():
        entry = found.setdefault(tensor.type.name, {"tensors": 0, "bytes": 0})
        entry["tensors"] += 1
        entry["bytes"] += tensor.n_bytes
    return dict(sorted(found.items(), key=lambda item: -item[1]["bytes"]))


def _numbers(metadata: Mapping[str, Any], config: ModelConfig | None) -> dict[str, Any]:
    if config is not None:
        return {name: getattr(config, name) for name in _CONFIG_FIELDS}
    arch = metadata.get("general.architecture")
    values = {name: metadata.get(f"{arch}.{key}") for name, key in _KEYS.items()}
    return {
        name: value
        for name, value in values.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 2**63
    }


def _scaling(config: ModelConfig | None, gguf: GGUFFile) -> dict[str, Any] | None:
    if config is None:
        return None
    scaling = config.rope_scaling
    kind = "llama3" if "rope_freqs.weight" in gguf.tensors and scaling.type == "none" else scaling.type
    return {"type": kind, "factor": scaling.factor, "n_ctx_orig": scaling.n_ctx_orig}


def _vocabulary(metadata: Mapping[str, Any]) -> dict[str, Any] | None:
    kind, tokens = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.tokens")
    if kind is None and tokens is None:
        return None
    tokens = tokens if isinstance(tokens, list) else []
    special = {}
    for name in _SPECIAL:
        token = metadata.get(f"tokenizer.ggml.{name}_token_id")
        if type(token) is int:
            special[name] = {"id": token, "text": visible(tokens[token], 40) if 0 <= token < len(tokens) else None}
    pre = _text(metadata.get("tokenizer.ggml.pre"))
    return {"kind": _text(kind), "pre": pre, "size": len(tokens), "special": special}


def _memory(gguf: GGUFFile, config: ModelConfig | None, reasons: list[str]) -> tuple[dict[str, Any], list[str]]:
    weights = sum(tensor.n_bytes for tensor in gguf.tensors.values())
    memory: dict[str, Any] = {"weights": weights, "cache_f16": {}, "cache_q8_0": {}, "available": available_memory()}
    if config is None or not gguf.tensors:
        return memory, []
    contexts = sorted({min(USUAL_CONTEXT, config.n_ctx_train), config.n_ctx_train})
    memory["cache_f16"] = {str(n): kv_cache_bytes(config, n) for n in contexts}
    if not (config.n_embd_head_k % GROUP or config.n_embd_head_v % GROUP):
        memory["cache_q8_0"] = {str(n): kv_cache_bytes(config, n, "q8_0", "q8_0") for n in contexts}
    warnings: list[str] = []
    for n_ctx in contexts:
        try:
            warning = check_sizes(config, n_ctx, weights, memory["available"])
        except LocalMoeError as error:
            (reasons if n_ctx == contexts[0] else warnings).append(_reason(error))
        else:
            if warning and n_ctx == contexts[0]:
                warnings.append(warning)
    return memory, warnings


def _labels(metadata: Mapping[str, Any], config: ModelConfig | None) -> list[str]:
    """The prompts that made each router row, where the file keeps them."""
    labels = expert_labels(metadata, config.n_expert) if config is not None else ()
    return [visible(label, MAX_TEXT) for label in labels]


def _router(gguf: GGUFFile, config: ModelConfig | None, reasons: list[str]) -> dict[str, Any] | None:
    """Row norms and cosines between a layer's router rows: what can be known of routing without running."""
    if config is None or not config.n_expert:
        return None
    layers: list[dict[str, Any]] = []
    first: npt.NDArray[np.float32] | None = None
    same = True
    for layer in range(config.n_layer):
        name = f"blk.{layer}.ffn_gate_inp.weight"
        tensor = gguf.tensors.get(name)
        if tensor is None or trimmed(tensor.shape) != trimmed((config.n_expert, config.n_embd)):
            continue
        rows = read_floats(gguf, name)
        if rows is None:
            continue
        rows = rows.reshape(config.n_expert, config.n_embd)
        if not np.isfinite(rows).all():
            bad = int(np.flatnonzero(~np.isfinite(rows))[0])
            reasons.append(f"{name}: NaN or infinity in layer {layer}'s router, first at index {bad}")
            continue
        first = rows if first is None else first
        same = same and np.array_equal(rows, first)
        layers.append({"layer": layer, **_router_layer(rows.astype(np.float64))})
    return {"layers": layers, "same_in_every_layer": bool(layers) and same and len(layers) > 1}


def _router_layer(rows: npt.NDArray[np.float64]) -> dict[str, Any]:
    norms = np.linalg.norm(rows, axis=1)
    facts: dict[str, Any] = {"norm_min": float(norms.min()), "norm_max": float(norms.max())}
    if len(rows) == 1:
        return facts | {"cosine_mean": None, "cosine_max": None, "alike": []}
    unit = rows / np.maximum(norms, 1e-30)[:, None]
    first, second = np.triu_indices(len(rows), 1)
    cosines = (unit @ unit.T)[first, second]
    order = np.argsort(-cosines, kind="stable")[:MAX_REASONS]
    alike = [[int(first[i]), int(second[i])] for i in order if cosines[i] > NEAR_COPY]
    return facts | {"cosine_mean": float(cosines.mean()), "cosine_max": float(cosines.max()), "alike": alike}
