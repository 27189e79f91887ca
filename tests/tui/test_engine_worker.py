"""When a reply begins: once its question is on the screen, soon in any case, and never after it was stopped."""

from __future__ import annotations

import os
import queue
import sys
import threading
import time
from typing import Any

import pytest

from localmoe.tui import engine_worker
from localmoe.tui.engine_worker import EngineWorker, Request
from localmoe.tui.messages import ReplyDone

from .fake_model import FakeModel
from .settling import DEADLINE

REQUEST = Request([{"role": "user", "content": "hi"}], None, {})


def ended(news: queue.Queue[Any]) -> ReplyDone:
    while not isinstance(message := news.get(timeout=DEADLINE), ReplyDone):
        pass
    return message


@pytest.mark.parametrize("said", [True, False])
def test_a_reply_begins_when_its_question_is_drawn_or_soon(monkeypatch, said):
    monkeypatch.setattr(engine_worker, "DRAWN", 60.0 if said else 0.05)
    model, news = FakeModel(answer=["a"] * 3), queue.Queue()
    worker = EngineWorker(lambda _: model, news.put)
    worker.start()
    for n in (1, 2):  # the second one waits too
        worker.generate(REQUEST)
        if said:
            time.sleep(0.05)
            assert len(model.asked) == n - 1
            worker.drawn()
        assert ended(news).stop_reason != "cancelled"
        assert len(model.asked) == n
    worker.close()


def test_a_stop_before_anything_is_drawn_counts(monkeypatch):
    monkeypatch.setattr(engine_worker, "DRAWN", 60.0)
    news: queue.Queue[Any] = queue.Queue()
    worker = EngineWorker(lambda _: FakeModel(answer=["a"] * 3, prompt_delay=0.01), news.put)
    worker.start()
    worker.generate(REQUEST)
    worker.stop()
    assert ended(news).stop_reason == "cancelled"
    worker.close()


def test_a_stop_reaches_into_a_batch_of_the_prompt():
    news: queue.Queue[Any] = queue.Queue()
    model = FakeModel()
    model.gate = threading.Semaphore(1)
    worker = EngineWorker(lambda _: model, news.put)
    worker.start()
    worker.generate(REQUEST)
    worker.drawn()
    while not model.asked:
        time.sleep(0.001)
    assert not model.interrupted
    worker.stop()
    assert model.interrupted
    model.gate.release()
    assert ended(news).stop_reason == "cancelled"
    worker.close()


@pytest.mark.skipif(
    sys.platform != "linux" or os.sched_getscheduler(0) != os.SCHED_OTHER, reason="Linux's scheduling policies"
)
def test_the_engines_thread_gives_way_and_others_are_as_they_were():
    seen: queue.Queue[int] = queue.Queue()

    def load(_: Any) -> FakeModel:
        seen.put(os.sched_getscheduler(0))
        return FakeModel()

    worker = EngineWorker(load, lambda _: None)
    worker.start()
    assert seen.get(timeout=DEADLINE) == os.SCHED_BATCH
    assert os.sched_getscheduler(0) == os.SCHED_OTHER
    worker.close()
