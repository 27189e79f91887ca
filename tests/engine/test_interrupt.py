"""A prompt that is being read ends within a batch, and nothing of that batch counts."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

import localmoe
from localmoe.engine.api import Model
from tests.tiny import write_tiny

IDS = [3 + i * 7 % 200 for i in range(1000)]
OPTIONS = {"max_tokens": 4, "temperature": 0.0, "ignore_eos": True}


class InterruptedIn(threading.Event):
    """Not set when it is looked at before a batch, but the n-th batch is interrupted from then on."""

    def __init__(self, model: Model, batch: int) -> None:
        super().__init__()
        self.model, self.left = model, batch

    def is_set(self) -> bool:
        self.left -= 1
        if self.left == 0:
            self.model.interrupt()
        return False


@pytest.mark.parametrize("n_threads", [1, 2, 3])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("n_expert", [0, 4])
def test_nothing_of_an_interrupted_batch_counts(tmp_path: Path, n_threads: int, batch: int, n_expert: int) -> None:
    path = str(write_tiny(tmp_path / "m.gguf", n_expert=n_expert))
    with localmoe.load(path, n_ctx=1024, n_threads=n_threads) as model:
        wanted = [step.token for step in model.generate(IDS, **OPTIONS)]
    with localmoe.load(path, n_ctx=1024, n_threads=n_threads) as model:
        told: list[int] = []
        cancel = InterruptedIn(model, batch)
        steps = list(model.generate(IDS, cancel=cancel, on_prompt=lambda done, _: told.append(done), **OPTIONS))
        assert [(step.token, step.stop_reason) for step in steps] == [(-1, "cancelled")]
        assert told == [512] * (batch - 1)
        assert model.session().tokens == IDS[: sum(told)]
        assert model.trace.count == (sum(told) if n_expert else 0)
        assert [step.token for step in model.generate(IDS, **OPTIONS)] == wanted
        assert model.timings.n_cached == sum(told)


def test_what_is_not_a_prompt_goes_on(tmp_path: Path) -> None:
    with localmoe.load(str(write_tiny(tmp_path / "m.gguf")), n_ctx=1024) as model:
        model.interrupt()  # nothing runs
        wanted = [step.token for step in model.generate(IDS, **OPTIONS)]
        got = []
        for step in model.generate(IDS, **OPTIONS):
            got.append(step.token)
            model.interrupt()
        assert got == wanted
        model.interrupt()
        assert model.eval(IDS[:20]).logits.shape[0] == 20
        session = model.session()
        session.reset()
        assert session.prefill(IDS, cancel=InterruptedIn(model, 1)) is not None  # none that may be interrupted
        assert session.tokens == IDS
