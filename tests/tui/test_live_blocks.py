"""A reply's blocks while it is written: what they look like, and what that costs."""

from __future__ import annotations

import pytest

from localmoe.tui.widgets.turns import ReplyTurn

from .driving import ask, chat, lines, running, screen_text
from .fake_model import ANSWER, FakeModel

LISTS = (
    "Steps:\n\n1. first\n2. second, which is long enough to wrap on a narrow screen and go on below\n   - inner *one*\n"
    "   - inner two\n3. third\n\n   still third\n" + "".join(f"{n}. more\n" for n in range(4, 12)) + "\n- a\n- b\n\n"
    "  ```python\n  x = 1\n  ```\n- c\n\n> quoted\n\n| a | b |\n|---|---|\n| 1 | 2 |\n| 3 | 4 |\n\n"
    "Title\n---\n\nEnd\n- d\n"
)


@pytest.mark.parametrize("text", [ANSWER, LISTS], ids=["answer", "lists"])
@pytest.mark.parametrize("size", [1, 3, 17])
async def test_fed_in_pieces_equals_the_whole(text, size):
    """A reply fed in pieces looks like one fed at once, whatever its blocks turn into on the way."""
    async with running(FakeModel(answer="."), size=(100, 90)) as (app, pilot):
        await ask(app, pilot)
        transcript = chat(app).transcript
        for at in range(0, len(text), size):
            await transcript.feed(text[at : at + size])
            if at % 5 == 0:
                await pilot.pause()
        transcript.settle()
        await pilot.pause()
        pieces = screen_text(app)
    async with running(FakeModel(answer="."), size=(100, 90)) as (app, pilot):
        await ask(app, pilot)
        await chat(app).transcript.feed(text)
        chat(app).transcript.settle()
        await pilot.pause()
        whole = screen_text(app)
        assert app.screen.query_one(ReplyTurn).source == "." + text
    left = [line[:48] for line in pieces.splitlines()[:-3]]
    assert left == [line[:48] for line in whole.splitlines()[:-3]]


async def test_a_growing_text_needs_few_layouts():
    """Sixty pieces of nine lines: a layout for every few lines, not for every piece; none of the room is left over."""
    async with running(FakeModel(answer=["word"]), size=(80, 24)) as (app, pilot):
        await ask(app, pilot)
        transcript, layouts = chat(app).transcript, []
        app.screen.screen_layout_refresh_signal.subscribe(app.screen, lambda _: layouts.append(1))
        for _ in range(60):
            await transcript.feed(" another")
            await pilot.pause()
        transcript.settle()
        await pilot.pause()
        assert 2 <= len(layouts) <= 12
        paragraph = app.screen.query_one(ReplyTurn).children[0]
        shown = lines(paragraph)
        assert len(shown) == paragraph.size.height >= 11
        assert shown[-1].strip()
