"""TQ1_0 and TQ2_0 decoding: weights of -1, 0 and 1 that share a float16 scale, 256 a block.

Source: ggml-quants.c, `dequantize_row_tq1_0` and `dequantize_row_tq2_0`. Blocks come as uint8 (..., block bytes).
"""

from __future__ import annotations

import numpy as np

from .decode_legacy import half

_POWERS = np.array([1, 3, 9, 27, 81], np.uint8)


def _trits(packed: np.ndarray, count: int) -> np.ndarray:
    """(..., n) bytes as (..., count * n) numbers 0 .. 2: the first trit of every byte, then the second of every byte.

    A byte is a fraction of 256: its first trit is what three times it has above 256.
    """
    shifted = packed[..., None, :] * _POWERS[:count, None]
    return ((shifted.astype(np.uint16) * 3) >> 8).reshape(*packed.shape[:-1], -1)


def decode_tq1_0(blocks: np.ndarray) -> np.ndarray:
    """d * (trit - 1): five a byte in 32 bytes, then in 16; four a byte in the four bytes of qh."""
    parts = _trits(blocks[..., :32], 5), _trits(blocks[..., 32:48], 5), _trits(blocks[..., 48:52], 4)
    return half(blocks, 52) * (np.concatenate(parts, axis=-1).astype(np.float32) - 1)


def decode_tq2_0(blocks: np.ndarray) -> np.ndarray:
    """d * (q - 1): four numbers of 2 bits a byte, of which 3 would be 2."""
    lead = blocks.shape[:-1]
    q = (blocks[..., :64].reshape(*lead, 2, 1, 32) >> np.array([0, 2, 4, 6], np.uint8)[:, None]) & 3
    return half(blocks, 64) * (q.reshape(*lead, 256).astype(np.float32) - 1)
