"""The app around the chat: loading, errors, the expert pane, keys and sizes."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

import pytest

from localmoe.errors import BadInputError, MemoryLimitError, UsageError
from localmoe.tui.app import run_app
from localmoe.tui.messages import Submitted
from localmoe.tui.options import AppOptions
from localmoe.tui.screens.chat import ChatScreen
from localmoe.tui.screens.help import HelpScreen, HelpText
from localmoe.tui.screens.loading import ErrorScreen, LoadingScreen
from localmoe.tui.widgets.expert_pane import MODES
from localmoe.tui.widgets.heatmap import Heatmap
from localmoe.tui.widgets.path import TokenPath, path_layout
from localmoe.tui.widgets.prompt import Prompt
from localmoe.tui.widgets.transcript import Transcript

from .driving import ask, chat, lines, running, screen_text, until
from .fake_model import FakeModel
from .settling import DEADLINE

LABELS = ["Once upon a time", "def fibonacci(n):", "What is 17 + 25?", "Hi! How are you?"]


@pytest.fixture(autouse=True)
def truecolour(monkeypatch):
    monkeypatch.setenv("COLORTERM", "truecolor")
    monkeypatch.delenv("NO_COLOR", raising=False)


async def test_loading_says_what_it_does():
    """Messages and progress of loading are on the screen until the model is there."""
    steps = []

    def loader(progress):
        progress("compiling the kernels", 1, 4)
        while not steps:
            time.sleep(0.01)
        return FakeModel()

    async with running(loader=loader) as (app, pilot):
        await until(pilot, lambda: "compiling the kernels" in screen_text(app))
        assert isinstance(app.screen, LoadingScreen)
        assert "demo.gguf" in screen_text(app)
        steps.append(1)
        await until(pilot, lambda: app.screen.query("#transcript"))


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (BadInputError("bad magic", file="demo.gguf", got="'[bold]\x1b[2J'"), 3),
        (MemoryLimitError("needs 90 GB"), 5),
        (FileNotFoundError(2, "No such file", "demo.gguf"), 4),
    ],
)
async def test_a_model_that_cannot_be_opened_is_a_panel(error, code):
    """One readable line, no crash, and the exit code is kept."""

    def loader(progress):
        raise error

    async with running(loader=loader, size=(80, 24)) as (app, pilot):
        await until(pilot, lambda: isinstance(app.screen, ErrorScreen))
        assert "cannot be opened" in screen_text(app)
        assert "\x1b" not in screen_text(app)
        await pilot.press("enter")
        await pilot.pause()
        assert app.return_code == code


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_a_bug_in_the_engine_is_not_hidden():
    """Anything that is not an expected error reaches the app's thread and ends it."""

    def loader(progress):
        raise ZeroDivisionError("a bug")

    with pytest.raises(ZeroDivisionError, match="a bug"):
        await _watch(loader)


async def _watch(loader):
    async with running(loader=loader) as (app, pilot):
        await until(pilot, lambda: app._exception, "the bug")


async def test_the_model_is_closed_at_the_end():
    model = FakeModel()
    async with running(model) as (app, pilot):
        await pilot.press("ctrl+q")
    app.worker._thread.join(DEADLINE)
    assert model.closed


async def test_the_app_can_be_left_while_turns_are_made(monkeypatch):
    """They have no place any more: the exit code is the one that was asked for, and nothing is said of it."""
    show, began, ended = Transcript.show, asyncio.Event(), asyncio.Event()

    async def show_late(transcript, turns) -> None:
        place = transcript.query_one("#turns")
        began.set()
        while place.is_attached:
            await asyncio.sleep(0.01)
        try:
            await show(transcript, turns)
        finally:
            ended.set()

    async with running(FakeModel()) as (app, _):
        monkeypatch.setattr(Transcript, "show", show_late)
        chat(app).post_message(Submitted("hi"))
        await asyncio.wait_for(began.wait(), DEADLINE)
        app.exit(return_code=143)
        await asyncio.wait_for(ended.wait(), DEADLINE)
    assert app.return_code == 143


