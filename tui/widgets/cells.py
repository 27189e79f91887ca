"""How large a heatmap's cells can be in the room there is: layers go down, experts go right."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MAX_CELL = 8
"""Columns a cell takes at most: wider ones tear the picture apart."""
MAX_CELL_WITH_TEXT = 20
"""The same of cells that a figure stands in."""


@dataclass(frozen=True)
class Cells:
    """A layout: cells of `width` columns and `height` lines, or two layers a line where `half`.

    `per_row` layers and `per_column` experts are pooled into a cell (1: none are); `rows` and `columns` count cells,
    `gutter` is the width of the layer numbers on the left, `lines` what the picture takes.
    """

    width: int
    height: int
    half: bool
    per_row: int
    per_column: int
    rows: int
    columns: int
    gutter: int

    @property
    def lines(self) -> int:
        return -(-self.rows // 2) if self.half else self.rows * self.height

    @property
    def pooled(self) -> bool:
        return self.per_row > 1 or self.per_column > 1

    @property
    def middle(self) -> int:
        """The line of a cell that names it."""
        return (self.height - 1) // 2

    def row_at(self, line: int) -> int | None:
        """The cell row on a line of the picture (its upper one where half), None past the end."""
        row = line * 2 if self.half else line // self.height
        return row if 0 <= row < self.rows else None


def fit(n_layer: int, n_expert: int, width: int, height: int, *, shaded: bool, widest: int = MAX_CELL) -> Cells:
    """The largest cells that show n_layer x n_expert in width x height; shaded cells cannot share a line.

    Cells as high as they look wide (two columns are about a line), down to a line, then two layers a line, then layers
    pooled; likewise from `widest` columns to one, then experts pooled.
    """
    gutter = len(str(max(n_layer - 1, 0))) + 1
    room, height = max(1, width - gutter), max(1, height)
    per_column = -(-n_expert // room) or 1
    columns = -(-n_expert // per_column)
    cell = max(1, min(widest, room // max(1, columns)))
    if n_layer <= height:
        tall = max(1, min((min(cell, MAX_CELL) + 1) // 2, height // n_layer))
        return Cells(cell, tall, False, 1, per_column, n_layer, columns, gutter)
    half = not shaded
    per_row = -(-n_layer // (height * (2 if half else 1)))
    return Cells(cell, 1, half, per_row, per_column, -(-n_layer // per_row), columns, gutter)


def pool(values: NDArray[np.float64], cells: Cells, *, changed: bool = False) -> NDArray[np.float64]:
    """Of the layers and experts behind each cell the one that weighs most, (rows, columns); never a sum."""
    if not cells.pooled:
        return values
    layers, experts = cells.rows * cells.per_row, cells.columns * cells.per_column
    padded = np.full((layers, experts), np.nan)
    padded[: values.shape[0], : values.shape[1]] = values
    split = padded.reshape(cells.rows, cells.per_row, cells.columns, cells.per_column)
    parts = split.swapaxes(1, 2).reshape(cells.rows, cells.columns, -1)
    most = weight(parts, changed=changed).argmax(axis=2)
    return np.take_along_axis(parts, most[:, :, None], 2)[:, :, 0]


def weight(values: NDArray[np.float64], *, changed: bool) -> NDArray[np.float64]:
    """What decides which of several loads a cell shows: the load, or how far from 1 it `changed`; -1 for NaN."""
    if changed:
        with np.errstate(divide="ignore"):
            values = np.abs(np.log2(values))
    return np.where(np.isnan(values), -1.0, values)
