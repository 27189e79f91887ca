"""Rules of routing that are kept with a chat, taken up where the model can follow them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from localmoe.errors import UsageError

from ..rules import in_words, kept_rules
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
