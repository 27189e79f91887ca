"""A model that cannot be opened: what can be done then, and that nothing that was there before is lost."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from localmoe.engine.compiling import SAID
from localmoe.errors import BadInputError, MemoryLimitError
from localmoe.tui.screens.loading import ErrorScreen
from localmoe.tui.screens.models import ModelsScreen
from localmoe.tui.screens.parameters import ParametersScreen
from tests.tiny import write_tiny

from .driving import ask, chat, lines, running, screen_text, until
from .fake_model import FakeModel
from .settling import DEADLINE


def refusing(*answers: Exception | None) -> Any:
    """A loader whose calls end as said, in turn; the last one goes on holding."""
    left = list(answers)

    def load(progress: object) -> FakeModel:
        answer = left.pop(0) if len(left) > 1 else left[0]
        if answer is not None:
            raise answer
        return FakeModel(answer="ok")

    return load


async def refused(app: Any, pilot: Any) -> None:
    await until(pilot, lambda: isinstance(app.screen, ErrorScreen), "the panel")


async def test_r_tries_again_and_the_app_ends_well() -> None:
    async with running(loader=refusing(BadInputError("cut off", file="demo.gguf"), None)) as (app, pilot):
        await refused(app, pilot)
        assert "R tries this one again" in " ".join(screen_text(app).replace("│", " ").split())
        assert "localmoe inspect" in screen_text(app)
        await pilot.press("r")
        await until(pilot, lambda: app.chat is not None, "the chat")
        await pilot.press("ctrl+q")
        await pilot.pause(0.1)
        assert app.return_code == 0


@pytest.mark.parametrize("key", ["enter", "escape"])
async def test_from_another_model_one_goes_back_to_the_chat(key: str, tmp_path: Path, monkeypatch: Any) -> None:
    """Esc is how a panel is left: it does not end the app where there is something to go back to."""
    monkeypatch.setenv("LOCALMOE_MODELS", str(tmp_path))
    write_tiny(tmp_path / "other.gguf")
    async with running(loader=refusing(None, BadInputError("cut off", file="other.gguf"), None)) as (app, pilot):
        await until(pilot, lambda: app.chat is not None, "the chat")
        await ask(app, pilot, "question")
        await pilot.press("ctrl+o")
        await until(pilot, lambda: isinstance(app.screen, ModelsScreen), "the picker")
        await pilot.press(*str(tmp_path / "other.gguf"), "enter")
        await refused(app, pilot)
        assert "Enter goes back to demo.gguf" in screen_text(app)
        keys = lines(app.screen.query_one("KeyLine"))[0]
        assert ["Back" in keys, "q Quit" in keys, keys.count("Quit"), keys.count("odel")] == [True, True, 1, 1]
        await pilot.press(key)
        await until(pilot, lambda: app.chat is not None and not app.chat.busy, "the chat")
        assert [turn.text for turn in chat(app).record.turns] == ["question", "ok"]


async def test_a_context_that_does_not_fit_is_taken_back() -> None:
    async with running(loader=refusing(None, MemoryLimitError("does not fit"), None)) as (app, pilot):
        await until(pilot, lambda: app.chat is not None, "the chat")
        await ask(app, pilot, "question")
        await pilot.press("f9")
        await until(pilot, lambda: isinstance(app.screen, ParametersScreen), "the editor")
        app.screen.query_one("#p-n_ctx").value = "9000000"
        await pilot.press("ctrl+s")
        await refused(app, pilot)
        await pilot.press("escape")
        await until(pilot, lambda: app.chat is not None and not app.chat.busy, "the chat")
        assert "n_ctx" not in chat(app).record.parameters
        assert [turn.text for turn in chat(app).record.turns] == ["question", "ok"]


async def test_a_first_model_leads_nowhere_back() -> None:
    """Nor does one that is opened again with nothing changed."""
    async with running(loader=refusing(BadInputError("cut off"))) as (app, pilot):
        await refused(app, pilot)
        assert "Enter closes the app" in screen_text(app)
        await pilot.press("escape")
        await pilot.pause(0.1)
        assert app.return_code == 3


async def test_what_a_file_is_is_said_while_it_is_opened(tmp_path: Path) -> None:
    """Also how long compiling takes, after what came before it."""
    path, ready = write_tiny(tmp_path / "m.gguf"), threading.Event()

    def load(progress: Any) -> FakeModel:
        progress(SAID)
        assert ready.wait(DEADLINE)
        return FakeModel()

    async with running(loader=load, path=path, size=(80, 24)) as (app, pilot):
        await until(pilot, lambda: "llama, 2 of 8 experts" in screen_text(app), "the kind")
        await until(pilot, lambda: "half a minute" in screen_text(app), "the time")
        assert "opening the model" in screen_text(app)
        ready.set()
        await until(pilot, lambda: app.chat is not None, "the chat")
