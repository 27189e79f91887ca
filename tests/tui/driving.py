"""Running the app without a terminal, over a model that answers at once."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from textual.pilot import Pilot
from textual.widget import Widget

from localmoe.tui.app import LocalMoeApp, create_app
from localmoe.tui.options import AppOptions
from localmoe.tui.screens.chat import ChatScreen
from localmoe.tui.widgets.prompt import Prompt

from .fake_model import FakeModel
from .settling import DEADLINE


async def until(pilot: Pilot[None], true: Callable[[], object], what: str = "it", deadline: float = DEADLINE) -> None:
    """Wait for a condition; fail after so many seconds."""
    end = time.monotonic() + deadline
    while not true():
        assert time.monotonic() < end, f"waited in vain for {what}"
        await pilot.pause(0.02)
    await pilot.pause()


@asynccontextmanager
async def running(
    model: FakeModel | None = None,
    *,
    size: tuple[int, int] = (120, 40),
    loader: Callable[[Any], Any] | None = None,
    options: AppOptions | None = None,
    path: Path | None = Path("demo.gguf"),
) -> AsyncIterator[tuple[LocalMoeApp, Pilot[None]]]:
    """The app on its chat screen (or on any, with an own loader)."""
    app = create_app(path, options, loader or (lambda progress: model))
    async with app.run_test(size=size) as pilot:
        if loader is None and path is not None:
            await until(pilot, lambda: isinstance(app.screen, ChatScreen) and app.screen.is_mounted, "the chat")
        yield app, pilot
    app.worker.close()
    app.close_store()


def chat(app: LocalMoeApp) -> ChatScreen:
    screen = app.screen_stack[-1]
    assert isinstance(screen, ChatScreen)
    return screen


async def ask(app: LocalMoeApp, pilot: Pilot[None], text: str = "hi") -> None:
    """Put a text into the input, send it and wait for the whole reply."""
    app.screen.query_one(Prompt).insert(text)
    await pilot.press("enter")

    def done() -> bool:
        here = chat(app)
        return bool(here.conversation.turns) and not here.busy and here.status.state == "ready"

    await until(pilot, done, "the reply")


def lines(widget: Widget) -> list[str]:
    """What a widget shows, line by line."""
    return [widget.render_line(y).text for y in range(widget.size.height)]


def screen_text(app: LocalMoeApp) -> str:
    """All that is on the screen, as the terminal would get it without styles."""
    width, height = app.size
    rows = app.screen._compositor.render_strips()
    assert len(rows) == height
    return "\n".join("".join(segment.text for segment in row)[:width] for row in rows)
