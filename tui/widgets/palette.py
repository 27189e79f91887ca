"""How much work an expert does, as a colour or as a shade of one glyph.

Load is looked at as log2(load / even load): the middle of the scale is an expert that does its fair part. Levels are
small integers so that a frame is one table look-up a cell.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.color import Color
from rich.segment import Segment
from rich.style import Style
from textual.app import App
from textual.color import Color as TextualColor
from textual.color import ColorParseError

Levels = NDArray[np.uint8]
RGB = tuple[int, int, int]

STEPS = 16
"""Levels between the two ends of the scale; the middle one is even load."""
NEVER = 0
LOWEST, EVEN, HIGHEST = 1, 1 + STEPS // 2, 1 + STEPS
UNKNOWN = HIGHEST + 1
N_LEVELS = UNKNOWN + 1

LEGIBLE_AS_BLACK = 0.191
"""Luminance of a ground from which black letters are easier to read than white ones."""

# Stops along never, lowest .. even .. highest. Lightness grows with load (falls on a light ground), blue is below even
# load and orange above, so the scale also reads without hue.
_STOPS: dict[bool, tuple[RGB, tuple[RGB, ...]]] = {
    True: ((22, 24, 31), ((27, 35, 54), (40, 62, 98), (74, 84, 104), (196, 110, 46), (255, 214, 122))),
    False: ((242, 243, 246), ((222, 230, 242), (164, 190, 224), (176, 176, 180), (214, 120, 46), (122, 36, 8))),
}
_GLYPHS = ("·", "░", "▒", "▓", "█")
_GLYPH_STEPS = (-0.5, 0.25, 0.75)  # of the scale's half width: up to here ░, ▒, ▓; beyond, █


def few_colours(app: App[Any]) -> bool:
    """Whether the terminal cannot tell colours like these apart: 16 of them at most, or NO_COLOR."""
    return app.no_color or app.console.color_system in {None, "standard", "windows"}


def muted(app: App[Any]) -> Style:
    """What text that only explains has: the theme's colour for it, or dim letters where colours are few."""
    try:
        colour = TextualColor.parse(app.theme_variables.get("foreground-muted", "#0000"))
    except ColorParseError:  # "ansi_default 50%", of the themes that have the terminal's own colours
        return Style(dim=True)
    own = few_colours(app) or colour.a < 1 or colour.ansi is not None
    return Style(dim=True) if own else Style(color=colour.rich_color)


def scale_span(n_expert: int, n_used: int) -> float:
    """log2 of the ratio at the scale's ends: what an expert chosen by every token reaches, within 1..4."""
    if n_expert <= 0 or n_used <= 0:
        return 1.0
    return min(4.0, max(1.0, math.log2(n_expert / n_used)))


def levels(ratio: NDArray[np.float64], span: float) -> Levels:
    """Load over even load, any shape, as levels: NEVER for 0, UNKNOWN for NaN, else LOWEST..HIGHEST."""
    with np.errstate(divide="ignore", invalid="ignore"):
        place = np.log2(ratio) * (STEPS / 2 / span)
    known = np.nan_to_num(np.clip(np.rint(place), -STEPS // 2, STEPS // 2), nan=0.0)
    out: Levels = (known + EVEN).astype(np.uint8)
    out[ratio <= 0] = NEVER
    out[np.isnan(ratio)] = UNKNOWN
    return out


@cache
def colour(level: int, dark: bool) -> RGB:
    """The colour of a level; UNKNOWN looks like NEVER."""
    never, stops = _STOPS[dark]
    if level in (NEVER, UNKNOWN):
        return never
    place = (level - LOWEST) / STEPS * (len(stops) - 1)
    at = min(int(place), len(stops) - 2)
    part = place - at
    first, second = stops[at], stops[at + 1]
    return tuple(round(a + (b - a) * part) for a, b in zip(first, second, strict=True))  # type: ignore[return-value]


@cache
def glyph(level: int) -> str:
    """The shade of a level where colours cannot be told apart: never ·, then ░ ▒ ▓ █; a space for UNKNOWN."""
    if level == UNKNOWN:
        return " "
    if level == NEVER:
        return _GLYPHS[0]
    place = (level - EVEN) / (STEPS / 2)
    return _GLYPHS[1 + sum(place > step for step in _GLYPH_STEPS)]


@cache
def block(level: int, width: int, mark: str, dark: bool) -> Segment:
    """Columns on the level's colour, with a mark that stands out in the middle of each cell (or "" for none)."""
    return Segment(mark.center(width) if mark else " " * width, _style(level, dark) + Style(bold=True))


def name(dark: bool, level: int, width: int, text: str) -> Segment:
    """A text in the middle of a cell of the level's colour."""
    return Segment(text.center(width), _style(level, dark))


def shaded_name(style: Style, level: int, width: int, text: str) -> Segment:
    """A text in the middle of a cell of the level's glyphs."""
    return Segment(f" {text.strip()} ".center(width, glyph(level)), style)


@cache
def _style(level: int, dark: bool) -> Style:
    """Letters that can be read on the level's colour."""
    ground = colour(level, dark)
    front = (20, 20, 24) if luminance(ground) > LEGIBLE_AS_BLACK else (250, 250, 250)
    return Style(color=_rich(front), bgcolor=_rich(ground))


@cache
def half_block(upper: int, lower: int, width: int, dark: bool) -> Segment:
    """Upper half blocks: the upper level in front, the lower one behind."""
    return Segment("▀" * width, Style(color=_rich(colour(upper, dark)), bgcolor=_rich(colour(lower, dark))))


def luminance(rgb: RGB) -> float:
    """Relative luminance, 0 to 1, as WCAG 2 defines it."""
    linear = [part / 3294.6 if part <= 10 else ((part / 255 + 0.055) / 1.055) ** 2.4 for part in rgb]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _rich(rgb: RGB) -> Color:
    return Color.from_rgb(*rgb)
