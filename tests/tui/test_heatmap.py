"""The heatmap's layouts, colours and lines."""

from __future__ import annotations

import math

import numpy as np
import pytest
from textual.app import App, ComposeResult

from localmoe.tui.widgets import palette
from localmoe.tui.widgets.cells import fit, pool
from localmoe.tui.widgets.heatmap import Heatmap
from tests.slowness import least, slowness

from .driving import lines, screen_text

pytestmark = pytest.mark.usefixtures("truecolour")


class Alone(App[None]):
    """A heatmap with the screen to itself."""

    def compose(self) -> ComposeResult:
        yield Heatmap()


@pytest.mark.parametrize(
    ("n_layer", "n_expert", "width", "height", "want"),
    [
        # layers, experts, room -> cell width, cell lines, half, layers and experts a cell
        (6, 8, 50, 20, (6, 3, False, 1, 1)),
        (6, 8, 50, 17, (6, 2, False, 1, 1)),
        (6, 8, 70, 40, (8, 4, False, 1, 1)),
        (30, 4, 60, 40, (8, 1, False, 1, 1)),
        (30, 4, 29, 15, (6, 1, True, 1, 1)),
        (32, 8, 30, 32, (3, 1, False, 1, 1)),
        (48, 64, 132, 48, (2, 1, False, 1, 1)),
        (48, 128, 132, 48, (1, 1, False, 1, 1)),
        (48, 128, 66, 24, (1, 1, True, 1, 3)),
        (96, 256, 68, 24, (1, 1, True, 2, 4)),
        (2, 256, 300, 10, (1, 1, False, 1, 1)),
    ],
)
def test_cells_are_the_largest_that_fit(n_layer, n_expert, width, height, want):
    """Wide and tall cells first, then full, then half lines, then pooled."""
    cells = fit(n_layer, n_expert, width, height, shaded=False)
    assert (cells.width, cells.height, cells.half, cells.per_row, cells.per_column) == want


@pytest.mark.parametrize("n_layer", [2, 6, 30, 61, 96])
@pytest.mark.parametrize("n_expert", [2, 8, 60, 128, 256])
@pytest.mark.parametrize("room", [(28, 15), (49, 30), (200, 90)])
@pytest.mark.parametrize("shaded", [False, True])
def test_cells_never_leave_their_room_and_miss_nobody(n_layer, n_expert, room, shaded):
    """Every layer and expert is behind some cell, and the picture is not larger than the room."""
    cells = fit(n_layer, n_expert, *room, shaded=shaded)
    assert cells.gutter + cells.columns * cells.width <= room[0]
    assert cells.lines <= room[1]
    assert cells.rows * cells.per_row >= n_layer
    assert cells.columns * cells.per_column >= n_expert
    assert not (shaded and cells.half)


def test_pooling_takes_the_busiest_and_never_adds():
    """Four layers of three experts in 2 x 2 cells: each shows its largest; NaN only where all are."""
    values = np.array([[1, 2, 3], [4, 0, 9], [5, 5, math.nan], [5, 5, math.nan]])
    cells = fit(4, 3, 4, 1, shaded=False)
    assert (cells.per_row, cells.per_column) == (2, 2)
    np.testing.assert_array_equal(pool(values, cells), [[4, 9], [5, math.nan]])


def test_levels_put_even_load_in_the_middle():
    """Even load is the middle, doubling and halving are alike far from it, the ends are clipped."""
    ratio = np.array([[0.0, math.nan, 1.0, 2.0, 0.5, 4.0, 0.25, 100.0, 0.001]])
    low, mid, high = palette.LOWEST, palette.EVEN, palette.HIGHEST
    got = palette.levels(ratio, 2.0)[0].tolist()
    assert got == [palette.NEVER, palette.UNKNOWN, mid, mid + 4, mid - 4, high, low, high, low]


def test_scale_ends_where_every_token_would_choose_the_same():
    """log2(E / K), within one and four."""
    assert palette.scale_span(8, 2) == 2.0
    assert palette.scale_span(4, 4) == 1.0
    assert palette.scale_span(256, 2) == 4.0


def test_a_pooled_difference_shows_what_changed_most():
    """Of 1, 1/8 and 4 it is the loss; a new expert's infinity is more than that, and NaN is nothing."""
    cells = fit(1, 6, 4, 1, shaded=False)
    assert (cells.per_column, cells.columns) == (3, 2)
    values = np.array([[1.0, 0.125, 4.0, math.nan, math.inf, 0.5]])
    np.testing.assert_array_equal(pool(values, cells, changed=True), [[0.125, math.inf]])
    np.testing.assert_array_equal(pool(np.where(values > 9, 2.0, values), cells), [[4.0, 2.0]])


