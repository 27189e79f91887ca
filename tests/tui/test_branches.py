"""Turns that are chosen, edited, answered again and copied, and the branches that this makes."""

from __future__ import annotations

import threading

from localmoe.tui.copying import code_blocks
from localmoe.tui.widgets.prompt import Prompt
from localmoe.tui.widgets.transcript import SHOWN, Transcript

from .driving import ask, chat, running, screen_text, until
from .fake_model import FakeModel


def line(app) -> list[str]:
    return [turn.text for turn in chat(app).conversation.turns]


async def test_editing_a_question_makes_a_branch_and_keeps_the_old_one():
    """E puts it into the input, Enter asks it beside the old one, left goes back to the old branch as it was."""
    model = FakeModel(answer="ok")
    async with running(model) as (app, pilot):
        await ask(app, pilot, "one")
        await ask(app, pilot, "two")
        await pilot.press("tab", "up", "up", "up", "e")
        await until(pilot, lambda: app.screen.query_one(Prompt).text == "one")
        assert "You edit an earlier turn" in screen_text(app)
        await pilot.press(*" more", "enter")
        await until(pilot, lambda: len(model.asked) == 3 and not chat(app).busy)
        assert model.asked[2]["prompt"] == [{"role": "user", "content": "one more"}]
        assert line(app) == ["one more", "ok"]
        assert "‹ 2/2 ›" in screen_text(app)
        assert "two" not in screen_text(app)
        await pilot.press("tab", "up", "left")
        await until(pilot, lambda: line(app) == ["one", "ok", "two", "ok"])
        await until(pilot, lambda: "‹ 1/2 ›" in screen_text(app))
        assert "one more" not in screen_text(app)
        await pilot.press("right")
        await until(pilot, lambda: line(app) == ["one more", "ok"])


async def test_escape_leaves_an_edit_and_brings_the_draft_back():
    async with running(FakeModel(answer="ok")) as (app, pilot):
        await ask(app, pilot, "one")
        await pilot.press(*"draft", "tab", "up", "e")
        await until(pilot, lambda: app.screen.query_one(Prompt).text == "one")
        await pilot.press("escape")
        await pilot.pause()
        assert app.screen.query_one(Prompt).text == "draft"
        assert "You edit" not in screen_text(app)
        await ask(app, pilot, "")
        assert line(app) == ["one", "ok", "draft", "ok"]


async def test_a_reply_can_be_edited_and_the_chat_goes_on_from_it():
    """The model reads the edited reply; nothing is generated until the next question."""
    model = FakeModel(answer="wrong")
    async with running(model) as (app, pilot):
        await ask(app, pilot, "q")
        await pilot.press("tab", "e")
        await until(pilot, lambda: app.screen.query_one(Prompt).text == "wrong")
        app.screen.query_one(Prompt).clear()
        await pilot.press(*"right", "enter")
        await until(pilot, lambda: line(app) == ["q", "right"])
        await until(pilot, lambda: "edited by you" in screen_text(app))
        assert len(model.asked) == 1
        await ask(app, pilot, "next")
        assert [m["content"] for m in model.asked[1]["prompt"]] == ["q", "right", "next"]


async def test_any_reply_can_be_made_again_beside_the_old_one():
    """A on a turn in the middle: a sibling, and what followed the old one stays on its branch."""
    model = FakeModel(answer="old")
    async with running(model) as (app, pilot):
        await ask(app, pilot, "one")
        await ask(app, pilot, "two")
        model.pieces = ["new"]
        await pilot.press("tab", "up", "up", "a")
        await until(pilot, lambda: len(model.asked) == 3 and not chat(app).busy)
        assert line(app) == ["one", "new"]
        reply = chat(app).conversation.turns[1]
        assert [t.text for t in chat(app).conversation.siblings(reply)] == ["old", "new"]
        chat(app).transcript.ask("branch", reply, -1)
        await until(pilot, lambda: line(app) == ["one", "old", "two", "old"])


async def test_the_version_line_can_be_clicked():
    model = FakeModel(answer="old")
    async with running(model) as (app, pilot):
        await ask(app, pilot, "one")
        model.pieces = ["new"]
        await pilot.press("ctrl+r")
        await until(pilot, lambda: line(app) == ["one", "new"] and not chat(app).busy)
        await until(pilot, lambda: "‹ 2/2 ›" in screen_text(app))
        mark = next(box for box in chat(app).transcript.boxes if box.turn.text == "new").query_one(".versions")
        await pilot.click(mark, offset=(1, 0))
        await until(pilot, lambda: line(app) == ["one", "old"])


