"""Lists to choose from in a window that leaves no line for them."""

from __future__ import annotations

from pathlib import Path

import pytest

from localmoe.tui.options import AppOptions
from localmoe.tui.widgets.choices import Choices

from .driving import ask, running, until
from .fake_model import FakeModel


@pytest.mark.parametrize("key", ["ctrl+o", "ctrl+s", "f6"], ids=["models", "chats", "runs"])
@pytest.mark.parametrize("size", [(20, 5), (10, 3), (4, 2)])
async def test_pages_of_a_list_without_a_line_are_none(tmp_path: Path, key, size):
    """Nothing happens, and every key works again in a larger window."""
    options = AppOptions(sessions=tmp_path / "chats.db", models=[("shown", tmp_path)])
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    async with running(FakeModel(answer="ok"), options=options, size=size) as (app, pilot):
        await ask(app, pilot)
        await pilot.press(key)
        await until(pilot, lambda: app.screen.query(Choices), "the list")
        await until(pilot, lambda: app.screen.query_one(Choices).option_count, "what is listed")
        await pilot.press("pagedown", "pageup")
        await pilot.resize_terminal(80, 24)
        await until(pilot, lambda: app.screen.query_one(Choices).size.height, "room")
        await pilot.press("pagedown")
        choices = app.screen.query_one(Choices)
        assert choices.highlighted == choices.option_count - 1
