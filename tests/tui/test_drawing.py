"""What is drawn in steps is what Textual would draw at once."""

from __future__ import annotations

import pytest
from textual.strip import Strip
from textual.widget import Widget

from localmoe.tui.drawing import mark
from localmoe.tui.widgets import line as line_module
from localmoe.tui.widgets.heatmap import Heatmap
from localmoe.tui.widgets.line import Line
from localmoe.tui.widgets.live_code import Painter
from localmoe.tui.widgets.page import Page
from localmoe.tui.widgets.path import TokenPath
from localmoe.tui.widgets.status import StatusLine
from localmoe.tui.widgets.turns import ReplyTurn, UserTurn
from localmoe.tui.widgets.words import Words

from .driving import ask, chat, running
from .fake_model import FakeModel

WORDS = "words, some of *them* marked and `others` code; a-long-one-that-no-line-breaks-before-its-end-is-reached " * 4
CODE = (
    "Code:\n\n```python\n@cache\ndef f(x: int) -> str:\n    '''Two\n    lines.'''\n\n    return f'{x}' * 3  # `x`\n\n\n"
    "class A:\n\tb = 1\n" + "    c = " + "1 + " * 30 + "1\n```\n\n"
)
PLAIN_CODE = "Run\n\n```\n$ make `pwd`/all\nfor x in 1 2 3; do\n  echo ~~~\n```\n\nThen ~~~ is there.\n"
TEXTS = {
    "words": WORDS,
    "unbroken": "пон" * 80,
    "list": "- " + WORDS + "\n- " + WORDS + "\n  1. inner " + WORDS + "\n",
    "heading": "## A title that *wraps* where the screen is narrow, so it takes two lines or three of it\n\ntext #1 #2",
    "code": CODE + WORDS,
    "plain code": PLAIN_CODE,
    "breaks": "one  \ntwo\\\nthree and more words\n\n> quoted words\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\nend",
}


def _cells(strips: list[Strip]) -> list[list[tuple[str, object, object, object, object]]]:
    """Characters and how they look, without spaces at the end."""
    rows = []
    for strip in strips:
        row = [
            (char, *((s.style.color, s.style.bgcolor, s.style.bold, s.style.italic) if s.style else (None,) * 4))
            for s in strip
            for char in s.text
        ]
        while row and row[-1][0] == " ":
            row.pop()
        rows.append(row)
    return rows


def _fresh(page: Page) -> list[Strip]:
    """Every row as it is where nothing is known of the rows before."""
    rows = []
    for y, line in enumerate(page.lines):
        whole = Line(line.text, line.lead, line.below, line.kind)
        width, style = page.content_size.width, page.visual_style
        rows += [whole.strip(n, width, y, style, page._get_style, None) for n in range(len(whole.rows(width)))]
    return rows


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize("size", [2, 13])
async def test_every_step_of_a_growing_text_looks_as_if_it_were_drawn_at_once(text, size):
    """Also where only the end of the last line was wrapped and drawn."""
    async with running(FakeModel(answer=["ok"]), size=(80, 50)) as (app, pilot):
        await ask(app, pilot)
        await chat(app).action_new_chat()
        await ask(app, pilot)
        transcript = chat(app).transcript
        await transcript.feed("\n\n")
        for at in range(0, len(text), size):
            await transcript.feed(text[at : at + size])
            if at // size % 4 == 0:
                await pilot.pause()
            page = app.screen.query_one(ReplyTurn).page
            if page is not None and page._width:
                rows = _fresh(page)
                assert _cells([page.render_line(y) for y in range(len(rows))]) == _cells(rows)
                assert all(not page.render_line(y).text.strip() for y in range(len(rows), page.size.height))


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
async def test_a_text_in_pieces_is_coloured_as_the_whole(text):
    shown = []
    for size in (7, len(text)):
        async with running(FakeModel(answer=["ok"]), size=(80, 60)) as (app, pilot):
            await ask(app, pilot)
            transcript = chat(app).transcript
            await transcript.feed("\n\n")
            for at in range(0, len(text), size):
                await transcript.feed(text[at : at + size])
            await transcript.finish()
            transcript.settle()
            await pilot.pause()
            rows = app.screen._compositor.render_strips()
            shown.append(_cells([row.crop(0, transcript.region.right) for row in rows[:50]]))
    assert shown[0] == shown[1]


