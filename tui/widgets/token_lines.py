"""The lines of a Markdown block, from its tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from markdown_it.token import Token
from markdown_it.tree import SyntaxTreeNode
from textual.content import Content
from textual.widgets import Markdown

from .line import CODE, Line

_LISTS = ("bullet_list", "ordered_list")
_NESTED = ("list_item", "blockquote", *_LISTS)
_CODE = ("fence", "code_block")
_TEXTS = ("paragraph", "heading")
_FLAT = {"inline", *_CODE, *(f"{kind}_{end}" for kind in (*_NESTED, *_TEXTS) for end in ("open", "close"))}
_BAR = "▌ "


def is_flat(tokens: Sequence[Token]) -> bool:
    """Whether a block can be shown as lines."""
    return all(token.type in _FLAT for token in tokens)


def lines_of(
    tokens: Sequence[Token], content: Callable[[Token], Content], highlight: Callable[[str, str], Content]
) -> list[Line]:
    """The lines of a block that is flat; `content` makes the text of an inline token, `highlight` that of code."""
    lines = _Lines(content, highlight)
    return [line for child in SyntaxTreeNode(tokens).children for line in lines.of(child, "", "", 0, "")]


@dataclass
class _Lines:
    content: Callable[[Token], Content]
    highlight: Callable[[str, str], Content]

    def of(self, node: SyntaxTreeNode, lead: str, below: str, depth: int, kind: str) -> Iterator[Line]:
        """`lead` is what stands before the first line, `below` before the others; `depth` counts bulleted lists."""
        if node.type in _LISTS:
            for symbol, item in zip(_symbols(node, depth), node.children, strict=True):
                deeper = depth + (node.type == "bullet_list")
                yield from self._all(item, lead + symbol, below + " " * len(symbol), deeper, kind)
                lead = below
        elif node.type == "blockquote":
            for number, child in enumerate(node.children):
                if number:
                    yield Line(Content(), below + _BAR, below + _BAR, "quote")
                yield from self.of(child, (below if number else lead) + _BAR, below + _BAR, depth, "quote")
        else:
            for text in self._texts(node):
                yield Line(text, lead, below, _kind(node) or kind)
                lead = below

    def _all(self, item: SyntaxTreeNode, lead: str, below: str, depth: int, kind: str) -> Iterator[Line]:
        for child in item.children:
            yield from self.of(child, lead, below, depth, kind)
            lead = below

    def _texts(self, node: SyntaxTreeNode) -> list[Content]:
        if node.type in _CODE:
            text = self.highlight(node.content.rstrip(), node.info)
        else:
            text = self.content(node.children[0].token)  # type: ignore[arg-type]
        return text.split("\n", allow_blank=True) or [text]


def _kind(node: SyntaxTreeNode) -> str:
    if node.type in _CODE:
        return CODE
    return node.tag if node.type == "heading" else ""


def _symbols(tree: SyntaxTreeNode, depth: int) -> list[str]:
    """What stands before each item, as Textual's lists have it."""
    if tree.type == "bullet_list":
        return [Markdown.BULLETS[depth % len(Markdown.BULLETS)]] * len(tree.children)
    start = int(tree.children[0].info)
    numbers = [f"{number}. " for number in range(start, start + len(tree.children))]
    return [number.rjust(max(map(len, numbers)) + 1) for number in numbers]
