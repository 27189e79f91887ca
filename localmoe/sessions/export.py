"""A chat as Markdown, the line that is read, or as JSON, with all branches."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from localmoe.errors import FileError, UsageError
from localmoe.output_file import check_target, replacing
from localmoe.sessions.store import Saved
from localmoe.sessions.tree import Turn
from localmoe.text.visible import visible

FORMATS = {"md": ".md", "json": ".json"}
_ROLES = {"user": "You", "assistant": "Model"}
_ENDS = {
    "length": "ended after as many tokens as were asked for",
    "cancelled": "stopped",
    "context": "ended where the context was full",
    "interrupted": "broken off",
    "error": "ended by an error",
}
"""How a reply ended that the model did not end itself."""
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
_ROUTING = {"used": "top-{}", "left": "{} left out", "forced": "{} forced", "threshold": "weights below {} skipped"}


def harmless(text: str) -> str:
    """Text for a file that someone may print to a terminal: no control characters but newline and tab."""
    return visible(text.replace("\r\n", "\n"), keep_newlines=True)


def format_of(path: Path, wanted: str | None = None) -> str:
    """The format asked for, or the one of the file's ending; UsageError where neither is known."""
    found = wanted or path.suffix.lower().removeprefix(".").replace("markdown", "md")
    if found not in FORMATS:
        raise UsageError("unknown format", got=repr(found), expected=" or ".join(FORMATS))
    return found


def to_markdown(saved: Saved) -> str:
    """Title, what it was had with, and the turns of the line being read, each under its role."""
    entry, conversation = saved.entry, saved.conversation
    began = datetime.fromtimestamp(entry.created, UTC)
    parts = [f"# {_line(entry.title)}", f"{began:%Y-%m-%d %H:%M} UTC, {_line(Path(entry.model).name)}"]
    settings = [f"{name} {value}" for name, value in saved.parameters.items()]
    settings += [_ROUTING[n].format(v) for n, v in saved.routing.items() if n in _ROUTING and v not in (None, "", "0")]
    if settings:
        parts.append(_line(f"With {', '.join(settings)}."))
    if conversation.system:
        parts += ["## System prompt", harmless(conversation.system)]
    for turn in conversation.turns:
        parts += [f"## {_ROLES[turn.role]}", _closed(harmless(turn.text))]
        if turn.role == "assistant" and turn.stop_reason not in (None, "eos", "stop", "edited"):
            parts.append(f"*({_ENDS.get(turn.stop_reason, _line(turn.stop_reason))})*")
    return "\n\n".join(parts) + "\n"


def _closed(text: str) -> str:
    """Markdown whose last code block ends with it: one that was broken off would take in all that follows."""
    fence = ""
    for line in text.split("\n"):
        mark = _FENCE.match(line)
        if mark and not fence:
            fence = mark[1]
        elif mark and mark[1].startswith(fence) and not line.strip(" \t" + fence[0]):
            fence = ""
    return f"{text}\n{fence}" if fence else text


def to_json(saved: Saved) -> str:
    """One object: what it was had with, all turns with the number of the turn before, and the line being read."""
    entry, conversation = saved.entry, saved.conversation
    numbers = {turn: number for number, turn in enumerate(conversation.all_turns())}
    turns = [_turn(turn, number, numbers) for turn, number in numbers.items()]
    value = {
        "format": "localmoe-chat",
        "version": 1,
        "title": harmless(entry.title),
        "created": datetime.fromtimestamp(entry.created, UTC).isoformat(timespec="seconds"),
        "updated": datetime.fromtimestamp(entry.updated, UTC).isoformat(timespec="seconds"),
        "model": harmless(entry.model),
        "system": harmless(conversation.system),
        "parameters": dict(saved.parameters),
        "routing": dict(saved.routing),
        "turns": turns,
        "line": [numbers[turn] for turn in conversation.turns],
    }
    return json.dumps(value, ensure_ascii=False, indent=2) + "\n"


def _turn(turn: Turn, number: int, numbers: dict[Turn, int]) -> dict[str, Any]:
    above = numbers.get(turn.parent) if turn.parent is not None else None
    return {
        "number": number,
        "parent": above,
        "role": turn.role,
        "text": harmless(turn.text),
        "stop_reason": turn.stop_reason,
    }


def render(saved: Saved, wanted: str) -> str:
    """The chat in a format of FORMATS."""
    return to_json(saved) if wanted == "json" else to_markdown(saved)


def write(
    saved: Saved, path: Path, wanted: str | None = None, *, replace: bool = False, inputs: Sequence[Path] = ()
) -> Path:
    """Write a chat to a file, all or nothing; the file's path. UsageError where it exists, unless `replace`, and where
    it is one of `inputs`."""
    kind = format_of(path, wanted)
    target = check_target(path.expanduser(), inputs, file=str(path))
    if target.exists() and not replace:
        raise UsageError("the file exists already", file=path)
    try:
        data = render(saved, kind).encode("utf-8", "backslashreplace")
    except OverflowError as error:  # a time that no calendar has
        raise FileError(str(error), file=path) from None
    with replacing(target) as out:
        out.write(data)
    return target


def file_name(title: str, kind: str) -> str:
    """A file's name for a chat."""
    words = re.sub(r"[^\w]+", "-", title, flags=re.ASCII).strip("-").lower()[:48].rstrip("-")
    return f"{words or 'chat'}{FORMATS[kind]}"


def _line(text: str) -> str:
    return " ".join(harmless(text).split())
