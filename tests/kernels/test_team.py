"""Work taken by the threads of a team: every piece exactly once, however uneven the threads are."""

from __future__ import annotations

import os
import threading

import numpy as np
import pytest

from localmoe.jit import njit
from localmoe.kernels.simd import ld_i32, st_i32
from localmoe.kernels.team import EQUAL, atomic_add, barrier, current_core, part, share, take
from localmoe.kernels.waits import HAS_FUTEX, LAST_CORE, PART, SLEEP, allow_cores, sync_ints, yield_address


@njit
def rounds(
    sync: int, counts: int, n: int, unit: int, pieces: int, parts: int, idle: int, thread: int, n_thread: int,
    yield_to: int,
):  # fmt: skip
    """Count every unit taken, in 50 rounds of two queues with a barrier between; thread 0 takes none where `idle`."""
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
        barrier(sync, n_thread, yield_to)


def run_team(n_thread: int, n: int, unit: int, pieces: int, parts: int, idle: bool, wait: int) -> np.ndarray:
    """How often each of n was taken, (rounds * queues, n)."""
    sync, counts = np.zeros(sync_ints(n_thread), np.int64), np.zeros((100, n), np.int32)
    args = (sync.ctypes.data, counts.ctypes.data, n, unit, pieces, parts, int(idle))
    allow_cores(sync)
    threads = [threading.Thread(target=rounds, args=(*args, thread, n_thread, wait)) for thread in range(n_thread)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
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


@njit
def where() -> int:
    return current_core()


@njit
def part_from(sync: int) -> int:
    """Part, and the core afterwards."""
    part(sync)
    return current_core()


@pytest.mark.skipif(not HAS_FUTEX, reason="no affinities here")
def test_who_shares_a_core_parts_for_another_that_it_may_use() -> None:
    allowed = os.sched_getaffinity(0)
    sync = np.zeros(sync_ints(2), np.int64)
    allow_cores(sync)
    part_from(sync.ctypes.data)
    where()  # both are compiled now, which takes long enough to be moved
    for _ in range(20):
        here = where()
        sync[LAST_CORE // 8] = here
        assert (part_from(sync.ctypes.data) != here) == (len(allowed) > 1)
        assert os.sched_getaffinity(0) == allowed


@pytest.mark.skipif(not HAS_FUTEX, reason="no affinities here")
def test_a_thread_of_one_core_stays_there() -> None:
    allowed = os.sched_getaffinity(0)
    core = min(allowed)
    try:
        os.sched_setaffinity(0, {core})
        sync = np.zeros(sync_ints(2), np.int64)
        allow_cores(sync)
        sync[LAST_CORE // 8] = core
        assert part_from(sync.ctypes.data) == core
        assert os.sched_getaffinity(0) == {core}
    finally:
        os.sched_setaffinity(0, allowed)
