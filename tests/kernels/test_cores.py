"""The threads of a team moved between cores: only those that wait, and only to cores that they may use."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from localmoe.jit import njit
from localmoe.kernels.cores import current_core, fetch, part, put_core, send, set_cores, time_on_cores
from localmoe.kernels.waits import (
    ALLOWED,
    ARRIVED,
    BACK,
    CORE,
    HAS_FUTEX,
    LAST_CORE,
    NUMBER,
    ONE_CORE,
    TAKEN,
    TAKEN_BYTES,
    allow_cores,
    sync_ints,
)

pytestmark = pytest.mark.skipif(not HAS_FUTEX, reason="no affinities here")
several = pytest.mark.skipif(HAS_FUTEX and len(os.sched_getaffinity(0)) < 2, reason="one core")
HELD_UP = (TAKEN + TAKEN_BYTES) // 8  # the words of a team's second thread


@njit
def part_from(sync: int) -> int:
    """Part, and the core afterwards."""
    part(sync)
    return current_core()


@njit
def where() -> int:
    return current_core()


@njit
def fetch_to(sync: int, n_thread: int) -> int:
    """Fetch as the first thread, and the core on which that was."""
    fetch(sync, 0, n_thread)
    return current_core()


@njit
def send_from(sync: int, n_thread: int) -> int:
    return send(sync, 0, n_thread)


@njit
def let_use(number: int, mask: int) -> None:
    set_cores(number, mask)


@njit
def ran(number: int) -> int:
    return time_on_cores(number)


@njit
def one_core(at: int, core: int) -> None:
    put_core(at, core)


def new_sync() -> np.ndarray:
    sync = np.zeros(sync_ints(2), np.int64)
    allow_cores(sync)
    return sync


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    """Compile all, which takes long enough for a thread to be moved."""
    sync = np.zeros(sync_ints(2), np.int64)
    part_from(sync.ctypes.data)
    fetch_to(sync.ctypes.data, 2)
    send_from(sync.ctypes.data, 2)
    where()


@contextmanager
def pinned(number: int, core: int) -> Iterator[None]:
    allowed = os.sched_getaffinity(number)
    os.sched_setaffinity(number, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(number, allowed)


@contextmanager
def second(sync: np.ndarray, *, busy: bool) -> Iterator[int]:
    """The number of a thread that is the second of a team, has not arrived, and runs all the time or sleeps."""
    done, number = threading.Event(), list[int]()

    def live() -> None:
        number.append(threading.get_native_id())
        while busy and not done.is_set():
            hashlib.sha256(bytes(1 << 20))  # without the interpreter
        done.wait()

    thread = threading.Thread(target=live)
    thread.start()
    while not number:
        time.sleep(0.001)
    sync[HELD_UP + NUMBER // 8], sync[HELD_UP + ARRIVED // 8] = number[0], -1
    try:
        yield number[0]
    finally:
        done.set()
        thread.join()


def test_who_shares_a_core_parts_for_another_that_it_may_use() -> None:
    allowed, sync, moved = os.sched_getaffinity(0), new_sync(), 0
    for _ in range(20):
        here = where()
        sync[LAST_CORE // 8] = here
        moved += part_from(sync.ctypes.data) != here
        assert os.sched_getaffinity(0) == allowed
    assert (moved >= 15) if len(allowed) > 1 else not moved  # the system may move it back at once


def test_a_thread_of_one_core_stays_there() -> None:
    core = min(os.sched_getaffinity(0))
    with pinned(0, core):
        sync = new_sync()
        sync[LAST_CORE // 8] = core
        assert part_from(sync.ctypes.data) == core
        assert os.sched_getaffinity(0) == {core}


def test_the_time_of_a_thread_grows_while_it_runs_and_not_while_it_sleeps() -> None:
    before = ran(threading.get_native_id())
    assert before > 0
    assert ran(threading.get_native_id()) > before
    with second(new_sync(), busy=False) as number:
        end = time.monotonic() + 60
        while True:  # it may have to wait for a core before it comes to its sleep
            before = ran(number)
            time.sleep(0.02)
            if ran(number) == before:
                break
            assert time.monotonic() < end, "its time grows all the time"
    assert ran(1 + (1 << 22)) == -1  # more than a system counts to


@several
def test_a_thread_that_waits_for_a_core_gets_that_of_the_one_that_waits_for_it() -> None:
    """It is held up by another one of this process on a core where both must run; nothing but the core is changed."""
    allowed, sync = os.sched_getaffinity(0), new_sync()
    here, there = sorted(allowed)[:2]
    with second(new_sync(), busy=True) as other, second(sync, busy=True) as number:
        sync[HELD_UP + CORE // 8] = there
        with pinned(other, there), pinned(0, here):
            for _ in range(2000):
                os.sched_setaffinity(number, {there})
                fetch_to(sync.ctypes.data, 2)
                if sync[(TAKEN + BACK) // 8] >= 0:
                    break
                time.sleep(0.001)
            assert sync[(TAKEN + BACK) // 8] == there
            assert os.sched_getaffinity(number) == allowed


def test_nobody_is_fetched_who_has_arrived() -> None:
    sync = new_sync()
    with second(sync, busy=False) as number, pinned(number, min(os.sched_getaffinity(0))):
        sync[HELD_UP + ARRIVED // 8] = 0  # as the first has
        fetch_to(sync.ctypes.data, 2)
        assert sync[(TAKEN + BACK) // 8] == -1
        assert os.sched_getaffinity(number) == {min(os.sched_getaffinity(0))}


@several
def test_who_sleeps_on_the_core_of_the_last_one_wakes_on_another() -> None:
    allowed, sync = os.sched_getaffinity(0), new_sync()
    here = min(allowed)
    with second(sync, busy=False) as number, pinned(0, here):
        for back in (-1, max(allowed)):
            sync[HELD_UP + CORE // 8], sync[HELD_UP + BACK // 8] = here, back
            assert send_from(sync.ctypes.data, 2) == number
            assert os.sched_getaffinity(number) == (allowed - {here} if back < 0 else {back})
            let_use(number, sync.ctypes.data + ALLOWED)
            assert os.sched_getaffinity(number) == allowed
        sync[HELD_UP + CORE // 8] = max(allowed)
        assert send_from(sync.ctypes.data, 2) == 0


def test_a_team_of_one_core_stays_there() -> None:
    core = min(os.sched_getaffinity(0))
    with pinned(0, core):
        sync = new_sync()
        with second(sync, busy=False) as number:
            sync[HELD_UP + CORE // 8], sync[HELD_UP + BACK // 8] = core, -1
            fetch_to(sync.ctypes.data, 2)
            assert send_from(sync.ctypes.data, 2) == 0
            assert os.sched_getaffinity(number) == {core}


def test_without_a_set_of_cores_nobody_is_moved() -> None:
    """A machine of more cores than a set holds."""
    sync, allowed = np.zeros(sync_ints(2), np.int64), os.sched_getaffinity(0)
    with second(sync, busy=False) as number:
        sync[HELD_UP + CORE // 8] = where()
        fetch_to(sync.ctypes.data, 2)
        send_from(sync.ctypes.data, 2)
        assert os.sched_getaffinity(number) == allowed


@pytest.mark.parametrize("core", [0, 63, 64, 1023])
def test_a_set_of_one_core(core: int) -> None:
    sync = np.full(sync_ints(1), -1, np.int64)
    one_core(sync.ctypes.data + TAKEN + ONE_CORE, core)
    words = sync[(TAKEN + ONE_CORE) // 8 :][:16].view(np.uint8)
    assert np.flatnonzero(np.unpackbits(words, bitorder="little")).tolist() == [core]
