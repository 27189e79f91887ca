"""Which part of an unfinished Markdown text can be shown without looking different a token later."""

from __future__ import annotations

import re

_FENCE = re.compile(r"^ *(`{3,}|~{3,})", re.MULTILINE)
_MARKERS = re.compile(r"[-=*+#>|:`~_ \t]+|[ \t]*\d{1,9}[.)]?[ \t]*")
_BEGINS = re.compile(r"\n\n|^[ \t]*(?:(?:[-*+]|\d{1,9}[.)]|#{1,6}|>)[ \t]+|\|)", re.MULTILINE)
_CODE = re.compile(r"(?<!`)(`+)(?!`).+?(?<!`)\1(?!`)", re.DOTALL)
_EMPHASIS = re.compile(r"\*\*|\*|~~")


def settled(text: str) -> str:
    """The beginning of a text, up to marks that mean one thing or another by what comes next.

    A line of nothing but `-` may become a list, a rule or a heading; asterisks at the end open emphasis or close it.
    """
    line = text[text.rfind("\n") + 1 :]
    undecided = not line.strip(" `~") if in_fence(text) else _MARKERS.fullmatch(line)
    if undecided:
        return text[: len(text) - len(line)]
    return text if in_fence(text) else text.rstrip("*_`~")


def closers(text: str) -> str:
    """What closes the emphasis and the code that a text leaves open, so that both are drawn as they will be."""
    if in_fence(text) or text.endswith("\n\n"):
        return ""
    begins = [match.end() for match in _BEGINS.finditer(text)]
    part = _CODE.sub("x", text[begins[-1] if begins else 0 :])
    code = re.search("`+", part)
    part = part[: code.start()] + "x" if code else part
    opened: list[str] = []
    for match in _EMPHASIS.finditer(part):
        before, after = part[: match.start()][-1:].strip(), part[match.end() :][:1].strip()
        if opened and before and opened[-1] == match.group():
            opened.pop()
        elif after and not before.isalnum():
            opened.append(match.group())
    return (code.group() if code else "") + "".join(reversed(opened))


def in_fence(text: str) -> bool:
    """Whether a text ends in a block of code: fences open and close it in turn."""
    fence = ""
    for match in _FENCE.finditer(text):
        if not fence:
            fence = match.group(1)
        elif match.group(1).startswith(fence):
            fence = ""
    return bool(fence)
