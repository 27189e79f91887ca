"""The file of chats: what is kept, found again, and said when the file is not what it must be."""

from __future__ import annotations

import os
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest

from localmoe.errors import BadInputError, FileError, UsageError
from localmoe.sessions import schema
from localmoe.sessions.record import Record, title_of
from localmoe.sessions.store import INTERRUPTED, Store


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "sessions.db"


def talk(store: Store, *questions: str, system: str = "") -> Record:
    """A chat whose replies repeat the question."""
    record = Record(store, "/m/model.gguf", system, {"temperature": 0.5})
    for question in questions:
        record.ask(question)
        turn = record.begin_reply()
        turn.text = f"re {question}"
        record.end_reply(turn, "eos")
    assert record.trouble is None
    return record


def test_a_chat_comes_back_with_its_branches_and_settings(path: Path) -> None:
    with Store(path) as store:
        record = talk(store, "one", "two", system="Be brief.")
        record.edit(record.turns[0], "uno")
        record.step(record.turns[0], -1)
        again = record.reply_again(record.turns[3])
        again.text = "other"
        record.end_reply(again, "cancelled")
        record.configure(top_k=7)
        key = record.key
    assert key is not None
    with Store(path) as store:
        saved = store.load(key)
        assert [turn.text for turn in saved.conversation.turns] == ["one", "re one", "two", "other"]
        assert [turn.text for turn in saved.conversation.all_turns()] == [
            "one", "re one", "two", "re two", "other", "uno",
        ]  # fmt: skip
        assert saved.conversation.turns[-1].stop_reason == "cancelled"
        assert saved.conversation.system == "Be brief."
        assert saved.parameters == {"temperature": 0.5, "top_k": 7}
        assert (saved.entry.model, saved.entry.title, saved.entry.n_turns) == ("/m/model.gguf", "one", 6)


def test_the_branch_being_read_is_kept(path: Path) -> None:
    with Store(path) as store:
        record = talk(store, "one", "two")
        other = record.edit(record.turns[0], "uno")
        record.step(other, 1)
        assert store.load(record.key or 0).conversation.turns[0].text == "one"
        record.step(record.turns[0], 1)
        assert [t.text for t in store.load(record.key or 0).conversation.turns] == ["uno"]


def test_an_empty_chat_is_not_kept(path: Path) -> None:
    with Store(path) as store:
        Record(store, "m", "system", {}).configure(top_k=1)
        assert store.entries() == []
        assert store.newest() is None


def test_nothing_is_lost_when_the_process_is_killed(path: Path) -> None:
    """SIGKILL in the middle of a reply: every piece handed over is there, and the reply says it was cut off."""
    program = """
import sys, time
from contextlib import closing
from pathlib import Path
from localmoe.sessions.record import Record
from localmoe.sessions.store import Store
record = Record(Store(Path(sys.argv[1])), "m", "", {})
record.ask("why?")
keep = record.piece(record.begin_reply())
for n in range(50):
    keep(f"w{n} ")
print("there", flush=True)
time.sleep(60)
"""
    root = Path(__file__).parents[2]
    child = subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, cwd=root, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "there\n"
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    with Store(path) as store:
        turn = store.load(store.newest() or 0).conversation.turns[-1]
        assert turn.text == "".join(f"w{n} " for n in range(50))
        assert turn.stop_reason == INTERRUPTED
        assert len(store.entries("w49")) == 1


def test_opening_beside_a_writer_loses_nothing(path: Path) -> None:
    """A second program opens the file while a reply is written; its end has the text once."""
    with Store(path) as store:
        record = Record(store, "m", "", {})
        record.ask("a")
        turn = record.begin_reply()
        keep = record.piece(turn)
        keep("x")
        with Store(path) as second:
            assert second.load(record.key or 0).conversation.turns[-1].text == "x"
        keep("y")
        assert store.load(record.key or 0).conversation.turns[-1].text == "xy"
        turn.text = "xyz"
        record.end_reply(turn, "eos")
        assert store.load(record.key or 0).conversation.turns[-1].text == "xyz"


