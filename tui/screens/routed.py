"""The part of the chat's screen that is about experts: how tokens are routed, and what is opened to look at that."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from textual import on

from localmoe.errors import UsageError
from localmoe.sessions.record import Record
from localmoe.sessions.tree import Conversation

from ..drawing import DrawnScreen
from ..engine_worker import Comparison, EngineWorker
from ..follow import Follower
from ..messages import CellOpened
from ..options import AppOptions
from ..rules import Rules, in_words, kept_rules, rules_of
from ..talk import Talk
from ..widgets.expert_pane import ExpertPane
from ..widgets.status import StatusLine, TitleBar
from ..widgets.turns import shown_line
from .cell import CellScreen
from .compare import CompareScreen
from .figures import FiguresScreen
from .rules import RulesScreen
from .runs import RunsScreen
from .tokens import Routed, TokensScreen

if TYPE_CHECKING:
    from localmoe.engine.api import Model
    from localmoe.experts.recording import Recording
    from localmoe.experts.trace_file import Outline


class RoutedScreen(DrawnScreen):
    """Knows the rules of routing and the statistics of a chat, but nothing of its text.

    `rules` hold from the next reply on, `start_rules` are those that the app was started with. Whoever builds on it
    shows a TitleBar, a StatusLine and an ExpertPane, and makes `follow` with them.
    """

    follow: Follower

    def __init__(self, model: Model, worker: EngineWorker, options: AppOptions, record: Record) -> None:
        super().__init__()
        self.model, self.worker, self.options = model, worker, options
        self.talk = Talk(record, options)
        self.busy = False
        self.start_rules = self.rules = rules_of(model.config, options.load)

    @property
    def n_used(self) -> int:
        """Experts a token goes through at most, from the next reply on."""
        return self.rules.routing.n_used

    @property
    def record(self) -> Record:
        return self.talk.record

    @property
    def conversation(self) -> Conversation:
        return self.record.conversation

    @property
    def experts(self) -> ExpertPane:
        return self.query_one(ExpertPane)

    @property
    def status(self) -> StatusLine:
        return self.query_one(StatusLine)

    def take_rules(self, rules: Rules) -> None:
        """Route so from the next reply on, and keep that with the chat."""
        self.rules = rules
        self.record.configure(n_expert_used=None if rules.routing.limits else self.n_used)
        self.record.route(rules.kept(self.model.config))
        self.show_rules()
        if self.busy:
            self.notify("from the next reply on", timeout=2)

    def show_rules(self) -> None:
        """Show how tokens are routed from now on."""
        self.status.rules = self.rules.brief(self.start_rules)
        self.experts.set_used(self.n_used)
        self.query_one(TitleBar).show_model(self.model, self.rules.used)

    def route_as_kept(self) -> None:
        """Route as is kept with the chat, and say so; as the app was started where nothing is, or it cannot be."""
        config, kept = self.model.config, self.record.routing
        self.rules = self.start_rules
        if not kept:
            return
        try:
            self.rules = kept_rules(config, kept)
        except UsageError as error:
            said = f"not routed as in this chat ({in_words(kept)}): {error}"
            self.notify(shown_line(said), severity="warning", timeout=10, markup=False)
        else:
            said = f"routing as in this chat: {self.rules.routing.describe(config.n_expert or 0)}"
            self.notify(shown_line(said), timeout=6, markup=False)

    def route_by_parameters(self) -> None:
        """Route through as many experts as the chat's parameters say, where they do or the rules have one number."""
        config, routing = self.model.config, self.rules.routing
        given = self.record.parameters.get("n_expert_used")
        wanted = min(given or (routing.n_used if routing.limits else self.start_rules.routing.n_used), config.n_expert)
        if routing.n_used != wanted > 0:
            self.rules = self.rules.with_used(config, wanted)
            self.record.route(self.rules.kept(config))

    def skipped_share(self) -> float | None:
        """The share of the last reply's choices that no expert ran for; None where nothing was routed."""
        trace = self.model.trace
        if trace.count <= self.follow.reply_from or not self.model.config.n_expert:
            return None
        part = trace.read(self.follow.reply_from, router=False)
        asked = int(part.n_used.sum())
        return max(0.0, 1.0 - float((part.experts >= 0).sum()) / asked) if asked else None

    def show_skipped(self) -> None:
        """Show what the reply that has ended skipped, where a threshold holds."""
        share = self.skipped_share() if self.rules.routing.threshold else None
        self.status.rules = self.rules.brief(self.start_rules) + ("" if share is None else f" ({share:.0%} skipped)")

    def action_used(self, change: int) -> None:
        """Let tokens go through more or fewer experts, from the next reply on."""
        most = self.model.config.n_expert
        if most:
            used = min(most, max(1, self.n_used + change))
            self.take_rules(self.rules.with_used(self.model.config, used))

    def action_reset_rules(self) -> None:
        """Route as the app was started."""
        if self.rules != self.start_rules:
            self.take_rules(self.start_rules)
            self.notify("routed as the app was started", timeout=2)

    def action_rules(self) -> None:
        """Open the panel that changes how tokens are routed, or compares that with how the app was started."""
        share = self.skipped_share()
        said = "nothing was routed yet" if share is None else f"the last reply skipped {share:.1%} of its experts' work"
        asked = [turn.text for turn in self.conversation.turns if turn.role == "user" and turn.text]
        prompt = shown_line(asked[-1]) if asked else ""

        def chosen(answer: Rules | tuple[Rules, str] | None) -> None:
            if isinstance(answer, Rules):
                self.take_rules(answer)
            elif answer is not None:
                self._compare(*answer)

        self.app.push_screen(RulesScreen(self.model.config, self.rules, self.start_rules, said, prompt), chosen)

    def _compare(self, rules: Rules, prompt: str) -> None:
        if self.busy:
            self.notify("The model is still writing: Esc stops it.", timeout=2)
            return
        job = Comparison(prompt, self.start_rules.options, rules.options)
        screen = CompareScreen(self.worker, job, max(self.n_used, rules.routing.n_used))
        self.app.push_screen(screen, lambda used: self.take_rules(rules) if used else None)

    def compare_saved(self) -> None:
        """Take the saved run that the app was started with, if there is one for a model of this shape."""
        saved = self.options.saved
        if saved is None:
            return
        if wrong := self._other_model(saved):
            self.notify(f"--against: {wrong}", severity="warning", markup=False)
            return
        self.experts.compare_with(saved.statistics().layers().share)

    def _other_model(self, run: Recording | Outline) -> str:
        """Why a run cannot be compared with this model's, or ""."""
        config = self.model.config
        if (run.n_layer, run.n_expert) == (config.n_layer, config.n_expert):
            return ""
        return f"{run.n_layer} layers of {run.n_expert} experts: it is of another model"

    def action_compare_from_here(self) -> None:
        """Ask what to show the difference from: what was until now, or a saved run."""
        if not self.model.config.n_expert:
            return
        from localmoe.engine.recorder import record_trace

        def chosen(answer: tuple[str, Recording | None] | None) -> None:
            if answer is None:
                return
            name, run = answer
            if run is not None:
                self.experts.compare_with(run.statistics().layers().share, name)
            elif self.experts.stats.n_tokens:
                self.experts.compare_from_now()
            else:
                self.notify("no token has been routed yet", timeout=2)
                return
            self.experts.set_mode("difference")

        record = partial(record_trace, self.model, self.follow.chat_from)
        self.app.push_screen(RunsScreen(self._other_model, record, self.model.gguf.path.stem), chosen)

    def _routed(self) -> Routed | None:
        """The chat's tokens; None, and a note, where none was routed yet."""
        if not self.model.config.n_expert or self.model.trace.count <= self.follow.chat_from:
            self.notify("no token has been routed yet", timeout=2)
            return None
        return Routed(self.model, self.follow.chat_from, self.worker.alternatives)

    def action_tokens(self) -> None:
        """Show the chat token by token."""
        if (source := self._routed()) is not None:
            self.app.push_screen(TokensScreen(self.model, source))

    @on(CellOpened)
    def _cell(self, event: CellOpened) -> None:
        event.stop()
        if (source := self._routed()) is not None:
            self.app.push_screen(CellScreen(self.model, source, event.layer, event.expert, self.experts.facts.labels))

    def action_figures(self) -> None:
        """Show every layer's figures."""
        if self.model.config.n_expert:
            self.app.push_screen(FiguresScreen(self.experts.facts, self.experts.stats, self.model.memory_map))

    def action_next_mode(self) -> None:
        self.experts.next_mode()

    def action_mode(self, mode: str) -> None:
        self.experts.set_mode(mode)
