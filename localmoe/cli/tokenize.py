"""`localmoe tokenize`: how a model's tokenizer sees a text."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer


def tokenize(
    text: Annotated[str | None, typer.Argument(help="The text; - or --stdin reads standard input.")] = None,
    model: Annotated[
        Path | None, typer.Option("-m", "--model", help="A GGUF file; its vocabulary is enough.", readable=False)
    ] = None,
    stdin: Annotated[bool, typer.Option("--stdin", help="Read the text from standard input.")] = False,
    ids: Annotated[bool, typer.Option("--ids", help="Print the ids alone, in one line.")] = False,
    no_bos: Annotated[bool, typer.Option("--no-bos", help="Add no BOS even where the model wants one.")] = False,
    parse_special: Annotated[
        bool, typer.Option("--parse-special", help="Turn the text of special tokens into them.")
    ] = False,
) -> None:
    """Show the tokens of a text: a line each with id and piece, or the ids alone."""
    from localmoe.cli.cut_off import tell_when_cut_off
    from localmoe.cli.text_input import read_utf8
    from localmoe.errors import UsageError
    from localmoe.text import tokenizer

    if model is None:
        raise UsageError("which model? give one with -m")
    reading = stdin or text == "-"
    if reading and text not in (None, "-"):
        raise UsageError("give a text or --stdin, not both")
    if not reading and text is None:
        raise UsageError("no text: give one, or --stdin")
    tell_when_cut_off(model)
    tok = tokenizer.load(model)
    found = tok.encode(read_utf8("-") if reading else text or "", add_bos=not no_bos, parse_special=parse_special)
    if ids:
        sys.stdout.write(" ".join(map(str, found)) + "\n")
    else:
        width = len(str(tok.n_vocab - 1))
        sys.stdout.writelines(f"{i:>{width}} -> {_shown(tok.token(i))}\n" for i in found)


def _shown(piece: bytes) -> str:
    """A piece in quotes, with control characters and bytes that are no characters escaped."""
    from localmoe.text.visible import visible

    text = piece.decode("utf-8", "surrogateescape")  # a token may hold part of a character
    escaped = "".join(f"\\x{ord(c) - 0xDC00:02x}" if 0xDC80 <= ord(c) <= 0xDCFF else visible(c) for c in text)
    return f"'{escaped}'"
