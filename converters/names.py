"""Hugging Face tensor names of the Llama family, and what each becomes in GGUF."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

# Names outside the layers.
MODEL_TENSORS = {
    "model.embed_tokens.weight": "token_embd",
    "model.norm.weight": "output_norm",
    "lm_head.weight": "output",
}

# Names within `model.layers.{i}.`, without `.weight`. The router has two names: transformers 4 and 5.
LAYER_TENSORS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "block_sparse_moe.gate": "ffn_gate_inp",
    "mlp.gate": "ffn_gate_inp",
}

# One tensor an expert (transformers 4): `block_sparse_moe.experts.{e}.{w}.weight`.
EXPERT_TENSORS = {"w1": "ffn_gate_exps", "w2": "ffn_down_exps", "w3": "ffn_up_exps"}

# All experts in one tensor (transformers 5, mergekit); gate and up share the first, gate's rows first.
PACKED_GATE_UP = "mlp.experts.gate_up_proj"
PACKED_DOWN = "mlp.experts.down_proj"

# A stem that fills two slots.
SPLIT = {"gate_up_exps": ("ffn_gate_exps", "ffn_up_exps")}

# Recomputed from config.json by everything that runs these models.
IGNORED = (".rotary_emb.inv_freq", ".attention.masked_bias", ".attention.bias")

# Endings of tensors that say in what form a checkpoint is not read.
FOREIGN = {
    ".qweight": "GPTQ or AWQ weights are not read", ".qzeros": "GPTQ or AWQ weights are not read",
    ".g_idx": "GPTQ weights are not read", ".weight_scale": "FP8 weights are not read",
    ".weight_scale_inv": "FP8 weights are not read", ".input_scale": "FP8 weights are not read",
    ".qscale_weight": "FP8 weights are not read", ".weight_packed": "packed quantized weights are not read",
    ".absmax": "bitsandbytes weights are not read", ".SCB": "bitsandbytes weights are not read",
    ".lora_A.weight": "is a LoRA adapter: merge it into its base model first",
}  # fmt: skip

_LAYER = re.compile(r"model\.layers\.(0|[1-9]\d{0,3})\.(.+)")
_EXPERT = re.compile(r"block_sparse_moe\.experts\.(0|[1-9]\d{0,3})\.(w[123])\.weight")


class Place(NamedTuple):
    """Where a checkpoint tensor goes: its GGUF stem, its layer and its expert (None where it has none).

    `stem` is `gate_up_exps` for a packed gate and up pair, which becomes two tensors.
    """

    stem: str
    layer: int | None = None
    expert: int | None = None


def gguf_name(stem: str, layer: int | None) -> str:
    """`attn_q` of layer 3 -> `blk.3.attn_q.weight`."""
    return f"{stem}.weight" if layer is None else f"blk.{layer}.{stem}.weight"


def place(name: str) -> Place | None:
    """What the checkpoint tensor `name` becomes, or None for a name that is not the family's."""
    if name in MODEL_TENSORS:
        return Place(MODEL_TENSORS[name])
    in_layer = _LAYER.fullmatch(name)
    if in_layer is None:
        return None
    layer, rest = int(in_layer[1]), in_layer[2]
    if rest in (PACKED_GATE_UP, PACKED_DOWN):
        return Place("gate_up_exps" if rest == PACKED_GATE_UP else "ffn_down_exps", layer)
    expert = _EXPERT.fullmatch(rest)
    if expert is not None:
        return Place(EXPERT_TENSORS[expert[2]], layer, int(expert[1]))
    stem = LAYER_TENSORS.get(rest.removesuffix(".weight")) if rest.endswith(".weight") else None
    return None if stem is None else Place(stem, layer)


def foreign(tensor_names: Iterable[str]) -> tuple[str, str] | None:
    """(tensor, reason) of the first name that tells of a form of weights that is not read."""
    for name in tensor_names:
        for ending, reason in FOREIGN.items():
            if name.endswith(ending):
                return name, reason
    return None


def checkpoint_name(stem: str, layer: int | None, expert: int | None = None) -> str:
    """The checkpoint's usual name for a GGUF stem, for messages: the inverse of `place`, `{e}` for every expert."""
    weights = {v: k for k, v in EXPERT_TENSORS.items()}
    if stem in weights:
        which = "{e}" if expert is None else expert
        return f"model.layers.{layer}.block_sparse_moe.experts.{which}.{weights[stem]}.weight"
    if layer is None:
        return {v: k for k, v in MODEL_TENSORS.items()}[stem]
    inside = {v: k for k, v in reversed(LAYER_TENSORS.items())}  # reversed: the first of a router's two names stays
    return f"model.layers.{layer}.{inside[stem]}.weight"