async def test_branches_wait_for_the_reply():
    """While the model writes nothing is edited."""
    model = FakeModel(answer=["a", "b", "c"])
    model.gate = threading.Semaphore(1)
    async with running(model) as (app, pilot):
        await pilot.press("x", "enter")
        await until(pilot, lambda: line(app) == ["x", "a"])
        await pilot.press("tab", "e", "a")
        await pilot.pause(0.1)
        assert app.screen.query_one(Prompt).text == ""
        assert len(model.asked) == 1
        model.gate.release(9)
        await until(pilot, lambda: not chat(app).busy)


async def test_stopped_before_a_word_the_question_comes_back():
    """Esc while the prompt is read: no empty turns, the text is in the input again."""
    model = FakeModel(answer=["a"])
    model.gate = threading.Semaphore(0)
    async with running(model) as (app, pilot):
        await pilot.press(*"why", "enter")
        await until(pilot, lambda: model.asked)
        await pilot.press("escape")
        model.gate.release(9)
        await until(pilot, lambda: not chat(app).busy)
        await until(pilot, lambda: app.screen.query_one(Prompt).text == "why")
        assert line(app) == []


async def test_a_message_is_copied_without_control_characters():
    """C copies the source of the reply, not its picture."""
    async with running(FakeModel(answer=["**bold** \x1b[2J\x9b", "\nend"])) as (app, pilot):
        await ask(app, pilot)
        await pilot.press("tab", "c")
        await until(pilot, lambda: app.clipboard)
        assert app.clipboard == "**bold** \\x1b[2J\\x9b\nend"


async def test_a_code_block_is_copied_by_choice():
    """One block at once, of several the chosen one."""
    one, two = "a\n```py\nx = 1\n```\n", "\n```\ny = 2\n\x1b[5m\n```\n"
    model = FakeModel(answer=[one])
    async with running(model) as (app, pilot):
        await ask(app, pilot)
        await pilot.press("tab", "b")
        await until(pilot, lambda: app.clipboard == "x = 1")
        model.pieces = [one, two]
        app.screen.query_one(Prompt).focus()
        await ask(app, pilot, "again")
        await pilot.press("tab", "b")
        await until(pilot, lambda: "Copy which code block?" in screen_text(app))
        await pilot.press("down", "enter")
        await until(pilot, lambda: app.clipboard == "y = 2\n\\x1b[5m")
        await pilot.press("up", "b")
        await pilot.pause(0.1)
        assert app.clipboard == "y = 2\n\\x1b[5m"


def test_code_blocks_are_found_in_order():
    text = "```\na\n```\n- item\n\n  ```js\n  b\n  ```\n\npara\n\n    c\n\n``\n`no`"
    assert code_blocks(text) == ["a", "b", "c"]
    assert code_blocks("```\nnot closed") == ["not closed"]
    assert code_blocks("no `code`") == []


async def test_a_long_chat_draws_its_end_and_the_rest_when_asked():
    """Up at the first turn that is drawn shows those above."""
    async with running(FakeModel(answer="ok"), size=(100, 30)) as (app, pilot):
        record = chat(app).record
        for n in range(SHOWN):
            record.ask(f"question {n}")
            turn = record.begin_reply()
            turn.text = f"reply {n}"
            record.end_reply(turn, "eos")
        await chat(app).go_on_with(record)
        await until(pilot, lambda: not chat(app).busy)
        transcript = app.screen.query_one(Transcript)
        assert len(transcript.boxes) == SHOWN
        transcript.focus()
        transcript.choose(transcript.boxes[0].turn)
        await pilot.pause()
        assert f"{SHOWN} turns above" in screen_text(app)
        await pilot.press("up")
        await until(pilot, lambda: len(transcript.boxes) == 2 * SHOWN)
        assert [box.turn for box in transcript.boxes] == record.turns
        app.screen.query_one(Prompt).focus()
        await ask(app, pilot, "last")
        assert len(transcript.boxes) == 2 * SHOWN + 2


async def test_the_meter_follows_the_branch():
    """After another version was chosen it shows what that line takes, not what was read last."""
    model = FakeModel(answer="x" * 400)
    async with running(model) as (app, pilot):
        await ask(app, pilot, "one")
        model.pieces = ["short"]
        await pilot.press("ctrl+r")
        await until(pilot, lambda: not chat(app).busy and len(chat(app).record.turns[0].children) == 2)
        short = chat(app).talk.size(model)
        chat(app).transcript.focus()
        await pilot.press("left")
        await until(pilot, lambda: chat(app).status.used == 6 + 100 + 6)
        await pilot.press("right")
        await until(pilot, lambda: chat(app).status.used == short == 6 + 1 + 6)
