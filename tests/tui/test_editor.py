"""Undoing and redoing in what is written, also where the scrollbar comes or goes with it."""

from __future__ import annotations

import pytest
from textual.events import Paste

from localmoe.tui.widgets.editor import Editor

from .driving import running, until
from .fake_model import FakeModel

LINES = "".join(f"line {number}\n" for number in range(30))


@pytest.mark.parametrize(("key", "field"), [(None, "#prompt"), ("f9", "#p-system")], ids=["prompt", "system prompt"])
async def test_a_long_paste_is_undone_and_redone(key, field):
    """It is higher than its field: its scrollbar goes before the cursor does."""
    async with running(FakeModel(), size=(80, 24)) as (app, pilot):
        if key is not None:
            await pilot.press(key)
            await until(pilot, lambda: app.screen.query(field), "the field")
        editor = app.screen.query_one(field, Editor)
        editor.focus()
        await pilot.press("a")
        app.post_message(Paste(LINES))
        for keys, text in (([], "a" + LINES), (["ctrl+z"], "a"), (["ctrl+y"], "a" + LINES), (["ctrl+z"] * 2, "")):
            await pilot.press(*keys)
            await until(pilot, lambda text=text: editor.text == text, "the text")
            assert editor.show_vertical_scrollbar == bool(LINES in text)
            assert editor.cursor_location == editor.document.end
