"""Markdown that grows in place: the last block of a reply changes ten times a second while it is written.

Textual has a widget or more for each block, lays the screen out again for every change of one, and makes lists anew:
that takes ten times as long as drawing the rows that changed. Here blocks in a row are lines of one widget.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.token import Token
from textual.geometry import Size
from textual.widgets import Markdown
from textual.widgets.markdown import MarkdownBlock

from ..drawing import OnlyGround
from ..growing_text import closers, in_fence
from .line import CODE
from .page import LaidOutOnce, Page
from .token_lines import is_flat

PLAIN = re.compile(r"[^\n\\*_`~#]+")
"""Text that is only text in a paragraph, whatever stands before it on the line."""
FENCE = re.compile(r" *(?:`{3}|~{3})")


class LiveMarkdown(LaidOutOnce, OnlyGround, Markdown):
    """Markdown that can grow."""

    def __init__(self, markdown: str | None = None, **keywords: Any) -> None:
        super().__init__(markdown, **keywords)
        self.tail_from = 0
        """Where the last block begins in the source."""
        self._least, self._growing = Size(0, 0), False

    @property
    def page(self) -> Page | None:
        """The last lines, if they are what comes last."""
        last = self.children[-1] if self.children else None
        return last if isinstance(last, Page) else None

    async def grow(self, text: str) -> None:
        """Append; await it before the next piece."""
        if not self._growing:
            self.tail_from = _last_block(self.source, self._parse(self.source))
            self._growing = True
        page, tail = self.page, self.source[self.tail_from :] + text
        self._markdown = self.source + text
        tokens = self._parse(tail)
        self.tail_from += _last_block(tail, tokens)
        blocks = list(self._parse_markdown(tokens))
        with self.app.batch_update():
            for last in self.query_children(MarkdownBlock)[-1:] if blocks else ():
                await last._update_from_block(blocks.pop(0))
            if blocks:
                await self.mount_all(blocks)
        if page is not None and page is not self.page:
            page.settle()
        if self.page is not None:
            self.page.growing = True
        self.screen.check_idle()  # else what it was told of within the batch waits for something else to be drawn

    def extend(self, text: str) -> bool:
        """Append a text that is no Markdown to the last line, at a small part of the cost; False: nothing was done."""
        page, before = self.page, self.source[self.tail_from :]
        if page is None or not page.lines or not self._growing:
            return False
        done = (_extend_code if page.lines[-1].kind == CODE else _extend_text)(page, before, text)
        if done:
            self._markdown = self.source + text
        return done

    def settle(self) -> None:
        """Take no more room than is needed. Until then nothing moves."""
        self._least, self._growing = Size(0, 0), False
        if self.page is not None:
            self.page.settle()
        self.refresh(layout=True)

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        height = super().get_content_height(container, viewport, width)
        if self._growing:
            least = self._least.height if self._least.width == width else 0
            self._least = Size(width, max(least, height))
        return max(height, self._least.height if self._least.width == width else 0)

    def _parse(self, text: str) -> list[Token]:
        return (self._parser_factory or MarkdownIt)().parse(text)

    def _parse_markdown(self, tokens: Iterable[Token]) -> Iterator[MarkdownBlock]:
        page: Page | None = None
        for block in _top_level(tokens):
            if is_flat(block):
                page = page or Page(self, block[0])
                page.add(block)
            else:
                if page is not None:
                    yield page
                    page = None
                yield from super()._parse_markdown(block)
        if page is not None:
            yield page


def _extend_text(page: Page, before: str, text: str) -> bool:
    """Show a text after a paragraph's or a list's source, if it can be nothing else."""
    words = before.rstrip()
    space = before[len(words) :]
    last = page.lines[-1].text.plain[-1:]
    if not words or "\n" in space or words[-1] in "\\*_`~" or words[-1] != last or closers(before):
        return False
    added = re.sub(r"\s+", " ", space + text).rstrip()
    if not PLAIN.fullmatch(text):
        return False
    if added:
        page.extend(added)
    return True


def _extend_code(page: Page, before: str, text: str) -> bool:
    """Show a text after the source of a block of code, if it does not close the block."""
    head, begun, code = before.partition("\n")
    lines = (code[code.rfind("\n") + 1 :] + text).split("\n")
    may_end = any(FENCE.match(line) for line in lines) or (lines[-1].strip() and not lines[-1].strip(" `~"))
    if not begun or may_end or not FENCE.match(head) or head.startswith(" ") or not in_fence(before):
        return False
    page.extend_code(head.strip("`~ "), text, code + text)
    return True


def _last_block(text: str, tokens: Iterable[Token]) -> int:
    """Where the last block begins in the text of these tokens."""
    lines = [token.map[0] for token in tokens if token.level == 0 and token.map is not None]
    return len("".join(text.splitlines(keepends=True)[: lines[-1]])) if lines else 0


def _top_level(tokens: Iterable[Token]) -> Iterator[list[Token]]:
    """The tokens of each block that is in no other one."""
    block: list[Token] = []
    for token in tokens:
        block.append(token)
        if token.level == 0 and token.nesting <= 0:
            yield block
            block = []
