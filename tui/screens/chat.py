"""The main screen: chat on the left, the experts on the right, what goes on below."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.screen import Screen
from textual.widgets import Footer, Static

from localmoe.experts.labels import expert_labels

from ..conversation import ENDINGS, Conversation
from ..engine_worker import EngineWorker, Progressed, Request
from ..messages import CellOpened, ReplyDone, ReplyFailed, Submitted
from ..options import AppOptions
from ..rules import Rules, rules_of
from ..widgets.expert_pane import ExpertFacts, ExpertPane
from ..widgets.prompt import Prompt
from ..widgets.status import StatusLine, TitleBar, rate
from ..widgets.transcript import Transcript
from ..widgets.turns import shown_line
from .cell import CellScreen
from .expert_screens import open_rules, routed_since, skipped_text
from .tokens import TokensScreen

if TYPE_CHECKING:
    from localmoe.engine.api import Model

FRAMES = 10
"""Looks at the engine a second: text is drawn this often at most."""
PICTURES = 0.4
"""Seconds between drawings of the experts and the status line while text comes: one costs as much as three of text."""
PART, SLOWEST = 0.06, 0.5
"""The part of a core that drawing may take, and the seconds after which it looks all the same."""


class ChatScreen(Screen[None]):
    """Talks to the engine's thread and hands what it says to the widgets."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "stop", "Stop", id="chat.stop", priority=True),
        Binding("ctrl+n", "new_chat", "New", id="chat.new", priority=True),
        Binding("ctrl+r", "regenerate", "Again", id="chat.again", priority=True),
        Binding("f2", "next_mode", "View", id="experts.mode", priority=True),
        Binding("f3", "toggle_experts", "Pane", id="experts.toggle", priority=True),
        Binding("f4", "used(-1)", "k−1", id="experts.fewer", priority=True),
        Binding("f5", "used(1)", "k+1", id="experts.more", priority=True),
        Binding("f6", "compare_from_here", "Compare from here", id="experts.compare", show=False, priority=True),
        Binding("f7", "tokens", "Tokens", id="experts.tokens", show=False, priority=True),
        Binding("f8", "rules", "Routing", id="experts.rules", priority=True),
        Binding("ctrl+t", "reset_rules", "Routing as started", id="experts.reset", show=False, priority=True),
        Binding("left_square_bracket", "used(-1)", "Fewer experts", id="experts.fewer.bracket", show=False),
        Binding("right_square_bracket", "used(1)", "More experts", id="experts.more.bracket", show=False),
    ]
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (100, "-normal"), (140, "-wide")]  # noqa: RUF012 - the base declares it so

    _looked = _used = 0.0  # the last look: when, and the thread's processor time then
    _pictured = 0.0  # when the experts were drawn last
    _reply_from = 0  # the trace's token that the last reply begins with

    def __init__(self, model: Model, worker: EngineWorker, options: AppOptions) -> None:
        super().__init__()
        self.model, self.worker, self.options = model, worker, options
        self.conversation = Conversation(options.system)
        self.busy = False
        self._again = 0
        self._seen = self._first = model.trace.count
        self.start_rules = self.rules = rules_of(model.config, options.load)

    @property
    def n_used(self) -> int:
        """Experts a token goes through at most, from the next reply on."""
        return self.rules.routing.n_used

    def compose(self) -> ComposeResult:
        yield TitleBar(id="title")
        with Horizontal(id="body"):
            yield Transcript(id="transcript")
            yield ExpertPane(id="experts")
        with Vertical(id="below"):
            with Horizontal(id="line"):
                yield Static("›", id="sign", markup=False)
                yield Prompt(id="prompt")
            yield StatusLine(id="status")
        yield Footer(show_command_palette=False)

    def on_mount(self) -> None:
        self.worker.post = self.post_message
        config = self.model.config
        labels = expert_labels(self.model.gguf.metadata, config.n_expert)
        size = self.model.expert_bytes
        self.experts.open(ExpertFacts(config.n_layer, config.n_expert, self.n_used, labels, size))
        self._compare()
        self.status.state = "ready"
        self.status.size_of_context = self.model.n_ctx
        self.query_one(Prompt).focus()
        self._show_title()
        self.set_interval(1 / FRAMES, self._look)

    def _compare(self) -> None:
        """Take the saved run, if there is one for a model of this shape."""
        saved, config = self.options.saved, self.model.config
        if saved is None:
            return
        if (saved.n_layer, saved.n_expert) != (config.n_layer, config.n_expert):
            said = f"the saved run has {saved.n_layer} layers of {saved.n_expert} experts: it is of another model"
            self.notify(said, severity="warning")
            return
        self.experts.compare_with(saved.statistics().layers().share)

    @property
    def experts(self) -> ExpertPane:
        return self.query_one(ExpertPane)

    @property
    def transcript(self) -> Transcript:
        return self.query_one(Transcript)

    @property
    def status(self) -> StatusLine:
        return self.query_one(StatusLine)

    def _show_title(self) -> None:
        config = self.model.config
        name = self.model.gguf.metadata.get("general.name")
        name = name if isinstance(name, str) and name else self.model.gguf.path.name
        detail = f"top-{self.n_used} of {config.n_expert} experts" if config.n_expert else "dense, no experts"
        if self.model.chat_template is None:
            detail += ", completes text"
        self.query_one(TitleBar).show(shown_line(name), detail)

    async def _look(self) -> None:
        """Take what the engine did since the last look: text into the reply, choices into the statistics.

        Left out while the screen's thread has used more than its part of a core: the engine needs both cores.
        """
        now = time.monotonic()
        waited = now - self._looked
        if not self.busy or (waited < SLOWEST and time.thread_time() - self._used > PART * waited):
            return
        self._looked, self._used = now, time.thread_time()
        await self._take(self.worker.drain())

    async def _take(self, now: Progressed) -> None:
        """Draw the text, and now and then what is costlier: the experts and the status line."""
        if self._looked - self._pictured >= PICTURES or not (self.busy and now.text):
            self._pictured = self._looked
            self._picture(now)
        if now.text:
            self.conversation.turns[-1].text += now.text
            await self.transcript.feed(now.text)

    def _picture(self, now: Progressed) -> None:
        self._route(now)
        status = self.status
        status.prompt_total = now.prompt_total
        status.prompt_part = now.prompt_done / now.prompt_total if now.prompt_total else 0.0
        status.prompt_rate = rate(now.prompt_total, now.prompt_s)
        status.reply_rate = rate(now.n_gen - 1, now.gen_s)
        if now.n_gen:
            status.used = now.n_past
            status.state = "writing" if self.busy else "ready"

    def _route(self, now: Progressed) -> None:
        """Feed the statistics from the routing trace, and show the newest token's path."""
        pane, trace = self.experts, self.model.trace
        if not self.model.config.n_expert:
            return
        if trace.count > self._seen:
            part = trace.read(self._seen)
            if part.first != self._seen:
                pane.stats.boundary()
            pane.stats.update(part.experts, part.weights, part.router, part.phase, part.n_used)
            self._seen = part.first + len(part.tokens)
            if pane.display:
                pane.refresh_figures()
        if now.step is not None:
            pane.show_path(now.step.text, now.step.experts, now.step.weights)

    @on(Submitted)
    async def _send(self, event: Submitted) -> None:
        event.stop()
        if self.busy:
            self.notify("The model is still writing: Esc stops it.", timeout=2)
            return
        self.query_one(Prompt).remember(event.text)
        self.conversation.ask(event.text)
        await self.transcript.add_user(event.text)
        await self._begin()

    async def _begin(self) -> None:
        """Ask the engine for a reply to the conversation as it stands."""
        sampling = dict(self.options.sampling)
        if sampling.get("seed") is not None:
            sampling["seed"] += self._again
        routing = {} if self.rules == self.start_rules else self.rules.options
        used = routing.pop("n_expert_used", self.n_used or None)
        request = Request(self.conversation.messages(), used, sampling, routing)
        self._reply_from = self.model.trace.count
        self.conversation.begin_reply()
        await self.transcript.begin_reply()
        self.experts.stats.boundary()
        self.busy, self.status.state, self.status.prompt_part = True, "reading", 0.0
        self.worker.generate(request)
        self.refresh_bindings()

    @on(ReplyDone)
    async def _done(self, event: ReplyDone) -> None:
        await self._end(event.stop_reason)
        if event.stop_reason in ENDINGS:
            await self.transcript.add_note(ENDINGS[event.stop_reason])

    @on(ReplyFailed)
    async def _failed(self, event: ReplyFailed) -> None:
        await self._end("error")
        await self.transcript.add_note(event.reason, error=True)
        if not self.conversation.turns[-1].text:  # nothing was answered: the question goes back to be changed
            question, prompt = self.conversation.take_back(), self.query_one(Prompt)
            if not prompt.text:
                prompt.insert(question)

    async def _end(self, reason: str) -> None:
        self.busy = False
        await self._take(self.worker.drain())
        self.conversation.turns[-1].stop_reason = reason
        self.status.state = "ready"
        self.status.rules = self.rules.brief(self.start_rules) + skipped_text(self)
        self.refresh_bindings()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:  # noqa: ARG002
        if action == "stop":
            return True if self.busy else None
        if action in ("used", "next_mode", "toggle_experts", "rules"):
            return self.model.config.n_expert > 0 or action == "toggle_experts"
        return True

    def action_stop(self) -> None:
        """Stop the reply and keep what was said."""
        self.status.state = "stopping"
        self.worker.stop()

    async def action_new_chat(self) -> None:
        """Forget the conversation; the experts' statistics go on from nothing too."""
        if self.busy:
            self.notify("The model is still writing: Esc stops it.", timeout=2)
            return
        self.conversation = Conversation(self.options.system)
        await self.transcript.restart()
        self.status.used = 0
        self.experts.stats.reset()
        self._first = self.model.trace.count
        self.experts.refresh_figures()

    async def action_regenerate(self) -> None:
        """Make the last reply again."""
        if self.busy or not self.conversation.drop_reply():
            return
        self._again += 1
        await self.transcript.drop_reply()
        await self._begin()

    def action_next_mode(self) -> None:
        self.experts.next_mode()

    def action_mode(self, mode: str) -> None:
        self.experts.set_mode(mode)

    def action_tokens(self) -> None:
        """Show the chat token by token."""
        if (source := routed_since(self, self._first)) is not None:
            self.app.push_screen(TokensScreen(self.model, source))

    @on(CellOpened)
    def _cell(self, event: CellOpened) -> None:
        event.stop()
        if (source := routed_since(self, self._first)) is not None:
            self.app.push_screen(CellScreen(self.model, source, event.layer, event.expert, self.experts.facts.labels))

    def action_compare_from_here(self) -> None:
        """Keep the loads as they are now, and show what changes from them."""
        if self.model.config.n_expert:
            self.experts.compare_with(None)
            self.experts.set_mode("difference")
            self.notify("the heatmap shows the difference from the load until now", timeout=2)

    def action_toggle_experts(self) -> None:
        """Show or hide everything about the experts."""
        self.experts.display = not self.experts.display

    def action_used(self, change: int) -> None:
        """Let tokens go through more or fewer experts, from the next reply on."""
        most = self.model.config.n_expert
        if not most:
            return
        self.take_rules(self.rules.with_used(self.model.config, min(most, max(1, self.n_used + change))))

    def take_rules(self, rules: Rules) -> None:
        """Route so from the next reply on."""
        self.rules = rules
        self.experts.set_used(self.n_used)
        self._show_title()
        self.status.rules = rules.brief(self.start_rules)
        if self.busy:
            self.notify("from the next reply on", timeout=2)

    def action_rules(self) -> None:
        """Open the panel that changes how tokens are routed."""
        open_rules(self)

    def action_reset_rules(self) -> None:
        """Route as the app was started."""
        if self.rules != self.start_rules:
            self.take_rules(self.start_rules)
            self.notify("routed as the app was started", timeout=2)
