"""Chats that are kept: saved as they go, found, resumed, renamed, exported, deleted; and files that cannot be used."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
from textual.widgets import Input, Static

from localmoe.sessions.record import KEEP_EVERY, Pieces, Record
from localmoe.sessions.store import Store
from localmoe.tui.options import AppOptions
from localmoe.tui.screens.chat import ChatScreen
from localmoe.tui.screens.dialogs import NoticeScreen
from localmoe.tui.screens.rules import RulesScreen
from localmoe.tui.screens.sessions import SessionsScreen, ago
from localmoe.tui.widgets.prompt import Prompt
from localmoe.tui.widgets.status import StatusLine

from .driving import ask, chat, running, screen_text, until
from .fake_model import FakeModel


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sessions.db"


def keeping(path: Path, **more) -> AppOptions:
    return AppOptions(sessions=path, **more)


def texts(path: Path) -> list[str]:
    with Store(path) as store:
        return [turn.text for turn in store.load(store.newest() or 0).conversation.turns]


def kept(path: Path, *titles: str, model: str = "/m/demo.gguf", **parameters) -> list[int]:
    keys = []
    with Store(path) as store:
        for title in titles:
            record = Record(store, model, "Be kind.", parameters)
            record.ask(title)
            turn = record.begin_reply()
            turn.text = f"about {title}"
            record.end_reply(turn, "eos")
            keys.append(record.key or 0)
    return keys


async def open_list(app, pilot) -> None:
    await pilot.press("ctrl+s")
    await until(pilot, lambda: isinstance(app.screen, SessionsScreen))
    await pilot.pause()


def test_text_is_kept_in_pieces_of_a_fifth_of_a_second():
    """The first at once, the last when the reply ends."""
    pieces: list[str] = []
    kept = Pieces(pieces.append)
    for i in range(10):
        kept.add(f"{i}", 100 + i * (KEEP_EVERY / 4 + 0.001))
    assert pieces == ["0", "1234", "5678"]
    kept.write()
    kept.write()
    assert pieces == ["0", "1234", "5678", "9"]


async def test_a_chat_is_saved_while_it_is_written(path: Path, monkeypatch: pytest.MonkeyPatch):
    """Every piece is in the file before the reply ends: another program sees it."""
    monkeypatch.setattr("localmoe.sessions.record.KEEP_EVERY", 0.0)
    model = FakeModel(answer=["Once ", "upon ", "a time"])
    model.gate = threading.Semaphore(2)
    async with running(model, options=keeping(path)) as (app, pilot):
        await pilot.press(*"tell me", "enter")
        await until(pilot, lambda: "Once upon" in screen_text(app))
        assert texts(path) == ["tell me", "Once upon "]
        model.gate.release(5)
        await until(pilot, lambda: not chat(app).busy)
        assert texts(path) == ["tell me", "Once upon a time"]


async def test_without_a_file_nothing_is_kept(tmp_path: Path):
    async with running(FakeModel(answer="ok")) as (app, pilot):
        await ask(app, pilot)
        await pilot.press("ctrl+s")
        await pilot.pause()
        assert app.screen is chat(app)
    assert list(tmp_path.iterdir()) == []


async def test_a_new_chat_keeps_the_old_one(path: Path):
    async with running(FakeModel(answer="ok"), options=keeping(path)) as (app, pilot):
        await ask(app, pilot, "first")
        await pilot.press("ctrl+n")
        await ask(app, pilot, "second")
    with Store(path) as store:
        assert [entry.title for entry in store.entries()] == ["second", "first"]


async def test_a_chat_is_found_by_its_words_and_gone_on_with(path: Path):
    """The search looks through all turns; Enter shows the chat, reads it, and it grows where it stood."""
    first, _ = kept(path, "lighthouse", "harbour", temperature=0.25)
    model = FakeModel(answer="ok")
    async with running(model, options=keeping(path)) as (app, pilot):
        await open_list(app, pilot)
        assert "lighthouse" in screen_text(app)
        await pilot.press(*"about light")
        await until(pilot, lambda: "harbour" not in screen_text(app))
        await pilot.press("enter")
        await until(pilot, lambda: model.asked and not chat(app).busy)
        assert model.asked[0]["max_tokens"] == 0
        assert chat(app).status.used == model.n_past
        assert "about lighthouse" in screen_text(app)
        await ask(app, pilot, "more")
        assert [m["content"] for m in model.asked[1]["prompt"]] == [
            "Be kind.",
            "lighthouse",
            "about lighthouse",
            "more",
        ]
        assert model.asked[1]["temperature"] == 0.25
    with Store(path) as store:
        assert store.load(first).entry.n_turns == 4


async def test_resuming_shows_how_the_chat_is_read(path: Path):
    """The bar of the prompt; a question sent meanwhile comes right after."""
    kept(path, "long " * 60)
    model = FakeModel(answer="ok", prompt_delay=0.1)
    async with running(model, options=keeping(path, resume=1)) as (app, pilot):
        await until(pilot, lambda: app.screen.query_one(StatusLine).state == "reading")
        await until(pilot, lambda: "reading" in screen_text(app) and "tokens" in screen_text(app))
        app.screen.query_one(Prompt).insert("next")
        await pilot.press("enter")
        await until(pilot, lambda: len(model.asked) == 2 and not chat(app).busy)
        assert model.asked[1]["prompt"][-1]["content"] == "next"


async def test_continue_starts_with_a_chat(path: Path):
    kept(path, "old words")
    async with running(FakeModel(answer="ok"), options=keeping(path, resume=1)) as (app, pilot):
        await until(pilot, lambda: "about old words" in screen_text(app) and not chat(app).busy)
        await ask(app, pilot, "new words")
    assert texts(path) == ["old words", "about old words", "new words", "ok"]


async def test_a_chat_that_no_longer_fits_is_said(path: Path):
    """Reading it fails: a line, and the chat can be branched or left."""
    from localmoe.errors import UsageError

    kept(path, "old words")
    model = FakeModel(answer="ok", error=UsageError("the prompt does not fit in the context"))
    async with running(model, options=keeping(path, resume=1)) as (app, pilot):
        await until(pilot, lambda: "does not fit" in screen_text(app) and not chat(app).busy)
        assert len(chat(app).conversation.turns) == 2


async def test_a_chat_that_filled_its_context_is_no_error(path: Path):
    """It cannot be read ahead, which nobody asked for: what is taken is shown, and what comes next is said."""
    from localmoe.errors import UsageError

    kept(path, "long " * 60)
    model = FakeModel(answer="ok", n_ctx=64, error=UsageError("the prompt does not fit in the context"))
    async with running(model, options=keeping(path, resume=1)) as (app, pilot):
        await until(pilot, lambda: model.asked and not chat(app).busy)
        await until(pilot, lambda: "The context is full" in " ".join(screen_text(app).split()))
        assert "does not fit" not in screen_text(app)
        assert chat(app).status.used > 64


async def test_a_chat_that_forgets_is_measured_without_what_is_left_out(path: Path):
    kept(path, "long " * 60, overflow="forget")
    async with running(FakeModel(answer="ok", n_ctx=64), options=keeping(path, resume=1)) as (app, pilot):
        await until(pilot, lambda: not chat(app).busy)
        await ask(app, pilot, "next")
        assert chat(app).talk.size(chat(app).model) < 64


async def test_parameters_of_nobodys_making_are_left_out(path: Path):
    """A damaged or foreign parameter is named; the others hold."""
    kept(path, "words", temperature="hot", top_k=3, evil="[bold]x\x1b[2J")
    model = FakeModel(answer="ok")
    async with running(model, options=keeping(path, resume=1)) as (app, pilot):
        await until(pilot, lambda: model.asked and not chat(app).busy)
        assert (model.asked[0]["temperature"], model.asked[0]["top_k"]) == (0.8, 3)
        assert "\x1b" not in screen_text(app)


async def test_renaming_exporting_and_deleting(path: Path, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    kept(path, "lighthouse", "harbour")
    async with running(FakeModel(answer="ok"), options=keeping(path)) as (app, pilot):
        await open_list(app, pilot)
        await pilot.press("down", "ctrl+r")
        await until(pilot, lambda: "Rename the chat" in screen_text(app))
        await pilot.press(*["backspace"] * 12, *"tower", "enter")
        await until(pilot, lambda: isinstance(app.screen, SessionsScreen) and "tower" in screen_text(app))
        await pilot.press("ctrl+e")
        await until(pilot, lambda: "Export to" in screen_text(app))
        await pilot.press("enter")
        await until(pilot, lambda: (tmp_path / "tower.md").exists())
        assert "about lighthouse" in (tmp_path / "tower.md").read_text()
        await until(pilot, lambda: isinstance(app.screen, SessionsScreen))
        await pilot.press("ctrl+e")
        await until(pilot, lambda: "Export to" in screen_text(app))
        await pilot.press("enter")
        await until(pilot, lambda: "exists already" in screen_text(app))
        await pilot.press(*["backspace"] * 2, *"json", "enter")
        await until(pilot, lambda: (tmp_path / "tower.json").exists())
        assert json.loads((tmp_path / "tower.json").read_text())["title"] == "tower"
        await until(pilot, lambda: isinstance(app.screen, SessionsScreen))
        await pilot.press("ctrl+d")
        await until(pilot, lambda: "Delete “tower”" in screen_text(app))
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, SessionsScreen))
        assert "tower" in screen_text(app)
        await pilot.press("ctrl+d")
        await until(pilot, lambda: "Delete “tower”" in screen_text(app))
        await pilot.press("down", "enter")
        await until(pilot, lambda: isinstance(app.screen, SessionsScreen) and "tower" not in screen_text(app))
    with Store(path) as store:
        assert [entry.title for entry in store.entries()] == ["harbour"]


async def test_what_was_sent_in_other_chats_is_in_the_history(path: Path):
    """Up, also in another run of the app."""
    kept(path, "older words", "newer words")
    async with running(FakeModel(answer="ok"), options=keeping(path)) as (app, pilot):
        await ask(app, pilot, "now")
        for text in ("now", "newer words", "older words"):
            await pilot.press("up")
            assert app.screen.query_one(Prompt).text == text


async def test_the_open_chat_is_not_deleted(path: Path):
    async with running(FakeModel(answer="ok"), options=keeping(path)) as (app, pilot):
        await ask(app, pilot, "stay")
        await open_list(app, pilot)
        await pilot.press("ctrl+d")
        await pilot.pause()
        assert "cannot be deleted" in screen_text(app)


@pytest.mark.parametrize("how", ["damaged", "newer"])
async def test_a_file_that_cannot_be_used_is_a_panel_and_the_app_works(path: Path, how: str):
    """The reason, what to do, and a chat that is not kept; the file is as it was."""
    if how == "damaged":
        path.write_bytes(b"\x1b[2J not a database" * 99)
    else:
        kept(path, "x")
        with Store(path) as store:
            store._connection.execute("PRAGMA user_version = 7")
    before = path.read_bytes()
    async with running(loader=lambda progress: FakeModel(answer="ok"), options=keeping(path)) as (app, pilot):
        await until(pilot, lambda: isinstance(app.screen, NoticeScreen))
        await pilot.pause(0.1)
        shown = screen_text(app)
        assert "Chats are not saved" in shown
        assert ("damaged" if how == "damaged" else "newer localmoe") in shown.replace("\n", " ")
        assert "move it away" in " ".join(shown.replace("│", " ").split())
        assert "\x1b" not in shown
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, ChatScreen))
        await ask(app, pilot)
        assert "ok" in screen_text(app)
    assert path.read_bytes() == before


async def test_a_folder_that_cannot_be_made_is_told_of_without_a_file(tmp_path: Path):
    """No advice about a file that is not there."""
    (tmp_path / "file").touch()
    options = keeping(tmp_path / "file" / "sessions.db")
    async with running(loader=lambda progress: FakeModel(answer="ok"), options=options) as (app, pilot):
        await until(pilot, lambda: isinstance(app.screen, NoticeScreen))
        await pilot.pause(0.1)
        assert "LOCALMOE_DATA chooses another" in " ".join(screen_text(app).replace("│", " ").split())
        assert "move it away" not in screen_text(app)


async def test_a_store_that_fails_is_said_once_and_the_chat_goes_on(path: Path):
    async with running(FakeModel(answer="ok"), options=keeping(path)) as (app, pilot):
        await ask(app, pilot, "one")
        assert app.store is not None
        app.store._connection.execute("DROP TABLE pieces")
        app.store._connection.execute("DROP TABLE turns")
        await ask(app, pilot, "two")
        assert "no longer saved" in screen_text(app)
        await ask(app, pilot, "three")
        assert "no longer saved" not in screen_text(app)
        assert len(chat(app).conversation.turns) == 6


async def test_nothing_from_the_file_controls_the_terminal(path: Path):
    """Titles, texts, model names and system prompts: no escape sequences, no markup, in the list and in the chat."""
    evil = "[red]a[/]\x1b[2J\x9b31m\u202e[@click=app.quit]b[/]"
    kept(path, evil, model=f"/m/{evil}.gguf")
    async with running(FakeModel(answer="ok"), options=keeping(path), size=(160, 50)) as (app, pilot):
        await open_list(app, pilot)
        shown = screen_text(app)
        assert "[red]a[/]\\x1b[2J" in shown
        assert not [c for c in shown if c != "\n" and (ord(c) < 32 or 127 <= ord(c) < 160 or c == "\u202e")]
        await pilot.press("ctrl+r")
        await pilot.pause(0.2)
        assert not [c for c in screen_text(app) if c != "\n" and (ord(c) < 32 or 127 <= ord(c) < 160)]
        await pilot.press("escape", "enter")
        await until(pilot, lambda: isinstance(app.screen, ChatScreen) and not chat(app).busy)
        await until(pilot, lambda: "[red]a[/]" in screen_text(app))
        shown = screen_text(app)
        assert not [c for c in shown if c != "\n" and (ord(c) < 32 or 127 <= ord(c) < 160 or c == "\u202e")]


@pytest.mark.parametrize("size", [(80, 24), (120, 40), (160, 50)])
async def test_the_list_fits(path: Path, size: tuple[int, int]):
    kept(path, *(f"chat number {n} with a long title that goes on" for n in range(30)))
    async with running(FakeModel(answer="ok"), options=keeping(path), size=size) as (app, pilot):
        await open_list(app, pilot)
        shown = screen_text(app)
        for part in ("Search the words", "chat number 29", "Go on", "Rename", "Delete"):
            assert part in shown, part
        numbers = [line.split("chat number ")[1][:2] for line in shown.splitlines() if "now chat number " in line]
        assert numbers[:8] == [str(n) for n in range(29, 21, -1)]  # a line each


def test_ages_are_short():
    assert [ago(s) for s in (0, 61, 7200, 86400 * 3, 86400 * 800)] == ["now", "1m", "2h", "3d", "2y"]


async def route(app, pilot, **fields: str) -> None:
    """Fill in the panel of rules."""
    await pilot.press("f8")
    await until(pilot, lambda: isinstance(app.screen, RulesScreen))
    for name, text in fields.items():
        app.screen.query_one(f"#rules-{name}", Input).value = text
    await pilot.press("enter")
    await until(pilot, lambda: isinstance(app.screen, ChatScreen))


async def test_rules_of_routing_go_on_with_the_chat(path):
    """Experts left out and forced, and the threshold, are asked for again after --continue; a new chat goes on so."""
    async with running(FakeModel(), options=keeping(path)) as (app, pilot):
        await route(app, pilot, left="3:1 5-6:0", forced="0:2", threshold="0.1")
        await ask(app, pilot)
        await pilot.press("ctrl+n")
        await ask(app, pilot)
    with Store(path) as store:
        first, second = (store.load(key) for key in (1, 2))
        assert first.routing == {"used": "2", "left": "3:1 5-6:0", "forced": "0:2", "threshold": "0.1"}
        assert second.routing == first.routing
    model = FakeModel()
    async with running(model, options=keeping(path, resume=1)) as (app, pilot):
        said = "routing as in this chat: top-2 of 4, 3:1 5:0 6:0 left out, 0:2 forced, weights below 0.1 skipped"
        await until(pilot, lambda: any(note.message == said for note in app._notifications))
        await until(pilot, lambda: not chat(app).busy)
        await ask(app, pilot)
        assert model.asked[-1]["leave_out"] == {3: (1,), 5: (0,), 6: (0,)}
        assert model.asked[-1]["force_experts"] == {0: (2,)}
        assert model.asked[-1]["expert_threshold"] == 0.1
        assert "3 out, 1 forced, skip <0.1" in app.screen.query_one(StatusLine).rules
        await open_list(app, pilot)
        preview = str(app.screen.query_one("#sessions-preview", Static).render())
        assert "routing: top-2, 3:1 5-6:0 left out, 0:2 forced, weights below 0.1 skipped" in preview
        await pilot.press("escape", "ctrl+t")
        await ask(app, pilot)
        assert "leave_out" not in model.asked[-1]
    with Store(path) as store:
        assert store.load(1).routing == {}


async def test_a_number_of_experts_by_layer_goes_on_too(path):
    async with running(FakeModel(n_layer=3), options=keeping(path)) as (app, pilot):
        await ask(app, pilot)
        await route(app, pilot, used="1,2,3")
    async with running(FakeModel(n_layer=3), options=keeping(path, resume=1)) as (app, pilot):
        await until(pilot, lambda: chat(app).rules.routing.limits == (1, 2, 3))
        await until(pilot, lambda: not chat(app).busy)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ({"n_layer": 4}, "no such layers"),
        ({"n_expert": 2}, "no such expert"),
        ({"n_expert": 0, "n_used": 0}, "no experts to choose"),
    ],
    ids=["layers", "experts", "dense"],
)
async def test_rules_that_a_model_cannot_follow_are_said(path, model, reason):
    """The chat goes on without them, and keeps them for a model that can."""
    async with running(FakeModel(), options=keeping(path)) as (app, pilot):
        await route(app, pilot, left="5:3")
        await ask(app, pilot)
    other = FakeModel(**model)
    async with running(other, options=keeping(path, resume=1)) as (app, pilot):
        await until(pilot, lambda: any(reason in note.message for note in app._notifications))
        assert any("not routed as in this chat (top-2, 5:3 left out)" in note.message for note in app._notifications)
        await until(pilot, lambda: not chat(app).busy)
        await ask(app, pilot)
        assert "leave_out" not in other.asked[-1]
    with Store(path) as store:
        assert store.load(1).routing["left"] == "5:3"


async def test_rules_that_were_damaged_are_said(path):
    [key] = kept(path, "foxes")
    with Store(path) as store:
        store.configure(key, "/m/demo.gguf", "", {}, {"left": "\x1b[2J", "threshold": "nan"})
    async with running(FakeModel(), options=keeping(path, resume=key)) as (app, pilot):
        await until(pilot, lambda: any("not routed as in this chat" in note.message for note in app._notifications))
        assert all("\x1b" not in note.message for note in app._notifications)
        await until(pilot, lambda: not chat(app).busy)


async def test_a_chat_without_rules_is_routed_as_the_app_was_started(path):
    """Also after one with rules of its own."""
    async with running(FakeModel(), options=keeping(path)) as (app, pilot):
        await ask(app, pilot, "first")
        await pilot.press("ctrl+n")
        await route(app, pilot, left="3:1")
        await ask(app, pilot, "second")
        await open_list(app, pilot)
        await pilot.press("down", "enter")
        await until(pilot, lambda: chat(app).record.key == 1 and not chat(app).busy)
        assert chat(app).rules == chat(app).start_rules
