"""`localmoe chat`: a chat line by line. Answers go to stdout, everything else to stderr."""

from __future__ import annotations

import json
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from localmoe.cli.common import (
    CacheTypeK,
    CacheTypeV,
    Context,
    ExpertsUsed,
    ExpertThreshold,
    ForceExperts,
    LeaveOut,
    OptionalModelPath,
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
from localmoe.cli.output_path import output_path
from localmoe.cli.run import timings_line
from localmoe.engine.sampling import SamplingParams
from localmoe.errors import LocalMoeError, UsageError

if TYPE_CHECKING:
    from localmoe.engine.api import Model

# From this part of the context on, each answer ends with a note about the room that is left.
NEARLY_FULL = 0.75


@dataclass
class Chat:
    """A conversation with a model; `counts` (L, E) are the experts' uses in all answers so far."""

    model: Model
    sampling: SamplingParams
    max_tokens: int
    system: str
    messages: list[dict[str, str]] = field(default_factory=list)
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 0), np.int64))

    def __post_init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything but the system prompt."""
        self.messages = [{"role": "system", "content": self.system}] if self.system else []
        self.counts = np.zeros((self.model.config.n_layer, self.model.config.n_expert), np.int64)


@with_sampling
def chat(
    model: OptionalModelPath = None,
    system: Annotated[str, typer.Option("-sys", "--system-prompt", help="The system prompt.", show_default=False)] = "",
    n_predict: Annotated[
        int, typer.Option("-n", "--predict", "--n-predict", min=-1, help="Tokens of an answer; -1: until it ends.")
    ] = -1,
    threads: Threads = None,
    ctx_size: Context = None,
    experts_used: ExpertsUsed = None,
    leave_out: LeaveOut = None,
    force_experts: ForceExperts = None,
    expert_threshold: ExpertThreshold = None,
    cache_type_k: CacheTypeK = "f16",
    cache_type_v: CacheTypeV = "f16",
    *,
    sampling: SamplingParams,
) -> None:
    """Chat, line by line: /help tells the commands, Ctrl-C stops an answer, Ctrl-D leaves."""
    path = given_or_demo_model(model)
    load = load_arguments(
        ctx_size, threads, experts_used, cache_type_k, cache_type_v,
        leave_out=leave_out, force_experts=force_experts, expert_threshold=expert_threshold,
    )  # fmt: skip
    with closing(open_model(path, load)) as opened:
        if opened.chat_template is None:
            raise UsageError("the model has no chat template", file=path, expected="one; `localmoe run` needs none")
        state = Chat(opened, sampling, n_predict, system)
        if sys.stdin.isatty():
            say(f"{path.name}: context {opened.n_ctx}. /help tells the commands, Ctrl-D leaves.")
        for line in _lines():
            if not line.strip():
                continue
            if not line.startswith("/"):
                state.messages.append({"role": "user", "content": line})
                _answer(state)
            else:
                _command(state, line)


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


def _answer(state: Chat) -> None:
    """Generate and keep the answer to the last message; a question that does not fit is taken back."""
    text, steps = "", []
    try:
        with _cancelled_by_ctrl_c() as cancel:
            for step in state.model.chat(
                state.messages, max_tokens=state.max_tokens, cancel=cancel, **sampling_arguments(state.sampling)
            ):
                show_text(step.text)
                text += step.text
                steps.append(step)
    except UsageError as error:
        state.messages.pop()
        say(f"{error}: the message was taken back; /reset starts again")
        return
    show_text("\n")
    state.messages.append({"role": "assistant", "content": text})
    state.counts += count_experts(steps, *state.counts.shape)
    if sys.stdin.isatty() and steps:
        say(f"[{timings_line(state.model.timings, steps[-1].stop_reason)}]")
    if steps and steps[-1].n_past >= NEARLY_FULL * state.model.n_ctx:
        say(f"note: {steps[-1].n_past} of {state.model.n_ctx} tokens of context used; /reset starts again")


def _help(state: Chat, argument: str) -> None:  # noqa: ARG001
    for name, (_, text) in COMMANDS.items():
        say(f"{name:8s} {text}")


def _reset(state: Chat, argument: str) -> None:  # noqa: ARG001
    state.reset()
    say("a new conversation")


def _regenerate(state: Chat, argument: str) -> None:  # noqa: ARG001
    if not state.messages or state.messages[-1]["role"] != "assistant":
        say("there is no answer yet")
        return
    state.messages.pop()
    _answer(state)


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


def _quit(state: Chat, argument: str) -> None:  # noqa: ARG001
    raise typer.Exit


COMMANDS: dict[str, tuple[Callable[[Chat, str], None], str]] = {
    "/help": (_help, "These lines."),
    "/reset": (_reset, "Start a new conversation."),
    "/regen": (_regenerate, "Answer the last message again."),
    "/stats": (_stats, "Which experts the answers used, layer by layer."),
    "/save": (_save, "Save the conversation: /save FILE.json"),
    "/quit": (_quit, "Leave (Ctrl-D does too)."),
}


def _command(state: Chat, line: str) -> None:
    """Obey a line that starts with a slash."""
    name, _, argument = line.strip().partition(" ")
    if name in COMMANDS:
        COMMANDS[name][0](state, argument.strip())
    else:
        say(f"no such command: {name} (/help tells them)")
