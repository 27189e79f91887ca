"""Markdown that grows in place: the last block of a reply changes ten times a second while it is written.

Textual lays the screen out again for every change of a block, twice where it gets another height, and makes lists anew:
that takes ten times as long as drawing the lines that changed. Here what grows is given room for lines to come, a list
of paragraphs is one widget, other lists keep their items, and only the lines that changed are drawn.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import takewhile
from typing import Any, ClassVar

from markdown_it.token import Token
from textual.containers import Horizontal, Vertical
from textual.geometry import Size
from textual.selection import Selection
from textual.visual import Visual
from textual.widget import Widget
from textual.widgets import Markdown
from textual.widgets._markdown import MarkdownBullet, MarkdownBulletList, MarkdownListItem, MarkdownOrderedList
from textual.widgets.markdown import MarkdownBlock

from ..drawing import OnlyGround
from ..growing_text import closers, in_fence
from .flat_list import HangingLines, is_flat, list_lines
from .live_code import LiveFence
from .live_text import HEADINGS, Growing, LaidOutOnce, LiveParagraph, LiveText, offset

PLAIN = re.compile(r"[^\n\\*_`~#]+")
"""Text that is only text in a paragraph, whatever stands before it on the line."""
FENCE = re.compile(r" *(?:`{3}|~{3})")


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

    def show(self, picture: Visual) -> None:
        before, drawn = self.picture, self.drawn
        if drawn is None or not isinstance(picture, HangingLines) or not isinstance(before, HangingLines):
            super().show(picture)
            return
        same = picture.same_lines(before)
        places = (offset(strip) for strip in drawn)
        kept = sum(1 for _ in takewhile(lambda place: place is not None and place[1] < same, places))
        first = same if kept else 0
        self.picture = picture
        new = picture.strips_from(first, self.content_size.width, self.visual_style, self.options)
        self.put([*drawn[:kept], *new], kept)

    def extend(self, text: str) -> bool:
        assert isinstance(self.picture, HangingLines)
        self.show(self.picture.grown(text))
        return True

    @property
    def plain(self) -> str:
        assert isinstance(self.picture, HangingLines)
        return self.picture.plain

    def get_selection(self, selection: Selection) -> tuple[str, str] | None:
        return selection.extract(self.plain), "\n"


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


class LiveMarkdown(LaidOutOnce, OnlyGround, Markdown):
    """Markdown that can grow."""

    BLOCKS = {  # noqa: RUF012 - the base declares it so
        **Markdown.BLOCKS,
        **HEADINGS,
        "paragraph_open": LiveParagraph,
        "fence": LiveFence,
        "code_block": LiveFence,
        "bullet_list_open": LiveBulletList,
        "ordered_list_open": LiveOrderedList,
    }

    def __init__(self, markdown: str | None = None, **keywords: Any) -> None:
        super().__init__(markdown, **keywords)
        self.growing = Growing()
        self.tail_from = 0
        """Where the last block begins in the source."""
        self._least = Size(0, 0)
        self._width = 0

    async def grow(self, text: str) -> None:
        """Append; await it before the next piece."""
        before, line = len(self.children), self._last_parsed_line
        with self.app.batch_update():
            await self.append(text)
            self.growing.follow(self._last_text(), len(self.children) - before)
        if self._last_parsed_line != line:
            self.tail_from = len("".join(self.source.splitlines(keepends=True)[: self._last_parsed_line]))
        self.screen.check_idle()  # else what it was told of within the batch waits for something else to be drawn

    def extend(self, text: str) -> bool:
        """Append a text that is no Markdown to the last line, at a small part of the cost; False: nothing was done."""
        block = self.children[-1] if self.children else None
        before = self.source[self.tail_from :]
        if isinstance(block, LiveFence):
            done = _extend_code(block, before, text)
        else:
            done = block is self.growing.text and isinstance(block, LiveText) and _extend_text(block, before, text)
        if done:
            self._markdown = self.source + text
        return done

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


def _extend_text(block: LiveText, before: str, text: str) -> bool:
    """Show a text after a paragraph's or a list's source, if it can be nothing else."""
    words = before.rstrip()
    space = before[len(words) :]
    if not words or "\n" in space or words[-1] in "\\*_`~" or words[-1] != block.plain[-1:] or closers(before):
        return False
    added = re.sub(r"\s+", " ", space + text).rstrip()
    return bool(PLAIN.fullmatch(text)) and (not added or block.extend(added))


def _extend_code(block: LiveFence, before: str, text: str) -> bool:
    """Show a text after the source of a block of code, if it does not close the block."""
    head, begun, code = before.partition("\n")
    lines = (code[code.rfind("\n") + 1 :] + text).split("\n")
    may_end = any(FENCE.match(line) for line in lines) or (lines[-1].strip() and not lines[-1].strip(" `~"))
    if not begun or may_end or head.startswith(" ") or not in_fence(before):
        return False
    block.extend(text, code + text)
    return True


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
