"""IQ4_NL, IQ4_XS, MXFP4 and IQ3_S ... IQ1_M decoding: indices into code books, times a block's scales.

Source: ggml-quants.c, `dequantize_row_iq*` and `dequantize_row_mxfp4`. Every product is exact in float32, so results
have ggml's bits. Blocks come as uint8 (..., block bytes); results are float32 (..., 32 or 256).
"""

from __future__ import annotations

import numpy as np

from .codebooks import SIGNS, e2m1, grid, nonlinear
from .decode_legacy import half

_SEVENS = np.array([0, 7, 14, 21], np.uint32)
_DELTA = np.float32(0.125)


def _words(blocks: np.ndarray, start: int, end: int, dtype: str) -> np.ndarray:
    """Little-endian integers of bytes start .. end of each block."""
    return np.ascontiguousarray(blocks[..., start:end]).view(dtype)


def _nibbles(packed: np.ndarray) -> np.ndarray:
    """(..., n) bytes as (..., 2 n) values: each byte's low half, then its high one."""
    return np.stack([packed & 0xF, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1)


def _halves(packed: np.ndarray) -> np.ndarray:
    """(..., n) bytes as (..., 2 n) values: all low halves, then all high ones."""
    return np.concatenate([packed & 0xF, packed >> 4], axis=-1)


def _signs(bits: np.ndarray) -> np.ndarray:
    """float32 (..., 8 n): -1 where a bit of the bytes (..., n) is set, else 1."""
    return 1 - 2 * np.unpackbits(bits, axis=-1, bitorder="little").astype(np.float32)


def _scaled(scales: np.ndarray, values: np.ndarray) -> np.ndarray:
    """scales (..., s) times values (..., n) float32, n / s neighbours each."""
    parts = values.reshape(*scales.shape, -1)
    return (scales[..., None] * parts.astype(np.float32)).reshape(values.shape)


def _looked_up(name: str, index: np.ndarray) -> np.ndarray:
    """Entries of a grid, float32 (..., elements of all of them)."""
    return grid(name)[index].astype(np.float32).reshape(*index.shape[:-1], -1)


# --- 16 values ------------------------------------------------------------------------------------------------


def decode_iq4_nl(blocks: np.ndarray) -> np.ndarray:
    """d * value for blocks (..., 18) of d, 16 pairs of indices."""
    return half(blocks, 0) * nonlinear()[_halves(blocks[..., 2:])].astype(np.float32)


def decode_iq4_xs(blocks: np.ndarray) -> np.ndarray:
    """d * (scale - 32) * value; eight sub-blocks of 32 with scales of 6 bits, two of them in scales_h."""
    lead = blocks.shape[:-1]
    high = (_words(blocks, 2, 4, "<u2") >> np.arange(0, 16, 2, dtype=np.uint16)) & 3
    scales = (_nibbles(blocks[..., 4:8]) | (high << 4)).astype(np.float32) - 32
    index = _halves(blocks[..., 8:].reshape(*lead, 8, 16)).reshape(*lead, 256)
    return _scaled(half(blocks, 0) * scales, nonlinear()[index])


def power_of_two(e: np.ndarray) -> np.ndarray:
    """Half of 2 ** (e - 127) as float32, from E8M0 bytes (`ggml_e8m0_to_fp32_half`)."""
    wide = e.astype(np.uint32)
    bits = np.where(wide < 2, np.uint32(0x00200000) << wide, (wide - np.uint32(1)) << np.uint32(23))
    return bits.astype(np.uint32).view(np.float32)


def decode_mxfp4(blocks: np.ndarray) -> np.ndarray:
    """2 ** (e - 128) * value for blocks (..., 17) of e, 16 pairs of indices."""
    return power_of_two(blocks[..., :1]) * e2m1()[_halves(blocks[..., 1:])].astype(np.float32)


# --- grids of magnitudes, and signs ---------------------------------------------------------------------------


def decode_iq3_s(blocks: np.ndarray) -> np.ndarray:
    """d * (1 + 2 * scale) * sign * entry: 64 indices of 9 bits, entries of 4; a scale for 32."""
    index = blocks[..., 2:66] | np.unpackbits(blocks[..., 66:74], axis=-1, bitorder="little").astype(np.uint16) << 8
    scales = half(blocks, 0) * (1 + 2 * _nibbles(blocks[..., 106:110]).astype(np.float32))
    return _scaled(scales, _looked_up("IQ3_S", index)) * _signs(blocks[..., 74:106])


def _scales_and_signs(blocks: np.ndarray, words: np.ndarray, factor: float) -> tuple[np.ndarray, np.ndarray]:
    """d * (0.5 + scale) * factor and signs from 32 bits for 32 elements: four times 7 signs, 4 bits of scale."""
    scales = half(blocks, 0) * (np.float32(0.5) + (words >> 28).astype(np.float32)) * np.float32(factor)
    signs = SIGNS[(words[..., None] >> _SEVENS) & 127]
    return scales, _signs(signs.reshape(*words.shape[:-1], -1))


def decode_iq3_xxs(blocks: np.ndarray) -> np.ndarray:
    """64 indices of a byte, entries of 4; a scale and signs for 32 in four bytes."""
    scales, signs = _scales_and_signs(blocks, _words(blocks, 66, 98, "<u4"), 0.5)
    return _scaled(scales, _looked_up("IQ3_XXS", blocks[..., 2:66])) * signs


def decode_iq2_xxs(blocks: np.ndarray) -> np.ndarray:
    """For 32 elements, four indices of a byte (entries of 8), then a scale and signs in four bytes."""
    lead = blocks.shape[:-1]
    scales, signs = _scales_and_signs(blocks, _words(blocks, 2, 66, "<u4")[..., 1::2], 0.25)
    index = blocks[..., 2:66].reshape(*lead, 8, 8)[..., :4].reshape(*lead, 32)
    return _scaled(scales, _looked_up("IQ2_XXS", index)) * signs


def _nibble_scales(blocks: np.ndarray, start: int) -> np.ndarray:
    """d * (0.5 + scale) / 4 for each 16 elements, a nibble each from byte `start` on."""
    scales = _nibbles(blocks[..., start : start + 8]).astype(np.float32)
    return half(blocks, 0) * (np.float32(0.5) + scales) * np.float32(0.25)


def decode_iq2_xs(blocks: np.ndarray) -> np.ndarray:
    """16 bits for 8 elements: an index of 9 bits and 7 signs; a scale for 16."""
    words = _words(blocks, 2, 66, "<u2")
    values = _scaled(_nibble_scales(blocks, 66), _looked_up("IQ2_XS", words & 511))
    return values * _signs(SIGNS[words >> 9])


def decode_iq2_s(blocks: np.ndarray) -> np.ndarray:
    """32 indices of 10 bits, two of them in qh, and a byte of signs for each; a scale for 16."""
    lead = blocks.shape[:-1]
    high = ((blocks[..., 66:74, None] >> np.array([0, 2, 4, 6], np.uint8)) & 3).reshape(*lead, 32)
    values = _looked_up("IQ2_S", blocks[..., 2:34] | high.astype(np.uint16) << 8)
    return _scaled(_nibble_scales(blocks, 74), values) * _signs(blocks[..., 34:66])


# --- grids of -1, 0 and 1, moved by an eighth -----------------------------------------------------------------


def _moved(index: np.ndarray, down: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """scale * (entry - 1 / 8 where `down` is set, else + 1 / 8)."""
    values = _looked_up("IQ1_S", index)
    delta = np.where(down, -_DELTA, _DELTA)
    moved = values.reshape(*down.shape, -1) + delta[..., None]
    return _scaled(scales, moved.reshape(values.shape))


def decode_iq1_s(blocks: np.ndarray) -> np.ndarray:
    """32 indices of 11 bits, entries of 8; for 32 elements qh has 12 high bits, a scale of 3 and the sign of delta."""
    lead = blocks.shape[:-1]
    qh = _words(blocks, 34, 50, "<u2")
    high = ((qh[..., None] >> np.array([0, 3, 6, 9], np.uint16)) & 7).reshape(*lead, 32)
    scales = half(blocks, 0) * (2 * ((qh >> 12) & 7).astype(np.float32) + 1)
    return _moved(blocks[..., 2:34] | high << 8, (qh & 0x8000) != 0, scales)


def decode_iq1_m(blocks: np.ndarray) -> np.ndarray:
    """As IQ1_S, with a nibble of qh for 8 elements and a scale for 16; d is the top nibbles of four words of scales."""
    words = _words(blocks, 48, 56, "<u2")
    top = words >> 12
    d = top[..., 0] | top[..., 1] << 4 | top[..., 2] << 8 | top[..., 3] << 12
    odd = 2 * ((words[..., None] >> np.array([0, 3, 6, 9], np.uint16)) & 7).astype(np.float32) + 1
    scales = d.view(np.float16).astype(np.float32)[..., None] * odd.reshape(*blocks.shape[:-1], 16)
    qh = _nibbles(blocks[..., 32:48])
    return _moved(blocks[..., :32] | (qh & 7).astype(np.uint16) << 8, (qh & 8) != 0, scales)
