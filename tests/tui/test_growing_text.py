"""Markdown that is not complete yet: what of it can be shown, and what closes it."""

from __future__ import annotations

import pytest

from localmoe.tui.growing_text import closers, settled


@pytest.mark.parametrize(
    ("text", "sure"),
    [
        ("a word", "a word"),
        ("a **", "a "),
        ("a\n-", "a\n"),
        ("a\n- ", "a\n"),
        ("a\n- b", "a\n- b"),
        ("a\n---", "a\n"),
        ("a\n---\n", "a\n---\n"),
        ("12", ""),
        ("12. ", ""),
        ("12. b", "12. b"),
        ("12 b", "12 b"),
        ("## ", ""),
        ("``", ""),
        ("```", ""),
        ("```py", "```py"),
        ("```py\nx *", "```py\nx *"),
        ("```py\nx\n``", "```py\nx\n"),
        ("```py\nx\n```\n*", "```py\nx\n```\n"),
        ("|--", ""),
    ],
)
def test_marks_wait_for_what_they_mean(text, sure):
    assert settled(text) == sure


@pytest.mark.parametrize(
    ("text", "ends"),
    [
        ("plain", ""),
        ("a **b", "**"),
        ("a **b** c", ""),
        ("a **b *c", "***"),
        ("a *b", "*"),
        ("2 * 3", ""),
        ("x*y", ""),
        ("~~a", "~~"),
        ("use `f(**x", "`"),
        ("use ``a`b", "``"),
        ("**use `f", "`**"),
        ("`a` **b", "**"),
        ("**old\n\n*new", "*"),
        ("**old\n\n", ""),
        ("- **a\n- b", ""),
        ("1. **a", "**"),
        ("| a | **b", "**"),
        ("```\n**a", ""),
        ("```\na\n```\n**b", "**"),
    ],
)
def test_what_is_open_is_closed(text, ends):
    assert closers(text) == ends
