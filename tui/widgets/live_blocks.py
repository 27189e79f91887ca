"""Markdown that grows in place: the last block of a reply changes ten times a second while it is written.

Textual lays the screen out again for every change of a block, twice where it gets another height, and makes lists anew:
that takes ten times as long as drawing the lines that changed. Here what grows is given room for lines to come, a list
of paragraphs is one widget, other lists keep their items, and only the lines that changed are drawn.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from markdown_it.token import Token
from textual.app import ComposeResult
from textual.containers import Horizontal, ScrollableContainer, Vertical
from textual.content import Content
from textual.geometry import Region, Size
from textual.selection import Selection
from textual.visual import Visual
from textual.widget import Widget
from textual.widgets import Label, Markdown
from textual.widgets._markdown import (
    MarkdownBullet,
    MarkdownBulletList,
    MarkdownFence,
    MarkdownListItem,
    MarkdownOrderedList,
    MarkdownParagraph,
)
from textual.widgets.markdown import MarkdownBlock

from .flat_list import HangingLines, is_flat, list_lines

# Textual looks for a widget's CSS along its first bases: those that only change a method must not be widgets.
if TYPE_CHECKING:
    from textual.widget import Widget as _Widget
    from textual.widgets import Static as _Static
else:
    _Widget = _Static = object

ROOM = 1 / 5
"""Part of the view's lines that what grows is given in advance."""


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
    view = next((each for each in text.ancestors if isinstance(each, ScrollableContainer)), text.screen)
    room, free = round(ROOM * view.region.height), view.region.bottom - text.region.y - lines
    return min(room, free) if free > 0 and not view.max_scroll_y else room


class LiveText(LaidOutOnce, _Static):
    """Text of which only the lines that changed are drawn; a layout is asked for where they need more room."""

    picture: Visual = Content()
    auto_links = False  # there are none in it

    @property
    def growing(self) -> Growing:
        return self.query_ancestor(LiveMarkdown).growing

    @property
    def lines(self) -> int:
        """The height of what is to be seen; 0 before it is laid out."""
        width = self.content_size.width
        return self.picture.get_height(self.styles, width) if width else 0  # type: ignore[arg-type] # as Widget does

    def render(self) -> Visual:
        return self.picture

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        return self.growing.height_of(self, super().get_content_height(container, viewport, width))

    def show(self, picture: Visual) -> None:
        """Show another text that begins alike."""
        self.picture = picture
        width, height = self.content_size
        if not (width and self.is_attached):  # not laid out yet
            self.refresh(layout=True)
            return
        lines, growing = self.lines, self.growing
        growing.make_room(self, lines)
        if growing.height_of(self, lines) != height:
            self.refresh(layout=True)
            return
        before = self._render_cache.lines
        self._layout_cache.clear()
        self._render_content()
        changed = zip(before, self._render_cache.lines, strict=False)
        same = next((y for y, (old, new) in enumerate(changed) if old != new), len(before))
        self.refresh(Region(0, same, width, height - same))
        self._dirty_regions.clear()  # it is rendered already


class LiveParagraph(LiveText, MarkdownParagraph):
    """A paragraph whose text may grow."""

    def set_content(self, content: Content) -> None:
        self._content = content
        self.show(content)


class LiveCode(LiveText, Label):
    """The text of a block of code; its lines do not wrap."""

    def show(self, picture: Visual) -> None:
        if picture.get_optimal_width(self.styles, 0) > self.content_size.width:  # type: ignore[arg-type]
            self.picture = picture
            self.refresh(layout=True)
        else:
            super().show(picture)


class LiveFence(LaidOutOnce, MarkdownFence):
    """A block of code that may grow."""

    def compose(self) -> ComposeResult:
        code = LiveCode(id="code-content", expand=True)
        code.picture = self._highlighted_code
        yield code

    def set_content(self, content: Content) -> None:
        self._content = content
        for code in self.query_children(LiveCode):
            code.show(content)


