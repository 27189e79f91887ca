"""How often the app looks and draws."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest

from localmoe.tui import pace
from localmoe.tui.pace import FIRST, PART, SLOWEST, Pace


@pytest.fixture
def clock(monkeypatch):
    """Times that the test sets: `now`, and the thread's processor time `used`."""
    times = SimpleNamespace(now=100.0, used=5.0)
    monkeypatch.setattr(pace, "time", SimpleNamespace(monotonic=lambda: times.now, thread_time=lambda: times.used))
    return times


def test_drawing_takes_its_part_of_a_core(clock):
    """Looks that cost 0.012 s each come at last every 0.2 s, at even distances."""
    looks, times = Pace(), []
    for _ in range(2000):
        clock.now += 0.005
        if looks.look():
            clock.used += 0.012
            times.append(clock.now)
    gaps = [b - a for a, b in itertools.pairwise(times)][-10:]
    assert all(gap == pytest.approx(0.012 / PART, abs=0.006) for gap in gaps)


def test_dear_and_cheap_looks_are_spread_evenly(clock):
    """One in four costs eight times as much: no gap is twice another, and the part of a core holds."""
    looks, times, began = Pace(), [], clock.used
    for _ in range(8000):
        clock.now += 0.005
        if looks.look():
            clock.used += 0.016 if len(times) % 4 == 0 else 0.002
            times.append(clock.now)
    gaps = [b - a for a, b in itertools.pairwise(times)][20:]
    assert max(gaps) < 2 * min(gaps)
    assert (clock.used - began) / 40 == pytest.approx(PART, rel=0.15)


def test_it_looks_in_the_end_whatever_that_costs(clock):
    looks = Pace()
    assert looks.look()
    for _ in range(9):
        clock.used += 10
        clock.now += SLOWEST
        assert looks.look()
    clock.now += SLOWEST - 0.01
    assert not looks.look()


def test_a_pause_says_nothing_about_what_a_look_costs(clock):
    """Typing for a minute takes time of the same thread."""
    looks = Pace()
    assert looks.look()
    clock.now, clock.used = clock.now + 60, clock.used + 6
    assert looks.look()
    assert looks.distance == pytest.approx(FIRST / PART)


def test_experts_are_drawn_less_often_than_text(clock):
    looks, drawn = Pace(), []
    for _ in range(20):
        clock.now += 0.25
        drawn.append(looks.picture())
    assert drawn == [True, False] * 10  # 0.5 s apart, the first multiple of 0.25 that PICTURES allows
