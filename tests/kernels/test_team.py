"""Work taken by the threads of a team: every piece exactly once, however uneven the threads are."""

from __future__ import annotations

import os
import threading

import numpy as np
import pytest

from localmoe.jit import njit
from localmoe.kernels.atomics import atomic_add
from localmoe.kernels.cores import say_who
from localmoe.kernels.simd import ld_i32, st_i32
from localmoe.kernels.team import EQUAL, barrier, share, take
from localmoe.kernels.waits import HAS_FUTEX, PART, SLEEP, allow_cores, sync_ints, yield_address


@njit
def rounds(
    sync: int, counts: int, n: int, unit: int, pieces: int, parts: int, idle: int, thread: int, n_thread: int,
    yield_to: int,
):  # fmt: skip
    """Count every unit taken, in 50 rounds of two queues with a barrier between; thread 0 takes none where `idle`."""
    say_who(sync, thread)
    for turn in range(50):
        for queue in range(2):
            first, last = 0, 0
            if not (idle and thread == 0):
                first, last = take(sync, queue, n, unit, pieces, parts, thread, n_thread)
            while first < last:
                for i in range(first, last):
                    at = counts + 4 * ((turn * 2 + queue) * n + i)
                    st_i32(at, ld_i32(at) + np.int32(1))
                first, last = take(sync, queue, n, unit, pieces, parts, thread, n_thread)
        barrier(sync, thread, n_thread, yield_to)


def run_team(n_thread: int, n: int, unit: int, pieces: int, parts: int, idle: bool, wait: int) -> np.ndarray:
    """How often each of n was taken, (rounds * queues, n)."""
    sync, counts = np.zeros(sync_ints(n_thread), np.int64), np.zeros((100, n), np.int32)
    args = (sync.ctypes.data, counts.ctypes.data, n, unit, pieces, parts, int(idle))
    allow_cores(sync)
    cores = os.sched_getaffinity(0) if HAS_FUTEX else set()
    after, ended = list[set[int]](), threading.Barrier(n_thread)

    def run(thread: int) -> None:
        rounds(*args, thread, n_thread, wait)
        ended.wait()  # who woke a thread on another core gives it the others back a little later
        after.append(os.sched_getaffinity(0) if HAS_FUTEX else set())

    threads = [threading.Thread(target=run, args=(thread,)) for thread in range(n_thread)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert after == [cores] * n_thread
    return counts


@pytest.mark.parametrize("wait", ["yield", *(("sleep", "part") if HAS_FUTEX else ())])
@pytest.mark.parametrize("idle", [False, True])
@pytest.mark.parametrize("parts", [EQUAL, 4, 1])
@pytest.mark.parametrize(
    "sizes", [(2, 100, 16, 4), (3, 7, 1, 5), (2, 33, 32, 8), (4, 3, 1, 1), (1, 50, 8, 3), (2, 400, 1, 50)]
)
def test_every_piece_is_taken_once(sizes: tuple[int, int, int, int], parts: int, idle: bool, wait: str) -> None:
    """Also when one thread takes nothing: the others do its part."""
    if idle and sizes[0] == 1:
        return
    assert (run_team(*sizes, parts, idle, {"yield": yield_address(), "sleep": SLEEP, "part": PART}[wait]) == 1).all()


@njit
def order(sync: int, out: int, n: int, unit: int, pieces: int, parts: int, thread: int, n_thread: int) -> int:
    """The ranges that one thread takes when it is alone, as (first, last) pairs; how many."""
    count = 0
    first, last = take(sync, 0, n, unit, pieces, parts, thread, n_thread)
    while first < last:
        st_i32(out + 8 * count, np.int32(first))
        st_i32(out + 8 * count + 4, np.int32(last))
        count += 1
        first, last = take(sync, 0, n, unit, pieces, parts, thread, n_thread)
    return count


def test_a_thread_takes_its_own_range_first_and_front_to_back() -> None:
    sync, out = np.zeros(sync_ints(2), np.int64), np.zeros((16, 2), np.int32)
    count = order(sync.ctypes.data, out.ctypes.data, 100, 8, 3, EQUAL, 1, 2)
    own = share(100, 8, 1, 2)
    assert own == (48, 100)
    assert out[:count].tolist() == [[48, 72], [72, 96], [96, 100], [0, 16], [16, 32], [32, 48]]


def test_pieces_get_smaller_towards_the_end() -> None:
    sync, out = np.zeros(sync_ints(2), np.int64), np.zeros((64, 2), np.int32)
    count = order(sync.ctypes.data, out.ctypes.data, 96, 1, 16, 4, 0, 2)
    sizes = [last - first for first, last in out[:count].tolist()]
    assert sizes == [12, 9, 6, 5, 4, 3, 3, 3, 3] * 2  # the own range, then the other's


def test_additions_by_several_threads_all_count() -> None:
    word = np.zeros(1, np.int64)
    threads = [threading.Thread(target=lambda: [atomic(word.ctypes.data) for _ in range(2000)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert word[0] == 8000


@njit
def atomic(address: int) -> int:
    return atomic_add(address, 1)
