"""A dense Llama as PyTorch computes it in bfloat16 on a CPU: float32 inside an operation, its result rounded.

The order of roundings is transformers' modeling_llama.py's: a norm's two products, rotary angles and products, the
attention's exponentials before they meet the values, each matrix product, SiLU, its product, each residual.
"""

from __future__ import annotations

import numpy as np

from localmoe.model.config import ModelConfig, rope_frequencies


def bfloat16(x: np.ndarray) -> np.ndarray:
    """The nearest bfloat16 values, ties to even, as float64."""
    single = np.asarray(x, np.float32)
    spacing = np.exp2(np.floor(np.log2(np.abs(single), where=single != 0, out=np.zeros(single.shape))) - 7)
    return np.rint(single / spacing) * spacing  # 8 significant bits


def norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    return bfloat16(bfloat16(x / np.sqrt((x * x).mean(-1, keepdims=True) + eps)) * bfloat16(weight))


def rotate(x: np.ndarray, angles: np.ndarray) -> np.ndarray:
    """x (T, H, head_dim) with neighbouring pairs rotated by angles (T, head_dim / 2)."""
    cos, sin = bfloat16(np.cos(angles))[:, None, :], bfloat16(np.sin(angles))[:, None, :]
    a, b, out = x[..., 0::2], x[..., 1::2], np.empty_like(x)
    out[..., 0::2] = bfloat16(bfloat16(a * cos) + bfloat16(-b * sin))
    out[..., 1::2] = bfloat16(bfloat16(b * cos) + bfloat16(a * sin))
    return out


def attention(x: np.ndarray, w: dict[str, np.ndarray], config: ModelConfig, angles: np.ndarray) -> np.ndarray:
    tokens, group, size = len(x), config.n_head // config.n_head_kv, config.n_embd_head_k
    q = rotate(bfloat16(x @ w["attn_q"].T).reshape(tokens, config.n_head, size), angles)
    k = rotate(bfloat16(x @ w["attn_k"].T).reshape(tokens, config.n_head_kv, size), angles)
    v = bfloat16(x @ w["attn_v"].T).reshape(tokens, config.n_head_kv, size)
    out = np.zeros_like(q)
    for head in range(config.n_head):
        scores = q[:, head] @ k[:, head // group].T / np.sqrt(size)
        scores[np.triu_indices(tokens, 1)] = -np.inf
        e = np.exp(scores - scores.max(-1, keepdims=True))
        out[:, head] = bfloat16(bfloat16(e) @ v[:, head // group] / e.sum(-1, keepdims=True))
    return bfloat16(out.reshape(tokens, -1) @ w["attn_output"].T)


def feed_forward(x: np.ndarray, w: dict[str, np.ndarray]) -> np.ndarray:
    gate = bfloat16(x @ w["ffn_gate"].T)
    silu = bfloat16(gate / (1 + np.exp(-gate)))
    return bfloat16(bfloat16(silu * bfloat16(x @ w["ffn_up"].T)) @ w["ffn_down"].T)


def hidden_states(
    weights: dict[str, np.ndarray], config: ModelConfig, ids: list[int], *, attend: bool = True
) -> np.ndarray:
    """What enters each layer, (L, T, D); without `attend` a token sees nothing, as padding that is masked out."""
    rounded = {name: bfloat16(values) for name, values in weights.items()}
    angles = np.arange(len(ids))[:, None] * rope_frequencies(config, weights.get("rope_freqs.weight"))
    x = rounded["token_embd.weight"][ids]
    hidden = []
    for i in range(config.n_layer):
        hidden.append(x)
        prefix = f"blk.{i}."
        w = {n[len(prefix) : -len(".weight")]: v for n, v in rounded.items() if n.startswith(prefix)}
        if attend:
            x = bfloat16(x + attention(norm(x, w["attn_norm"], config.rms_eps), w, config, angles))
        x = bfloat16(x + feed_forward(norm(x, w["ffn_norm"], config.rms_eps), w))
    return np.stack(hidden)


def assert_alike(actual: np.ndarray, wanted: np.ndarray) -> None:
    """Equal but where float32 sums in another order fall to the other side of a rounding to bfloat16, which few do."""
    assert np.isclose(actual, wanted, rtol=0, atol=2e-5).mean() >= 0.98
    np.testing.assert_allclose(actual, wanted, rtol=0, atol=1e-3)
