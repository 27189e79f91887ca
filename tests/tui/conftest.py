"""What every test of the app shares."""

from __future__ import annotations

import pytest
from textual.pilot import Pilot

from .settling import handled, settled


@pytest.fixture(autouse=True)
def usual_keys(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    """Whoever runs the tests may have keys of their own."""
    monkeypatch.setenv("LOCALMOE_KEYS", str(tmp_path / "no-keys.toml"))


@pytest.fixture
def truecolour(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal of 16 million colours, whatever the tests are run in."""
    monkeypatch.setenv("COLORTERM", "truecolor")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)


@pytest.fixture(autouse=True)
def pauses_that_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Textual's end when the process uses little of a core, which it also does where other programs have all cores."""
    pause, press = Pilot.pause, Pilot.press

    async def pause_until_settled(pilot: Pilot[None], delay: float | None = None) -> None:
        await pause(pilot, delay)
        await settled(pilot)

    async def press_one_by_one(pilot: Pilot[None], *keys: str) -> None:
        for key in keys:
            await press(pilot, key)
            await settled(pilot)

    monkeypatch.setattr(Pilot, "_wait_for_screen", handled)
    monkeypatch.setattr(Pilot, "pause", pause_until_settled)
    monkeypatch.setattr(Pilot, "press", press_one_by_one)
