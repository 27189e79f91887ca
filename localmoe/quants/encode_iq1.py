"""IQ1_S and IQ1_M encoding: groups of 8 are points of a grid over -1, 0, 1, all moved by an eighth up or down.

Source: ggml-quants.c, `quantize_row_iq1_s_impl` and `quantize_row_iq1_m_impl`, in their order of operations: the
elements of a sub-block are sorted, and every way to cut them into three runs is tried. Blocks have 256 elements.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from gguf import GGMLQuantizationType as Type

from localmoe.jit import njit

from .grid_search import weigh_block
from .lanes import divide_1, get_u16, nearest_1, put_f16
from .neighbours import Book, book, nearest_neighbour

_F = np.float32
_MOST = _F(np.finfo(np.float32).max)
_UP = np.array([-0.875, 0.125, 1.125], np.float32)
_DOWN = np.array([-1.125, -0.125, 0.875], np.float32)
_ZERO_S, _ZERO_M = _F(1e-12), _F(1e-7)


@njit
def _sort(x: np.ndarray, order: np.ndarray) -> None:
    """Indices of x from the least on; equals stay in their order."""
    for i in range(x.size):
        at = i
        while at > 0 and x[order[at - 1]] > x[i]:
            order[at] = order[at - 1]
            at -= 1
        order[at] = i


@njit
def _largest(x: np.ndarray) -> Any:
    most = abs(x[0])
    for v in x:
        most = most if most > abs(v) else abs(v)
    return most


@njit
def _cut_s(x: np.ndarray, weights: np.ndarray, order: np.ndarray, sums: np.ndarray) -> Any:
    """The two cuts with the best score, whether values move up (1) or down (-1; 0: no cut is any good), the scale."""
    n = x.size
    sums[:, 0] = _F(0)
    for j in range(n):
        i = order[j]
        sums[0, j + 1] = sums[0, j] + weights[i] * x[i]
        sums[1, j + 1] = sums[1, j] + weights[i]
    sx, sw = sums[0], sums[1]
    best, scale, cut_1, cut_2, shift = -_MOST, _F(0), 0, 0, 0
    for i in range(n + 1):
        for j in range(i, n + 1):
            for move in range(2):
                v = _UP if move == 0 else _DOWN
                sum_qx = (sx[i] - sx[0]) * v[0] + (sx[j] - sx[i]) * v[1] + (sx[n] - sx[j]) * v[2]
                low, high = (sw[i] - sw[0]) * v[0] * v[0], (sw[n] - sw[j]) * v[2] * v[2]
                sum_q2 = low + (sw[j] - sw[i]) * v[1] * v[1] + high
                if sum_q2 > 0 and sum_qx * sum_qx > best * sum_q2:
                    scale = sum_qx / sum_q2
                    best = scale * sum_qx
                    cut_1, cut_2, shift = i, j, 1 - 2 * move
    return cut_1, cut_2, shift, scale


@njit
def _cut_m(x: np.ndarray, weights: np.ndarray, order: np.ndarray, sums: np.ndarray) -> Any:
    """The two cuts with the best score, how its halves move (bit 1: the first down, bit 0: the second; -1), the scale.

    `sums` (4, n + 1): of w * x in either half, and of w.
    """
    n = x.size
    sums[:, 0] = _F(0)
    for j in range(n):
        i = order[j]
        half = 0 if i < n // 2 else 1
        sums[:, j + 1] = sums[:, j]
        sums[half, j + 1] = sums[half, j] + weights[i] * x[i]
        sums[2 + half, j + 1] = sums[2 + half, j] + weights[i]
    up, down = _UP, _DOWN
    low_up, high_up = up[0] * up[0] - up[1] * up[1], up[1] * up[1] - up[2] * up[2]
    low_down, high_down = down[0] * down[0] - down[1] * down[1], down[1] * down[1] - down[2] * down[2]
    qx, q2 = np.empty((2, 2), _F), np.empty((2, 2), _F)  # of a half, moved up or down
    best, scale, cut_1, cut_2, moves = -_MOST, _F(0), 0, 0, -1
    for i in range(n + 1):
        for j in range(i, n + 1):
            for half in range(2):
                part = sums[half, i] + sums[half, j]
                w, w_i, w_j = sums[2 + half, n], sums[2 + half, i], sums[2 + half, j]
                qx[half, 0] = sums[half, n] * up[2] - part
                qx[half, 1] = sums[half, n] * down[2] - part
                q2[half, 0] = w * up[2] * up[2] + w_i * low_up + w_j * high_up
                q2[half, 1] = w * down[2] * down[2] + w_i * low_down + w_j * high_down
            for k in range(4):
                sum_qx, sum_q2 = qx[0, k >> 1] + qx[1, k & 1], q2[0, k >> 1] + q2[1, k & 1]
                if sum_q2 > 0 and sum_qx * sum_qx > best * sum_q2:
                    scale = sum_qx / sum_q2
                    best = scale * sum_qx
                    cut_1, cut_2, moves = i, j, k
    return cut_1, cut_2, moves, scale


@njit
def _fit_points(
    book: Book, x: np.ndarray, weights: np.ndarray, levels: np.ndarray, downs: int, scale: Any, points: np.ndarray
) -> Any:
    """A point for each group of 8; the scale, fitted anew where one is not on the grid. Bit k of `downs`: group k's."""
    all_on_grid = True
    for k in range(points.size):
        code = 0
        for i in range(8):
            code |= levels[8 * k + i] << (2 * i)
        point = book.by_code[code]
        if point < 0:
            all_on_grid = False
            values, w = x.ctypes.data + 32 * k, weights.ctypes.data + 32 * k
            lowest = _DOWN[0] if downs >> k & 1 else _UP[0]
            point = nearest_neighbour(book, -1 - point, values, w, scale, _F(1), lowest)
        points[k] = point
    if all_on_grid:
        return scale
    sum_qx, sum_q2 = _F(0), _F(0)
    for k in range(points.size):
        v = _DOWN if downs >> k & 1 else _UP
        for i in range(8):
            q, w = v[book.levels[points[k], i]], weights[8 * k + i]
            sum_qx += w * q * x[8 * k + i]
            sum_q2 += w * q * q
    return sum_qx / sum_q2 if sum_qx > 0 and sum_q2 > 0 else scale


