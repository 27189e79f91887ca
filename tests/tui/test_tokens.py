"""The chat token by token: where each went, its path, and nothing that could steer a terminal."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from textual.events import MouseScrollDown

from localmoe.tui.alternatives import KEPT, Alternatives
from localmoe.tui.screens.cell import CellScreen
from localmoe.tui.screens.tokens import Routed, TokensScreen, path_lines
from localmoe.tui.widgets.heatmap import Heatmap
from localmoe.tui.widgets.prompt import Prompt
from localmoe.tui.widgets.token_text import WHEEL, TokenText, expert_style, numbered_piece, wrap
from tests.slowness import least, slowness

from .driving import ask, chat, running, screen_text, until
from .fake_model import FakeModel, Step


@pytest.fixture(autouse=True)
def truecolour(monkeypatch):
    monkeypatch.setenv("COLORTERM", "truecolor")
    monkeypatch.delenv("NO_COLOR", raising=False)


def test_wrapping_keeps_every_token_and_every_newline():
    assert wrap(["ab", "c", "d\n", "", "efgh"], 3) == [
        [(0, "ab"), (1, "c")],
        [(2, "d⏎")],
        [(3, "·")],
        [(4, "efg")],
        [(4, "h")],
    ]
    assert wrap(["漢字"], 3) == [[(0, "漢")], [(0, "字")]]


def test_a_number_stays_on_its_tokens_line():
    assert [numbered_piece(piece, 12) for piece in ("a", "\n", "b\n\n", "")] == ["a₁₂", "₁₂\n", "b₁₂\n\n", "₁₂"]


def test_a_path_by_hand():
    """The heavier expert first, an unused slot left out, and the likeliest two that were not chosen."""
    experts, weights = np.array([[1, 3], [2, -1]]), np.array([[0.25, 0.75], [1.0, 0.0]])
    router = np.array([[0.1, 0.2, 0.1, 0.6], [0.3, 0.1, 0.4, 0.2]])
    assert path_lines(experts, weights, router) == [
        ("  0: 3 .75  1 .25", "   (0 .10  2 .10)"),
        ("  1: 2 1.0", "   (0 .30  3 .20)"),
    ]


def test_neighbouring_experts_have_other_colours():
    styles = {str(expert_style(e, dark)) for e in range(16) for dark in (True, False)}
    assert len(styles) == 32


async def test_keys_go_through_tokens_and_layers():
    async with running(FakeModel(n_layer=6, n_expert=8, answer=["a"] * 12)) as (app, pilot):
        await pilot.press("f7")
        assert not isinstance(app.screen, TokensScreen)  # nothing was routed yet
        await ask(app, pilot)
        await pilot.press("f7")
        await until(pilot, lambda: isinstance(app.screen, TokensScreen), "the tokens")
        screen = app.screen
        routed = screen._routed
        last = len(routed.tokens) - 1
        assert screen.token == last
        assert "layer 0 of 6" in screen_text(app)
        await pilot.press("left", "down", "down")
        await pilot.pause()
        assert (screen.token, screen.layer_shown) == (last - 1, 2)
        assert f"token {last} of {last + 1}, reply" in screen_text(app)
        for layer in range(6):
            taken, _ = path_lines(routed.experts[last - 1], routed.weights[last - 1], None)[layer]
            assert taken in screen_text(app)
        await pilot.press("home")
        await pilot.pause()
        assert "token 1 of" in screen_text(app)
        assert ", prompt" in screen_text(app)
        await pilot.press("escape")
        await pilot.pause()
        assert not isinstance(app.screen, TokensScreen)


@pytest.mark.parametrize(("variable", "value"), [("NO_COLOR", "1"), ("TERM", "xterm")])
async def test_without_colours_to_tell_apart_tokens_carry_their_experts_numbers(monkeypatch, variable, value):
    """16 colours make all of the scale's grey."""
    monkeypatch.setenv("COLORTERM", "" if variable == "TERM" else "truecolor")
    monkeypatch.setenv(variable, value)
    model = FakeModel(n_layer=6, n_expert=8, answer=["a"] * 12)
    async with running(model) as (app, pilot):
        await ask(app, pilot)
        await pilot.press("f7")
        await until(pilot, lambda: isinstance(app.screen, TokensScreen), "the tokens")
        _, _, experts, weights = model.trace.rows[0]
        number = str(experts[0][weights[0].argmax()]).translate(str.maketrans("01234567", "₀₁₂₃₄₅₆₇"))
        text = app.screen.query_one(TokenText)
        first, second = text.render_line(0)._segments[:2]
        assert first.text == f"<0>{number}"
        assert first.style.bgcolor == second.style.bgcolor == text.rich_style.bgcolor


