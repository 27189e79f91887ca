"""Keys that come faster than the app takes them, as from a person who types while the machine is busy."""

from __future__ import annotations

from pathlib import Path

import pytest
from textual import events
from textual.widgets import Input

from localmoe.tui.app import LocalMoeApp
from localmoe.tui.in_order import LATE, Done
from localmoe.tui.options import AppOptions
from localmoe.tui.screens.chat import ChatScreen
from localmoe.tui.screens.rules import RulesScreen
from localmoe.tui.screens.sessions import SessionsScreen
from localmoe.tui.widgets.prompt import Prompt

from .driving import ask, chat, running, until
from .fake_model import FakeModel


def at_once(app: LocalMoeApp, *keys: str) -> None:
    for key in keys:
        app.post_message(events.Key(key, " " if key == "space" else key if len(key) == 1 else None))


async def test_a_letter_after_backspace_stays():
    async with running(FakeModel(n_layer=6, n_expert=8)) as (app, pilot):
        at_once(app, "a", "b", "backspace", "c")
        await until(pilot, lambda: app.screen.query_one(Prompt).text == "ac", "what was typed")
        await pilot.press("f8")
        await until(pilot, lambda: isinstance(app.screen, RulesScreen), "the panel")
        at_once(app, "backspace", "1", "enter")
        await until(pilot, lambda: isinstance(app.screen, ChatScreen), "the chat")
        assert chat(app).n_used == 1


async def test_enter_takes_what_was_typed_before_it(tmp_path: Path):
    """A search and its first result, in a list whose newest chat is another."""
    async with running(FakeModel(answer="ok"), options=AppOptions(sessions=tmp_path / "sessions.db")) as (app, pilot):
        await ask(app, pilot, "owls")
        await pilot.press("ctrl+n")
        await ask(app, pilot, "foxes")
        await pilot.press("ctrl+s")
        await until(pilot, lambda: isinstance(app.screen, SessionsScreen) and app.screen.query(Input), "the chats")
        await pilot.pause()
        at_once(app, "o", "w", "l", "enter")
        await until(pilot, lambda: isinstance(app.screen, ChatScreen) and chat(app).record.title == "owls", "the chat")


async def test_what_is_typed_behind_e_goes_into_the_turn_that_is_edited():
    async with running(FakeModel(answer="ok")) as (app, pilot):
        await ask(app, pilot, "owls")
        await pilot.press("tab", "up")
        at_once(app, "e", "space", "o")
        await until(pilot, lambda: app.screen.query_one(Prompt).text == "owls o", "what was typed")


async def test_a_paste_keeps_its_place():
    async with running(FakeModel()) as (app, pilot):
        at_once(app, "a", "b", "backspace")
        app.post_message(events.Paste("c"))
        at_once(app, "d")
        await until(pilot, lambda: app.screen.query_one(Prompt).text == "acd", "what was typed")


async def test_a_key_that_gets_lost_holds_up_no_other(monkeypatch):
    """Its widget may be taken away while it is on its way."""
    async with running(FakeModel()) as (app, pilot):
        monkeypatch.setattr(Done, "bubble", False)
        at_once(app, "a", "b", "c")
        await until(pilot, lambda: app.screen.query_one(Prompt).text == "abc", f"letters, each after {LATE} s")


@pytest.mark.parametrize("typed", ["", "ab"])
async def test_keys_on_their_way_when_the_app_is_left_are_dropped(typed):
    """No screen is left to take them, nor what follows a key."""
    async with running(FakeModel()) as (app, _):
        await app._close_all()
        at_once(app, *typed)
        app.post_message(Done(again=True))
        app.post_message(events.Paste("c"))
        app.post_message(Done(again=False))
