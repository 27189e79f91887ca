"""A chat and its copy in the store, changed together. A store that fails is let go: the chat goes on unsaved."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from localmoe.errors import LocalMoeError
from localmoe.sessions.store import Saved, Store
from localmoe.sessions.tree import Conversation, Turn

T = TypeVar("T")
TITLE = 60
"""Characters of a title made from the first question."""
KEEP_EVERY = 0.2
"""Seconds of text that a crash can lose: a transaction a token cost a twentieth of a small model's speed."""


class Pieces:
    """Hands a reply's text on in pieces of KEEP_EVERY."""

    def __init__(self, keep: Callable[[str], None] | None) -> None:
        self._keep, self._text, self._since = keep, "", 0.0

    def add(self, text: str, now: float) -> None:
        """Take a text that came `now`, in seconds."""
        self._text += text
        if now - self._since >= KEEP_EVERY:
            self._since = now
            self.write()

    def write(self) -> None:
        """Hand on what there is."""
        text, self._text = self._text, ""
        if text and self._keep is not None:
            self._keep(text)


class Record:
    """The chat that is going on. It is put into the store with its first question, not before.

    `trouble` says why it is not saved any more. `model` is the path of the model's file, `parameters` plain data,
    `routing` the rules of routing as they are typed, {} where they are the model's.
    """

    def __init__(self, store: Store | None, model: str, system: str, parameters: Mapping[str, Any]) -> None:
        self.store, self.model = store, model
        self.parameters: dict[str, Any] = dict(parameters)
        self.routing: dict[str, str] = {}
        self.conversation = Conversation(system)
        self.key: int | None = None
        self.title = ""
        self.trouble: str | None = None
        self._late: list[Turn] = []  # replies whose end was not kept
        self._gone: list[int] = []  # turns that were taken out, and are still in the file

    @classmethod
    def resumed(cls, store: Store | None, saved: Saved) -> Record:
        """Go on with a chat that was kept; without a store its next turns are not."""
        record = cls(store, saved.entry.model, saved.conversation.system, saved.parameters)
        record.routing = {name: text for name, text in saved.routing.items() if isinstance(text, str)}
        record.conversation, record.key, record.title = saved.conversation, saved.entry.key, saved.entry.title
        return record

    @property
    def turns(self) -> list[Turn]:
        return self.conversation.turns

    def ask(self, text: str) -> Turn:
        """Add a question at the end."""
        return self._keep(self.conversation.ask(text))

    def edit(self, turn: Turn, text: str) -> Turn:
        """Another version of a turn beside it, where the line ends."""
        return self._keep(self.conversation.edit(turn, text))

    def begin_reply(self) -> Turn:
        """Add an empty reply at the end."""
        return self._keep(self.conversation.begin_reply())

    def reply_again(self, turn: Turn) -> Turn:
        """Add an empty reply beside a reply."""
        return self._keep(self.conversation.reply_again(turn))

    def piece(self, turn: Turn) -> Callable[[str], None]:
        """What keeps a piece of a reply's text as soon as it exists; for the engine's thread."""

        def keep(text: str) -> None:
            if turn.key:
                self._store(lambda store: store.append(turn.key, text))

        return keep

    def end_reply(self, turn: Turn, stop_reason: str) -> None:
        """The reply's text is whole, as `turn.text` has it."""
        turn.stop_reason = stop_reason
        self._finish(turn)

    def _finish(self, turn: Turn) -> None:
        if turn.key:
            self._store(lambda store: store.finish(turn.key, turn.text, turn.stop_reason))
            if self.trouble is not None:
                self._late.append(turn)

    def remove_last(self) -> Turn:
        """Take the last turn out."""
        turn = self.conversation.remove_last()
        if turn.key:
            self._late = [late for late in self._late if late is not turn]
            self._remove(turn.key)
            self._look()
        return turn

    def _remove(self, key: int) -> None:
        self._store(lambda store: store.remove(key))
        if self.trouble is not None:
            self._gone.append(key)

    def step(self, turn: Turn, by: int) -> Turn:
        """Go to another version of a turn."""
        other = self.conversation.step(turn, by)
        self._look()
        return other

    def configure(self, *, model: str | None = None, system: str | None = None, **parameters: Any) -> None:
        """Change with what the chat goes on; a parameter None is as by default."""
        self.model = self.model if model is None else model
        self.conversation.system = self.conversation.system if system is None else system
        self.parameters.update(parameters)
        self.parameters = {name: value for name, value in self.parameters.items() if value is not None}
        self._keep_settings()

    def route(self, routing: Mapping[str, str]) -> None:
        """Change how tokens are routed."""
        self.routing = dict(routing)
        self._keep_settings()

    def rename(self, title: str) -> None:
        """Give it a name."""
        self.title = title
        if (key := self.key) is not None:
            self._store(lambda store: store.rename(key, title))

    def keep_in(self, store: Store) -> None:
        """Keep it here from now on, with all that was said, where it was not kept."""
        if self.store is None:
            self.store, self.trouble = store, self.trouble or "there was no file"
        self._catch_up()

    def _catch_up(self) -> None:
        """Where keeping failed before, keep what was not: the file may be in order again."""
        if self.store is None or self.trouble is None:
            return
        self.trouble = None
        gone, self._gone = self._gone, []
        for key in gone:
            self._remove(key)
        for turn in self.conversation.all_turns():
            if not turn.key and self.trouble is None:
                self._add(turn)
        late, self._late = self._late, []
        for turn in late:
            self._finish(turn)
        self._keep_settings()
        self._look()

    def _keep_settings(self) -> None:
        if (key := self.key) is not None:
            settings = (self.model, self.conversation.system, self.parameters, self.routing)
            self._store(lambda store: store.configure(key, *settings))

    def _keep(self, turn: Turn) -> Turn:
        if turn.role == "user":
            self._catch_up()
        if not turn.key:
            self._add(turn)
        return turn

    def _add(self, turn: Turn) -> None:
        if self.key is None:
            self.title = self.title or title_of(turn.text)
            settings = (self.model, self.conversation.system, self.parameters, self.routing)
            self.key = self._store(lambda store: store.create(self.title, *settings))
        if (key := self.key) is not None:
            above = self.conversation.parent_key(turn)
            turn.key = self._store(lambda store: store.add(key, above, turn)) or 0

    def _look(self) -> None:
        if (key := self.key) is not None:
            turns = self.conversation.turns
            self._store(lambda store: store.look_at(key, turns[-1].key if turns else None))

    def _store(self, change: Callable[[Store], T]) -> T | None:
        if self.store is None or self.trouble is not None:
            return None
        try:
            return change(self.store)
        except LocalMoeError as error:
            self.trouble = str(error)
            return None


def title_of(text: str) -> str:
    """The first line that says something, cut at a word."""
    line = next((" ".join(line.split()) for line in text.splitlines() if line.strip()), "Chat")
    return line if len(line) <= TITLE else line[:TITLE].rsplit(" ", 1)[0].rstrip() + "…"
