"""Nothing that steers a terminal gets through."""

from __future__ import annotations

import unicodedata

import pytest

from localmoe.text.visible import visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain é 日本 👩‍👩‍👧", "plain é 日本 👩‍👩‍👧"),
        ("\x1b[31mred\x1b[0m", "\\x1b[31mred\\x1b[0m"),
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        ("\x9b31m\x7f\0", "\\x9b31m\\x7f\\x00"),
        ("a\u202eb\u2066c\u200e", "a\\u202eb\\u2066c\\u200e"),
        ("a\nb\tc\r", "a\\nb\\tc\\r"),
        ("\u2028\ud800\U000e0001", "\\u2028\\ud800\\U000e0001"),
    ],
)
def test_visible(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_newlines_and_tabs_stay_when_asked_for() -> None:
    assert visible("a\nb\tc\r\x1b", keep_newlines=True) == "a\nb\tc\\r\\x1b"


def test_no_control_character_survives() -> None:
    shown = visible("".join(map(chr, range(0x110000))))
    assert not [c for c in shown if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")]
    assert not set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f\u061c") & set(shown)
