"""The keys, and the words that the expert view uses."""

from __future__ import annotations

from itertools import zip_longest
from textwrap import wrap
from typing import ClassVar

from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Static

from ..widgets.turns import MUTED

KEYS = {
    "Enter": "send",
    "Ctrl+J": "new line (or Shift+Enter)",
    "Up, Down": "what you sent before",
    "Esc": "stop the reply, what was said stays; back to the input",
    "Tab": "between input, transcript and heatmap (there the arrows name cells, Enter lists a cell's tokens)",
    "In the chat": (
        "Up, Down choose a turn; E edits it on a branch of its own, A answers it again, Left and Right go to its other "
        "versions, C copies it, B a code block of it"
    ),
    "Ctrl+N": "new chat; the old one is kept",
    "Ctrl+R": "make the last reply again, beside the old one",
    "Ctrl+S": "chats that were kept: search, go on, rename, export, delete",
    "Ctrl+O": "open another model",
    "Ctrl+P": "all commands",
    "F2": "what the heatmap shows",
    "F3": "show or hide the experts",
    "F4, F5": "fewer, more experts a token (outside the input: [ and ])",
    "F6": "how the tokens from now on differ from those before, or this chat from a saved run; saves this chat's run",
    "F7": "the chat token by token, in the colours of their experts; a token's path and what else could have been said",
    "F8": "how tokens are routed: top-k, experts left out or forced, a threshold; compare two settings",
    "Ctrl+T": "route as the app was started",
    "F9": "parameters and system prompt of this chat",
    "F10": "every layer's figures, the working set and the memory map",
    "Ctrl+Q, Ctrl+C": "quit (Ctrl+C copies where text is selected)",
}
WORDS = {
    "token": "a word or a piece of one: what a model reads and writes",
    "layer": "one of the steps that every token goes through in turn; each has a router and experts of its own",
    "expert": "one of the small networks (feed-forward) that a layer chooses from; a token runs through a few of them",
    "router": "the small matrix that picks a token's experts and says how much each counts",
    "top-k": "how many experts a token uses in each layer",
    "share": "one expert's part of its layer's choices",
    "weight": "of a cell: the same with choices counted by their gate weight",
    "even": "the share every expert would have if all were chosen equally often",
    "entropy": "1: a layer uses its experts evenly, 0: always the same",
    "busiest, max/mean": "load of a layer's busiest expert over its mean load (F10: after that expert's number)",
    "dead": "experts that no token has chosen so far",
    "CV": "how unequal the experts' summed gate weights are: spread over mean, 0 is equal",
    "reuse": "how often the next token uses a token's expert again",
    "margin": "how much likelier the last chosen expert was than the first left out: small is a close call",
    "ov1.0, ov1.25": "overflow: choices past an expert's capacity, were that 1.0 or 1.25 times its even share",
    "skip, skipped": "choices asked for that no expert ran for: below the threshold",
    "pair": "two experts of a layer that many tokens chose together, and how much more often than by chance",
    "working set": "bytes of the different experts that the last tokens went through: the memory a chat needs",
    "last 64 tokens used": "the working set of that many tokens",
    "memory map": "what the experts, all other weights and the KV cache take",
    "KV cache": "what attention keeps of every token in the context",
    "gate weight": "how much an expert's answer counts for a token",
    "path": "the experts that one token went to, layer by layer",
    "candidates": "the likeliest tokens where one was chosen, with the model's own probabilities, before sampling",
    "moving average": "shares over the last tokens, older ones counting less and less",
    "prompts, replies": "tokens that were read, and tokens that were written",
    "difference": "share over the share before (F6), or in a saved run; even is no change",
    "threshold": "gate weight below which a choice is skipped (F8)",
    "KL": "how far the answers' probabilities are from those before the change, in nats; 0 is the same",
    "perplexity": "how surprised the model is by a text: lower is better",
}
NOTE = (
    "An expert's number means nothing across layers: expert 3 of layer 0 and expert 3 of layer 1 share nothing. "
    "A label is what the model's file calls an expert: in a frankenMoE a name from its recipe, or a prompt its "
    "row of the router was made from. It does not say what the expert is good at."
)


NAME, GAP = 18, 2
"""Columns of a name where there is room, and those after it."""


class HelpText(Static):
    """Names on the left and what they mean beside them; one widget, since each of its own takes a while to appear."""

    def __init__(self, *, words_first: bool) -> None:
        super().__init__(markup=False)
        self._words_first = words_first

    def on_resize(self, event: events.Resize) -> None:
        self.update(help_text(event.size.width, words_first=self._words_first))


def help_text(width: int, *, words_first: bool = False) -> Content:
    """All of the help in lines of a width."""
    name_width = min(NAME, width // 3)
    room = max(1, width - name_width - GAP)
    lines = []
    parts = [("Keys of the chat", KEYS), ("Words", WORDS)]
    for title, table in reversed(parts) if words_first else parts:
        lines.append(Content.styled(title, "bold"))
        for name, meaning in table.items():
            names, meanings = wrap(name, name_width), wrap(meaning, room)
            for left, right in zip_longest(names, meanings, fillvalue=""):
                lines.append(Content.assemble((left.ljust(name_width + GAP), "$text-accent"), right))
        lines.append(Content(""))
    lines += [Content.styled(line, MUTED) for line in wrap(NOTE, max(1, width))]
    return Content("\n").join(lines)


class HelpScreen(ModalScreen[None]):
    """Keys and words, one line each; words first over a view that names its own keys below."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,f1,q,enter", "app.pop_screen", "Close", id="help.close")]

    def __init__(self, *, words_first: bool = False) -> None:
        super().__init__()
        self._words_first = words_first

    def compose(self) -> ComposeResult:
        with VerticalScroll(id="help-panel") as panel:
            panel.border_title = "Help"
            panel.border_subtitle = "Esc closes"
            yield HelpText(words_first=self._words_first)
