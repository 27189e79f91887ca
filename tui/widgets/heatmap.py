"""The layers x experts heatmap: one widget that draws lines, at any size."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import NDArray
from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.message import Message
from textual.strip import Strip
from textual.widget import Widget

from . import palette
from .cells import Cells, fit, pool

MARK = "•"
_FEW_COLOURS = {None, "standard", "windows"}


class Heatmap(Widget):
    """Each expert's load over even load, a line or half a line a layer; the newest token's choices carry a dot.

    Line 0 names the experts; below the picture come the legend, unless `legend` is off, and a note where cells are pooled. Where colours are few (16 colours, NO_COLOR) cells are
    shaded glyphs instead.
    """

    DEFAULT_CSS = "Heatmap { height: 1fr; width: 1fr; }"
    ALLOW_SELECT = False
    ABOVE = 1

    @dataclass
    class Pointed(Message):
        """The mouse is over a cell: the first of its layers and experts, or None, None when it left."""

        layer: int | None
        expert: int | None

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.legend = True
        self._ratio: NDArray[np.float64] = np.full((0, 0), np.nan)
        self._chosen: NDArray[np.bool_] | None = None
        self._span = 1.0
        self._cells: Cells | None = None
        self._levels: palette.Levels = np.zeros((0, 0), np.uint8)
        self._marks: NDArray[np.bool_] | None = None
        self._strips: dict[int, tuple[bytes, Strip]] = {}

    @property
    def shaded(self) -> bool:
        """Whether glyphs stand for colours here."""
        return self.app.no_color or self.app.console.color_system in _FEW_COLOURS

    @property
    def cells(self) -> Cells | None:
        """The layout in use, None before there is anything to show."""
        return self._cells

    def show(self, ratio: NDArray[np.float64], chosen: NDArray[np.bool_] | None, span: float) -> None:
        """Show load over even load (L, E); `chosen` (L, E) marks the newest token's experts, `span` ends the scale."""
        self._ratio, self._chosen, self._span = ratio, chosen, span
        if self._refit():
            self.refresh()

    def on_resize(self, _: events.Resize) -> None:
        self._strips.clear()
        self._refit()

    def _refit(self) -> bool:
        """Fit the values to the size; True when the picture changed."""
        n_layer, n_expert = self._ratio.shape
        if not n_layer or not n_expert or not self.size:
            return False
        room = self.size.height - self.ABOVE - self.legend
        cells = fit(n_layer, n_expert, self.size.width, room, shaded=self.shaded)
        if cells.pooled:
            cells = fit(n_layer, n_expert, self.size.width, room - 1, shaded=self.shaded)
        shown = palette.levels(pool(self._ratio, cells), self._span)
        marks = self._chosen if not cells.pooled and not cells.half and cells.width > 1 else None
        same = cells == self._cells and np.array_equal(shown, self._levels) and _same(marks, self._marks)
        if cells != self._cells:
            self._strips.clear()
        self._cells, self._levels, self._marks = cells, shown, marks
        return not same

    def render_line(self, y: int) -> Strip:
        cells, width = self._cells, self.size.width
        if cells is None:
            return Strip.blank(width, self.rich_style)
        line = y - self.ABOVE
        if line < 0:
            return self._header(cells).adjust_cell_length(width, self.rich_style)
        if cells.row_at(line) is not None:
            return self._row(cells, line, width)
        if line == cells.lines and self.legend:
            return self._legend().adjust_cell_length(width, self.rich_style)
        if line == cells.lines + self.legend and cells.pooled:
            return self._note(cells).adjust_cell_length(width, self.rich_style)
        return Strip.blank(width, self.rich_style)

    def _row(self, cells: Cells, line: int, width: int) -> Strip:
        row = cells.row_at(line)
        assert row is not None
        dark = self.app.current_theme.dark
        below = row + 1 if cells.half else row
        key = self._levels[row : below + 1].tobytes() + bytes((dark, self.shaded))
        if self._marks is not None:
            key += self._marks[row].tobytes()
        known = self._strips.get(line)
        if known is not None and known[0] == key:
            return known[1]
        first = not cells.half and line % cells.height == 0
        number = str(row * cells.per_row) if first or cells.half else ""
        segments = [Segment(number.rjust(cells.gutter - 1) + " ", self._dim)]
        if self.shaded:
            segments += self._shades(cells, row)
        elif cells.half:
            segments += self._half_blocks(cells, row, dark)
        else:
            segments += self._blocks(cells, row, dark, first)
        strip = Strip(segments).adjust_cell_length(width, self.rich_style)
        self._strips[line] = key, strip
        return strip

    def _blocks(self, cells: Cells, row: int, dark: bool, first: bool) -> list[Segment]:
        marks = self._marks[row].tolist() if self._marks is not None and first else [False] * cells.columns
        blank, mark = " " * cells.width, MARK.center(cells.width)
        out = []
        for (level, marked), run in groupby(zip(self._levels[row].tolist(), marks, strict=True)):
            n = sum(1 for _ in run)
            out.append(Segment((mark if marked else blank) * n, palette.ground(level, dark)))
        return out

    def _half_blocks(self, cells: Cells, row: int, dark: bool) -> list[Segment]:
        upper = self._levels[row].tolist()
        lower = self._levels[row + 1].tolist() if row + 1 < cells.rows else None
        if lower is None:
            edge = self.rich_style.bgcolor
            return [
                Segment("▀" * cells.width, Style(color=palette.ground(level, dark).bgcolor, bgcolor=edge))
                for level in upper
            ]
        block, halves = "▀" * cells.width, palette.halves
        return [
            Segment(block * sum(1 for _ in run), halves(above, below, dark))
            for (above, below), run in groupby(zip(upper, lower, strict=True))
        ]

    def _shades(self, cells: Cells, row: int) -> list[Segment]:
        marks = self._marks[row].tolist() if self._marks is not None else [False] * cells.columns
        out = []
        for level, marked in zip(self._levels[row].tolist(), marks, strict=True):
            shade = palette.glyph(level) * cells.width
            if marked:
                shade = "[" + shade[1:-1] + "]"
            out.append(shade)
        return [Segment("".join(out), self.rich_style)]

    @property
    def _dim(self) -> Style:
        return self.rich_style + Style(dim=True)

    def _header(self, cells: Cells) -> Strip:
        n_expert = self._ratio.shape[1]
        digits = len(str(n_expert - 1))
        if cells.per_column == 1 and cells.width > digits:
            text = "".join(str(e).center(cells.width) for e in range(n_expert))
            return Strip([Segment(" " * cells.gutter + text, self._dim)])
        step = 4 * cells.per_column
        while step // cells.per_column * cells.width < digits + 2:
            step *= 2
        text = ""
        for expert in range(0, n_expert, step):
            at = expert // cells.per_column * cells.width
            if cells.gutter + at + len(str(expert)) <= self.size.width:
                text = text.ljust(at) + str(expert)
        return Strip([Segment(" " * cells.gutter + text, self._dim)])

    def _legend(self) -> Strip:
        """From an expert that is hardly used to the busiest, with even load in the middle."""
        indent = " " * (self._cells.gutter if self._cells else 0)
        if self.shaded:
            return Strip([Segment(f"{indent}· never ░ less ▒ even ▓ █ more", self._dim)])
        low, high = f"1/{2**self._span:.2g} ", f" {2**self._span:.2g}× even"
        return Strip([Segment(indent + low, self._dim), *self.scale(3), Segment(high, self._dim)])

    def scale(self, step: int) -> list[Segment]:
        """The scale of loads from left to right, every `step`-th level."""
        if self.shaded:
            return [Segment("░▒▓█", self._dim)]
        dark = self.app.current_theme.dark
        return [Segment("▀", palette.halves(at, at, dark)) for at in range(palette.LOWEST, palette.UNKNOWN, step)]

    def _note(self, cells: Cells) -> Strip:
        parts = [f"{n} {name}" for n, name in ((cells.per_row, "layers"), (cells.per_column, "experts")) if n > 1]
        text = f"busiest of {' × '.join(parts)}"
        if cells.gutter + len(text) > self.size.width:
            text = f"busiest of {cells.per_row}×{cells.per_column}"
        return Strip([Segment(" " * cells.gutter + text, self._dim)])

    def cell_at(self, x: int, y: int) -> tuple[int, int] | None:
        """The first layer and expert of the cell at a place in the widget, None outside the picture."""
        cells = self._cells
        row = cells.row_at(y - self.ABOVE) if cells is not None and y >= self.ABOVE else None
        if cells is None or row is None or x < cells.gutter:
            return None
        column = (x - cells.gutter) // cells.width
        return (row * cells.per_row, column * cells.per_column) if column < cells.columns else None

    def on_mouse_move(self, event: events.MouseMove) -> None:
        at = self.cell_at(event.x, event.y)
        self.post_message(self.Pointed(*(at or (None, None))))

    def on_leave(self) -> None:
        self.post_message(self.Pointed(None, None))


def _same(one: NDArray[np.bool_] | None, other: NDArray[np.bool_] | None) -> bool:
    return one is other if one is None or other is None else np.array_equal(one, other)
