"""Colours of code: as a whole, or line by line while it grows."""

from __future__ import annotations

import re
from collections.abc import Iterator

from pygments.lexer import ExtendedRegexLexer, RegexLexer
from pygments.lexers import get_lexer_by_name
from pygments.token import Error, Whitespace, _TokenType
from pygments.util import ClassNotFound
from textual.content import Content, Span
from textual.highlight import HighlightTheme
from textual.highlight import highlight as coloured

TAB = 8


def _plain(style: str) -> str:
    """A style whose letters have one of the theme's colours as it is, on the ground that is there."""
    return re.sub(r" \d+%| on \$\S+", "", style.replace("$text 60%", "$foreground-muted"))


class CodeColours(HighlightTheme):
    """Textual's colours of code without what lets the ground through: a theme's letters can be read as they are."""

    STYLES: dict[_TokenType, str] = {kind: _plain(style) for kind, style in HighlightTheme.STYLES.items()}  # noqa: RUF012


def highlight(code: str, language: str) -> Content:
    """Code in the theme's colours, by their names."""
    return coloured(code.expandtabs(TAB), language=language or None, theme=CodeColours)


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
    while kind is not None and kind not in CodeColours.STYLES:
        kind = kind.parent
    return CodeColours.STYLES[kind] if kind is not None else ""


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
