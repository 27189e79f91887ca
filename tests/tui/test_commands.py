"""The command palette: what it lists, in which order, and the picture it saves."""

from __future__ import annotations

from pathlib import Path

from textual.command import CommandPalette

from localmoe.tui.app import LocalMoeApp
from localmoe.tui.commands import Commands
from localmoe.tui.screens.help import HelpScreen

from .driving import running, screen_text, until
from .fake_model import FakeModel


async def _listed(app: LocalMoeApp) -> list[str]:
    return [str(hit.text) async for hit in Commands(app.screen).discover()]


async def test_the_chats_own_commands_come_before_textuals():
    async with running(FakeModel(), size=(120, 60)) as (app, pilot):
        names = await _listed(app)
        assert names[0] == "New chat"
        assert sorted(names[-3:]) == ["Quit", "Screenshot", "Theme"]
        assert {Commands} == app.COMMANDS
        await pilot.press("ctrl+p")
        await until(pilot, lambda: "New chat" in screen_text(app), "the commands")
        assert screen_text(app).index("New chat") < screen_text(app).index("Open another model")


async def test_a_dense_model_has_no_commands_about_experts():
    async with running(FakeModel(n_expert=0, n_used=0)) as (app, _):
        names = await _listed(app)
        assert "New chat" in names
        for name in ("Fewer experts a token", "Every layer's figures", "The chat token by token"):
            assert name not in names
        assert not any(name.startswith("Heatmap") for name in names)


async def test_a_picture_is_saved_where_the_app_was_started(tmp_path: Path, monkeypatch):
    """Also in a home without a folder for downloads."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "no-such-home"))
    async with running(FakeModel()) as (_, pilot):
        await pilot.press("ctrl+p")
        await pilot.press(*"screenshot")
        await pilot.pause(0.6)
        await pilot.press("enter")
        await until(pilot, lambda: [*tmp_path.glob("*.svg")], "the picture")
    assert "SmolLM2" in next(tmp_path.glob("*.svg")).read_text()


async def test_a_picture_that_cannot_be_saved_says_why(tmp_path):
    """The folder and what is wrong with it, as for a working folder that may not be written."""
    (tmp_path / "a [b] file").write_text("no folder")
    async with running(FakeModel()) as (app, pilot):
        app.deliver_screenshot("shot.svg", str(tmp_path / "a [b] file"))
        await until(pilot, lambda: [*app._notifications], "what is wrong")
        assert [note.message for note in app._notifications] == [f"{tmp_path}/a [b] file/shot.svg: Not a directory"]


async def test_the_commands_are_listed_once_below_the_help():
    """F1 opens the help above them; there the key for them does nothing, and Esc leads back to them."""
    async with running(FakeModel()) as (app, pilot):
        await pilot.press("ctrl+p")
        await until(pilot, lambda: isinstance(app.screen, CommandPalette), "the commands")
        await pilot.press("f1")
        await until(pilot, lambda: isinstance(app.screen, HelpScreen), "the help")
        await pilot.press("ctrl+p")
        await pilot.pause()
        assert [type(screen) for screen in app.screen_stack[-2:]] == [CommandPalette, HelpScreen]
        await pilot.press("escape")
        await until(pilot, lambda: isinstance(app.screen, CommandPalette), "the commands")
