"""The user's own keys: a TOML file of `"binding.id" = "key,key"`."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Collection, Mapping
from difflib import get_close_matches
from pathlib import Path

from textual.binding import Binding
from textual.dom import DOMNode

from localmoe.errors import BadInputError, FileError
from localmoe.gguf_file import visible

MOST_BYTES = 64 << 10
_NAMED = {
    "escape", "enter", "tab", "space", "backspace", "delete", "insert", "home", "end", "pageup", "pagedown", "up",
    "down", "left", "right", *(f"f{n}" for n in range(1, 25)),
}  # fmt: skip
_MODIFIERS = {"ctrl", "shift", "alt"}


def binding_ids() -> dict[str, str]:
    """Every key binding's name in a file of keys, and its usual keys: those of all classes of the app by now."""
    found: dict[str, str] = {}
    classes: list[type[DOMNode]] = [DOMNode]
    for place in classes:
        classes += place.__subclasses__()
        if place.__module__.startswith(__package__ or "localmoe.tui"):
            own = [binding for binding in place.__dict__.get("BINDINGS", ()) if isinstance(binding, Binding)]
            found.update({binding.id: binding.key for binding in own if binding.id})
    return dict(sorted(found.items()))


def keys_path(environ: Mapping[str, str] = os.environ) -> Path:
    """`localmoe/keys.toml` in the user's configuration folder; LOCALMOE_KEYS names another file."""
    if named := environ.get("LOCALMOE_KEYS"):
        return Path(named)
    base = environ.get("XDG_CONFIG_HOME") or environ.get("APPDATA")
    return (Path(base) if base else Path.home() / ".config") / "localmoe" / "keys.toml"


def read_keys(path: Path, known: Collection[str]) -> dict[str, str]:
    """Keys by binding id, {} without a file; BadInputError names the line's id and what is wrong with it."""
    name = visible(os.fspath(path))
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise FileError(f"cannot be read: {error.strerror or error}", file=name) from None
    if len(data) > MOST_BYTES:
        raise BadInputError("too long for a file of keys", file=name, expected=f"at most {MOST_BYTES} bytes")
    try:
        table = tomllib.loads(data.decode("utf-8"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BadInputError("not TOML", file=name, got=visible(str(error), 100)) from None
    for binding, keys in table.items():
        item = visible(binding, 40)
        if binding not in known:
            near = get_close_matches(binding, known, n=1) or ["a name of docs/app.md"]
            raise BadInputError("no such key binding", file=name, item=item, expected=near[0])
        if not isinstance(keys, str) or not keys:
            raise BadInputError("not a key", file=name, item=item, got=visible(repr(keys), 40), expected='"ctrl+y"')
        for key in keys.split(","):
            _check_key(key, name, item)
    return table


def _check_key(key: str, file: str, item: str) -> None:
    *modifiers, last = key.strip().split("+")
    plain = len(last) == 1 and last.isprintable() and not last.isspace()
    worded = last.replace("_", "").isalpha() and "_" in last  # left_square_bracket and the like
    if not set(modifiers) <= _MODIFIERS or not (plain or worded or last in _NAMED):
        got, expected = visible(repr(key), 40), "as in ctrl+y, f12, escape, left_square_bracket"
        raise BadInputError("not a key", file=file, item=item, got=got, expected=expected)
