"""A line of a reply before it wraps, and what is drawn of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeAlias

from rich._wrap import divide_line
from rich.segment import Segment
from textual.content import Content
from textual.strip import Strip
from textual.style import Style

CODE = "fence"
"""The kind of a line of code."""
MORE = "↳"
"""Stands left of the rows that a long line of code goes on in."""
GetStyle: TypeAlias = Callable[[str | Style], Style]
Row: TypeAlias = tuple[int, Content]
"""Where in the text a row begins, and its text with the space that it was wrapped at."""


class Line:
    """Text that hangs: it begins with `lead`; its other rows begin with `below`, which is as long.

    `kind` is a component class for its style, drawn to the right end. Code goes on below its own indentation.
    """

    def __init__(self, text: Content, lead: str = "", below: str = "", kind: str = "") -> None:
        self.text, self.lead, self.below, self.kind = text, lead, below, kind
        self._width, self._rows = 0, list[Row]()
        self._drawn: dict[int, tuple[Style, int, Strip]] = {}

    @property
    def plain(self) -> str:
        """The line as selected text is taken from it."""
        return self.lead + self.text.plain

    @property
    def hang(self) -> int:
        """Columns of space before the rows below the first, after what they begin with."""
        plain = self.text.plain
        return len(plain) - len(plain.lstrip()) if self.kind == CODE else 0

    def same(self, other: Line) -> bool:
        """Whether both look the same; contents are equal where only their words are."""
        parts, others = (self.lead, self.below, self.kind), (other.lead, other.below, other.kind)
        return self is other or (parts == others and same_content(self.text, other.text))

    def grown(self, text: str) -> Line:
        """This line with plain text after it: only its last row is wrapped anew."""
        line = Line(_grown(self.text, text), self.lead, self.below, self.kind)
        if self._rows:
            start, last = self._rows[-1]
            line._width = self._width
            line._rows = [*self._rows[:-1], *self._wrap(start, _grown(last, text), self._width)]
            line._drawn = {number: drawn for number, drawn in self._drawn.items() if number < len(self._rows) - 1}
        return line

    def rows(self, width: int) -> list[Row]:
        """The text in rows that fit into a width."""
        if width != self._width:
            self._width, self._rows, self._drawn = width, list(self._wrap(0, self.text, width)), {}
        return self._rows

    def _wrap(self, start: int, text: Content, width: int) -> Iterator[Row]:
        room, hang = width - len(self.lead) - 2 * (self.kind == CODE), self._indent(width)
        space = 0 if start else hang
        cuts = [space + cut for cut in divide_line(text.plain[space:], max(1, room - hang))]
        for part in text.divide(cuts):
            yield start, part
            start += len(part)

    def _indent(self, width: int) -> int:
        return self.hang if self.hang <= width // 2 else 0

    def strip(
        self,
        number: int,
        width: int,
        y: int,
        style: Style,
        get_style: GetStyle,
        selected: tuple[int, int, Style] | None,
    ) -> Strip:
        """One row as a terminal is sent it; `y` is the line's place, `selected` a part of `plain` with its style.

        What was drawn is kept for as long as `style` is the same object: a page that scrolls draws each row again.
        """
        rows = self.rows(width)  # forgets what was drawn at another width
        drawn = self._drawn.get(number)
        if selected is None and drawn is not None and drawn[0] is style and drawn[1] == y:
            return drawn[2]
        start, part = rows[number]
        lead = Content.styled("" if number else self.lead, ".bullet")
        x = len(self.lead) + start
        if selected is not None:
            lead = lead.stylize(selected[2], selected[0], max(0, selected[1]))
            part = part.stylize(selected[2], max(0, selected[0] - x), max(0, selected[1] - x))
        fill = style + get_style(f".{self.kind}") if self.kind else style
        before = self.below if number else ""
        segments = [Segment(before, (style + get_style(".bullet")).rich_style)] if before else []
        segments += _segments(lead, 0, y, style, get_style)
        if self.kind == CODE:
            mark = MORE + " " * self._indent(width) if number else " "
            segments.append(Segment(mark, (fill + get_style(".more")).rich_style))
        strip = Strip([*segments, *_segments(part.rstrip(), x, y, fill, get_style)])
        if self.kind:
            strip = strip.adjust_cell_length(width, fill.rich_style)
        if selected is None:
            self._drawn[number] = style, y, strip
        return strip


def _segments(text: Content, x: int, y: int, style: Style, get_style: GetStyle) -> Iterator[Segment]:
    for words, own in text.render(style, end="", parse_style=get_style) if text else ():
        yield Segment(words, (style + own).rich_style_with_offset(x, y))
        x += len(words)


def same_content(one: Content, other: Content) -> bool:
    """Whether two texts look the same."""
    return one is other or (one.plain == other.plain and one.spans == other.spans)


def _grown(content: Content, text: str) -> Content:
    return Content(content.plain + text, spans=list(content.spans))