@njit
def _set_levels(order: np.ndarray, cut_1: int, cut_2: int, turned: bool, levels: np.ndarray) -> None:
    """0, 1 and 2 below, between and above the cuts; the other way round if `turned`."""
    for j in range(order.size):
        level = 0 if j < cut_1 else 1 if j < cut_2 else 2
        levels[order[j]] = 2 - level if turned else level


@njit
def _level(inverse: Any, scale: Any) -> Any:
    return max(0, min(7, nearest_1(_F(0.5) * (inverse * scale - _F(1)))))


@njit
def encode_iq1_s_blocks(x: np.ndarray, importance: np.ndarray, book: Book, out: np.ndarray) -> None:
    """Eight sub-blocks of 32: d, four low bytes of points each, then a word of upper bits, direction and scale."""
    weights, sums, scales = np.empty(256, _F), np.empty((2, 33), _F), np.empty(8, _F)
    order, levels, points, words = (
        np.empty(32, np.int32),
        np.empty(32, np.int32),
        np.empty(4, np.int32),
        np.empty(8, np.int32),
    )
    for b in range(len(x)):
        out[b] = 0
        weigh_block(x[b], importance[b % len(importance)], _F(2), _F(0), weights)
        most, lost = _F(0), False
        for j in range(8):
            part, w = x[b, 32 * j : 32 * j + 32], weights[32 * j : 32 * j + 32]
            scales[j], words[j] = _F(0), 0
            if _largest(part) < _ZERO_S:
                continue
            _sort(part, order)
            cut_1, cut_2, shift, scale = _cut_s(part, w, order, sums)
            if shift == 0:
                continue
            _set_levels(order, cut_1, cut_2, scale < 0, levels)
            if scale < 0:
                scale, shift = -scale, -shift
            scale = _fit_points(book, part, w, levels, 15 if shift < 0 else 0, scale, points)
            for k in range(4):
                out[b, 2 + 4 * j + k] = points[k] & 255
                words[j] |= (points[k] >> 8) << (3 * k)
            if shift < 0:
                words[j] |= 1 << 15
            scales[j] = scale
            lost = lost or not scale >= 0
            most = most if most > scale else scale
        d = _F(np.nan) if lost else most / _F(15)
        put_f16(out[b].ctypes.data, d * _F(1.125))
        inverse = divide_1(_F(1), d)
        for j in range(8):
            word = words[j] & 0x0FFF if most == 0 else words[j] | _level(inverse, scales[j]) << 12
            out[b, 34 + 2 * j], out[b, 35 + 2 * j] = word & 255, word >> 8


