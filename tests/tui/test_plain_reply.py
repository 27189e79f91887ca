"""What a model that completes text writes is shown as it is: it is no Markdown."""

from __future__ import annotations

import pytest

from localmoe.tui.widgets.turns import PlainReply

from .driving import ask, chat, lines, running
from .fake_model import FakeModel

CODE = (
    "\n    if x.__len__() * 2 > *y:  # no emphasis\n\treturn `z`\n\n\n# no heading\n1. no list\n<b> [a](b)\n"
    "    a line that is so long that it has to go on in another row, which begins at the left as all the others do\n\n"
)
SHOWN = [
    "    if x.__len__() * 2 > *y:  # no emphasis",
    "        return `z`",
    "",
    "",
    "# no heading",
    "1. no list",
    "<b> [a](b)",
    "    a line that is so long that it has to",
    "go on in another row, which begins at the",
    "left as all the others do",
]


def shown(app) -> list[list[str]]:
    return [[line.rstrip() for line in lines(reply)] for reply in app.screen.query(PlainReply)]


async def test_lines_spaces_and_marks_stay():
    """While it is written, and where the chat is shown again; the space around it is not shown."""
    async with running(FakeModel(answer=list(CODE), chat_template=None), size=(80, 40)) as (app, pilot):
        await ask(app, pilot, "def f(x, y):")
        chat(app).transcript.settle()
        await pilot.pause()
        assert shown(app) == [SHOWN]
        transcript, turns = chat(app).transcript, chat(app).record.turns
        assert turns[1].text == CODE
        await transcript.show([])
        await transcript.show(turns)
        await pilot.pause()
        assert shown(app) == [SHOWN]


@pytest.mark.parametrize("size", [1, 3, 17, 400])
async def test_fed_in_pieces_it_never_jumps(size):
    """Whatever is seen of it on the way is the beginning of the whole, at every size of pieces."""
    async with running(FakeModel(answer=" ", chat_template=None), size=(80, 40)) as (app, pilot):
        await ask(app, pilot, "def f(x, y):")
        transcript = chat(app).transcript
        for at in range(0, len(CODE), size):
            await transcript.feed(CODE[at : at + size])
            if at % 5 == 0:
                await pilot.pause()
                seen = "\n".join(shown(app)[0]).rstrip()
                assert "\n".join(SHOWN[:7]).startswith(seen) or seen.startswith("\n".join(SHOWN[:7]))
        transcript.settle()
        await pilot.pause()
        assert shown(app) == [SHOWN]


async def test_a_space_before_the_first_word_is_no_indentation():
    """Tokens of words begin with one."""
    async with running(FakeModel(answer=[" ", " upon", " a time"], chat_template=None), size=(80, 24)) as (app, pilot):
        await ask(app, pilot, "Once")
        chat(app).transcript.settle()
        await pilot.pause()
        assert shown(app) == [["upon a time"]]


async def test_a_reply_by_a_template_is_markdown():
    async with running(FakeModel(answer="**ok**"), size=(80, 24)) as (app, pilot):
        await ask(app, pilot)
        assert not app.screen.query(PlainReply)
