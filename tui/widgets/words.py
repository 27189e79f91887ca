"""A few words that change often, in a widget of one size."""

from __future__ import annotations

from textual.content import Content
from textual.strip import Strip
from textual.widgets import Static

from ..drawing import OwnLines, mark
from .line import Line, same_content


class Words(OwnLines, Static):
    """Lines whose words change and whose size does not; what has no room is not shown."""

    ALLOW_SELECT = False
    said = Content()

    def say(self, words: Content) -> None:
        """Show others, at the next drawing."""
        if not same_content(words, self.said):
            self.said = words
            mark(self)

    def render(self) -> Content:
        return self.said

    def render_line(self, y: int) -> Strip:
        width, style = self.size.width, self.visual_style
        for line in map(Line, self.render().split("\n", allow_blank=True)):
            n_row = len(line.rows(width))
            if y < n_row:
                return line.strip(y, width, 0, style, self._get_style, None)
            y -= n_row
        return Strip.blank(width, style.rich_style)