@pytest.mark.parametrize("dark", [True, False])
def test_lightness_follows_load(dark):
    """Ends are told apart by lightness alone: hot is far from the ground, cold is near it."""

    def light(level: int) -> float:
        red, green, blue = palette.colour(level, dark)
        return 0.3 * red + 0.59 * green + 0.11 * blue

    ground = light(palette.NEVER)
    distance = [abs(light(level) - ground) for level in (palette.LOWEST, palette.EVEN, palette.HIGHEST)]
    assert distance == sorted(distance)
    assert distance[-1] > 100


def test_glyphs_follow_load():
    """Shades for terminals with few colours: never, less, even, more, most."""
    ratio = np.array([[0.0, 0.2, 1.0, 1.6, 4.0, math.nan]])
    assert [palette.glyph(level) for level in palette.levels(ratio, 2.0)[0].tolist()] == [*"·░▒▓█ "]


async def test_full_cells_are_coloured_and_the_newest_choice_is_marked():
    """Two layers of four experts: numbers, backgrounds by load and a dot on the chosen."""
    async with Alone().run_test(size=(30, 6)) as pilot:
        heatmap = pilot.app.query_one(Heatmap)
        ratio = np.array([[0.0, 1.0, 2.0, 1.0], [1.0, 1.0, 1.0, 1.0]])
        chosen = np.array([[0, 0, 1, 0], [1, 0, 0, 0]], bool)
        heatmap.show(ratio, chosen, 1.0)
        await pilot.pause()
        got = lines(heatmap)
        assert got[0].split() == ["0", "1", "2", "3"]
        assert got[1].startswith("0 ")
        assert got[1].index("•") == 2 + 2 * 7 + 3
        assert got[3].startswith("1 ")
        assert got[3].index("•") == 2 + 3
        row = [segment for segment in heatmap.render_line(1) if segment.style and segment.style.bgcolor][1:]
        colours = [tuple(segment.style.bgcolor.triplet) for segment in row[:4]]
        levels = (palette.NEVER, palette.EVEN, palette.HIGHEST, palette.EVEN)
        assert colours == [palette.colour(level, True) for level in levels]


async def test_half_lines_hold_two_layers():
    """Upper layer in front, lower behind; an odd last layer stands alone."""
    async with Alone().run_test(size=(12, 5)) as pilot:
        heatmap = pilot.app.query_one(Heatmap)
        heatmap.show(np.array([[1.0, 2.0], [0.5, 1.0]] * 2 + [[1.0, 1.0]]), None, 1.0)
        await pilot.pause()
        assert [line[:1] for line in lines(heatmap)[1:4]] == ["0", "2", "4"]
        halves = [segment for segment in heatmap.render_line(1) if segment.text.startswith("▀")]
        assert tuple(halves[0].style.color.triplet) == palette.colour(palette.EVEN, True)
        assert tuple(halves[0].style.bgcolor.triplet) == palette.colour(palette.LOWEST, True)
        assert tuple(halves[1].style.color.triplet) == palette.colour(palette.HIGHEST, True)


async def test_pooled_cells_say_so():
    """A note names how many layers and experts a cell stands for."""
    async with Alone().run_test(size=(44, 12)) as pilot:
        heatmap = pilot.app.query_one(Heatmap)
        heatmap.show(np.ones((48, 128)), None, 4.0)
        await pilot.pause()
        assert any("busiest of 3 layers × 4 experts" in line for line in lines(heatmap))


async def test_shades_without_colours(monkeypatch):
    """NO_COLOR: glyphs, brackets around the chosen, one layer a line, a legend of shades."""
    monkeypatch.setenv("NO_COLOR", "1")
    async with Alone().run_test(size=(20, 6)) as pilot:
        heatmap = pilot.app.query_one(Heatmap)
        heatmap.show(np.array([[0.0, 1.0, 2.0, 0.5]]), np.array([[0, 0, 1, 0]], bool), 1.0)
        await pilot.pause()
        assert heatmap.look.shaded
        assert lines(heatmap)[1].rstrip() == "0 ····▒▒▒▒[██]░░░░"
        assert any("never" in line for line in lines(heatmap))


