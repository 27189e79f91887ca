"""Slow, obvious NumPy references for the kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize


def quantize_q8_0(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """ggml's quantize_row_q8_0 and _q8_1: qs int8 (n,), then (n/32,) each: d float32, sums int32, d * sum float32.

    d and d * sum are rounded to float16's bits, the latter from d as it was before.
    """
    blocks = np.asarray(x, np.float32).reshape(-1, 32)
    d = np.abs(blocks).max(axis=1) / np.float32(127)
    inverse = np.divide(np.float32(1), d, out=np.zeros_like(d), where=d > 0)
    qs = np.rint(blocks * inverse[:, None]).astype(np.int8)
    sums = qs.sum(axis=1, dtype=np.int32)
    scaled = d * sums.astype(np.float32)
    unit = np.where(np.abs(scaled) > 65504, np.float32(65536), np.float32(1))
    total = (scaled / unit).astype(np.float16).astype(np.float32) * unit
    return qs.reshape(-1), d.astype(np.float16).astype(np.float32), sums, total


def quantize_q8_k(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """ggml's quantize_row_q8_K: (qs int8 (n,), d float32 (n/256,), int16 (3n/32,): sums of 16, then sums of 32)."""
    blocks = np.asarray(x, np.float32).reshape(-1, 256)
    largest = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=1)[:, None], axis=1)
    scale = np.divide(np.float32(-127), largest, out=np.zeros_like(largest), where=largest != 0)
    qs = np.minimum(np.rint(blocks * scale), 127).astype(np.int8)
    d = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale != 0)
    sums = [qs.reshape(-1, width).sum(axis=1, dtype=np.int16) for width in (16, 32)]
    return qs.reshape(-1), d[:, 0], np.concatenate(sums)


def activation_row(fmt: str, x: np.ndarray) -> np.ndarray:
    """The bytes of one activation row in the kernels' format `fmt` ("f32", "q8_0", "q8_k"), without padding."""
    if fmt == "f32":
        return np.asarray(x, np.float32).view(np.uint8)
    parts = {"q8_0": quantize_q8_0, "q8_k": quantize_q8_k}[fmt](x)
    return np.concatenate([np.ascontiguousarray(part).view(np.uint8) for part in parts])


