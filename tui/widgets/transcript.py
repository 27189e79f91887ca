"""The chat so far, scrolled to its end unless someone reads further up; one turn in it can be chosen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual import events, on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.widgets import Static

from localmoe.sessions.store import INTERRUPTED
from localmoe.sessions.tree import Turn

from ..copying import code_blocks, first_line
from ..drawing import OnlyGround
from ..messages import TurnAsked
from ..screens.dialogs import ChooseScreen
from .page import LaidOutOnce
from .turns import Note, PlainReply, ReplyTurn, UserTurn, shown

ENDINGS = {
    "cancelled": "stopped",
    "length": "the reply's token limit is reached (F9)",
    "context": "the context was full, so the reply ends here",
    "edited": "edited by you",
    "error": "ended by an error",
    INTERRUPTED: "cut off: the app ended before the reply did",
}
"""What to say under a reply that did not end by itself."""
PIECE = "a piece ends after so many tokens (F9): Enter alone lets the model go on"
"""What to say under the first reply at its token limit where a model completes text: nearly all of them end there."""
SHOWN = 60
"""Turns that are drawn at first; more above them are drawn when asked for."""


class TurnBox(LaidOutOnce, Vertical):
    """A turn, and under it which of its versions it is."""

    def __init__(self, turn: Turn, reply: type[ReplyTurn | PlainReply]) -> None:
        super().__init__(classes=f"turn-box {'of-user' if turn.role == 'user' else 'of-model'}")
        self.turn = turn
        self.body = UserTurn(turn.text) if turn.role == "user" else reply(turn.text)

    def compose(self) -> ComposeResult:
        yield self.body
        yield Static(classes="versions", markup=False)

    def on_mount(self) -> None:
        self.mark()

    @property
    def versions(self) -> Sequence[Turn]:
        """The turn and those beside it."""
        return self.turn.parent.children if self.turn.parent is not None else [self.turn]

    def mark(self) -> None:
        """Tell which version it is, where there are several."""
        versions = self.versions
        line = self.query_one(".versions", Static)
        line.display = len(versions) > 1
        if line.display:
            line.update(f"‹ {versions.index(self.turn) + 1}/{len(versions)} ›")

    @on(events.Click, ".versions")
    def _other(self, event: events.Click) -> None:
        event.stop()
        self.post_message(TurnAsked("branch", self.turn, -1 if event.x < 4 else 1))


class Turns(LaidOutOnce, Vertical):
    """What scrolls."""


class Transcript(LaidOutOnce, OnlyGround, VerticalScroll):
    """Turns from top to bottom; the last reply can grow."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "turn(-1)", "Turn", id="turn.up", key_display="↑ ↓"),
        Binding("down,j", "turn(1)", "Turn below", id="turn.down", show=False),
        Binding("e", "ask('edit')", "Edit", id="turn.edit"),
        Binding("a", "ask('again')", "Again", id="turn.again"),
        Binding("c", "ask('copy')", "Copy", id="turn.copy"),
        Binding("b", "ask('code')", "Code", id="turn.code"),
        Binding("left,less_than_sign", "ask('branch', -1)", "Version", id="turn.left", key_display="← →"),
        Binding("right,greater_than_sign", "ask('branch', 1)", "Next version", id="turn.right", show=False),
    ]

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id, can_focus=True)
        self.reply: ReplyTurn | PlainReply | None = None
        self._above: list[Turn] = []
        self._welcome = ""
        self._completes = False

    def compose(self) -> ComposeResult:
        # An anchored scroll view holds short content at its bottom: the turns fill at least one page instead.
        with Turns(id="turns"):
            yield Static(id="welcome", markup=False)

    @property
    def turns(self) -> Vertical:
        return self.query_one("#turns", Vertical)

    @property
    def boxes(self) -> list[TurnBox]:
        return [child for child in self.turns.children if isinstance(child, TurnBox)]

    @property
    def current(self) -> TurnBox | None:
        """The turn that is chosen."""
        return next((box for box in self.boxes if box.has_class("-current")), None)

    async def show(self, turns: Sequence[Turn]) -> None:
        """Show these turns: what stands already as far as it is the same, then the others anew."""
        self.settle()
        boxes = self.boxes
        first = boxes[0].turn if boxes else None
        self._above = list(turns[: turns.index(first)]) if first in turns else list(turns[:-SHOWN])
        wanted = turns[len(self._above) :]
        same = 0
        while same < min(len(boxes), len(wanted)) and boxes[same].turn is wanted[same]:
            same += 1
        with self.app.batch_update():  # else each of them is drawn by itself
            await self._cut_after(boxes[same - 1] if same else None)
            for turn in wanted[same:]:
                box = await self._add(turn)
                self.reply = None if isinstance(box.body, UserTurn) else box.body
            await self._mark_ends(bool(turns))
        self.anchor(bool(turns))  # of what an empty chat says the beginning comes first
        if not turns:
            self.scroll_home(animate=False)
        self.screen.check_idle()  # what it was told of within the batch waits for something else to be drawn

    async def _cut_after(self, box: TurnBox | None) -> None:
        """Remove what stands below a box; None: everything."""
        children = list(self.turns.children)
        below = children[children.index(box) + 1 :] if box is not None else children
        if box is not None and below and isinstance(below[0], Note) and self.ending(box.turn):
            below = below[1:]
        self.reply = None
        await self.turns.remove_children(below)

    async def _add(self, turn: Turn, before: TurnBox | None = None) -> TurnBox:
        box = TurnBox(turn, PlainReply if self._completes else ReplyTurn)
        parts: list[TurnBox | Note] = [box]
        if said := self.ending(turn):
            parts.append(Note(said))
        await self.turns.mount(*parts, before=before)
        return box

    async def _mark_ends(self, any_turns: bool) -> None:
        await self.turns.query("#welcome, #above").remove()
        if not any_turns:
            await self.turns.mount(Static(self._welcome, id="welcome", markup=False))
        elif self._above:
            text = f"{len(self._above)} turns above: Up at the first one shows them"
            await self.turns.mount(Static(text, id="above", markup=False), before=0)
        for box in self.boxes:
            box.mark()

    def complete_text(self) -> None:
        """Show replies as they are, and expect them to end at their token limit: it is said of the first alone."""
        self._completes = True

    def ending(self, turn: Turn) -> str:
        """What to say under a turn; "" for nothing."""
        if turn.role != "assistant":
            return ""
        if turn.stop_reason == "length" and self._completes:
            return "" if any(before.stop_reason == "length" for before in turn.above()) else PIECE
        return ENDINGS.get(turn.stop_reason or "", "")

    def greet(self, text: str) -> None:
        """Say a text where no turn is."""
        self._welcome = text
        for line in self.query("#welcome").results(Static):
            line.update(text)

    async def feed(self, text: str) -> None:
        """Append to the reply."""
        if self.reply is not None:
            await self.reply.feed(text)

    async def finish(self) -> None:
        """No more comes of the reply."""
        if self.reply is not None:
            await self.reply.finish()

    def settle(self) -> None:
        """Something comes below the reply, which needs no more room to grow. Until then nothing moves."""
        if self.reply is not None:
            self.reply.settle()

    async def add_note(self, text: str, *, error: bool = False) -> None:
        """Add a line of the app's own."""
        self.settle()
        await self.turns.mount(Note(text, error=error))

    def choose(self, turn: Turn | None) -> None:
        """Make a turn the chosen one, and show as much of it as there is room for."""
        box = self._mark(turn)
        if box is not None and box is self.boxes[0]:
            self.scroll_home(animate=False)  # with what stands above it
        elif box is not None:
            box.body.scroll_visible(animate=False)

    def _mark(self, turn: Turn | None) -> TurnBox | None:
        box = None
        for other in self.boxes:
            box = other if other.turn is turn else box
            other.set_class(other.turn is turn, "-current")
        self.refresh_bindings()
        return box

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        if action == "ask" and parameters[0] == "branch":
            box = self.current
            return True if box is not None and len(box.versions) > 1 else None
        return True

    def on_focus(self) -> None:
        if self.current is None and self.boxes:
            self._mark(self.boxes[-1].turn)

    def on_blur(self) -> None:
        self.choose(None)

    def on_click(self, event: events.Click) -> None:
        widget = event.widget
        while widget is not None and not isinstance(widget, TurnBox):
            widget = widget.parent if isinstance(widget.parent, (Vertical, Static)) else None  # up to its turn
        if isinstance(widget, TurnBox):
            self._mark(widget.turn)

    async def action_turn(self, by: int) -> None:
        """Choose the next turn; in one that is higher than the view, scroll first."""
        box, boxes = self.current, self.boxes
        if box is None:
            self.choose(boxes[-1].turn if boxes else None)
            return
        place = box.body.region
        hidden = place.bottom - self.region.bottom if by > 0 else self.region.y - place.y
        if hidden > 0:
            self.scroll_relative(y=by * min(3, hidden), animate=False)
            return
        at = boxes.index(box) + by
        if at < 0 and self._above:
            await self._show_above()
        elif 0 <= at < len(boxes):
            self.choose(boxes[at].turn)
            body = boxes[at].body
            if body.region.height > self.region.height:
                body.scroll_visible(animate=False, top=by > 0)

    async def _show_above(self) -> None:
        more, self._above = self._above[-SHOWN:], self._above[:-SHOWN]
        first = self.boxes[0]
        for turn in more:
            await self._add(turn, first)
        await self._mark_ends(True)
        self.choose(more[-1])

    def action_ask(self, what: str, by: int = 0) -> None:
        """Ask for something to be done with the chosen turn."""
        if (box := self.current) is not None:
            self.ask(what, box.turn, by)

    def ask(self, what: str, turn: Turn, by: int = 0) -> None:
        """Copy a turn or its code; what changes the chat is the screen's to do."""
        if what == "copy":
            self.app.copy_to_clipboard(shown(turn.text))
            self.notify("Copied the message.", timeout=2)
        elif what == "code":
            self._copy_code(code_blocks(turn.text))
        else:
            self.post_message(TurnAsked(what, turn, by))

    def _copy_code(self, blocks: Sequence[str]) -> None:
        def copy(number: int | None) -> None:
            if number is not None:
                self.app.copy_to_clipboard(blocks[number])
                self.notify(f"Copied the code, {len(blocks[number].splitlines())} lines.", timeout=2)

        if len(blocks) > 1:
            self.app.push_screen(ChooseScreen("Copy which code block?", [first_line(b) for b in blocks]), copy)
        elif blocks:
            copy(0)
        else:
            self.notify("There is no code block in this message.", timeout=2)
