"""The newest token's path: which experts each layer sent it to."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.geometry import Size
from textual.strip import Strip
from textual.widget import Widget

from ..drawing import OwnLines, mark
from .palette import muted

_BARS = "▁▂▃▄▅▆▇█"
GAP, GROUP, ARROW = 2, 5, "→ "


@dataclass(frozen=True)
class PathLayout:
    """How a path is written: `form` is "weights", "bars" or "first"; `shown` experts a layer, `columns` of entries."""

    form: str
    shown: int
    entry: int
    columns: int

    def rows(self, n_layer: int) -> int:
        return -(-n_layer // max(1, self.columns))


def _forms(n_layer: int, n_used: int, n_expert: int) -> list[tuple[str, int, int]]:
    """Form, experts shown and columns of an entry, the fullest first."""
    layer, expert = len(str(max(n_layer - 1, 0))), len(str(max(n_expert - 1, 0)))
    forms = [("weights", n_used, layer + n_used * (expert + 5))]
    return forms + [("bars", shown, layer + shown * (expert + 2)) for shown in range(n_used, 0, -1)]


def path_width(n_layer: int, n_used: int, n_expert: int) -> int:
    """Columns of one layer's entry with its weights as numbers."""
    return _forms(n_layer, n_used, n_expert)[0][2]


def path_rows(n_layer: int, n_used: int, n_expert: int, width: int) -> tuple[int, int]:
    """The lines that a path takes with weights as numbers, and with all its experts' weights as bars."""
    rows = []
    for _, _, entry in _forms(n_layer, n_used, n_expert)[:2]:
        columns = (width + GAP) // (entry + GAP)
        rows.append(-(-n_layer // columns) if columns else n_layer + 1)
    return rows[0], rows[-1]


@lru_cache(16)
def path_layout(n_layer: int, n_used: int, n_expert: int, width: int, height: int) -> PathLayout:
    """The fullest form that fits: weights as numbers, weights as bars, fewer experts, or each layer's first alone."""
    for form, shown, entry in _forms(n_layer, n_used, n_expert):
        columns = (width + GAP) // (entry + GAP)
        if columns and -(-n_layer // columns) <= height:
            return PathLayout(form, shown, entry, -(-n_layer // max(1, min(height, n_layer))))
    expert = len(str(max(n_expert - 1, 0)))
    if expert > 1:
        return PathLayout("first", 1, expert + 1, max(1, (width - len(ARROW)) // (expert + 1)))
    groups = (width + 1 - len(ARROW)) // (GROUP + 1)
    return PathLayout("first", 1, 1, max(1, groups * GROUP))


class TokenPath(OwnLines, Widget):
    """The experts that one token went through, column by column of layers, the heavier ones brighter."""

    DEFAULT_CSS = "TokenPath { height: 1fr; width: 1fr; }"
    ALLOW_SELECT = False

    def __init__(self, *, headed: bool = False, id: str | None = None) -> None:
        """With `headed` the first line names the token and each layer has a line of its own below it."""
        super().__init__(id=id)
        self._headed = headed
        self._ink: tuple[Style, Style, Style] | None = None
        self._room = Size(0, 0)
        self._layout: PathLayout | None = None
        self._name_of_token = ""
        self._experts: NDArray[np.int32] = np.zeros((0, 0), np.int32)
        self._weights: NDArray[np.float32] = np.zeros((0, 0), np.float32)
        self._n_expert = 0

    def show(self, experts: NDArray[np.int32], weights: NDArray[np.float32], n_expert: int, token: str) -> None:
        """Show one token's choices, experts and weights (L, K) in any order, and its harmless text."""
        self._name_of_token = token
        order = np.argsort(-weights, axis=1, kind="stable")
        self._experts = np.take_along_axis(experts, order, 1)
        self._weights = np.take_along_axis(weights, order, 1)
        self._n_expert = n_expert
        self._fit()
        mark(self)

    def notify_style_update(self) -> None:
        super().notify_style_update()
        self._ink = None

    @property
    def ink(self) -> tuple[Style, Style, Style]:
        """Plain, dim and bold text, read from the style sheet once."""
        if self._ink is None:
            plain = self.rich_style
            self._ink = plain, plain + muted(self.app), plain + Style(bold=True)
        return self._ink

    def on_resize(self, _: events.Resize) -> None:
        self._fit()
        self.refresh()

    def _fit(self) -> None:
        """Choose how to write what there is, before its lines are drawn: to ask Textual for the size takes long."""
        self._room = self.size
        n_layer, n_used = self._experts.shape
        height = self._room.height - self._headed
        self._layout = path_layout(n_layer, n_used, self._n_expert, self._room.width, height) if n_used else None

    def render_line(self, y: int) -> Strip:
        width, layout = self._room.width, self._layout
        if layout is None:
            return Strip.blank(width, self.ink[0])
        if self._headed and y == 0:
            strip = Strip([Segment(self._name_of_token, self.ink[0])])
            return strip.adjust_cell_length(width, self.ink[0])
        y -= self._headed
        segments = self._firsts(layout, y) if layout.form == "first" else self._entries(layout, y)
        return Strip(segments).adjust_cell_length(width, self.ink[0])

    def _firsts(self, layout: PathLayout, y: int) -> list[Segment]:
        """Each layer's first expert; single digits in groups of five layers."""
        start = y * layout.columns
        firsts = [str(e) for e in self._experts[start : start + layout.columns, 0].tolist()]
        if layout.entry == 1:
            text = " ".join("".join(firsts[at : at + GROUP]) for at in range(0, len(firsts), GROUP))
        else:
            text = "".join(e.rjust(layout.entry - 1) + " " for e in firsts)
        text = (ARROW if y == 0 else " " * len(ARROW)) + text
        if y == self._room.height - 1 and start + layout.columns < self._experts.shape[0]:
            text = text.ljust(self._room.width)[: self._room.width - 1] + "…"
        return [Segment(text, self.ink[0])]

    def _entries(self, layout: PathLayout, y: int) -> list[Segment]:
        n_layer, n_used = self._experts.shape
        rows, digits = layout.rows(n_layer), len(str(n_layer - 1))
        wide = len(str(max(self._n_expert - 1, 0)))
        plain, dim, bold = self.ink
        out: list[Segment] = []
        for layer in range(y, n_layer, rows) if y < rows else ():
            out.append(Segment(str(layer).rjust(digits), dim))
            for expert, weight in zip(
                self._experts[layer, : layout.shown].tolist(), self._weights[layer].tolist(), strict=False
            ):
                if expert < 0:  # the slot was not used
                    out.append(Segment(" " * (1 + wide + len(_weight(weight, layout.form))), dim))
                    continue
                out.append(Segment(" " + str(expert).rjust(wide), bold if weight * n_used >= 1 else plain))
                out.append(Segment(_weight(weight, layout.form), dim))
            out.append(Segment(" " * GAP, plain))
        return out


def _weight(weight: float, form: str) -> str:
    """A gate weight as .62, or as a bar of one character."""
    if form == "bars":
        return _BARS[min(7, max(0, int(weight * 8)))]
    return " " + part(weight)


def part(weight: float) -> str:
    """A part of one in three characters: .62, or 1.0."""
    return f"{weight:.2f}"[1:] if weight < 0.995 else "1.0"
