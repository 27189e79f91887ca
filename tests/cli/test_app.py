"""The command line as a whole: help, failures as one line and an exit code, and a start that imports little."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from localmoe.cli import main
from localmoe.cli.app import COMMANDS, one_line
from localmoe.errors import BadInputError, FileError, LocalMoeError, MemoryLimitError, UsageError
from tests.slowness import slowness

ROOT = Path(__file__).parents[2]


def localmoe(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "localmoe", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False, **options)


def fails(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], error: BaseException) -> tuple[int, str]:
    """Exit code and stderr of a command whose work raises `error`."""

    def load(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("localmoe.load", load)
    code = main(["run", "-m", "model.gguf", "-p", "Hi"])
    out, err = capfd.readouterr()
    assert out == ""
    return code, err


@pytest.mark.parametrize("flag", ["--help", "-h", None])
def test_help_names_every_command(flag: str | None, capfd: pytest.CaptureFixture[str]) -> None:
    assert main([flag] if flag else []) == 0
    out, err = capfd.readouterr()
    assert [line.split()[0] for line in out.split("Commands:\n")[1].splitlines() if line[2] != " "] == list(COMMANDS)
    assert err == ""


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main([command, "-h"]) == 0
    assert capfd.readouterr().out.startswith(f"Usage: localmoe {command} ")


def test_version(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capfd.readouterr().out == "localmoe 0.1.0\n"


def test_help_imports_nothing_heavy() -> None:
    code = """if True:
        import sys
        from localmoe.cli import main
        assert main(["--help"]) == 0
        heavy = {"numpy", "numba", "gguf", "textual", "rich", "jinja2", "regex", "yaml", "torch"} & set(sys.modules)
        sys.exit(f"imported {heavy}" if heavy else 0)"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr


def test_help_takes_less_than_300_ms_warm() -> None:
    """Processor time, which a busy machine does not stretch; the least of five."""
    times = []
    for _ in range(5):
        before = os.times()
        assert localmoe("--help").returncode == 0
        after = os.times()
        times.append(after.children_user + after.children_system - before.children_user - before.children_system)
    assert min(times) < 0.3 * slowness()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["chta"], "error: no such command, got 'chta', expected chat\n"),
        (["run"], "error: Missing option '-m' / '--model'\n"),
        (["--nothing"], "error: No such option: --nothing\n"),
        (["run", "-m", "x", "-p", "y", "-n", "-5"], "error: Invalid value for '-n'"),
        (["run", "-m", "x", "-p", "y", "--top-p", "2"], "error: top_p: out of range, got 2.0, expected a number"),
        (["run", "-m", "x", "-p", "y", "--temp", "nan"], "error: temperature: out of range, got nan"),
        (["run", "-m", "x", "-p", "y", "-l", "5"], "error: logit_bias: not a bias, got '5'"),
    ],
)
def test_usage_errors_are_one_line_and_exit_2(
    arguments: list[str], said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith(said)
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (UsageError("no"), 2, "error: no\n"),
        (
            BadInputError("is short", file="a.gguf", item="t", got=1, expected=2),
            3,
            "a.gguf: t: is short, got 1, expected 2",
        ),
        (FileError("full", file="b"), 4, "error: b: full\n"),
        (MemoryLimitError("too large"), 5, "error: too large\n"),
        (LocalMoeError("NaN logits"), 1, "error: NaN logits\n"),
        (FileNotFoundError(2, "No such file or directory", "c.gguf"), 4, "error: c.gguf: No such file or directory\n"),
        (MemoryError(), 5, "error: out of memory\n"),
        (KeyboardInterrupt(), 130, "error: interrupted\n"),
        (ZeroDivisionError("division by zero"), 1, "error: internal: ZeroDivisionError: division by zero"),
    ],
)
def test_failures_become_one_line_and_a_code(
    error: BaseException, code: int, said: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    got, err = fails(monkeypatch, capfd, error)
    assert got == code
    assert said in err
    assert err.count("\n") == 1


def test_debug_shows_where_a_bug_is(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("LOCALMOE_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        fails(monkeypatch, capfd, ZeroDivisionError())


def test_escape_sequences_in_a_name_do_not_reach_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    _, err = fails(monkeypatch, capfd, BadInputError("[red]bad[/red]", file="a\x1b]0;owned\x07\nb\x9b1m\u202e"))
    assert err == "error: a\\x1b]0;owned\\x07\\nb\\x9b1m\\u202e: [red]bad[/red]\n"
    assert one_line("Grüße 你好") == "Grüße 你好"


def test_output_that_nobody_reads_ends_quietly() -> None:
    """stdout is a pipe whose reader is gone before anything is written."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "localmoe", "--help"]
    with os.fdopen(writer, "w") as out:
        done = subprocess.run(command, stdout=out, stderr=subprocess.PIPE, cwd=ROOT, check=False)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_output_that_cannot_be_written_is_an_io_error() -> None:
    with open("/dev/full", "w") as out:
        command = [sys.executable, "-m", "localmoe", "--help"]
        done = subprocess.run(command, stdout=out, stderr=subprocess.PIPE, text=True, cwd=ROOT, check=False)
    assert (done.returncode, done.stderr) == (4, "error: standard output: No space left on device\n")


def test_closed_streams_are_no_bug() -> None:
    closed = "exec >&- 2>&-; exec "
    for arguments, code in (("--version", 0), ("nothing", 2)):
        command = ["sh", "-c", f'{closed} "{sys.executable}" -m localmoe {arguments}']
        assert subprocess.run(command, cwd=ROOT, check=False).returncode == code


def test_terminal_app_without_a_model_or_terminal_is_a_usage_error(tmp_path: Path) -> None:
    done = localmoe("tui", "-m", str(tmp_path / "none.gguf"), stdin=subprocess.DEVNULL)
    assert done.returncode == 2
    assert done.stderr.startswith("error: the terminal app needs a terminal")
