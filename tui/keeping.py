"""The part of the app that keeps chats: the open file of them, and what is done where it cannot be used."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from localmoe.errors import BadInputError, FileError, LocalMoeError
from localmoe.sessions.record import Record
from localmoe.sessions.store import Store

from .in_order import OrderedKeys
from .options import AppOptions
from .parameters import checked
from .screens.chat import ChatScreen
from .screens.dialogs import NoticeScreen
from .screens.sessions import SessionsScreen
from .widgets.turns import shown_line

_UNSAVED = (
    "{reason}\n\nEverything works, but chats are not kept.{stays} Once this is set right, Ctrl+S keeps them again."
)
_STAYS = " The file is left as it is: move it away to start a new one, or choose another folder with LOCALMOE_DATA."


class KeepingApp(OrderedKeys):
    """Has a store where one can be opened; without one every chat goes on unsaved, and Ctrl+S tries again.

    `readable` is the store, or one that may not be written: its chats are listed and gone on with.
    """

    def __init__(self, options: AppOptions) -> None:
        super().__init__()
        self._options = options
        self.store: Store | None = None
        self.readable: Store | None = None
        self._trouble: LocalMoeError | None = None

    @property
    def chat(self) -> ChatScreen | None:
        """The chat, where it is on the screen and nothing over it."""
        return self.screen if isinstance(self.screen, ChatScreen) else None

    def _open_store(self) -> None:
        self._trouble = None
        if self._options.sessions is None:
            return
        self.close_store()
        try:
            self.readable = Store(self._options.sessions)
        except LocalMoeError as error:
            self._trouble = error
            return
        if self.readable.read_only:
            self._trouble = FileError("the saved chats may be read, but not written", file=self.readable.path)
        else:
            self.store = self.readable

    def close_store(self) -> None:
        """Let the file of chats go."""
        if self.readable is not None:
            self.readable.close()
        self.store = self.readable = None

    def _tell_trouble(self) -> None:
        """Say why chats are not kept, and what to do: nothing about a file that is sound or is not there."""
        if self._trouble is not None:
            wrong = isinstance(self._trouble, BadInputError) and os.path.isfile(self._options.sessions or "")
            text = _UNSAVED.format(reason=self._trouble, stays=_STAYS if wrong else "")
            self.push_screen(NoticeScreen("Chats are not saved", text))

    def _resumed(self, key: int | None) -> Record | None:
        """A chat that was kept, with the parameters that are possible; None where it cannot be read."""
        if key is None or self.readable is None:
            return None
        try:
            record = Record.resumed(self.store, self.readable.load(key))
        except LocalMoeError as error:
            self.notify(shown_line(str(error)), severity="error", markup=False)
            return None
        record.parameters, wrong = checked(record.parameters)
        if wrong:
            self.notify(f"parameters left out: {shown_line(', '.join(wrong))}", severity="warning", markup=False)
        return record

    def _remember(self, path: Path) -> None:
        """Put a model that was opened among the recent ones."""
        if self.store is not None:
            with contextlib.suppress(LocalMoeError):  # a list of files, no more
                self.store.opened(str(path.absolute()))

    def _recent_models(self) -> list[str]:
        if self.readable is not None:
            with contextlib.suppress(LocalMoeError):
                return self.readable.recent_models()
        return []

    def _idle_chat(self) -> ChatScreen | None:
        chat = self.chat
        if chat is not None and chat.busy:
            self.notify("The model is still writing: Esc stops it.", timeout=2)
            return None
        return chat

    def _chats(self) -> SessionsScreen | None:
        """The chats that were kept; where none can be, try again, and then keep the one on the screen."""
        chat = self._idle_chat()
        if chat is None:
            return None
        if self._options.sessions is None:
            self.notify("Chats are not kept in this run (--no-save).", timeout=3)
            return None
        if self.store is None:
            self._open_store()
        if self.readable is None:
            self._tell_trouble()
            return None
        if self.store is not None:
            chat.record.keep_in(self.store)
        return SessionsScreen(self.readable, chat.record.key)
