"""Two ways to route on one prompt, side by side: both answers, how far apart they are, where the load went."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.screen import Screen
from textual.widgets import ProgressBar, Static

from ..engine_worker import Comparison, EngineWorker
from ..messages import Compared, ComparePart
from ..widgets.heatmap import Heatmap
from ..widgets.key_line import KeyLine
from ..widgets.palette import scale_span
from ..widgets.turns import MUTED, shown, shown_line

if TYPE_CHECKING:
    from localmoe.engine.side_by_side import SideBySide


class CompareScreen(Screen[bool]):
    """A bar while it runs, which Esc ends; then the result. Returns whether to route as B from now on."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "stop", "Stop", id="compare.close", priority=True),
        Binding("escape", "dismiss(False)", "Back", id="compare.close", priority=True),
        Binding("u", "dismiss(True)", "Use B from now on", id="compare.use"),
    ]

    def __init__(self, worker: EngineWorker, job: Comparison, n_used: int) -> None:
        super().__init__()
        self._worker, self._job, self._n_used = worker, job, n_used
        self._listener = worker.post
        self.running, self._stopping = True, False
        self._shares: NDArray[np.float64] | None = None
        self._moved = ""

    def compose(self) -> ComposeResult:
        yield Static(Content(f" side by side: {shown_line(self._job.prompt)}"), id="compare-title")
        yield Static("starting", id="compare-said", markup=False)
        yield ProgressBar(total=1.0, show_eta=False, id="compare-bar")
        with Horizontal(id="compare-body"):
            with Vertical(id="compare-answers"):
                for name in "ab":
                    yield Static(id=f"compare-{name}-name", classes="pane-title")
                    with VerticalScroll(classes="compare-answer"):
                        yield Static(id=f"compare-{name}")
            with Vertical(id="compare-map"):
                yield Static("LOAD of B over A's, shares A→B", classes="pane-title")
                yield Heatmap(opens=False, id="compare-heatmap")
                yield Static(id="compare-moved")
        yield KeyLine()

    def on_mount(self) -> None:
        self._worker.post = self.post_message
        self._worker.compare(self._job)

    @on(ComparePart)
    def _part(self, event: ComparePart) -> None:
        if not self._stopping:
            self._say(event.text, event.part)

    @on(Compared)
    def _ended(self, event: Compared) -> None:
        self._worker.post = self._listener
        self.running = False
        self.query_one(ProgressBar).display = False
        if event.result is not None:
            self._show(event.result)
        elif self._stopping:
            self.dismiss(False)
        else:
            self.query_one("#compare-said", Static).update(Content.styled(shown_line(event.reason), "$text-error"))
        self.refresh_bindings()

    def _say(self, text: str, part: float) -> None:
        """Show how far it is."""
        self.query_one("#compare-said", Static).update(text)
        self.query_one(ProgressBar).update(progress=part)

    def _show(self, result: SideBySide) -> None:
        """Show both answers and what lies between them."""
        cost_a, cost_b = result.costs
        lines = [
            f"KL(A || B) {cost_b.mean_kl:.4f} ± {cost_b.kl_error:.4f} nats over {result.n_token} tokens (prompt and "
            f"A's answer); the same likeliest next token for {cost_b.same_top:.0%}",
            f"perplexity A {cost_a.perplexity:.2f}, B {cost_b.perplexity:.2f};  "
            f"choices skipped A {cost_a.skipped:.1%}, B {cost_b.skipped:.1%}",
        ]
        self.query_one("#compare-said", Static).update(Content("\n".join(lines)))
        for name, reply, setting, cut in zip("ab", result.replies, result.settings, result.cut, strict=True):
            title = Content.assemble(f"{name.upper()} ", (shown_line(setting), MUTED))
            self.query_one(f"#compare-{name}-name", Static).update(title)
            self.query_one(f"#compare-{name}", Static).update(
                Content.assemble(shown(reply), (" … (cut off: a comparison is short)" if cut else "", MUTED))
            )
        share_a, share_b = result.found.shares
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.where((share_a == 0) & (share_b == 0), 1.0, share_b / share_a)
        texts = [
            [f"{a:>3.0%}→{b:<4.0%}" for a, b in zip(*layer, strict=True)]
            for layer in zip(share_a.tolist(), share_b.tolist(), strict=True)
        ]
        span = scale_span(ratio.shape[1], self._n_used)
        self.query_one(Heatmap).show(ratio, None, span, versus="A's", texts=texts)
        self._shares = result.found.shares
        moved = result.found.moved
        most = int(moved.argmax())
        self._moved = f"moved: {moved.mean():.1%} of a layer's load on average, {moved[most]:.1%} in layer {most}"
        self.query_one("#compare-moved", Static).update(self._moved)
        self.query_one(Heatmap).focus()

    @on(Heatmap.Pointed)
    def _pointed(self, event: Heatmap.Pointed) -> None:
        """Show what A and B sent to the cell under mouse or cursor."""
        said = self._moved
        if self._shares is not None and event.layer is not None and event.expert is not None:
            a, b = (float(share[event.layer, event.expert]) for share in self._shares)
            said = f"layer {event.layer} expert {event.expert}: share A {a:.1%}, B {b:.1%}"
        self.query_one("#compare-moved", Static).update(said)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        if action == "stop":
            return self.running
        if action == "dismiss":
            return not self.running and (parameters != (True,) or self._shares is not None)
        return True

    def action_stop(self) -> None:
        """End what runs; the answer to that leads back."""
        self._stopping = True
        self._worker.stop()
        self._say("stopping", 0.0)
