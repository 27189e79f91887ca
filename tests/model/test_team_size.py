"""Decode with one thread fewer while another program holds one up, and the same tokens whoever takes part."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

import localmoe
from localmoe.model.team_size import FIRST_PROBE, LAST_PROBE, SUSPECT, TeamSize, move_to_another_core
from tests.tiny import write_tiny


def simulate(times: dict[int, float], held_up: set[int], n_step: int, team: TeamSize) -> list[int]:
    """The threads of each of `n_step` steps when a step of n takes times[n], with long waits in teams of `held_up`."""
    chosen = []
    for _ in range(n_step):
        n = team.choose()
        chosen.append(n)
        team.observe(n, times[n], times[n], 3 if n in held_up else 0)
    return chosen


def test_an_idle_machine_keeps_all_threads() -> None:
    assert set(simulate({4: 1.0, 3: 1.3}, set(), 200, TeamSize(4))) == {4}


def test_a_single_thread_stays_one() -> None:
    assert set(simulate({1: 1.0}, {1}, 50, TeamSize(1))) == {1}


def test_one_thread_rests_while_another_program_holds_it_up_and_comes_back_after() -> None:
    team = TeamSize(2)
    busy = simulate({2: 2.0, 1: 1.4}, {2}, 100, team)
    assert busy[:SUSPECT] == [2] * SUSPECT  # one step alone may be chance
    assert busy[SUSPECT : SUSPECT + FIRST_PROBE + 1] == [1] * (FIRST_PROBE + 1)
    assert busy.count(2) <= SUSPECT + 5  # tried after 4, 8, 16, 32, 64
    idle = simulate({2: 1.0, 1: 1.4}, set(), LAST_PROBE + 20, team)
    assert set(idle[LAST_PROBE + 1 :]) == {2}


def test_a_leader_that_shares_its_core_moves_once_and_is_timed_afterwards() -> None:
    moves: list[int] = []
    team = TeamSize(2, lambda: moves.append(1))
    for _ in range(SUSPECT):
        team.observe(team.choose(), 2.0, 1.0, 3)
    assert team.choose() == 1
    team.observe(1, 2.8, 1.4, 0)  # shared: says nothing of what one thread can do
    assert moves == [1]
    assert team.choose() == 1
    team.observe(1, 1.4, 1.4, 0)
    assert team.choose() == 1
    team.observe(1, 2.8, 1.4, 0)  # again, so soon: other programs are on all cores
    assert moves == [1]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinities here")
def test_moving_leaves_a_thread_free_to_go_anywhere() -> None:
    allowed = os.sched_getaffinity(0)
    move_to_another_core()
    assert os.sched_getaffinity(0) == allowed


def test_no_thread_rests_where_that_is_slower() -> None:
    chosen = simulate({8: 1.0, 7: 1.1}, {8}, 2000, TeamSize(8))
    assert 1 <= chosen.count(7) <= 20  # tried, and tried again later and later


@pytest.mark.parametrize("fields", [{}, {"n_head": 6, "n_head_kv": 1, "n_embd": 96}])
def test_tokens_and_routing_are_the_same_whatever_the_team(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fields: dict[str, int]
) -> None:
    """Another number of threads in every step, some left out of one order and wanted in the next."""
    path = str(write_tiny(tmp_path / "m.gguf", **fields))
    with localmoe.load(path, n_ctx=128, n_threads=1) as model:
        wanted = list(model.generate([5, 6, 7], max_tokens=100, temperature=0.0, ignore_eos=True))
    sizes = np.random.default_rng(0)
    monkeypatch.setattr(TeamSize, "choose", lambda self: int(sizes.integers(1, 5)))
    monkeypatch.setattr(TeamSize, "observe", lambda self, *told: None)
    with localmoe.load(path, n_ctx=128, n_threads=4) as model:
        got = list(model.generate([5, 6, 7], max_tokens=100, temperature=0.0, ignore_eos=True))
    assert [step.token for step in got] == [step.token for step in wanted]
    for ours, theirs in zip(got, wanted, strict=True):
        np.testing.assert_array_equal(ours.experts, theirs.experts)
        np.testing.assert_array_equal(ours.weights, theirs.weights)


def test_a_step_says_how_often_its_threads_waited_for_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More threads than cores: some lose theirs, and the team hears of it."""
    n_thread = 2 * (os.cpu_count() or 1) + 4
    told: list[tuple[int, float, float, int]] = []
    monkeypatch.setattr(TeamSize, "observe", lambda self, *values: told.append(values))
    with localmoe.load(str(write_tiny(tmp_path / "m.gguf")), n_ctx=128, n_threads=n_thread) as model:
        list(model.generate([5, 6, 7], max_tokens=100, temperature=0.0, ignore_eos=True))
    assert len(told) == 99
    assert {n for n, _, _, _ in told} == {n_thread}
    assert all(seconds > 0 for _, seconds, _, _ in told)
    assert sum(waits for _, _, _, waits in told) > 0
