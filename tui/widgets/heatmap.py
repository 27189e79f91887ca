"""The layers x experts heatmap: one widget that draws lines, at any size."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.strip import Strip
from textual.widget import Widget

from ..drawing import OwnLines, mark
from . import palette
from .cells import MAX_CELL, MAX_CELL_WITH_TEXT, Cells, fit, pool, weight

MARK = "•"
CURSOR = "▸"


@dataclass(frozen=True)
class Look:
    """What the app's theme and terminal give: styles of text, a dark ground, glyphs in place of colours."""

    base: Style
    dim: Style
    dark: bool
    shaded: bool


class Heatmap(OwnLines, Widget):
    """Each expert's load over even load, a line or half a line a layer; the newest token's choices carry a dot.

    Line 0 names the experts; below the picture come the legend, unless `legend` is off, and a note where cells are
    pooled. Where colours are few (16 colours, NO_COLOR) cells are shaded glyphs instead.
    """

    DEFAULT_CSS = "Heatmap { height: 1fr; width: 1fr; }"
    ALLOW_SELECT = False
    ABOVE = 1
    can_focus = True
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up", "point(-1, 0)", "Cell", id="heatmap.up", key_display="← ↑ ↓ →"),
        Binding("down", "point(1, 0)", "Cell below", id="heatmap.down", show=False),
        Binding("left", "point(0, -1)", "Cell on the left", id="heatmap.left", show=False),
        Binding("right", "point(0, 1)", "Cell on the right", id="heatmap.right", show=False),
        Binding("enter", "open", "Its tokens", id="heatmap.open"),
    ]

    @dataclass
    class Pointed(Message):
        """Mouse or cursor is at a cell: the layer and expert that it shows, or None, None when it left."""

        layer: int | None
        expert: int | None

    @dataclass
    class Opened(Message):
        """A cell was chosen: the layer and expert that it shows."""

        layer: int
        expert: int

    def __init__(self, *, opens: bool = True, id: str | None = None) -> None:
        """`opens`: a chosen cell has something to show."""
        super().__init__(id=id)
        self.legend, self._opens = True, opens
        self._versus, self._ranked = "", False
        self._look: Look | None = None
        self._width = 0
        self._ratio: NDArray[np.float64] = np.full((0, 0), np.nan)
        self._chosen: NDArray[np.bool_] | None = None
        self._span = 1.0
        self._cells: Cells | None = None
        self._texts: list[list[str]] | None = None
        self._levels: palette.Levels = np.zeros((0, 0), np.uint8)
        self._marks: NDArray[np.bool_] | None = None
        self._strips: dict[int, tuple[bytes, Strip]] = {}
        self._cursor: tuple[int, int] | None = None

    @property
    def look(self) -> Look:
        """The styles, read once: asking the style sheet for them again on every line took three quarters of a frame."""
        if self._look is None:
            base = self.rich_style
            shaded = palette.few_colours(self.app)
            self._look = Look(base, base + palette.muted(self.app), self.app.current_theme.dark, shaded)
        return self._look

    def notify_style_update(self) -> None:
        super().notify_style_update()
        self._look = None
        self._strips.clear()

    @property
    def cells(self) -> Cells | None:
        """The layout in use, None before there is anything to show."""
        return self._cells

    def show(
        self,
        ratio: NDArray[np.float64],
        chosen: NDArray[np.bool_] | None,
        span: float,
        *,
        versus: str = "",
        ranked: bool = False,
        texts: list[list[str]] | None = None,
    ) -> None:
        """Show load over even load (L, E); `chosen` (L, E) marks the newest token's experts, `span` ends the scale.

        `versus` says whose load it is over if not the even one; `ranked` columns are places in each layer, not experts.
        `texts`, of the same length, stand in the cells where there is room, which are wider for them.
        """
        renamed = (versus, ranked) != (self._versus, self._ranked)
        self._ratio, self._chosen, self._span = ratio, chosen, span
        self._versus, self._ranked, self._texts = versus, ranked, texts
        if texts is not None:
            self._strips.clear()
        if self._refit() or renamed:
            mark(self)

    def on_resize(self, _: events.Resize) -> None:
        self._strips.clear()
        self._refit()
        self.refresh()  # Textual may have drawn the new size with the old cells already

    def _refit(self) -> bool:
        """Fit the values to the size; True when the picture changed."""
        n_layer, n_expert = self._ratio.shape
        size = self.size
        self._width = size.width
        if not n_layer or not n_expert or not size:
            return False
        room = size.height - self.ABOVE - self.legend
        widest = MAX_CELL if self._texts is None else MAX_CELL_WITH_TEXT
        cells = fit(n_layer, n_expert, size.width, room, shaded=self.look.shaded, widest=widest)
        if cells.pooled:
            cells = fit(n_layer, n_expert, size.width, room - 1, shaded=self.look.shaded)
        shown = palette.levels(pool(self._ratio, cells, changed=bool(self._versus)), self._span)
        marks = self._chosen if not cells.pooled and not cells.half and cells.width > 1 else None
        same = cells == self._cells and np.array_equal(shown, self._levels) and _same(marks, self._marks)
        if cells != self._cells:
            self._strips.clear()
        self._cells, self._levels, self._marks = cells, shown, marks
        return not same

    def render_line(self, y: int) -> Strip:
        cells, width = self._cells, self._width
        if cells is None:
            return Strip.blank(width, self.look.base)
        line = y - self.ABOVE
        if line < 0:
            return self._with_cursor(cells, self._header(cells).adjust_cell_length(width, self.look.base))
        if cells.row_at(line) is not None:
            return self._row(cells, line, width)
        if line == cells.lines and self.legend:
            return self._legend().adjust_cell_length(width, self.look.base)
        if line == cells.lines + self.legend and cells.pooled:
            return self._note(cells).adjust_cell_length(width, self.look.base)
        return Strip.blank(width, self.look.base)

    def _row(self, cells: Cells, line: int, width: int) -> Strip:
        row = cells.row_at(line)
        assert row is not None
        dark, shaded = self.look.dark, self.look.shaded
        below = row + 2 if cells.half else row + 1
        named = not cells.half and line % cells.height == cells.middle
        marks = self._marks[row] if self._marks is not None and (named or shaded) else None
        here = self._cursor is not None and row <= self._cursor[0] < below
        key = self._levels[row:below].tobytes() + (b"" if marks is None else marks.tobytes())
        key += bytes((dark, shaded, here))
        known = self._strips.get(line)
        if known is not None and known[0] == key:
            return known[1]
        number = str(row * cells.per_row) if named or cells.half else ""
        number = number.rjust(cells.gutter - 1) + (CURSOR if here and (named or cells.half) else " ")
        segments = [Segment(number, self.look.base if here else self.look.dim)]
        texts = self._texts[row] if self._texts is not None and named and not cells.pooled else None
        if texts is not None and cells.width > len(texts[0]) + 1:
            levels = zip(self._levels[row].tolist(), texts, strict=True)
            named_cell = partial(palette.shaded_name, self.look.base) if shaded else partial(palette.name, dark)
            segments += [named_cell(level, cells.width, text) for level, text in levels]
        elif shaded:
            segments.append(self._shades(cells, row, marks))
        elif cells.half:
            segments += self._half_blocks(cells, row, dark)
        else:
            segments += self._blocks(cells, row, dark, marks)
        strip = Strip(segments, cells.gutter + cells.columns * cells.width).adjust_cell_length(width, self.look.base)
        self._strips[line] = key, strip
        return strip

    def _blocks(self, cells: Cells, row: int, dark: bool, marks: NDArray[np.bool_] | None) -> list[Segment]:
        if marks is not None:  # marked cells stand apart, the rest is drawn in runs
            code = self._levels[row].astype(np.int64) * 2 + marks
            return [
                palette.block(at >> 1, width, MARK if at & 1 else "", dark)
                for at, width in _runs(code, cells.width, apart=marks)
            ]
        return [palette.block(level, width, "", dark) for level, width in _runs(self._levels[row], cells.width)]

    def _half_blocks(self, cells: Cells, row: int, dark: bool) -> list[Segment]:
        upper = self._levels[row].astype(np.int64)
        if row + 1 < cells.rows:
            code = upper * palette.N_LEVELS + self._levels[row + 1]
            pairs = ((*divmod(at, palette.N_LEVELS), width) for at, width in _runs(code, cells.width))
            return [palette.half_block(above, below, width, dark) for above, below, width in pairs]
        ground = self.look.base.bgcolor
        singles = ((palette.half_block(level, level, width, dark)) for level, width in _runs(upper, cells.width))
        return [Segment(text, Style(color=style.color, bgcolor=ground)) for text, style, _ in singles if style]

    def _shades(self, cells: Cells, row: int, marks: NDArray[np.bool_] | None) -> Segment:
        shades = [palette.glyph(level) * cells.width for level in self._levels[row].tolist()]
        for column in () if marks is None else np.flatnonzero(marks).tolist():
            shades[column] = "[" + shades[column][1:-1] + "]"
        return Segment("".join(shades), self.look.base)

    def _header(self, cells: Cells) -> Strip:
        n_expert = self._ratio.shape[1]
        names = [f"#{e + 1}" if self._ranked else str(e) for e in range(n_expert)]
        digits = len(names[-1])
        if cells.per_column == 1 and cells.width > digits:
            text = "".join(name.center(cells.width) for name in names)
            return Strip([Segment(" " * cells.gutter + text, self.look.dim)])
        step = 4 * cells.per_column
        while step // cells.per_column * cells.width < digits + 2:
            step *= 2
        text = ""
        for expert in range(0, n_expert, step):
            at = expert // cells.per_column * cells.width
            if cells.gutter + at + len(names[expert]) <= self._width:
                text = text.ljust(at) + names[expert]
        return Strip([Segment(" " * cells.gutter + text, self.look.dim)])

    def _with_cursor(self, cells: Cells, header: Strip) -> Strip:
        """The header with an arrow above the cursor's column."""
        if self._cursor is None or self._cursor[1] >= cells.columns:
            return header
        at = cells.gutter + self._cursor[1] * cells.width
        arrow = Strip([Segment("▾", self.look.base)], 1)
        return Strip.join([header.crop(0, at), arrow, header.crop(at + 1, self._width)])

    def action_point(self, down: int, right: int) -> None:
        """Move the cursor, which begins at the first cell."""
        cells = self._cells
        if cells is None:
            return
        row, column = self._cursor or (-down, -right)
        row, column = min(max(row + down, 0), cells.rows - 1), min(max(column + right, 0), cells.columns - 1)
        self._cursor = row, column
        self.post_message(self.Pointed(*self._shown(row * cells.per_row, column * cells.per_column)))
        self.refresh()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:  # noqa: ARG002
        return self._opens or action != "open"

    def action_open(self) -> None:
        """Choose the cell under the cursor."""
        cells = self._cells
        if cells is not None and self._cursor is not None:
            row, column = self._cursor
            self.post_message(self.Opened(*self._shown(row * cells.per_row, column * cells.per_column)))

    def on_click(self, event: events.Click) -> None:
        at = self.cell_at(event.x, event.y)
        if at is not None:
            self.post_message(self.Opened(*self._shown(*at)))

    def _shown(self, layer: int, expert: int) -> tuple[int, int]:
        """Which of the layers and experts behind a cell, from these on, has given it its colour."""
        cells = self._cells
        assert cells is not None
        behind = self._ratio[layer : layer + cells.per_row, expert : expert + cells.per_column]
        down, right = divmod(int(weight(behind, changed=bool(self._versus)).argmax()), behind.shape[1])
        return layer + down, expert + right

    def on_blur(self) -> None:
        self._cursor = None
        self.post_message(self.Pointed(None, None))
        self.refresh()

    def _legend(self) -> Strip:
        """From an expert that is hardly used to the busiest, with even load in the middle."""
        middle = self._versus or "even"
        indent = " " * (self._cells.gutter if self._cells else 0)
        if self.look.shaded:
            texts = (f"· never ░ less ▒ {middle} ▓ █ more", f"· never ░▒ {middle} ▓█", "·░▒▓█ more")
            text = next((text for text in texts if len(indent) + len(text) <= self._width), "")
            return Strip([Segment(indent + text, self.look.dim)])
        low, high = f"1/{2**self._span:.2g} ", f" {2**self._span:.2g}× {middle}"
        steps = self.scale(1)
        if len(indent + low) + len(steps) + len(high) > self._width:
            steps = self.scale(2)
        return Strip([Segment(indent + low, self.look.dim), *steps, Segment(high, self.look.dim)])

    def scale(self, step: int) -> list[Segment]:
        """The scale of loads from left to right, every `step`-th level."""
        if self.look.shaded:
            return [Segment("░▒▓█", self.look.dim)]
        dark = self.look.dark
        return [palette.half_block(at, at, 1, dark) for at in range(palette.LOWEST, palette.UNKNOWN, step)]

    def _note(self, cells: Cells) -> Strip:
        parts = [f"{n} {name}" for n, name in ((cells.per_row, "layers"), (cells.per_column, "experts")) if n > 1]
        which = "most changed" if self._versus else "busiest"
        text = f"{which} of {' × '.join(parts)}"
        if cells.gutter + len(text) > self._width:
            text = f"{which} of {cells.per_row}×{cells.per_column}"
        return Strip([Segment(" " * cells.gutter + text, self.look.dim)])

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
        self.post_message(self.Pointed(*((None, None) if at is None else self._shown(*at))))

    def on_leave(self) -> None:
        self.post_message(self.Pointed(None, None))


def _runs(row: NDArray[np.integer[Any]], cell: int, apart: NDArray[np.bool_] | None = None) -> list[tuple[int, int]]:
    """Values of a row of cells and the columns they take; equal neighbours together, unless they stand `apart`."""
    alone = [False] * row.size if apart is None else apart.tolist()
    runs: list[tuple[int, int]] = []
    last, closed, width = -1, False, 0
    for value, lone in zip(row.tolist(), alone, strict=True):
        if value == last and not (lone or closed):
            width += cell
        else:
            if width:
                runs.append((last, width))
            last, width = value, cell
        closed = lone
    return [*runs, (last, width)]


def _same(one: NDArray[np.bool_] | None, other: NDArray[np.bool_] | None) -> bool:
    return one is other if one is None or other is None else np.array_equal(one, other)
