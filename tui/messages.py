"""What the engine's thread and the widgets tell the app."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from textual.message import Message

if TYPE_CHECKING:
    from localmoe.engine.api import Model
    from localmoe.engine.side_by_side import SideBySide
    from localmoe.sessions.tree import Turn


@dataclass
class LoadProgress(Message):
    """Loading says what it is doing; `part` is 0..1 or None where unknown."""

    text: str
    part: float | None


@dataclass
class ModelReady(Message):
    """The model is open."""

    model: Model


@dataclass
class LoadFailed(Message):
    """The model could not be opened: one line, and the process's exit code."""

    reason: str
    exit_code: int


@dataclass
class ReplyDone(Message):
    """A reply ended: "eos", "length", "stop", "cancelled" or "context"."""

    stop_reason: str


@dataclass
class ReplyFailed(Message):
    """The engine refused or lost a request; what was said until then is kept."""

    reason: str


@dataclass
class EngineDied(Message):
    """A bug ended the engine's thread."""

    error: BaseException


@dataclass
class Submitted(Message):
    """The user sent a text."""

    text: str


@dataclass
class ComparePart(Message):
    """How far a comparison is: what it does, and the part done, 0..1."""

    text: str
    part: float


@dataclass
class Compared(Message):
    """A comparison ended: with a result, or with the reason why there is none."""

    result: SideBySide | None
    reason: str = ""


@dataclass
class CellOpened(Message):
    """Someone wants to see the tokens that went to an expert of a layer."""

    layer: int
    expert: int


@dataclass
class TurnAsked(Message):
    """The user wants something done with a turn: "edit", "again" or "branch" (`by` versions on)."""

    what: str
    turn: Turn
    by: int = 0
