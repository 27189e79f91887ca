"""What an empty chat says to someone who has never seen one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from localmoe.engine.api import Model

PIECE, MOST = 4, 256
"""Where a model completes text, a reply's part of the context, and its most tokens: few end by themselves."""
_CHAT = "Write below, Enter sends."
_TEXT = "This model completes text: it goes on with what you write. Enter sends, Enter alone lets it go on."
_EXPERTS = (
    "Beside the chat you see which experts each layer uses, while it writes. F2 changes what the heatmap shows, F7 "
    "shows where each token went, F8 changes the routing, F1 explains every term."
)
_DENSE = "It has no experts: every token runs through all of its weights."


def text_parameters(n_ctx: int) -> dict[str, Any]:
    """With what a new chat begins where the model completes text, so that it can always go on."""
    return {"overflow": "forget", "max_tokens": max(1, min(MOST, n_ctx // PIECE))}


def welcome(model: Model, parameters: Mapping[str, Any], beginnings: Sequence[str] = ()) -> str:
    """How to begin, what comes of it, and what there is to see; `beginnings` are texts that the model knows."""
    parts = [_CHAT if model.chat_template is not None else _TEXT]
    if beginnings:
        parts.append("Try: " + "  ·  ".join(beginnings))
    if model.chat_template is None and parameters.get("overflow") == "forget" and "max_tokens" in parameters:
        parts.append(
            f"It looks back on {model.n_ctx} tokens and writes {parameters['max_tokens']} at a time; what is older is "
            "left out of what it reads (F9 changes both)."
        )
    parts.append(_EXPERTS if model.config.n_expert else _DENSE)
    return "\n\n".join(parts)
