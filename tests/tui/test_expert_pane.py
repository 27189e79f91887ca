"""The heatmap's views, and what is told of a cell."""

from __future__ import annotations

import numpy as np
import pytest

from localmoe.tui.options import AppOptions
from localmoe.tui.screens.runs import RunsScreen
from localmoe.tui.widgets.cell_line import CellFigures, cell_lines
from localmoe.tui.widgets.expert_pane import MODES
from localmoe.tui.widgets.heatmap import Heatmap
from localmoe.tui.widgets.path import TokenPath
from tests.experts.recordings import recording

from .driving import ask, chat, running, screen_text, until
from .fake_model import FakeModel

pytestmark = pytest.mark.usefixtures("truecolour")


async def test_the_cursor_names_cells():
    """Arrows move from cell to cell of the focused heatmap; leaving it takes the cursor away."""
    async with running(FakeModel(n_layer=6, n_expert=8, labels=[f"prompt {e}" for e in range(8)])) as (app, pilot):
        await ask(app, pilot)
        heatmap = app.screen.query_one(Heatmap)
        heatmap.focus()
        await pilot.press("down", "down", "right", "left", "left", "right")
        await pilot.pause()
        assert "layer 1 expert 1" in screen_text(app)
        assert "prompt 1" in screen_text(app)
        assert "▾" in screen_text(app)
        await pilot.press("tab")
        await pilot.pause()
        assert "▾" not in screen_text(app)


LABELS = ["stories for children, told at bedtime in a quiet voice", "def f(x):"] * 4


@pytest.mark.parametrize(
    ("size", "said"),
    [
        ((80, 24), ["L2 E1  {share:.1%}  weight {weight:.1%}"]),
        ((120, 24), ["layer 2 expert 1  {share:.1%}  weight {weight:.1%}"]),
        ((120, 40), ["layer 2 expert 1  {share:.1%}  weight {weight:.1%}  {even:.2g}× even", "3.0 MiB  def f(x):"]),
        ((160, 50), ["layer 2 expert 1  {share:.1%}  weight {weight:.1%}  {even:.2g}× even", "3.0 MiB  def f(x):"]),
    ],
)
@pytest.mark.parametrize("mode", ["start", "prefill", "decode", "moving"])
async def test_a_cell_tells_its_share_by_choices_and_by_gate_weight(size, said, mode):
    async with running(FakeModel(n_layer=6, n_expert=8, labels=LABELS), size=size) as (app, pilot):
        await ask(app, pilot)
        pane = chat(app).experts
        pane.set_mode(mode)
        pane._pointed(Heatmap.Pointed(2, 1))
        await pilot.pause()
        stats = pane.stats
        layers = stats.layers({"prefill": 0, "decode": 1}.get(mode))
        share, weight = layers.share[2, 1], layers.weight_share[2, 1]
        if mode == "moving":
            share, weight = stats.moving_share()[2, 1], stats.moving_weight_share()[2, 1]
        shown = screen_text(app)
        for line in said:
            assert line.format(share=share, weight=weight, even=share * 8) in shown


async def test_a_cell_of_the_last_token_has_a_share_by_weight_alone():
    async with running(FakeModel(n_layer=6, n_expert=8)) as (app, pilot):
        await ask(app, pilot)
        pane = chat(app).experts
        pane.set_mode("last")
        pane._pointed(Heatmap.Pointed(2, 1))
        await pilot.pause()
        assert f"layer 2 expert 1  {pane.stats.last_share()[2, 1]:.1%}  " in screen_text(app)
        assert "  weight" not in screen_text(app)


def test_a_cells_line_gives_way_to_what_fits():
    """The least important goes first, and a label is cut rather than left out."""
    cell = CellFigures(47, 127, 128, 0.0123, 0.0145, 0.02, "saved", "3.0 MiB", "a long label of an expert")
    assert cell_lines(cell, 29, 1).plain == "L47 E127  1.2%  saved 2.0%"
    assert cell_lines(cell, 62, 1).plain == "layer 47 expert 127  1.2%  saved 2.0%  weight 1.5%  1.6× even"
    assert cell_lines(cell, 90, 1).plain.endswith("weight 1.5%  1.6× even  3.0 MiB  a long label of a…")
    assert cell_lines(cell, 49, 2).plain.splitlines()[1] == "3.0 MiB  a long label of an expert"
    assert max(len(cell_lines(cell, width, 1).plain) - width for width in range(8, 120)) <= 0


@pytest.mark.parametrize("size", [(120, 40), (160, 50), (200, 60)])
async def test_the_pane_tells_reuse_and_the_working_set(size):
    """All that the last 64 tokens went through, in 6 layers of experts of 3 MiB."""
    async with running(FakeModel(n_layer=6, n_expert=8), size=size) as (app, pilot):
        await ask(app, pilot)
        stats = chat(app).experts.stats
        used = int(stats.working_set(64).sum()) * 3
        reuse = stats.layers().layer_reuse.mean()
        assert f"reuse {reuse:.0%}  last 64 tokens used {used}.0 MiB" in screen_text(app)
        busiest, dead = stats.layers().max_over_mean.max(), stats.layers().dead.sum()
        assert f"busiest {busiest:.1f}×  dead {dead} of 48" in screen_text(app)


