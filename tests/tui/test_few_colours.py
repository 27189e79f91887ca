"""The chat in 16 colours, with NO_COLOR and in light themes: what is written, and what tells one thing from another."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.color import Color, ColorSystem
from rich.style import Style

from localmoe.tui.options import AppOptions
from localmoe.tui.screens.chat import ChatScreen
from localmoe.tui.screens.tokens import TokensScreen
from localmoe.tui.widgets.heatmap import Heatmap
from localmoe.tui.widgets.prompt import Prompt
from localmoe.tui.widgets.status import StatusLine
from localmoe.tui.widgets.turns import ReplyTurn, UserTurn

from .driving import ask, chat, lines, running, until
from .fake_model import ANSWER, FakeModel
from .test_colours import contrast

# xterm's own, where yellow on white is 1.6; other terminals have milder ones.
XTERM = [
    (0, 0, 0), (205, 0, 0), (0, 205, 0), (205, 205, 0), (0, 0, 238), (205, 0, 205), (0, 205, 205), (229, 229, 229),
    (127, 127, 127), (255, 0, 0), (0, 255, 0), (255, 255, 0), (92, 92, 255), (255, 0, 255), (0, 255, 255),
    (255, 255, 255),
]  # fmt: skip
WAYS = {
    "dark": {"TERM": "xterm-256color", "COLORTERM": "truecolor"},
    "light": {"TERM": "xterm-256color", "COLORTERM": "truecolor", "theme": "textual-light"},
    "16": {"TERM": "xterm", "COLORTERM": ""},
    "16 light": {"TERM": "xterm", "COLORTERM": "", "theme": "textual-light"},
    "16 solarized": {"TERM": "xterm", "COLORTERM": "", "theme": "solarized-light"},
    "none": {"TERM": "xterm-256color", "COLORTERM": "truecolor", "NO_COLOR": "1"},
    "none light": {"TERM": "xterm-256color", "COLORTERM": "", "NO_COLOR": "1", "theme": "textual-light"},
}


@pytest.fixture(params=WAYS)
def way(request, monkeypatch) -> dict[str, str]:
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name in ("TERM", "COLORTERM", "NO_COLOR"):
        if name in WAYS[request.param]:
            monkeypatch.setenv(name, WAYS[request.param][name])
    return WAYS[request.param]


def seen(color: Color, way: dict[str, str]) -> Color:
    """A colour as the terminal shows it."""
    if way["TERM"] != "xterm":
        return color
    number = color.downgrade(ColorSystem.STANDARD).number
    assert number is not None
    return Color.from_rgb(*XTERM[number])


def shown(app, way):
    """Every letter or digit on the screen, or on the panel that is over it: place, text, style."""
    panel = app.screen.children[0].region if app.screen.is_modal else app.screen.region
    for y, row in enumerate(app.screen._compositor.render_strips()):
        x = 0
        for text, style, _ in row:
            x += cell_len(text)
            written = style and style.color and style.bgcolor and any(char.isalnum() for char in text)
            if written and panel.contains(x - 1, y):
                front, back = (seen(color, way) for color in (style.color, style.bgcolor))
                front, back = (back, front) if style.reverse else (front, back)
                yield y, text, Style(color=front, bgcolor=back)


async def test_everything_written_in_the_chat_is_legible(way):
    """Title, question, reply with code and emphasis, notes, what a context says, status, and an empty input."""
    async with running(FakeModel(n_layer=6, n_expert=8, n_ctx=85, answer=ANSWER)) as (app, pilot):
        if "theme" in way:
            app.theme = way["theme"]
        await pilot.pause()
        await ask(app, pilot, "What is a mixture of experts?")
        await chat(app).transcript.add_note("stopped")
        await chat(app).transcript.add_note("it failed", error=True)
        app.screen.query_one(Prompt).blur()
        await until(pilot, lambda: chat(app).query_one("#context-note").display)
        await pilot.pause(0.1)
        for y, text, style in shown(app, way):
            assert contrast(style) >= 2.4, (y, text, str(style))


async def test_everything_written_about_tokens_is_legible(way):
    """The chat token by token, whatever expert's colour a token has."""
    async with running(FakeModel(n_layer=6, n_expert=8, answer=["word "] * 40)) as (app, pilot):
        if "theme" in way:
            app.theme = way["theme"]
        await ask(app, pilot)
        await pilot.press("f7")
        await until(pilot, lambda: isinstance(app.screen, TokensScreen), "the tokens")
        await pilot.pause(0.1)
        for y, text, style in shown(app, way):
            assert contrast(style) >= 2.4, (y, text, str(style))


@pytest.mark.parametrize("keys", [["ctrl+o"], ["f6"], ["f8"], ["f9"], ["f3", "f3", "tab", "tab", "down", "enter"]])
async def test_everything_written_in_lists_and_forms_is_legible(way, keys):
    """The chosen row too, and what the keys do."""
    options = AppOptions(models=[("demo", Path("demo.gguf"))])
    model = FakeModel(n_layer=6, n_expert=8, answer=["word "] * 20)
    async with running(model, options=options) as (app, pilot):
        if "theme" in way:
            app.theme = way["theme"]
        await ask(app, pilot)
        await pilot.press(*keys)
        await until(pilot, lambda: not isinstance(app.screen, ChatScreen), "the screen")
        await pilot.pause(0.2)
        for y, text, style in shown(app, way):
            assert contrast(style) >= 3.0, (y, text, str(style))


async def test_nothing_is_told_by_colour_alone(way):
    """Who speaks, what is stressed, how full the context is and how loaded an expert: by letters or shapes too."""
    model = FakeModel(n_layer=6, n_expert=8, answer="Some **bold** words and *italic* ones.", n_ctx=100)
    async with running(model) as (app, pilot):
        if "theme" in way:
            app.theme = way["theme"]
        await ask(app, pilot, "What is a mixture of experts?")
        await pilot.pause(0.1)
        question, reply = app.screen.query_one(UserTurn), app.screen.query_one(ReplyTurn)
        rows = app.screen._compositor.render_strips()
        assert rows[question.region.y].text[question.region.x] == "▌"
        assert rows[reply.region.y].text[reply.region.x] == " "
        styles = {text.strip(): style for text, style, _ in rows[reply.region.y] if style is not None}
        assert styles["bold"].bold
        assert styles["italic"].italic
        [meter] = lines(app.screen.query_one(StatusLine))
        bar = meter[meter.index("context") + 8 : meter.rindex(" ", 0, meter.index("/"))].strip()
        assert bar.count("━") == round(len(bar) * chat(app).status.used / 100)
        assert set(bar) <= {"━", "─"}
        heatmap = app.screen.query_one(Heatmap)
        few = way["TERM"] == "xterm" or "NO_COLOR" in way
        assert heatmap.look.shaded == few
        assert bool(set("".join(lines(heatmap)[1:7])) & set("░▒▓█")) == few
