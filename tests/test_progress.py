"""Progress on stderr: a bar in a terminal, one closing line without."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from localmoe import progress as progress_module
from localmoe.progress import TerminalProgress


def test_without_a_terminal_only_the_end_is_said(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock on which all takes four seconds."""
    monkeypatch.setattr(progress_module, "time", SimpleNamespace(monotonic=iter((100.0, 104.0)).__next__))
    progress = TerminalProgress()
    progress.start(2 << 20, "reading")
    progress.advance(1 << 20)
    assert capsys.readouterr() == ("", "")
    progress.advance(1 << 20)
    progress.finish()
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "reading: 2.0 MiB in 4.0 s (0 MiB/s)\n"


def test_what_was_given_up_is_not_called_done(capsys: pytest.CaptureFixture[str]) -> None:
    progress = TerminalProgress()
    progress.start(100, "reading")
    progress.advance(99)
    progress.finish()
    assert capsys.readouterr() == ("", "")


def test_a_terminal_gets_a_bar_on_stderr(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    progress = TerminalProgress()
    progress.start(100, "reading [bold]x[/]")
    progress.advance(100)
    progress.finish()
    out, err = capsys.readouterr()
    assert out == ""
    assert "reading [bold]x[/]" in err
