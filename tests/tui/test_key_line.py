"""The line of keys below the chat."""

from __future__ import annotations

import threading

import pytest

from localmoe.tui.widgets.key_line import KeyLine

from .driving import ask, chat, lines, running, until
from .fake_model import FakeModel


@pytest.mark.parametrize("width", [60, 80, 120])
async def test_keys_are_named_as_far_as_they_fit_and_none_is_cut(width):
    async with running(FakeModel(), size=(width, 24)) as (app, pilot):
        await pilot.pause()
        line = app.screen.query_one(KeyLine)
        shown = lines(line)[0].rstrip()
        words = [f"{key.display} {key.description}" for key in line._keys]
        assert shown.split() == " ".join(words).split()
        assert words[:2] == ["esc Stop", "^n New"]
        assert len(shown) <= width
        assert len(words) >= width // 13


async def test_stop_is_dim_until_a_reply_is_written_and_then_a_click_does_it():
    model = FakeModel()
    model.gate = threading.Semaphore(1)
    async with running(model, size=(120, 40)) as (app, pilot):
        line = app.screen.query_one(KeyLine)

        def is_dim() -> bool:
            stop = next(segment for segment in line.render_line(0) if "Stop" in segment.text)
            return bool(stop.style and stop.style.dim)

        assert is_dim()
        await pilot.press("h", "i", "enter")
        await until(pilot, lambda: not is_dim(), "the key that stops")
        await pilot.click(KeyLine, offset=(lines(line)[0].index("Stop"), 0))
        model.gate.release()
        await until(pilot, lambda: not chat(app).busy, "the end")
        assert chat(app).conversation.turns[-1].stop_reason == "cancelled"
        await until(pilot, is_dim, "the line without it")


async def test_to_begin_a_reply_makes_no_widget_of_the_line_anew():
    async with running(FakeModel(), size=(120, 40)) as (app, pilot):
        await ask(app, pilot)
        assert not app.screen.query_one(KeyLine).children
