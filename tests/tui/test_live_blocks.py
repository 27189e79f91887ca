"""A reply's blocks while it is written: what they look like, and what that costs."""

from __future__ import annotations

import asyncio
import itertools

import pytest
from textual.app import App
from textual.geometry import Offset
from textual.selection import Selection
from textual.widgets import Markdown

from localmoe.tui.widgets.live_blocks import LiveMarkdown
from localmoe.tui.widgets.page import Page
from localmoe.tui.widgets.prompt import Prompt
from localmoe.tui.widgets.turns import ReplyTurn
from tests.slowness import own_time, slowness

from .driving import ask, chat, lines, running, screen_text
from .fake_model import ANSWER, FakeModel

LISTS = (
    "Steps:\n\n1. first\n2. second, which is long enough to wrap on a narrow screen and go on below\n   - inner *one*\n"
    "   - inner two\n3. third\n\n   still third\n" + "".join(f"{n}. more\n" for n in range(4, 12)) + "\n- a\n- b\n\n"
    "  ```python\n  x = 1\n  ```\n- c\n\n> quoted\n\n| a | b |\n|---|---|\n| 1 | 2 |\n| 3 | 4 |\n\n"
    "Title\n---\n\nEnd\n- d\n"
)


@pytest.mark.parametrize("text", [ANSWER, LISTS], ids=["answer", "lists"])
@pytest.mark.parametrize("size", [1, 3, 17])
async def test_fed_in_pieces_equals_the_whole(text, size):
    """A reply fed in pieces looks like one fed at once, whatever its blocks turn into on the way."""
    async with running(FakeModel(answer="."), size=(100, 90)) as (app, pilot):
        await ask(app, pilot)
        transcript = chat(app).transcript
        for at in range(0, len(text), size):
            await transcript.feed(text[at : at + size])
            if at % 5 == 0:
                await pilot.pause()
        await transcript.finish()
        transcript.settle()
        await pilot.pause()
        pieces = screen_text(app)
    async with running(FakeModel(answer="."), size=(100, 90)) as (app, pilot):
        await ask(app, pilot)
        await chat(app).transcript.feed(text)
        await chat(app).transcript.finish()
        chat(app).transcript.settle()
        await pilot.pause()
        whole = screen_text(app)
        assert app.screen.query_one(ReplyTurn).source == "." + text
    left = [line[:48] for line in pieces.splitlines()[:-3]]
    assert left == [line[:48] for line in whole.splitlines()[:-3]]
    assert text.split()[-1] in pieces


LIST = (
    "- one *two* `three` and then so many words that this item wraps at least twice on a narrow screen, with **bold**\n"
    "- two\\\n  a hard break\n\n  another paragraph of it\n  - inner\n    - innermost, and long enough to wrap once\n"
    "- - at once\n-\n- 1. numbers\n  2. in it\n"
)
NUMBERED = (
    "8. eight\n9. nine\n10. ten, which is long enough to wrap on a narrow screen and go on below\n    - a bullet\n"
)


class OneList(App[None]):
    """A list and a line below it."""

    def __init__(self, markdown: type[Markdown], text: str) -> None:
        super().__init__()
        self._markdown, self._text = markdown, text

    def compose(self):
        yield self._markdown(self._text + "\nEnd.")


@pytest.mark.parametrize("theme", ["textual-dark", "textual-light"])
@pytest.mark.parametrize("text", [LIST, NUMBERED], ids=["bullets", "numbers"])
async def test_a_flat_list_looks_like_textuals(text, theme):
    """Characters and styles of every line are those of Textual's own lists."""
    shown = []
    for markdown in (Markdown, LiveMarkdown):
        app = OneList(markdown, text)
        async with app.run_test(size=(40, 40)) as pilot:
            app.theme = theme
            await pilot.pause()
            assert bool(app.query(Page)) == (markdown is LiveMarkdown)
            cells = [
                [(char, s.style) for s in strip for char in s.text] for strip in app.screen._compositor.render_strips()
            ]
            shown.append([[(char, style.color, style.bgcolor, style.bold, style.italic) if char != " " else char
                           for char, style in line] for line in cells])  # fmt: skip
    assert shown[0] == shown[1]