async def test_the_path_is_the_one_of_the_token_whose_choices_are_marked():
    """The newest token that ran: a step's own experts are those of the token before it."""
    model = FakeModel(n_layer=6, n_expert=8)
    async with running(model) as (app, pilot):
        await ask(app, pilot)
        number, _, experts, weights = model.trace.rows[-1]
        assert f"PATH of token “<{number}>”" in screen_text(app)
        path = app.screen.query(TokenPath).last()
        order = np.argsort(-weights, axis=1, kind="stable")
        np.testing.assert_array_equal(path._experts, np.take_along_axis(experts, order, 1))
        # a token runs and no step follows it, as where a reply is stopped
        model._route(2, 1)
        chat(app).follow.draw(chat(app).worker.drain(), writing=False)
        await pilot.pause()
        assert f"PATH of token “<{number + 1}>”" in screen_text(app)


async def test_sorted_by_load_puts_the_busiest_first():
    async with running(FakeModel(n_layer=6, n_expert=8)) as (app, pilot):
        await ask(app, pilot)
        pane = chat(app).experts
        pane.set_mode("sorted")
        share = pane.stats.layers().share
        busiest = int(share[2].argmax())
        heatmap = app.screen.query_one(Heatmap)
        np.testing.assert_allclose(heatmap._ratio[2], np.sort(share[2])[::-1] * 8)
        pane._pointed(Heatmap.Pointed(2, 0))
        await pilot.pause()
        assert f"layer 2 expert {busiest}" in screen_text(app)


async def test_the_difference_from_a_point_in_the_chat():
    """F6 keeps the load; the tokens from there on, and no older ones, are compared with it."""
    model = FakeModel(n_layer=6, n_expert=8)
    async with running(model) as (app, pilot):
        await pilot.press("f6")
        await until(pilot, lambda: isinstance(app.screen, RunsScreen), "what to compare with")
        await pilot.press("enter")
        await until(pilot, lambda: app.screen is chat(app), "the chat")
        assert chat(app).experts.mode == "moving"  # there is nothing to compare with yet
        await ask(app, pilot)
        before = chat(app).experts.stats.layers().share
        await pilot.press("f6")
        await until(pilot, lambda: isinstance(app.screen, RunsScreen), "what to compare with")
        await pilot.press("enter")
        await until(pilot, lambda: app.screen is chat(app), "the chat")
        assert "0 tokens since then, against before" in screen_text(app)
        assert np.isnan(app.screen.query_one(Heatmap)._ratio).all()
        seen = model.trace.count
        await ask(app, pilot, "more")
        n = model.trace.count - seen
        assert f"{n} tokens since then, against before" in screen_text(app)
        chosen = np.stack([row[2] for row in model.trace.rows[seen:]])
        share = np.stack([np.bincount(chosen[:, layer].ravel(), minlength=8) for layer in range(6)]) / (2 * n)
        ratio = app.screen.query_one(Heatmap)._ratio
        known = before > 0
        np.testing.assert_allclose(ratio[known], (share / np.where(known, before, 1))[known])
        chat(app).experts._pointed(Heatmap.Pointed(0, 0))
        await pilot.pause()
        assert f"{share[0, 0]:.1%}  before {before[0, 0]:.1%}" in screen_text(app)


@pytest.mark.parametrize(
    ("size", "said"), [((120, 40), "against …-long-name-that-ends-in-20261125"), ((80, 24), "difference  –")]
)
async def test_a_runs_name_is_cut_where_there_is_little_room(size, said):
    async with running(FakeModel(n_layer=6, n_expert=8), size=size) as (app, pilot):
        await ask(app, pilot)
        pane = chat(app).experts
        pane.compare_with(pane.stats.layers().share, "a-run-of-a-long-name-that-ends-in-20261125")
        pane.set_mode("difference")
        await pilot.pause()
        head = next(line for line in screen_text(app).splitlines() if "EXPERTS" in line)
        assert said in head


async def test_a_saved_run_of_this_model_or_of_another():
    """A recording of the same shape becomes a mode of F2; another is said to be one."""
    same = recording(np.zeros((3, 6, 1)), n_expert=8)
    async with running(FakeModel(n_layer=6, n_expert=8), options=AppOptions(saved=same)) as (app, pilot):
        await ask(app, pilot)
        for _ in range(len(MODES) - 1):
            await pilot.press("f2")
        await pilot.pause()
        assert MODES["difference"] in screen_text(app)
        chat(app).experts._pointed(Heatmap.Pointed(0, 0))
        await pilot.pause()
        assert "saved 100.0%" in screen_text(app)
    other = recording(np.zeros((3, 2, 1)), n_expert=4)
    async with running(FakeModel(n_layer=6, n_expert=8), options=AppOptions(saved=other)) as (app, pilot):
        await pilot.pause()
        assert any("another model" in said.message for said in app._notifications)


async def test_a_new_chat_shows_no_path_of_the_old_one():
    model = FakeModel(answer="one two", n_layer=6)
    async with running(model) as (app, pilot):
        await ask(app, pilot)
        await until(pilot, lambda: f"“<{model.trace.count - 1}>”" in screen_text(app))
        await pilot.press("ctrl+n")
        await until(pilot, lambda: "PATH" not in screen_text(app) and "“<" not in screen_text(app))
        assert not any(path._experts.size for path in app.screen.query(TokenPath))


async def test_a_very_small_window_keeps_the_models_name_and_short_warnings():
    async with running(FakeModel(answer="word " * 80, n_ctx=100), size=(40, 12)) as (app, pilot):
        await ask(app, pilot)
        text = screen_text(app)
        assert "SmolLM2 4x135M demo" in text
        assert "The context is nearly full" in text or "The context is full" in text
        assert app.screen.query_one("#context-note").size.height <= 2
