"""A chat as a tree: every turn may have several successors, and one line through it is the chat as it is read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass(eq=False)
class Turn:
    """One text by one role; `stop_reason` of a reply, None while it is being written.

    `key` is the turn's number in the store, 0 where it is not kept. `chosen` is the successor that was looked at last.
    """

    role: str
    text: str
    stop_reason: str | None = None
    key: int = 0
    parent: Turn | None = field(default=None, repr=False)
    children: list[Turn] = field(default_factory=list, repr=False)
    chosen: Turn | None = field(default=None, repr=False)

    def above(self) -> Iterator[Turn]:
        """The turns before this one, the nearest first."""
        turn = self.parent
        while turn is not None:
            yield turn
            turn = turn.parent


class Conversation:
    """A system prompt and a tree of turns. `turns` is the line that is being read, from its first turn to a leaf."""

    def __init__(self, system: str = "") -> None:
        self.system = system
        self._top = Turn("", "")  # above every first turn

    @property
    def turns(self) -> list[Turn]:
        """The line being read."""
        line, turn = [], self._top.chosen
        while turn is not None:
            line.append(turn)
            turn = turn.chosen
        return line

    def all_turns(self) -> Iterator[Turn]:
        """Every turn of every branch, parents before children, in the order made among siblings."""
        waiting = list(reversed(self._top.children))
        while waiting:
            turn = waiting.pop()
            yield turn
            waiting.extend(reversed(turn.children))

    def messages(self) -> list[dict[str, str]]:
        """The line as `model.chat` takes it; replies that say nothing are left out."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return system + [{"role": t.role, "content": t.text} for t in self.turns if t.text]

    def parent_key(self, turn: Turn) -> int | None:
        """The number of the turn before, None for a first one."""
        return turn.parent.key if turn.parent is not None and turn.parent is not self._top else None

    def ask(self, text: str) -> Turn:
        """Add a question at the end of the line."""
        return self._add(self._last(), Turn("user", text))

    def begin_reply(self) -> Turn:
        """Add an empty reply at the end of the line."""
        return self._add(self._last(), Turn("assistant", ""))

    def restore(self, turn: Turn, parent: Turn | None) -> Turn:
        """Put a turn that was kept back into its place, and the line through it."""
        return self._add(parent or self._top, turn)

    def edit(self, turn: Turn, text: str) -> Turn:
        """Another version of a turn beside it; the line ends there. The old one and what follows it stay."""
        assert turn.parent is not None
        return self._add(turn.parent, Turn(turn.role, text, None if turn.role == "user" else "edited"))

    def reply_again(self, turn: Turn) -> Turn:
        """An empty reply beside a reply; the line ends there."""
        assert turn.parent is not None
        return self._add(turn.parent, Turn("assistant", ""))

    def siblings(self, turn: Turn) -> list[Turn]:
        """All versions of a turn, the oldest first."""
        assert turn.parent is not None
        return turn.parent.children

    def go(self, turn: Turn) -> None:
        """Lead the line through a turn; after it as it was read there last."""
        while turn.parent is not None:
            turn.parent.chosen = turn
            turn = turn.parent

    def step(self, turn: Turn, by: int) -> Turn:
        """Go to the version `by` places later (round the end) and return it."""
        versions = self.siblings(turn)
        other = versions[(versions.index(turn) + by) % len(versions)]
        self.go(other)
        return other

    def remove_last(self) -> Turn:
        """Take the line's last turn out; the line ends before it, or goes on with its newest other version."""
        turn = self._last()
        assert turn.parent is not None
        versions = turn.parent.children
        versions.remove(turn)
        turn.parent.chosen = versions[-1] if versions else None
        return turn

    def _last(self) -> Turn:
        turns = self.turns
        return turns[-1] if turns else self._top

    def _add(self, parent: Turn, turn: Turn) -> Turn:
        turn.parent = parent
        parent.children.append(turn)
        self.go(turn)
        return turn
