"""The file of saved chats. Every change is committed at once, so that a crash loses nothing that was handed over."""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from localmoe.errors import UsageError
from localmoe.sessions.schema import connect, connect_to_read, only_readable, saying
from localmoe.sessions.tree import Conversation, Turn

INTERRUPTED = "interrupted"
"""The stop reason of a reply whose end was never seen."""
MOST = 500
"""Chats that a list shows."""
_FROM = """SELECT s.id, s.title, s.created, s.updated, s.model,
    (SELECT count(*) FROM turns t WHERE t.session = s.id) AS n_turns FROM sessions s"""


@dataclass(frozen=True)
class Entry:
    """A chat in a list; times are seconds since 1970, `model` is the path of the file it was had with."""

    key: int
    title: str
    created: float
    updated: float
    model: str
    n_turns: int


@dataclass(frozen=True)
class Saved:
    """A chat as it was kept; `parameters` and `routing`, rules as they are typed, are what was stored, unchecked."""

    entry: Entry
    conversation: Conversation
    parameters: Mapping[str, Any]
    routing: Mapping[str, Any] = field(default_factory=dict)


class Store:
    """An open file of chats, for any thread. What SQLite refuses is a FileError or a BadInputError.

    `read_only`: the file may not be written, and every change is a FileError.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.RLock()
        self.read_only = only_readable(path)
        if self.read_only:
            self._connection = connect_to_read(path)
            return
        self._connection = connect(path)
        with self._change():
            self._settle()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    # --- one chat

    def create(
        self, title: str, model: str, system: str, parameters: Mapping[str, Any], routing: Mapping[str, str]
    ) -> int:
        """Begin a chat; its number."""
        now = time.time()
        row = (title, now, now, model, system, json.dumps(dict(parameters)), json.dumps(dict(routing)))
        with self._change() as run:
            key = run(
                "INSERT INTO sessions (title, created, updated, model, system, parameters, routing) "
                "VALUES (?, ?, ?, ?, ?, ?, ?)",
                row,
            ).lastrowid
        assert key is not None
        return key

    def configure(
        self, session: int, model: str, system: str, parameters: Mapping[str, Any], routing: Mapping[str, str]
    ) -> None:
        """Keep with what a chat goes on."""
        row = (model, system, json.dumps(dict(parameters)), json.dumps(dict(routing)), session)
        with self._change() as run:
            run("UPDATE sessions SET model = ?, system = ?, parameters = ?, routing = ? WHERE id = ?", row)

    def add(self, session: int, parent: int | None, turn: Turn) -> int:
        """Keep a turn after `parent`, as the line's last; its number."""
        now = time.time()
        row = (session, parent, turn.role, turn.text, turn.stop_reason, now)
        with self._change() as run:
            key = run(
                "INSERT INTO turns (session, parent, role, text, stop_reason, created) VALUES (?, ?, ?, ?, ?, ?)", row
            ).lastrowid
            run("UPDATE sessions SET leaf = ?, updated = ? WHERE id = ?", (key, now, session))
        assert key is not None
        return key

    def append(self, turn: int, text: str) -> None:
        """Keep a piece of a reply that is being written."""
        with self._lock, saying(self.path):
            self._connection.execute("INSERT INTO pieces (turn, text) VALUES (?, ?)", (turn, text))

    def finish(self, turn: int, text: str, stop_reason: str | None) -> None:
        """Keep a whole text in place of its pieces."""
        with self._change() as run:
            run("DELETE FROM pieces WHERE turn = ?", (turn,))
            run("UPDATE turns SET text = ?, stop_reason = ? WHERE id = ?", (text, stop_reason, turn))
            run("UPDATE sessions SET updated = ? WHERE id = (SELECT session FROM turns WHERE id = ?)",
                (time.time(), turn))  # fmt: skip

    def remove(self, turn: int) -> None:
        """Forget a turn and all that follow it."""
        with self._change() as run:
            run("WITH RECURSIVE gone(id) AS (SELECT ? UNION SELECT t.id FROM turns t JOIN gone ON t.parent = gone.id) "
                "DELETE FROM turns WHERE id IN gone", (turn,))  # fmt: skip

    def look_at(self, session: int, leaf: int | None) -> None:
        """Keep which branch is being read, by its last turn."""
        with self._change() as run:
            run("UPDATE sessions SET leaf = ? WHERE id = ?", (leaf, session))

    def rename(self, session: int, title: str) -> None:
        """Give a chat a name of the user's."""
        with self._change() as run:
            run("UPDATE sessions SET title = ?, named = 1 WHERE id = ?", (title, session))

    def delete(self, session: int) -> None:
        """Forget a chat."""
        with self._change() as run:
            run("DELETE FROM sessions WHERE id = ?", (session,))

    def load(self, session: int) -> Saved:
        """A chat with all its branches; UsageError where there is none of this number."""
        with self._transaction("BEGIN") as run:
            found = run(f"{_FROM} WHERE s.id = ?", (session,)).fetchone()
            if found is None:
                raise UsageError("no such chat", got=session)
            system, parameters, routing, leaf = run(
                "SELECT system, parameters, routing, leaf FROM sessions WHERE id = ?", (session,)
            ).fetchone()
            rows = run(
                "SELECT id, parent, role, text, stop_reason FROM turns WHERE session = ? ORDER BY id", (session,)
            ).fetchall()
            late: dict[int, str] = {}  # pieces of replies that another program is writing, or did not end
            for turn, text in run(
                "SELECT turn, text FROM pieces WHERE turn IN (SELECT id FROM turns WHERE session = ?) ORDER BY rowid",
                (session,),
            ):
                late[turn] = late.get(turn, "") + str(text)
        return Saved(_entry(found), _grown(str(system), rows, leaf, late), _object(parameters), _object(routing))

    # --- all chats

    def newest(self) -> int | None:
        """The chat that was changed last."""
        found = self._all("SELECT id FROM sessions ORDER BY updated DESC, id DESC LIMIT 1")
        return int(found[0][0]) if found else None

    def entries(self, search: str = "") -> list[Entry]:
        """Chats, the newest first; with `search`, those whose turns or title hold all its words."""
        terms = search.split()
        conditions, values = [], []
        for term in terms:
            condition, value = self._contains(term)
            conditions.append(f"(s.title LIKE ? ESCAPE '\\' OR s.id IN ({condition}))")
            values += [_like(term), value]
        where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
        rows = self._all(f"{_FROM}{where} ORDER BY s.updated DESC, s.id DESC LIMIT {MOST}", tuple(values))
        return [_entry(row) for row in rows]

    def questions(self, most: int = 100) -> list[str]:
        """What the user said last in any chat, the newest last."""
        rows = self._all("SELECT text FROM turns WHERE role = 'user' ORDER BY id DESC LIMIT ?", (most,))
        return [str(text) for (text,) in reversed(rows)]

    def opened(self, model: str) -> None:
        """Keep that a model was opened now."""
        with self._change() as run:
            run("INSERT OR REPLACE INTO models (path, opened) VALUES (?, ?)", (model, time.time()))

    def recent_models(self, most: int = 20) -> list[str]:
        """Models that were opened, the last one first."""
        return [str(p) for (p,) in self._all("SELECT path FROM models ORDER BY opened DESC LIMIT ?", (most,))]

    # --- below

    def _change(self) -> AbstractContextManager[Callable[..., sqlite3.Cursor]]:
        """`execute` within one transaction that writes."""
        return self._transaction("BEGIN IMMEDIATE")

    @contextmanager
    def _transaction(self, begin: str) -> Iterator[Callable[..., sqlite3.Cursor]]:
        with self._lock, saying(self.path):
            self._connection.execute(begin)
            try:
                yield self._connection.execute
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def _all(self, query: str, values: tuple[Any, ...] = ()) -> list[Any]:
        with self._lock, saying(self.path):
            return self._connection.execute(query, values).fetchall()

    def _settle(self) -> None:
        """Put the pieces of replies that were cut off into their turns.

        One that another program is writing right now goes on: its later pieces follow, and its end replaces all.
        """
        run = self._connection.execute
        for (turn,) in run("SELECT DISTINCT turn FROM pieces").fetchall():
            pieces = run("SELECT text FROM pieces WHERE turn = ? ORDER BY rowid", (turn,)).fetchall()
            run("UPDATE turns SET text = text || ? WHERE id = ?", ("".join(str(text) for (text,) in pieces), turn))
            run("DELETE FROM pieces WHERE turn = ?", (turn,))

    def _contains(self, term: str) -> tuple[str, str]:
        """A query for the chats with a word that begins so, or, without an index of words, that hold the text."""
        indexed = self._all("SELECT 1 FROM sqlite_master WHERE name = 'words'")
        if indexed and any(char.isalnum() for char in term):
            quoted = '"' + term.replace('"', '""') + '"*'
            return "SELECT session FROM turns WHERE id IN (SELECT rowid FROM words WHERE words MATCH ?)", quoted
        return "SELECT session FROM turns WHERE text LIKE ? ESCAPE '\\'", _like(term)


