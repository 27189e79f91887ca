"""How often the app looks and draws."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from localmoe.tui import pace
from localmoe.tui.pace import PART, PICTURES, SLOWEST, Pace


@pytest.fixture
def clock(monkeypatch):
    """Times that the test sets: `now`, and the thread's processor time `used`."""
    times = SimpleNamespace(now=100.0, used=5.0)
    monkeypatch.setattr(pace, "time", SimpleNamespace(monotonic=lambda: times.now, thread_time=lambda: times.used))
    return times


def test_drawing_takes_its_part_of_a_core(clock):
    """A look that cost 0.012 s is followed by the next after 0.2 s."""
    looks = Pace()
    assert looks.look()
    clock.used += 0.012
    clock.now += 0.012 / PART - 0.01
    assert not looks.look()
    clock.now += 0.02
    assert looks.look()


def test_it_looks_in_the_end_whatever_that_costs(clock):
    looks = Pace()
    assert looks.look()
    clock.used += 10
    clock.now += SLOWEST - 0.01
    assert not looks.look()
    clock.now += 0.01
    assert looks.look()


def test_experts_are_drawn_less_often_than_text(clock):
    looks = Pace()
    drawn = []
    for _ in range(21):
        clock.now += 0.15
        assert looks.look()
        drawn.append(looks.picture(only_now_and_then=True))
    assert drawn == [True, False, False] * 7  # 0.45 s apart, the first multiple of 0.15 that PICTURES allows
    assert 0.3 < PICTURES < 0.45
    assert looks.picture(only_now_and_then=False)
