"""Mistral's own checkpoints: params.json and `consolidated*` weights, as the Hugging Face checkpoint they amount to.

Tensors get Hugging Face's names; rotary rows of q and k are in GGUF's order already and stay. Weights in several files
are either different tensors or, as with tensor parallelism, parts of the same ones: a name that is in all files is
joined along the axis in which its parts fall short of the shape that params.json gives, and is taken once where they do
not. Experts come one tensor each (`feed_forward.experts.3.w1.weight`) or, in the first release of Mixtral, as one
matrix a layer (`block_sparse_moe.w1`, experts below each other, w2 transposed). Sources: mistral-inference's
transformer.py and moe.py, transformers' convert_mixtral_weights_to_hf.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from localmoe.errors import BadInputError

from .checkpoint import CheckpointTensor, listing
from .hparams import Warn

Array = np.ndarray[Any, np.dtype[Any]]

PARAMS = "params.json"
# Mistral's and Mixtral's releases do not say; their model cards do.
CONTEXT = 32768
# params.json -> config.json
_KEYS = {
    "dim": "hidden_size", "n_layers": "num_hidden_layers", "n_heads": "num_attention_heads", "head_dim": "head_dim",
    "n_kv_heads": "num_key_value_heads", "hidden_dim": "intermediate_size", "norm_eps": "rms_norm_eps",
    "vocab_size": "vocab_size", "rope_theta": "rope_theta", "sliding_window": "sliding_window",
    "max_position_embeddings": "max_position_embeddings", "max_seq_len": "max_position_embeddings",
    "tied_embeddings": "tie_word_embeddings",
}  # fmt: skip
_REQUIRED = ("dim", "n_layers", "n_heads", "hidden_dim", "norm_eps", "vocab_size")
_UNSUPPORTED = ("yarn", "vision_encoder", "q_lora_rank", "kv_lora_rank", "lora", "quantization", "llama_4_scaling")
_MODEL = {
    "tok_embeddings.weight": "model.embed_tokens.weight", "norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}  # fmt: skip
_LAYER = {
    "attention_norm.weight": "input_layernorm.weight", "ffn_norm.weight": "post_attention_layernorm.weight",
    "attention.wq.weight": "self_attn.q_proj.weight", "attention.wk.weight": "self_attn.k_proj.weight",
    "attention.wv.weight": "self_attn.v_proj.weight", "attention.wo.weight": "self_attn.o_proj.weight",
    "feed_forward.w1.weight": "mlp.gate_proj.weight", "feed_forward.w2.weight": "mlp.down_proj.weight",
    "feed_forward.w3.weight": "mlp.up_proj.weight", "feed_forward.gate.weight": "block_sparse_moe.gate.weight",
    "block_sparse_moe.gate.weight": "block_sparse_moe.gate.weight",
}  # fmt: skip
_IN_LAYER = re.compile(r"layers\.(0|[1-9]\d{0,3})\.(.+)")
_EXPERT = re.compile(r"feed_forward\.experts\.(0|[1-9]\d{0,3})\.(w[123])\.weight")
_STACKED = re.compile(r"block_sparse_moe\.(w[123])")


def as_config(params: Mapping[str, Any], file: Path, has_output: bool, warn: Warn) -> dict[str, Any]:
    """params.json as a config.json; BadInputError names a key that is missing or asks for what is not done."""
    missing = [key for key in _REQUIRED if key not in params]
    if missing:
        raise BadInputError("keys are missing", file=file, item=listing(missing))
    for key in _UNSUPPORTED:
        if params.get(key):
            raise BadInputError("is not supported", file=file, item=key, got=str(params[key])[:80])
    config = {_KEYS[key]: value for key, value in params.items() if key in _KEYS and value is not None}
    config.setdefault("num_key_value_heads", params["n_heads"])
    config["tie_word_embeddings"] = not has_output
    # mistral-inference: a model without a sliding window was trained with the larger base
    config.setdefault("rope_theta", 1e4 if config.get("sliding_window") else 1e6)
    config.setdefault("sliding_window", None)
    if "max_position_embeddings" not in config:
        warn(f"params.json does not say how long a context is: {CONTEXT}, as in Mistral's and Mixtral's model cards")
        config["max_position_embeddings"] = CONTEXT
    moe = params.get("moe")
    config["architectures"] = ["MixtralForCausalLM" if moe else "MistralForCausalLM"]
    if moe:
        if not isinstance(moe, dict) or not {"num_experts", "num_experts_per_tok"} <= moe.keys():
            raise BadInputError("is not a table with num_experts and num_experts_per_tok", file=file, item="moe")
        config |= {"num_local_experts": moe["num_experts"], "num_experts_per_tok": moe["num_experts_per_tok"]}
    return config | {"bos_token_id": 1, "eos_token_id": 2}


@dataclass(frozen=True)
class _Joined:
    """Parts of a matrix side by side (axis 1) or below each other, put together when they are read."""

    parts: tuple[Array, ...]
    axis: int

    @property
    def shape(self) -> tuple[int, ...]:
        rows, columns = ([part.shape[axis] for part in self.parts] for axis in (0, 1))
        return (sum(rows), columns[0]) if self.axis == 0 else (rows[0], sum(columns))

    def __getitem__(self, rows: slice) -> _Joined:
        start, stop, _ = rows.indices(self.shape[0])
        if self.axis == 1:
            return replace(self, parts=tuple(part[start:stop] for part in self.parts))
        cut, at = [], 0
        for part in self.parts:
            cut.append(part[max(start - at, 0) : max(stop - at, 0)])
            at += len(part)
        return replace(self, parts=tuple(cut))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return np.concatenate(self.parts, axis=self.axis).astype(dtype or self.parts[0].dtype, copy=False)


@dataclass(frozen=True)
class JoinedTensor(CheckpointTensor):
    """A tensor whose parts are in several files; `array` is a `_Joined`."""

    parts: tuple[CheckpointTensor, ...] = ()

    def release(self, view: Array) -> None:
        """Give back what the parts of a view hold."""
        for tensor, part in zip(self.parts, cast(_Joined, view).parts, strict=True):
            tensor.release(part)


def hugging_face(
    files: Sequence[dict[str, CheckpointTensor]], shapes: Mapping[str, tuple[int, ...]], n_expert: int, folder: Path
) -> dict[str, CheckpointTensor]:
    """All files' tensors under Hugging Face's names, whole; `shapes` are those of single matrices by that name."""
    by_name: dict[str, list[CheckpointTensor]] = {}
    for file in files:
        for tensor in file.values():
            for renamed in _renamed(tensor, n_expert):
                by_name.setdefault(renamed.name, []).append(renamed)
    return {name: _whole(parts, shapes.get(name), folder) for name, parts in by_name.items()}


def _renamed(tensor: CheckpointTensor, n_expert: int) -> list[CheckpointTensor]:
    """A tensor under its Hugging Face name, or one an expert of a stack; an unknown name stays, to be refused."""
    if tensor.name in _MODEL:
        return [replace(tensor, name=_MODEL[tensor.name])]
    found = _IN_LAYER.fullmatch(tensor.name)
    if found is None:
        return [tensor]
    layer, rest = f"model.layers.{found[1]}.", found[2]
    if rest in _LAYER:
        return [replace(tensor, name=layer + _LAYER[rest])]
    expert, stacked = _EXPERT.fullmatch(rest), _STACKED.fullmatch(rest)
    if expert is not None:
        return [replace(tensor, name=f"{layer}block_sparse_moe.experts.{expert[1]}.{expert[2]}.weight")]
    if stacked is None or not n_expert or len(tensor.shape) != 2 or tensor.shape[0] % n_expert:
        return [tensor]
    names = [f"{layer}block_sparse_moe.experts.{e}.{stacked[1]}.weight" for e in range(n_expert)]
    matrices = np.split(tensor.data(), n_expert)
    if stacked[1] == "w2":
        matrices = [matrix.T for matrix in matrices]
    return [
        replace(tensor, name=name, array=matrix, shape=matrix.shape)
        for name, matrix in zip(names, matrices, strict=True)
    ]


def _whole(parts: list[CheckpointTensor], shape: tuple[int, ...] | None, folder: Path) -> CheckpointTensor:
    first = parts[0]
    if len(parts) == 1 or shape is None:
        return first
    if any(part.shape != first.shape or part.dtype != first.dtype for part in parts):
        raise BadInputError("its parts differ in shape or dtype", file=folder, item=first.name)
    if first.shape == shape:  # a norm or a router, the same in all
        if not all(np.array_equal(part.data(), first.data()) for part in parts):
            raise BadInputError("differs between the files that hold it", file=folder, item=first.name)
        return first
    for axis in range(len(shape)):
        if tuple(n * len(parts) if i == axis else n for i, n in enumerate(first.shape)) == shape:
            joined = cast(Array, _Joined(tuple(part.data() for part in parts), axis))
            return JoinedTensor(first.name, first.dtype, shape, first.file, joined, first.mapped, tuple(parts))
    got = f"{len(parts)} x {list(first.shape)}"
    raise BadInputError("its parts do not make the whole", file=folder, item=first.name, got=got, expected=list(shape))
