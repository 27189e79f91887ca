"""One turn of the chat: what the user said, what the model says, or a note."""

from __future__ import annotations

from functools import cache

from markdown_it import MarkdownIt
from markdown_it.rules_core import StateCore
from markdown_it.token import Token
from markdown_it.utils import EnvType
from textual.content import Content
from textual.widgets import Static

from localmoe.text.visible import visible

from ..growing_text import closers, settled
from .line import Line
from .live_blocks import LiveMarkdown
from .page import Lines

# Rules that turn a model's text into something else than text to look at: links that open, addresses shown decoded,
# raw HTML, entities that spell control characters.
_OFF = ("link", "image", "autolink", "html_inline", "html_block", "entity", "reference")
MUTED = "not bold $foreground-muted"
"""The style of what only explains."""
_LINE_ENDS = dict.fromkeys((0x0B, 0x0C, 0x1C, 0x1D, 0x1E, 0x85, 0x2028, 0x2029), "\n")


@cache
def harmless_markdown() -> MarkdownIt:
    """The parser for text from a model: emphasis, lists, tables, code; links, images and HTML stay as typed."""
    return _harmless(MarkdownIt("commonmark"))


@cache
def unfinished_markdown() -> MarkdownIt:
    """The same for the beginning of a text: what it leaves open is closed at its end."""
    return _harmless(_Unfinished("commonmark"))


def _harmless(parser: MarkdownIt) -> MarkdownIt:
    parser.core.ruler.push("breaks", _breaks)
    return parser.enable(["table", "strikethrough"]).disable(list(_OFF))


def _breaks(state: StateCore) -> None:
    """Let every line of a paragraph be one: models end lines of verse and of addresses, and wrap no others."""
    for child in (child for token in state.tokens for child in token.children or ()):
        if child.type == "softbreak":
            child.type = "hardbreak"


def shown(text: str) -> str:
    """Untrusted text as it may reach the terminal; works piece by piece, since it looks at single characters."""
    return visible(text.translate(_LINE_ENDS), keep_newlines=True)


def shown_line(text: str) -> str:
    """Untrusted text on one line."""
    return " ".join(shown(text).split())


class UserTurn(Lines, Static):
    """What the user said, as it was typed; where that is nothing, the model was to go on."""

    def __init__(self, text: str) -> None:
        super().__init__(classes="turn user")
        self.lines = [Line(Content(line)) for line in (shown(text).expandtabs() or "…").split("\n")]


class PlainReply(Lines, Static):
    """What a model that completes text writes, as it is: Markdown would join its lines and take marks out of code."""

    def __init__(self, text: str = "") -> None:
        super().__init__(classes="turn reply plain")
        self.source, self._last = "", 0  # where the last line that is shown begins
        self._add(shown(text))

    async def feed(self, text: str) -> None:
        """Append a piece of the model's text."""
        self.growing = True
        self._add(shown(text))

    async def finish(self) -> None:
        """No more comes: all of it is shown already."""

    def _add(self, text: str) -> None:
        """Show more; space at the end waits for what comes behind it, and none but an indentation comes first."""
        begun, self.source = bool(self.source.strip()), self.source + text
        if not begun and (words := self.source.lstrip()):
            before = self.source.removesuffix(words)
            self.source = (before.rpartition("\n")[2] if "\n" in before else "") + words
        if words := self.source[self._last :].rstrip():
            lines = [Line(Content(line.expandtabs())) for line in words.split("\n")]
            self.show([*self.lines[:-1], *lines], max(0, len(self.lines) - 1))
            self._last += words.rfind("\n") + 1


class Note(Static):
    """A line of the app's own in the transcript."""

    def __init__(self, text: str, *, error: bool = False) -> None:
        super().__init__(Content(shown(text)), classes="note error" if error else "note")


class _Unfinished(MarkdownIt):
    def parse(self, src: str, env: EnvType | None = None) -> list[Token]:
        ends = closers(src)
        return super().parse(src.rstrip() + ends if ends else src, env)


class ReplyTurn(LiveMarkdown):
    """A reply that grows while it is written."""

    def __init__(self, text: str = "") -> None:
        self._held = ""
        self._open = False
        super().__init__(shown(text), classes="turn reply", parser_factory=self._parser, open_links=False)

    def _parser(self) -> MarkdownIt:
        return unfinished_markdown() if self._open else harmless_markdown()

    async def feed(self, text: str) -> None:
        """Append a piece of the model's text; await it before the next piece."""
        self._open = True
        text = shown(text)
        if not self._held and self.extend(text):
            return
        tail = self.source[self.tail_from :]
        whole = tail + self._held + text
        sure = settled(whole)[len(tail) :]
        self._held = whole[len(tail) + len(sure) :]
        if sure:
            await self.grow(sure)

    async def finish(self) -> None:
        """No more comes: show the text as it is."""
        rest, self._held, self._open = self._held, "", False
        painted = self.page is not None and self.page.painter is not None  # some languages need it as a whole
        if rest or painted or closers(self.source[self.tail_from :]):
            await self.grow(rest)
