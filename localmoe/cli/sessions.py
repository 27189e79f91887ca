"""`localmoe sessions`: the chats that the terminal app and `localmoe chat` have kept."""

from __future__ import annotations

import json
import os
import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from localmoe.cli.common import say
from localmoe.cli.output_path import output_path
from localmoe.errors import UsageError
from localmoe.text.visible import visible

if TYPE_CHECKING:
    from localmoe.sessions.store import Store

sessions = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    help="The chats that the terminal app and `localmoe chat` have kept (LOCALMOE_DATA chooses the folder).",
)
Chat = Annotated[int | None, typer.Argument(metavar="CHAT", help="A chat's number. [default: the newest]")]


def open_store() -> Store:
    """The user's chats; UsageError where none were ever kept."""
    from localmoe.sessions.schema import default_path
    from localmoe.sessions.store import Store

    path = default_path()
    if not path.exists():
        raise UsageError("no chats were saved yet", file=path)
    return Store(path)


def _to_read() -> Store:
    """The user's chats, with a line where they can be read alone."""
    store = open_store()
    if store.read_only:
        say(f"note: {store.path} may not be written: chats are read as they were kept")
    return store


def kept_chat(number: int | None, model: Path | None, tiny: bool = False) -> tuple[int, Path | None]:
    """A chat to go on with (None: the newest) and the model for it; UsageError where one is missing."""
    with open_store() as store:
        chosen = store.newest() if number is None else number
        if chosen is None:
            raise UsageError("no chats were saved yet", file=store.path)
        its_own = Path(store.load(chosen).entry.model)
    if model is None and not tiny and not os.path.isfile(its_own):
        raise UsageError("the model of this chat is not there any more", file=its_own, expected="-m MODEL")
    return chosen, model or (None if tiny else its_own)


def _number(store: Store, chat: int | None) -> int:
    chosen = store.newest() if chat is None else chat
    if chosen is None:
        raise UsageError("no chats were saved yet", file=store.path)
    return chosen


@sessions.command("list")
def list_sessions(
    search: Annotated[str, typer.Argument(metavar="WORDS", help="Only chats that hold all these words.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON list.")] = False,
) -> None:
    """Chats, the newest first: number, last change, turns, title."""
    with _to_read() as store:
        entries = store.entries(search)
    if as_json:
        print(json.dumps([vars(entry) for entry in entries], ensure_ascii=sys.stdout.encoding != "utf-8", indent=2))
        return
    for entry in entries:
        changed = datetime.fromtimestamp(entry.updated)
        print(f"{entry.key:>5}  {changed:%Y-%m-%d %H:%M}  {entry.n_turns:>4}  {visible(entry.title)}")


@sessions.command()
def export(
    chat: Chat = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="PATH",
            parser=output_path,
            help="The file: .md or .json. [default: standard output]",
        ),
    ] = None,
    kind: Annotated[str | None, typer.Option("--format", help="md: the branch being read; json: all.")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Write over a file that exists.")] = False,
) -> None:
    """Write a chat as Markdown or JSON."""
    from localmoe.sessions.export import format_of, render, write

    with _to_read() as store:
        saved, kept = store.load(_number(store, chat)), store.path
    if out is None:
        sys.stdout.write(render(saved, format_of(Path(), kind or "md")))
    else:
        say(f"written: {write(saved, out, kind, replace=replace, inputs=[kept])}")


@sessions.command()
def rename(
    chat: Annotated[int, typer.Argument(metavar="CHAT", help="A chat's number.")],
    title: Annotated[str, typer.Argument(help="Its new title.")],
) -> None:
    """Give a chat another title."""
    if not title.strip():
        raise UsageError("the title is empty")
    with open_store() as store:
        store.load(chat)
        store.rename(chat, title.strip())


@sessions.command()
def delete(chat: Annotated[int, typer.Argument(metavar="CHAT", help="A chat's number.")]) -> None:
    """Forget a chat with all its branches."""
    with open_store() as store:
        store.load(chat)
        store.delete(chat)
