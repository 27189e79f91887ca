"""Text from models and files made harmless for a terminal."""

from __future__ import annotations

import unicodedata

_UNSAFE = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
# format characters that belong to writing: soft hyphen, joiners, Arabic number signs, emoji tags
_WRITING = frozenset({0x00AD, 0x200C, 0x200D, 0x2060, *range(0x0600, 0x0606), 0x06DD, *range(0xE0020, 0xE0080)})


class _Table(dict[int, str]):
    """A `str.translate` table that decides about a character when it first meets it."""

    def __missing__(self, code: int) -> str:
        char = chr(code)
        if unicodedata.category(char) in _UNSAFE and code not in _WRITING:
            char = char.encode("unicode_escape", "surrogatepass").decode()
        self[code] = char
        return char


_TABLE = _Table()
_KEEPING = _Table({10: "\n", 9: "\t"})


def visible(text: str, *, keep_newlines: bool = False) -> str:
    r"""Show what could steer a terminal: control characters, escape sequences, bidirectional overrides, as `\x1b`.

    With `keep_newlines` newline and tab stay (a carriage return does not). Works on any piece of a stream: nothing
    depends on the characters around.
    """
    if text.isascii() and text.isprintable():
        return text
    return text.translate(_KEEPING if keep_newlines else _TABLE)
