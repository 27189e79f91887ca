"""`localmoe chat` on a model that says a fixed text."""

from __future__ import annotations

import io
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from localmoe.cli import default_model, main
from localmoe.errors import UsageError
from localmoe.sessions.record import Record
from localmoe.sessions.store import Store
from tests.cli.fake_model import FakeModel


class Typist(io.StringIO):
    def isatty(self) -> bool:
        return True


class Talk:
    """Runs the command on typed lines and keeps what it said."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
        self.model = FakeModel()
        self._monkeypatch, self._capfd = monkeypatch, capfd
        monkeypatch.setattr("localmoe.load", lambda path, **options: self.model)

    def __call__(
        self, *lines: str, flags: tuple[str, ...] = (), model: tuple[str, ...] = ("-m", "m.gguf"), typed: bool = False
    ) -> tuple[int, str, str]:
        text = "".join(line + "\n" for line in lines)
        self._monkeypatch.setattr("sys.stdin", Typist(text) if typed else io.StringIO(text))
        code = main(["chat", *model, *flags])
        out, err = self._capfd.readouterr()
        return code, out, err

    @property
    def conversations(self) -> list[list[tuple[str, str]]]:
        return [[(message["role"], message["content"]) for message in messages] for messages, _ in self.model.asked]


@pytest.fixture(autouse=True)
def data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The file of chats, which is not there yet."""
    monkeypatch.setenv("LOCALMOE_DATA", str(tmp_path / "data"))
    return tmp_path / "data" / "sessions.db"


