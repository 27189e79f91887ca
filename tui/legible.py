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
    "primary", "secondary", "accent", "warning", "success", "error")))  # fmt: skip
_FOOTER = ("footer-foreground", "footer-key-foreground", "footer-description-foreground")


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