async def test_modes_go_round():
    """F2 goes through what the heatmap shows, and the title says so."""
    async with running(FakeModel()) as (app, pilot):
        await ask(app, pilot)
        pane = chat(app).experts
        for mode in [*list(MODES)[1:-1], "moving"]:  # a difference needs a saved run
            await pilot.press("f2")
            await pilot.pause()
            assert pane.mode == mode
            assert MODES[mode] in screen_text(app)


async def test_the_heatmap_follows_the_trace():
    """All tokens of prompt and reply are counted, each in its phase, whatever the screen's pace."""
    model = FakeModel(answer=["a"] * 30)
    async with running(model) as (app, pilot):
        await ask(app, pilot, "some words here")
        stats = chat(app).experts.stats
        assert stats.n_tokens == model.trace.count
        assert stats.layers(1).tokens.tolist() == [30] * 30
        assert app.screen.query_one(Heatmap).cells is not None


async def test_the_path_is_the_newest_tokens():
    """Each layer's experts with their weights, of the last token that ran."""
    model = FakeModel(n_layer=6, n_expert=8, answer=["one", " two"])
    async with running(model) as (app, pilot):
        await ask(app, pilot)
        experts, weights = model.trace.rows[-1][2:]
        shown = " ".join(lines(app.screen.query_one("#path", TokenPath)))
        for layer in range(6):
            entry = f"{layer} {experts[layer, 0]} {f'{weights[layer, 0]:.2f}'[1:]} {experts[layer, 1]}"
            assert entry in shown
        assert f"“<{model.trace.rows[-1][0]}>”" in screen_text(app)


@pytest.mark.parametrize(
    ("n_layer", "n_used", "n_expert", "width", "height", "form"),
    [
        (30, 2, 4, 68, 30, "weights"),
        (30, 2, 4, 49, 7, "bars"),
        (30, 2, 4, 29, 2, "first"),
        (48, 8, 128, 49, 20, "bars"),
    ],
)
def test_paths_are_written_as_fully_as_there_is_room(n_layer, n_used, n_expert, width, height, form):
    """Weights as numbers, as bars, or each layer's first expert."""
    layout = path_layout(n_layer, n_used, n_expert, width, height)
    assert layout.form == form
    assert form == "first" or layout.rows(n_layer) <= height


async def test_top_k_changes_between_one_and_all():
    """F5 and F4 change the number for the next reply; brackets do outside the input; it never leaves 1..E."""
    model = FakeModel(answer="ok")
    async with running(model) as (app, pilot):
        await pilot.press("f5")
        assert "top-3 of 4 experts" in screen_text(app)
        await ask(app, pilot)
        assert model.asked[-1]["n_expert_used"] == 3
        await pilot.press(*["f5"] * 5)
        assert chat(app).n_used == 4
        await pilot.press(*["f4"] * 9)
        assert chat(app).n_used == 1
        await pilot.press("]")
        assert app.screen.query_one(Prompt).text == "]"
        await pilot.press("tab", "]", "]", "[")
        assert chat(app).n_used == 2
        await ask_again(app, pilot, model)
        assert model.asked[-1]["n_expert_used"] == 2


async def ask_again(app, pilot, model):
    """Send what is in the input and wait."""
    app.screen.query_one(Prompt).focus()
    before = len(model.asked)
    await pilot.press("enter")
    await until(pilot, lambda: len(model.asked) > before and not chat(app).busy)


async def test_options_set_the_first_top_k():
    async with running(FakeModel(), options=AppOptions(load={"n_expert_used": 1})) as (app, _):
        assert "top-1 of 4 experts" in screen_text(app)


async def test_the_palette_knows_the_actions():
    """Ctrl+P finds the app's own commands."""
    async with running(FakeModel()) as (app, pilot):
        await pilot.press("ctrl+p")
        await until(pilot, lambda: "New chat" in screen_text(app), "its own first")
        assert "Maximize" not in screen_text(app)
        await pilot.press(*"more experts")
        found = lambda: "More experts a token" in screen_text(app) and "New chat" not in screen_text(app)  # noqa: E731
        await until(pilot, found, "what was searched for")
        await pilot.press("enter")
        await until(pilot, lambda: app.screen is chat(app))
        await until(pilot, lambda: chat(app).n_used == 3)