@pytest.fixture
def talk(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Talk:
    return Talk(monkeypatch, capfd)


def test_answers_alone_go_to_stdout(talk: Talk) -> None:
    assert talk("Hi", "", "More") == (0, "Hello there\nHello there\n", "")
    first = [("user", "Hi")]
    assert talk.conversations == [first, [*first, ("assistant", "Hello there"), ("user", "More")]]
    assert talk.model.closed


def test_system_prompt_and_options_reach_the_model(talk: Talk) -> None:
    talk("Hi", "/reset", "Again", flags=("-sys", "Be brief.", "-n", "3", "--temp", "0", "-s", "5"))
    system = ("system", "Be brief.")
    assert talk.conversations == [[system, ("user", "Hi")], [system, ("user", "Again")]]
    options = talk.model.asked[0][1]
    assert (options["max_tokens"], options["temperature"], options["seed"]) == (3, 0.0, 5)


def test_regen_answers_the_last_message_again(talk: Talk) -> None:
    code, out, _ = talk("Hi", "/regen")
    assert (code, out) == (0, "Hello there\nHello there\n")
    assert talk.conversations == [[("user", "Hi")], [("user", "Hi")]]


def test_regen_before_an_answer_says_so(talk: Talk) -> None:
    assert talk("/regen") == (0, "", "there is no answer yet\n")


def test_quit_leaves_at_once(talk: Talk) -> None:
    assert talk("/quit", "Hi") == (0, "", "")
    assert talk.model.closed


def test_help_and_an_unknown_command(talk: Talk) -> None:
    _, out, err = talk("/help", "/nothing")
    assert out == ""
    assert [line.split()[0] for line in err.splitlines()[:-1]] == [
        "/help",
        "/reset",
        "/regen",
        "/stats",
        "/save",
        "/quit",
    ]
    assert err.splitlines()[-1] == "no such command: /nothing (/help tells them)"
    assert not talk.model.asked


def test_stats_count_the_experts_of_all_answers(talk: Talk) -> None:
    """Layer 0 uses expert 3 and one of 0..3 in turn for each of 4 tokens, layer 1 always 0 and 1; /reset forgets."""
    _, _, err = talk("Hi", "Hi", "/stats", "/reset", "/stats", flags=("-n", "4"))
    assert err.splitlines() == [
        "layer   0:   3  62%    0  12%    1  12%    2  12%",
        "layer   1:   0  50%    1  50%",
        "a new conversation",
        "no experts were used yet",
    ]


def test_save_writes_the_conversation(talk: Talk, tmp_path: Path) -> None:
    out = tmp_path / "chat.json"
    out.write_text("old")
    _, _, err = talk("Grüß dich", f"/save {out}", f"/save {tmp_path}/none/chat.json", "/save")
    assert json.loads(out.read_text(encoding="utf-8")) == [
        {"role": "user", "content": "Grüß dich"},
        {"role": "assistant", "content": "Hello there"},
    ]
    assert err.splitlines() == [
        f"2 messages are in {out}",
        f"error: {tmp_path}/none/chat.json: the folder does not exist",
        "/save needs a file name",
    ]
    assert os.listdir(tmp_path) == ["chat.json"]


def test_save_refuses_the_model_and_a_folders_name(talk: Talk, tmp_path: Path) -> None:
    model = tmp_path / "m.gguf"
    model.write_bytes(b"weights")
    (tmp_path / "link").symlink_to(model)
    talk.model.gguf.parts = (model,)
    _, _, err = talk(f"/save {tmp_path}/link", f"/save {tmp_path}/new/")
    assert err.splitlines() == [
        f"error: {tmp_path}/link: input and output are the same file",
        f"error: {tmp_path}/new/: names a folder, expected the name of a file to write",
    ]
    assert sorted(os.listdir(tmp_path)) == ["link", "m.gguf"]
    assert model.read_bytes() == b"weights"


def test_ctrl_c_stops_an_answer_and_keeps_its_text(talk: Talk) -> None:
    def interrupt(index: int) -> None:
        if index == 4:
            signal.raise_signal(signal.SIGINT)

    talk.model.on_step = interrupt
    assert talk("Hi", "More")[:2] == (0, "Hello\nHello\n")
    assert talk.model.interrupted
    assert talk.conversations[1] == [("user", "Hi"), ("assistant", "Hello"), ("user", "More")]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_ctrl_c_leaves(talk: Talk) -> None:
    def interrupt(index: int) -> None:
        if index == 4:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    talk.model.on_step = interrupt
    assert talk("Hi", "More") == (130, "Hello", "error: interrupted\n")
    assert talk.model.closed


def test_a_message_that_does_not_fit_is_taken_back(talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = talk.model.chat

    def chat(messages: list[dict[str, str]], **options: Any) -> Any:
        if "long" in messages[-1]["content"]:
            raise UsageError("the prompt does not fit in the context", got="90 tokens", expected="fewer than 64")
        return answer(messages, **options)

    monkeypatch.setattr(talk.model, "chat", chat)
    code, out, err = talk("a long one", "Hi")
    assert (code, out) == (0, "Hello there\n")
    assert "does not fit in the context, got 90 tokens" in err
    assert "taken back" in err
    assert talk.conversations == [[("user", "Hi")]]


def test_a_model_without_a_template_is_refused(talk: Talk) -> None:
    talk.model.chat_template = None
    code, out, err = talk("Hi")
    assert (code, out) == (2, "")
    assert err.startswith("error: m.gguf: the model has no chat template")
    assert talk.model.closed


def test_a_nearly_full_context_is_said(talk: Talk) -> None:
    assert talk("x" * 40)[2] == "note: 51 of 64 tokens of context used; /reset starts again\n"


class Demo:
    """Stands for `localmoe.cli.demo_model`: building the demo model takes minutes."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def demo_model_path(self) -> Path:
        return self.path

    def build_demo(self) -> None:
        self.path.touch()


@pytest.fixture
def demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Demo:
    fake = Demo(tmp_path / "demo.gguf")
    monkeypatch.setattr(default_model, "demo_model_path", fake.demo_model_path)
    monkeypatch.setattr(default_model, "build_demo", fake.build_demo)
    return fake


def test_without_a_model_and_a_terminal_it_says_what_to_do(
    demo: Demo, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert main(["chat"]) == 2
    said = "error: no model given, expected -m MODEL (`localmoe demo` builds the demo model)\n"
    assert capfd.readouterr().err == said
    assert not demo.path.exists()


def test_a_bare_chat_uses_the_demo_model(talk: Talk, demo: Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    demo.path.touch()
    opened: list[str] = []
    monkeypatch.setattr("localmoe.load", lambda path, **options: opened.append(path) or talk.model)
    monkeypatch.setattr("sys.stdin", io.StringIO("Hi\n"))
    assert main(["chat"]) == 0
    assert opened == [str(demo.path)]
    assert talk.conversations == [[("user", "Hi")]]


@pytest.mark.parametrize(("answer", "code"), [("", 0), ("y", 0), ("n", 2)])
def test_a_bare_chat_offers_to_build_the_demo_model(
    talk: Talk, demo: Demo, answer: str, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", Typist(f"{answer}\n"))
    assert main(["chat"]) == code
    assert demo.path.exists() == (code == 0)


def turns_of(data: Path, key: int) -> list[tuple[str, str, str | None]]:
    with Store(data) as store:
        return [(turn.role, turn.text, turn.stop_reason) for turn in store.load(key).conversation.turns]


def keep(data: Path, model: str, *said: str, system: str = "", **parameters: Any) -> int:
    """A chat of questions and answers in turn; its number."""
    with Store(data) as store:
        record = Record(store, model, system, parameters)
        for question, answer in zip(said[::2], said[1::2], strict=True):
            record.ask(question)
            turn = record.begin_reply()
            turn.text = answer
            record.end_reply(turn, "eos")
        assert record.key is not None
        return record.key


@pytest.fixture
def kept(data: Path, tmp_path: Path) -> str:
    """A model's file, with which two chats were had."""
    model = tmp_path / "m.gguf"
    model.touch()
    keep(data, str(model), "owls?", "about owls")
    keep(data, str(model), "foxes?", "about foxes", system="Be brief.", temperature=0.25, top_k=7, max_tokens=5)
    return str(model)


def test_what_is_typed_at_a_terminal_is_kept_and_what_is_piped_is_not(talk: Talk, data: Path) -> None:
    talk("Hi")
    assert not data.exists()
    _, _, err = talk("Hi", "/regen", flags=("--no-save",), typed=True)
    assert not data.exists()
    _, _, err = talk("Hi", "/regen", flags=("--temp", "0.5"), typed=True)
    assert "kept as chat 1: `localmoe chat --continue` goes on with it" in err
    assert turns_of(data, 1) == [("user", "Hi", None), ("assistant", "Hello there", "eos")]
    with Store(data) as store:
        saved = store.load(1)
    assert (saved.entry.n_turns, saved.parameters) == (3, {"temperature": 0.5})
    assert Path(saved.entry.model).name == "m.gguf"


@pytest.mark.parametrize(("flags", "key", "asked"), [(["--continue"], 2, "foxes"), (["--session", "1"], 1, "owls")])
def test_a_kept_chat_goes_on(talk: Talk, data: Path, kept: str, flags: list[str], key: int, asked: str) -> None:
    """With its model, system prompt and parameters; what is said is added to it and answers stay alone on stdout."""
    code, out, err = talk("More", flags=tuple(flags), model=())
    assert code == 0
    assert out == ("Hello there\n" if key == 1 else "Hello\n")
    assert err.splitlines() == [f"chat {key}, {asked}?: 2 turns", f"> {asked}?", f"about {asked}"]
    before = [("user", f"{asked}?"), ("assistant", f"about {asked}"), ("user", "More")]
    assert talk.conversations == [[("system", "Be brief."), *before] if key == 2 else before]
    assert [turn[1] for turn in turns_of(data, key)] == [f"{asked}?", f"about {asked}", "More", out.rstrip("\n")]
    options = talk.model.asked[0][1]
    assert (options["temperature"], options["top_k"], options["max_tokens"]) == (
        (0.25, 7, 5) if key == 2 else (0.8, 40, -1)
    )


def test_what_the_command_names_holds_and_is_kept(talk: Talk, data: Path, kept: str) -> None:
    """Also where it is the default."""
    talk("More", flags=("--continue", "--temp", "0.8", "-n", "2", "-sys", "Be long."), model=())
    options = talk.model.asked[0][1]
    assert (options["temperature"], options["top_k"], options["max_tokens"]) == (0.8, 7, 2)
    with Store(data) as store:
        saved = store.load(2)
    assert saved.parameters == {"top_k": 7, "max_tokens": 2}
    assert saved.conversation.system == "Be long."


def test_routing_that_was_kept_goes_on(talk: Talk, data: Path, kept: str) -> None:
    """Unless the command names another, or the model has no such experts."""
    with Store(data) as store:
        record = Record.resumed(store, store.load(1))
        record.route({"used": "2", "left": "1:3", "forced": "", "threshold": "0.1"})
    _, _, err = talk("More", flags=("--session", "1"), model=())
    assert "routing as in this chat: top-2 of 4, 1:3 left out, weights below 0.1 skipped" in err
    assert talk.model.asked[-1][1]["leave_out"] == {1: (3,)}
    talk("More", flags=("--session", "1", "--leave-out", "0:1"), model=())
    assert "leave_out" not in talk.model.asked[-1][1]  # the model was opened so
    with Store(data) as store:
        assert store.load(1).routing["left"] == "0:1"
        Record.resumed(store, store.load(1)).route({"used": "2", "left": "9:9", "forced": "", "threshold": "0"})
    assert "not routed as in this chat (top-2, 9:9 left out)" in talk("More", flags=("--session", "1"), model=())[2]


def test_reset_begins_a_chat_of_its_own(talk: Talk, data: Path, kept: str) -> None:
    talk("More", "/reset", "New", flags=("--continue",), model=())
    assert [turn[1] for turn in turns_of(data, 2)] == ["foxes?", "about foxes", "More", "Hello"]
    assert [turn[1] for turn in turns_of(data, 3)] == ["New", "Hello"]
    assert talk.conversations[1] == [("system", "Be brief."), ("user", "New")]


def test_a_message_that_does_not_fit_leaves_a_kept_chat_as_it_was(
    talk: Talk, data: Path, kept: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise UsageError("the prompt does not fit in the context")

    monkeypatch.setattr(talk.model, "chat", refuse)
    _, _, err = talk("More", "/regen", flags=("--continue",), model=())
    assert "the message was taken back" in err
    assert "there is no other answer" in err
    assert [turn[1] for turn in turns_of(data, 2)] == ["foxes?", "about foxes"]


def test_a_chat_cut_off_after_its_question_is_answered_by_regen(talk: Talk, data: Path, kept: str) -> None:
    with Store(data) as store:
        Record.resumed(store, store.load(1)).ask("and eagles?")
    assert talk("/regen", flags=("--session", "1"), model=())[1] == "Hello there\n"
    assert [turn[1] for turn in turns_of(data, 1)][2:] == ["and eagles?", "Hello there"]


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (("--continue",), "no chats were saved yet"),
        (("--session", "7"), "no chats were saved yet"),
        (("--continue", "--no-save"), "--no-save"),
        (("--session", "x"), "--session"),
    ],
)
def test_a_chat_that_is_not_there_is_refused(talk: Talk, flags: tuple[str, ...], reason: str) -> None:
    code, out, err = talk("Hi", flags=flags, model=())
    assert (code, out) == (2, "")
    assert reason in err
    assert not talk.model.asked


def test_a_chat_of_a_file_that_may_not_be_written_goes_on_unkept(
    talk: Talk, data: Path, kept: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as context:
        context.setattr("localmoe.sessions.store.only_readable", lambda path: True)
        code, out, err = talk("More", flags=("--continue",), model=(), typed=True)
    assert (code, out) == (0, "> Hello\n> \n")
    assert f"note: this chat is not kept: {data} may not be written" in err
    assert "kept as chat" not in err
    assert talk.conversations[0][-2:] == [("assistant", "about foxes"), ("user", "More")]
    assert [turn[1] for turn in turns_of(data, 2)] == ["foxes?", "about foxes"]


def test_a_file_of_chats_that_cannot_be_used(talk: Talk, data: Path, kept: str) -> None:
    """A new chat goes on unsaved and says so; one that is to go on is refused; the file stays as it was."""
    data.write_bytes(b"no database" * 200)
    code, out, err = talk("Hi", typed=True)
    assert code == 0
    assert "Hello there\n" in out
    assert "note: this chat is not kept: " in err
    assert talk("Hi", flags=("--continue",), model=())[0] == 3
    assert data.read_bytes() == b"no database" * 200


class Template:
    """A token for each letter."""

    def encode(self, tokenizer: Any, messages: Any) -> list[int]:  # noqa: ARG002
        return [1] * sum(len(message["content"]) for message in messages)


def test_a_kept_chat_that_forgets_goes_on_forgetting(talk: Talk, data: Path, tmp_path: Path) -> None:
    """The oldest turns are not read once all take more than three quarters of the 64 tokens; all of them are kept."""
    model = tmp_path / "m.gguf"
    model.touch()
    keep(data, str(model), "a" * 20, "b" * 20, overflow="forget")
    talk.model.chat_template = Template()
    _, _, err = talk("c" * 20, "d" * 20, flags=("--continue",), model=())
    assert talk.conversations == [
        [("user", "c" * 20)],
        [("user", "d" * 20)],
    ]
    notes = [line for line in err.splitlines() if "left out of what the model reads" in line]
    assert notes == [f"note: the oldest {n} turns are left out of what the model reads" for n in (2, 4)]
    assert [turn[1] for turn in turns_of(data, 1)][::2] == ["a" * 20, "c" * 20, "d" * 20]
    with Store(data) as store:
        assert store.load(1).parameters == {"overflow": "forget"}


def test_what_happens_when_the_context_is_full_can_be_named(talk: Talk, data: Path) -> None:
    talk.model.chat_template = Template()
    _, _, err = talk("a" * 40, "b" * 30, flags=("--overflow", "forget"), typed=True)
    assert talk.conversations[1] == [("user", "b" * 30)]
    assert "of context used; the oldest turns are left out when a message no longer fits" in err
    with Store(data) as store:
        assert store.load(1).parameters == {"overflow": "forget"}
    code, _, err = talk("Hi", flags=("--overflow", "cut"))
    assert (code, "stop or forget" in err) == (2, True)
