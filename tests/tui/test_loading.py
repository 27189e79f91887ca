"""What can be written while a model is opened, and where it goes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from localmoe.errors import BadInputError
from localmoe.sessions.record import Record
from localmoe.sessions.store import Store
from localmoe.tui.options import AppOptions
from localmoe.tui.screens.chat import ChatScreen
from localmoe.tui.screens.help import HelpScreen
from localmoe.tui.screens.loading import ErrorScreen, LoadingScreen
from localmoe.tui.screens.models import ModelsScreen
from localmoe.tui.widgets.prompt import Prompt

from .driving import chat, running, screen_text, until
from .fake_model import FakeModel
from .settling import DEADLINE


def waiting(
    model: FakeModel, errors: list[Exception] | None = None
) -> tuple[Callable[[Any], FakeModel], threading.Event]:
    """A loader that waits for an event; it raises the errors first, one a call."""
    ready = threading.Event()

    def load(progress: object) -> FakeModel:
        assert ready.wait(DEADLINE)
        if errors:
            raise errors.pop(0)
        return model

    return load, ready


async def is_loading(app: Any, pilot: Any) -> None:
    await until(pilot, lambda: isinstance(app.screen, LoadingScreen) and app.screen.query(Prompt))


async def test_a_message_can_be_sent_before_the_model_is_there():
    """It waits, is shown, and goes when the model is open; what is typed after it stays in the input."""
    model = FakeModel(answer="ok")
    load, ready = waiting(model)
    async with running(loader=load, size=(80, 24)) as (app, pilot):
        await is_loading(app, pilot)
        await pilot.press(*"first one", "enter", *"then")
        assert "Sent when the model is open: first one" in screen_text(app)
        await pilot.press("enter")
        assert app.screen.query_one(Prompt).text == "then"
        ready.set()
        await until(pilot, lambda: model.asked and not chat(app).busy)
        assert [turn.text for turn in chat(app).record.turns] == ["first one", "ok"]
        assert app.screen.query_one(Prompt).text == "then"
        await pilot.press("!")
        assert app.screen.query_one(Prompt).text == "then!"


async def test_a_message_that_waits_can_be_taken_back():
    model = FakeModel(answer="ok")
    load, ready = waiting(model)
    async with running(loader=load) as (app, pilot):
        await is_loading(app, pilot)
        await pilot.press(*"one", "enter", *"two", "escape")
        assert app.screen.query_one(Prompt).text == "one\ntwo"
        assert "Sent when" not in screen_text(app)
        ready.set()
        await until(pilot, lambda: isinstance(app.screen, ChatScreen))
        await pilot.pause()
        assert app.screen.query_one(Prompt).text == "one\ntwo"
        assert not model.asked


async def test_what_was_written_survives_a_model_that_cannot_be_opened(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("LOCALMOE_MODELS", str(tmp_path))
    (tmp_path / "other.gguf").write_bytes(b"GGUF")
    model = FakeModel(answer="ok")
    load, ready = waiting(model, [BadInputError("bad magic", file="demo.gguf")])
    async with running(loader=load) as (app, pilot):
        await is_loading(app, pilot)
        await pilot.press(*"question", "enter")
        ready.set()
        await until(pilot, lambda: isinstance(app.screen, ErrorScreen))
        await pilot.press("o")
        await until(pilot, lambda: isinstance(app.screen, ModelsScreen))
        await pilot.press(*str(tmp_path / "other.gguf"), "enter")
        await until(pilot, lambda: model.asked)
        assert model.asked[0]["prompt"][-1]["content"] == "question"


async def test_a_chat_that_is_gone_on_with_is_read_before_the_message(tmp_path: Path):
    """--continue: the message comes after the old turns."""
    store = Store(tmp_path / "chats.db")
    record = Record(store, "demo.gguf", "", {})
    record.ask("old question")
    reply = record.begin_reply()
    reply.text = "old answer"
    record.end_reply(reply, "eos")
    store.close()
    model = FakeModel(answer="ok")
    load, ready = waiting(model)
    options = AppOptions(sessions=tmp_path / "chats.db", resume=record.key)
    async with running(loader=load, options=options) as (app, pilot):
        await is_loading(app, pilot)
        await pilot.press(*"new", "enter")
        ready.set()
        await until(pilot, lambda: model.asked and model.asked[-1].get("max_tokens") != 0 and not chat(app).busy)
        assert [turn.text for turn in chat(app).record.turns] == ["old question", "old answer", "new", "ok"]


async def test_help_stays_open_when_the_model_comes():
    """And below it is the chat, not the screen that waited."""
    load, ready = waiting(FakeModel())
    async with running(loader=load) as (app, pilot):
        await is_loading(app, pilot)
        await pilot.press("f1")
        ready.set()
        await until(pilot, lambda: any(isinstance(screen, ChatScreen) for screen in app.screen_stack))
        await until(pilot, lambda: isinstance(app.screen, HelpScreen))
        assert not any(isinstance(screen, LoadingScreen) for screen in app.screen_stack)
        await pilot.press("escape", *"typed")
        assert app.screen.query_one(Prompt).text == "typed"


async def test_what_needs_a_chat_is_not_offered_before():
    load, ready = waiting(FakeModel())
    async with running(loader=load) as (app, pilot):
        await is_loading(app, pilot)
        assert "Chats" not in screen_text(app)
        assert "F1 Help" in screen_text(app) or "f1 Help" in screen_text(app)
        ready.set()
        await until(pilot, lambda: isinstance(app.screen, ChatScreen))
        await until(pilot, lambda: "Chats" in screen_text(app))