class FlatList(LiveText, MarkdownBlock):
    """A list of paragraphs and of such lists."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {"bullet"}
    DEFAULT_CSS = """
    FlatList {
        margin: 0 0 1 0;

        & > .bullet {
            color: $text-primary;
        }

        &:light > .bullet {
            color: $text-secondary;
        }
    }
    """

    def __init__(self, markdown: Markdown, tokens: Sequence[Token]) -> None:
        super().__init__(markdown, tokens[0])
        self.picture = HangingLines(list_lines(tokens, self._token_to_content))

    async def _update_from_block(self, block: MarkdownBlock) -> None:
        if isinstance(block, FlatList):
            self.show(block.picture)
        else:
            await super()._update_from_block(block)

    def get_selection(self, selection: Selection) -> tuple[str, str] | None:
        assert isinstance(self.picture, HangingLines)
        return selection.extract(self.picture.plain), "\n"


class LiveBulletList(MarkdownBulletList):
    """A list of more than paragraphs, whose last item may grow and which may get more."""

    async def _update_from_block(self, block: MarkdownBlock) -> None:
        if not await _grow(self, block):
            await super()._update_from_block(block)


class LiveOrderedList(MarkdownOrderedList):
    """The same with numbers."""

    async def _update_from_block(self, block: MarkdownBlock) -> None:
        if not await _grow(self, block):
            await super()._update_from_block(block)


class LiveMarkdown(LaidOutOnce, Markdown):
    """Markdown that can grow."""

    BLOCKS = {  # noqa: RUF012 - the base declares it so
        **Markdown.BLOCKS,
        "paragraph_open": LiveParagraph,
        "fence": LiveFence,
        "code_block": LiveFence,
        "bullet_list_open": LiveBulletList,
        "ordered_list_open": LiveOrderedList,
    }

    def __init__(self, markdown: str | None = None, **keywords: Any) -> None:
        super().__init__(markdown, **keywords)
        self.growing = Growing()
        self._least = Size(0, 0)
        self._width = 0

    async def grow(self, text: str) -> None:
        """Append; await it before the next piece."""
        before = len(self.children)
        with self.app.batch_update():
            await self.append(text)
            self.growing.follow(self._last_text(), len(self.children) - before)
        self.screen.check_idle()  # else what it was told of within the batch waits for something else to be drawn

    def settle(self) -> None:
        """Take no more room than is needed. Until then nothing moves."""
        self._least = Size(0, 0)
        self.growing.follow(None)
        self.refresh(layout=True)

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        if width != self._width:  # what grows was given room for lines of another length
            self._width, self.growing.height, self.growing.spare = width, 0, 0
        height = super().get_content_height(container, viewport, width)
        if self.growing.text is not None:
            least = self._least.height if self._least.width == width else 0
            self._least = Size(width, max(least, height))
        return max(height, self._least.height)

    def _last_text(self) -> LiveText | None:
        widget: Widget = self
        while widget.children:
            widget = widget.children[-1]
        return widget if isinstance(widget, LiveText) else None

    def _parse_markdown(self, tokens: Iterable[Token]) -> Iterator[MarkdownBlock]:
        for block in _top_level(tokens):
            if is_flat(block):
                yield FlatList(self, block)
            else:
                yield from super()._parse_markdown(block)


def _top_level(tokens: Iterable[Token]) -> Iterator[list[Token]]:
    """The tokens of each block that is in no other one."""
    block: list[Token] = []
    for token in tokens:
        block.append(token)
        if token.level == 0 and token.nesting <= 0:
            yield block
            block = []


async def _grow(old: Widget, new: MarkdownBlock) -> bool:
    """Let a block that is shown become one that is not but begins alike; False: nothing was done, it cannot."""
    if type(old) is not type(new):
        return False
    if isinstance(old, (LiveBulletList, LiveOrderedList)):
        return await _grow_list(old, new)
    if isinstance(old, (LiveParagraph, LiveFence)):
        await old._update_from_block(new)
        return True
    return False


async def _grow_list(old: LiveBulletList | LiveOrderedList, new: MarkdownBlock) -> bool:
    items = [item for item in new._blocks if isinstance(item, MarkdownListItem)]
    rows = list(old.query_children(Horizontal))
    symbols = _symbols(items)
    shown = [row.query_children(MarkdownBullet).first().symbol for row in rows]
    if not rows or symbols[: len(rows)] != shown:  # more digits than before: all move
        return False
    place = rows[-1].query_children(Vertical).first()
    parts, wanted = list(place.children), list(items[len(rows) - 1]._blocks)
    if parts and len(parts) <= len(wanted) and await _grow(parts[-1], wanted[len(parts) - 1]):
        await place.mount_all(wanted[len(parts) :])
    else:
        await place.remove_children()
        await place.mount_all(wanted)
    for item, symbol in zip(items[len(rows) :], symbols[len(rows) :], strict=True):
        bullet = MarkdownBullet()
        bullet.symbol = symbol
        await old.mount(Horizontal(bullet, Vertical(*item._blocks)))
    return True


def _symbols(items: list[MarkdownListItem]) -> list[str]:
    """What stands before each item, as Textual's lists have it."""
    first = items[0].bullet if items else ""
    if not first.isdigit():
        return [item.bullet for item in items]
    texts = [f"{number}. " for number in range(int(first), int(first) + len(items))]
    longest = max(len(text) for text in texts)
    return [text.rjust(longest + 1) for text in texts]
