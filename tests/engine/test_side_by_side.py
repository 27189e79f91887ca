"""Two settings on one prompt: replies, divergence and loads, and a model that is as before."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

import localmoe
from localmoe.engine.experiments import Setting, costs
from localmoe.engine.side_by_side import Stopped, side_by_side
from localmoe.errors import UsageError
from tests.tiny import write_tiny

PROMPT = "the quick brown fox"


@pytest.fixture
def model(tmp_path: Path) -> localmoe.Model:
    return localmoe.load(str(write_tiny(tmp_path / "m.gguf")), n_ctx=64, n_threads=1)


def test_the_replies_and_the_divergence_are_those_of_separate_runs(model: localmoe.Model) -> None:
    one = {"n_expert_used": 1}
    got = side_by_side(model, PROMPT, {}, one, max_tokens=6)
    asked = model.chat_template.encode(model.tokenizer, [{"role": "user", "content": PROMPT}])
    steps = [list(model.generate(asked, max_tokens=6, temperature=0.0, **options)) for options in ({}, one)]
    assert got.cut == tuple(run[-1].stop_reason == "length" for run in steps)
    assert got.replies == tuple("".join(step.text for step in run) for run in steps)
    ids = asked + [step.token for step in steps[0]]
    assert got.costs[1].mean_kl == pytest.approx(costs(model, ids, {"B": Setting(one)})["B"].mean_kl)
    assert got.n_token == len(ids)
    np.testing.assert_allclose(got.found.shares[0], _shares(model, ids))
    assert "top-1" in got.settings[1]


def _shares(model: localmoe.Model, ids: list[int]) -> np.ndarray:
    experts = model.eval(ids).experts
    n_expert = model.config.n_expert
    counts = [np.bincount(experts[:, i].ravel(), minlength=n_expert) for i in range(experts.shape[1])]
    return np.stack([row / row.sum() for row in counts])


def test_the_models_trace_and_routing_are_left_alone(model: localmoe.Model) -> None:
    list(model.generate(PROMPT, max_tokens=3, temperature=0.0))
    trace, count, routing = model.trace, model.trace.count, model.session().routing
    side_by_side(model, PROMPT, {}, {"leave_out": {0: [1]}}, max_tokens=4)
    assert model.trace is trace
    assert model.session().trace is trace
    assert (trace.count, model.session().routing) == (count, routing)


def test_it_stops_between_tokens_and_tells_how_far_it_is(model: localmoe.Model) -> None:
    cancel, told = threading.Event(), []

    def on_part(what: str, part: float) -> None:
        told.append((what, part))
        if len(told) == 3:
            cancel.set()

    trace = model.trace
    with pytest.raises(Stopped):
        side_by_side(model, PROMPT, {}, {}, max_tokens=8, cancel=cancel, on_part=on_part)
    assert len(told) == 3
    assert model.trace is trace
    parts: list[float] = []
    side_by_side(model, PROMPT, {}, {}, max_tokens=4, on_part=lambda _, part: parts.append(part))
    assert parts == sorted(parts)
    assert parts[-1] == pytest.approx(1.0)


def test_a_prompt_that_does_not_fit_is_refused(model: localmoe.Model) -> None:
    with pytest.raises(UsageError, match="does not fit"):
        side_by_side(model, PROMPT * 20, {}, {})