async def test_a_line_of_code_is_coloured_once(monkeypatch):
    """150 lines: each when it is there and while it grows, however many stand before it."""
    coloured = []
    colour = Painter._colour
    monkeypatch.setattr(
        Painter, "_colour", lambda self, line, states: (coloured.append(1), colour(self, line, states))[1]
    )
    async with running(FakeModel(answer=["ok"]), size=(80, 40)) as (app, pilot):
        await ask(app, pilot)
        transcript = chat(app).transcript
        await transcript.feed("\n\n```python\n")
        for number in range(150):
            await transcript.feed(f"x_{number} = ")
            await transcript.feed(f"{number}\n")
        assert app.screen.query_one(Page).lines[-1].plain == "x_149 = 149"
        assert len(coloured) <= 3 * 150 + 10


@pytest.mark.parametrize("language", ["python", "c", "html", "bash", "json", "rust", "", "no-such-language"])
def test_code_is_painted_in_pieces_as_in_one(language):
    code = "int f(x) { /* a\n b */ return \"x\\\n y\"; }\n# 'c'\n<a href='b'>\n\n  {\"k\": [1, 2.5e3, true]}\n"
    whole, pieces = Painter(language, code), Painter(language, "")
    for char in code:
        pieces.add(char)
    assert [(line.plain, line.spans) for line in pieces.lines] == [(line.plain, line.spans) for line in whole.lines]
    assert "\n".join(line.plain for line in whole.lines) == code


async def test_what_changed_is_drawn_as_in_a_full_drawing():
    async with running(FakeModel(), size=(120, 40)) as (app, pilot):
        await ask(app, pilot)
        compositor = app.screen._compositor
        for widgets in ([StatusLine], [Heatmap, StatusLine], [ReplyTurn], [TokenPath, Heatmap, ReplyTurn]):
            for widget in (each for kind in widgets for each in app.screen.query(kind)):
                mark(widget)
            compositor.update_widgets(app.screen._dirty_widgets)
            update = compositor.render_partial_update()
            full = compositor.render_strips()
            assert update is not None
            for y in {y for y, _, _ in update.spans}:
                for (x, strip), end in zip(update.chops[y].items(), update.chop_ends[y], strict=True):
                    assert _cells([strip]) == _cells([full[y].crop(x, end)])
        assert compositor.render_partial_update() is None


@pytest.mark.parametrize("no_colour", [False, True])
async def test_own_lines_are_those_textual_draws(monkeypatch, no_colour):
    if no_colour:
        monkeypatch.setenv("NO_COLOR", "1")
    async with running(FakeModel(), size=(120, 40)) as (app, pilot):
        await ask(app, pilot)
        for kind in (Heatmap, TokenPath, ReplyTurn, Page, UserTurn, Words):
            for widget in app.screen.query(kind):
                crop = widget.region.reset_offset
                own, usual = widget.render_lines(crop), Widget.render_lines(widget, crop)
                assert _cells(own) == _cells(usual)
                assert [strip.cell_length for strip in own] == [strip.cell_length for strip in usual]


async def test_what_is_kept_of_a_drawing_is_forgotten_where_colours_change():
    """A turn that is chosen has another ground; a theme has other colours for everything."""

    async def same_as_anew() -> list[object]:
        await pilot.pause()
        shown = []
        for widget in app.screen.query(Widget):
            if isinstance(widget, (Page, UserTurn, Words)):
                kept = _cells(widget.render_lines(widget.region.reset_offset))
                widget.notify_style_update()
                assert kept == _cells(widget.render_lines(widget.region.reset_offset)), widget
                shown.append(kept)
        return shown

    async with running(FakeModel(answer=[TEXTS["list"]]), size=(120, 40)) as (app, pilot):
        await ask(app, pilot)
        before = await same_as_anew()
        chat(app).transcript.focus()
        await same_as_anew()
        app.theme = "textual-light"
        assert await same_as_anew() != before


async def test_a_page_that_scrolls_draws_no_row_twice(monkeypatch):
    """At 80 tokens a second it scrolls once a second, and all rows in sight are to be drawn."""
    made = []
    segments = line_module._segments
    monkeypatch.setattr(line_module, "_segments", lambda *a: (made.append(1), segments(*a))[1])
    async with running(FakeModel(answer=[" ".join(f"w{i:04}" for i in range(1000))]), size=(80, 40)) as (app, pilot):
        await ask(app, pilot)
        page = app.screen.query_one(Page)
        page.render_lines(page.region.reset_offset)
        assert made
        made.clear()
        page.render_lines(page.region.reset_offset)
        assert not made
