"""Rules of routing: taken by the user, or kept with a chat and taken up where the model can follow them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from localmoe.errors import UsageError

from ..rules import Rules, in_words, kept_rules
from ..widgets.status import TitleBar
from ..widgets.turns import shown_line

if TYPE_CHECKING:
    from .chat import ChatScreen


def route_as_kept(chat: ChatScreen) -> None:
    """Route as is kept with the chat, and say so; as the app was started where nothing is, or it cannot be."""
    config, kept = chat.model.config, chat.record.routing
    chat.rules = chat.start_rules
    if not kept:
        return
    try:
        chat.rules = kept_rules(config, kept)
    except UsageError as error:
        said = f"not routed as in this chat ({in_words(kept)}): {error}"
        chat.notify(shown_line(said), severity="warning", timeout=10, markup=False)
    else:
        said = f"routing as in this chat: {chat.rules.routing.describe(config.n_expert or 0)}"
        chat.notify(shown_line(said), timeout=6, markup=False)


def route_by_parameters(chat: ChatScreen) -> None:
    """Route through as many experts as the chat's parameters say, where they do or the rules have one number."""
    config, routing = chat.model.config, chat.rules.routing
    given = chat.record.parameters.get("n_expert_used")
    wanted = min(given or (routing.n_used if routing.limits else chat.start_rules.routing.n_used), config.n_expert)
    if routing.n_used != wanted > 0:
        chat.rules = chat.rules.with_used(config, wanted)
        chat.record.route(chat.rules.kept(config))


def take_rules(chat: ChatScreen, rules: Rules) -> None:
    """Route so from the next reply on."""
    chat.rules = rules
    chat.experts.set_used(chat.n_used)
    chat.record.configure(n_expert_used=None if rules.routing.limits else chat.n_used)
    chat.record.route(rules.kept(chat.model.config))
    chat.query_one(TitleBar).show_model(chat.model, chat.n_used)
    chat.status.rules = rules.brief(chat.start_rules)
    if chat.busy:
        chat.notify("from the next reply on", timeout=2)
