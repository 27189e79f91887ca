"""Every layer's figures on a screen of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.screen import Screen
from textual.widgets import Static

from localmoe.experts.statistics import DECODE, PREFILL, ExpertStatistics

from ..expert_facts import ExpertFacts
from ..widgets.key_line import KeyLine
from ..widgets.layer_figures import LayerFigures
from ..widgets.turns import MUTED

PHASES = {"prompts and replies": None, "prompts": PREFILL, "replies": DECODE}
FOLLOW = 1.0


class FiguresScreen(Screen[None]):
    """Left and right change the phase that is counted; F1 says what every word means."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("left", "phase(-1)", "Prompts or replies", id="figures.left", key_display="← →", priority=True),
        Binding("right", "phase(1)", "Next phase", id="figures.right", show=False, priority=True),
        Binding("escape,f10", "app.pop_screen", "Back", id="figures.close", priority=True),
    ]

    def __init__(self, facts: ExpertFacts, stats: ExpertStatistics, memory: Mapping[str, int]) -> None:
        super().__init__()
        self._facts, self._stats, self._memory = facts, stats, memory
        self.phase = next(iter(PHASES))

    def compose(self) -> ComposeResult:
        yield Static(id="figures-title")
        with VerticalScroll():
            yield LayerFigures(pairs=True)
        yield KeyLine()

    def on_mount(self) -> None:
        self.query_one(LayerFigures).open(self._facts, self._stats, self._memory)
        self.query_one(VerticalScroll).focus()
        self._show()
        self.set_interval(FOLLOW, self._show)

    def _show(self) -> None:
        n = int(self._stats.layers(PHASES[self.phase]).tokens.max(initial=0))
        title = Content.assemble((f" {self.phase}", "bold"), (f", {n} tokens; F1 explains the words", MUTED))
        self.query_one("#figures-title", Static).update(title)
        figures = self.query_one(LayerFigures)
        figures.phase = PHASES[self.phase]
        figures.follow()

    def action_phase(self, by: int) -> None:
        """Count another phase."""
        names = list(PHASES)
        self.phase = names[(names.index(self.phase) + by) % len(names)]
        self._show()
