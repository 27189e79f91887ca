"""The whole screen at three sizes, letters and colours, compared with what was looked at and kept in tests/tui/data.

`LOCALMOE_RECORD=1 pytest tests/tui/test_screens.py` keeps the screens as they are now: look at them before committing.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.style import Style
from textual.pilot import Pilot

from localmoe.tui.app import LocalMoeApp
from localmoe.tui.screens.figures import FiguresScreen
from localmoe.tui.screens.rules import RulesScreen
from localmoe.tui.screens.tokens import TokensScreen

from .driving import ask, chat, running, screen_text, until
from .fake_model import FakeModel

DATA = Path(__file__).parent / "data"
SIZES = [(80, 24), (120, 40), (200, 60)]
LABELS = ["Once upon a time", "def fibonacci(n):", "What is 17 + 25?", "Hi! How are you?"]
VIEWS = {
    "chat": ("", None),
    "figures": ("f10", FiguresScreen),
    "rules": ("f8", RulesScreen),
    "tokens": ("f7", TokensScreen),
}


def steady(text: str) -> str:
    """A screen without what depends on the machine's speed, or on where spaces end."""
    text = re.sub(r"prompt +[\d.–]+ +reply +[\d.–]+( +)tok/s", r"prompt X reply X\1tok/s", text)
    return "\n".join(line.rstrip() for line in text.splitlines()) + "\n"


def painted(app: LocalMoeApp) -> str:
    """The colours of a screen: a letter a style, then each line's styles with the columns they take.

    Of the lines with the cursor and with speeds nothing: they change.
    """
    known: dict[str, str] = {}
    rows = []
    for row in app.screen._compositor.render_strips():
        if "tok/s" in row.text or "›" in row.text:
            rows.append("-")
            continue
        runs: list[tuple[str, int]] = []
        for text, style, _ in row:
            name = known.setdefault(look(style or Style(), blank=not text.strip()), f"s{len(known)}")
            before = runs.pop()[1] if runs and runs[-1][0] == name else 0
            runs.append((name, before + cell_len(text)))
        rows.append(" ".join(f"{name}:{width}" for name, width in runs))
    return "\n".join([*(f"{name} {style}" for style, name in known.items()), "", *rows]) + "\n"


def look(style: Style, *, blank: bool) -> str:
    """A style as what is seen of it: of a blank its ground."""
    front, ground = (style.bgcolor, style.color) if style.reverse else (style.color, style.bgcolor)
    words = [word for word in ("bold", "italic", "underline", "strike", "dim") if getattr(style, word) and not blank]
    colours = [colour.name if colour is not None else "-" for colour in ((ground,) if blank else (ground, front))]
    return " ".join([*colours, *words])


def compare(got: str, kept: Path) -> None:
    if os.environ.get("LOCALMOE_RECORD"):
        DATA.mkdir(exist_ok=True)
        kept.write_text(got, encoding="utf-8")
    assert got == kept.read_text(encoding="utf-8")


async def shown(app: LocalMoeApp, pilot: Pilot[None], view: str) -> None:
    """Ask, wait, and open a view."""
    key, screen = VIEWS[view]
    await ask(app, pilot, "What is a mixture of experts?")
    chat(app).action_mode("start")
    await pilot.pause(0.3)  # a screen that is under another one is not laid out
    if key:
        await pilot.press(key)
        await until(pilot, lambda: isinstance(app.screen, screen), view)
    await pilot.pause(0.3)


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize("view", VIEWS)
async def test_the_screen_is_the_one_that_was_looked_at(view, size, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")  # shades: loads are in the text, not in colours alone
    async with running(FakeModel(labels=LABELS), size=size) as (app, pilot):
        await shown(app, pilot, view)
        compare(steady(screen_text(app)), DATA / f"{view}-{size[0]}x{size[1]}.txt")


@pytest.mark.parametrize("theme", ["textual-dark", "textual-light"])
@pytest.mark.parametrize(
    ("view", "size"), [("chat", (80, 24)), ("chat", (120, 40)), ("chat", (200, 60)), ("tokens", (120, 40))]
)
async def test_its_colours_are_those_that_were_looked_at(view, size, theme, monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("COLORTERM", "truecolor")
    monkeypatch.setenv("TERM", "xterm-256color")
    async with running(FakeModel(labels=LABELS), size=size) as (app, pilot):
        app.theme = theme
        await shown(app, pilot, view)
        compare(painted(app), DATA / f"{view}-{size[0]}x{size[1]}-{theme}.txt")
