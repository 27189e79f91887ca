"""A Mixtral in float64, token by token and expert by expert: slow, and obviously what the papers say."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from localmoe.model.config import ModelConfig, rope_frequencies


@dataclass(frozen=True)
class NaiveResult:
    """logits (T, V), experts and weights (T, L, K), router (T, L, E), hidden (L + 1, T, D); float64."""

    logits: np.ndarray
    experts: np.ndarray
    weights: np.ndarray
    router: np.ndarray
    hidden: np.ndarray


def rms_norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weight


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1.0 + np.exp(-x))


def rotate(x: np.ndarray, angles: np.ndarray) -> np.ndarray:
    """x (T, H, head_dim) with neighbouring pairs rotated by angles (T, head_dim / 2)."""
    pairs = x[..., 0::2] + 1j * x[..., 1::2]
    turned = pairs * np.exp(1j * angles)[:, None, :]
    out = np.empty_like(x)
    out[..., 0::2], out[..., 1::2] = turned.real, turned.imag
    return out


def attention(x: np.ndarray, w: dict[str, np.ndarray], config: ModelConfig, angles: np.ndarray) -> np.ndarray:
    tokens, group, size = len(x), config.n_head // config.n_head_kv, config.n_embd_head_k
    q = rotate((x @ w["attn_q"].T).reshape(tokens, config.n_head, size), angles)
    k = rotate((x @ w["attn_k"].T).reshape(tokens, config.n_head_kv, size), angles)
    v = (x @ w["attn_v"].T).reshape(tokens, config.n_head_kv, size)
    out = np.zeros_like(q)
    for head in range(config.n_head):
        scores = q[:, head] @ k[:, head // group].T / np.sqrt(size)
        scores[np.triu_indices(tokens, 1)] = -np.inf
        out[:, head] = softmax(scores) @ v[:, head // group]
    return out.reshape(tokens, -1) @ w["attn_output"].T


def experts_of(x: np.ndarray, w: dict[str, np.ndarray], n_used: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The chosen experts (T, K), likeliest first, their weights and all probabilities."""
    probs = softmax(x @ w["ffn_gate_inp"].T)
    ids = np.argsort(-probs, axis=1, kind="stable")[:, :n_used]
    chosen = np.take_along_axis(probs, ids, 1)
    return ids, chosen / chosen.sum(1, keepdims=True), probs


def mixture(x: np.ndarray, w: dict[str, np.ndarray], ids: np.ndarray, weights: np.ndarray) -> np.ndarray:
    out = np.zeros_like(x)
    for t, row in enumerate(x):
        for e, weight in zip(ids[t], weights[t], strict=True):
            hidden = silu(w["ffn_gate_exps"][e] @ row) * (w["ffn_up_exps"][e] @ row)
            out[t] += weight * (w["ffn_down_exps"][e] @ hidden)
    return out


def naive_model(
    weights: dict[str, np.ndarray], config: ModelConfig, ids: list[int], n_used: int | None = None
) -> NaiveResult:
    """Run `ids` from an empty context; `weights` by GGUF name in NumPy's order, any float type."""
    w64 = {name: np.asarray(values, np.float64) for name, values in weights.items()}
    angles = np.arange(len(ids))[:, None] * rope_frequencies(config, weights.get("rope_freqs.weight"))
    x = w64["token_embd.weight"][ids]
    routed, hidden = [], [x]
    for i in range(config.n_layer):
        prefix = f"blk.{i}."
        w = {n[len(prefix) : -len(".weight")]: v for n, v in w64.items() if n.startswith(prefix)}
        x = x + attention(rms_norm(x, w["attn_norm"], config.rms_eps), w, config, angles)
        h = rms_norm(x, w["ffn_norm"], config.rms_eps)
        if config.n_expert:
            routed.append(experts_of(h, w, n_used or config.n_expert_used))
            x = x + mixture(h, w, *routed[-1][:2])
        else:
            x = x + (silu(h @ w["ffn_gate"].T) * (h @ w["ffn_up"].T)) @ w["ffn_down"].T
        hidden.append(x)
    output = w64.get("output.weight", w64["token_embd.weight"])
    logits = rms_norm(x, w64["output_norm.weight"], config.rms_eps) @ output.T
    shape = (len(ids), config.n_layer, 0)
    parts = [np.stack(part, 1) for part in zip(*routed, strict=True)] if routed else [np.zeros(shape)] * 3
    return NaiveResult(logits, *parts, np.stack(hidden))


def nmse(got: np.ndarray, wanted: np.ndarray) -> float:
    """Normalised mean squared error."""
    got, wanted = np.asarray(got, np.float64), np.asarray(wanted, np.float64)
    return float(((got - wanted) ** 2).sum() / (wanted**2).sum())
