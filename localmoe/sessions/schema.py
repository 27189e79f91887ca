"""The tables of a sessions file, and what opens one: everything that can be wrong with it is said in one line.

`user_version` counts the schema's versions. Text of a reply that is being written goes into `pieces`, a row a token, so
that a token costs the same at any length; the turn gets its text when the reply ends, or when the file is next opened.
A turn's parent is no foreign key: a cascade along a chat of 1000 turns is deeper than SQLite allows.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from localmoe.errors import BadInputError, FileError

VERSION = 2
_APPLICATION = 0x4C6D6F45
"""`application_id`: "LmoE", so that another program's database is not taken for ours."""

_TABLES = """
CREATE TABLE sessions (
    id INTEGER PRIMARY KEY, title TEXT NOT NULL, named INTEGER NOT NULL DEFAULT 0, created REAL NOT NULL,
    updated REAL NOT NULL, model TEXT NOT NULL, system TEXT NOT NULL, parameters TEXT NOT NULL, leaf INTEGER,
    routing TEXT NOT NULL DEFAULT '{}'
);
CREATE INDEX by_age ON sessions (updated);
CREATE TABLE turns (
    id INTEGER PRIMARY KEY, session INTEGER NOT NULL REFERENCES sessions ON DELETE CASCADE,
    parent INTEGER, role TEXT NOT NULL, text TEXT NOT NULL, stop_reason TEXT,
    created REAL NOT NULL
);
CREATE INDEX by_session ON turns (session);
CREATE INDEX by_parent ON turns (parent);
CREATE TABLE pieces (turn INTEGER NOT NULL REFERENCES turns ON DELETE CASCADE, text TEXT NOT NULL);
CREATE INDEX by_turn ON pieces (turn);
CREATE TABLE models (path TEXT PRIMARY KEY, opened REAL NOT NULL);
"""
_CHANGES = {1: "ALTER TABLE sessions ADD COLUMN routing TEXT NOT NULL DEFAULT '{}'"}
"""What makes the next version of a version's tables."""
_INDEX = """
CREATE VIRTUAL TABLE words USING fts5(text, content='turns', content_rowid='id');
CREATE TRIGGER words_in AFTER INSERT ON turns BEGIN
    INSERT INTO words(rowid, text) VALUES (new.id, new.text);
END;
CREATE TRIGGER words_out AFTER DELETE ON turns BEGIN
    INSERT INTO words(words, rowid, text) VALUES ('delete', old.id, old.text);
END;
CREATE TRIGGER words_new AFTER UPDATE OF text ON turns BEGIN
    INSERT INTO words(words, rowid, text) VALUES ('delete', old.id, old.text);
    INSERT INTO words(rowid, text) VALUES (new.id, new.text);
END;
"""


def default_path() -> Path:
    """`sessions.db` in the user's data folder (XDG), or in the one that LOCALMOE_DATA names."""
    import platformdirs

    return Path(os.environ.get("LOCALMOE_DATA") or platformdirs.user_data_dir("localmoe")) / "sessions.db"


@contextlib.contextmanager
def saying(path: Path) -> Iterator[None]:
    """Turn what SQLite says about a file into a BadInputError (its content) or a FileError (the system)."""
    try:
        yield
    except sqlite3.Error as error:
        code = (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            raise BadInputError("the saved chats are damaged", file=path, got=str(error)) from None
        if isinstance(error, sqlite3.OperationalError):
            raise FileError(f"the saved chats cannot be used: {error}", file=path) from None
        raise BadInputError("the saved chats are not as expected", file=path, got=str(error)) from None


def connect(path: Path) -> sqlite3.Connection:
    """Open the file, or make it, readable by its owner alone.

    BadInputError: damaged, another program's, or of a newer localmoe, and left as it was; FileError: the system
    refused.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    except OSError as error:
        raise FileError(f"chats cannot be saved: {error.strerror} (LOCALMOE_DATA chooses another folder)",
                        file=error.filename or path) from None  # fmt: skip
    with saying(path):
        connection = sqlite3.connect(path, timeout=2.0, isolation_level=None, check_same_thread=False)
        try:
            _prepare(connection, path)
        except BaseException:
            connection.close()
            raise
    return connection


def only_readable(path: Path) -> bool:
    """Whether the file is there, and it or its folder, where SQLite keeps a log beside it, may not be written."""
    return os.path.isfile(path) and not (os.access(path, os.W_OK) and os.access(path.parent, os.W_OK))


def connect_to_read(path: Path) -> sqlite3.Connection:
    """Open a file that may not be written, and write nothing beside it unless another program is changing it.

    BadInputError: damaged, another program's, or not of this version; FileError: it may not be read either.
    """
    try:
        os.close(os.open(path, os.O_RDONLY))
    except OSError as error:
        raise FileError(f"the saved chats cannot be read: {error.strerror}", file=path) from None
    log = Path(f"{path}-wal")
    changing = os.path.isfile(log) and os.path.getsize(log) > 0
    address = f"file:{quote(os.fspath(path.absolute()))}?mode=ro{'' if changing else '&immutable=1'}"
    with saying(path):
        connection = sqlite3.connect(address, timeout=2.0, isolation_level=None, check_same_thread=False, uri=True)
        try:
            if _version(connection, path) < VERSION:
                raise BadInputError("was written by an older localmoe, and cannot be changed to what this one reads",
                                    file=path)  # fmt: skip
            _look(connection)
        except BaseException:
            connection.close()
            raise
    return connection


def _version(connection: sqlite3.Connection, path: Path) -> int:
    """The schema's version, 0 in an empty file."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (n_tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if n_tables and application != _APPLICATION:
        raise BadInputError("is not a file of saved chats", file=path)
    if version > VERSION:
        raise BadInputError("was written by a newer localmoe", file=path, got=f"schema {version}",
                            expected=f"at most {VERSION}")  # fmt: skip
    return int(version) if n_tables else 0


def _look(connection: sqlite3.Connection) -> None:
    """Read a row of each table: what is not there or not whole fails here."""
    for table in ("sessions", "turns", "pieces", "models"):
        connection.execute(f"SELECT * FROM {table} LIMIT 1").fetchone()


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    version = _version(connection, path)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("PRAGMA foreign_keys = ON")
    if not version:
        _make(connection)
    elif version < VERSION:
        _renew(connection)
    _look(connection)


def _make(connection: sqlite3.Connection) -> None:
    """Make the tables, all or none; of two programs that meet here the second finds them made."""
    tables = _TABLES + (_INDEX if has_full_text(connection) else "")
    connection.execute("BEGIN IMMEDIATE")
    try:
        if not connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            for statement in _statements(tables):
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {_APPLICATION}")
            connection.execute(f"PRAGMA user_version = {VERSION}")
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def _renew(connection: sqlite3.Connection) -> None:
    """Bring tables of an older version up to this one, all or none, whoever else does so at the same time."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        for older in range(version, VERSION):
            connection.execute(_CHANGES[older])
        connection.execute(f"PRAGMA user_version = {VERSION}")
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def _statements(script: str) -> Iterator[str]:
    part = ""
    for line in script.splitlines(keepends=True):
        part += line
        if sqlite3.complete_statement(part):
            yield part
            part = ""


def has_full_text(connection: sqlite3.Connection) -> bool:
    """Whether this SQLite was built with FTS5; without it a search looks through all texts."""
    return any(option == "ENABLE_FTS5" for (option,) in connection.execute("PRAGMA compile_options"))
