"""The chat: typing, streaming, stopping, starting over, and what untrusted text may do."""

from __future__ import annotations

import asyncio
import threading

import pytest

from localmoe.errors import BadInputError
from localmoe.tui.options import AppOptions
from localmoe.tui.widgets.prompt import Prompt
from localmoe.tui.widgets.status import StatusLine, rate
from localmoe.tui.widgets.turns import Note, UserTurn

from .driving import ask, chat, running, screen_text, until
from .fake_model import FakeModel


async def test_a_message_is_sent_and_answered():
    """Enter sends what is typed; the reply is rendered Markdown and becomes part of the conversation."""
    model = FakeModel()
    async with running(model) as (app, pilot):
        await ask(app, pilot, "what?")
        assert model.asked[0]["prompt"] == [{"role": "user", "content": "what?"}]
        assert [turn.role for turn in chat(app).conversation.turns] == ["user", "assistant"]
        shown = screen_text(app)
        assert "what?" in shown
        assert "• a router scores them" in shown
        assert "**" not in shown
        await ask(app, pilot, "more")
        assert [m["role"] for m in model.asked[1]["prompt"]] == ["user", "assistant", "user"]


async def test_typing_fast_and_enter_stay_in_order():
    """Enter is handled after the letters before it, however fast they come."""
    model = FakeModel(answer="ok")
    async with running(model) as (app, pilot):
        text = "typed in one go"
        await pilot.press(*text, "enter")
        await until(pilot, lambda: model.asked)
        assert model.asked[0]["prompt"][0]["content"] == text
        assert app.screen.query_one(Prompt).text == ""


@pytest.mark.parametrize("key", ["ctrl+j", "shift+enter"])
async def test_new_lines(key):
    """Ctrl+J and Shift+Enter break the line; the text is sent whole."""
    model = FakeModel(answer="ok")
    async with running(model) as (app, pilot):
        await pilot.press("a", key, "b")
        assert app.screen.query_one(Prompt).text == "a\nb"
        await pilot.press("enter")
        await until(pilot, lambda: model.asked)
        assert model.asked[0]["prompt"][0]["content"] == "a\nb"


async def test_blank_input_is_not_sent():
    model = FakeModel()
    async with running(model) as (_, pilot):
        await pilot.press("space", "enter")
        await pilot.pause(0.1)
        assert not model.asked


async def test_history_walks_back_and_forth_and_keeps_the_draft():
    """Up shows what was sent before, down comes back to what was being typed."""
    async with running(FakeModel(answer="ok")) as (app, pilot):
        await ask(app, pilot, "one")
        await ask(app, pilot, "two")
        prompt = app.screen.query_one(Prompt)
        await pilot.press("x", "up")
        assert prompt.text == "two"
        await pilot.press("up", "up")
        assert prompt.text == "one"
        await pilot.press("down", "down")
        assert prompt.text == "x"


async def test_text_appears_while_it_is_written():
    """The first tokens are on the screen before the last exist."""
    model = FakeModel(answer=["Hello", " there", " friend"])
    model.gate = threading.Semaphore(0)
    async with running(model) as (app, pilot):
        await pilot.press("x", "enter")
        model.gate.release()
        model.gate.release()
        await until(pilot, lambda: "Hello there" in screen_text(app))
        assert chat(app).busy
        assert app.screen.query_one(StatusLine).state == "writing"
        model.gate.release()
        await until(pilot, lambda: "Hello there friend" in screen_text(app))


async def test_escape_stops_within_one_token_and_keeps_the_text():
    """After Esc at most the token in flight is added; the text and its turn stay."""
    model = FakeModel(answer=[f"w{i} " for i in range(50)])
    model.gate = threading.Semaphore(3)
    async with running(model) as (app, pilot):
        await pilot.press("x", "enter")
        await until(pilot, lambda: "w2" in screen_text(app))
        await pilot.press("escape")
        model.gate.release(5)
        await until(pilot, lambda: not chat(app).busy)
        turn = chat(app).conversation.turns[-1]
        assert turn.text == "w0 w1 w2 "
        assert turn.stop_reason == "cancelled"
        assert "stopped" in screen_text(app)
        model.gate.release(100)
        await ask(app, pilot, "on")
        assert model.asked[1]["prompt"][1]["content"] == "w0 w1 w2 "


