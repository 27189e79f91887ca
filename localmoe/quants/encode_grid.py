"""IQ2_XXS, IQ2_XS, IQ2_S, IQ3_XXS and IQ3_S blocks from what `grid_search` finds: the layouts of ggml-common.h."""

from __future__ import annotations

import numpy as np
from gguf import GGMLQuantizationType as Type

from .grid_search import ALL_IF_ANY, ALWAYS, OFF_GRID, SKIPPED, Parts, Search, search_blocks
from .neighbours import book

_F = np.float32
_SEARCHES = {
    Type.IQ2_XXS: Search(32, 8, 3, 6, ALWAYS, True, _F(1), _F(0), _F(0.1), _F(1e-15), _F(1)),
    Type.IQ2_XS: Search(16, 8, 3, 9, OFF_GRID, True, _F(1), _F(0), _F(0.1), _F(1e-15), _F(1)),
    Type.IQ2_S: Search(16, 8, 3, 9, OFF_GRID, False, _F(2), _F(0.25), _F(0.1), _F(1e-8), _F(0.9875)),
    Type.IQ3_XXS: Search(32, 4, 8, 15, OFF_GRID, True, _F(2), _F(0), _F(0.2), _F(1e-8), _F(1.0125)),
    Type.IQ3_S: Search(32, 4, 8, 9, ALL_IF_ANY, False, _F(2), _F(0), _F(0.2), _F(0), _F(1.033)),
}
COMPILED = dict.fromkeys(_SEARCHES, search_blocks.__name__)


def encode_grid(type_: Type, x: np.ndarray, importance: np.ndarray | None, out: np.ndarray) -> None:
    """Encode float32 (n, 256) to uint8 (n, block bytes); `importance` (columns,) weighs the columns of a row."""
    search, n = _SEARCHES[type_], len(x)
    parts = Parts(
        np.empty((n, 256 // search.group), np.int32), np.empty((n, 32), np.uint8),
        np.empty((n, 256 // search.size), np.uint8), np.empty(n, np.uint16),
    )  # fmt: skip
    weights = np.empty((0, 256), np.float32) if importance is None else importance.reshape(-1, 256)
    search_blocks(x, weights, search, book(type_.name), parts)
    out[:, :2] = parts.halves[:, None].view(np.uint8)
    points, signs = _close_gaps(parts) if type_ == Type.IQ3_S else (parts.points, parts.signs)
    points[points == SKIPPED] = 0
    _PACK[type_](out[:, 2:], points, signs, parts.levels)


def _close_gaps(parts: Parts) -> tuple[np.ndarray, np.ndarray]:
    """Low bytes of points, and signs, where ggml puts them: it does not step over a sub-block of zeros.

    quantize_row_iq3_s_impl leaves its loop before it moves on. The points' ninth bits stay in their places.
    """
    points, signs = parts.points, parts.signs
    by_sub = points.reshape(len(points), 8, 8)
    order = np.argsort(by_sub[:, :, 0] == SKIPPED, axis=1, kind="stable")
    high = np.where(points == SKIPPED, 0, points & 256)
    moved = np.take_along_axis(by_sub, order[..., None], axis=1).reshape(points.shape)
    moved = np.where(moved == SKIPPED, 0, moved & 255)
    return moved | high, np.take_along_axis(signs.reshape(-1, 8, 4), order[..., None], axis=1).reshape(signs.shape)


def _nibbles(levels: np.ndarray) -> np.ndarray:
    """Pairs of levels as bytes, the first one low."""
    return np.asarray(levels[:, 0::2] | (levels[:, 1::2] << 4), np.uint8)


def _signs_and_scale(signs: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Four times 7 bits of signs, and 4 of scale, as the bytes of a uint32 a sub-block: (n, 8, 4)."""
    words = levels.astype(np.uint32) << 28
    for k in range(4):
        words |= signs[:, k::4].astype(np.uint32) << (7 * k)
    return words[..., None].view(np.uint8)


def _bits(values: np.ndarray, width: int) -> np.ndarray:
    """Values of 1 or 2 bits packed into bytes, the first one lowest."""
    per_byte = 8 // width
    parts = values.reshape(len(values), -1, per_byte) << (width * np.arange(per_byte))
    return np.asarray(parts.sum(axis=2), np.uint8)


def _pack_iq2_xxs(out: np.ndarray, points: np.ndarray, signs: np.ndarray, levels: np.ndarray) -> None:
    both = np.concatenate([points.reshape(-1, 8, 4).astype(np.uint8), _signs_and_scale(signs, levels)], axis=2)
    out[:] = both.reshape(len(out), -1)


def _pack_iq2_xs(out: np.ndarray, points: np.ndarray, signs: np.ndarray, levels: np.ndarray) -> None:
    words = (points | (signs.astype(np.int32) << 9)).astype(np.uint16)
    out[:, :64] = words.view(np.uint8)
    out[:, 64:] = _nibbles(levels)


def _pack_iq2_s(out: np.ndarray, points: np.ndarray, signs: np.ndarray, levels: np.ndarray) -> None:
    out[:, :32], out[:, 32:64] = points & 255, signs
    out[:, 64:72], out[:, 72:] = _bits(points >> 8, 2), _nibbles(levels)


def _pack_iq3_xxs(out: np.ndarray, points: np.ndarray, signs: np.ndarray, levels: np.ndarray) -> None:
    out[:, :64] = points
    out[:, 64:] = _signs_and_scale(signs, levels).reshape(len(out), -1)


def _pack_iq3_s(out: np.ndarray, points: np.ndarray, signs: np.ndarray, levels: np.ndarray) -> None:
    out[:, :64], out[:, 64:72] = points & 255, _bits(points >> 8, 1)
    out[:, 72:104], out[:, 104:] = signs, _nibbles(levels)


_PACK = {
    Type.IQ2_XXS: _pack_iq2_xxs, Type.IQ2_XS: _pack_iq2_xs, Type.IQ2_S: _pack_iq2_s, Type.IQ3_XXS: _pack_iq3_xxs,
    Type.IQ3_S: _pack_iq3_s,
}  # fmt: skip
