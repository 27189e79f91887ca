"""A block of code that may grow: only its new lines are coloured and drawn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pygments.lexer import ExtendedRegexLexer, RegexLexer
from pygments.lexers import get_lexer_by_name
from pygments.token import Error, Whitespace, _TokenType
from pygments.util import ClassNotFound
from textual.app import ComposeResult
from textual.content import Content, Span
from textual.css.styles import RulesMap
from textual.geometry import Size
from textual.highlight import HighlightTheme
from textual.selection import Selection
from textual.strip import Strip
from textual.style import Style
from textual.visual import RenderOptions, Visual
from textual.widgets import Label
from textual.widgets._markdown import MarkdownFence
from textual.widgets.markdown import MarkdownBlock

from .live_text import LaidOutOnce, LiveText

TAB = 8
WIDER = 24
"""Columns that a line longer than the block is wide is given in advance."""


class CodeLines(Visual):
    """Lines that do not wrap, drawn as Textual draws a Content."""

    def __init__(self, lines: Sequence[Content]) -> None:
        self.lines = lines

    @property
    def plain(self) -> str:
        return "\n".join(line.plain for line in self.lines)

    def get_optimal_width(self, rules: RulesMap, container_width: int) -> int:  # noqa: ARG002
        return max((line.cell_length for line in self.lines), default=0)

    def get_height(self, rules: RulesMap, width: int) -> int:  # noqa: ARG002
        return len(self.lines)

    def render_strips(self, width: int, height: int | None, style: Style, options: RenderOptions) -> list[Strip]:
        return self.strips_from(0, width, style, options)[:height]

    def strips_from(self, first: int, width: int, style: Style, options: RenderOptions) -> list[Strip]:
        """The lines from one on."""
        return [self._strip(y, width, style, options) for y in range(first, len(self.lines))]

    def _strip(self, y: int, width: int, style: Style, options: RenderOptions) -> Strip:
        line = self.lines[y]
        span = options.selection.get_span(y) if options.selection is not None else None
        if span is not None and options.selection_style is not None:
            line = line.stylize(options.selection_style, span[0], len(line) if span[1] == -1 else span[1])
        [whole] = line._wrap_and_format(max(width, line.cell_length, 1), get_style=options.get_style)
        whole.y = y
        return Strip(*whole.to_strip(style))


class LiveCode(LiveText, Label):
    """The text of a block of code; its lines do not wrap."""

    width = 0

    @property
    def plain(self) -> str:
        assert isinstance(self.picture, CodeLines)
        return self.picture.plain

    def get_content_width(self, container: Size, viewport: Size) -> int:
        width = super().get_content_width(container, viewport)
        return max(width, self.width) if self.growing.text is self and width > container.width else width

    def show(self, picture: Visual) -> None:
        if not self._widen(picture):
            super().show(picture)

    def show_from(self, picture: CodeLines, same: int) -> None:
        """Show lines of which so many stand already."""
        drawn = self.drawn
        if self._widen(picture):
            return
        if drawn is None:
            self.show(picture)
            return
        self.picture, same = picture, min(same, len(drawn))
        new = picture.strips_from(same, self.content_size.width, self.visual_style, self.options)
        self.put([*drawn[:same], *new], same)

    def _widen(self, picture: Visual) -> bool:
        """Ask for a layout where lines have become longer than there is room."""
        width = picture.get_optimal_width(self.styles, 0)  # type: ignore[arg-type]
        if width <= self.content_size.width:
            return False
        self.picture, self.width = picture, width + WIDER
        self.refresh(layout=True)
        return True

    def get_selection(self, selection: Selection) -> tuple[str, str] | None:
        return selection.extract(self.plain), "\n"


class LiveFence(LaidOutOnce, MarkdownFence):
    """A block of code that may grow."""

    painter: Painter | None = None

    @classmethod
    def highlight(cls, code: str, language: str, ansi: bool = False, dark: bool = False) -> Content:
        return super().highlight(code.expandtabs(TAB), language, ansi, dark)

    def compose(self) -> ComposeResult:
        code = LiveCode(id="code-content", expand=True)
        code.picture = _lines(self._highlighted_code)
        yield code

    def set_content(self, content: Content) -> None:
        self._content, self.painter = content, None
        for code in self.query_children(LiveCode):
            code.show(_lines(content))

    async def _update_from_block(self, block: MarkdownBlock) -> None:
        if isinstance(block, MarkdownFence) and (block.code, block.lexer) == (self.code, self.lexer):
            if self.painter is not None:
                self.set_content(block._highlighted_code)
            return
        await super()._update_from_block(block)

    def extend(self, text: str, source: str) -> None:
        """Show more code, so that all of it is `source`."""
        if self.painter is None:
            self.painter = Painter(self.lexer, source[: len(source) - len(text)])
        first = len(self.painter.lines) - 1
        self.painter.add(text)
        self.code = source.rstrip()
        lines = self.painter.lines
        while len(lines) > 1 and not lines[-1].plain.strip():
            lines = lines[:-1]
        for code in self.query_children(LiveCode):
            code.show_from(CodeLines(lines), min(first, len(lines)))

    def settle(self) -> None:
        """Colour what has grown as a whole: some languages need it."""
        if self.painter is not None:
            dark, ansi = self.app.current_theme.dark, self.app.native_ansi_color
            self._highlighted_code = self.highlight(self.code, self.lexer, ansi=ansi, dark=dark)
            self.set_content(self._highlighted_code)


def _lines(content: Content) -> CodeLines:
    return CodeLines(content.split("\n", allow_blank=True))


class Painter:
    """Colours code line by line: a line's colours depend on those before it alone. Some languages stay plain."""

    def __init__(self, language: str, code: str) -> None:
        self.lines: list[Content] = [Content()]
        self._rest = ""
        self._states = ["root"]
        self._lexer: RegexLexer | None = None
        try:
            lexer = get_lexer_by_name(language, stripnl=False, ensurenl=True) if language else None
        except ClassNotFound:
            lexer = None
        if isinstance(lexer, RegexLexer) and not isinstance(lexer, ExtendedRegexLexer):
            self._lexer = lexer
        self.add(code)

    def add(self, text: str) -> None:
        """Go on with a text; the last line is coloured as if it ended here."""
        *whole, self._rest = (self._rest + text).split("\n")
        del self.lines[-1]
        for line in whole:
            self.lines.append(self._colour(line, self._states))
        self.lines.append(self._colour(self._rest, self._states.copy()))

    def _colour(self, line: str, states: list[str]) -> Content:
        line = line.expandtabs(TAB)
        spans = []
        if self._lexer is not None:
            for start, kind, part in _tokens(self._lexer, line + "\n", states):
                if style := _style(kind):
                    spans.append(Span(start, min(len(line), start + len(part)), style))
        return Content(line, spans=spans).stylize_before("$text")


def _style(kind: _TokenType) -> str:
    while kind is not None and kind not in HighlightTheme.STYLES:
        kind = kind.parent
    return HighlightTheme.STYLES[kind] if kind is not None else ""


def _tokens(lexer: RegexLexer, text: str, states: list[str]) -> Iterator[tuple[int, _TokenType, str]]:
    """The tokens of a text that begins in such states, which become those at its end."""
    at = 0
    while at < len(text):
        for match, action, change in lexer._tokens[states[-1]]:
            if found := match(text, at):
                if isinstance(action, _TokenType):
                    yield at, action, found.group()
                elif action is not None:
                    yield from action(lexer, found)
                at = found.end()
                _change(states, change)
                break
        else:
            if text[at] == "\n":
                states[:] = ["root"]
            yield at, Whitespace if text[at] == "\n" else Error, text[at]
            at += 1


def _change(states: list[str], change: tuple[str, ...] | int | str | None) -> None:
    """Change states as a rule of the lexer's says."""
    if isinstance(change, int):
        del states[max(1, len(states) + change) :]
        return
    for state in (change,) if isinstance(change, str) else change or ():
        if state == "#pop":
            del states[max(1, len(states) - 1) :]
        else:
            states.append(states[-1] if state == "#push" else state)
