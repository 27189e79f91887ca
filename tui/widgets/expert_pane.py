"""Everything about the experts, beside the chat and knowing nothing of it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from rich.text import Text
from textual import events, on
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.widgets import Static

from localmoe.experts.statistics import DECODE, PREFILL, ExpertStatistics, LayerStatistics

from ..expert_facts import ExpertFacts
from ..messages import CellOpened
from .cell_line import CellFigures, cell_lines
from .cells import MAX_CELL, fit
from .heatmap import Heatmap
from .layer_figures import WINDOW, size_text, span_lines
from .palette import scale_span
from .path import TokenPath, path_rows, path_width
from .turns import MUTED, shown, shown_line
from .words import Words

MODES = {
    "moving": "last tokens, moving average",
    "start": "since the start",
    "last": "last token, by gate weight",
    "prefill": "prompts",
    "decode": "replies",
    "sorted": "busiest first, since the start",
    "difference": "against a saved run",
}
"""What the heatmap can show; the order of the key that goes through them."""

TALL = 26
"""From this height on there is room for the legend, the figures and titles."""

NARROW = 32
"""Columns below which a mode's name is cut at its comma."""

BESIDE = 16
"""Layers from which the path stands beside the heatmap where it can; fewer have larger cells and the path below."""

DENSE = (
    "This model is dense: it has no experts.\n\n"
    "Every token runs through all of its weights, so there is nothing to choose and nothing to show here."
)


@dataclass(frozen=True)
class Against:
    """What a difference is from: shares (L, E) of a run and its name, or of the tokens until the statistics' mark."""

    share: NDArray[np.float64]
    name: str
    marked: bool = False

    @property
    def word(self) -> str:
        """What the shares are called beside those of now."""
        return "before" if self.marked else "saved"