async def test_help_explains_the_words():
    """F1 opens and closes; every word of the view is there."""
    async with running(FakeModel(), size=(120, 70)) as (app, pilot):
        await pilot.press("f1")
        await pilot.pause()
        assert isinstance(app.screen, HelpScreen)
        for word in ("router", "expert", "top-k", "share", "entropy", "dead", "margin", "overflow", "memory map"):
            assert word in screen_text(app)
        await pilot.press("f1")
        await pilot.pause()
        assert app.screen is chat(app)


async def test_help_over_a_view_begins_with_its_words():
    """At 80x24 the keys of the chat fill a page: the figures say that F1 explains the words."""
    async with running(FakeModel(), size=(80, 24)) as (app, pilot):
        await ask(app, pilot)
        for view, word in (("f10", "entropy"), ("f7", "expert")):
            await pilot.press(view)
            await until(pilot, lambda: not isinstance(app.screen, ChatScreen), view)
            await pilot.press("f1")
            await until(pilot, lambda: isinstance(app.screen, HelpScreen), "help")
            await until(pilot, lambda word=word: word in screen_text(app), word)
            rows = [line.plain.split() for line in app.screen.query_one(HelpText).content.split()]
            assert rows.index(["Words"]) < rows.index(["Keys", "of", "the", "chat"])
            await pilot.press("f1", "escape")
            await until(pilot, lambda: isinstance(app.screen, ChatScreen), "the chat")


@pytest.mark.parametrize("size", [(40, 12), (80, 24), (200, 60)])
async def test_help_fits_and_is_one_widget(size):
    """Names are a column of their own however narrow it is; 150 widgets took seconds to appear beside a busy engine."""
    async with running(FakeModel(), size=size) as (app, pilot):
        await pilot.press("f1")
        await until(pilot, lambda: isinstance(app.screen, HelpScreen), "help")
        await pilot.pause()
        text = app.screen.query_one(HelpText)
        rows = [line.plain for line in text.content.split()]
        assert max(map(len, rows)) <= text.size.width
        said = " ".join(" ".join(rows).split())
        assert all(name in rows[at] for at, name in ((0, "Keys"), (1, "Enter")))
        assert "the small matrix" in said
        assert len(app.screen.query("*")) < 8


async def test_a_dense_model_says_that_it_has_no_experts():
    """No heatmap, no keys for experts, and the chat works."""
    async with running(FakeModel(n_expert=0, n_used=0)) as (app, pilot):
        await ask(app, pilot)
        shown = screen_text(app)
        assert "dense" in shown
        assert "has no experts" in shown.replace("\n", " ")
        assert "mixture of experts" in shown
        await pilot.press("f5", "f2")
        assert not app.screen.query_one(Heatmap).display or not app.screen.query_one(Heatmap).size


async def test_labels_are_shown_as_prompts_of_router_rows():
    """Where the file has them and there is room; never as what an expert is good at."""
    async with running(FakeModel(labels=LABELS)) as (app, _):
        shown = screen_text(app)
        assert "from the model's file" in shown
        assert all(label in shown for label in LABELS)


@pytest.mark.parametrize("shape", [(30, 4, 2), (48, 128, 8), (96, 256, 8), (2, 8, 2)])
async def test_every_size_shows_the_chat_and_the_experts(shape):
    """Input, status, reply and heatmap are on the screen at any size, and nothing is drawn past its edge."""
    n_layer, n_expert, n_used = shape
    model = FakeModel(n_layer=n_layer, n_expert=n_expert, n_used=n_used, answer="short answer")
    async with running(model, size=(80, 24)) as (app, pilot):
        await ask(app, pilot, "x")
        for size in ((80, 24), (60, 16), (120, 40), (160, 50), (200, 60)):
            await pilot.resize_terminal(*size)
            await pilot.pause(0.1)
            shown = screen_text(app)
            assert all(len(line) <= size[0] for line in shown.splitlines())
            for part in ("short answer", "ready", "context", "EXPERTS", "›"):
                assert part in shown, (size, part)
            heatmap = app.screen.query_one(Heatmap)
            assert heatmap.cells is not None
            assert heatmap.cells.lines <= heatmap.size.height - 1, size
            assert heatmap.region.right <= size[0]


