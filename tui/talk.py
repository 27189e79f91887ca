"""What is going on in a chat, without a widget: the record, the turn being edited, and what the engine is asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from localmoe.sessions.record import Record
from localmoe.sessions.tree import Turn

from .context import Messages, fitting_in, n_tokens
from .engine_worker import Request
from .options import AppOptions
from .parameters import BY_NAME, sampling

if TYPE_CHECKING:
    from localmoe.engine.api import Model

Used = int | Sequence[int] | None


class Talk:
    """The chat on the screen. `warming`: it is being read without a reply, so that the next one begins at once.

    `queued` is a question sent meanwhile, `skipped` the number of turns that the model no longer reads.
    """

    def __init__(self, record: Record, options: AppOptions) -> None:
        self.record, self._options = record, options
        self.warming = False
        self.editing: Turn | None = None
        self.queued = ""
        self.skipped = 0
        self._again = 0
        self._told: str | None = None

    @property
    def overflow(self) -> str:
        """What happens when the context is full."""
        return str(self.record.parameters.get("overflow", BY_NAME["overflow"].default))

    def request(self, n_used: Used, routing: Mapping[str, Any], keep: Callable[[str], None] | None = None) -> Request:
        """What the engine is asked for: a reply to the line as it stands, or to read it, while warming."""
        chosen: dict[str, Any] = {**self._options.sampling, **sampling(self.record.parameters)}
        if chosen.get("seed") is not None:
            chosen["seed"] += self._again
        if self.warming:
            chosen["max_tokens"] = 0
        messages = self.record.conversation.messages()
        return Request(messages, n_used, chosen, routing, keep, self.overflow == "forget", self.skipped)

    def size(self, model: Model) -> int:
        """The tokens of the chat as it stands, without the turns that are left out."""
        messages: Messages = self.record.conversation.messages()
        if self.overflow == "forget":
            messages, _ = fitting_in(model, messages, self.skipped)
        return n_tokens(model, messages)

    def say(self, text: str) -> Turn | None:
        """Ask a question, or put a version of the turn being edited beside it; the reply to be made, if one is."""
        edited, self.editing = self.editing, None
        if edited is None:
            self.record.ask(text)
        else:
            self.record.edit(edited, text)
            self.skipped = 0
            if edited.role == "assistant":
                return None
        return self.record.begin_reply()

    def again(self, turn: Turn) -> Turn:
        """An empty reply beside one, or to a question, with another seed."""
        self._again += 1
        conversation = self.record.conversation
        conversation.go(turn)
        if turn.role == "user" and not turn.children:
            return self.record.begin_reply()
        return self.record.reply_again(turn if turn.role == "assistant" else turn.children[-1])

    def step(self, turn: Turn, by: int) -> Turn:
        """Go to another version of a turn."""
        self.skipped = 0
        return self.record.step(turn, by)

    def take_back(self) -> str:
        """Take an empty reply out, and the question before it unless it has other replies; the question's text."""
        self.record.remove_last()
        turns = self.record.turns
        return self.record.remove_last().text if turns and turns[-1].role == "user" else ""

    def restart(self) -> None:
        """Begin a new chat with the same settings; the old one is kept."""
        old = self.record
        self.record = Record(old.store, old.model, old.conversation.system, old.parameters)
        self.record.routing = dict(old.routing)
        self.editing, self.skipped, self._told = None, 0, None

    def trouble(self) -> str | None:
        """Why the chat is no longer kept, or that it is again: once."""
        told, self._told = self._told, self.record.trouble
        if (told is None) == (self._told is None):
            return None
        if self._told is None:
            return "This chat is saved again, all of it."
        return f"This chat is no longer saved: {self._told}. It goes on, and the next message tries to save it again."
