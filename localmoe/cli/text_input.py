"""Text that a command is given: a file, or standard input."""

from __future__ import annotations

import sys

from localmoe.errors import BadInputError

MAX_TEXT = 1 << 30  # bytes: more is no text, but a device or a model


def read_utf8(path: str) -> str:
    """A UTF-8 file, or standard input for `-`; BadInputError where it is none, or too much."""
    name = "standard input" if path == "-" else path
    if path == "-":
        data = sys.stdin.buffer.read(MAX_TEXT + 1)
    else:
        with open(path, "rb") as file:
            data = file.read(MAX_TEXT + 1)
    if len(data) > MAX_TEXT:
        raise BadInputError("too much to be a text", file=name, expected=f"at most {MAX_TEXT} bytes")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise BadInputError("not UTF-8", file=name, item=f"byte {error.start}") from None
