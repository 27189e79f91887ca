"""Chats as Markdown and JSON, and the command that writes them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from localmoe.cli.sessions import sessions
from localmoe.errors import UsageError
from localmoe.sessions.export import file_name, to_json, to_markdown, write
from localmoe.sessions.record import Record
from localmoe.sessions.store import Saved, Store


@pytest.fixture
def folder(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.setenv("LOCALMOE_DATA", str(tmp_path))
    with Store(tmp_path / "sessions.db") as store:
        record = Record(store, "/m/model.gguf", "Be brief.", {"seed": 1})
        record.ask("Why \x1b[2J?")
        turn = record.begin_reply()
        turn.text = "Because\n```\ncode\n```"
        record.end_reply(turn, "cancelled")
        again = record.reply_again(turn)
        again.text = "Who knows"
        record.end_reply(again, "eos")
        record.step(again, -1)
    return tmp_path


def load(folder: Path) -> Saved:
    with Store(folder / "sessions.db") as store:
        return store.load(store.newest() or 0)


def run(*args: str) -> str:
    result = CliRunner().invoke(sessions, list(args))
    if result.exception is not None:
        raise result.exception
    return result.stdout


def test_markdown_is_the_line_being_read(folder: Path) -> None:
    """No control character of a text's comes along."""
    text = to_markdown(load(folder))
    assert text.startswith("# Why \\x1b[2J?\n\n")
    assert "model.gguf" in text
    assert "## System prompt\n\nBe brief.\n\n## You\n\nWhy \\x1b[2J?\n\n## Model\n\nBecause\n```\ncode\n```\n" in text
    assert "\n\nWith seed 1.\n\n" in text
    assert text.endswith("*(stopped)*\n")
    assert "Who knows" not in text


def test_json_has_every_branch(folder: Path) -> None:
    value = json.loads(to_json(load(folder)))
    assert [(t["number"], t["parent"], t["role"]) for t in value["turns"]] == [
        (0, None, "user"), (1, 0, "assistant"), (2, 0, "assistant"),
    ]  # fmt: skip
    assert value["line"] == [0, 1]
    assert (value["system"], value["parameters"], value["model"]) == ("Be brief.", {"seed": 1}, "/m/model.gguf")


def test_a_file_is_not_written_over_unasked(folder: Path) -> None:
    saved, target = load(folder), folder / "chat.md"
    assert write(saved, target) == target
    assert target.read_text() == to_markdown(saved)
    with pytest.raises(UsageError, match="exists already"):
        write(saved, target)
    write(saved, target, "json", replace=True)
    assert json.loads(target.read_text())["format"] == "localmoe-chat"
    with pytest.raises(UsageError, match="unknown format"):
        write(saved, folder / "chat.doc")


def test_file_names_are_plain() -> None:
    assert file_name("Why /etc? \x1b", "md") == "why-etc.md"
    assert file_name("…", "json") == "chat.json"


def test_the_command_lists_exports_renames_and_deletes(folder: Path) -> None:
    key = str(load(folder).entry.key)
    assert run("list").rstrip().endswith("3  Why \\x1b[2J?")
    assert run("list", "nothing like it") == ""
    assert json.loads(run("list", "--json"))[0]["title"] == "Why \x1b[2J?"
    assert run("export") == to_markdown(load(folder))
    assert run("export", key, "--format", "json") == to_json(load(folder))
    run("export", key, "-o", str(folder / "out.json"))
    assert (folder / "out.json").read_text() == to_json(load(folder))
    run("rename", key, "Because")
    assert run("list").rstrip().endswith("Because")
    run("rename", key, "joined 👩\u200d👧\u202e")
    assert run("list").rstrip().endswith("joined 👩\u200d👧\\u202e")
    run("delete", key)
    assert run("list") == ""
    with pytest.raises(UsageError, match="no chats were saved"):
        run("export")


def test_without_chats_the_command_says_so(tmp_path: Path, monkeypatch) -> None:
    """And makes no file."""
    monkeypatch.setenv("LOCALMOE_DATA", str(tmp_path))
    with pytest.raises(UsageError, match="no chats were saved yet"):
        run("list")
    assert list(tmp_path.iterdir()) == []


def test_markdown_says_how_a_chat_was_routed_and_closes_what_was_broken_off(tmp_path: Path) -> None:
    """A block of code that a stop left open would swallow all later turns."""
    with Store(tmp_path / "s.db") as store:
        record = Record(store, "m.gguf", "", {"temperature": 0.5})
        record.ask("code?")
        reply = record.begin_reply()
        reply.text = "~~~~\n```\n~~~\nx = 1"
        record.end_reply(reply, "length")
        record.route({"used": "1", "left": "3:1,5", "forced": "", "threshold": "0"})
        text = to_markdown(store.load(record.key or 0))
    assert "\nWith temperature 0.5, top-1, 3:1,5 left out.\n" in text
    assert text.endswith("x = 1\n~~~~\n\n*(ended after as many tokens as were asked for)*\n")