async def test_text_in_a_flat_list_can_be_selected():
    """Lines are copied whole, however they wrap."""
    app = OneList(LiveMarkdown, LIST)
    async with app.run_test(size=(40, 40)) as pilot:
        await pilot.pause()
        app.screen.selections = {app.query_one(Page): Selection(Offset(2, 0), Offset(5, 1))}
        await pilot.pause()
        copied = app.screen.get_selected_text()
        assert copied == (
            "one two three and then so many words that this item wraps at least twice on a narrow screen, with bold\n"
            "• two"
        )
        selected = app.screen.get_component_rich_style("screen--selection").bgcolor
        lit = "".join(s.text for y in range(app.query_one(Page).size.height)
                      for s in app.query_one(Page).render_line(y)
                      if s.style and s.style.bgcolor == selected)  # fmt: skip
        assert lit.replace(" ", "") == copied.replace("\n", "").replace(" ", "").replace(
            "three", ""
        )  # code has its own


STEADY = "One **bold *both* words** and `some code` in it.\n\n## A *title*\n\n" + LIST + "\n```py\nx = 1\n```\n\nEnd.\n"


async def test_what_is_shown_stays_as_it_is():
    """A letter at a time: no mark of Markdown is shown that is gone later, and what a line begins with stays."""
    async with running(FakeModel(answer="ok"), size=(100, 60)) as (app, pilot):
        await ask(app, pilot)
        await chat(app).action_new_chat()
        await ask(app, pilot)
        reply = app.screen.query_one(ReplyTurn)
        for number in range(1, len(STEADY)):
            await reply.feed(STEADY[number - 1])
            await pilot.pause()
            if number % 3 == 0:
                seen = "\n".join(line[:48] for line in screen_text(app).splitlines()[2:-4])
                assert not set("*#`") & set(seen), seen
        await reply.finish()