def activation_values(fmt: str, x: np.ndarray) -> np.ndarray:
    """What a row quantized to `fmt` stands for, float64 (n,)."""
    if fmt == "f32":
        return np.asarray(x, np.float64)
    qs, d, *_ = {"q8_0": quantize_q8_0, "q8_k": quantize_q8_k}[fmt](x)
    return qs * np.repeat(d.astype(np.float64), qs.size // d.size)


def products(kind: GGMLQuantizationType, raw: np.ndarray, fmt: str, x: np.ndarray) -> np.ndarray:
    """What rows of bytes times a row x quantized to `fmt` are, float64 (rows,): minima meet rounded sums."""
    exact = weight_values(kind, raw) @ activation_values(fmt, x)
    if kind.name not in ("Q4_1", "Q5_1"):
        return exact
    _, d, sums, total = quantize_q8_0(x)
    minima = raw.reshape(len(raw), len(d), -1)[:, :, 2:4].copy().view(np.float16)[:, :, 0].astype(np.float64)
    return exact + minima @ (total - d.astype(np.float64) * sums)


SCALES = {  # byte offsets of a block's float16 scales
    "Q8_0": (0,), "Q4_0": (0,), "Q5_0": (0,), "Q4_1": (0, 2), "Q5_1": (0, 2), "Q2_K": (80, 82), "Q3_K": (108,),
    "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "IQ4_NL": (0,), "IQ4_XS": (0,), "IQ3_S": (0,), "IQ3_XXS": (0,),
    "IQ2_S": (0,), "IQ2_XS": (0,), "IQ2_XXS": (0,), "IQ1_S": (0,), "IQ1_M": (), "TQ1_0": (52,), "TQ2_0": (64,),
    "MXFP4": (),
}  # fmt: skip


def random_weights(kind: GGMLQuantizationType, rows: int, cols: int, rng: np.random.Generator) -> np.ndarray:
    """Random bytes of a (rows, cols) matrix of `kind`, uint8 (rows, row bytes), every bit pattern but wild scales."""
    if kind.name in ("F32", "F16", "BF16"):
        x = rng.normal(size=(rows, cols)).astype(np.float32)
        if kind.name == "BF16":
            return (x.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8).reshape(rows, -1)
        return x.astype({"F32": np.float32, "F16": np.float16}[kind.name]).view(np.uint8).reshape(rows, -1)
    block, size = GGML_QUANT_SIZES[kind]
    raw = rng.integers(0, 256, (rows, cols // block, size), dtype=np.uint8)
    scales = (rng.normal(size=raw.shape[:2]) * 0.02).astype(np.float16)
    for at in SCALES[kind.name]:
        raw[:, :, at : at + 2] = scales[:, :, None].view(np.uint8)
        scales = (rng.normal(size=raw.shape[:2]) * 0.02).astype(np.float16)
    set_other_scales(kind, raw, scales)
    return raw.reshape(rows, -1)


def set_other_scales(kind: GGMLQuantizationType, blocks: np.ndarray, scales: np.ndarray) -> None:
    """Put scales where no float16 field is for them: MXFP4's a power of two, IQ1_M's four nibbles of four words."""
    if kind.name == "MXFP4":
        blocks[:, :, 0] = np.clip(np.frexp(scales.astype(np.float32))[1] + 127, 2, 250)
    elif kind.name == "IQ1_M":
        bits = scales.view(np.uint16)[..., None] >> np.array([0, 4, 8, 12], np.uint16)
        high = blocks[:, :, 49::2]
        blocks[:, :, 49::2] = (high & 0x0F) | ((bits & 0xF) << 4).astype(np.uint8)


def fill_but_scales(kind: GGMLQuantizationType, raw: np.ndarray, byte: int) -> None:
    """Set all bytes of rows of blocks to `byte`, but keep the blocks' scales."""
    size = GGML_QUANT_SIZES[kind][1]
    mask = np.zeros(size, np.uint8)
    for at in SCALES[kind.name]:
        mask[at : at + 2] = 0xFF
    if kind.name == "IQ1_M":
        mask[49::2] = 0xF0
        mask[:49] = 0
    elif kind.name == "MXFP4":
        mask[0] = 0xFF
    blocks = raw.reshape(-1, size)
    blocks[:] = (blocks & mask) | (byte & ~mask)


def weight_values(kind: GGMLQuantizationType, raw: np.ndarray) -> np.ndarray:
    """The numbers that rows of bytes stand for, float64 (rows, cols), by gguf-py."""
    if kind.name == "F32":
        return raw.view(np.float32).astype(np.float64)
    if kind.name == "F16":
        return raw.view(np.float16).astype(np.float64)
    return np.asarray(dequantize(raw, kind), np.float64)


def nmse(got: np.ndarray, expected: np.ndarray) -> float:
    """Squared error over squared expectation."""
    difference: Any = np.asarray(got, np.float64) - expected
    return float((difference**2).sum() / (np.asarray(expected, np.float64) ** 2).sum())


def cached_keys(kind: str, k: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Keys (n, head_dim), n a multiple of 32, as the KV cache keeps them (uint8), and what that stands for, float64."""
    n, dim = k.shape
    if kind != "q8_0":
        kept = k.astype({"f16": np.float16, "f32": np.float32}[kind])
        return np.ascontiguousarray(kept.reshape(-1, 32, dim).transpose(0, 2, 1)).view(np.uint8).ravel(), kept.astype(
            np.float64
        )
    qs, d, *_ = quantize_q8_0(k)
    blocks = qs.reshape(n // 32, 32, dim // 4, 4).transpose(0, 2, 1, 3).reshape(n // 32, -1).view(np.uint8)
    scales = d.reshape(n // 32, 32, dim // 32).transpose(0, 2, 1).reshape(n // 32, -1).astype(np.float16)
    return np.concatenate([blocks, scales.view(np.uint8)], axis=1).ravel(), activation_values("q8_0", k).reshape(n, dim)


def cached_values(kind: str, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values (n, head_dim) as the KV cache keeps them (uint8), and what that stands for, float64."""
    n, dim = v.shape
    if kind != "q8_0":
        kept = np.zeros((n, -(-dim // 16) * 16), {"f16": np.float16, "f32": np.float32}[kind])
        kept[:, :dim] = v
        return kept.view(np.uint8).ravel(), kept[:, :dim].astype(np.float64)
    qs, d, *_ = quantize_q8_0(v)
    scales = d.reshape(n, -1).astype(np.float16).view(np.uint8)
    rows = np.concatenate([qs.reshape(n, dim).view(np.uint8), scales], axis=1)
    return rows.ravel(), activation_values("q8_0", v).reshape(n, dim)
