"""A context that gets full: said before anything is cut, and cut only by choice."""

from __future__ import annotations

import re
import threading
from pathlib import Path

import pytest

from localmoe.tui.context import fitting, plain_text, warning
from localmoe.tui.options import AppOptions
from localmoe.tui.widgets.prompt import Prompt
from localmoe.tui.widgets.transcript import ENDINGS, PIECE
from localmoe.tui.widgets.turns import Note

from .driving import ask, chat, running, screen_text, until
from .fake_model import FakeModel


def test_there_is_nothing_to_say_while_there_is_room():
    assert warning(0, 4096, "stop") == ""
    assert warning(3276, 4096, "stop") == ""
    assert warning(0, 0, "stop") == ""


def test_what_will_happen_is_said():
    """How much is left, what happens then, and which keys help; by the choice made."""
    nearly = warning(3300, 4096, "stop")
    assert nearly.startswith("The context is nearly full: about 700 of 4096 tokens are left. When none are, the reply")
    assert "Ctrl+N" in nearly
    assert "F9" in nearly
    assert "oldest turns are left out" in warning(3300, 4096, "forget")
    assert warning(100, 200, "stop", 150, guessed=True).startswith("This message takes some 150 tokens, 100 are left.")
    assert warning(100, 200, "stop", 150).startswith("This message takes 150 tokens, 100 are left. It will be refused")


@pytest.mark.parametrize("overflow", ["stop", "forget"])
def test_a_message_that_fits_into_no_chat_is_not_sent_to_a_new_one(overflow):
    said = warning(293, 4096, overflow, 6598, guessed=True)
    assert said.startswith("This message takes some 6598 tokens, the whole context has 4096. It will be refused")
    assert "F9" in said
    assert "Ctrl+N" not in said


@pytest.mark.parametrize("used", [4081, 4096, 4100])
def test_a_full_context_is_called_so(used):
    """What the next message will do is said, in place of "about 0 tokens are left"."""
    full = f"The context is full: {used} of 4096 tokens. "
    assert warning(used, 4096, "stop").startswith(full + "Another message will be refused")
    assert warning(used, 4096, "forget").startswith(full + "For another message the oldest turns are left out")


def test_what_is_left_is_never_said_to_be_more_than_it_is():
    """And at least one token is, as long as the context is not called full."""
    for used in range(3277, 4081):
        about = int(re.findall(r"about (\d+) of", warning(used, 4096, "stop"))[0])
        assert 1 <= about <= 4096 - used < about + 100


def messages(n: int, system: bool = True) -> list[dict[str, str]]:
    first = [{"role": "system", "content": "s"}] if system else []
    return first + [{"role": "user" if i % 2 == 0 else "assistant", "content": str(i)} for i in range(n)]


def count(read) -> int:
    return 10 * len(read)


def test_what_fits_is_left_alone():
    assert fitting(messages(6), 0, count, 100) == (messages(6), 0)


def test_the_oldest_exchanges_go_first_and_the_system_prompt_stays():
    """75 tokens may be read; 80 are there: exchanges go until half of the context is left."""
    read, skipped = fitting(messages(7), 0, count, 100)
    assert skipped == 4
    assert [m["content"] for m in read] == ["s", "4", "5", "6"]
    read, skipped = fitting(messages(9), skipped, count, 100)
    assert (skipped, [m["content"] for m in read]) == (4, ["s", "4", "5", "6", "7", "8"])


def test_the_last_question_always_stays():
    """However long it is: the engine then says that it does not fit."""
    read, skipped = fitting(messages(5, system=False), 0, lambda read: 1000, 100)
    assert (skipped, [m["content"] for m in read]) == (4, ["4"])


async def test_a_filling_context_is_said_above_the_input():
    model = FakeModel(answer=["word "] * 30, n_ctx=48)
    async with running(model) as (app, pilot):
        assert "context is" not in screen_text(app)
        await ask(app, pilot, "some words to begin with")
        await until(pilot, lambda: "The context is" in screen_text(app))
        assert "Ctrl+N" in screen_text(app)
        app.screen.query_one(Prompt).insert("a very long question " * 5)
        await until(pilot, lambda: "This message takes" in screen_text(app))
        await pilot.press("ctrl+n")
        await pilot.pause()
        app.screen.query_one(Prompt).clear()
        await until(pilot, lambda: "full" not in screen_text(app))


async def test_it_is_said_while_a_reply_is_written():
    """Before the reply ends for want of room, not after."""
    model = FakeModel(answer=["word "] * 180, n_ctx=200)
    model.gate = threading.Semaphore(0)
    async with running(model) as (app, pilot):
        app.screen.query_one(Prompt).insert("hi")
        await pilot.press("enter")
        for _ in range(100):
            model.gate.release()
        await until(pilot, lambda: chat(app).status.used >= 100)
        assert "nearly full" not in screen_text(app)
        for _ in range(60):
            model.gate.release()
        await until(pilot, lambda: "The context is nearly full" in screen_text(app))
        assert chat(app).busy
        for _ in range(30):
            model.gate.release()
        await until(pilot, lambda: not chat(app).busy)


class Template:
    """Ten tokens a message."""

    def encode(self, tokenizer, read) -> list[int]:  # noqa: ARG002
        return list(range(count(read)))


