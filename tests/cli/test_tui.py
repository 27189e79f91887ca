"""`localmoe tui`: which model it opens and which chat it goes on with; the app itself is stood in for."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from localmoe.cli import main
from localmoe.cli.default_model import packaged_models
from localmoe.sessions.record import Record
from localmoe.sessions.schema import default_path
from localmoe.sessions.store import Store


class Opened:
    """What the app was opened with."""

    path: Path | None
    options: Any

    def __call__(self, path: Path | None, options: Any) -> int:
        self.path, self.options = path, options
        return 0


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Opened:
    monkeypatch.setenv("LOCALMOE_DATA", str(tmp_path / "data"))
    app = Opened()
    monkeypatch.setattr("localmoe.tui.app.run_app", app)
    return app


def chat_with(model: Path, text: str) -> int:
    """Keep a chat; its number."""
    default_path().parent.mkdir(parents=True, exist_ok=True)
    with Store(default_path()) as store:
        record = Record(store, str(model), "", {})
        record.ask(text)
        assert record.key is not None
        return record.key


def test_continue_opens_the_newest_chat_with_its_model(opened: Opened, tmp_path: Path) -> None:
    model = tmp_path / "m.gguf"
    model.touch()
    chat_with(tmp_path / "gone.gguf", "older")
    newest = chat_with(model, "newer")
    assert main(["tui", "--continue"]) == 0
    assert (opened.path, opened.options.resume) == (model, newest)
    assert opened.options.sessions == default_path()


def test_session_names_a_chat_and_m_another_model(opened: Opened, tmp_path: Path) -> None:
    model, other = tmp_path / "m.gguf", tmp_path / "other.gguf"
    model.touch()
    other.touch()
    first = chat_with(model, "older")
    chat_with(model, "newer")
    assert main(["tui", "--session", str(first)]) == 0
    assert (opened.path, opened.options.resume) == (model, first)
    assert main(["tui", "--session", str(first), "-m", str(other)]) == 0
    assert (opened.path, opened.options.resume) == (other, first)
    assert main(["tui", "--session", str(first), "--tiny"]) == 0
    assert opened.path is not None
    assert (opened.path.name, opened.options.resume) == ("tiny-moe.gguf", first)


def test_what_is_missing_is_said(opened: Opened, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """No chats yet, a number that is none, a model that is gone: exit 2, and a line that says what to do."""
    assert main(["tui", "--continue"]) == 2
    assert "no chats were saved yet" in capfd.readouterr().err
    number = chat_with(tmp_path / "gone.gguf", "words")
    assert main(["tui", "--continue"]) == 2
    said = capfd.readouterr().err
    assert "gone.gguf" in said
    assert "-m MODEL" in said
    assert main(["tui", "--session", str(number + 7)]) == 2
    assert not hasattr(opened, "path")


def test_no_save_keeps_nothing(opened: Opened, tmp_path: Path) -> None:
    model = tmp_path / "m.gguf"
    model.touch()
    assert main(["tui", "-m", str(model), "--no-save", "-sys", "Be brief.", "--temp", "0", "-c", "512"]) == 0
    assert opened.options.sessions is None
    assert opened.options.system == "Be brief."
    assert opened.options.load["n_ctx"] == 512
    assert opened.options.sampling["temperature"] == 0
    assert not default_path().exists()


def test_two_models_are_one_too_many(opened: Opened, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["tui", "--tiny", "-m", "m.gguf"]) == 2
    assert "two models" in capfd.readouterr().err


@pytest.mark.parametrize("name", ["LOCALMOE_CACHE", "LOCALMOE_DATA"])
def test_folders_that_cannot_be_looked_into_keep_nobody_out(
    opened: Opened, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A name longer than any file's is refused by the system, as a folder of someone else's is."""
    monkeypatch.setenv(name, "/" + "x" * 300)
    assert main(["tui", "--tiny"]) == 0
    assert opened.path == packaged_models()[-1][1]


def test_a_terminal_that_cannot_draw_is_refused(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "dumb")
    assert main(["tui", "--tiny", "--no-save"]) == 2
    assert "TERM=dumb" in capfd.readouterr().err


def test_the_length_of_answers_and_a_full_context_are_said_as_to_chat(
    opened: Opened, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """With llama.cpp's names; what cannot be is refused before the app opens."""
    (tmp_path / "m.gguf").touch()
    assert main(["tui", "-m", str(tmp_path / "m.gguf"), "-n", "64", "--overflow", "forget"]) == 0
    assert opened.options.parameters == {"max_tokens": 64, "overflow": "forget"}
    assert main(["tui", "-m", str(tmp_path / "m.gguf"), "--overflow", "cut"]) == 2
    assert "expected stop or forget" in capfd.readouterr().err
