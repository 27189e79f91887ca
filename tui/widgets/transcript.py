"""The chat so far, scrolled to its end unless someone reads further up."""

from __future__ import annotations

from textual.app import ComposeResult
from textual.containers import Vertical, VerticalScroll
from textual.widgets import Static

from .turns import Note, ReplyTurn, UserTurn

WELCOME = "Write below, Enter sends. Beside the chat you see which experts each layer uses, while it answers."


class Transcript(VerticalScroll):
    """Turns from top to bottom; the last reply can grow."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id, can_focus=True)
        self.reply: ReplyTurn | None = None

    def compose(self) -> ComposeResult:
        # An anchored scroll view holds short content at its bottom: the turns fill at least one page instead.
        with Vertical(id="turns"):
            yield Static(WELCOME, id="welcome", markup=False)

    def on_mount(self) -> None:
        self.anchor()

    @property
    def turns(self) -> Vertical:
        return self.query_one("#turns", Vertical)

    async def add_user(self, text: str) -> None:
        """Show what the user said."""
        await self.query("#welcome").remove()
        await self.turns.mount(UserTurn(text))
        self.anchor()

    async def begin_reply(self) -> None:
        """Add an empty reply that `feed` appends to."""
        self.reply = ReplyTurn()
        await self.turns.mount(self.reply)
        self.anchor()

    async def feed(self, text: str) -> None:
        """Append to the reply."""
        if self.reply is not None:
            await self.reply.feed(text)

    async def add_note(self, text: str, *, error: bool = False) -> None:
        """Add a line of the app's own."""
        await self.turns.mount(Note(text, error=error))

    async def drop_reply(self) -> None:
        """Remove the last reply and the notes after it."""
        if self.reply is None:
            return
        for child in reversed(list(self.turns.children)):
            last = child is self.reply
            await child.remove()
            if last:
                break
        self.reply = None

    async def restart(self) -> None:
        """Remove everything."""
        self.reply = None
        await self.turns.remove_children()
        await self.turns.mount(Static(WELCOME, id="welcome", markup=False))
