"""Logits and routing of Hugging Face's Mixtral on weights in an .npz; runs where torch and transformers are installed.

    python mixtral_logits.py WEIGHTS.npz OUT.npz

WEIGHTS.npz: arrays by GGUF name, `ids` (T,) and the sizes n_head, n_head_kv, n_expert_used, rms_eps, rope_freq_base.
OUT.npz: logits (T, V) float32 and experts (T, L, K) int32, computed in float32.
"""

from __future__ import annotations

import sys

import numpy as np
import torch
from transformers import MixtralConfig, MixtralForCausalLM

PLAIN = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_v": "self_attn.v_proj",
         "attn_output": "self_attn.o_proj", "ffn_gate_inp": "mlp.gate"}  # fmt: skip


def halves_from_pairs(rows: np.ndarray, n_head: int) -> np.ndarray:
    """Undo the order GGUF keeps q and k rows in: neighbouring rotary pairs back to two halves a head."""
    head = rows.shape[0] // n_head
    return rows.reshape(n_head, head // 2, 2, -1).swapaxes(1, 2).reshape(rows.shape)


def state_dict(w: dict[str, np.ndarray], n_head: int, n_head_kv: int, n_layer: int) -> dict[str, torch.Tensor]:
    state = {"model.embed_tokens.weight": w["token_embd.weight"], "model.norm.weight": w["output_norm.weight"]}
    state["lm_head.weight"] = w.get("output.weight", w["token_embd.weight"])
    for i in range(n_layer):
        ours, theirs = f"blk.{i}.", f"model.layers.{i}."
        for name, other in PLAIN.items():
            state[f"{theirs}{other}.weight"] = w[f"{ours}{name}.weight"]
        state[f"{theirs}self_attn.q_proj.weight"] = halves_from_pairs(w[f"{ours}attn_q.weight"], n_head)
        state[f"{theirs}self_attn.k_proj.weight"] = halves_from_pairs(w[f"{ours}attn_k.weight"], n_head_kv)
        gate_up = np.concatenate([w[f"{ours}ffn_gate_exps.weight"], w[f"{ours}ffn_up_exps.weight"]], axis=1)
        state[f"{theirs}mlp.experts.gate_up_proj"] = gate_up
        state[f"{theirs}mlp.experts.down_proj"] = w[f"{ours}ffn_down_exps.weight"]
    return {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in state.items()}


def main() -> None:
    w = dict(np.load(sys.argv[1]))
    ids = w.pop("ids")
    n_head, n_head_kv, n_used = (int(w.pop(name)) for name in ("n_head", "n_head_kv", "n_expert_used"))
    eps, base = (float(w.pop(name)) for name in ("rms_eps", "rope_freq_base"))
    n_layer = sum(name.endswith("attn_q.weight") for name in w)
    experts, d = w["blk.0.ffn_gate_inp.weight"].shape
    config = MixtralConfig(
        vocab_size=w["token_embd.weight"].shape[0], hidden_size=d,
        intermediate_size=w["blk.0.ffn_gate_exps.weight"].shape[1],
        num_hidden_layers=n_layer, num_attention_heads=n_head, num_key_value_heads=n_head_kv, rms_norm_eps=eps,
        num_local_experts=experts, num_experts_per_tok=n_used, tie_word_embeddings="output.weight" not in w,
        head_dim=w["blk.0.attn_q.weight"].shape[0] // n_head, rope_theta=base,
        rope_parameters={"rope_type": "default", "rope_theta": base}, attn_implementation="eager",
    )  # fmt: skip
    model = MixtralForCausalLM(config).float().eval()
    model.load_state_dict(state_dict(w, n_head, n_head_kv, n_layer), strict=True)
    with torch.no_grad():
        out = model(torch.from_numpy(ids)[None].long(), output_router_logits=True)
    chosen = [torch.topk(scores, n_used, dim=-1).indices for scores in out.router_logits]
    np.savez(sys.argv[2], logits=out.logits[0].numpy(), experts=torch.stack(chosen, 1).numpy().astype(np.int32))


main()