@njit
def _rescale(x: np.ndarray, weights: np.ndarray, book: Book, block: np.ndarray, levels: np.ndarray, d: Any) -> Any:
    """d with the least weighted error for the points and levels of scales that IQ1_M's block holds."""
    sum_qx, sum_q2 = _F(0), _F(0)
    for j in range(16):
        high = np.int32(block[32 + j])
        for k in range(2):
            point = block[2 * j + k] + ((high << (8 - 4 * k)) & 0x700)
            v = _DOWN if high & (8 << (4 * k)) else _UP
            for i in range(16 * j + 8 * k, 16 * j + 8 * k + 8):
                q, w = v[book.levels[point, i % 8]] * _F(2 * levels[j] + 1), weights[i]
                sum_qx += w * q * x[i]
                sum_q2 += w * q * q
    return sum_qx / sum_q2 if sum_q2 > 0 else d


class _WorkM(NamedTuple):
    """IQ1_M's scratch: a block's weights, sub-blocks' scales and directions, and what one sub-block's search takes."""

    weights: np.ndarray
    scales: np.ndarray
    downs: np.ndarray
    sums: np.ndarray
    order: np.ndarray
    levels: np.ndarray
    points: np.ndarray


@njit
def _fit_m(x: np.ndarray, work: _WorkM, book: Book, out: np.ndarray) -> Any:
    """Scales, directions and points of sixteen sub-blocks; the largest scale, and whether one is not finite."""
    most, lost = _F(0), False
    for j in range(16):
        part, w = x[16 * j : 16 * j + 16], work.weights[16 * j : 16 * j + 16]
        work.scales[j], work.downs[j] = _F(0), 0
        if _largest(part) < _ZERO_M:
            continue
        _sort(part, work.order)
        cut_1, cut_2, moves, scale = _cut_m(part, w, work.order, work.sums)
        if moves < 0:
            continue
        _set_levels(work.order, cut_1, cut_2, scale < 0, work.levels)
        if scale < 0:
            scale, moves = -scale, 3 - moves
        work.downs[j] = moves >> 1 | (moves & 1) << 1
        scale = _fit_points(book, part, w, work.levels, work.downs[j], scale, work.points)
        out[2 * j], out[2 * j + 1] = work.points[0] & 255, work.points[1] & 255
        out[32 + j] = work.points[0] >> 8 | (work.points[1] >> 8) << 4
        work.scales[j] = scale
        lost = lost or not scale >= 0
        most = most if most > scale else scale
    return most, lost


@njit
def encode_iq1_m_blocks(x: np.ndarray, importance: np.ndarray, book: Book, out: np.ndarray) -> None:
    """Sixteen sub-blocks of 16: two low bytes of points each, then upper bits and directions, then scales and d."""
    work = _WorkM(
        np.empty(256, _F), np.empty(16, _F), np.empty(16, np.int32), np.empty((4, 17), _F), np.empty(16, np.int32),
        np.empty(16, np.int32), np.empty(2, np.int32),
    )  # fmt: skip
    words, half, empty = np.empty(4, np.int32), np.empty(1, np.uint16), np.empty(0, _F)
    for b in range(len(x)):
        out[b] = 0
        mine = importance[b % len(importance)] if len(importance) else empty
        weigh_block(x[b], mine, _F(2), _F(0), work.weights)
        most, lost = _fit_m(x[b], work, book, out[b])
        if most == 0 and not lost:
            continue
        d = most / _F(15)
        inverse = divide_1(_F(1), d)
        words[:] = 0
        for j in range(16):
            work.levels[j] = _level(inverse, work.scales[j])
            words[j // 4] |= work.levels[j] << (3 * (j % 4))
            out[b, 32 + j] |= (work.downs[j] & 1) << 3 | (work.downs[j] >> 1) << 7
        d = _F(np.nan) if lost else _rescale(x[b], work.weights, book, out[b], work.levels, d)
        put_f16(half.ctypes.data, d * _F(1.1125))
        for k in range(4):
            word = words[k] | (get_u16(half.ctypes.data) >> (4 * k) & 15) << 12
            out[b, 48 + 2 * k], out[b, 49 + 2 * k] = word & 255, word >> 8


_ENCODERS = {Type.IQ1_S: encode_iq1_s_blocks, Type.IQ1_M: encode_iq1_m_blocks}
COMPILED = {type_: encoder.__name__ for type_, encoder in _ENCODERS.items()}


def encode_iq1(type_: Type, x: np.ndarray, importance: np.ndarray | None, out: np.ndarray) -> None:
    """Encode float32 (n, 256) to uint8 (n, block bytes); `importance` (columns,) weighs the columns of a row."""
    weights = np.empty((0, 256), np.float32) if importance is None else importance.reshape(-1, 256)
    _ENCODERS[type_](x, weights, book("IQ1_S"), out)
