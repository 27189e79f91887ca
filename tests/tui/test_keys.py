"""The user's own keys: read, checked, and bound."""

from __future__ import annotations

from pathlib import Path

import pytest

from localmoe.errors import BadInputError, FileError
from localmoe.tui.keys import binding_ids, keys_path, read_keys
from localmoe.tui.screens.chat import ChatScreen
from localmoe.tui.screens.rules import RulesScreen

from .driving import ask, chat, running, screen_text, until
from .fake_model import FakeModel

DOCS = Path(__file__).parents[2] / "docs" / "app.md"


def test_where_the_file_is():
    assert keys_path({"LOCALMOE_KEYS": "/k.toml", "XDG_CONFIG_HOME": "/c"}) == Path("/k.toml")
    assert keys_path({"XDG_CONFIG_HOME": "/c"}) == Path("/c/localmoe/keys.toml")
    assert keys_path({}) == Path.home() / ".config/localmoe/keys.toml"


def test_keys_by_name(tmp_path):
    file = tmp_path / "keys.toml"
    assert read_keys(file, binding_ids()) == {}
    file.write_text('"chat.stop" = "ctrl+x,f12"\n"experts.fewer" = "alt+left_square_bracket"\n')
    assert read_keys(file, binding_ids()) == {
        "chat.stop": "ctrl+x,f12",
        "experts.fewer": "alt+left_square_bracket",
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"chat", "not TOML"),
        (b"\xff", "not TOML"),
        (b'"chat.stpo" = "x"', "chat.stpo: no such key binding, expected chat.stop"),
        (b"'chat.stop' = 3", "not a key"),
        (b"'chat.stop' = ''", "not a key"),
        (b"'chat.stop' = 'ctrl+nothing'", "not a key"),
        (b"'chat.stop' = 'hyper+x'", "not a key"),
        (b"'chat.stop' = '\\u0001'", "not a key"),
        (b"#" * 70000, "too long"),
    ],
)
def test_a_bad_file_is_named(tmp_path, text, said):
    file = tmp_path / "keys.toml"
    file.write_bytes(text)
    with pytest.raises(BadInputError, match=said) as caught:
        read_keys(file, binding_ids())
    assert str(file) in str(caught.value)


def test_a_folder_in_its_place(tmp_path):
    with pytest.raises(FileError, match="cannot be read"):
        read_keys(tmp_path, binding_ids())


async def test_own_keys_work_in_the_app(tmp_path, monkeypatch):
    file = tmp_path / "keys.toml"
    file.write_text('"experts.rules" = "ctrl+y"\n')
    monkeypatch.setenv("LOCALMOE_KEYS", str(file))
    async with running(FakeModel()) as (app, pilot):
        await pilot.press("f8")
        await pilot.pause()
        assert app.screen is chat(app)
        await pilot.press("ctrl+y")
        await until(pilot, lambda: isinstance(app.screen, RulesScreen), "the panel")


async def test_a_bad_file_is_said_in_the_app_and_the_usual_keys_stay(tmp_path, monkeypatch):
    file = tmp_path / "keys.toml"
    file.write_text('"experts.rulez" = "ctrl+y"\n')
    monkeypatch.setenv("LOCALMOE_KEYS", str(file))
    async with running(FakeModel()) as (app, pilot):
        await until(pilot, lambda: app._notifications, "the message")
        assert all("no such key binding" in said.message for said in app._notifications)
        await pilot.press("f8")
        await until(pilot, lambda: isinstance(app.screen, RulesScreen), "the panel")


def test_every_name_is_documented():
    """docs/app.md lists each binding with its usual keys."""
    text = DOCS.read_text(encoding="utf-8")
    for name, keys in binding_ids().items():
        assert f"| `{name}` | `{keys}` |" in text, (name, keys)


@pytest.mark.parametrize("key", ["f7", "f10"])
async def test_screens_over_the_chat_offer_no_keys_that_do_nothing_there(key):
    """Chats and models are opened from the chat."""
    async with running(FakeModel(n_layer=6, n_expert=8)) as (app, pilot):
        await ask(app, pilot)
        assert "^s Chats" in screen_text(app)
        await pilot.press(key)
        await until(pilot, lambda: not isinstance(app.screen, ChatScreen) and "esc Back" in screen_text(app), "it")
        assert "^s Chats" not in screen_text(app)
        assert "^o Model" not in screen_text(app)
        assert "^q Quit" in screen_text(app)
