"""Text that grows in place: it is given room for lines to come, and only changed lines are wrapped and drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

from textual.containers import ScrollableContainer
from textual.content import Content, Span
from textual.geometry import Region, Size
from textual.strip import Strip
from textual.visual import RenderOptions, Visual
from textual.widget import Widget, _RenderCache
from textual.widgets._markdown import (
    MarkdownH1,
    MarkdownH2,
    MarkdownH3,
    MarkdownH4,
    MarkdownH5,
    MarkdownH6,
    MarkdownParagraph,
)
from textual.widgets.markdown import MarkdownBlock

from ..drawing import OwnLines, mark

# Textual looks for a widget's CSS along its first bases: those that only change a method must not be widgets.
if TYPE_CHECKING:
    from textual.widget import Widget as _Widget
    from textual.widgets import Static as _Static
    from textual.widgets.markdown import MarkdownBlock as _Block
else:
    _Widget = _Static = _Block = object

ROOM = 1 / 5
"""Part of the view's lines that what grows is given in advance."""
LEAST = 3
"""Lines of room below which another block that is laid out is given more at once."""


class LaidOutOnce(_Widget):
    """Takes another size without asking for a second layout."""

    def _size_updated(self, size: Size, virtual_size: Size, container_size: Size, layout: bool = True) -> bool:  # noqa: ARG002
        return super()._size_updated(size, virtual_size, container_size, layout=False)


class Growing:
    """Which text grows, and how many lines it is given until it needs more."""

    def __init__(self) -> None:
        self.text: LiveText | None = None
        self.height = self.spare = 0

    def follow(self, text: LiveText | None, n_blocks: int = 0) -> None:
        """Another text grows, `n_blocks` blocks further down, in the room that was left; None: none does."""
        if text is self.text:
            return
        if self.text is not None:
            self.spare = self.height - self.text.lines
            self.text.refresh(layout=True)
        self.spare = max(0, self.spare - 2 * n_blocks)  # an empty line and a line of text each
        if text is not None and self.spare < LEAST and (view := _view(text)).max_scroll_y:
            self.spare = round(ROOM * view.region.height)
        self.text, self.height = text, self.spare
        if text is not None:
            text.refresh(layout=True)

    def height_of(self, text: LiveText, lines: int) -> int:
        """The lines that a text of so many is given."""
        return max(lines, self.height) if text is self.text else lines

    def make_room(self, text: LiveText, lines: int) -> None:
        """Give a text of so many lines more where it grows and needs them; not while the screen is laid out."""
        if text is self.text and lines > self.height:
            self.height = lines + _room_below(text, lines)


def _room_below(text: LiveText, lines: int) -> int:
    """Lines to give a text of so many in advance: on the first page no more than fit, so that it stays there."""
    view = _view(text)
    room, free = round(ROOM * view.region.height), view.region.bottom - text.region.y - lines
    return min(room, free) if free > 0 and not view.max_scroll_y else room


def _view(text: LiveText) -> Widget:
    return next((each for each in text.ancestors if isinstance(each, ScrollableContainer)), text.screen)


@runtime_checkable
class Grower(Protocol):
    """What holds texts that grow."""

    growing: Growing