def test_threads_share_a_store(path: Path) -> None:
    """The engine's thread writes pieces while the screen's reads."""
    with Store(path) as store:
        record = Record(store, "m", "", {})
        record.ask("a")
        turn = record.begin_reply()
        keep = record.piece(turn)
        thread = threading.Thread(target=lambda: [keep("p") for _ in range(200)])
        thread.start()
        while thread.is_alive():
            store.entries("a")
        assert record.trouble is None
        assert store.load(record.key or 0).conversation.turns[-1].text == "p" * 200


@pytest.mark.parametrize("full_text", [True, False])
def test_search_finds_all_words_in_turns_and_titles(path: Path, monkeypatch, full_text: bool) -> None:
    """Beginnings of words, in any case and order; signs of SQL and of FTS mean nothing."""
    if not full_text:
        monkeypatch.setattr(schema, "has_full_text", lambda connection: False)
    with Store(path) as store:
        talk(store, "The lighthouse keeper", "and his Cat")
        talk(store, '100% of "quotes" OR NEAR(x)', "café")
        found = {entry.title: entry for entry in store.entries()}
        assert len(found) == 2

        def titles(search: str) -> list[str]:
            return [entry.title[:3] for entry in store.entries(search)]

        assert titles("lighth") == ["The"]
        assert titles("CAT keeper") == ["The"]
        assert titles("cat quotes") == []
        assert titles("100%") == ["100"]
        assert titles('"quotes"') == ["100"]
        assert titles("near(x)") == ["100"]
        assert titles("café") == ["100"]
        assert titles("%") == ["100"]
        assert titles("' OR 1=1 --") == []
        store.rename(found["The lighthouse keeper"].key, "harbour")
        assert titles("harb") == ["har"]


def test_search_follows_changes(path: Path) -> None:
    """Deleted texts are not found; of a replaced one only the new words are."""
    with Store(path) as store:
        record = talk(store, "alpha")
        turn = record.turns[1]
        turn.text = "omega"
        record.end_reply(turn, "eos")
        assert len(store.entries("omega")) == 1
        assert store.entries("re") == []
        store.delete(record.key or 0)
        assert store.entries("omega") == []
        assert store.entries() == []
        with pytest.raises(UsageError, match="no such chat"):
            store.load(record.key or 0)


def test_a_chat_of_thousands_of_turns_is_kept_and_deleted(path: Path) -> None:
    """Deeper than SQLite's trigger depth and Python's recursion."""
    with Store(path) as store:
        key = store.create("long", "m", "", {}, {})
        with store._change() as run:
            for n in range(1, 5001):
                run("INSERT INTO turns (id, session, parent, role, text, created) VALUES (?, ?, ?, 'user', 'x', 0)",
                    (n, key, n - 1 or None))  # fmt: skip
        assert len(store.load(key).conversation.turns) == 5000
        store.delete(key)
        assert store.entries() == []


def test_the_newest_first(path: Path) -> None:
    with Store(path) as store:
        first, second = talk(store, "first"), talk(store, "second")
        assert [entry.title for entry in store.entries()] == ["second", "first"]
        first.ask("more")
        assert [entry.title for entry in store.entries()] == ["first", "second"]
        assert store.newest() == first.key
        assert store.questions(2) == ["second", "more"]
        assert second.key is not None


def test_models_that_were_opened(path: Path) -> None:
    with Store(path) as store:
        for name in ("a", "b", "a"):
            store.opened(name)
        assert store.recent_models() == ["a", "b"]


def test_the_files_are_the_owners_alone(path: Path) -> None:
    Store(path).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def use(path: Path) -> None:
    """A file cut in half opens where its first pages are whole; reading it fails then."""
    with Store(path) as store:
        store.entries()
        store.load(1)


@pytest.mark.parametrize("how", ["text", "half", "other", "newer", "folder", "readonly"])
def test_a_file_that_cannot_be_used_is_one_line_and_left_alone(path: Path, how: str) -> None:
    if how == "readonly" and os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    path.parent.mkdir()
    if how in ("half", "newer"):
        with Store(path) as store:
            for n in range(30):
                talk(store, f"question {n} " * 50)
            if how == "newer":
                store._connection.execute("PRAGMA user_version = 99")
    if how == "text":
        path.write_text("not a database " * 100)
    elif how == "half":
        path.write_bytes(path.read_bytes()[:5000])
    elif how == "other":
        with sqlite3.connect(path) as connection:
            connection.execute("CREATE TABLE sessions (x)")
        connection.close()
    elif how == "folder":
        path.mkdir()
    elif how == "readonly":
        path.parent.chmod(0o500)
    before = path.read_bytes() if path.is_file() else b""
    with pytest.raises((BadInputError, FileError)) as caught:
        use(path)
    path.parent.chmod(0o700)
    assert "\n" not in str(caught.value)
    assert str(path.parent) in str(caught.value)
    assert (path.read_bytes() if path.is_file() else b"") == before or how == "half"


