"""A row of figures a layer, and what of the model's memory the conversation needs."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from textual.content import Content
from textual.widgets import Static

from localmoe.experts.coactivation import Pair
from localmoe.experts.statistics import ExpertStatistics, LayerStatistics

from ..expert_facts import ExpertFacts
from .status import meter
from .turns import MUTED

WINDOWS = (16, 64, 256)
"""Tokens whose working set is told."""
WINDOW = 64
"""The same where there is room for one."""
COLUMNS = {
    "layer": 5, "entropy": 7, "busiest": 9, "dead": 4, "CV": 5, "reuse": 5, "margin": 6, "over": 5, "skipped": 7,
}  # fmt: skip
"""Heads of the columns and their widths; all are words of F1."""
PAIRS = ("most frequent pair", "pair")
"""The head of the last column, and where there is little room."""
ROOMY = 90
BAR = 20


def size_text(n_bytes: int) -> str:
    """Bytes for a person, in powers of 1024."""
    size = n_bytes / 2**20
    return f"{size:.1f} MiB" if size < 1024 else f"{size / 1024:.2f} GiB"


def span_lines(figures: LayerStatistics, width: int, used: int | None) -> Content:
    """All layers in two lines: from the least entropy to the most, the busiest expert's load, dead ones, reuse.

    `used` is the working set in bytes of the last WINDOW tokens.
    """
    if not figures.tokens.any():
        return Content.styled("no token yet", MUTED)
    low, high = float(figures.entropy.min()), float(figures.entropy.max())
    parts: list[str | tuple[str, str]] = [("entropy ", MUTED), f"{low:.2f}–{high:.2f}"]
    if width >= 40:
        parts += [("  busiest ", MUTED), f"{figures.max_over_mean.max():.1f}×"]
    parts += [("  dead ", MUTED), f"{int(figures.dead.sum())}"]
    among = (f" of {figures.dead.size}", MUTED)
    if Content.assemble(*parts, among).cell_length <= width:
        parts.append(among)
    known = figures.layer_reuse[~np.isnan(figures.layer_reuse)]
    parts += [("\nreuse ", MUTED), _text(known.mean() if known.size else np.nan, ".0%")]
    if used is not None:
        name = f"last {WINDOW} tokens used" if width >= 40 else f"last {WINDOW} used"
        parts += [(f"  {name} ", MUTED), size_text(used)]
    return Content.assemble(*parts)


def figure_rows(figures: LayerStatistics) -> list[str]:
    """A row a layer in the order of COLUMNS; a dash where nothing is known."""
    rows = []
    for i in range(len(figures.tokens)):
        busiest = "–"
        if figures.tokens[i]:
            busiest = f"{int(figures.share[i].argmax())} {figures.max_over_mean[i]:.1f}×"
        cells = (
            str(i), _text(figures.entropy[i], ".2f"), busiest, str(int(figures.dead[i].sum())),
            _text(figures.importance_cv[i], ".2f"), _text(figures.layer_reuse[i], ".0%"),
            _text(figures.margin[i], ".3f"), _text(figures.overflow[1, i], ".0%"), _text(figures.skipped[i], ".0%"),
        )  # fmt: skip
        rows.append(" ".join(cell.rjust(width) for cell, width in zip(cells, COLUMNS.values(), strict=True)))
    return rows


def _text(value: float, form: str) -> str:
    return "–" if np.isnan(value) else format(float(value), form)


def pair_text(pairs: list[Pair], n_token: int, roomy: bool) -> str:
    """The layer's most frequent pair, and where there is room how much more frequent than by chance."""
    if not pairs or not n_token:
        return "–"
    best = pairs[0]
    lift = "" if np.isnan(best.lift) or not roomy else f", {best.lift:.1f}× chance"
    return f"{best.first}+{best.second}: {best.count / n_token:.0%}{lift}"


def memory_lines(facts: ExpertFacts, stats: ExpertStatistics, memory: Mapping[str, int]) -> list[Content]:
    """The memory map: what the model takes, and how much of the experts the last tokens went through."""
    whole = max(1, sum(memory.values()))
    wide = max(len(name) for name in (*memory, f"last {WINDOWS[-1]} tokens"))
    lines = [Content.assemble(("MEMORY MAP ", "bold $text-accent"), (size_text(whole), MUTED))]

    def line(name: str, n_bytes: int, of: int, tint: str) -> Content:
        done, left = meter(n_bytes / max(1, of), BAR)
        parts = f" {size_text(n_bytes)} ({n_bytes / max(1, of):.0%})"
        return Content.assemble((name.ljust(wide + 1), MUTED), (done, tint), (left, "$text-disabled"), parts)

    lines += [line(name, n_bytes, whole, "$text-accent") for name, n_bytes in memory.items()]
    lines += [Content(""), Content.assemble(("WORKING SET ", "bold $text-accent"), ("of the experts, by", MUTED))]
    size = np.zeros(facts.n_layer, np.int64) if facts.expert_bytes is None else facts.expert_bytes
    for n in WINDOWS:
        used = int((stats.working_set(n) * size).sum())
        lines.append(line(f"last {n} tokens", used, memory["experts"], "$text-warning"))
    return lines


class LayerFigures(Static):
    """The figures of everything counted so far."""

    DEFAULT_CSS = "LayerFigures { height: auto; width: 1fr; }"

    def __init__(self, *, pairs: bool = False, id: str | None = None) -> None:
        super().__init__(id=id)
        self._with_pairs = pairs
        self.phase: int | None = None
        self._facts: ExpertFacts | None = None
        self._stats = ExpertStatistics(0, 0, 0)
        self._memory: Mapping[str, int] = {}

    def open(self, facts: ExpertFacts, stats: ExpertStatistics, memory: Mapping[str, int]) -> None:
        """Follow the statistics of a model; `memory` is what it takes, in bytes."""
        self._facts, self._stats, self._memory = facts, stats, memory
        self.follow()

    def follow(self) -> None:
        """Show what is known now, of `phase` or both; nothing is done where nobody sees it."""
        facts, stats = self._facts, self._stats
        if facts is None or not facts.n_expert or not (self.is_on_screen or self._with_pairs):
            return
        figures = stats.layers(self.phase)
        head = " ".join(name.rjust(width) for name, width in COLUMNS.items())
        rows = figure_rows(figures)
        if self._with_pairs:
            roomy = self.size.width >= ROOMY
            head += f"  {PAIRS[not roomy]}"
            pairs = stats.pairs(self.phase, 1)
            rows = [f"{row}  {pair_text(pairs[i], int(figures.tokens[i]), roomy)}" for i, row in enumerate(rows)]
        lines = [Content.styled(head, MUTED), *map(Content, rows), Content(""), *memory_lines(facts, stats, self._memory)]
        self.update(Content("\n").join(lines))

    def on_resize(self) -> None:
        self.follow()
