"""A team's threads as batch threads while they run, and as they were afterwards."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

import pytest

import localmoe
from localmoe.scheduling import giving_way
from tests import tiny

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux's scheduling policies")


def in_a_thread(policy: int) -> list[int]:
    """Policies before, within and after `giving_way` in a thread that has this one, and after an error within."""
    seen = []

    def work() -> None:
        os.sched_setscheduler(0, policy, os.sched_param(0))
        seen.append(os.sched_getscheduler(0))
        with giving_way():
            seen.append(os.sched_getscheduler(0))
        seen.append(os.sched_getscheduler(0))
        with pytest.raises(RuntimeError), giving_way():
            raise RuntimeError
        seen.append(os.sched_getscheduler(0))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return seen


def test_an_ordinary_thread_gives_way_and_is_ordinary_again() -> None:
    assert in_a_thread(os.SCHED_OTHER) == [os.SCHED_OTHER, os.SCHED_BATCH, os.SCHED_OTHER, os.SCHED_OTHER]


def test_a_thread_that_gives_way_further_stays_so() -> None:
    assert in_a_thread(os.SCHED_IDLE) == [os.SCHED_IDLE] * 4


ordinary = pytest.mark.skipif(
    sys.platform == "linux" and os.sched_getscheduler(0) != os.SCHED_OTHER, reason="started as another kind of thread"
)


@ordinary
def test_threads_of_a_model_give_way_and_its_caller_does_during_a_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.write_tiny(tmp_path / "m.gguf")
    before = {int(number) for number in os.listdir("/proc/self/task")}
    set_to, me, set_scheduler = [], threading.get_native_id(), os.sched_setscheduler

    def watched(number: int, policy: int, param: os.sched_param) -> None:
        if threading.get_native_id() == me:
            set_to.append(policy)
        set_scheduler(number, policy, param)

    with localmoe.load(tmp_path / "m.gguf", n_ctx=64, n_threads=2) as model:
        session = model.session()
        session.prefill([1, 2, 3])
        ours = {thread.native_id for thread in threading.enumerate() if thread.name == "localmoe-1"}
        workers = {number for number in ours if number is not None} - before
        assert workers
        assert {os.sched_getscheduler(number) for number in workers} == {os.SCHED_BATCH}
        assert os.sched_getscheduler(0) == os.SCHED_OTHER
        monkeypatch.setattr(os, "sched_setscheduler", watched)
        session.decode(5)
    assert set_to == [os.SCHED_BATCH, os.SCHED_OTHER]