async def test_a_tokens_colour_is_its_first_experts():
    async with running(FakeModel(n_layer=6, n_expert=8, answer=["a"] * 12)) as (app, pilot):
        await ask(app, pilot)
        await pilot.press("f7")
        await until(pilot, lambda: isinstance(app.screen, TokensScreen), "the tokens")
        text = app.screen.query_one(TokenText)
        routed = app.screen._routed
        first = text.render_line(0)._segments[0]
        expert = int(routed.experts[0, 0, routed.weights[0, 0].argmax()])
        assert first.style.bgcolor == expert_style(expert, app.current_theme.dark).bgcolor
        await pilot.click(TokenText, offset=(1, 0))
        await pilot.pause()
        assert app.screen.token == 0


async def test_colours_have_a_legend_with_each_experts_part_of_the_tokens():
    model = FakeModel(n_layer=6, n_expert=8, answer=["a"] * 40)
    async with running(model, size=(200, 30)) as (app, pilot):
        await ask(app, pilot)
        await pilot.press("f7")
        await until(pilot, lambda: isinstance(app.screen, TokensScreen), "the tokens")
        await pilot.press("down")
        await pilot.pause()
        heaviest = [row[2][1][row[3][1].argmax()] for row in model.trace.rows]
        counts = np.bincount(heaviest, minlength=8)
        parts = {f"{e}": f"{n / len(heaviest):.0%}" for e, n in enumerate(counts.tolist()) if n}
        words = screen_text(app).splitlines()[1].split()
        assert dict(zip(words[::2], words[1::2], strict=True)) == parts
        strip = app.screen._compositor.render_strips()[1]
        first = next(segment for segment in strip if segment.text.strip())
        assert first.style.bgcolor == expert_style(int(first.text), app.current_theme.dark).bgcolor
        await pilot.resize_terminal(80, 24)
        await pilot.pause()
        assert "more" not in screen_text(app).splitlines()[1]
        await pilot.resize_terminal(40, 24)
        await pilot.pause()
        words = screen_text(app).splitlines()[1].split()
        assert words[-3:] == ["and", f"{len(parts) - (len(words) - 3) // 2}", "more"]


async def test_a_reply_token_shows_what_else_could_have_been_said():
    """The likeliest tokens with the model's probabilities; of what was read and of what is not known, nothing."""
    model = FakeModel(n_layer=6, n_expert=8, answer=["a"] * 12)
    async with running(model, size=(140, 30)) as (app, pilot):
        await ask(app, pilot)
        await pilot.press("f7")
        await until(pilot, lambda: isinstance(app.screen, TokensScreen), "the tokens")
        last = app.screen.token
        assert f"candidates “<{last}>” 50%  “<{last + 1000}>” 25%" in screen_text(app)
        await pilot.press("home")
        await pilot.pause()
        assert "no candidates: a prompt is read, not" in screen_text(app)
        assert "%" not in screen_text(app).split("no candidates")[1].split("expert weight")[0]
        screen = app.screen
        screen._source._alternatives._kept.clear()
        await pilot.press("end")
        await pilot.pause()
        assert "no candidates: they are no longer" in screen_text(app)


async def test_a_token_that_is_part_of_a_character_is_shown_by_its_bytes(monkeypatch):
    """Alone it is no text: a mark for it in the text, its bytes where it is named."""
    model = FakeModel(n_layer=6, n_expert=8, answer=["a"] * 4)
    monkeypatch.setattr(model.tokenizer, "token", lambda i: b"\xe3" if i >= 2 else b"ok", raising=False)
    async with running(model, size=(140, 30)) as (app, pilot):
        await ask(app, pilot)
        await pilot.press("f7")
        await until(pilot, lambda: isinstance(app.screen, TokensScreen), "the tokens")
        app.screen._source.pieces[-1] = ""
        app.screen._token()
        await pilot.pause()
        text = screen_text(app)
        assert "“\\xe3”  token" in text
        assert "candidates “\\xe3” 50%" in text
        assert "�" not in text.split("candidates")[1]


def test_alternatives_are_bounded_and_belong_to_the_token_that_was_run():
    """The last token of a reply is not run: its number goes to the next prompt's first."""
    kept = Alternatives()
    for number in range(KEPT + 3):
        kept.keep(number, Step("", number, *np.zeros((2, 1, 1)), 0, 0, None, ((number, 0.5),)))
    assert kept.of(2, 2) == ()
    assert kept.of(3, 3) == ((3, 0.5),)
    assert kept.of(KEPT, KEPT + 7) == ()
    assert len(kept._kept) == KEPT