async def test_new_chat_forgets_everything():
    """Ctrl+N: no turns, no context in use, the statistics from nothing; refused while the model writes."""
    model = FakeModel()
    async with running(model) as (app, pilot):
        await ask(app, pilot, "first words")
        assert chat(app).experts.stats.n_tokens > 0
        await pilot.press("ctrl+n")
        await pilot.pause()
        assert not chat(app).conversation.turns
        assert chat(app).experts.stats.n_tokens == 0
        assert "first words" not in screen_text(app)
        await ask(app, pilot, "again")
        assert len(model.asked[-1]["prompt"]) == 1


async def test_regenerate_replaces_the_last_reply():
    """Ctrl+R asks the same once more, with another seed where one was given."""
    model = FakeModel(answer="old words")
    async with running(model, options=AppOptions(sampling={"seed": 7})) as (app, pilot):
        await ask(app, pilot)
        model.pieces = ["new", " words"]
        await pilot.press("ctrl+r")
        await until(pilot, lambda: len(model.asked) == 2 and not chat(app).busy)
        assert model.asked[0]["prompt"] == model.asked[1]["prompt"]
        assert (model.asked[0]["seed"], model.asked[1]["seed"]) == (7, 8)
        shown = screen_text(app)
        assert "new words" in shown
        assert "old words" not in shown
        assert [turn.text for turn in chat(app).conversation.turns] == ["hi", "new words"]


async def test_system_prompt_and_sampling_reach_the_model():
    model = FakeModel(answer="ok")
    options = AppOptions(sampling={"temperature": 0.0}, system="Be brief.")
    async with running(model, options=options) as (app, pilot):
        await ask(app, pilot)
        assert model.asked[0]["prompt"][0] == {"role": "system", "content": "Be brief."}
        assert model.asked[0]["temperature"] == 0.0


async def test_without_a_chat_template_text_is_completed():
    """A base model is given the plain text."""
    model = FakeModel(answer=" upon a time", chat_template=None)
    async with running(model) as (app, pilot):
        await ask(app, pilot, "Once")
        assert (model.asked[0]["how"], model.asked[0]["prompt"]) == ("generate", "Once")
        assert "completes text" in screen_text(app)


async def test_prompt_progress_and_context_are_shown():
    """While a prompt is read its progress is shown; then speeds and the context in use."""
    model = FakeModel(answer="ok", prompt_delay=0.3)
    async with running(model) as (app, pilot):
        app.screen.query_one(Prompt).insert("long " * 30)
        await pilot.press("enter")
        await until(pilot, lambda: "reading" in screen_text(app) and "/43 tokens" in screen_text(app))
        await until(pilot, lambda: not chat(app).busy)
        assert "44/2048" in screen_text(app)


def test_rates_are_short():
    assert [rate(0, 1), rate(10, 0), rate(43, 1.0), rate(1234, 1.0)] == ["–", "–", "43.0", "1234"]


async def test_a_failed_reply_is_a_line_not_a_crash():
    """An engine's error is shown in the transcript and the chat goes on."""
    model = FakeModel(error=BadInputError("router gave NaN", file="m.gguf", item="blk.3.ffn_gate_inp"))
    async with running(model) as (app, pilot):
        app.screen.query_one(Prompt).insert("hi")
        await pilot.press("enter")
        await until(pilot, lambda: app.screen.query(Note) and not chat(app).conversation.turns)
        notes = [str(note.content) for note in app.screen.query(Note)]
        assert notes == ["m.gguf: blk.3.ffn_gate_inp: router gave NaN"]
        assert app.screen.query_one(Prompt).text == "hi"
        model.error = None
        await ask(app, pilot, " again")
        assert model.asked[-1]["prompt"] == [{"role": "user", "content": "hi again"}]
        assert "mixture of experts" in screen_text(app)


async def test_a_full_context_is_said():
    model = FakeModel(answer="ok")
    async with running(model) as (app, pilot):
        real = model.chat

        def full(messages, **options):
            for step in real(messages, **options):
                yield type(step)(**{**vars(step), "stop_reason": "context" if step.stop_reason else None})

        model.chat = full
        await ask(app, pilot)
        assert "the context was full" in screen_text(app)


