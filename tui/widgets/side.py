"""What stands beside the chat: the experts, and every layer's figures beside or below them where there is room."""

from __future__ import annotations

from textual.app import ComposeResult
from textual.containers import Container, VerticalScroll

from .expert_pane import ExpertPane
from .layer_figures import LayerFigures

WIDTH = 69
"""Columns of either, without its border, in a window that has room for both."""

AROUND = 5
"""Lines above and below the chat, with one of input."""
NARROW, WIDE, RICH = 60, 140, 190
"""Columns of a window from which on there is room for the experts, for both in a column, and in two."""


class Side(Container):
    """From a wide window on the figures get the lines that the experts leave; in a rich one, else, a column."""

    def compose(self) -> ComposeResult:
        yield ExpertPane(id="experts")
        with VerticalScroll(id="figures", can_focus=False):
            yield LayerFigures()

    def share(self) -> None:
        """Stand the figures below the experts, all or only those about memory, or beside them.

        By the window's size, not by what more than one line of input leaves: that would move them while one types.
        """
        pane, figures = self.query_one(ExpertPane), self.query_one(LayerFigures)
        width, height = self.app.size
        free = height - AROUND - pane.least(WIDTH) - 1
        figures.brief = False
        figures.brief = width < RICH and figures.lines > free
        below = width >= WIDE and 0 < figures.lines <= free
        self.set_class(below, "-below")
        self.query_one("#figures").styles.height = figures.lines + 1 if below else "1fr"
        figures.follow()
