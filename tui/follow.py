"""What the engine did, handed to the widgets about the experts and to the status line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from localmoe.text.tokenizer import StreamDecoder

from .engine_worker import Progressed
from .widgets.expert_pane import ExpertPane
from .widgets.layer_figures import LayerFigures
from .widgets.status import StatusLine, rate

if TYPE_CHECKING:
    from localmoe.engine.api import Model


class Follower:
    """Knows how much of the routing trace was counted, and where in it the chat and the last reply begin."""

    def __init__(self, model: Model, pane: ExpertPane, figures: LayerFigures, status: StatusLine) -> None:
        self._model, self._pane, self._figures, self._status = model, pane, figures, status
        self._counted = self.chat_from = self.reply_from = model.trace.count

    def begin_reply(self) -> None:
        """The next token has nothing to do with the one before it."""
        self._pane.stats.boundary()
        self.reply_from = self._model.trace.count

    def begin_chat(self) -> None:
        """Count from nothing."""
        self._pane.stats.reset()
        self.chat_from = self.reply_from = self._model.trace.count
        self._pane.clear_path()
        self._pane.refresh_figures()
        self._figures.follow()

    def draw(self, now: Progressed, *, writing: bool) -> None:
        """Show where things stand."""
        self._draw_experts()
        self._draw_status(now, writing=writing)

    def _draw_status(self, now: Progressed, *, writing: bool) -> None:
        self._status.follow(
            prompt_total=now.prompt_total,
            prompt_part=now.prompt_done / now.prompt_total if now.prompt_total else 0.0,
            prompt_rate=rate(now.prompt_total, now.prompt_s),
            reply_rate=rate(now.n_gen - 1, now.gen_s),
        )
        if now.n_gen:
            self._status.follow(used=now.n_past)
            self._status.state = "writing" if writing else "ready"

    def _draw_experts(self) -> None:
        """Feed the statistics from the routing trace, and show the newest token's path."""
        pane, trace = self._pane, self._model.trace
        if not self._model.config.n_expert:
            return
        if trace.count > self._counted:
            part = trace.read(self._counted)
            if part.first != self._counted:
                pane.stats.boundary()
            pane.stats.update(part.experts, part.weights, part.router, part.phase, part.n_used)
            self._counted = part.first + len(part.tokens)
            if pane.display:
                pane.refresh_figures()
                self._figures.follow()
            pane.show_path(self._word(int(part.tokens[-1])), part.experts[-1], part.weights[-1])

    def _word(self, token: int) -> str:
        """One token's text, "" for a part of a character."""
        return StreamDecoder(self._model.tokenizer, special=True).push(token)
