"""What else the model could have said: the likeliest tokens wherever one was chosen."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from localmoe.engine.api import Step

N_PROBS = 5
KEPT = 8192
"""Tokens, as many as a trace has at most."""


class Alternatives:
    """The likeliest tokens at the places of the last KEPT that were chosen, by the number of those in the trace.

    One thread keeps, another asks.
    """

    def __init__(self) -> None:
        self._kept: dict[int, tuple[int, tuple[tuple[int, float], ...]]] = {}

    def keep(self, number: int, step: Step) -> None:
        """Keep a step's candidates; its token will be `number` in the trace if it is run."""
        self._kept[number] = step.token, step.probs
        if len(self._kept) > KEPT:
            del self._kept[next(iter(self._kept))]

    def of(self, number: int, token: int) -> tuple[tuple[int, float], ...]:
        """Tokens and probabilities, the likeliest first; () where that token was read or is not known any more."""
        chosen, probs = self._kept.get(number, (-1, ()))
        return probs if chosen == token else ()
