"""Chats that cannot be kept for a while: what is said, and that they are kept whole once they can be."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from localmoe.sessions.store import Store
from localmoe.tui.options import AppOptions
from localmoe.tui.screens.dialogs import NoticeScreen
from localmoe.tui.screens.sessions import SessionsScreen

from .driving import ask, running, screen_text, until
from .fake_model import FakeModel


def kept(path: Path) -> list[str]:
    with Store(path) as store:
        return [turn.text for turn in store.load(store.newest() or 0).conversation.turns]


async def test_a_file_that_another_program_holds_is_waited_for(tmp_path: Path) -> None:
    """It is sound: nobody is told to move it away. Ctrl+S tries again, and keeps what was said until then."""
    path = tmp_path / "sessions.db"
    Store(path).close()
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        options = AppOptions(sessions=path)
        async with running(loader=lambda progress: FakeModel(answer="ok"), options=options) as (app, pilot):
            await until(pilot, lambda: isinstance(app.screen, NoticeScreen), "the notice")
            await pilot.pause()
            assert "locked" in screen_text(app)
            assert "move it" not in screen_text(app)
            assert "Ctrl+S" in screen_text(app)
            await pilot.press("enter")
            await ask(app, pilot, "one")
            await pilot.press("ctrl+s")
            await until(pilot, lambda: isinstance(app.screen, NoticeScreen), "the notice again")
            await pilot.press("enter")
            other.execute("ROLLBACK")
            await pilot.press("ctrl+s")
            await until(pilot, lambda: isinstance(app.screen, SessionsScreen), "the chats")
            await pilot.pause()
            assert "one  2 turns" in screen_text(app)
            await pilot.press("escape")
            await ask(app, pilot, "two")
    assert kept(path) == ["one", "ok", "two", "ok"]


async def test_a_chat_that_was_not_kept_for_a_while_is_kept_whole(tmp_path: Path) -> None:
    """As where a disk was full: the next message that can be kept brings what is missing, and that is said."""
    path = tmp_path / "sessions.db"
    async with running(FakeModel(answer="ok"), options=AppOptions(sessions=path)) as (app, pilot):
        await ask(app, pilot, "one")
        assert app.store is not None
        app.store._connection.execute("ALTER TABLE turns RENAME TO away")
        await ask(app, pilot, "two")
        assert "no longer saved" in screen_text(app)
        app.store._connection.execute("ALTER TABLE away RENAME TO turns")
        await ask(app, pilot, "three")
        assert "saved again" in screen_text(app)
        await ask(app, pilot, "four")
        assert "saved again" not in screen_text(app)
    assert kept(path) == ["one", "ok", "two", "ok", "three", "ok", "four", "ok"]


async def test_chats_that_may_not_be_written_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One goes on from where it was, others are found; once the file may be written Ctrl+S keeps what was said."""
    path = tmp_path / "sessions.db"
    async with running(FakeModel(answer="ok"), options=AppOptions(sessions=path)) as (app, pilot):
        await ask(app, pilot, "one")
    refused = True
    monkeypatch.setattr("localmoe.sessions.store.only_readable", lambda path: refused)
    options = AppOptions(sessions=path, resume=1)
    async with running(loader=lambda progress: FakeModel(answer="ok"), options=options) as (app, pilot):
        await until(pilot, lambda: isinstance(app.screen, NoticeScreen), "the notice")
        await pilot.pause()
        assert "may be read, but not written" in " ".join(screen_text(app).replace("│", " ").split())
        await pilot.press("enter")
        assert "one" in screen_text(app)
        await ask(app, pilot, "two")
        assert "no longer saved" not in screen_text(app)
        await pilot.press("ctrl+s")
        await until(pilot, lambda: isinstance(app.screen, SessionsScreen), "the chats")
        await pilot.pause()
        assert "one  2 turns" in screen_text(app)
        assert "may not be written" in screen_text(app)
        await pilot.press("ctrl+r")
        await pilot.press("x", "enter")
        await pilot.pause()
        assert "readonly" in screen_text(app)
        await pilot.press("escape", "escape")
        refused = False
        await pilot.press("ctrl+s")
        await until(pilot, lambda: isinstance(app.screen, SessionsScreen), "the chats again")
        await pilot.pause()
        assert "one  4 turns" in screen_text(app)
    assert kept(path) == ["one", "ok", "two", "ok"]