async def test_pages_and_the_wheel_go_through_a_long_text():
    """4,000 tokens: a key answers at once, and the wheel leaves the selection where it is."""
    async with running(FakeModel(n_layer=6, n_expert=8, answer=["a"] * 4000), size=(120, 40)) as (app, pilot):
        await ask(app, pilot)
        await pilot.press("f7")
        await until(pilot, lambda: isinstance(app.screen, TokensScreen), "the tokens")
        screen, text = app.screen, app.screen.query_one(TokenText)
        assert len(screen._pieces) > 4000
        last, rows = screen.token, text.size.height
        await pilot.press("pageup")
        assert text._row_of(screen.token) == text._row_of(last) - rows + 1
        await pilot.press("home", "pageup")
        assert screen.token == 0
        text.on_mouse_scroll_down(MouseScrollDown(text, 1, 1, 0, 1, 0, False, False, False))
        assert (text._top, screen.token) == (WHEEL, 0)
        assert least(9, lambda: (screen.action_token(1), text.render_line(1))) < 0.05 * slowness()


def test_a_character_of_several_tokens_stands_at_its_last():
    """An emoji over four tokens, and a wide character; a newline ends its row."""
    model = FakeModel()
    none = np.zeros((30, 2))
    parts = ["🦙"[:1].encode()[n : n + 1] for n in range(4)] + ["漢\n".encode()]
    model.tokenizer.token = parts.__getitem__
    model.trace.rows += [(n, 0, none.astype(np.int32), none.astype(np.float32)) for n in range(5)]
    pieces = Routed(model, 0, Alternatives()).pieces
    assert pieces == ["", "", "", "🦙", "漢\n"]
    assert wrap(pieces, 6) == [[(0, "·"), (1, "·"), (2, "·"), (3, "🦙")], [(4, "漢⏎")], []]


@pytest.mark.parametrize("size", [(80, 24), (160, 50)])
async def test_it_fits(size):
    async with running(FakeModel(answer=["a"] * 400), size=size) as (app, pilot):
        await ask(app, pilot)
        await pilot.press("f7")
        await until(pilot, lambda: isinstance(app.screen, TokensScreen), "the tokens")
        assert f"<{app.screen._routed.tokens[-1]}>" in screen_text(app)  # the newest is in sight


def test_text_of_a_model_is_harmless():
    """Also where a sequence is split over tokens."""
    model = FakeModel()
    none = np.zeros((30, 2))
    parts = [b"\x1b", b"[2J\xe2\x80", b"\xae"]
    model.tokenizer.token = parts.__getitem__
    model.trace.rows += [(n, 0, none.astype(np.int32), none.astype(np.float32)) for n in range(3)]
    assert Routed(model, 0, Alternatives()).pieces == ["\\x1b", "[2J", "\\u202e"]


async def test_it_follows_a_running_reply():
    """New tokens appear and the newest stays selected; an older selection stays where it is."""
    model = FakeModel(n_layer=6, n_expert=8, answer=["a"] * 60)
    model.gate = threading.Semaphore(3)
    async with running(model) as (app, pilot):
        app.screen.query_one(Prompt).insert("hi")
        await pilot.press("enter")
        await until(pilot, lambda: sum(phase for _, phase, _, _ in model.trace.rows) == 3, "three tokens of the reply")
        await pilot.press("f7")
        await until(pilot, lambda: isinstance(app.screen, TokensScreen), "the tokens")
        screen = app.screen
        await until(pilot, lambda: len(screen._pieces) == model.trace.count, "the tokens until now")
        before = model.trace.count
        model.gate.release(5)
        await until(pilot, lambda: len(screen._pieces) == before + 5, "new tokens")
        assert screen.token == before + 4
        assert f"<{model.trace.rows[-1][0]}>" in screen_text(app)
        await pilot.press("left", "left")
        model.gate.release(60)
        await until(pilot, lambda: len(screen._pieces) > before + 40, "more tokens")
        assert screen.token == before + 2


@pytest.mark.parametrize("mode", ["start", "sorted"])
async def test_a_cell_opens_its_tokens(mode):
    """Enter on the cursor lists the tokens of that expert with weight and slot; Enter there shows one's path."""
    model = FakeModel(n_layer=6, n_expert=8, answer=["a"] * 40)
    async with running(model) as (app, pilot):
        await ask(app, pilot)
        pane = chat(app).experts
        pane.set_mode(mode)
        app.screen.query_one(Heatmap).focus()
        await pilot.press("down", "down", "right", "enter")
        await until(pilot, lambda: isinstance(app.screen, CellScreen), "the cell")
        expert = 1 if mode == "start" else int(np.argsort(-pane.stats.layers().share[1], kind="stable")[1])
        rows = [(n, row) for n, row in enumerate(model.trace.rows) if expert in row[2][1].tolist()]
        assert app.screen.tokens.tolist() == [n for n, _ in rows]
        number, (_, _, experts, weights) = rows[-1]
        slot = experts[1].tolist().index(expert)
        assert f"layer 1, expert {expert}: {len(rows)} of {model.trace.count} tokens (" in screen_text(app)
        assert "no longer held" not in screen_text(app)
        assert f"{number + 1:>6} reply   {weights[1, slot]:>6.2f}  {slot + 1:>3}" in screen_text(app)
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, TokensScreen), "the token")
        assert (app.screen.token, app.screen.layer_shown) == (number, 1)
        await pilot.press("escape")
        await until(pilot, lambda: isinstance(app.screen, CellScreen), "the cell's tokens again")
        await pilot.press("escape")
        await until(pilot, lambda: app.screen is chat(app), "the chat")


