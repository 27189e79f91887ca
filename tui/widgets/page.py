"""Blocks of a reply drawn by one widget, line by line; what grows is given room, so that few layouts are needed."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate, takewhile
from typing import TYPE_CHECKING, Any, ClassVar

from markdown_it.token import Token
from textual.containers import ScrollableContainer
from textual.content import Content
from textual.geometry import Region, Size
from textual.selection import Selection
from textual.strip import Strip
from textual.style import Style
from textual.widget import Widget
from textual.widgets import Markdown
from textual.widgets.markdown import MarkdownBlock

from ..drawing import OwnLines, mark
from .line import CODE, Line, same_content
from .live_code import Painter, highlight
from .token_lines import lines_of

# Textual looks for a widget's CSS along its first bases: those that only change a method must not be widgets.
if TYPE_CHECKING:
    from textual.widget import Widget as _Widget
else:
    _Widget = object

ROOM = 1 / 3
"""Part of the view's lines that what grows is given in advance."""


class LaidOutOnce(_Widget):
    """Takes another size without asking for a second layout."""

    def _size_updated(self, size: Size, virtual_size: Size, container_size: Size, layout: bool = True) -> bool:  # noqa: ARG002
        return super()._size_updated(size, virtual_size, container_size, layout=False)


class Lines(LaidOutOnce, OwnLines):
    """Text that is wrapped once, and drawn where it is seen."""

    auto_links = False  # there are none in it
    growing = False
    _room = _width = 0

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.lines: list[Line] = []
        self._tops = [0]

    def get_selection(self, selection: Selection) -> tuple[str, str] | None:
        return selection.extract("\n".join(line.plain for line in self.lines)), "\n"

    def show(self, lines: list[Line], first: int) -> None:
        """Show other lines, which are the same as those before up to one: draw the rows that changed."""
        before, rows_before = self.lines, self._tops[-1]
        while first < min(len(lines), len(before)) and lines[first].same(before[first]):
            lines[first] = before[first]
            first += 1
        self.lines, width = lines, self.content_size.width
        if not (width and width == self._width and self.is_attached):  # not laid out yet
            self._width = 0
            self.refresh(layout=True)
            return
        top = self._tops[first]
        if first < min(len(lines), len(before)):
            pairs = zip(before[first].rows(width), lines[first].rows(width), strict=False)
            styled = [same_content(old[1], new[1]) for old, new in pairs]
            top += (*styled, False).index(False)
        self._measure(first)
        rows = self._tops[-1]
        if self.growing and rows > self._room:
            self._room = rows + self._room_below(rows)
        if self._height(rows) != self.content_size.height:
            self.refresh(layout=True)
        elif (end := max(rows, rows_before)) > top:
            mark(self, Region(0, top, width, end - top))
            self._dirty_regions.clear()  # nothing of it is kept

    def settle(self) -> None:
        """Take no more room than is needed."""
        self.growing, self._room = False, 0
        self.refresh(layout=True)

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:  # noqa: ARG002
        if width != self._width:
            self._width, self._room = width, 0
            self._measure(0)
        return self._height(self._tops[-1])

    def render_line(self, y: int) -> Strip:
        width, style = self.content_size.width, self.visual_style
        if width != self._width:
            self._width = width
            self._measure(0)
        if not 0 <= y < self._tops[-1]:
            return Strip.blank(width, style.rich_style)
        at = bisect_right(self._tops, y) - 1
        line, selected = self.lines[at], None
        if (selection := self.text_selection) is not None and (span := selection.get_span(at)) is not None:
            end = len(line.plain) if span[1] == -1 else span[1]
            selected = (span[0], end, Style.from_styles(self.screen.get_component_styles("screen--selection")))
        return line.strip(y - self._tops[at], width, at, style, self._get_style, selected)

    def _measure(self, first: int) -> None:
        """Find out where the lines from one on begin and end."""
        counts = (len(line.rows(self._width)) for line in self.lines[first:])
        self._tops[first:] = accumulate(counts, initial=self._tops[first] if first else 0)

    def _height(self, rows: int) -> int:
        return max(rows, self._room)

    def _room_below(self, rows: int) -> int:
        """Rows to give so many in advance: on the first page no more than fit, so that it stays there."""
        view: Widget = next((each for each in self.ancestors if isinstance(each, ScrollableContainer)), self.screen)
        around = [self, *takewhile(lambda each: each is not view, self.ancestors)]
        below = sum(each.styles.margin.bottom + each.styles.gutter.bottom for each in around)
        room, free = round(ROOM * view.region.height), view.region.bottom - self.region.y - rows - below
        return min(room, max(0, free)) if free >= 0 and not view.max_scroll_y else room