HOSTILE = [
    "a\x1b", "[2J", "\x1b]0;title\x07", "\x9b31m", "\x1b]8;;http://evil\x1b\\link",
    "\r\x08\x7f", "\n\n[bold red]x[/]",
    "[@click=app.quit]y[/]",
    " [link](http://evil \"t\")", " ![img](http://evil)", " <b>html</b>",
    " &#27;[3J &#x9b;1m",
    " <http://a.b/%1B%5B2J>", "\u2028", "\u202eright", "\n\n[ref]: http://evil\n\n[ref]", "\n\n```\n\x1b[5m\n```\n",
]  # fmt: skip


async def test_no_control_sequence_or_markup_reaches_the_terminal():
    """Escape sequences, also split over tokens, entities and encoded addresses stay text; nothing is a link."""
    name = "evil\x1b[2J[bold]name[/]\nsecond"
    model = FakeModel(answer=HOSTILE, name=name, labels=["\x1b[2J[red]label", "b", "c", "d"])
    async with running(model, size=(160, 50)) as (app, pilot):
        await ask(app, pilot, "x")
        shown = screen_text(app)
        bad = [c for c in shown if c != "\n" and (ord(c) < 32 or 127 <= ord(c) < 160 or c in "\u2028\u202e")]
        assert not bad
        assert "[2J" in shown
        assert "[bold red]x[/]" in shown
        assert "[bold]name[/]" in shown
        assert "[red]label" in shown
        assert "<b>html</b>" in shown
        assert "[link](http://evil" in shown
        for strip in app.screen._compositor.render_strips():
            for segment in strip:
                assert not (segment.style and segment.style.link)
                assert "link(" not in str(segment.style.meta.get("@click", "") if segment.style else "")


async def test_what_the_user_types_is_shown_as_typed():
    """No markup in the user's own text."""
    async with running(FakeModel(answer="ok")) as (app, pilot):
        app.screen.query_one(Prompt).insert("[bold]a[/] **b** \x1b[2J")
        await pilot.press("enter")
        await until(pilot, lambda: app.screen.query(UserTurn))
        assert "[bold]a[/] **b**" in screen_text(app)
        assert "\x1b" not in screen_text(app)


async def test_a_long_reply_stays_at_its_end_unless_someone_reads_above():
    """New text scrolls; after scrolling up it does not pull back down."""
    model = FakeModel(answer=[f"line {i}\n\n" for i in range(60)])
    model.gate = threading.Semaphore(40)
    async with running(model, size=(80, 24)) as (app, pilot):
        await pilot.press("x", "enter")
        await until(pilot, lambda: "line 39" in screen_text(app))
        chat(app).transcript.scroll_to(y=0, animate=False)
        await pilot.pause()
        model.gate.release(100)
        await until(pilot, lambda: not chat(app).busy)
        assert "line 1\n" in screen_text(app).replace(" ", " ") or "line 1 " in screen_text(app)
        assert "line 59" not in screen_text(app)


@pytest.mark.parametrize("narrow", [(60, 16), (30, 8)])
async def test_a_wider_window_shows_a_reply_that_is_being_written(narrow):
    """Its lines get longer and fewer: the room that they were given in the narrow one must not push them away."""
    model = FakeModel(answer=[f"word{n} " for n in range(600)])
    model.gate = threading.Semaphore(300)
    async with running(model, size=narrow) as (app, pilot):
        app.screen.query_one(Prompt).insert("hi")
        await pilot.press("enter")
        await until(pilot, lambda: "word290" in chat(app).conversation.turns[-1].text, "half of the reply")
        await pilot.pause(0.3)
        await pilot.resize_terminal(160, 50)
        model.gate.release(20)
        await until(pilot, lambda: "word31" in screen_text(app), "the reply in the wider window")
        model.gate.release(600)


async def test_a_reply_that_ends_while_its_text_is_drawn_is_done(monkeypatch):
    """The timer that draws and the message that a reply has ended come at the same time."""
    model = FakeModel(answer="one two three four")
    model.gate = threading.Semaphore(2)
    async with running(model) as (app, pilot):
        view, order, news = chat(app).transcript, [], []
        feed, post = view.feed, app.worker.post

        async def slow(text):
            order.append("begins")
            model.gate.release(100)
            while not news:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.3)
            await feed(text)
            order.append("ends")

        monkeypatch.setattr(view, "feed", slow)
        monkeypatch.setattr(app.worker, "post", lambda message: (post(message), news.append(message)))
        await ask(app, pilot)
        await pilot.pause(0.5)
        assert chat(app).status.state == "ready"
        assert order == ["begins", "ends", "begins", "ends"]
        assert "one two three four" in screen_text(app)