async def test_a_fast_reply_comes_evenly(monkeypatch):
    """100 tokens/s for three seconds: the text on the screen changes ten times a second, in steps of ten tokens.

    Of three replies the most even one counts, by a clock that stands still while other programs have the cores.
    """
    slower = slowness()
    for _ in range(3):
        times = await when_drawn(monkeypatch)
        gaps = sorted(b - a for a, b in itertools.pairwise(times))
        even = gaps[len(gaps) // 2] <= 0.2 * slower and gaps[9 * len(gaps) // 10] <= 0.35 * slower
        if len(times) >= 15 / slower and even:  # gaps of 0.09 on a quiet machine
            return
    raise AssertionError(f"drawn {len(times)} times, gaps of {gaps}")


async def when_drawn(monkeypatch) -> list[float]:
    """The times at which 300 words, 100 a second, came to the screen."""
    words = [f" w{n:03d}" + "\n\n" * (n % 60 == 59) + "\n-" * (120 < n < 180 and n % 8 == 0) for n in range(300)]
    async with running(FakeModel(answer=words, delay=0.01), size=(120, 40)) as (app, pilot):
        drawn: list[tuple[float, str]] = []
        display = app._display

        def note(screen, update) -> None:
            display(screen, update)
            for reply in app.screen.query(ReplyTurn):
                drawn.append((own_time(), reply.source))

        monkeypatch.setattr(app, "_display", note)
        app.screen.query_one(Prompt).insert("hi")
        await pilot.press("enter")
        while not drawn or "w299" not in drawn[-1][1]:
            await asyncio.sleep(0.02)  # pilot's own pauses take more of the thread than the app
        return [now for (now, text), (_, before) in zip(drawn[1:], drawn, strict=False) if text != before]


async def test_a_growing_text_needs_few_layouts():
    """Sixty pieces of nine lines: a layout for every few lines, not for every piece; none of the room is left over."""
    async with running(FakeModel(answer=["word"]), size=(80, 24)) as (app, pilot):
        await ask(app, pilot)
        transcript, layouts = chat(app).transcript, []
        app.screen.screen_layout_refresh_signal.subscribe(app.screen, lambda _: layouts.append(1))
        for _ in range(60):
            await transcript.feed(" another")
            await pilot.pause()
        transcript.settle()
        await pilot.pause()
        assert 2 <= len(layouts) <= 12
        page = app.screen.query_one(Page)
        shown = lines(page)
        assert len(shown) == page.size.height >= 11
        assert shown[-1].strip()


LONG = "x = [" + ", ".join(f"n{number:03d}" for number in range(30)) + "]"


@pytest.mark.parametrize("fence", ["```python\n{}\n```\n", "{}", "- item\n\n  ```python\n  {}\n  ```\n"])
async def test_long_lines_of_code_go_on_below(fence):
    """Nothing of a long line is out of sight, while it is written and when it is finished; both look the same."""
    code = f"def f():\n    {LONG}\n    return x"
    text = fence.format(code.replace("\n", "\n  ") if fence[0] == "-" else code)
    text = "\n".join(f"    {line}" for line in code.split("\n")) if fence == "{}" else text
    async with running(FakeModel(answer=["ok"]), size=(80, 40)) as (app, pilot):
        await ask(app, pilot)
        transcript = chat(app).transcript
        await transcript.feed("\n\n")
        seen = []
        for char in text + "\n\nEnd.":
            await transcript.feed(char)
        await pilot.pause()
        seen.append([line.rstrip() for line in lines(app.screen.query_one(Page)) if line.strip()])
        await transcript.finish()
        transcript.settle()
        await pilot.pause()
        seen.append(lines(app.screen.query_one(Page)))
        assert [line.rstrip() for line in seen[0] if line.strip()] == [
            line.rstrip() for line in seen[1] if line.strip()
        ]
        rows = [line for line in seen[1] if "↳" in line or "x = [" in line]
        assert len(rows) >= 3
        assert all(len(row) <= app.screen.query_one(Page).size.width for row in rows)
        words = "".join(row.replace("↳", "") for row in rows)
        assert "".join(words.split()) == "".join(LONG.split())
        first = rows[0].index("x")
        assert all(len(row) - len(row.replace("↳", " ").lstrip()) == first for row in rows[1:])  # below the line's own


async def test_code_is_copied_as_it_was_written():
    """Without the marks of what goes on below."""
    app = OneList(LiveMarkdown, f"```python\ndef f():\n    {LONG}\n```\n")
    async with app.run_test(size=(40, 40)) as pilot:
        await pilot.pause()
        app.screen.selections = {app.query_one(Page): Selection(Offset(0, 0), Offset(4 + len(LONG), 1))}
        await pilot.pause()
        assert app.screen.get_selected_text() == f"def f():\n    {LONG}"


async def test_quotes_and_code_in_lists_are_lines_too():
    text = "> quoted *words*\n>\n> - in a list\n\n1. one\n\n   ```\n   code\n   ```\n2. two\n"
    app = OneList(LiveMarkdown, text)
    async with app.run_test(size=(40, 20)) as pilot:
        await pilot.pause()
        shown = [line.rstrip() for line in lines(app.query_one(Page))]
        assert shown == ["▌ quoted words", "▌", "▌ • in a list", "", " 1. one", "     code", " 2. two", "", "End."]


VERSE = "In the **depths\nof** the blue,\n  a world\n- of\n  wonder\n\n> where the\n> sea is\n\n```\na\nb\n```\n"


@pytest.mark.parametrize("size", [1, 5, len(VERSE)])
async def test_lines_that_a_model_ends_are_lines(size):
    """Of verse, in lists and in quotes too, however they come."""
    async with running(FakeModel(answer=""), size=(100, 40)) as (app, pilot):
        await ask(app, pilot)
        transcript = chat(app).transcript
        for at in range(0, len(VERSE), size):
            await transcript.feed(VERSE[at : at + size])
        await transcript.finish()
        transcript.settle()
        await pilot.pause()
        page = app.screen.query_one(ReplyTurn).query_one(Page)
        shown = [line.strip() for line in lines(page)]
        assert shown == [
            *("In the depths", "of the blue,", "a world", "", "• of", "wonder", ""),
            *("▌ where the", "▌ sea is", "", "a", "b"),
        ]
