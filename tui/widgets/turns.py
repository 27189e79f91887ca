"""One turn of the chat: what the user said, what the model says, or a note."""

from __future__ import annotations

from functools import cache

from markdown_it import MarkdownIt
from textual.content import Content
from textual.widgets import Markdown, Static

from localmoe.text.visible import visible

from .live_blocks import LIVE, Growing

# Rules that turn a model's text into something else than text to look at: links that open, addresses shown decoded,
# raw HTML, entities that spell control characters.
_OFF = ("link", "image", "autolink", "html_inline", "html_block", "entity", "reference")
MUTED = "not bold $foreground-muted"
"""The style of what only explains."""
_LINE_ENDS = dict.fromkeys((0x0B, 0x0C, 0x1C, 0x1D, 0x1E, 0x85, 0x2028, 0x2029), "\n")


@cache
def harmless_markdown() -> MarkdownIt:
    """The parser for text from a model: emphasis, lists, tables, code; links, images and HTML stay as typed."""
    return MarkdownIt("commonmark").enable(["table", "strikethrough"]).disable(list(_OFF))


def shown(text: str) -> str:
    """Untrusted text as it may reach the terminal; works piece by piece, since it looks at single characters."""
    return visible(text.translate(_LINE_ENDS), keep_newlines=True)


def shown_line(text: str) -> str:
    """Untrusted text on one line."""
    return " ".join(shown(text).split())


class UserTurn(Static):
    """What the user said, as it was typed."""

    def __init__(self, text: str) -> None:
        super().__init__(Content(shown(text)), classes="turn user")


class Note(Static):
    """A line of the app's own in the transcript."""

    def __init__(self, text: str, *, error: bool = False) -> None:
        super().__init__(Content(shown(text)), classes="note error" if error else "note")


class ReplyTurn(Markdown):
    """A reply that grows while it is written."""

    BLOCKS = {**Markdown.BLOCKS, **LIVE}  # noqa: RUF012 - the base declares it so

    def __init__(self, text: str = "") -> None:
        self.growing = Growing()
        super().__init__(shown(text), classes="turn reply", parser_factory=harmless_markdown, open_links=False)

    async def feed(self, text: str) -> None:
        """Append a piece of the model's text; await it before the next piece."""
        if text:
            await self.append(shown(text))
            if self.children:
                self.growing.settle_above(self.children[-1])
