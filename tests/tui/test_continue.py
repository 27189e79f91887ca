"""`localmoe tui` with --continue, --session and --no-save, in a real terminal."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from localmoe.sessions.record import Record
from localmoe.sessions.store import Store

from .test_terminal import ENTERED, Terminal

PROGRAM = """
import sys
import localmoe
from localmoe.cli.app import main
from tests.tui.fake_model import FakeModel
class Counting(FakeModel):
    def chat(self, messages, **options):
        self.pieces = [f"zebra{len(messages)}"]
        return super().chat(messages, **options)
localmoe.load = lambda path, progress=None, **options: Counting()
sys.exit(main(["tui", *sys.argv[1:]]))
"""


@pytest.fixture
def data(tmp_path: Path, monkeypatch) -> Path:
    """The file of chats, which is not there yet; beside it is a model."""
    monkeypatch.setenv("LOCALMOE_DATA", str(tmp_path))
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    return tmp_path / "sessions.db"


def keep(data: Path, *questions: str, model: str = "m.gguf") -> None:
    """A chat for each question."""
    with Store(data) as store:
        for question in questions:
            record = Record(store, str(data.with_name(model)), "", {})
            record.ask(question)
            turn = record.begin_reply()
            turn.text = f"about {question}"
            record.end_reply(turn, "eos")


def turns(data: Path, key: int) -> list[str]:
    with Store(data) as store:
        return [turn.text for turn in store.load(key).conversation.turns]


def says_and_asks(terminal: Terminal, shown: bytes, answer: bytes) -> None:
    """Wait for what a chat shows, say something in it, and leave when it is answered."""
    terminal.read_until(shown)
    terminal.read_until(b"ready")
    os.write(terminal.end, b"and now?\r")
    terminal.read_until(answer)
    os.write(terminal.end, b"\x11")
    terminal.ends(0)


@pytest.mark.parametrize(
    ("options", "key", "shown"),
    [(["--continue"], 2, b"about foxes"), (["--session", "1"], 1, b"about owls"), (["--session", "2"], 2, b"foxes")],
    ids=["continue", "session 1", "session 2"],
)
def test_a_chat_goes_on_where_it_was(data, options, key, shown):
    """The newest or the one named: its turns are shown, its model opened, and what is said is added to it."""
    keep(data, "owls", "foxes")
    says_and_asks(Terminal(*options, program=PROGRAM), shown, b"zebra3")
    assert turns(data, key)[2:] == ["and now?", "zebra3"]
    assert len(turns(data, 3 - key)) == 2


def test_a_chat_that_was_just_had_goes_on(data):
    """From one process to the next."""
    says_and_asks(Terminal("-m", str(data.with_name("m.gguf")), program=PROGRAM), b"Message", b"zebra1")
    says_and_asks(Terminal("--continue", program=PROGRAM), b"zebra1", b"zebra3")
    assert turns(data, 1) == ["and now?", "zebra1", "and now?", "zebra3"]


def test_another_model_may_be_named(data):
    keep(data, "owls", model="gone.gguf")
    says_and_asks(
        Terminal("--continue", "-m", str(data.with_name("m.gguf")), program=PROGRAM), b"about owls", b"zebra3"
    )
    with Store(data) as store:
        assert store.load(1).entry.model == str(data.with_name("m.gguf"))


def test_without_saving_no_file_is_made(data):
    """The chat works, and the list of chats says why there is none."""
    terminal = Terminal("-m", str(data.with_name("m.gguf")), "--no-save", program=PROGRAM)
    terminal.read_until(b"Message")
    os.write(terminal.end, b"hello\r")
    terminal.read_until(b"zebra")
    os.write(terminal.end, b"\x13")
    terminal.read_until(b"Chats are not kept in this run")
    os.write(terminal.end, b"\x11")
    terminal.ends(0)
    assert not data.exists()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--continue"], b"no chats were saved yet"),
        (["--session", "1"], b"no chats were saved yet"),
        (["--session", "x"], b"--session"),
        (["--continue", "--no-save"], b"--no-save"),
    ],
)
def test_there_is_no_chat_yet(data, options, reason):
    """One line and exit code 2 before anything is drawn; no file of chats is made."""
    refused(options, reason)
    assert not data.exists()


@pytest.mark.parametrize(
    ("options", "reason"),
    [(["--session", "99"], b"no such chat"), (["--session", "-1"], b"no such chat"), (["--continue"], b"gone.gguf")],
)
def test_a_chat_that_cannot_go_on_is_said(data, options, reason):
    """A wrong number, or a model that is not there any more."""
    keep(data, "owls", model="gone.gguf")
    refused(options, reason)
    assert turns(data, 1) == ["owls", "about owls"]


def refused(options: list[str], reason: bytes) -> None:
    terminal = Terminal(*options, program=PROGRAM)
    terminal.ends(2)
    assert ENTERED not in terminal.output
    [line] = terminal.output.strip().splitlines()
    assert line.startswith(b"error: ")
    assert reason in line
