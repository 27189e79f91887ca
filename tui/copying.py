"""What of a reply can be copied."""

from __future__ import annotations

from .widgets.turns import harmless_markdown, shown


def code_blocks(text: str) -> list[str]:
    """The code blocks of a reply, in order, free of control characters."""
    tokens = harmless_markdown().parse(shown(text))
    return [token.content.rstrip("\n") for token in tokens if token.type in ("fence", "code_block") and token.content]


def first_line(text: str, most: int = 60) -> str:
    """A block's first line that says something, for a menu."""
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return line if len(line) <= most else line[: most - 1] + "…"
