"""What stands beside the chat in wide and tall windows: how large the heatmap is, and where the figures are."""

from __future__ import annotations

import pytest

from localmoe.tui.widgets.heatmap import Heatmap
from localmoe.tui.widgets.layer_figures import LayerFigures
from localmoe.tui.widgets.prompt import Prompt
from localmoe.tui.widgets.side import Side
from localmoe.tui.widgets.transcript import Transcript

from .driving import ask, chat, lines, running, screen_text, until
from .fake_model import FakeModel

pytestmark = pytest.mark.usefixtures("truecolour")


@pytest.mark.parametrize(
    ("size", "n_layer", "table", "memory", "columns"),
    [
        ((120, 40), 6, False, False, 68),
        ((160, 50), 6, True, True, 88),
        ((160, 50), 26, False, True, 88),
        ((160, 50), 30, False, True, 88),
        ((160, 50), 34, False, False, 88),
        ((160, 24), 6, False, False, 88),
        ((200, 60), 6, True, True, 128),
        ((200, 60), 30, True, True, 58),
    ],
)
async def test_figures_stand_where_there_is_room(size, n_layer, table, memory, columns):
    """Below the experts wherever they fit there: the chat has the rest; else beside them in a rich window."""
    async with running(FakeModel(n_layer=n_layer, n_expert=8), size=size) as (app, pilot):
        await ask(app, pilot)
        await pilot.pause(0.3)
        text = screen_text(app)
        assert ("ov1.25" in text, "MEMORY MAP" in text) == (table, memory)
        assert app.screen.query_one(Transcript).region.width == columns
        figures = app.screen.query_one(LayerFigures)
        if memory:
            assert "last 256 tokens" in text
            place = app.screen.query_one("#figures").region
            assert len([line for line in lines(figures) if line.strip()]) <= place.height
            assert figures.region.bottom <= place.bottom  # nothing to scroll


async def test_figures_follow_another_size_and_f3_hides_all():
    async with running(FakeModel(n_layer=6, n_expert=8), size=(160, 50)) as (app, pilot):
        await ask(app, pilot)
        await until(pilot, lambda: "ov1.25" in screen_text(app), "the figures")
        await pilot.resize_terminal(120, 40)
        await until(pilot, lambda: "ov1.25" not in screen_text(app), "no figures")
        await pilot.resize_terminal(200, 60)
        await until(pilot, lambda: "ov1.25" in screen_text(app), "the figures again")
        await pilot.press("f3")
        await until(pilot, lambda: app.screen.query_one(Transcript).region.width == 200, "the chat alone")
        assert not app.screen.query_one(Side).region
        await pilot.press("f3")
        await until(pilot, lambda: "ov1.25" in screen_text(app) and "EXPERTS" in screen_text(app), "all of it")
        assert chat(app).experts.display


async def test_the_keyboard_is_never_left_with_what_is_hidden():
    """F3, or a window without room for the experts: what is typed then goes into the input."""
    async with running(FakeModel(n_layer=6, n_expert=8), size=(120, 40)) as (app, pilot):
        prompt = app.screen.query_one(Prompt)
        app.screen.query_one(Heatmap).focus()
        await pilot.press("f3", *"one ")
        assert prompt.text == "one "
        await pilot.press("f3")
        await pilot.pause(0.1)
        app.screen.query_one(Heatmap).focus()
        await pilot.pause()
        await pilot.resize_terminal(50, 20)
        await until(pilot, lambda: app.screen.focused is prompt, "the input")
        await pilot.press(*"two")
        assert prompt.text == "one two"


@pytest.mark.parametrize(("size", "lines_a_layer"), [((80, 24), 2), ((120, 40), 3), ((160, 50), 3), ((200, 60), 4)])
async def test_cells_of_few_layers_grow_with_the_window(size, lines_a_layer):
    """Numbers and dots stand in the middle of a cell."""
    async with running(FakeModel(n_layer=5, n_expert=8), size=size) as (app, pilot):
        await ask(app, pilot)
        await pilot.pause(0.3)
        heatmap = app.screen.query_one(Heatmap)
        assert heatmap.cells.height == lines_a_layer
        shown = lines(heatmap)[heatmap.ABOVE :][: heatmap.cells.lines]
        named = [n for n, line in enumerate(shown) if line[:2].strip()]
        assert named == [layer * lines_a_layer + (lines_a_layer - 1) // 2 for layer in range(5)]
        assert [n for n, line in enumerate(shown) if "•" in line] == named