class Page(Lines, MarkdownBlock):
    """Paragraphs, headings, lists, quotes and code: all but tables and rules, with an empty line between two blocks."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {"bullet", "more", "quote", CODE, *(f"h{level}" for level in range(1, 7))}
    DEFAULT_CSS = """
    Page {
        margin: 0 0 1 0;

        & > .bullet { color: $text-primary; }
        &:light > .bullet { color: $text-secondary; }
        & > .more { color: $foreground-muted; }
        & > .quote { background: $boost; }
        & > .fence { color: $foreground; background: $foreground 4%; }
        &:ansi > .fence { background: transparent; }
        & > .h1 { color: $markdown-h1-color; background: $markdown-h1-background; text-style: bold; }
        & > .h2 { color: $markdown-h2-color; background: $markdown-h2-background; text-style: bold; }
        & > .h3 {
            color: $markdown-h3-color; background: $markdown-h3-background; text-style: $markdown-h3-text-style;
        }
        & > .h4 {
            color: $markdown-h4-color; background: $markdown-h4-background; text-style: $markdown-h4-text-style;
        }
        & > .h5 {
            color: $markdown-h5-color; background: $markdown-h5-background; text-style: $markdown-h5-text-style;
        }
        & > .h6 {
            color: $markdown-h6-color; background: $markdown-h6-background; text-style: $markdown-h6-text-style;
        }
    }
    """

    def __init__(self, markdown: Markdown, token: Token) -> None:
        super().__init__(markdown, token)
        self.last = 0
        """Where the last block begins, with the empty line before it."""
        self.painter: Painter | None = None

    def add(self, tokens: Sequence[Token]) -> None:
        """Another block below."""
        self.last = len(self.lines)
        if self.lines:
            self.lines.append(Line(Content()))
        self.lines += lines_of(tokens, self._token_to_content, highlight)

    async def _update_from_block(self, block: MarkdownBlock) -> None:
        """Take other blocks in place of the last."""
        kept = self.lines[: self.last]
        self.painter = None
        if isinstance(block, Page):
            gap = [Line(Content())] if kept and block.lines else []
            first, self.last = self.last, self.last + (len(gap) + block.last if block.last else 0)
            self.show([*kept, *gap, *block.lines], first)
        elif kept:
            self.show(kept, self.last)
            await self._markdown.mount(block, after=self)
        else:
            await super()._update_from_block(block)

    def extend(self, text: str) -> None:
        """Show plain text after the last line's."""
        self.show([*self.lines[:-1], self.lines[-1].grown(text)], len(self.lines) - 1)

    def extend_code(self, language: str, text: str, source: str) -> None:
        """Show more of the code that is the last block, so that all of it is `source`."""
        if self.painter is None:
            self.painter = Painter(language, source[: len(source) - len(text)])
        same = len(self.painter.lines) - 1
        self.painter.add(text)
        code = list(self.painter.lines)
        while len(code) > 1 and not code[-1].plain.strip():
            del code[-1]
        first = self.last + bool(self.last)
        same = min(same, len(code) - 1, len(self.lines) - first)
        self.show([*self.lines[: first + same], *(Line(line, kind=CODE) for line in code[same:])], first + same)
