"""Every layer's figures, their words, and the memory map."""

from __future__ import annotations

import re

import pytest

from localmoe.tui.screens.figures import FiguresScreen
from localmoe.tui.screens.help import WORDS
from localmoe.tui.widgets.layer_figures import COLUMNS, LayerFigures

from .driving import ask, chat, running, screen_text, until
from .fake_model import FakeModel


def rows_of(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines() if re.match(r"\s+\d+\s+[\d.–]+\s", line)]


async def test_a_row_a_layer_with_what_the_statistics_say():
    """F10, by phase with the arrows: the very figures of ExpertStatistics, and the most frequent pair."""
    async with running(FakeModel(n_layer=6, n_expert=8, answer=["a"] * 50)) as (app, pilot):
        await ask(app, pilot)
        stats = chat(app).experts.stats
        await pilot.press("f10", "right", "right")
        await until(pilot, lambda: isinstance(app.screen, FiguresScreen) and app.screen.phase == "replies", "figures")
        figures, pairs = stats.layers(1), stats.pairs(1, 1)
        rows = rows_of(screen_text(app))
        assert len(rows) == 6
        for i, row in enumerate(rows):
            busiest = int(figures.share[i].argmax())
            want = [str(i), f"{figures.entropy[i]:.2f}", str(busiest), f"{figures.max_over_mean[i]:.1f}×"]
            assert row[:4] == want
            assert row[4] == str(int(figures.dead[i].sum()))
            assert row[5] == f"{figures.importance_cv[i]:.2f}"
            assert row[6] == f"{figures.layer_reuse[i]:.0%}"
            assert row[7] == "–"  # the stand-in's trace has no probabilities to take a margin from
            assert row[8:10] == [f"{figures.overflow[0, i]:.0%}", f"{figures.overflow[1, i]:.0%}"]
            assert row[10] == f"{figures.skipped[i]:.0%}"
            assert f"{pairs[i][0].first}+{pairs[i][0].second}:" in row
        assert "replies, 50 tokens" in screen_text(app)


async def test_the_keys_that_change_the_phase_are_in_the_footer_and_work():
    """The scrolling box around the table has left and right as well, and hid these."""
    async with running(FakeModel(n_layer=6, n_expert=8, answer=["a"] * 50), size=(80, 24)) as (app, pilot):
        await ask(app, pilot)
        await pilot.press("f10")
        await until(pilot, lambda: isinstance(app.screen, FiguresScreen), "figures")
        assert "← → Prompts or replies" in screen_text(app)
        for phase in ("prompts,", "replies,", "prompts and replies,"):
            await pilot.press("right")
            await pilot.pause()
            assert screen_text(app).splitlines()[0].strip().startswith(phase)


@pytest.mark.parametrize("size", [(40, 12), (60, 20), (72, 24)])
async def test_columns_that_have_no_room_stand_in_a_table_below(size):
    """Every column is there once, each table has the layers, and no row is wider than the screen."""
    async with running(FakeModel(n_layer=2, n_expert=16, answer=["a"] * 50), size=size) as (app, pilot):
        await ask(app, pilot)
        await pilot.press("f10")
        await until(pilot, lambda: isinstance(app.screen, FiguresScreen), "figures")
        await pilot.pause(0.1)
        shown = app.screen.query_one(LayerFigures)
        rows = [line.plain for line in shown.content.split()]
        heads = [at for at, row in enumerate(rows) if row.startswith("layer ")]
        assert len(heads) > 1
        assert sorted(word for at in heads for word in rows[at].split()[1:]) == sorted([*COLUMNS, "pair"][1:])
        for at in heads:
            assert [row.split()[0] for row in rows[at + 1 : at + 3]] == ["0", "1"]
        assert max(len(row.rstrip()) for row in rows) <= shown.size.width


async def test_the_memory_map_and_the_working_set():
    async with running(FakeModel(n_layer=6, n_expert=8, answer=["a"] * 50)) as (app, pilot):
        await ask(app, pilot)
        stats = chat(app).experts.stats
        await pilot.press("f10")
        await until(pilot, lambda: isinstance(app.screen, FiguresScreen), "figures")
        text = screen_text(app)
        assert "experts        " in text
        assert "144.0 MiB (54%)" in text  # 6 layers of 8 experts of 3 MiB; 80 MiB and 45 MiB besides
        used = int(stats.working_set(16).sum()) * 3
        assert f"{used}.0 MiB ({used / 144:.0%})" in text


def test_every_word_on_the_screen_is_explained():
    """Columns and titles are words of F1, one line each."""
    known = " ".join(WORDS).lower()
    for word in (*COLUMNS, "pair", "working set", "memory map", "entropy", "top-k", "share", "even", "gate weight"):
        if word != "layer":
            assert word.lower() in known, word
    assert all(len(meaning) < 110 for meaning in WORDS.values())


@pytest.mark.parametrize(("size", "seen"), [((160, 30), False), ((160, 50), True), ((200, 60), True)])
async def test_wide_terminals_have_the_figures_beside_the_chat(size, seen):
    """From 190 columns on, or from 140 on where the experts leave lines for them; F3 hides them with the pane."""
    async with running(FakeModel(n_layer=6, n_expert=8, answer=["a"] * 50), size=size) as (app, pilot):
        await ask(app, pilot)
        assert (len(rows_of(_column(app))) == 6) is seen
        await pilot.press("f3")
        await pilot.pause()
        assert not app.screen.query_one(LayerFigures).is_on_screen


def _column(app) -> str:
    return "\n".join("  " + line[-66:] for line in screen_text(app).splitlines() if "×" in line[-66:])
