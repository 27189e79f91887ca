"""A theme's colours, changed where they cannot be read: some themes have their accents for large letters alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from textual.color import BLACK, WHITE, Color, ColorParseError

from .widgets.palette import luminance

LEAST = 4.5
"""The contrast that WCAG 2 asks of text."""
STEPS = 20
CURSOR = 0.15
"""How much of a theme's primary colour the ground of a chosen row has: its letters keep their own colours."""
_GROUNDS = ("background", "surface", "panel")
_TEXTS = ("foreground", "foreground-muted", *(f"text-{kind}" for kind in (
    "primary", "secondary", "accent", "warning", "success", "error")),
    *(f"markdown-h{level}-color" for level in range(1, 7)))  # fmt: skip
_FOOTER = ("footer-foreground", "footer-key-foreground", "footer-description-foreground")

_BLACK, _WHITE, _BLUE, _GREY = "#000000", "#ffffff", "#0000aa", "#aaaaaa"
_ON_WHITE = {
    **dict.fromkeys(("foreground", "text-accent", "text-warning", "text-success", "block-cursor-foreground"), _BLACK),
    "foreground-muted": "#555555",
    **dict.fromkeys(("text-primary", "primary", "markdown-h1-color", "markdown-h2-color", "markdown-h3-color"), _BLUE),
    **dict.fromkeys(("markdown-h4-color", "markdown-h5-color", "markdown-h6-color"), _BLACK),
    **dict.fromkeys(("input-selection-foreground", "screen-selection-foreground"), _BLACK),
    **dict.fromkeys(("input-selection-background", "screen-selection-background"), _GREY),
    "text-secondary": "#aa00aa",
    "text-error": "#aa0000",
    **dict.fromkeys(("block-cursor-background", "block-cursor-blurred-background"), _GREY),
    "block-cursor-blurred-foreground": _BLACK,
    "footer-background": _WHITE,
    "footer-key-foreground": _BLUE,
    **dict.fromkeys(("footer-foreground", "footer-description-foreground"), _BLACK),
}
_ON_BLACK = {
    **dict.fromkeys(("block-cursor-background", "block-cursor-blurred-background"), _BLUE),
    **dict.fromkeys(("block-cursor-foreground", "block-cursor-blurred-foreground"), _WHITE),
    "footer-background": _BLACK,
    "footer-key-foreground": "#ffff55",
    **dict.fromkeys(("footer-foreground", "footer-description-foreground"), _WHITE),
}
_OWN_ON_WHITE = {
    **dict.fromkeys(("text-success", "markdown-h4-color", "markdown-h5-color", "markdown-h6-color"), "ansi_default"),
    **dict.fromkeys(("text-warning", "text-error"), "ansi_red"),
    "text-secondary": "ansi_magenta",
    **dict.fromkeys(("input-selection-foreground", "screen-selection-foreground"), "ansi_black"),
}
_OWN_ON_BLACK = {
    **dict.fromkeys(("text-primary", "markdown-h2-color", "markdown-h3-color", "link-color"), "ansi_bright_cyan"),
    **dict.fromkeys(("markdown-h1-color", "footer-key-foreground"), "ansi_bright_magenta"),
    "text-warning": "ansi_bright_yellow",
    "text-error": "ansi_bright_red",
    **dict.fromkeys(("input-selection-foreground", "screen-selection-foreground"), "ansi_black"),
    **dict.fromkeys(("input-selection-background", "screen-selection-background"), "ansi_bright_cyan"),
}


def of_16(*, dark: bool) -> dict[str, str]:
    """What to put in place of a theme's variables where a terminal has 16 colours, by whether its own ground is dark.

    What a theme says falls on whichever is nearest: the keys were red on grey, a chosen row's letters white on cyan.
    """
    return _ON_BLACK if dark else _ON_WHITE


def of_own(*, dark: bool) -> dict[str, str]:
    """The same for themes of the terminal's own colours: those that are far from its ground in any usual palette.

    On white no green, no cyan and no bright ones, on black no blue, red and magenta that are not bright.
    """
    return _OWN_ON_BLACK if dark else _OWN_ON_WHITE


def legible(variables: Mapping[str, str]) -> dict[str, str]:
    """What to put in place of a theme's variables, by Textual's names; {} where its colours are the terminal's own."""
    try:
        colours = {name: Color.parse(variables[name]) for name in (*_GROUNDS, "primary", "footer-background")}
        texts = {name: Color.parse(variables[name]) for name in (*_TEXTS, *_FOOTER)}
    except (KeyError, ColorParseError):
        return {}
    if any(colour.ansi is not None or colour.a < 1 for colour in colours.values()):
        return {}
    grounds = [colours[name] for name in _GROUNDS]
    cursor = colours["surface"].blend(colours["primary"], CURSOR)
    found = {name: _darkened(texts[name], [*grounds, cursor]).hex for name in _TEXTS}
    found |= {name: _darkened(texts[name], [colours["footer-background"]]).hex for name in _FOOTER}
    found |= {"input-selection-background": cursor.hex, "input-selection-foreground": found["foreground"]}
    for kind in ("", "-blurred"):
        found[f"block-cursor{kind}-background"] = cursor.hex
        found[f"block-cursor{kind}-foreground"] = found["foreground"]
        found[f"block-cursor{kind}-text-style"] = "bold"
    return found


def _darkened(colour: Color, grounds: Sequence[Color]) -> Color:
    """The colour, as near to black or white as it must be to be read on each of the grounds."""
    colour = grounds[0].blend(colour, colour.a, alpha=1.0) if colour.a < 1 else colour
    end = max(BLACK, WHITE, key=lambda end: _least(end, grounds))
    for step in range(STEPS + 1):
        mixed = colour.blend(end, step / STEPS)
        if _least(mixed, grounds) >= LEAST:
            return mixed
    return end


def _least(colour: Color, grounds: Sequence[Color]) -> float:
    """The contrast, 1 to 21, with the ground that it is least with."""
    own = luminance(colour.rgb) + 0.05
    others = [luminance(ground.rgb) + 0.05 for ground in grounds]
    return min(max(own, other) / min(own, other) for other in others)
