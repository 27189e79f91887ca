"""Q8_0, Q4_0, Q4_1, Q5_0, Q5_1 to float32: 32 elements share a float16 scale `d` (and a minimum `m`).

Source: ggml-quants.c, `dequantize_row_*`.
"""

from __future__ import annotations

import numpy as np


def half(raw: np.ndarray, offset: int) -> np.ndarray:
    """The float16 at `offset` of each block, as float32 (..., blocks, 1)."""
    return np.ascontiguousarray(raw[..., offset : offset + 2]).view(np.float16).astype(np.float32)


def _nibbles(qs: np.ndarray) -> np.ndarray:
    """(..., 16) bytes as 32 values: the low halves, then the high ones."""
    return np.concatenate([qs & 0xF, qs >> 4], axis=-1)


def _fifth_bits(qh: np.ndarray) -> np.ndarray:
    """(..., 4) bytes as 32 values of 0 or 16."""
    return np.unpackbits(qh, axis=-1, bitorder="little") << 4


def decode_q8_0(blocks: np.ndarray) -> np.ndarray:
    """d * q for blocks (..., 34) of d, 32 int8."""
    return half(blocks, 0) * blocks[..., 2:].view(np.int8).astype(np.float32)


def decode_q4_0(blocks: np.ndarray) -> np.ndarray:
    """d * (q - 8) for blocks (..., 18) of d, 16 pairs of nibbles."""
    return half(blocks, 0) * (_nibbles(blocks[..., 2:]).astype(np.float32) - 8)


def decode_q4_1(blocks: np.ndarray) -> np.ndarray:
    """d * q + m for blocks (..., 20) of d, m, 16 pairs of nibbles."""
    return half(blocks, 0) * _nibbles(blocks[..., 4:]).astype(np.float32) + half(blocks, 2)


def decode_q5_0(blocks: np.ndarray) -> np.ndarray:
    """d * (q - 16) for blocks (..., 22) of d, 32 fifth bits, 16 pairs of nibbles."""
    q = _nibbles(blocks[..., 6:]) | _fifth_bits(blocks[..., 2:6])
    return half(blocks, 0) * (q.astype(np.float32) - 16)


def decode_q5_1(blocks: np.ndarray) -> np.ndarray:
    """d * q + m for blocks (..., 24) of d, m, 32 fifth bits, 16 pairs of nibbles."""
    q = _nibbles(blocks[..., 8:]) | _fifth_bits(blocks[..., 4:8])
    return half(blocks, 0) * q.astype(np.float32) + half(blocks, 2)
