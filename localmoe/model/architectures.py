"""What each architecture does differently, as a table; docs and errors list what runs from it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Architecture:
    """One value of `general.architecture`.

    `rope_interleaved`: rotary pairs are neighbours (2i, 2i + 1), else halves (i, i + n/2).
    `expert_gating`: "softmax" takes the softmax of all router logits, then the top k.
    `expert_weights_norm`: the chosen experts' weights are divided by their sum.
    Sources: llama.cpp src/llama-model.cpp (llama_model_rope_type) and src/models/*.cpp (build_moe_ffn's arguments).
    """

    name: str
    rope_interleaved: bool
    expert_gating: str
    expert_weights_norm: bool


ARCHITECTURES: dict[str, Architecture] = {
    architecture.name: architecture
    for architecture in (
        # Mixtral, frankenMoEs of Llama and Mistral, and those dense
        Architecture("llama", rope_interleaved=True, expert_gating="softmax", expert_weights_norm=True),
    )
}

# the values of `{arch}.expert_gating_func`: llama.cpp src/llama-hparams.h
GATING_FUNCTIONS = {1: "softmax", 2: "sigmoid", 3: "softmax_weight", 4: "sqrt_softplus"}
