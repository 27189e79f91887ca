"""Q2_K ... Q6_K decoding: 256 elements in sub-blocks of 16 or 32 with quantized scales (and minima).

Source: ggml-quants.c, `dequantize_row_q*_K`. Products and sums are in ggml's order, so results have the same bits.
Blocks come as uint8 (..., block bytes); results are float32 (..., 256).
"""

from __future__ import annotations

import numpy as np

from .decode_legacy import half


def _shifted(qs: np.ndarray, shifts: tuple[int, ...], mask: int) -> np.ndarray:
    """(..., g, w) bytes as (..., g, len(shifts), w): each byte's fields, one shift after the other."""
    return np.stack([(qs >> s) & mask for s in shifts], axis=-2)


def decode_q2_k(blocks: np.ndarray) -> np.ndarray:
    """d * scale * q - dmin * min; 16 sub-blocks of 16, scale and min a nibble each."""
    lead = blocks.shape[:-1]
    scales = blocks[..., :16]
    dl = half(blocks, 80) * (scales & 0xF).astype(np.float32)
    ml = half(blocks, 82) * (scales >> 4).astype(np.float32)
    q = _shifted(blocks[..., 16:80].reshape(*lead, 2, 32), (0, 2, 4, 6), 3).reshape(*lead, 16, 16)
    return (dl[..., None] * q.astype(np.float32) - ml[..., None]).reshape(*lead, 256)


def decode_q3_k(blocks: np.ndarray) -> np.ndarray:
    """d * (scale - 32) * (q - 4 unless its bit in hmask is set); scales of 6 bits packed into 12 bytes."""
    lead = blocks.shape[:-1]
    packed = blocks[..., 96:108]
    low = np.concatenate([packed[..., :8] & 0xF, packed[..., :8] >> 4], axis=-1)
    high = np.concatenate([(packed[..., 8:] >> s) & 3 for s in (0, 2, 4, 6)], axis=-1)
    scales = (low | (high << 4)).astype(np.float32) - 32
    dl = half(blocks, 108) * scales
    q = _shifted(blocks[..., 32:96].reshape(*lead, 2, 32), (0, 2, 4, 6), 3).reshape(*lead, 256).astype(np.float32)
    bit = _shifted(blocks[..., None, :32], tuple(range(8)), 1).reshape(*lead, 256)
    q = (q - np.where(bit, np.float32(0), np.float32(4))).reshape(*lead, 16, 16)
    return (dl[..., None] * q).reshape(*lead, 256)


def _scales_and_minima(packed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eight scales and eight minima of 6 bits from 12 bytes (`get_scale_min_k4`), as float32."""
    a, b, c = packed[..., 0:4], packed[..., 4:8], packed[..., 8:12]
    scales = np.concatenate([a & 63, (c & 0xF) | ((a >> 6) << 4)], axis=-1)
    minima = np.concatenate([b & 63, (c >> 4) | ((b >> 6) << 4)], axis=-1)
    return scales.astype(np.float32), minima.astype(np.float32)


def _decode_affine(blocks: np.ndarray, q: np.ndarray) -> np.ndarray:
    """d * scale * q - dmin * min for q (..., 8, 32)."""
    scales, minima = _scales_and_minima(blocks[..., 4:16])
    dl, ml = half(blocks, 0) * scales, half(blocks, 2) * minima
    return (dl[..., None] * q.astype(np.float32) - ml[..., None]).reshape(*blocks.shape[:-1], 256)


def decode_q4_k(blocks: np.ndarray) -> np.ndarray:
    """Eight sub-blocks of 32; sub-blocks 2i and 2i + 1 are the low and high nibbles of 32 bytes."""
    lead = blocks.shape[:-1]
    return _decode_affine(blocks, _shifted(blocks[..., 16:].reshape(*lead, 4, 32), (0, 4), 0xF).reshape(*lead, 8, 32))


def decode_q5_k(blocks: np.ndarray) -> np.ndarray:
    """As Q4_K; bit i of qh[j] is the fifth bit of element j of sub-block i."""
    lead = blocks.shape[:-1]
    low = _shifted(blocks[..., 48:].reshape(*lead, 4, 32), (0, 4), 0xF).reshape(*lead, 8, 32)
    high = _shifted(blocks[..., None, 16:48], tuple(range(8)), 1).reshape(*lead, 8, 32)
    return _decode_affine(blocks, low | (high << 4))


def decode_q6_k(blocks: np.ndarray) -> np.ndarray:
    """d * scale * (q - 32); 16 sub-blocks of 16 with int8 scales, nibbles in ql and two bits in qh."""
    lead = blocks.shape[:-1]
    low = _shifted(blocks[..., :128].reshape(*lead, 2, 64), (0, 4), 0xF).reshape(*lead, 2, 4, 32)
    high = _shifted(blocks[..., 128:192].reshape(*lead, 2, 32), (0, 2, 4, 6), 3)
    q = ((low | (high << 4)).astype(np.float32) - 32).reshape(*lead, 16, 16)
    dl = half(blocks, 208) * blocks[..., 192:208].view(np.int8).astype(np.float32)
    return (dl[..., None] * q).reshape(*lead, 256)
