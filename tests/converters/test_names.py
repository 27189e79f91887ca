"""Checkpoint names and where they go."""

from __future__ import annotations

import pytest

from localmoe.converters.names import Place, checkpoint_name, gguf_name, place


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("model.embed_tokens.weight", Place("token_embd")),
        ("lm_head.weight", Place("output")),
        ("model.layers.0.self_attn.q_proj.weight", Place("attn_q", 0)),
        ("model.layers.31.mlp.down_proj.weight", Place("ffn_down", 31)),
        ("model.layers.3.block_sparse_moe.gate.weight", Place("ffn_gate_inp", 3)),
        ("model.layers.3.mlp.gate.weight", Place("ffn_gate_inp", 3)),
        ("model.layers.3.block_sparse_moe.experts.63.w3.weight", Place("ffn_up_exps", 3, 63)),
        ("model.layers.3.mlp.experts.gate_up_proj", Place("gate_up_exps", 3)),
        ("model.layers.3.mlp.experts.down_proj", Place("ffn_down_exps", 3)),
        ("model.layers.3.mlp.experts.gate_up_proj.weight", None),
        ("model.layers.03.mlp.gate.weight", None),
        ("model.layers.-1.mlp.gate.weight", None),
        ("model.layers.1.self_attn.q_proj.bias", None),
        ("model.layers.1.self_attn.q_proj", None),
        ("model.layers.99999.mlp.gate.weight", None),
        ("layers.1.mlp.gate.weight", None),
        ("model.layers.1.block_sparse_moe.experts.1.w4.weight", None),
    ],
)
def test_place(name: str, expected: Place | None) -> None:
    """Both layouts' names, and names that are nearly theirs."""
    assert place(name) == expected


@pytest.mark.parametrize(
    ("stem", "layer", "expert"),
    [("attn_k", 4, None), ("ffn_gate_inp", 0, None), ("output_norm", None, None), ("ffn_down_exps", 2, 7)],
)
def test_checkpoint_name_is_the_inverse(stem: str, layer: int | None, expert: int | None) -> None:
    """The name that a message gives is one that `place` takes."""
    assert place(checkpoint_name(stem, layer, expert)) == Place(stem, layer, expert)


def test_gguf_name() -> None:
    """With a layer and without."""
    assert gguf_name("attn_q", 3) == "blk.3.attn_q.weight"
    assert gguf_name("token_embd", None) == "token_embd.weight"
