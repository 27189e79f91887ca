"""The line of keys below the chat."""

from __future__ import annotations

import threading

import pytest

from localmoe.tui.options import AppOptions
from localmoe.tui.widgets.key_line import KeyLine
from localmoe.tui.widgets.prompt import Prompt

from .driving import ask, chat, lines, running, screen_text, until
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


LINES = {
    "ctrl+s": "⏎ Go on  ^o With its model  ^r Rename  ^e Export  ^d Delete  esc Back",
    "ctrl+o": "⏎ Open  esc Back",
    "f6": "⏎ Show  ^s Save this chat's run  esc Back",
    "f7": "← → Token  ↑ ↓ Layer  esc Back  f1 Help  ^q Quit",
    "f8": "⏎ Apply  ^t As started  ^b Compare  esc Back, nothing changed",
    "f9": "^s Take all  ^r Default  esc Back, nothing changed",
    "f10": "← → Prompts or replies  esc Back  f1 Help  ^q Quit",
}


@pytest.mark.parametrize("key", LINES)
async def test_what_a_screen_is_for_comes_first_and_the_way_back_last(key, tmp_path):
    options = AppOptions(sessions=tmp_path / "s.db")
    async with running(FakeModel(n_layer=6, n_expert=8), options=options, size=(80, 24)) as (app, pilot):
        await ask(app, pilot)
        await pilot.press(key)
        await until(pilot, lambda: app.chat is None, "the screen")
        line = app.screen.query_one(KeyLine)
        await until(pilot, lambda: lines(line)[0].split() == LINES[key].split(), LINES[key])


async def test_the_widget_with_the_keyboard_names_its_keys_and_escape_leads_back_to_the_input():
    async with running(FakeModel(n_layer=6, n_expert=8), size=(120, 40)) as (app, pilot):
        await ask(app, pilot)
        line = app.screen.query_one(KeyLine)
        for start in (
            "↑ ↓ Turn  e Edit  a Again  c Copy  b Code  ← → Version  esc Input  ^n New",
            "← ↑ ↓ → Cell  ⏎ Its tokens  esc Input  ^n New",
        ):
            await pilot.press("tab")
            if "Cell" in start:
                await pilot.press("tab")
            await until(pilot, lambda s=start: " ".join(lines(line)[0].split()).startswith(" ".join(s.split())), start)
            await pilot.press("escape")
            await until(pilot, lambda: lines(line)[0].startswith(" esc Stop"), "the input's keys")
            assert app.screen.focused is app.screen.query_one(Prompt)


async def test_escape_stops_a_reply_wherever_the_keyboard_is():
    model = FakeModel()
    model.gate = threading.Semaphore(1)
    async with running(model, size=(120, 40)) as (app, pilot):
        await pilot.press("h", "i", "enter")
        await until(pilot, lambda: chat(app).busy, "the reply")
        await pilot.press("tab")
        await until(pilot, lambda: "esc Stop" in screen_text(app).splitlines()[-1], "the key that stops")
        await pilot.press("escape")
        model.gate.release()
        await until(pilot, lambda: not chat(app).busy, "the end")
        assert chat(app).conversation.turns[-1].stop_reason == "cancelled"
        assert not chat(app).writing


@pytest.mark.parametrize(("width", "last"), [(120, "f3 Pane"), (200, "^p Commands")])
async def test_more_columns_name_more_keys(width, last):
    async with running(FakeModel(), size=(width, 40)) as (app, pilot):
        await until(pilot, lambda: screen_text(app).rstrip().endswith(last), last)


async def test_a_dense_model_has_no_keys_about_experts():
    async with running(FakeModel(n_expert=0, n_used=0), size=(200, 60)) as (app, pilot):
        await pilot.pause()
        for name in ("Tokens", "Routing", "Figures", "View", "k+1", "Difference"):
            assert name not in screen_text(app).splitlines()[-1]


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
