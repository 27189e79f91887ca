"""The tokens of the chat that went to one expert of one layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.screen import Screen
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option

from ..widgets.choices import Choices
from ..widgets.key_line import KeyLine
from ..widgets.token_text import PART
from ..widgets.turns import MUTED, shown_line
from .tokens import Routed, TokensScreen, lost_words

if TYPE_CHECKING:
    from localmoe.engine.api import Model

AROUND = 6
"""Tokens shown on both sides."""


class CellScreen(Screen[None]):
    """A token a line, the newest last: its number, gate weight, slot, and where it stands; Enter opens its path."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "choose", "Its path", id="cell.choose", priority=True),
        Binding("escape", "app.pop_screen", "Back", id="cell.close", priority=True),
    ]

    def __init__(self, model: Model, source: Routed, layer: int, expert: int, labels: Sequence[str] = ()) -> None:
        super().__init__()
        self._model, self._source, self._layer, self._expert = model, source, layer, expert
        self._label = labels[expert] if labels else ""
        experts = source.routed.experts[:, layer]
        order = np.argsort(-source.routed.weights[:, layer], axis=1, kind="stable")
        placed = np.take_along_axis(experts, order, 1) == expert
        self.tokens = np.flatnonzero(placed.any(axis=1))
        self.slots = placed[self.tokens].argmax(axis=1) if self.tokens.size else np.zeros(0, np.int64)

    def compose(self) -> ComposeResult:
        n, total = len(self.tokens), len(self._source.pieces)
        title = f" layer {self._layer}, expert {self._expert}: {n} of {total} tokens ({n / total:.0%})"
        title += lost_words(self._source.lost)
        label = f"   label: {shown_line(self._label)}" if self._label else ""
        yield Static(Content.assemble((title, "bold"), (label, MUTED)), id="cell-title")
        yield Static(Content.styled("  token         weight  slot", MUTED))
        if n:
            yield Choices(*(Option(self._line(at)) for at in range(n)), id="cell-list", markup=False)
        else:
            yield Static("  No token of this chat went there.", id="cell-none", markup=False)
        yield KeyLine()

    def on_mount(self) -> None:
        for options in self.query(OptionList):
            options.highlighted = len(self.tokens) - 1
            options.focus()

    def _line(self, at: int) -> Content:
        """One token with its neighbours."""
        routed, token = self._source.routed, int(self.tokens[at])
        where = routed.experts[token, self._layer] == self._expert
        weight = float(routed.weights[token, self._layer][where][0])
        phase = "reply" if routed.phase[token] else "prompt"
        first = max(0, token - AROUND)
        near = [piece.replace("\n", "⏎") or PART for piece in self._source.pieces[first : token + 1 + AROUND]]
        before, after = "".join(near[: token - first]), "".join(near[token - first + 1 :])
        head = f"{token + 1:>6} {phase:<7} {weight:>6.2f}  {int(self.slots[at]) + 1:>3}   "
        return Content.assemble(head, (before, MUTED), (near[token - first], "bold reverse"), (after, MUTED))

    @on(OptionList.OptionSelected)
    def _chosen(self, event: OptionList.OptionSelected) -> None:
        self._path_of(event.option_index)

    def action_choose(self) -> None:
        for options in self.query(OptionList):
            if options.highlighted is not None:
                self._path_of(options.highlighted)

    def _path_of(self, at: int) -> None:
        self.app.push_screen(TokensScreen(self._model, self._source, int(self.tokens[at]), self._layer))
