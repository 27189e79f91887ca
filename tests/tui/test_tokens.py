"""The chat token by token: where each went, its path, and nothing that could steer a terminal."""

from __future__ import annotations

import numpy as np
import pytest

from localmoe.tui.screens.tokens import TokensScreen, path_lines, pieces_of
from localmoe.tui.widgets.token_text import TokenText, expert_style, wrap

from .driving import ask, running, screen_text, until
from .fake_model import FakeModel


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


def test_a_path_by_hand():
    """The heavier expert first, an unused slot left out, and the likeliest two that were not chosen."""
    experts, weights = np.array([[1, 3], [2, -1]]), np.array([[0.25, 0.75], [1.0, 0.0]])
    router = np.array([[0.1, 0.2, 0.1, 0.6], [0.3, 0.1, 0.4, 0.2]])
    assert path_lines(experts, weights, router) == [
        ("  0: 3 0.75  1 0.25", "   (0 0.10  2 0.10)"),
        ("  1: 2 1.00", "   (0 0.30  3 0.20)"),
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


@pytest.mark.parametrize("size", [(80, 24), (160, 50)])
async def test_it_fits(size):
    async with running(FakeModel(answer=["a"] * 400), size=size) as (app, pilot):
        await ask(app, pilot)
        await pilot.press("f7")
        await until(pilot, lambda: isinstance(app.screen, TokensScreen), "the tokens")
        assert f"<{app.screen._routed.tokens[-1]}>" in screen_text(app)  # the newest is in sight


def test_text_of_a_model_is_harmless():
    model = FakeModel()
    model.tokenizer.token = lambda i: b"\x1b[2J\xe2\x80\xae"
    assert pieces_of(model, [1]) == ["\\x1b[2J\\u202e"]
