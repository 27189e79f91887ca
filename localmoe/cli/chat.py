"""`localmoe chat`: a chat line by line. Answers go to stdout, everything else to stderr."""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from localmoe.cli.chat_record import (
    kept_until_the_end,
    load_kept,
    open_record,
    parameters_of,
    routing_of,
    sampling_of,
    show_last,
)
from localmoe.cli.common import (
    CacheTypeK,
    CacheTypeV,
    Context,
    ExpertsUsed,
    ExpertThreshold,
    ForceExperts,
    GoOn,
    KeptChat,
    LeaveOut,
    OptionalModelPath,
    Overflow,
    Predict,
    Threads,
    count_experts,
    expert_legend,
    experts_table,
    load_arguments,
    open_model,
    sampling_arguments,
    say,
    show_text,
    with_sampling,
    write_text,
)
from localmoe.cli.default_model import given_or_demo_model
from localmoe.cli.interrupts import prompt_ends_on_signals
from localmoe.cli.output_path import output_path
from localmoe.cli.run import timings_line
from localmoe.cli.sessions import kept_chat
from localmoe.engine.sampling import SamplingParams
from localmoe.errors import LocalMoeError, UsageError
from localmoe.sessions.record import Pieces, Record
from localmoe.tui.context import fitting_in
from localmoe.tui.parameters import BY_NAME, check

if TYPE_CHECKING:
    from localmoe.engine.api import Model
    from localmoe.sessions.tree import Turn

# From this part of the context on, each answer ends with a note about the room that is left.
NEARLY_FULL = 0.75


@dataclass
class Chat:
    """A conversation with a model; `routing` are keywords about experts, `told` whether its loss was said.

    `forget`: leave out the oldest turns where not all fit; the `skipped` oldest are left out.
    `counts` (L, E) are the experts' uses in all answers so far.
    """

    model: Model
    sampling: SamplingParams
    max_tokens: int
    record: Record
    routing: dict[str, Any]
    forget: bool = False
    told: bool = False
    skipped: int = 0
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 0), np.int64))

    def __post_init__(self) -> None:
        self.forget_counts()

    def forget_counts(self) -> None:
        self.counts = np.zeros((self.model.config.n_layer, self.model.config.n_expert), np.int64)

    def reset(self) -> None:
        """Begin a new chat with the same settings; the old one stays where it is kept."""
        old = self.record
        self.record = Record(old.store, old.model, old.conversation.system, old.parameters)
        self.record.routing = dict(old.routing)
        self.skipped = 0
        self.forget_counts()

    @property
    def messages(self) -> list[dict[str, str]]:
        """The chat as `Model.chat` takes it, answers that say nothing included: roles take turns."""
        system = self.record.conversation.system
        turns = [turn for turn in self.record.turns if turn.role == "user" or turn.stop_reason]
        said = [{"role": turn.role, "content": turn.text} for turn in turns]
        return [{"role": "system", "content": system}, *said] if system else said

    def to_read(self) -> list[dict[str, str]]:
        """The chat without the turns that are forgotten; says so where there are more of them than before."""
        if not self.forget:
            return self.messages
        messages, skipped = fitting_in(self.model, self.messages, self.skipped)
        if skipped > self.skipped:
            say(f"note: the oldest {skipped} turns are left out of what the model reads")
        self.skipped = skipped
        return [dict(message) for message in messages]


@with_sampling
def chat(
    model: OptionalModelPath = None,
    go_on: GoOn = False,
    session: KeptChat = None,
    unsaved: Annotated[
        bool, typer.Option("--no-save", help="Keep no chat. [default: one typed at a terminal is kept]")
    ] = False,
    system: Annotated[str, typer.Option("-sys", "--system-prompt", help="The system prompt.", show_default=False)] = "",
    n_predict: Predict = -1,
    overflow: Overflow = "stop",
    threads: Threads = None,
    ctx_size: Context = None,
    experts_used: ExpertsUsed = None,
    leave_out: LeaveOut = None,
    force_experts: ForceExperts = None,
    expert_threshold: ExpertThreshold = None,
    cache_type_k: CacheTypeK = "f16",
    cache_type_v: CacheTypeV = "f16",
    *,
    context: typer.Context,
    sampling: SamplingParams,
) -> None:
    """Chat, line by line: /help tells the commands, Ctrl-C stops an answer, Ctrl-D leaves."""
    if unsaved and (go_on or session is not None):
        raise UsageError("a chat that was kept goes on with the file of chats", got="--no-save", expected="without it")
    check(BY_NAME["overflow"], overflow)
    kept, named = None, _named(context)
    if go_on or session is not None:
        number, model = kept_chat(session, model)
        kept = load_kept(number)
    path = given_or_demo_model(model)
    flags = {
        **sampling_arguments(sampling), "max_tokens": n_predict, "n_ctx": ctx_size, "n_expert_used": experts_used,
        "overflow": overflow,
    }  # fmt: skip
    chosen = parameters_of(kept, flags, named)
    load = load_arguments(
        chosen["n_ctx"], threads, chosen["n_expert_used"], cache_type_k, cache_type_v,
        leave_out=leave_out, force_experts=force_experts, expert_threshold=expert_threshold,
    )  # fmt: skip
    with closing(open_model(path, load)) as opened:
        if opened.chat_template is None:
            raise UsageError("the model has no chat template", file=path, expected="one; `localmoe run` needs none")
        save = not unsaved and (kept is not None or sys.stdin.isatty())
        record = open_record(path, kept, system, chosen, save=save)
        with kept_until_the_end(record):
            routing = routing_of(record, opened, load, named)
            forget = chosen["overflow"] == "forget"
            state = Chat(opened, sampling_of(chosen, sampling), chosen["max_tokens"], record, routing, forget)
            if sys.stdin.isatty():
                say(f"{path.name}: context {opened.n_ctx}. /help tells the commands, Ctrl-D leaves.")
            if kept is not None:
                show_last(record)
            _talk(state)
            if sys.stdin.isatty() and state.record.store is not None and state.record.key is not None:
                say(f"kept as chat {state.record.key}: `localmoe chat --continue` goes on with it")


