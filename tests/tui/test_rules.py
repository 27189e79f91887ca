"""Changing how tokens are routed: what is typed, what the engine is asked for, and two settings side by side."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from textual.widgets import Input

import localmoe
from localmoe.errors import UsageError
from localmoe.tui.options import AppOptions
from localmoe.tui.rules import read_rules, rules_of
from localmoe.tui.screens.chat import ChatScreen
from localmoe.tui.screens.compare import CompareScreen
from localmoe.tui.screens.rules import RulesScreen
from localmoe.tui.widgets.heatmap import Heatmap
from tests.tiny import write_tiny

from .driving import ask, chat, lines, running, screen_text, until
from .fake_model import Config, FakeModel

CONFIG = Config(6, 8, 2)
PLAIN = {"used": "2", "left": "", "forced": "", "threshold": "0"}


def test_what_is_typed_comes_back_as_it_was_meant():
    """Fields to options, and rules back to fields, layers with the same experts together."""
    rules = read_rules(CONFIG, {"used": "2", "left": "3:1,5 0-1:2", "forced": "*:7", "threshold": "0.2"})
    assert rules.options == {
        "n_expert_used": 2,
        "leave_out": {0: (2,), 1: (2,), 3: (1, 5)},
        "force_experts": dict.fromkeys(range(6), (7,)),
        "expert_threshold": 0.2,
    }
    assert rules.texts == {"used": "2", "left": "0-1:2 3:1,5", "forced": "0-5:7", "threshold": "0.2"}
    assert read_rules(CONFIG, rules.texts) == rules
    assert rules.brief(rules_of(CONFIG, {})) == "4 out, 6 forced, skip <0.2"
    by_layer = read_rules(CONFIG, PLAIN | {"used": "1,2,3,4,5,6"})
    assert by_layer.options["n_expert_used"] == [1, 2, 3, 4, 5, 6]
    assert by_layer.brief(rules_of(CONFIG, {})) == "top-k by layer"


@pytest.mark.parametrize(
    ("field", "text", "said"),
    [
        ("used", "", "missing"),
        ("used", "9", "out of range"),
        ("used", "two", "not a number"),
        ("used", "1,2", "every layer"),
        ("left", "9:1", "no such layers"),
        ("left", "0:0,1,2,3,4,5,6,7", "no expert is left"),
        ("forced", "0:1,2,3", "too many"),
        ("threshold", "1.5", "out of range"),
    ],
)
def test_what_cannot_be_is_said(field, text, said):
    with pytest.raises(UsageError, match=said):
        read_rules(CONFIG, PLAIN | {field: text})


def test_an_expert_cannot_be_forced_and_left_out():
    with pytest.raises(UsageError, match="expert 3 of layer 2 cannot be forced and left out"):
        read_rules(CONFIG, PLAIN | {"left": "2:3", "forced": "*:3"})


async def _fill(app, pilot, **fields):
    await pilot.press("f8")
    await until(pilot, lambda: isinstance(app.screen, RulesScreen), "the panel")
    for name, text in fields.items():
        app.screen.query_one(f"#rules-{name}", Input).value = text
    await pilot.pause()


@pytest.mark.parametrize("size", [(80, 24), (120, 40)])
async def test_rules_hold_from_the_next_reply_on_until_one_key_resets_them(size):
    model = FakeModel(n_layer=6, n_expert=8, answer="ok")
    async with running(model, size=size) as (app, pilot):
        await ask(app, pilot)
        assert "leave_out" not in model.asked[-1]
        await _fill(app, pilot, used="3", left="1:4", threshold="0.2")
        assert "top-3 of 8, 1:4 left out, weights below 0.2 skipped" in screen_text(app)
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, ChatScreen), "the chat")
        assert "top-3, 1 out, skip <0.2" in screen_text(app)
        await ask(app, pilot, "again")
        asked = model.asked[-1]
        assert asked["n_expert_used"] == 3
        assert asked["leave_out"] == {1: (4,)}
        assert asked["expert_threshold"] == 0.2
        assert "% skipped)" in screen_text(app)
        await pilot.press("ctrl+t")
        await ask(app, pilot, "and again")
        assert model.asked[-1]["n_expert_used"] == 2
        assert "leave_out" not in model.asked[-1]
        assert "1 out" not in screen_text(app)


async def test_what_was_skipped_is_of_the_last_reply_of_this_chat():
    """By what each of its tokens was to use, whatever is set since; after Ctrl+N there is no last reply."""
    async with running(FakeModel(n_layer=6, n_expert=8, answer="ok")) as (app, pilot):
        await _fill(app, pilot, threshold="0.2")
        await pilot.press("enter")
        await ask(app, pilot)
        assert "skip <0.2 (0% skipped)" in screen_text(app)
        await pilot.press("f5", "f5", "f8")
        await until(pilot, lambda: isinstance(app.screen, RulesScreen), "the panel")
        assert "the last reply skipped 0.0% of its experts' work" in screen_text(app)
        await pilot.press("escape", "ctrl+n")
        await until(pilot, lambda: "skip <0.2" in screen_text(app) and "skipped" not in screen_text(app))
        await pilot.press("f8")
        await until(pilot, lambda: isinstance(app.screen, RulesScreen), "the panel")
        assert "nothing was routed yet" in screen_text(app)


async def test_a_wrong_field_is_named_and_nothing_changes():
    async with running(FakeModel(n_layer=6, n_expert=8)) as (app, pilot):
        await _fill(app, pilot, left="1:[bold]")
        assert "not a choice of experts" in screen_text(app)
        assert "got '1:[bold]'" in screen_text(app)
        await pilot.press("enter")
        assert isinstance(app.screen, RulesScreen)
        await pilot.press("ctrl+t", "enter")
        await until(pilot, lambda: isinstance(app.screen, ChatScreen), "the chat")
        assert chat(app).rules == chat(app).start_rules


async def test_what_the_app_was_started_with_is_the_start():
    """Options of the command line are in the fields, and are what a reset goes back to."""
    options = AppOptions(load={"n_expert_used": 1, "leave_out": ["0:3"], "expert_threshold": 0.1})
    async with running(FakeModel(n_layer=6, n_expert=8), options=options) as (app, pilot):
        await _fill(app, pilot)
        values = {name: app.screen.query_one(f"#rules-{name}", Input).value for name in PLAIN}
        assert values == {"used": "1", "left": "0:3", "forced": "", "threshold": "0.1"}


@pytest.mark.parametrize("leave", ["escape", "u"])
async def test_two_settings_side_by_side(leave: str, tmp_path):
    """Both answers, the divergence and the loads of a real (tiny) model; the chat's trace stays as it was.

    Whoever likes B takes it over from there, without typing it again.
    """
    model = localmoe.load(str(write_tiny(tmp_path / "m.gguf")), n_ctx=128, n_threads=1)
    async with running(loader=lambda progress: model) as (app, pilot):
        await until(pilot, lambda: isinstance(app.screen, ChatScreen) and app.screen.is_mounted, "the chat")
        await _fill(app, pilot)
        await pilot.press("ctrl+b")
        assert "nothing differs" in screen_text(app)
        app.screen.query_one("#rules-used", Input).value = "1"
        app.screen.query_one("#rules-prompt", Input).value = "the fox"
        await pilot.press("ctrl+b")
        await until(pilot, lambda: isinstance(app.screen, CompareScreen) and not app.screen.running, "the result")
        text = screen_text(app)
        for word in ("KL(A || B)", "perplexity", "A top-2 of", "B top-1 of", "moved:", "choices skipped"):
            assert word in text, word
        heatmap = app.screen.query_one("#compare-heatmap", Heatmap)
        assert heatmap._versus == "A's"
        ratio = heatmap._ratio
        assert ratio.shape == (model.config.n_layer, model.config.n_expert)
        assert np.isfinite(ratio).any()
        assert (ratio[np.isfinite(ratio)] != 1).any()  # one expert a token goes elsewhere than two
        of_a, of_b = app.screen._shares
        assert ((of_a > 0).sum(axis=1) >= (of_b > 0).sum(axis=1)).all()
        both = (of_a > 0) & (of_b > 0)
        np.testing.assert_allclose(ratio[both], of_b[both] / of_a[both])
        assert "cut off" in text
        await pilot.press("down", "right")
        share_a, share_b = app.screen._shares[:, 0, 1]
        said = f"layer 0 expert 1: share A {share_a:.1%}, B {share_b:.1%}"
        await until(pilot, lambda: said in screen_text(app), "the shares behind the cell")
        assert "Its tokens" not in screen_text(app)
        assert model.trace.count == 0
        assert [app.screen.check_action("stop", ()), "esc Back" in text, "u Use B" in text] == [False, True, True]
        await pilot.press(leave)
        await until(pilot, lambda: isinstance(app.screen, ChatScreen), "the chat")
        assert app.worker.post == chat(app).post_message
        assert chat(app).n_used == (1 if leave == "u" else 2)


@pytest.mark.parametrize("colours", ["", "truecolor"])
@pytest.mark.parametrize(("size", "told"), [((80, 24), False), ((120, 40), True), ((200, 60), True)])
async def test_where_the_load_went_is_in_the_cells_where_there_is_room(size, told, colours, tmp_path, monkeypatch):
    """Shares with A and with B; in a large window the picture fills most of its pane."""
    monkeypatch.setenv("COLORTERM", colours)
    model = localmoe.load(str(write_tiny(tmp_path / "m.gguf", n_expert=4)), n_ctx=128, n_threads=1)
    async with running(loader=lambda progress: model, size=size) as (app, pilot):
        await until(pilot, lambda: isinstance(app.screen, ChatScreen) and app.screen.is_mounted, "the chat")
        await _fill(app, pilot, used="1", prompt="the fox")
        await pilot.press("ctrl+b")
        await until(pilot, lambda: isinstance(app.screen, CompareScreen) and not app.screen.running, "the result")
        await pilot.pause()
        heatmap = app.screen.query_one("#compare-heatmap", Heatmap)
        share_a, share_b = app.screen._shares[:, 0, 1]
        assert (f"{share_a:.0%}→{share_b:.0%}" in "\n".join(lines(heatmap))) == told
        cells = heatmap.cells
        if size == (200, 60):
            assert cells.columns * cells.width > 0.85 * heatmap.size.width


async def test_esc_ends_a_comparison(tmp_path):
    model = localmoe.load(str(write_tiny(tmp_path / "m.gguf")), n_ctx=128, n_threads=1)
    async with running(loader=lambda progress: model) as (app, pilot):
        await until(pilot, lambda: isinstance(app.screen, ChatScreen) and app.screen.is_mounted, "the chat")
        await _fill(app, pilot, used="1")
        app.screen.query_one("#rules-prompt", Input).value = "the fox"
        await pilot.press("ctrl+b")
        if app.screen.running:
            assert [app.screen.check_action("stop", ()), app.screen.check_action("dismiss", (True,))] == [True, False]
        await pilot.press("escape")
        await until(pilot, lambda: isinstance(app.screen, ChatScreen), "the chat")


async def test_the_share_that_was_skipped_is_of_what_each_layer_was_asked_for():
    """Slots that a layer with a smaller top-k never fills are no skipped work."""
    model = FakeModel(n_layer=2, n_expert=4, n_used=2)
    async with running(model) as (app, pilot):
        await ask(app, pilot)
        read = model.trace.read(chat(app).follow.reply_from)
        experts = read.experts.copy()
        experts[:, 1, 1] = -1
        asked = np.tile([2, 1], (len(read.tokens), 1))
        model.trace.read = lambda since, router=True: replace(read, experts=experts, n_used=asked)
        assert chat(app).skipped_share() == 0.0
        experts[:, 0, 1] = -1
        assert chat(app).skipped_share() == pytest.approx(1 / 3)


@pytest.mark.parametrize("height", [14, 40])
async def test_up_and_down_go_from_field_to_field(height: int):
    async with running(FakeModel(n_layer=6, n_expert=8), size=(80, height)) as (app, pilot):
        await pilot.press("f8")
        await until(pilot, lambda: isinstance(app.screen, RulesScreen), "the panel")
        await pilot.press("down", "down")
        assert app.screen.focused.id == "rules-forced"
        await pilot.press("up")
        assert app.screen.focused.id == "rules-left"


@pytest.mark.parametrize("width", [60, 80, 100, 160])
async def test_a_long_list_of_rules_leaves_the_context_whole(width: int):
    """The bar goes first, then words, then the rules' end; the title says that layers differ."""
    async with running(FakeModel(n_layer=6, n_expert=8, answer="ok"), size=(width, 24)) as (app, pilot):
        await _fill(app, pilot, used="1,1,2,2,2,3", left="*:0", forced="1:3", threshold="0.25")
        await pilot.press("enter")
        await ask(app, pilot)
        status = lines(app.screen.query_one("#status"))[0].rstrip()
        assert status.endswith(f"{chat(app).status.used}/2048")
        assert ("context ─" in status) == (width == 160)
        assert ("(0% skipped)" in status) == ("…" not in status) == (width >= 100)
        assert ("prompt" in status) == (width == 160)
        assert "top-1 to 3 of 8 experts" in screen_text(app)


async def test_nothing_is_counted_before_there_is_a_number():
    async with running(FakeModel(), size=(80, 24)) as (app, pilot):
        status = chat(app).status
        status.state = "reading"
        await pilot.pause()
        assert "0/0" not in screen_text(app)
        status.follow(prompt_total=40, prompt_part=0.5)
        await pilot.pause()
        assert "20/40 tokens" in screen_text(app)
