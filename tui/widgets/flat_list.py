"""A Markdown list drawn by one widget: Textual's has four for each item, and makes all anew for every change."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile

from markdown_it.token import Token
from markdown_it.tree import SyntaxTreeNode
from rich._wrap import divide_line
from rich.segment import Segment
from textual.content import Content
from textual.css.styles import RulesMap
from textual.strip import Strip
from textual.style import Style
from textual.visual import RenderOptions, Visual
from textual.widgets import Markdown

from .live_text import grown

_KINDS = ("bullet_list", "ordered_list")
_PARTS = ("inline", *(f"{kind}_{end}" for kind in (*_KINDS, "list_item", "paragraph") for end in ("open", "close")))


@dataclass(frozen=True)
class Line:
    """A line of text that hangs: it begins with `lead`, and what wraps stands below what follows the lead."""

    lead: str
    text: Content

    def same(self, other: Line) -> bool:
        """Whether both look the same; contents are equal where only their words are."""
        mine, its = self.text, other.text
        return self.lead == other.lead and mine.plain == its.plain and mine.spans == its.spans

    def wrapped(self, width: int) -> list[Content]:
        """The lead and the text in lines of a width, without the space before those that hang."""
        cuts = divide_line(self.text.plain, max(1, width - len(self.lead)))
        first, *others = self.text.divide(cuts)
        return [Content.assemble((self.lead, ".bullet"), first), *others]


class HangingLines(Visual):
    """What Textual draws of lines that hang, as it draws a Content."""

    def __init__(self, lines: Sequence[Line]) -> None:
        self.lines = lines

    @property
    def plain(self) -> str:
        """The lines before they wrap, as selected text is taken from them."""
        return "\n".join(line.lead + line.text.plain for line in self.lines)

    def get_optimal_width(self, rules: RulesMap, container_width: int) -> int:  # noqa: ARG002
        return max((len(line.lead) + line.text.cell_length for line in self.lines), default=0)

    def get_height(self, rules: RulesMap, width: int) -> int:  # noqa: ARG002
        return sum(len(line.wrapped(width)) for line in self.lines)

    def render_strips(self, width: int, height: int | None, style: Style, options: RenderOptions) -> list[Strip]:
        """The lines of a width; selected text and the places of characters are those of the lines before they wrap."""
        return self.strips_from(0, width, style, options)[:height]

    def strips_from(self, first: int, width: int, style: Style, options: RenderOptions) -> list[Strip]:
        """The same without what comes from the lines before one."""
        lines = enumerate(self.lines[first:], first)
        return [strip for y, line in lines for strip in _strips(line, y, width, style, options)]

    def same_lines(self, other: HangingLines) -> int:
        """How many lines both begin with."""
        pairs = zip(self.lines, other.lines, strict=False)
        return sum(1 for _ in takewhile(lambda pair: pair[0].same(pair[1]), pairs))

    def grown(self, text: str) -> HangingLines:
        """These lines with plain text after the last."""
        last = self.lines[-1]
        return HangingLines([*self.lines[:-1], Line(last.lead, grown(last.text, text))])


def _strips(line: Line, y: int, width: int, style: Style, options: RenderOptions) -> Iterator[Strip]:
    span = options.selection.get_span(y) if options.selection is not None else None
    x = 0
    for part in line.wrapped(width):
        indent = len(line.lead) if x else 0
        shown = part
        if span is not None and options.selection_style is not None:
            end = len(part) if span[1] == -1 else max(0, span[1] - x)
            shown = part.stylize(options.selection_style, max(0, span[0] - x), end)
        segments = [Segment(" " * indent, style.rich_style)] if indent else []
        for text, own in shown.rstrip().render(style, end="", parse_style=options.get_style):
            segments.append(Segment(text, (style + own).rich_style_with_offset(x, y)))
            x += len(text)
        x += len(part) - len(shown.rstrip())
        yield Strip(segments)


def is_flat(tokens: Sequence[Token]) -> bool:
    """Whether these are the tokens of a list of paragraphs and of such lists."""
    return tokens[0].type in (f"{kind}_open" for kind in _KINDS) and all(token.type in _PARTS for token in tokens)


def list_lines(tokens: Sequence[Token], content: Callable[[Token], Content]) -> list[Line]:
    """The lines of a list that is flat; `content` makes the text of an inline token."""
    return list(_lines(SyntaxTreeNode(tokens).children[0], "", 0, content))


def _lines(tree: SyntaxTreeNode, lead: str, depth: int, content: Callable[[Token], Content]) -> Iterator[Line]:
    """`lead` is what stands before the first line; before the others is as much space."""
    deeper = depth + (tree.type == "bullet_list")
    for symbol, item in zip(_symbols(tree, depth), tree.children, strict=True):
        first = lead + symbol
        for child in item.children:
            if child.type in _KINDS:
                yield from _lines(child, first, deeper, content)
            else:
                for text in content(child.children[0].token).split("\n", allow_blank=True):  # type: ignore[arg-type]
                    yield Line(first, text)
                    first = " " * len(first)
            first = " " * len(first)
        lead = " " * len(lead)


def _symbols(tree: SyntaxTreeNode, depth: int) -> list[str]:
    """What stands before each item, as Textual's lists have it."""
    if tree.type == "bullet_list":
        return [Markdown.BULLETS[depth % len(Markdown.BULLETS)]] * len(tree.children)
    start = int(tree.children[0].info)
    numbers = [f"{number}. " for number in range(start, start + len(tree.children))]
    return [number.rjust(max(map(len, numbers)) + 1) for number in numbers]