def _named(context: typer.Context) -> set[str]:
    """The parameters that the command line names, by the names that are kept with a chat."""
    names = {"n_predict": "max_tokens", "ctx_size": "n_ctx", "experts_used": "n_expert_used"}
    given = [
        name for name in context.params if getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE"
    ]
    return {names.get(name, name) for name in given}


def _talk(state: Chat) -> None:
    """Obey and answer what is typed until the user leaves."""
    for line in _lines():
        if not line.strip():
            continue
        if not line.startswith("/"):
            state.record.ask(line)
            _answer(state, state.record.begin_reply())
        elif _command(state, line):
            return


def _lines() -> Iterator[str]:
    """Lines typed until Ctrl-D, or a second Ctrl-C in a row."""
    interactive = sys.stdin.isatty()
    if interactive:
        with suppress(ImportError):  # Windows' input() edits lines by itself
            import readline  # noqa: F401
    interrupted = False
    while True:
        try:
            line = input("> " if interactive else "")
        except EOFError:
            if interactive:
                print()
            return
        except KeyboardInterrupt:
            if interrupted or not interactive:
                raise
            interrupted = True
            say("\n(Ctrl-C again or Ctrl-D leaves)")
            continue
        interrupted = False
        yield line


@contextmanager
def _cancelled_by_ctrl_c() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C sets, instead of tearing a generation apart; the second interrupts."""
    cancel = threading.Event()

    def on_interrupt(number: int, frame: Any) -> None:
        if cancel.is_set():
            signal.default_int_handler(number, frame)
        cancel.set()

    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield cancel
    finally:
        signal.signal(signal.SIGINT, before)


def _answer(state: Chat, reply: Turn) -> None:
    """Generate the answer that `reply` is to hold; a question that does not fit is taken back with it."""
    steps, pieces = [], Pieces(state.record.piece(reply))
    options = {**sampling_arguments(state.sampling), **state.routing}
    try:
        with prompt_ends_on_signals(state.model), _cancelled_by_ctrl_c() as cancel:
            for step in state.model.chat(state.to_read(), max_tokens=state.max_tokens, cancel=cancel, **options):
                show_text(step.text)
                reply.text += step.text
                pieces.add(step.text, time.perf_counter())
                steps.append(step)
    except UsageError as error:
        again = len(state.record.conversation.siblings(reply)) > 1
        state.record.remove_last()
        if not again:
            state.record.remove_last()
        say(f"{error}: {'there is no other answer' if again else 'the message was taken back'}; /reset starts again")
        return
    finally:
        pieces.write()
    show_text("\n")
    state.record.end_reply(reply, (steps[-1].stop_reason if steps else None) or "cancelled")
    if state.record.trouble and not state.told:
        state.told = True
        say(f"note: this chat is no longer kept: {state.record.trouble}")
    state.counts += count_experts(steps, *state.counts.shape)
    if sys.stdin.isatty() and steps:
        say(f"[{timings_line(state.model.timings, steps[-1].stop_reason)}]")
    if steps and steps[-1].n_past >= NEARLY_FULL * state.model.n_ctx:
        does = "the oldest turns are left out when a message no longer fits" if state.forget else "/reset starts again"
        say(f"note: {steps[-1].n_past} of {state.model.n_ctx} tokens of context used; {does}")


def _help(state: Chat, argument: str) -> None:  # noqa: ARG001
    for name, (_, text) in COMMANDS.items():
        say(f"{name:8s} {text}")


def _reset(state: Chat, argument: str) -> None:  # noqa: ARG001
    state.reset()
    say("a new conversation")


def _regenerate(state: Chat, argument: str) -> None:  # noqa: ARG001
    turns = state.record.turns
    if not turns:
        say("there is no answer yet")
    elif turns[-1].role == "assistant":
        _answer(state, state.record.reply_again(turns[-1]))
    else:  # a chat that was cut off after its question
        _answer(state, state.record.begin_reply())


def _stats(state: Chat, argument: str) -> None:  # noqa: ARG001
    lines = experts_table(state.counts)
    for line in [*lines, *expert_legend(state.model)] if lines else ["no experts were used yet"]:
        say(line)


def _save(state: Chat, argument: str) -> None:
    if not argument:
        say("/save needs a file name")
        return
    text = json.dumps(state.messages, ensure_ascii=False, indent=1)
    try:
        write_text(output_path(argument), text, state.model.gguf.parts)
    except LocalMoeError as error:
        say(f"error: {error}")
        return
    say(f"{len(state.messages)} messages are in {argument}")


def _quit(state: Chat, argument: str) -> None:
    """Nothing: the name alone leaves."""


COMMANDS: dict[str, tuple[Callable[[Chat, str], None], str]] = {
    "/help": (_help, "These lines."),
    "/reset": (_reset, "Start a new conversation."),
    "/regen": (_regenerate, "Answer the last message again."),
    "/stats": (_stats, "Which experts the answers used, layer by layer."),
    "/save": (_save, "Save the conversation: /save FILE.json"),
    "/quit": (_quit, "Leave (Ctrl-D does too)."),
}


def _command(state: Chat, line: str) -> bool:
    """Obey a line that starts with a slash; whether it leaves."""
    name, _, argument = line.strip().partition(" ")
    if name in COMMANDS:
        COMMANDS[name][0](state, argument.strip())
    else:
        say(f"no such command: {name} (/help tells them)")
    return name == "/quit"
