"""The whole screen at three sizes, compared with what was looked at and kept in tests/tui/data.

`LOCALMOE_RECORD=1 pytest tests/tui/test_screens.py` keeps the screens as they are now: look at them before committing.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

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


@pytest.fixture(autouse=True)
def plain(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")  # shades: loads are in the text, not in colours alone


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize("view", VIEWS)
async def test_the_screen_is_the_one_that_was_looked_at(view, size):
    key, screen = VIEWS[view]
    async with running(FakeModel(labels=LABELS), size=size) as (app, pilot):
        await ask(app, pilot, "What is a mixture of experts?")
        chat(app).action_mode("start")
        await pilot.pause(0.3)  # a screen that is under another one is not laid out
        if key:
            await pilot.press(key)
            await until(pilot, lambda: isinstance(app.screen, screen), view)
        await pilot.pause(0.3)
        got = steady(screen_text(app))
    kept = DATA / f"{view}-{size[0]}x{size[1]}.txt"
    if os.environ.get("LOCALMOE_RECORD"):
        DATA.mkdir(exist_ok=True)
        kept.write_text(got, encoding="utf-8")
    assert got == kept.read_text(encoding="utf-8")
