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
from tests.cli.fake_model import FakeModel


class Talk:
    """Runs the command on typed lines and keeps what it said."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
        self.model = FakeModel()
        self._monkeypatch, self._capfd = monkeypatch, capfd
        monkeypatch.setattr("localmoe.load", lambda path, **options: self.model)

    def __call__(self, *lines: str, flags: tuple[str, ...] = ()) -> tuple[int, str, str]:
        self._monkeypatch.setattr("sys.stdin", io.StringIO("".join(line + "\n" for line in lines)))
        code = main(["chat", "-m", "m.gguf", *flags])
        out, err = self._capfd.readouterr()
        return code, out, err

    @property
    def conversations(self) -> list[list[tuple[str, str]]]:
        return [[(message["role"], message["content"]) for message in messages] for messages, _ in self.model.asked]


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


class Typist(io.StringIO):
    def isatty(self) -> bool:
        return True


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
