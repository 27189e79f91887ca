"""A text in which every token has the colour of the expert it went to, wrapped by hand so that places are known."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from rich.cells import cell_len, chop_cells
from rich.segment import Segment
from rich.style import Style
from rich.text import Text
from textual import events
from textual.app import App
from textual.message import Message
from textual.strip import Strip
from textual.widget import Widget

from .palette import few_colours

_SUBSCRIPTS = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")
PART = "·"
"""Stands for a token that is a part of a character: the character stands at its last one."""
WHEEL = 3
"""Rows a turn of the mouse's wheel goes."""
_GOLDEN = 0.6180339887  # of the circle of hues between one expert and the next: neighbours differ most


@cache
def expert_style(expert: int, dark: bool) -> Style:
    """The colours of an expert's tokens; -1 is none."""
    if expert < 0:
        return Style()
    red, green, blue = colorsys.hls_to_rgb(expert * _GOLDEN % 1.0, 0.28 if dark else 0.82, 0.55)
    ground = f"#{int(red * 255):02x}{int(green * 255):02x}{int(blue * 255):02x}"
    return Style(color="#ffffff" if dark else "#000000", bgcolor=ground)


def expert_name(expert: int, app: App[Any]) -> Text:
    """An expert's number as its tokens show it: in their colours, or where there are none as the number they carry."""
    if few_colours(app):
        return Text(str(expert).translate(_SUBSCRIPTS) if expert >= 0 else "none")
    name = f" {expert} " if expert >= 0 else "none"
    return Text(name, style=expert_style(expert, app.current_theme.dark))


def numbered_piece(piece: str, expert: int) -> str:
    """A token with its expert's number, which stays on its line where it ends in newlines."""
    text = piece.rstrip("\n")
    return f"{text}{str(expert).translate(_SUBSCRIPTS)}{piece[len(text) :]}"


def wrap(pieces: Sequence[str], width: int) -> list[list[tuple[int, str]]]:
    """Rows of (token, text) at most `width` columns wide; a newline ends its row, and every token has a place."""
    rows: list[list[tuple[int, str]]] = [[]]
    used = 0
    for token, piece in enumerate(pieces):
        parts = piece.split("\n") if piece else [PART]
        for number, part in enumerate(parts):
            text = part + ("⏎" if number < len(parts) - 1 else "")
            for chunk in chop_cells(text, width) if text else ():
                if used + cell_len(chunk) > width:
                    rows.append([])
                    used = 0
                rows[-1].append((token, chunk))
                used += cell_len(chunk)
            if number < len(parts) - 1:
                rows.append([])
                used = 0
    return rows


class TokenText(Widget, can_focus=True):
    """Tokens in their experts' colours with one selected; the row of that one is always in sight."""

    DEFAULT_CSS = "TokenText { height: 1fr; width: 1fr; }"
    ALLOW_SELECT = False

    @dataclass
    class Chosen(Message):
        """A token was clicked."""

        token: int

    def __init__(self, pieces: Sequence[str], *, id: str | None = None) -> None:
        """`pieces` must be harmless already."""
        super().__init__(id=id)
        self._pieces = pieces
        self._experts: Sequence[int] = ()
        self._selected = 0
        self._rows: list[list[tuple[int, str]]] = []
        self._top = 0

    def show(self, experts: Sequence[int], selected: int) -> None:
        """Colour each token by its expert, and select one."""
        again = few_colours(self.app) and experts != self._experts
        self._experts, self._selected = experts, selected
        if again:
            self._wrap()
        self._keep_in_sight()
        self.refresh()

    def take(self, pieces: Sequence[str]) -> None:
        """Other tokens, harmless already; `show` must follow."""
        self._pieces, self._experts = pieces, ()
        self._wrap()

    def on_resize(self, _: events.Resize) -> None:
        self._wrap()
        self._keep_in_sight()
        self.refresh()  # Textual may have drawn the new size with the old rows already

    def _wrap(self) -> None:
        numbered = self._pieces
        if few_colours(self.app):  # numbers in place of colours
            numbered = [
                numbered_piece(piece, expert) if expert >= 0 else piece
                for piece, expert in zip(self._pieces, self._experts, strict=False)
            ]
        self._rows = wrap(numbered, max(1, self.size.width))

    def _row_of(self, token: int) -> int:
        return next((n for n, row in enumerate(self._rows) if any(t == token for t, _ in row)), 0)

    def token_away(self, pages: int) -> int:
        """The first token of the row that is as many screens below the selected one's."""
        row = self._row_of(self._selected) + pages * max(1, self.size.height - 1)
        near = self._rows[min(max(row, 0), len(self._rows) - 1)]
        return near[0][0] if near else len(self._pieces) - 1

    def _keep_in_sight(self) -> None:
        row = self._row_of(self._selected)
        height = max(1, self.size.height)
        self._top = min(max(self._top, row - height + 1), row, max(0, len(self._rows) - height))

    def render_line(self, y: int) -> Strip:
        base, dark, coloured = self.rich_style, self.app.current_theme.dark, not few_colours(self.app)
        row = self._rows[self._top + y] if self._top + y < len(self._rows) else []
        segments = []
        for token, text in row:
            style = base + expert_style(self._experts[token], dark) if coloured else base
            segments.append(Segment(text, style + Style(reverse=True, bold=True) if token == self._selected else style))
        return Strip(segments).adjust_cell_length(self.size.width, base)

    def on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        self._scroll(event, WHEEL)

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        self._scroll(event, -WHEEL)

    def _scroll(self, event: events.MouseEvent, by: int) -> None:
        """Show other rows; the selection stays where it is."""
        event.stop()
        self._top = min(max(self._top + by, 0), max(0, len(self._rows) - self.size.height))
        self.refresh()

    def on_click(self, event: events.Click) -> None:
        at, row = 0, self._top + event.y
        for token, text in self._rows[row] if row < len(self._rows) else []:
            at += cell_len(text)
            if event.x < at:
                self.post_message(self.Chosen(token))
                return
