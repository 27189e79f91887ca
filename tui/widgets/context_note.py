"""The line above the input that says what is about to happen: a full context, an edit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textual.widgets import Static

from ..context import warning
from ..talk import Talk

if TYPE_CHECKING:
    from localmoe.engine.api import Model

SMALL = 60
"""Columns below which only what is so is said, not what follows: a line or two of few."""
MEASURED = 20_000
"""Bytes of a draft up to which its tokens are counted, not guessed."""
EDITING = {
    "user": "You edit an earlier turn: Enter asks it anew beside the old one, which stays; Esc leaves it as it was.",
    "assistant": "You edit a reply: Enter puts your version beside the old one, which stays; Esc leaves it as it was.",
}


class ContextNote(Static):
    """Hidden while there is nothing to say."""

    def tell(self, talk: Talk, model: Model, used: int, draft: str) -> None:
        """Say that a turn is edited, or that the context gets full, before anything is cut."""
        # A token is a byte at least: short texts need no tokenizer. Of nothing, some models make one.
        n_bytes = len(draft.encode("utf-8", "replace"))
        exact = model.n_ctx - used <= n_bytes <= MEASURED
        counted = len(model.tokenize(draft)) if exact and draft else n_bytes // 4
        if talk.editing is not None:
            said = EDITING[talk.editing.role]
        else:
            said = warning(used, model.n_ctx, talk.overflow, counted, guessed=n_bytes > MEASURED)
        if self.app.size.width < SMALL:
            said = said.partition(". ")[0].removesuffix(".")
        if said != self.content:
            self.display = bool(said)
            self.update(said)
