"""How often the app looks and draws."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest

from localmoe.tui import pace
from localmoe.tui.pace import EVERY, FAST, FIRST, PART, PART_OF_FAST, PICTURES, SLOWEST, Pace


@pytest.fixture
def clock(monkeypatch):
    """Times that the test sets: `now`, and the thread's processor time `used`."""
    times = SimpleNamespace(now=100.0, used=5.0)
    monkeypatch.setattr(pace, "time", SimpleNamespace(monotonic=lambda: times.now, thread_time=lambda: times.used))
    return times


def test_drawing_takes_its_part_of_a_core(clock):
    """Looks that cost 0.012 s each come at last at even distances, of which 0.012 s is that part."""
    looks, times = Pace(), []
    for _ in range(500):
        clock.now += EVERY
        if looks.look():
            clock.used += 0.012
            times.append(clock.now)
    gaps = [b - a for a, b in itertools.pairwise(times)][-10:]
    assert all(gap == pytest.approx(0.012 / PART, abs=0.501 * EVERY) for gap in gaps)


def test_dear_and_cheap_looks_are_spread_evenly(clock):
    """One in four costs eight times as much: no gap is twice another, and the part of a core holds."""
    looks, times, began = Pace(), [], clock.used
    for _ in range(1000):
        clock.now += EVERY
        if looks.look():
            clock.used += 0.032 if len(times) % 4 == 0 else 0.004
            times.append(clock.now)
    gaps = [b - a for a, b in itertools.pairwise(times)][20:]
    assert max(gaps) <= min(gaps) + 1.01 * EVERY
    assert (clock.used - began) / (clock.now - 100) == pytest.approx(PART, rel=0.15)


def test_cheap_looks_come_ten_times_a_second(clock):
    """Also where ticks come a millisecond early or late."""
    looks, times = Pace(), []
    for number in range(100):
        clock.now = 100 + EVERY * number + 0.001 * (number % 3 - 1)
        if looks.look():
            clock.used += 0.002
            times.append(clock.now)
    assert all(b - a == pytest.approx(EVERY, abs=0.003) for a, b in itertools.pairwise(times[10:]))


def test_a_fast_reply_is_drawn_less_often(clock):
    """The engine that writes it needs the processor more than whoever cannot read along."""
    looks, times = Pace(), []
    for _ in range(500):
        clock.now += EVERY
        if looks.look(FAST + 1):
            clock.used += 0.007
            times.append(clock.now)
    gaps = [b - a for a, b in itertools.pairwise(times)][-10:]
    assert all(gap == pytest.approx(0.007 / PART_OF_FAST, abs=0.501 * EVERY) for gap in gaps)


def test_it_looks_in_the_end_whatever_that_costs(clock):
    looks = Pace()
    assert looks.look()
    for _ in range(9):
        clock.used += 10
        clock.now += SLOWEST
        assert looks.look()
    clock.now += SLOWEST - EVERY
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
        clock.now += 0.75 * PICTURES
        drawn.append(looks.picture())
    assert drawn == [True, False] * 10
