"""What was said so far, as plain data."""

from __future__ import annotations

from dataclasses import dataclass, field

ENDINGS = {
    "cancelled": "stopped",
    "length": "the reply's token limit is reached",
    "context": "the context is full: Ctrl+N starts a new chat",
}
"""What to say under a reply that did not end by itself."""


@dataclass
class Turn:
    """One text by one role; `stop_reason` of a reply, None while it is being written."""

    role: str
    text: str
    stop_reason: str | None = None


@dataclass
class Conversation:
    """Turns in order, after an optional system prompt."""

    system: str = ""
    turns: list[Turn] = field(default_factory=list)

    def messages(self) -> list[dict[str, str]]:
        """The turns as `model.chat` takes them; replies that say nothing are left out."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return system + [{"role": t.role, "content": t.text} for t in self.turns if t.text]

    def ask(self, text: str) -> None:
        self.turns.append(Turn("user", text))

    def begin_reply(self) -> Turn:
        """Add and return an empty reply."""
        self.turns.append(Turn("assistant", ""))
        return self.turns[-1]

    def take_back(self) -> str:
        """Remove the last reply, which says nothing, and the question before it; the question's text."""
        self.drop_reply()
        return self.turns.pop().text if self.turns and self.turns[-1].role == "user" else ""

    def drop_reply(self) -> bool:
        """Take the last reply back so that it can be made again; False when there is none."""
        if not self.turns or self.turns[-1].role != "assistant":
            return False
        self.turns.pop()
        return True
