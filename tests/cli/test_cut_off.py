"""A model's file that is cut off or replaced while a command has it open, in processes of their own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from localmoe.cli.cut_off import WHY
from localmoe.cli.default_model import tiny_model_path

from ..tiny import write_tiny
from ..tui.settling import DEADLINE

pytestmark = pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="/proc says which files are mapped")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return Path(shutil.copy(tiny_model_path(), tmp_path / "m.gguf"))


def plain_env() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PYTHONFAULTHANDLER"}


class Command:
    """A command that waits for standard input once its model is open."""

    def __init__(self, *arguments: str, model: Path) -> None:
        program = [sys.executable, "-m", "localmoe", *arguments]
        self.process = subprocess.Popen(
            program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=plain_env()
        )
        maps, end = Path(f"/proc/{self.process.pid}/maps"), time.monotonic() + DEADLINE
        while str(model) not in maps.read_text():
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < end
            time.sleep(0.002)

    def answer(self, text: str = "") -> tuple[int, str, str]:
        """Exit code, standard output and error after it is given this text, and no more."""
        out, err = self.process.communicate(text.encode(), DEADLINE)
        return self.process.returncode, out.decode(), err.decode()


def test_a_chat_whose_file_is_cut_off_says_so(model: Path) -> None:
    """After its first answer; it waits for another message."""
    write_tiny(model, vocab="bpe")
    command = Command("chat", "--no-save", "-m", str(model), "-n", "5", model=model)
    assert command.process.stdin is not None
    assert command.process.stdout is not None
    command.process.stdin.write(b"The fox\n")
    command.process.stdin.flush()
    assert command.process.stdout.read(1)
    os.truncate(model, 4096)
    code, _, err = command.answer("The keeper\n")
    assert code == 4, err
    assert err.splitlines()[-1] == f"error: {model}: {WHY}"


@pytest.mark.parametrize("delay", [0.0, 2.0])
def test_a_measurement_whose_file_is_cut_off_says_so_once(model: Path, delay: float) -> None:
    """While weights are read, and when several threads come to the end of the file at the same time."""
    command = Command("bench", "-m", str(model), "-r", "1000", "-t", "2", model=model)
    time.sleep(delay)
    os.truncate(model, 4096)
    code, out, err = command.answer()
    assert code == 4, err
    assert err.count("error:") == 1
    assert err.endswith(f"error: {model}: {WHY}\n")
    assert "error" not in out


def test_a_file_that_is_replaced_is_read_on_as_it_was(model: Path) -> None:
    write_tiny(model, vocab="bpe")
    command = Command("chat", "--no-save", "-m", str(model), "-n", "5", "--temp", "0", model=model)
    (model.parent / "new").write_bytes(b"not a model")
    os.replace(model.parent / "new", model)
    code, out, err = command.answer("The keeper\n")
    assert code == 0, err
    assert out.strip()


CUT = """
import os, sys
from localmoe.cli.app import main
from localmoe.converters import pipeline
write_model = pipeline.write_model
def cut(*arguments, **options):
    os.truncate(sys.argv[1], 4096)
    return write_model(*arguments, **options)
pipeline.write_model = cut
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.parametrize("after", [["OUT", "Q8_0"], ["-o", "OUT", "--type", "Q8_0"]], ids=["quantize", "convert"])
def test_a_source_that_is_cut_off_leaves_the_older_output(
    model: Path, tmp_path: Path, request: pytest.FixtureRequest, after: list[str]
) -> None:
    """What a command writes stands under another name until it is whole."""
    (out := tmp_path / "out.gguf").write_bytes(b"as it was")
    name = request.node.callspec.id
    options = [str(out) if option == "OUT" else option for option in after]
    ended = subprocess.run(
        [sys.executable, "-c", CUT, str(model), name, "--allow-requantize", str(model), *options],
        capture_output=True, text=True, env=plain_env(), timeout=DEADLINE, check=False,
    )  # fmt: skip
    assert ended.returncode == 4, ended.stderr
    assert ended.stderr.splitlines()[-1] == f"error: {model}: {WHY}"
    assert out.read_bytes() == b"as it was"


MAPPED = """
import os, sys
from localmoe import gguf_file
from localmoe.cli.app import main
map_file = gguf_file.map_file
def cut(path, *rest):
    mapped = map_file(path, *rest)
    os.truncate(path, 4096)
    return mapped
gguf_file.map_file = cut
sys.exit(main(sys.argv[1:]))
"""


COMMANDS = [
    ("inspect", "M"), ("tokenize", "-m", "M", "hi"), ("run", "-m", "M", "-p", "hi"), ("quantize", "M", "OUT", "Q8_0"),
    ("convert", "M", "-o", "OUT"),
]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS, ids=[words[0] for words in COMMANDS])
def test_metadata_that_is_cut_off_while_it_is_read(model: Path, tmp_path: Path, command: tuple[str, ...]) -> None:
    files = {"M": str(model), "OUT": str(tmp_path / "out.gguf")}
    arguments = [files.get(word, word) for word in command]
    ended = subprocess.run(
        [sys.executable, "-c", MAPPED, *arguments],
        capture_output=True, text=True, env=plain_env(), timeout=DEADLINE, check=False,
    )  # fmt: skip
    assert (ended.returncode, ended.stdout, ended.stderr) == (4, "", f"error: {model}: {WHY}\n")


def test_a_source_of_a_recipe_that_is_cut_off(model: Path, tmp_path: Path) -> None:
    """One line that names the recipe: which of its models it was cannot be told any more."""
    (recipe := tmp_path / "r.yml").write_text(
        f"base_model: {model}\ngate_mode: random\nexperts:\n" + f"  - source_model: {model}\n" * 2
    )
    ended = subprocess.run(
        [sys.executable, "-c", MAPPED, "franken", str(recipe), "-o", str(tmp_path / "out.gguf")],
        capture_output=True, text=True, env=plain_env(), timeout=DEADLINE, check=False,
    )  # fmt: skip
    assert (ended.returncode, ended.stdout) == (4, "")
    assert ended.stderr == f"error: {recipe}: a model of the recipe {WHY}\n"
