"""When a context gets full: what to say before anything is cut, and which turns are left out if that is wanted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from localmoe.engine.api import Model

Messages = Sequence[Mapping[str, str]]
NEARLY = 0.8
"""The part of the context from which on it is said."""
LEAST = 16
"""Tokens below which a context is full: a question, its place in the template and a word of a reply need as many."""
_STOP = "When none are, the reply ends there; nothing before it is cut. Ctrl+N: new chat. F9: forget the oldest turns."
_FORGET = "When a message no longer fits, the oldest turns are left out of what the model reads; they stay here."
_REFUSED = "Another message will be refused; nothing is cut. Ctrl+N: new chat. F9: forget the oldest turns instead."
_FORGOTTEN = "For another message the oldest turns are left out of what the model reads; they stay here."


def warning(used: int, size: int, overflow: str, draft: int = 0, *, guessed: bool = False) -> str:
    """A line about a context of `size` tokens with `used` of them taken; "" while there is room.

    `draft`: tokens of what is being typed, `guessed` where it is too long to be counted at every key.
    """
    left = max(0, size - used)
    if draft and size and draft >= left:
        does = _FORGET if overflow == "forget" else "It will be refused, nothing is cut: Ctrl+N starts a new chat."
        takes = f"{'some ' if guessed else ''}{draft} token{'s' * (draft != 1)}"
        if draft >= size:  # in a new chat too, whatever is forgotten
            return f"This message takes {takes}, the whole context has {size}. It will be refused: F9 sets the context."
        return f"This message takes {takes}, {left} {'is' if left == 1 else 'are'} left. {does}"
    if used <= NEARLY * size:
        return ""
    if left < LEAST:
        return f"The context is full: {used} of {size} tokens. {_FORGOTTEN if overflow == 'forget' else _REFUSED}"
    about = left - left % (100 if left > 200 else 10)  # said again every so many tokens, not at every one
    does = _FORGET if overflow == "forget" else _STOP
    return f"The context is nearly full: about {about} of {size} tokens are left. {does}"


def fitting_in(model: Model, messages: Messages, skip: int) -> tuple[Messages, int]:
    """`fitting` as a model reads the messages, in its context."""
    return fitting(messages, skip, lambda read: n_tokens(model, read), model.n_ctx, model.chat_template is None)


def n_tokens(model: Model, messages: Messages) -> int:
    """The tokens that a model reads: by its chat template, or of the text alone where it has none."""
    if model.chat_template is None:
        return len(model.tokenize(plain_text(messages)))
    return len(model.chat_template.encode(model.tokenizer, messages)) if messages else 0


def plain_text(messages: Messages) -> str:
    """What a model without a chat template goes on with: a word that the user adds does not grow onto the last one."""
    text = ""
    for message in messages:
        piece = message["content"]
        apart = message["role"] == "user" and piece[:1].isalnum() and not text[-1:].isspace()
        text += f" {piece}" if text and apart else piece
    return text


def fitting(
    messages: Messages, skip: int, count: Callable[[Messages], int], size: int, alone: bool = False
) -> tuple[Messages, int]:
    """The messages without their oldest exchanges, as few as needed, and how many turns are left out.

    `alone`: a reply can stay without its question, as where it goes on with a text.

    `skip` turns were left out before. What is read must take at most three quarters of `size` tokens; where more must
    go, then so many that it takes half, since every change means reading all again. System prompt and last question
    always stay.
    """
    system = [m for m in messages[:1] if m["role"] == "system"]
    turns = list(messages[len(system) :])

    def kept(n: int) -> Messages:
        return [*system, *turns[n:]]

    starts = [n for n, m in enumerate(turns) if alone or m["role"] == "user"] or [0]
    skip = max((n for n in starts if n <= skip), default=0)
    if count(kept(skip)) <= size * 3 // 4:
        return kept(skip), skip
    for n in [n for n in starts if n > skip]:
        skip = n
        if count(kept(n)) <= size // 2:
            break
    return kept(skip), skip
