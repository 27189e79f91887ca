"""Blocks of Markdown that grow in place: the last one of a reply changes many times a second while it is written.

Textual lays the screen out again for every change of a block and makes a list anew for every token in it. Here a block
asks for a layout only where it gets another height or width, and a list keeps its items.
"""

from __future__ import annotations

from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.css.query import NoMatches
from textual.widget import Widget
from textual.widgets import Label, Static
from textual.widgets._markdown import (
    MarkdownBullet,
    MarkdownBulletList,
    MarkdownFence,
    MarkdownListItem,
    MarkdownOrderedList,
    MarkdownParagraph,
)
from textual.widgets.markdown import MarkdownBlock

ROOM = 1 / 5
"""Part of the screen's lines that a growing block is given in advance: a layout, and drawing all that scrolls after it,
cost as much as eight updates without."""


class Growing:
    """Lets one block at a time have room for lines that will come, and shows text in it."""

    def __init__(self) -> None:
        self._roomy: Static | None = None

    def show(self, block: Static, content: Content) -> None:
        """Show a text that grew, with a layout of the screen only where it needs more room."""
        width, height = block.content_size
        if not width:  # not on the screen yet
            block.update(content)
            return
        lines = content.get_height(block.styles, width)  # type: ignore[arg-type] # as Widget does
        room = round(ROOM * block.screen.size.height)
        if self._roomy is not block:
            self.settle()
        if lines <= height <= lines + room:
            block.update(content, layout=False)
        else:
            self._roomy = block
            block.styles.min_height = lines + room
            block.update(content)

    def settle_above(self, last: Widget) -> None:
        """Take the room away from a block that does not grow any more, since another one follows it."""
        if self._roomy is not None and self._roomy is not last and last not in self._roomy.ancestors:
            self.settle()

    def settle(self) -> None:
        """Give no block more room than it needs."""
        if self._roomy is not None:
            self._roomy.styles.min_height = None
            self._roomy = None


class LiveParagraph(MarkdownParagraph):
    """A paragraph whose text may grow."""

    def set_content(self, content: Content) -> None:
        self._content = content
        growing_of(self).show(self, content)


class LiveFence(MarkdownFence):
    """A code block that may grow; its lines do not wrap."""

    def set_content(self, content: Content) -> None:
        self._content = content
        try:
            label = self.query_one("#code-content", Label)
        except NoMatches:  # not mounted yet: it begins with what it has
            return
        if content.cell_length > 0 and max(line.cell_length for line in content.split("\n")) > label.content_size.width:
            label.update(content)
        else:
            growing_of(self).show(label, content)


class LiveBulletList(MarkdownBulletList):
    """A list whose last item may grow and which may get more."""

    async def _update_from_block(self, block: MarkdownBlock) -> None:
        if not await _grow(self, block):
            await super()._update_from_block(block)


class LiveOrderedList(MarkdownOrderedList):
    """The same with numbers."""

    async def _update_from_block(self, block: MarkdownBlock) -> None:
        if not await _grow(self, block):
            await super()._update_from_block(block)


LIVE: dict[str, type[MarkdownBlock]] = {
    "paragraph_open": LiveParagraph,
    "fence": LiveFence,
    "code_block": LiveFence,
    "bullet_list_open": LiveBulletList,
    "ordered_list_open": LiveOrderedList,
}
"""Blocks by the parser's names, for `Markdown.BLOCKS`."""


def growing_of(block: MarkdownBlock) -> Growing:
    """What the blocks of a Markdown widget share."""
    growing = getattr(block._markdown, "growing", None)
    assert isinstance(growing, Growing)
    return growing


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
    if len(items) > len(rows):
        growing_of(new).settle()
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