async def test_a_tokens_colour_is_that_of_its_heaviest_expert_whatever_its_slot():
    model = FakeModel(n_layer=6, n_expert=8, answer=["a"] * 40)
    async with running(model) as (app, pilot):
        await ask(app, pilot)
        model.trace.rows = [(n, phase, e[:, ::-1].copy(), w[:, ::-1].copy()) for n, phase, e, w in model.trace.rows]
        await pilot.press("f7")
        await until(pilot, lambda: isinstance(app.screen, TokensScreen), "the tokens")
        await pilot.pause()
        heaviest = [int(e[0, w[0].argmax()]) for _, _, e, w in model.trace.rows]
        assert app.screen.query_one(TokenText)._experts == heaviest
        most = max(set(heaviest), key=heaviest.count)
        part = heaviest.count(most) / len(heaviest)
        assert " ".join(screen_text(app).splitlines()[1].split()).startswith(f"{most} {part:.0%}")


async def test_a_token_of_a_cell_is_a_line():
    """However long what stands around it is; what Enter does is named below."""
    model = FakeModel(n_layer=6, n_expert=8, answer=["wide words and 宽字 "] * 40)
    model.tokenizer.token = lambda i: "wide words and 宽字 ".encode()
    async with running(model, size=(80, 24)) as (app, pilot):
        await ask(app, pilot)
        app.screen.query_one(Heatmap).focus()
        await pilot.press("down", "right", "enter")
        await until(pilot, lambda: isinstance(app.screen, CellScreen), "the cell")
        await until(pilot, lambda: "⏎ Its path" in screen_text(app).splitlines()[-1], "the keys")
        options = app.screen.query_one("#cell-list")
        assert options.virtual_size.height == len(app.screen.tokens)


async def test_a_click_on_pooled_cells_opens_the_busiest_behind_them():
    async with running(FakeModel(n_layer=48, n_expert=128), size=(80, 24)) as (app, pilot):
        await ask(app, pilot)
        heatmap = app.screen.query_one(Heatmap)
        cells = heatmap.cells
        assert cells.per_row > 1
        assert cells.per_column > 1
        behind = np.nan_to_num(heatmap._ratio[: cells.per_row, : cells.per_column], nan=-1)
        layer, expert = divmod(int(behind.argmax()), behind.shape[1])
        await pilot.click(Heatmap, offset=(cells.gutter, 1))
        await until(pilot, lambda: isinstance(app.screen, CellScreen), "the cell")
        assert (app.screen._layer, app.screen._expert) == (layer, expert)


async def test_tokens_that_left_the_ring_are_left_out():
    """A trace that holds fewer tokens than the chat has: what is there is shown, with its own text."""
    model = FakeModel(n_layer=2, n_expert=4, answer=["a"] * 10)
    async with running(model) as (app, pilot):
        await ask(app, pilot)
        source = Routed(model, 0, Alternatives())
        model.trace.capacity = 4
        await ask(app, pilot)
        source.read()
        assert source.pieces == [f"<{n}>" for n in range(model.trace.count - 4, model.trace.count)]


@pytest.mark.parametrize("size", [(80, 24), (120, 40)])
async def test_tokens_that_are_out_of_reach_are_counted(size):
    """On the screen of the tokens and on that of a cell, which count those that are left."""
    model = FakeModel(n_layer=48, n_expert=8, answer=["a"] * 10)
    async with running(model, size=size) as (app, pilot):
        await ask(app, pilot)
        model.trace.capacity = 4
        gone = model.trace.count - 4
        await pilot.press("f7")
        await until(pilot, lambda: isinstance(app.screen, TokensScreen), "the tokens")
        assert f"{gone} older ones are no longer held" in screen_text(app)
        await pilot.press("escape")
        app.screen.query_one(Heatmap).post_message(Heatmap.Opened(0, 1))
        await until(pilot, lambda: isinstance(app.screen, CellScreen), "the cell")
        assert " of 4 tokens (" in screen_text(app)
        assert f"{gone} older ones are no longer held" in screen_text(app)
