"""Saving a chat's run, and showing how the load differs from a saved one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from textual.pilot import Pilot
from textual.widgets import Input

from localmoe.errors import UsageError
from localmoe.experts.recording import Recording
from localmoe.experts.trace_file import load_recording, save_recording
from localmoe.tui.app import LocalMoeApp
from localmoe.tui.screens.runs import RunsScreen, runs_folder
from localmoe.tui.widgets.heatmap import Heatmap
from tests.experts.recordings import recording

from .driving import ask, chat, running, screen_text, until
from .fake_model import FakeModel


@pytest.fixture(autouse=True)
def folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LOCALMOE_DATA", str(tmp_path / "data"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def run_of(n_layer: int = 6, n_expert: int = 8, seed: int = 1) -> Recording:
    order = np.random.default_rng(seed).random((20, n_layer, n_expert)).argsort(axis=2)
    return recording(order[:, :, :2], n_expert=n_expert)


def small() -> FakeModel:
    return FakeModel(n_layer=6, n_expert=8)


async def opened(app: LocalMoeApp, pilot: Pilot[None]) -> RunsScreen:
    await pilot.press("f6")
    await until(pilot, lambda: isinstance(app.screen, RunsScreen), "the runs")
    screen = app.screen
    assert isinstance(screen, RunsScreen)
    return screen


@pytest.mark.parametrize("how", ["listed", "typed"])
async def test_a_saved_run_is_chosen_and_the_heatmap_shows_the_difference(how: str, tmp_path: Path) -> None:
    """From the list of this folder, or by its path."""
    run, where = run_of(), Path("yesterday.npz") if how == "listed" else tmp_path / "elsewhere" / "yesterday.npz"
    where.parent.mkdir(exist_ok=True)
    save_recording(run, where)
    async with running(small()) as (app, pilot):
        await ask(app, pilot)
        screen = await opened(app, pilot)
        if how == "listed":
            assert "yesterday.npz" in screen_text(app)
            await pilot.press("down")
        else:
            screen.query_one(Input).value = str(where)
            await pilot.pause()
        await pilot.press("enter")
        await until(pilot, lambda: app.screen is chat(app), "the chat")
        assert "against yesterday" in screen_text(app)
        own, saved = chat(app).experts.stats.layers().share, run.statistics().layers().share
        known = (own > 0) & (saved > 0)
        np.testing.assert_allclose(app.screen.query_one(Heatmap)._ratio[known], (own / np.maximum(saved, 1e-9))[known])


async def test_a_chats_run_is_saved_and_then_there(monkeypatch: pytest.MonkeyPatch) -> None:
    run, since = run_of(seed=2), []

    def record(model: object, first: int) -> Recording:
        since.append(first)
        return run

    monkeypatch.setattr("localmoe.engine.recorder.record_trace", record)
    async with running(small()) as (app, pilot):
        await ask(app, pilot)
        screen = await opened(app, pilot)
        await pilot.press("ctrl+s")
        await until(pilot, lambda: len(screen._listed) == 2, "the new run in the list")
        (path,) = runs_folder().glob("*.npz")
        np.testing.assert_array_equal(load_recording(path).experts, run.experts)
        assert since == [0]
        assert path.name in screen_text(app)
        await pilot.press("down", "enter")
        await until(pilot, lambda: app.screen is chat(app), "the chat")
        assert f"against {path.stem}"[:30] in screen_text(app)


def garbage(path: Path) -> None:
    path.write_bytes(b"PK garbage")


def foreign(path: Path) -> None:
    np.savez(path, a=np.zeros(3))


def other_model(path: Path) -> None:
    save_recording(run_of(n_layer=3), path)


@pytest.mark.parametrize(
    ("make", "said"),
    [(garbage, "no trace of localmoe"), (foreign, "unexpected member"), (other_model, "it is of another model")],
)
async def test_what_cannot_be_compared_is_said_and_the_list_stays(make: Callable[[Path], None], said: str) -> None:
    make(Path("bad.npz"))
    async with running(small()) as (app, pilot):
        await ask(app, pilot)
        await opened(app, pilot)
        await pilot.press("down", "enter")
        await until(pilot, lambda: said in screen_text(app), "the reason")
        assert isinstance(app.screen, RunsScreen)
        await pilot.press("escape")
        await until(pilot, lambda: app.screen is chat(app), "the chat")
        assert chat(app).experts.mode == "moving"


async def test_nothing_to_save_and_no_room_are_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def nothing(model: object, first: int) -> Recording:
        raise UsageError("nothing was recorded: there are no tokens")

    monkeypatch.setattr("localmoe.engine.recorder.record_trace", nothing)
    async with running(small()) as (app, pilot):
        await opened(app, pilot)
        await pilot.press("ctrl+s")
        await until(pilot, lambda: "nothing was recorded" in screen_text(app), "the reason")
        monkeypatch.setattr(app.screen, "_record", run_of)
        (tmp_path / "data").write_text("a file where the folder would be")
        await pilot.press("ctrl+s")
        # a long path may break the line anywhere
        letters = lambda: "".join(filter(str.isalpha, screen_text(app)))  # noqa: E731
        await until(pilot, lambda: "cannotbemadeNotadirectory" in letters(), "the reason")


async def test_names_from_the_disk_are_harmless(monkeypatch: pytest.MonkeyPatch) -> None:
    save_recording(run_of(), Path("a\x1b[2J[red]b.npz"))
    async with running(small(), size=(80, 24)) as (app, pilot):
        await ask(app, pilot)
        await opened(app, pilot)
        assert "\\x1b[2J[red]b.npz" in screen_text(app)
        assert "\x1b" not in screen_text(app)


async def test_a_row_says_what_a_recording_is(tmp_path: Path) -> None:
    """Its tokens, its model where that is another of the same shape, why it cannot be compared; nothing found, too."""
    save_recording(run_of(), Path("a.npz"))
    save_recording(replace(run_of(), model="demo.gguf"), Path("b.npz"))
    other_model(Path("c.npz"))
    garbage(Path("d.npz"))
    async with running(small(), size=(100, 30)) as (app, pilot):
        await ask(app, pilot)
        screen = await opened(app, pilot)
        await until(pilot, lambda: len(screen._facts) == 4, "all headers")
        await pilot.pause()
        said = {row[18:23]: row for line in screen_text(app).splitlines() if ".npz" in (row := line.strip(" │"))}
        assert "20 tokens of m.gguf" in said["a.npz"]
        assert "20 tokens  this folder" in said["b.npz"]
        assert "3 layers of 8 experts: it is of another model" in said["c.npz"]
        assert "no trace of localmoe" in said["d.npz"]
        await pilot.press(*"zzz")
        assert "No recording is called that" in screen_text(app)
