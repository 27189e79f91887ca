"""What the subcommands of `localmoe experts` share: the text to run, and how results are shown."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from localmoe.cli.common import read_text, show_text
from localmoe.errors import BadInputError, FileError, UsageError

if TYPE_CHECKING:
    from localmoe.engine.api import Model

TextFile = Annotated[str | None, typer.Option("-f", "--file", help="A file with the text; - is standard input.")]
Text = Annotated[str | None, typer.Option("-p", "--prompt", help="The text itself.")]
MaxTokens = Annotated[int | None, typer.Option("--tokens", min=2, help="Tokens of the text to run at most.")]
Trace = Annotated[Path, typer.Argument(metavar="TRACE", help="A recording (NPZ).", readable=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def given_text(prompt: str | None, file: str | None) -> str:
    """The text from the one place it was given in; UsageError where there is none or two, FileError unread."""
    if (prompt is None) == (file is None):
        got = "neither" if prompt is None else "both"
        raise UsageError("one text is needed", got=got, expected="-p TEXT or -f FILE")
    if prompt is not None:
        return prompt
    assert file is not None
    try:
        return read_text(file)
    except OSError as error:
        raise FileError(f"cannot be read: {error.strerror or error}", file=file) from None


def text_ids(model: Model, text: str, most: int | None = None, file: str | None = None, *, least: int = 2) -> list[int]:
    """Token ids of a text, `most` of them; BadInputError for fewer than `least`: what follows a token takes two."""
    ids = model.tokenize(text)[:most]
    if len(ids) < least:
        got, expected = (f"{n} token{'s' * (n != 1)}" for n in (len(ids), least))
        raise BadInputError("the text is too short", file=file, got=got, expected=f"at least {expected}")
    return ids


def counting(what: str) -> Callable[[int, int], None]:
    """A counter on stderr while many runs go on, where someone watches."""

    def on_run(done: int, total: int) -> None:
        if sys.stderr.isatty():
            print(f"\r{what}: run {done} of {total}", end="\n" if done == total else "", file=sys.stderr, flush=True)

    return on_run


def show(lines: Iterable[str]) -> None:
    """Lines to standard output; a terminal gets no control characters."""
    show_text("\n".join(lines) + "\n")


def print_json(value: Any) -> None:
    """One object on a line; a terminal gets ASCII alone."""
    import json

    print(json.dumps(value, allow_nan=False, ensure_ascii=sys.stdout.isatty()))