def beside_width(facts: ExpertFacts, width: int) -> int:
    """Columns of a heatmap that leaves room for the path beside it, one line a layer; 0 where there is none."""
    room = width - path_width(facts.n_layer, facts.n_used, facts.n_expert) - 2
    gutter = len(str(max(facts.n_layer - 1, 0))) + 1
    cell = min(MAX_CELL, (room - gutter) // max(1, facts.n_expert))
    return gutter + cell * facts.n_expert if cell >= 2 and facts.n_layer >= BESIDE else 0


def share_lines(facts: ExpertFacts, width: int, free: int, around: int, *, shaded: bool) -> tuple[int, int]:
    """Lines for the heatmap (`around` of them for its header and legend) and for the path, out of `free`.

    Every layer of the heatmap comes first: lines for each, one, a half unless `shaded`, and only then layers pooled.
    """
    n_layer = facts.n_layer
    numbers, bars = path_rows(n_layer, facts.n_used, facts.n_expert, width)
    largest = fit(n_layer, facts.n_expert, width, MAX_CELL * n_layer, shaded=shaded)
    note, a_line = largest.pooled, 1 if shaded else 2
    wishes = [(height * n_layer + note, numbers) for height in range(largest.height, 0, -1)]
    wishes += [(n_layer + note, bars)]
    wishes += [(-(-n_layer // a_line) + note, 2)]
    wishes += [(-(-n_layer // (a_line * pooled)) + 1, 2) for pooled in range(2, n_layer)]
    for heat, path in wishes:
        if heat + around + path <= free:
            return heat + around, min(numbers, free - heat - around)
    return max(3, free - 2), 2


class ExpertPane(Vertical):
    """The heatmap, a line of figures, the newest token's path and the experts' labels, as many as there is room for."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.facts = ExpertFacts(0, 0, 0)
        self.mode = "moving"
        self.stats = ExpertStatistics(0, 0, 0)
        self._cell: tuple[int, int] | None = None
        self._against: Against | None = None
        self._order: NDArray[np.int64] | None = None

    def compose(self) -> ComposeResult:
        yield Static(id="experts-title", classes="pane-title")
        with Horizontal(id="map"):
            yield Heatmap(id="heatmap")
            yield TokenPath(headed=True, id="path-beside")
        yield Words(id="experts-figures", classes="figures")
        yield Words(id="path-title", classes="pane-title")
        yield TokenPath(id="path")
        yield Static(id="labels-title", classes="pane-title")
        yield Static(id="labels", classes="labels")
        yield Static(DENSE, id="dense", markup=False)

    def open(self, facts: ExpertFacts) -> None:
        """Start afresh with a model."""
        self.facts = facts
        self.stats = ExpertStatistics(facts.n_layer, facts.n_expert, facts.n_used)
        self._cell = None
        dense = facts.n_expert == 0
        self.set_class(dense, "-dense")
        self._title()
        self._give_room()
        if not dense:
            self.refresh_figures()

    def set_used(self, n_used: int) -> None:
        """A token goes through n_used experts from now on."""
        self.facts = replace(self.facts, n_used=n_used)
        self._give_room()
        self.refresh_figures()

    @property
    def modes(self) -> list[str]:
        """What the heatmap can show; a difference only where there is something to show it from."""
        return [mode for mode in MODES if mode != "difference" or self._against is not None]

    def next_mode(self) -> None:
        """Go on to the next thing that the heatmap can show."""
        modes = self.modes
        self.set_mode(modes[(modes.index(self.mode) + 1) % len(modes)])

    def compare_with(self, share: NDArray[np.float64], name: str = "") -> None:
        """Keep a run's shares (L, E) and its name for the difference."""
        self._against = Against(share, name)

    def compare_from_now(self) -> None:
        """Let the difference be of the tokens from now on, from those until now."""
        self._against = Against(self.stats.layers().share, "", marked=True)
        self.stats.mark()

    def set_mode(self, mode: str) -> None:
        """Show something else, one of `modes`."""
        self.mode = mode
        self._title()
        if self.facts.n_expert:
            self.refresh_figures()

    def show_path(self, text: str, experts: NDArray[np.int32], weights: NDArray[np.float32]) -> None:
        """Show which experts (L, K) one token went to."""
        if not self.facts.n_expert or not experts.shape[1]:
            return
        word = shown(text).replace("\n", "⏎")[:24]
        title = Content.assemble("PATH ", ("of token ", MUTED), f"“{word}”") if text else Content("PATH")
        self.query_one("#path-title", Words).say(title)
        for path in self.query(TokenPath):
            path.show(experts, weights, self.facts.n_expert, f"“{word}”" if text else "")

    def clear_path(self) -> None:
        """Show no token's path: none was routed yet."""
        self.query_one("#path-title", Words).say(Content())
        nothing = np.zeros((0, 0))
        for path in self.query(TokenPath):
            path.show(nothing.astype(np.int32), nothing.astype(np.float32), 0, "")

    def refresh_figures(self) -> None:
        """Draw what the statistics say now."""
        facts = self.facts
        if not facts.n_expert:
            return
        if self._cell is not None or self.mode == "difference":
            self._title()
        ratio, chosen = self._ratio(), self._chosen()
        if self._order is not None:
            ratio = np.take_along_axis(ratio, self._order, 1)
            chosen = None if chosen is None else np.take_along_axis(chosen, self._order, 1)
        self.query_one(Heatmap).show(
            ratio,
            chosen,
            scale_span(facts.n_expert, facts.n_used),
            versus=self._shown_against.word if self._shown_against else "",
            ranked=self._order is not None,
        )
        self._figures()

    def _ratio(self) -> NDArray[np.float64]:
        """Load over even load, or over the saved run's; in the sorted view `_order` (L, E) says who is where."""
        share = self._share()
        self._order = np.argsort(-share, axis=1, kind="stable") if self.mode == "sorted" else None
        against = self._shown_against
        if against is None:
            return share * self.facts.n_expert
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where((share == 0) & (against.share == 0), 1.0, share / against.share)

    @property
    def _shown_against(self) -> Against | None:
        return self._against if self.mode == "difference" else None

    def _layers(self) -> LayerStatistics:
        """The figures of the tokens that the heatmap shows; of all, where those are the last ones."""
        against = self._shown_against
        if against is not None and against.marked:
            return self.stats.since_mark()
        return self.stats.layers({"prefill": PREFILL, "decode": DECODE}.get(self.mode))

    def _share(self) -> NDArray[np.float64]:
        by_mode = {"moving": self.stats.moving_share, "last": self.stats.last_share}
        return by_mode[self.mode]() if self.mode in by_mode else self._layers().share

    def _weight_share(self) -> NDArray[np.float64] | None:
        """The same by gate weight; None where the shares are so themselves."""
        if self.mode == "last":
            return None
        return self.stats.moving_weight_share() if self.mode == "moving" else self._layers().weight_share

    def _chosen(self) -> NDArray[np.bool_] | None:
        experts, _ = self.stats.last_token()
        if not experts.shape[1]:
            return None
        chosen = np.zeros((self.facts.n_layer, self.facts.n_expert + 1), np.bool_)
        np.put_along_axis(chosen, np.clip(experts, -1, self.facts.n_expert), True, axis=1)
        return chosen[:, :-1]

    def _title(self) -> None:
        compact = self.content_size.height < TALL
        if compact and self._cell is not None:
            self.query_one("#experts-title", Static).update(self._cell_figures(*self._cell), layout=False)
            return
        name = self._mode_name()
        parts: list[str | Content | tuple[str, str]] = ["EXPERTS ", (name, MUTED)]
        if compact:
            scale = Text.assemble(*((part.text, part.style or "") for part in self.query_one(Heatmap).scale(4)))
            parts += [("  –", MUTED), Content.from_rich_text(scale), ("+", MUTED)]
        self.query_one("#experts-title", Static).update(Content.assemble(*parts), layout=False)

    def _mode_name(self) -> str:
        """What the heatmap shows, in the words there is room for."""
        room = self.content_size.width - len("EXPERTS ")
        if room < NARROW:
            return "difference" if self.mode == "difference" else MODES[self.mode].split(",")[0]
        against = self._shown_against
        if against is not None and against.marked:
            n = int(self._layers().tokens[0])
            return f"{n} token{'s' * (n != 1)} since then, against before"
        if against is None or not against.name:
            return MODES[self.mode]
        name, most = shown_line(against.name), room - len("against ")
        return f"against {name if len(name) <= most else '…' + name[1 - most :]}"

    def _figures(self) -> None:
        """What is known of the cell under the mouse or the cursor, or in short of all layers."""
        if self._cell is not None:
            text = self._cell_figures(*self._cell)
        else:
            size = self.facts.expert_bytes
            used = None if size is None else int((self.stats.working_set(WINDOW) * size).sum())
            text = span_lines(self._layers(), self.content_size.width, used)
        self.query_one("#experts-figures", Words).say(text)

    def on_resize(self, _: events.Resize) -> None:
        self._title()
        self._give_room()
        if self.facts.n_expert:
            self.refresh_figures()

    def least(self, width: int) -> int:
        """Lines that it takes with one for each layer, and with all that comes below the heatmap."""
        facts = self.facts
        beside = beside_width(facts, width) > 0
        path = 0 if beside else path_rows(facts.n_layer, facts.n_used, facts.n_expert, width)[0]
        return facts.n_layer + Heatmap.ABOVE + 1 + 3 + (0 if beside else 1 + path) + self._n_labels(TALL + 6)

    def _n_labels(self, height: int) -> int:
        """Lines for the experts' labels in a pane of a height."""
        return len(self.facts.labels[:8]) + 2 if self.facts.labels and height >= TALL + 6 else 0

    def _give_room(self) -> None:
        """Share the lines out: every layer of the heatmap first, then the path, then the labels."""
        facts, size = self.facts, self.content_size
        if not facts.n_expert or not size.height:
            return
        compact = size.height < TALL
        self.set_class(compact, "-compact")
        heatmap = self.query_one(Heatmap)
        heatmap.legend = not compact
        labels = self._n_labels(size.height)
        free = size.height - (1 if compact else 5) - labels
        around = Heatmap.ABOVE + heatmap.legend
        across = beside_width(facts, size.width) if facts.n_layer + around <= free + 2 else 0
        self.set_class(across > 0, "-beside")
        if across:
            heatmap.styles.width, heat, path = across, facts.n_layer + around, 1
        else:
            heatmap.styles.width = "1fr"
            heat, path = share_lines(facts, size.width, free, around, shaded=heatmap.look.shaded)
        self.query_one("#map").styles.height = heat
        self.query_one("#path").styles.height = path
        self.set_class(labels > 0, "-labelled")
        if labels:
            self._labels(size.width, labels - 2)

    def _labels(self, width: int, lines: int) -> None:
        self.query_one("#labels-title", Static).update(
            Content.assemble("LABELS ", ("of the experts, from the model's file", MUTED))
        )
        rows = []
        for expert, label in enumerate(self.facts.labels[:lines]):
            text = shown_line(label)
            room = width - 5
            text = text if len(text) <= room else text[: room - 1] + "…"
            rows.append(Content.assemble((f"{expert:>2}  ", MUTED), text))
        self.query_one("#labels", Static).update(Content("\n").join(rows))

    @on(Heatmap.Pointed)
    def _pointed(self, event: Heatmap.Pointed) -> None:
        event.stop()
        self._cell = None if event.layer is None or event.expert is None else (event.layer, event.expert)
        self._title()
        self._figures()

    @on(Heatmap.Opened)
    def _opened(self, event: Heatmap.Opened) -> None:
        event.stop()
        expert = event.expert if self._order is None else int(self._order[event.layer, event.expert])
        self.post_message(CellOpened(event.layer, expert))

    def _cell_figures(self, layer: int, expert: int) -> Content:
        """What is known of the cell under the mouse or the cursor."""
        facts, compact = self.facts, self.content_size.height < TALL
        if self._order is not None:
            expert = int(self._order[layer, expert])
        weights = self._weight_share()
        against = self._shown_against
        figures = CellFigures(
            layer,
            expert,
            facts.n_expert,
            share=float(self._share()[layer, expert]),
            weight_share=np.nan if weights is None else float(weights[layer, expert]),
            saved=np.nan if against is None else float(against.share[layer, expert]),
            versus=against.word if against else "",
            size="" if facts.expert_bytes is None else size_text(int(facts.expert_bytes[layer])),
            label=facts.labels[expert] if facts.labels else "",
        )
        return cell_lines(figures, self.content_size.width, 1 if compact else 2)