async def test_resizing_keeps_everything():
    """From wide to small and back, with the same chat and the same statistics."""
    async with running(FakeModel(), size=(160, 50)) as (app, pilot):
        await ask(app, pilot)
        first = screen_text(app)
        for size in ((80, 24), (120, 40), (160, 50)):
            await pilot.resize_terminal(*size)
            await pilot.pause(0.1)
            assert "EXPERTS" in screen_text(app)
        assert screen_text(app) == first


async def test_the_pane_can_be_hidden():
    """F3 gives the chat the whole width and back."""
    async with running(FakeModel(), size=(80, 24)) as (app, pilot):
        await pilot.press("f3")
        await pilot.pause()
        assert "EXPERTS" not in screen_text(app)
        assert chat(app).transcript.size.width > 70
        await pilot.press("f3")
        await pilot.pause()
        assert "EXPERTS" in screen_text(app)


async def test_hovering_a_cell_names_it():
    """The mouse alone tells layer, expert, its shares, bytes and label; away from the picture it tells nothing."""
    async with running(FakeModel(n_layer=6, n_expert=8, labels=[f"prompt {e}" for e in range(8)])) as (app, pilot):
        await ask(app, pilot)
        chat(app).action_mode("start")
        cells = app.screen.query_one(Heatmap).cells
        assert cells is not None
        await pilot.hover(Heatmap, offset=(cells.gutter + 5 * cells.width + 1, Heatmap.ABOVE + 2 * cells.height))
        await pilot.pause()
        figures = chat(app).experts.stats.layers()
        share, weight = figures.share[2, 5], figures.weight_share[2, 5]
        said = f"layer 2 expert 5  {share:.1%}  weight {weight:.1%}  {share * 8:.2g}× even"
        assert said in screen_text(app)
        assert "3.0 MiB  prompt 5" in screen_text(app)
        await pilot.hover("#transcript")
        await pilot.pause()
        assert "layer 2 expert 5" not in screen_text(app)


async def test_no_key_is_cut_at_the_edge():
    """80 columns show how to reach chats, models and help; more columns show more, also after resizing."""
    async with running(FakeModel(), size=(80, 24)) as (app, pilot):
        await pilot.pause(0.2)
        last = screen_text(app).splitlines()[-1]
        for key in ("^s Chats", "^o Model", "f1 Help", "^q Quit"):
            assert key in last
        assert last.rstrip().endswith("^q Quit")
        await pilot.resize_terminal(120, 40)
        await until(pilot, lambda: "f10 Figures" in screen_text(app).splitlines()[-1], "more keys")
        await pilot.resize_terminal(80, 24)
        await until(pilot, lambda: screen_text(app).splitlines()[-1].rstrip().endswith("^q Quit"), "fewer keys")


async def test_a_small_window_is_the_chats():
    """Beside the experts there would be no room for it; F3 shows them all the same."""
    async with running(FakeModel(), size=(40, 16)) as (app, pilot):
        await ask(app, pilot)
        assert "mixture of experts" in screen_text(app) or "So a model can hold" in screen_text(app)
        assert "EXPERTS" not in screen_text(app)
        await pilot.press("f3")
        await pilot.pause()
        assert "EXPERTS" in screen_text(app)
        await pilot.press("f3")
        await pilot.resize_terminal(80, 24)
        await pilot.pause()


def test_a_closed_stream_is_no_terminal(monkeypatch):
    """Python has None for a stream that was closed before it started."""
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(UsageError, match="got none as stdin"):
        run_app(Path("demo.gguf"))
