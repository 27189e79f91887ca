"""Two settings of routing on one prompt: what each answers, how far they are apart, and where the load went."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from localmoe.engine import experiments
from localmoe.engine.api import Model
from localmoe.errors import UsageError
from localmoe.experts.difference import Difference, difference
from localmoe.experts.trace import RoutingTrace

OnPart = Callable[[str, float], object]


class Stopped(Exception):
    """The caller asked to stop; the model is as before."""


@dataclass(frozen=True)
class SideBySide:
    """Both replies; costs of A and B on the prompt and A's reply (B's divergence is from A), and their loads.

    `cut`: whether each reply was longer than a comparison lets it be.
    """

    replies: tuple[str, str]
    costs: tuple[experiments.Cost, experiments.Cost]
    found: Difference
    settings: tuple[str, str]
    n_token: int
    cut: tuple[bool, bool]


@contextmanager
def traced_apart(model: Model) -> Iterator[None]:
    """Let what runs meanwhile leave the model's own trace alone; its cache is forgotten afterwards."""
    session, own = model.session(), model.trace
    model.trace = session.trace = RoutingTrace(own.n_layer, own.n_expert, own.capacity)
    try:
        yield
    finally:
        model.trace = session.trace = own
        session.route()
        session.reset()


def side_by_side(
    model: Model,
    prompt: str,
    a: Mapping[str, Any],
    b: Mapping[str, Any],
    *,
    max_tokens: int = 48,
    cancel: threading.Event | None = None,
    on_part: OnPart | None = None,
) -> SideBySide:
    """Answer a prompt greedily with options A and with B of `Model.generate`, then compare on it and A's reply.

    `on_part(what, done)` is told how far it is, 0..1. UsageError for a prompt that does not fit or a model without
    experts; Stopped when `cancel` is set.
    """
    ids = _prompt_ids(model, prompt)
    room = min(max_tokens, model.n_ctx - len(ids) - 1)
    if room < 1:
        raise UsageError("the prompt does not fit in the context", got=f"{len(ids)} tokens")

    def part(what: str, done: float) -> None:
        if cancel is not None and cancel.is_set():
            raise Stopped
        if on_part is not None:
            on_part(what, done)

    with traced_apart(model):
        texts, tokens, cut = [], [], []
        for number, options in enumerate((a, b)):

            def on_token(n: int, number: int = number) -> None:
                part("answering", (number + n / room) / 3)

            text, said, unended = _reply(model, ids, options, room, on_token)
            texts.append(text)
            tokens.append(said)
            cut.append(unended)

        def on_run(done: int, total: int) -> None:
            part("comparing", 2 / 3 + done / total / 3)

        cost_a, cost_b, run_a, run_b = experiments.compare(model, ids + tokens[0], a, b, on_run=on_run)
    return SideBySide(
        (texts[0], texts[1]), (cost_a, cost_b), difference(run_a, run_b), (run_a.settings, run_b.settings), cost_a.n,
        (cut[0], cut[1]),
    )  # fmt: skip


def _prompt_ids(model: Model, prompt: str) -> list[int]:
    if model.chat_template is not None:
        return list(model.chat_template.encode(model.tokenizer, [{"role": "user", "content": prompt}]))
    return model.tokenize(prompt)


def _reply(
    model: Model, ids: Sequence[int], options: Mapping[str, Any], room: int, on_token: Callable[[int], object]
) -> tuple[str, list[int], bool]:
    """A greedy reply, its tokens, and whether it was cut off."""
    on_token(0)
    text, tokens, reason = "", [], None
    for step in model.generate(ids, max_tokens=room, temperature=0.0, **options):
        text += step.text
        if step.token >= 0:
            tokens.append(step.token)
        reason = step.stop_reason
        on_token(len(tokens))
    return text, tokens, reason == "length"
