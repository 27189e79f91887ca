"""The chats that were kept: find one by its words, go on with it, rename, export or delete it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from textual import events, on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from localmoe.errors import LocalMoeError
from localmoe.sessions.export import file_name, write
from localmoe.sessions.store import Entry, Store

from ..rules import in_words
from ..widgets.choices import Choices, moves
from ..widgets.key_line import KeyLine
from ..widgets.turns import MUTED, shown, shown_line
from .dialogs import AskScreen, ChooseScreen

PREVIEW = 1200
"""Characters shown of a chat's end."""


@dataclass(frozen=True)
class Chosen:
    """A chat to go on with; `with_its_model`: open the model it was had with."""

    key: int
    with_its_model: bool


def ago(seconds: float) -> str:
    """How long ago, in at most four characters."""
    for size, unit in ((86400 * 365, "y"), (86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= size:
            return f"{min(999, int(seconds // size))}{unit}"
    return "now"


class SessionsScreen(ModalScreen[Chosen | None]):
    """The search line always has the keyboard: up and down choose, other keys act on the chosen chat."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "resume(False)", "Go on", id="sessions.resume", priority=True),
        Binding("ctrl+o", "resume(True)", "With its model", id="sessions.model", priority=True),
        Binding("ctrl+r", "rename", "Rename", id="sessions.rename", priority=True),
        Binding("ctrl+e", "export", "Export", id="sessions.export", priority=True),
        Binding("ctrl+d", "delete", "Delete", id="sessions.delete", priority=True),
        Binding("escape", "dismiss(None)", "Back", id="sessions.close", priority=True),
    ]

    def __init__(self, store: Store, current: int | None) -> None:
        super().__init__()
        self._store, self._current = store, current
        self._entries: list[Entry] = []

    def compose(self) -> ComposeResult:
        with Vertical(classes="panel wide-panel") as panel:
            panel.border_title = "Chats"
            yield Input(placeholder="Search the words of all chats", compact=True, id="sessions-search")
            with Horizontal(id="sessions-body"):
                yield Choices(id="sessions-list", markup=False, compact=True)
                yield Static(id="sessions-preview", markup=False)
            yield Static(id="sessions-said", markup=False)
            yield KeyLine()

    def on_mount(self) -> None:
        self.query_one("#sessions-list").can_focus = False
        self.query_one(Input).focus()
        if self._store.read_only:
            self._say(f"{self._store.path} may not be written: chats are read as they were kept")
        self._fill()

    @property
    def entry(self) -> Entry | None:
        """The chosen chat."""
        at = self.query_one(OptionList).highlighted
        return self._entries[at] if at is not None and at < len(self._entries) else None

    def _fill(self) -> None:
        chosen, options = self.entry, self.query_one(OptionList)
        try:
            self._entries = self._store.entries(self.query_one(Input).value)
        except LocalMoeError as error:
            self._entries = []
            self._say(str(error))
        options.clear_options()
        options.add_options([Option(self._line(entry)) for entry in self._entries])
        keys = [entry.key for entry in self._entries]
        if keys:
            options.highlighted = keys.index(chosen.key) if chosen and chosen.key in keys else 0
        self._preview()

    def _line(self, entry: Entry) -> Content:
        mark = "●" if entry.key == self._current else " "
        age = ago(time.time() - entry.updated)
        return Content.assemble(
            (f"{mark} ", "$text-accent"),
            (f"{age:>4} ", MUTED),
            shown_line(entry.title),
            (f"  {entry.n_turns} turns", MUTED),
        )

    def _preview(self) -> None:
        entry, preview = self.entry, self.query_one("#sessions-preview", Static)
        if entry is None:
            preview.update(
                "Nothing found." if self.query_one(Input).value else "No chats yet: they are kept as you write."
            )
            return
        try:
            saved = self._store.load(entry.key)
        except LocalMoeError as error:
            preview.update(Content(shown_line(str(error))))
            return
        head = [shown_line(Path(entry.model).name)]
        if routing := in_words(saved.routing):
            head.append(f"routing: {shown_line(routing)}")
        parts: list[Content] = [Content.styled("\n".join(head), MUTED)]
        for turn in saved.conversation.turns[-4:]:
            style = "$text-accent" if turn.role == "user" else ""
            parts.append(Content.styled(shown(turn.text[: PREVIEW // 3]), style))
        preview.update(Content("\n\n").join(parts))

    def _say(self, text: str) -> None:
        self.query_one("#sessions-said", Static).update(Content(shown_line(text)))

    @on(Input.Changed, "#sessions-search")
    def _searched(self) -> None:
        self._fill()

    @on(OptionList.OptionHighlighted)
    def _moved(self) -> None:
        self._preview()

    @on(OptionList.OptionSelected)
    def _clicked(self) -> None:
        self.action_resume(False)

    def on_key(self, event: events.Key) -> None:
        moves(event, self.query_one(OptionList))

    def action_resume(self, with_its_model: bool) -> None:
        """Go on with the chosen chat."""
        if (entry := self.entry) is not None:
            self.dismiss(Chosen(entry.key, with_its_model))

    def action_rename(self) -> None:
        """Give it another title."""
        if (entry := self.entry) is not None:
            self.app.push_screen(
                AskScreen("Rename the chat", entry.title, lambda title: self._store.rename(entry.key, title)),
                lambda _: self._fill(),
            )

    def action_export(self) -> None:
        """Write it to a file, as Markdown or JSON by the file's ending."""
        if (entry := self.entry) is not None:
            name = str(Path.cwd() / file_name(entry.title, "md"))
            self.app.push_screen(
                AskScreen("Export to (.md or .json)", name, lambda to: self._export(entry, to)),
                lambda to: self._say(f"written: {to}") if to else None,
            )

    def _export(self, entry: Entry, to: str) -> None:
        write(self._store.load(entry.key), Path(to))

    def action_delete(self) -> None:
        """Delete it, after a question."""
        entry = self.entry
        if entry is None or entry.key == self._current:
            self._say("the chat that is open cannot be deleted: Ctrl+N starts another first" if entry else "")
            return
        question = f"Delete “{entry.title}” with its {entry.n_turns} turns?"

        def answered(choice: int | None) -> None:
            if choice == 1:
                try:
                    self._store.delete(entry.key)
                    self._say("deleted")
                except LocalMoeError as error:
                    self._say(str(error))
                self._fill()

        self.app.push_screen(ChooseScreen(question, ["No, keep it", "Yes, delete it"]), answered)
