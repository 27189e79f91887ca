"""The main screen: chat on the left, the experts on the right, what goes on below."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.widgets import Static

from localmoe.errors import LocalMoeError
from localmoe.experts.labels import expert_labels
from localmoe.sessions.record import Record
from localmoe.sessions.tree import Turn

from ..engine_worker import EngineWorker, Progressed
from ..expert_facts import ExpertFacts
from ..follow import Follower
from ..messages import ReplyDone, ReplyFailed, Submitted, TurnAsked
from ..options import AppOptions
from ..pace import EVERY, Pace
from ..talk import Talk
from ..welcome import text_parameters, welcome
from ..widgets.context_note import ContextNote
from ..widgets.heatmap import Heatmap
from ..widgets.key_line import KeyLine
from ..widgets.layer_figures import LayerFigures
from ..widgets.prompt import Prompt
from ..widgets.side import NARROW, RICH, WIDE, Side
from ..widgets.status import StatusLine, TitleBar
from ..widgets.transcript import Transcript
from .loading import Draft
from .routed import RoutedScreen

if TYPE_CHECKING:
    from localmoe.engine.api import Model


ABOUT_EXPERTS = {"used", "next_mode", "rules", "figures", "tokens", "compare_from_here", "reset_rules"}
"""Actions that a dense model has no use for."""


class ChatScreen(RoutedScreen):
    """Talks to the engine's thread and hands what it says to the widgets."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "stop", "Stop", id="chat.stop", priority=True),
        Binding("escape", "write", "Input", id="chat.write"),
        Binding("ctrl+n", "new_chat", "New", id="chat.new", priority=True),
        Binding("ctrl+r", "regenerate", "Again", id="chat.again", priority=True),
        Binding("ctrl+s", "app.sessions", "Chats", id="app.sessions"),  # the app's, in their place among the others
        Binding("ctrl+o", "app.models", "Model", id="app.models"),
        Binding("f2", "next_mode", "View", id="experts.mode", priority=True),
        Binding("f1", "app.help", "Help", id="app.help", priority=True),
        Binding("ctrl+q", "app.quit", "Quit", id="app.quit", priority=True),
        Binding("f7", "tokens", "Tokens", id="experts.tokens", priority=True),
        Binding("f8", "rules", "Routing", id="experts.rules", priority=True),
        Binding("f10", "figures", "Figures", id="experts.figures", priority=True),
        Binding("f3", "toggle_experts", "Pane", id="experts.toggle", priority=True),
        Binding("f9", "app.parameters", "Parameters", id="app.parameters"),
        Binding("f4", "used(-1)", "k−1", id="experts.fewer", priority=True),
        Binding("f5", "used(1)", "k+1", id="experts.more", priority=True),
        Binding("f6", "compare_from_here", "Difference", id="experts.compare", priority=True),
        Binding("ctrl+p", "app.command_palette", "Commands", id="chat.commands", priority=True),
        Binding("ctrl+t", "reset_rules", "Routing as started", id="experts.reset", show=False, priority=True),
        Binding("left_square_bracket", "used(-1)", "Fewer experts", id="experts.fewer.bracket", show=False),
        Binding("right_square_bracket", "used(1)", "More experts", id="experts.more.bracket", show=False),
    ]
    AUTO_FOCUS = "#prompt"
    HORIZONTAL_BREAKPOINTS = [(0, "-tiny"), (NARROW, "-narrow"), (100, "-normal"), (WIDE, "-wide"), (RICH, "-rich")]  # noqa: RUF012 - the base declares it so

    def __init__(
        self, model: Model, worker: EngineWorker, options: AppOptions, record: Record, draft: Draft | None = None
    ) -> None:
        super().__init__(model, worker, options, record)
        self._draft = draft or Draft()
        self._taking = asyncio.Lock()  # timers and messages come at the same time
        self._pace, self._last = Pace(), Progressed()

    def compose(self) -> ComposeResult:
        yield TitleBar(id="title")
        with Horizontal(id="body"):
            yield Transcript(id="transcript")
            yield Side(id="side")
        yield ContextNote(id="context-note", markup=False)
        with Vertical(id="below"):
            with Horizontal(id="line"):
                yield Static("›", id="sign", markup=False)
                yield Prompt(id="prompt")
            yield StatusLine(id="status")
        yield KeyLine()

    def on_mount(self) -> None:
        self.worker.post = self.post_message
        config = self.model.config
        labels = expert_labels(self.model.gguf.metadata, config.n_expert)
        self.experts.open(ExpertFacts(config.n_layer, config.n_expert, self.n_used, labels, self.model.expert_bytes))
        self.query_one(LayerFigures).open(self.experts.facts, self.experts.stats, self.model.memory_map)
        self.query_one(Side).share()
        self.compare_saved()
        self.follow = Follower(self.model, self.experts, self.query_one(LayerFigures), self.status)
        self.status.state, self.status.size_of_context = "ready", self.model.n_ctx
        if self.model.chat_template is None:
            self._complete_text()
        self.transcript.greet(welcome(self.model, self.record.parameters, self._beginnings()))
        self.set_focus(self.query_one(Prompt))  # now: a key may be the next message
        self.query_one(Prompt).insert(self._draft.text)
        if (store := self.record.store) is not None:
            with suppress(LocalMoeError):  # what was sent before is a help, no more
                self.query_one(Prompt).recall([text for text in store.questions() if text])
        self.query_one(TitleBar).show_model(self.model, self.rules.used)
        self._ticks = self.set_interval(EVERY, self._look, pause=True)
        self.call_after_refresh(self._begin_chat)

    def on_resize(self) -> None:
        self.query_one(Side).share()
        self._keep_the_keyboard()

    def _keep_the_keyboard(self) -> None:
        """Write into the input where what had the keyboard is hidden."""
        hidden = not self.query_one(Side).display or self.app.size.width < NARROW
        if hidden and isinstance(self.focused, Heatmap):
            self.query_one(Prompt).focus()

    def _complete_text(self) -> None:
        """Let a new chat write piece by piece and forget the oldest, where nothing else was asked for."""
        self.query_one(Prompt).complete_text()
        self.transcript.complete_text()
        if not self.record.turns:
            self.record.configure(**{**text_parameters(self.model.n_ctx), **self.record.parameters})

    def _beginnings(self) -> Sequence[str]:
        return self.options.beginnings.get(self.model.gguf.path.absolute(), ())

    async def _begin_chat(self) -> None:
        """Go on with a chat that was kept, and send what was written while the model was opened."""
        if self.record.turns:
            await self.go_on_with(self.record)
        elif not self.record.routing:
            self.record.route(self.rules.kept(self.model.config))
        if self._draft.sent:
            self.post_message(Submitted(self._draft.sent))

    @property
    def transcript(self) -> Transcript:
        return self.query_one(Transcript)

    async def _look(self) -> None:
        """Take what the engine did since the last look, and now and then draw the experts or where things stand."""
        if not self.busy:
            self._ticks.pause()
        elif self._pace.look(self._last.n_gen / self._last.gen_s if self._last.gen_s else 0.0):
            with self.one_drawing():
                await self._take()
                if self.busy and self._pace.picture():  # the reply may have ended meanwhile
                    self.follow.draw(self._last, writing=True)
                    self._warn()

    async def _take(self) -> None:
        """Put new text into the reply; where none came, or none comes any more, show where things stand."""
        async with self._taking:
            self._last = now = self.worker.drain()
            self.talk.skipped = max(self.talk.skipped, now.skipped)
            if now.text and not self.talk.warming:
                self.conversation.turns[-1].text += now.text
                await self.transcript.feed(now.text)
            if not (self.busy and now.text) or self.status.state == "reading":
                self.follow.draw(now, writing=self.busy)

    @on(Submitted)
    async def _send(self, event: Submitted) -> None:
        event.stop()
        if not event.text and (not self.record.turns or self.talk.editing):  # nothing to go on with
            return
        if self.talk.warming:  # the chat so far is being read: enough of it is, and the question comes next
            self.talk.queued = event.text
            self.action_stop()
        elif not self._refused():
            self.query_one(Prompt).remember(event.text)
            reply = self.talk.say(event.text)
            self._edit(None)
            await self._begin(reply)

    def _refused(self) -> bool:
        """Whether a reply is being written; says so."""
        if self.busy:
            self.notify("The model is still writing: Esc stops it.", timeout=2)
        return self.busy

    async def _begin(self, reply: Turn | None) -> None:
        """Show the conversation as it stands and ask the engine for the reply, if one is to be made."""
        await self.transcript.show(self.record.turns)
        if reply is not None:
            self._ask_engine(self.record.piece(reply))

    def _ask_engine(self, keep: Callable[[str], None] | None = None) -> None:
        self.follow.begin_reply()
        self.busy, self.status.state, self.status.prompt_part = True, "reading", 0.0
        routing = {} if self.rules == self.start_rules else self.rules.options
        used = routing.pop("n_expert_used", self.n_used or None)
        self.worker.generate(self.talk.request(used, routing, keep))
        self._ticks.resume()
        self.refresh_bindings()
        self.call_after_refresh(self.call_after_refresh, self.worker.drawn)  # a second drawing follows the first

    async def go_on_with(self, record: Record) -> None:
        """Show a chat that was kept and read it, so that the next reply begins at once."""
        self._edit(None)
        self.talk = Talk(record, self.options)
        self.route_as_kept()
        self.take_parameters()
        await self.transcript.show(record.turns)
        self.query_one(Prompt).focus()
        if self.conversation.messages():
            self.talk.warming = True
            self._ask_engine()

    def take_parameters(self) -> None:
        """The record's parameters were changed: show what depends on them."""
        self.route_by_parameters()
        self.show_rules()
        self._warn()

    @on(ReplyDone)
    async def _done(self, event: ReplyDone) -> None:
        if self.talk.warming:
            await self._warmed()
            return
        await self._end(event.stop_reason)
        if event.stop_reason == "cancelled" and not self.record.turns[-1].text and not self.query_one(Prompt).text:
            await self._take_back()
            self.notify("Stopped before a word was said: your text is back in the input.", timeout=4)
        elif said := self.transcript.ending(self.record.turns[-1]):
            await self.transcript.add_note(said)

    async def _warmed(self) -> None:
        await self._take()
        self.busy = self.talk.warming = False
        self.status.follow(used=self._last.n_past, state="ready")
        self.refresh_bindings()
        self._warn()
        if question := self.talk.queued:
            self.talk.queued = ""
            self.post_message(Submitted(question))

    @on(ReplyFailed)
    async def _failed(self, event: ReplyFailed) -> None:
        if self.talk.warming:
            await self._warmed()
            self._measure()
            if self.status.used >= self.model.n_ctx:  # a chat that was full: the line above the input says so
                return
        else:
            await self._end("error")
            if not self.record.turns[-1].text:  # nothing was answered
                await self._take_back()
        await self.transcript.add_note(event.reason, error=True)

    async def _take_back(self) -> None:
        """Take an empty reply and its question out; the question goes back into the input to be changed."""
        question, prompt = self.talk.take_back(), self.query_one(Prompt)
        if not prompt.text:
            prompt.insert(question)
        await self.transcript.show(self.record.turns)

    async def _end(self, reason: str) -> None:
        self.busy = False
        await self._take()
        await self.transcript.finish()
        self.record.end_reply(self.record.turns[-1], reason)
        self.status.state = "ready"
        self.show_skipped()
        self.refresh_bindings()
        self._warn()
        if said := self.talk.trouble():
            await self.transcript.add_note(said, error=self.record.trouble is not None)

    @on(Prompt.Changed)
    def _warn(self) -> None:
        """Say that the context gets full, before anything is cut."""
        self.query_one(ContextNote).tell(self.talk, self.model, self.status.used, self.query_one(Prompt).text)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:  # noqa: ARG002
        if action == "stop":
            return True if self.busy or self.talk.editing else None if self.writing else False
        if action == "write":
            return not self.writing
        return action not in ABOUT_EXPERTS or self.model.config.n_expert > 0

    @property
    def writing(self) -> bool:
        """Whether what is typed goes into the input."""
        return isinstance(self.focused, Prompt)

    def action_write(self) -> None:
        """Give the keyboard back to the input."""
        self.query_one(Prompt).focus()

    def action_stop(self) -> None:
        """Stop the reply and keep what was said; or leave the turn that is being edited as it was."""
        if not self.busy:
            self._edit(None)
            return
        self.status.state = "stopping"
        self.worker.stop()

    async def action_new_chat(self) -> None:
        """Forget the conversation; the experts' statistics go on from nothing too."""
        if self._refused():
            return
        self._edit(None)
        self.talk.restart()
        await self.transcript.show([])
        self.status.follow(used=0)
        self.follow.begin_chat()
        self.show_rules()
        self._warn()

    async def action_regenerate(self) -> None:
        """Make the last reply again, beside the old one."""
        if self.record.turns and not self.busy:
            await self._begin(self.talk.again(self.record.turns[-1]))

    @on(TurnAsked)
    async def _turn_asked(self, event: TurnAsked) -> None:
        event.stop()
        if self._refused():
            return
        if event.what == "edit":
            self._edit(event.turn)
        elif event.what == "again":
            await self._begin(self.talk.again(event.turn))
        else:
            other = self.talk.step(event.turn, event.by)
            await self._begin(None)
            self.transcript.choose(other)
            self._measure()

    def _measure(self) -> None:
        """Show what the chat as it stands takes of the context; the engine says it only after it has read it."""
        self.status.follow(used=self.talk.size(self.model))
        self._warn()

    def _edit(self, turn: Turn | None) -> None:
        """Let the user change a turn in the input; None: no longer."""
        if turn is not None or self.query_one(Prompt).changing:
            self.talk.editing = turn
            self.query_one(Prompt).change(None if turn is None else turn.text)
            self.query_one("#sign", Static).update("›" if turn is None else "✎")
            self._warn()
            self.refresh_bindings()

    def action_last(self, what: str) -> None:
        """Do something with the last turn of the role that it is about."""
        role = "user" if what == "edit" else "assistant"
        if turns := [turn for turn in self.record.turns if turn.role == role]:
            self.transcript.ask(what, turns[-1])

    def action_toggle_experts(self) -> None:
        """Show or hide everything about the experts."""
        side = self.query_one(Side)
        side.display = self.experts.display = not side.display
        self._keep_the_keyboard()