async def test_forgetting_by_choice_leaves_the_oldest_out_of_what_is_read():
    """The turns stay in the chat; the model reads the newest, and goes on from the same first turn."""
    model = FakeModel(answer="ok", n_ctx=100, chat_template=Template())
    async with running(model) as (app, pilot):
        chat(app).record.configure(overflow="forget")
        for n in range(6):
            await ask(app, pilot, f"q{n}")
        asked = [[m["content"] for m in request["prompt"]] for request in model.asked]
        assert asked[3] == ["q0", "ok", "q1", "ok", "q2", "ok", "q3"]
        assert asked[4] == ["q2", "ok", "q3", "ok", "q4"]
        assert asked[5] == ["q2", "ok", "q3", "ok", "q4", "ok", "q5"]
        assert len(chat(app).conversation.turns) == 12


async def test_a_model_that_completes_text_forgets_too():
    """It has no chat template: the text alone is counted and cut between turns."""
    model = FakeModel(answer="a" * 200, n_ctx=100, chat_template=None)
    async with running(model) as (app, pilot):
        chat(app).record.configure(overflow="forget")
        for n in range(3):
            await ask(app, pilot, f"q{n}")
        assert [request["prompt"] for request in model.asked] == ["q0", "q0" + "a" * 200 + " q1", "q2"]


@pytest.mark.parametrize(
    ("texts", "read"),
    [
        (["In the", " beginning", "God"], "In the beginning God"),
        (["def f", "(x):\n", "return"], "def f(x):\nreturn"),
        (["one", " two.", "", " three"], "one two. three"),
        (["one", " two", ", three"], "one two, three"),
    ],
)
def test_what_is_added_to_a_text_is_a_word_of_its_own(texts: list[str], read: str):
    """Unless it begins with a sign, or the text ends with a space; the model's own pieces follow as they are."""
    roles = ["user", "assistant", "user", "assistant"]
    turns = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False) if text]
    assert plain_text(turns) == read


async def test_a_model_that_completes_text_can_always_go_on():
    """It writes pieces of its context, an empty message lets it go on, and the oldest text is forgotten in time."""
    model = FakeModel(answer="a" * 100, n_ctx=200, chat_template=None)
    async with running(model) as (app, pilot):
        shown = " ".join(screen_text(app).split())
        assert "it goes on with what you write" in shown
        assert "looks back on 200 tokens and writes 50 at a time" in shown
        assert chat(app).record.parameters == {"overflow": "forget", "max_tokens": 50}
        await pilot.press("enter")
        await pilot.pause(0.1)
        assert not model.asked  # there is nothing yet to go on with
        await ask(app, pilot, "once  ")
        for _ in range(6):
            await ask(app, pilot, "")
        assert [request["max_tokens"] for request in model.asked] == [50] * 7
        read = [request["prompt"] for request in model.asked]
        assert read[:3] == ["once  ", "once  " + "a" * 100, "once  " + "a" * 200]
        assert max(len(model.tokenize(text)) for text in read) <= 150
        assert len(chat(app).conversation.turns) == 14
        await pilot.press("ctrl+n")
        await until(pilot, lambda: "writes 50 at a time" in screen_text(app))


async def test_the_end_of_a_piece_is_explained_once():
    """Under the first alone, and there again when the chat is shown anew; a reply of a chat that is cut says so."""
    answer = "and " * 60
    async with running(FakeModel(answer=answer, n_ctx=200, chat_template=None), size=(80, 60)) as (app, pilot):
        for text in ("Once", "", ""):
            await ask(app, pilot, text)
        notes = [str(note.content) for note in app.screen.query(Note)]
        assert notes == [PIECE]
        assert screen_text(app).count("Enter alone lets the model go on") == 1
        assert [turn.stop_reason for turn in chat(app).record.turns if turn.role == "assistant"] == ["length"] * 3
        transcript, turns = chat(app).transcript, chat(app).record.turns
        await transcript.show(turns[:2])
        await transcript.show(turns)
        assert [str(note.content) for note in app.screen.query(Note)] == [PIECE]
        await transcript.show([])
        await transcript.show(turns)
        assert [str(note.content) for note in app.screen.query(Note)] == [PIECE]
    async with running(FakeModel(answer=answer), options=AppOptions(sampling={"max_tokens": 9})) as (app, pilot):
        for text in ("one", "two"):
            await ask(app, pilot, text)
        assert [str(note.content) for note in app.screen.query(Note)] == [ENDINGS["length"]] * 2


async def test_what_was_asked_for_holds_where_a_model_completes_text():
    options = AppOptions(sampling={"max_tokens": 7})
    async with running(FakeModel(chat_template=None, n_ctx=200), options=options) as (app, _):
        assert chat(app).record.parameters == {"overflow": "forget", "max_tokens": 7}


async def test_beginnings_that_the_model_knows_are_shown():
    options = AppOptions(beginnings={Path("demo.gguf").absolute(): ("And God said", "[b]import[/b]")})
    async with running(FakeModel(chat_template=None), options=options, size=(40, 12)) as (app, pilot):
        assert "This model completes text" in screen_text(app)
        await pilot.press("ctrl+n")
        await pilot.pause(0.1)
        assert "This model completes text" in screen_text(app)
        await pilot.resize_terminal(80, 24)
        await until(pilot, lambda: "And God said" in screen_text(app))
        assert "[b]import[/b]" in screen_text(app)


async def test_a_dense_model_is_not_said_to_have_experts_beside_the_chat():
    async with running(FakeModel(n_expert=0, n_used=0)) as (app, _):
        assert "It has no experts" in screen_text(app)
        assert "Beside the chat" not in screen_text(app)
