"""What the chat screen opens about experts: the routing panel, a comparison, the tokens it has routed."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from ..engine_worker import Comparison
from ..rules import Rules
from ..widgets.turns import shown_line
from .compare import CompareScreen
from .kept_rules import take_rules
from .rules import RulesScreen
from .runs import RunsScreen
from .tokens import Routed

if TYPE_CHECKING:
    from localmoe.experts.recording import Recording

    from .chat import ChatScreen


def skipped_share(chat: ChatScreen) -> float | None:
    """The share of the last reply's choices that no expert ran for; None where nothing was routed."""
    trace, routing = chat.model.trace, chat.rules.routing
    if trace.count <= chat.follow.reply_from or not chat.model.config.n_expert:
        return None
    experts = trace.read(chat.follow.reply_from, router=False).experts
    asked = sum(routing.asked(experts.shape[1]))
    return max(0.0, 1.0 - float((experts >= 0).sum()) / (len(experts) * asked)) if len(experts) else None


def skipped_text(chat: ChatScreen) -> str:
    """` (20% skipped)` where a threshold holds."""
    share = skipped_share(chat) if chat.rules.routing.threshold else None
    return "" if share is None else f" ({share:.0%} skipped)"


def routed_since(chat: ChatScreen, first: int) -> Routed | None:
    """The chat's tokens; None, and a note, where none was routed yet."""
    if not chat.model.config.n_expert or chat.model.trace.count <= first:
        chat.notify("no token has been routed yet", timeout=2)
        return None
    return Routed(chat.model, first, chat.worker.alternatives)


def open_rules(chat: ChatScreen) -> None:
    """Let the user change how tokens are routed, or compare that with how the app was started."""
    share = skipped_share(chat)
    said = "nothing was routed yet" if share is None else f"the last reply skipped {share:.1%} of its experts' work"
    asked = [turn.text for turn in chat.conversation.turns if turn.role == "user"]

    def chosen(answer: Rules | tuple[Rules, str] | None) -> None:
        if isinstance(answer, Rules):
            take_rules(chat, answer)
        elif answer is not None:
            _compare(chat, *answer)

    screen = RulesScreen(chat.model.config, chat.rules, chat.start_rules, said, shown_line(asked[-1]) if asked else "")
    chat.app.push_screen(screen, chosen)


def _compare(chat: ChatScreen, rules: Rules, prompt: str) -> None:
    if chat.busy:
        chat.notify("The model is still writing: Esc stops it.", timeout=2)
        return
    job = Comparison(prompt, chat.start_rules.options, rules.options)
    chat.app.push_screen(CompareScreen(chat.worker, job, max(chat.n_used, rules.routing.n_used)))


def compare_saved(chat: ChatScreen) -> None:
    """Take the saved run that the app was started with, if there is one for a model of this shape."""
    saved = chat.options.saved
    if saved is None:
        return
    if wrong := _other_model(chat, saved):
        chat.notify(wrong, severity="warning", markup=False)
        return
    chat.experts.compare_with(saved.statistics().layers().share)


def _other_model(chat: ChatScreen, run: Recording) -> str:
    """Why a run cannot be compared with this model's, or ""."""
    config = chat.model.config
    if (run.n_layer, run.n_expert) == (config.n_layer, config.n_expert):
        return ""
    return f"this run has {run.n_layer} layers of {run.n_expert} experts: it is of another model"


def compare_from_here(chat: ChatScreen) -> None:
    """Ask what to show the difference from: what was until now, or a saved run."""
    if not chat.model.config.n_expert:
        return
    from localmoe.engine.recorder import record_trace

    def chosen(answer: tuple[str, Recording | None] | None) -> None:
        if answer is None:
            return
        name, run = answer
        if run is not None:
            chat.experts.compare_with(run.statistics().layers().share, name)
        elif chat.experts.stats.n_tokens:
            chat.experts.compare_from_now()
        else:
            chat.notify("no token has been routed yet", timeout=2)
            return
        chat.experts.set_mode("difference")

    fits, record = partial(_other_model, chat), partial(record_trace, chat.model, chat.follow.chat_from)
    chat.app.push_screen(RunsScreen(fits, record, chat.model.gguf.path.stem), chosen)