def _like(term: str) -> str:
    for char in "\\%_":
        term = term.replace(char, "\\" + char)
    return f"%{term}%"


def _entry(row: sqlite3.Row | tuple[Any, ...]) -> Entry:
    key, title, created, updated, model, n_turns = row
    return Entry(int(key), str(title), _number(created), _number(updated), str(model), int(n_turns))


def _number(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) else 0.0


def _object(text: object) -> dict[str, Any]:
    """A JSON object, empty where the text is none."""
    try:
        value = json.loads(str(text))
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _grown(system: str, rows: list[Any], leaf: int | None, late: Mapping[int, str]) -> Conversation:
    """The tree of rows (id, parent, role, text, stop_reason) in the order of their ids, read up to `leaf`.

    `late` has by id what follows the text of a row.
    """
    conversation = Conversation(system)
    known: dict[int, Turn] = {}
    for key, parent, role, text, stop_reason in rows:
        if role not in ("user", "assistant") or (parent is not None and parent not in known):
            continue  # not of our making
        ended = stop_reason if stop_reason or role == "user" else INTERRUPTED
        known[key] = conversation.restore(Turn(role, f"{text}{late.get(key, '')}", ended, key), known.get(parent))
    if leaf in known:
        conversation.go(known[leaf])
    return conversation