async def test_sixteen_colours_are_shaded(monkeypatch):
    """A terminal of 16 colours cannot tell the scale's colours apart."""
    monkeypatch.setenv("COLORTERM", "")
    monkeypatch.setenv("TERM", "xterm")
    async with Alone().run_test(size=(20, 6)) as pilot:
        assert pilot.app.query_one(Heatmap).look.shaded


async def test_places_name_their_cells():
    """The mouse's place gives a cell's first layer and expert, and nothing outside the picture."""
    async with Alone().run_test(size=(44, 12)) as pilot:
        heatmap = pilot.app.query_one(Heatmap)
        heatmap.show(np.ones((48, 128)), None, 4.0)
        await pilot.pause()
        assert heatmap.cell_at(0, 3) is None
        assert heatmap.cell_at(3, 0) is None
        assert heatmap.cell_at(3, 1) == (0, 0)
        assert heatmap.cell_at(4, 2) == (6, 4)
        assert heatmap.cell_at(3, 11) is None


@pytest.mark.parametrize(("width", "n_step"), [(27, 9), (40, 17)])
async def test_the_legend_has_fewer_steps_where_its_words_need_the_room(width, n_step):
    async with Alone().run_test(size=(width, 34)) as pilot:
        heatmap = pilot.app.query_one(Heatmap)
        heatmap.show(np.ones((30, 8)), None, 2.0)
        assert heatmap.cells is not None
        legend = lines(heatmap)[heatmap.ABOVE + heatmap.cells.lines]
        assert legend.split() == ["1/4", "▀" * n_step, "4×", "even"]


async def test_columns_in_order_of_load_are_places_and_not_experts():
    """#1 is each layer's busiest; the header changes also where the picture does not."""
    async with Alone().run_test(size=(60, 12)) as pilot:
        heatmap = pilot.app.query_one(Heatmap)
        ratio = np.array([[4.0, 2.0, 1.0]])
        for ranked, head in ((False, "0 1 2"), (True, "#1 #2 #3"), (False, "0 1 2")):
            heatmap.show(ratio, None, 2.0, ranked=ranked)
            await pilot.pause()
            assert screen_text(pilot.app).splitlines()[0].split() == head.split()


async def test_a_pooled_cell_names_the_expert_whose_colour_it_has():
    async with Alone().run_test(size=(44, 12)) as pilot:
        heatmap = pilot.app.query_one(Heatmap)
        ratio = np.ones((48, 128))
        ratio[2, 2] = 9.0
        heatmap.show(ratio, None, 4.0)
        assert heatmap._shown(0, 0) == (2, 2)
        ratio[1, 1] = 1 / 32
        heatmap.show(ratio, None, 4.0, versus="saved")
        assert heatmap._shown(0, 0) == (1, 1)
        await pilot.pause()
        assert "most changed of 3 layers × 4 experts" in screen_text(pilot.app)


async def test_a_frame_of_48_by_128_takes_less_than_5_ms():
    """A new picture every frame, drawn line by line; processor time, and the fastest of ten, since other work runs
    beside the tests. The limit is stretched on a slow machine."""
    async with Alone().run_test(size=(140, 60)) as pilot:
        heatmap = pilot.app.query_one(Heatmap)
        rng = np.random.default_rng(0)
        frames = [(rng.gamma(1.0, 1.0, (48, 128)), rng.random((48, 128)) < 0.06) for _ in range(10)]

        def draw() -> None:
            heatmap.show(*frames.pop(), 4.0)
            for y in range(heatmap.size.height):
                heatmap.render_line(y)

        spent = least(len(frames), draw)
        assert heatmap.cells is not None
        assert (heatmap.cells.rows, heatmap.cells.columns) == (48, 128)
        assert spent < 0.005 * slowness()


@pytest.mark.parametrize("width", range(12, 40, 3))
async def test_the_legend_of_shades_has_fewer_words_where_it_would_be_cut(width, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    async with Alone().run_test(size=(width, 12)) as pilot:
        heatmap = pilot.app.query_one(Heatmap)
        heatmap.show(np.ones((6, 8)), None, 2.0)
        await pilot.pause()
        legend = lines(heatmap)[heatmap.ABOVE + heatmap.cells.lines].strip()
        assert legend in ("· never ░ less ▒ even ▓ █ more", "· never ░▒ even ▓█", "·░▒▓█ more")
