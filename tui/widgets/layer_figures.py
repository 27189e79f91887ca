"""A row of figures a layer, and what of the model's memory the conversation needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from textual.content import Content
from textual.widgets import Static

from localmoe.experts.coactivation import Pair
from localmoe.experts.report import WIDTHS
from localmoe.experts.statistics import ExpertStatistics, LayerStatistics

from ..expert_facts import ExpertFacts
from .status import meter
from .turns import MUTED

WINDOWS = (16, 64, 256)
"""Tokens whose working set is told."""
WINDOW = 64
"""The same where there is room for one."""
COLUMNS = WIDTHS
"""Heads of the columns and their widths; all are words of F1."""
PAIRS = ("most frequent pair", "pair")
"""The head of the last column, and where there is little room."""
ROOMY = 90
BAR, AFTER_BAR = 20, 19
"""Columns of a bar where there is room, and of its figures: ` 1023.9 MiB (100%)`."""


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


def figure_rows(figures: LayerStatistics) -> list[list[str]]:
    """A row a layer in the order of COLUMNS; a dash where nothing is known."""
    rows = []
    for i in range(len(figures.tokens)):
        busiest = "–"
        if figures.tokens[i]:
            busiest = f"{int(figures.share[i].argmax())} {figures.max_over_mean[i]:.1f}×"
        rows.append([
            str(i), _text(figures.entropy[i], ".2f"), busiest, str(int(figures.dead[i].sum())),
            _text(figures.importance_cv[i], ".2f"), _text(figures.layer_reuse[i], ".0%"),
            _text(figures.margin[i], ".3f"), *(_text(over, ".0%") for over in figures.overflow[:, i]),
            _text(figures.skipped[i], ".0%"),
        ])  # fmt: skip
    return rows


def tables(columns: Mapping[str, Sequence[str]], width: int) -> list[list[Content]]:
    """As many columns beside one another as there is room for, the others in tables below; each has the first."""
    numbers, *rest = (_column(name, cells) for name, cells in columns.items())
    out = [numbers]
    for column in rest:
        if len(out[-1][0]) - 1 + len(column[0]) > width and out[-1] is not numbers:
            out.append(numbers)
        out[-1] = [row + cell for row, cell in zip(out[-1], column, strict=True)]
    return [[Content.styled(head[1:], MUTED), *(Content(row[1:]) for row in rows)] for head, *rows in out]


def _column(name: str, cells: Sequence[str]) -> list[str]:
    """A head and cells of one width: figures on the right, words on the left."""
    if name in COLUMNS:
        return [f" {text.rjust(COLUMNS[name])}" for text in (name, *cells)]
    wide = max(map(len, (name, *cells)))
    return [f"  {text.ljust(wide)}" for text in (name, *cells)]


def _text(value: float, form: str) -> str:
    return "–" if np.isnan(value) else format(float(value), form)


def pair_text(pairs: list[Pair], n_token: int, roomy: bool) -> str:
    """The layer's most frequent pair, and where there is room how much more frequent than by chance."""
    if not pairs or not n_token:
        return "–"
    best = pairs[0]
    lift = "" if np.isnan(best.lift) or not roomy else f", {best.lift:.1f}× chance"
    return f"{best.first}+{best.second}: {best.count / n_token:.0%}{lift}"


def memory_lines(facts: ExpertFacts, stats: ExpertStatistics, memory: Mapping[str, int], width: int) -> list[Content]:
    """The memory map: what the model takes, and how much of the experts the last tokens went through."""
    whole = max(1, sum(memory.values()))
    wide = max(len(name) for name in (*memory, f"last {WINDOWS[-1]} tokens"))
    bar = max(0, min(BAR, width - wide - AFTER_BAR))
    lines = [Content.assemble(("MEMORY MAP ", "bold $text-accent"), (size_text(whole), MUTED))]

    def line(name: str, n_bytes: int, of: int, tint: str) -> Content:
        done, left = meter(n_bytes / max(1, of), bar)
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
    """The figures of everything counted so far; where `brief`, of memory alone."""

    DEFAULT_CSS = "LayerFigures { height: auto; width: 1fr; }"

    def __init__(self, *, pairs: bool = False, id: str | None = None) -> None:
        super().__init__(id=id)
        self._with_pairs = pairs
        self.brief = False
        self.phase: int | None = None
        self._facts: ExpertFacts | None = None
        self._stats = ExpertStatistics(0, 0, 0)
        self._memory: Mapping[str, int] = {}

    def open(self, facts: ExpertFacts, stats: ExpertStatistics, memory: Mapping[str, int]) -> None:
        """Follow the statistics of a model; `memory` is what it takes, in bytes."""
        self._facts, self._stats, self._memory = facts, stats, memory
        self.follow()

    @property
    def lines(self) -> int:
        """What it takes where its columns have room beside one another, 0 where there are no experts."""
        facts = self._facts
        if facts is None or not facts.n_expert:
            return 0
        return (0 if self.brief else facts.n_layer + 2) + len(self._memory) + len(WINDOWS) + 3

    def follow(self) -> None:
        """Show what is known now, of `phase` or both; nothing is done where nobody sees it."""
        facts, stats = self._facts, self._stats
        if facts is None or not facts.n_expert or not (self.is_on_screen or self._with_pairs):
            return
        figures = stats.layers(self.phase)
        columns = {name: [row[at] for row in figure_rows(figures)] for at, name in enumerate(COLUMNS)}
        if self._with_pairs:
            roomy = self.size.width >= ROOMY
            pairs = stats.pairs(self.phase, 1)
            columns[PAIRS[not roomy]] = [
                pair_text(p, int(n), roomy) for p, n in zip(pairs, figures.tokens, strict=True)
            ]
        shown = [] if self.brief else tables(columns, self.size.width)
        lines = [line for table in shown for line in (*table, Content(""))]
        self.update(Content("\n").join([*lines, *memory_lines(facts, stats, self._memory, self.size.width)]))

    def on_resize(self) -> None:
        self.follow()
