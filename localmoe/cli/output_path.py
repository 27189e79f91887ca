"""Where a command writes to, as the command line spells it."""

from __future__ import annotations

import os
from pathlib import Path

from localmoe.errors import FileError


def output_path(text: str) -> Path:
    """The path of a file to write; FileError for a folder's name, which a Path does not tell: `new/` is `new` there."""
    if os.path.basename(text) in ("", ".", ".."):
        raise FileError("names a folder", file=text or repr(text), expected="the name of a file to write")
    return Path(text)