class LiveText(LaidOutOnce, OwnLines, _Static):
    """Text of which only the lines that changed are drawn; a layout is asked for where they need more room."""

    picture: Visual = Content()
    auto_links = False  # there are none in it

    @property
    def growing(self) -> Growing:
        return next(each.growing for each in self.ancestors if isinstance(each, Grower))

    @property
    def lines(self) -> int:
        """The height of what is to be seen; 0 before it is laid out."""
        width = self.content_size.width
        return self.picture.get_height(self.styles, width) if width else 0  # type: ignore[arg-type] # as Widget does

    @property
    def options(self) -> RenderOptions:
        """How its lines are drawn where none is selected."""
        return RenderOptions(self._get_style, self.styles, None, None)  # type: ignore[arg-type] # as Widget does

    @property
    def plain(self) -> str:
        """The text that is shown."""
        raise NotImplementedError

    def render(self) -> Visual:
        return self.picture

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        return self.growing.height_of(self, super().get_content_height(container, viewport, width))

    def show(self, picture: Visual) -> None:
        """Show another text that begins alike."""
        self.picture = picture
        if not ((width := self.content_size.width) and self.is_attached):  # not laid out yet
            self.refresh(layout=True)
            return
        self.put(Visual.to_strips(self, picture, width, None, self.visual_style), 0)

    def extend(self, text: str) -> bool:  # noqa: ARG002
        """Show plain text after the last line's; False: nothing was done."""
        return False

    @property
    def drawn(self) -> list[Strip] | None:
        """The lines as they were drawn last; None where that cannot be gone on from."""
        at_width = self._render_cache.size.width == self.content_size.width > 0
        fresh = self.is_attached and at_width and not self._dirty_regions and self.text_selection is None
        return self._render_cache.lines if fresh else None

    def put(self, strips: list[Strip], same: int) -> None:
        """Draw these lines, of which the first `same` stand already."""
        size, growing = self.content_size, self.growing
        before = self._render_cache.lines
        growing.make_room(self, len(strips))
        if growing.height_of(self, len(strips)) != size.height:
            self.refresh(layout=True)
            return
        self._layout_cache.clear()
        self.clear_cached_dimensions()
        self._render_cache = _RenderCache(size, strips)
        end = max(len(before), len(strips))
        both = range(same, min(len(before), len(strips)))
        first = next((y for y in both if before[y] != strips[y]), both.stop)
        while len(before) == len(strips) and end > first and before[end - 1] == strips[end - 1]:
            end -= 1
        if first < min(end, size.height):
            mark(self, Region(0, first, size.width, min(end, size.height) - first))
        self._dirty_regions.clear()  # it is rendered already


class LiveWords(LiveText, _Block):
    """A paragraph or a heading, whose text may grow."""

    def set_content(self, content: Content) -> None:
        self._content = content
        self.show(content)

    async def _update_from_block(self, block: MarkdownBlock) -> None:
        if isinstance(block, type(self)):
            self.set_content(block._content)
        else:
            await super()._update_from_block(block)

    @property
    def plain(self) -> str:
        return self._content.plain

    def extend(self, text: str) -> bool:
        content, drawn = self._content, self.drawn
        usual = self.styles.content_align[0] == "left" and not set("\n\t") & set(content.plain)
        place = offset(drawn[-1]) if drawn and usual else None
        if drawn is None or place is None:
            self.set_content(grown(content, text))
            return True
        self._content = self.picture = grown(content, text)
        lines = tail(self._content, place[0])._wrap_and_format(self.content_size.width, get_style=self._get_style)
        for line in lines:
            line.x += place[0]
        self.put([*drawn[:-1], *(Strip(*line.to_strip(self.visual_style)) for line in lines)], len(drawn) - 1)
        return True


class LiveParagraph(LiveWords, MarkdownParagraph):
    """A paragraph."""


HEADINGS = {
    f"h{level}": type(f"Live{heading.__name__}", (LiveWords, heading), {})
    for level, heading in enumerate((MarkdownH1, MarkdownH2, MarkdownH3, MarkdownH4, MarkdownH5, MarkdownH6), 1)
}


def grown(content: Content, text: str) -> Content:
    """A content with plain text after it."""
    return Content(content.plain + text, spans=list(content.spans))


def tail(content: Content, start: int) -> Content:
    """What a content has from a character on."""
    spans = [Span(max(0, span.start - start), span.end - start, span.style) for span in content.spans]
    return Content(content.plain[start:], spans=[span for span in spans if span.end > 0])


def offset(strip: Strip) -> tuple[int, int] | None:
    """Which character of its line a drawn line begins with, and which line that is, as Textual selects text by."""
    for segment in strip:
        if segment.style is not None and "offset" in segment.style.meta:
            x, y = segment.style.meta["offset"]
            return x, y
    return None
