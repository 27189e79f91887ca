"""`localmoe tokenize`, run as a function of its own app."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from localmoe.cli import text_input
from localmoe.cli.tokenize import tokenize
from localmoe.errors import BadInputError, FileError, UsageError
from tests.text.small import bpe_metadata, write

APP = typer.Typer()
APP.command()(tokenize)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write(tmp_path_factory.mktemp("vocab") / "small.gguf", bpe_metadata(add_bos_token=True)))


def run(*args: str, text: str | bytes | None = None) -> str:
    result = CliRunner().invoke(APP, list(args), input=text)
    if result.exception is not None:
        raise result.exception
    return result.stdout


def test_ids_come_in_one_line(model: str) -> None:
    assert run("-m", model, "abc", "--ids") == "263 257\n"
    assert run("-m", model, "abc", "--ids", "--no-bos") == "257\n"
    assert run("-m", model, "<|im_end|>", "--ids", "--no-bos", "--parse-special") == "262\n"


def test_pieces_come_one_a_line_with_control_characters_shown(model: str) -> None:
    assert run("-m", model, "--no-bos", "ab\x1b[é") == (
        "256 -> 'ab'\n 27 -> '\\x1b'\n 91 -> '['\n195 -> '\\xc3'\n169 -> '\\xa9'\n"
    )


def test_standard_input_is_read_as_it_is(model: str) -> None:
    assert run("-m", model, "--stdin", "--ids", "--no-bos", text="ab\r\n") == "256 13 10\n"
    assert run("-m", model, "-", "--ids", "--no-bos", text="") == "\n"
    with pytest.raises(BadInputError, match="standard input: byte 1: not UTF-8"):
        run("-m", model, "--stdin", text=b"a\xff")


def test_misuse_is_a_usage_error(model: str) -> None:
    for args in (("-m", model), ("text",), ("-m", model, "text", "--stdin")):
        with pytest.raises(UsageError):
            run(*args)


def test_a_missing_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"nothing\.gguf"):
        run("-m", str(tmp_path / "nothing.gguf"), "x")


def test_endless_input_is_no_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """Devices and pipes may have no end: /dev/zero took all of the memory."""
    monkeypatch.setattr(text_input, "MAX_TEXT", 1 << 16)
    with pytest.raises(BadInputError, match="/dev/zero: too much to be a text, expected at most 65536 bytes"):
        text_input.read_utf8("/dev/zero")