def test_a_file_that_may_not_be_written_is_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lists, searches, chats with what of a reply was kept; changes are refused and nothing is written beside it."""
    with Store(path) as store:
        record = talk(store, "owls", "foxes")
        record.ask("bears")
        record.piece(record.begin_reply())("grizzly")
        store.opened("/m/model.gguf")
    before = {item.name: item.read_bytes() for item in path.parent.iterdir()}
    monkeypatch.setattr(os, "access", lambda *_: False)
    with Store(path) as store:
        assert store.read_only
        assert [entry.key for entry in store.entries("fox")] == [store.newest()]
        assert store.questions() == ["owls", "foxes", "bears"]
        assert store.recent_models() == ["/m/model.gguf"]
        turns = store.load(store.newest() or 0).conversation.turns
        assert [turn.text for turn in turns] == ["owls", "re owls", "foxes", "re foxes", "bears", "grizzly"]
        assert turns[-1].stop_reason == INTERRUPTED
        with pytest.raises(FileError, match="readonly"):
            store.rename(1, "x")
        with pytest.raises(FileError, match="readonly"):
            store.append(1, "x")
    assert {item.name: item.read_bytes() for item in path.parent.iterdir()} == before


@pytest.mark.parametrize(("version", "said"), [(1, "older"), (99, "newer")])
def test_a_file_of_another_version_that_may_not_be_written(
    path: Path, monkeypatch: pytest.MonkeyPatch, version: int, said: str
) -> None:
    with Store(path) as store:
        store._connection.execute(f"PRAGMA user_version = {version}")
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(BadInputError, match=said):
        Store(path)


def test_a_store_that_fails_lets_the_chat_go_on(path: Path) -> None:
    """The reason is kept once; turns go on in memory."""
    with Store(path) as store:
        record = talk(store, "one")
        store._connection.execute("DROP TABLE pieces")
        store._connection.execute("DROP TABLE turns")
        record.ask("two")
        turn = record.begin_reply()
        record.piece(turn)("text")
        turn.text = "text"
        record.end_reply(turn, "eos")
        assert "cannot be used" in (record.trouble or "")
        assert [t.text for t in record.turns] == ["one", "re one", "two", "text"]


def test_what_a_store_refused_is_kept_with_the_next_question(path: Path) -> None:
    """Questions, a reply whose end was lost, a branch; nothing twice, and the line as it is read."""
    with Store(path) as store:
        record = talk(store, "one")
        record.ask("two")
        reply = record.begin_reply()
        store._connection.execute("ALTER TABLE turns RENAME TO away")
        reply.text = "re two"
        record.end_reply(reply, "eos")
        record.edit(record.turns[2], "2")
        record.begin_reply().text = "re 2"
        record.end_reply(record.turns[-1], "eos")
        assert record.trouble is not None
        store._connection.execute("ALTER TABLE away RENAME TO turns")
        record.ask("three")
        assert record.trouble is None
        saved = store.load(record.key or 0).conversation
        assert [turn.text for turn in saved.turns] == ["one", "re one", "2", "re 2", "three"]
        assert [(turn.text, turn.stop_reason) for turn in saved.all_turns() if turn.role == "assistant"] == [
            ("re one", "eos"), ("re two", "eos"), ("re 2", "eos"),
        ]  # fmt: skip


def test_what_was_taken_back_while_a_store_refused_is_no_branch_later(path: Path) -> None:
    """A question and its reply, whose end was lost: they leave the file with the next question."""
    with Store(path) as store:
        record = talk(store, "one")
        record.ask("two")
        reply = record.begin_reply()
        store._connection.execute("ALTER TABLE turns RENAME TO away")
        record.end_reply(reply, "cancelled")
        assert record.remove_last() is reply
        assert record.remove_last().text == "two"
        record.rename("still refused")
        store._connection.execute("ALTER TABLE away RENAME TO turns")
        record.ask("three")
        assert record.trouble is None
        saved = store.load(record.key or 0).conversation
        assert [turn.text for turn in saved.all_turns()] == ["one", "re one", "three"]


def test_rows_of_nobodys_making_do_no_harm(path: Path) -> None:
    """Turns without a parent, of no role, parameters that are no object, a leaf that is not there."""
    with Store(path) as store:
        record = talk(store, "one")
        key = record.key
        with store._change() as run:
            run("UPDATE sessions SET parameters = '[1', leaf = 999, created = 'x'")
            run("INSERT INTO turns (session, parent, role, text, created) VALUES (?, 77, 'user', 'lost', 0)", (key,))
            run("INSERT INTO turns (session, parent, role, text, created) VALUES (?, 1, 'tool', x'00ff', 0)", (key,))
        saved = store.load(key or 0)
        assert [turn.text for turn in saved.conversation.turns] == ["one", "re one"]
        assert saved.parameters == {}


def test_where_chats_are_kept(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LOCALMOE_DATA", str(tmp_path))
    assert schema.default_path() == tmp_path / "sessions.db"
    monkeypatch.delenv("LOCALMOE_DATA")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "xdg"))
    if sys.platform == "linux":
        assert schema.default_path() == tmp_path / "xdg" / "localmoe" / "sessions.db"


def test_titles_are_first_lines_cut_at_a_word() -> None:
    assert title_of("\n  tell me\ta story \nmore") == "tell me a story"
    assert title_of("word " * 40) == ("word " * 11 + "word").rstrip() + "…"
    assert title_of(" \n") == "Chat"


FIRST_TABLES = """
CREATE TABLE sessions (
    id INTEGER PRIMARY KEY, title TEXT NOT NULL, named INTEGER NOT NULL DEFAULT 0, created REAL NOT NULL,
    updated REAL NOT NULL, model TEXT NOT NULL, system TEXT NOT NULL, parameters TEXT NOT NULL, leaf INTEGER
);
CREATE TABLE turns (
    id INTEGER PRIMARY KEY, session INTEGER NOT NULL REFERENCES sessions ON DELETE CASCADE,
    parent INTEGER, role TEXT NOT NULL, text TEXT NOT NULL, stop_reason TEXT, created REAL NOT NULL
);
CREATE TABLE pieces (turn INTEGER NOT NULL REFERENCES turns ON DELETE CASCADE, text TEXT NOT NULL);
CREATE TABLE models (path TEXT PRIMARY KEY, opened REAL NOT NULL);
INSERT INTO sessions VALUES (1, 'old', 0, 1.0, 2.0, '/m.gguf', 'Be kind.', '{"top_k": 7}', 2);
INSERT INTO turns VALUES (1, 1, NULL, 'user', 'hello', NULL, 1.0), (2, 1, 1, 'assistant', 'hi', 'eos', 2.0);
PRAGMA application_id = 0x4C6D6F45;
PRAGMA user_version = 1;
"""


def test_a_file_of_the_first_version_opens(tmp_path):
    """Its chats are as they were, routed as the model does, and rules of routing are kept with them from then on."""
    path = tmp_path / "sessions.db"
    with closing(sqlite3.connect(path)) as old:
        old.executescript(FIRST_TABLES)
    with Store(path) as store:
        saved = store.load(1)
        assert [turn.text for turn in saved.conversation.turns] == ["hello", "hi"]
        assert (saved.parameters, saved.routing) == ({"top_k": 7}, {})
        Record.resumed(store, saved).route({"left": "3:1"})
    with Store(path) as store:
        assert store.load(1).routing == {"left": "3:1"}
        assert store._connection.execute("PRAGMA user_version").fetchone() == (schema.VERSION,)


def test_two_programs_that_meet_an_old_file_renew_it_once(tmp_path):
    path = tmp_path / "sessions.db"
    with closing(sqlite3.connect(path)) as old:
        old.executescript(FIRST_TABLES)
    with closing(sqlite3.connect(path, isolation_level=None)) as one, closing(sqlite3.connect(path)) as other:
        schema._renew(one)
        schema._renew(other)
        assert other.execute("SELECT routing FROM sessions").fetchall() == [("{}",)]
