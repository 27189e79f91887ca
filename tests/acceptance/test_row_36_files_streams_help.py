"""Row 36 through the command line: files that cannot be opened, streams that close, and help that is always there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from localmoe.cli.app import COMMANDS
from localmoe.sessions.record import Record
from localmoe.sessions.store import Store
from tests.acceptance.command import LOCALMOE, contents, environment, localmoe, together
from tests.checkpoints import write_checkpoint
from tests.tiny import write_tiny

SMALL = {"n_layer": 1, "n_embd": 32, "n_head": 2, "n_head_kv": 1, "n_ff": 32, "n_expert": 2}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("model") / "m.gguf", vocab="bpe", **SMALL)


def commands(path: object, out: object = "out.gguf") -> list[tuple[object, ...]]:
    """Every command that reads a model without a terminal, with this one."""
    return [
        ("inspect", path), ("run", "-m", path, "-p", "a"), ("chat", "-m", path), ("bench", "-m", path),
        ("tokenize", "-m", path, "a"), ("quantize", path, out, "Q8_0"), ("convert", path, "-o", out),
    ]  # fmt: skip


def test_missing_files(tmp_path: Path) -> None:
    for answer in together(*commands(tmp_path / "none.gguf", tmp_path / "out.gguf")):
        answer.failed(4, f"error: {tmp_path / 'none.gguf'}: ", "No such file").quickly()
        assert answer.out == ""
    assert contents(tmp_path) == {}


def test_a_folder_for_a_model(tmp_path: Path) -> None:
    """`convert` takes one, and says what it lacks."""
    inspect, run, *_, quantize, convert = commands(tmp_path, tmp_path / "out.gguf")
    *answers, last = together(inspect, run, quantize, convert)
    for answer in answers:
        answer.failed(4, f"error: {tmp_path}: ", "folder").quickly()
    last.failed(3, tmp_path)
    assert contents(tmp_path) == {}


def test_other_files_that_are_missing(tmp_path: Path, model: Path) -> None:
    none, out = tmp_path / "none", tmp_path / "none" / "out.gguf"
    checkpoint = write_checkpoint(tmp_path / "m")
    prompt, quantized, converted, folder = together(
        ("run", "-m", model, "-f", none), ("quantize", model, out, "Q8_0"), ("convert", checkpoint, "-o", out),
        ("quantize", model, tmp_path, "Q8_0"),
    )  # fmt: skip
    prompt.failed(4, none, "No such file")
    quantized.failed(4, out, "folder does not exist")
    converted.failed(4, out, "folder does not exist")
    folder.failed(4, tmp_path, "not a regular file")
    assert not none.exists()


def as_nobody() -> tuple[str, ...]:
    """What starts a command without root's rights."""
    if os.geteuid() != 0:
        return ()
    setpriv = shutil.which("setpriv")
    prefix = (setpriv or "", "--reuid=65534", "--regid=65534", "--clear-groups")
    if not setpriv or subprocess.run([*prefix, *LOCALMOE, "--version"], capture_output=True, check=False).returncode:
        pytest.skip("root may do everything, and cannot become another user here")
    return prefix


def open_way(path: Path) -> None:
    """Let everybody go to a folder of ours."""
    for folder in (*[p for p in path.parents if p != p.parent and os.access(p, os.W_OK)][:-1], path):
        folder.chmod(folder.stat().st_mode | 0o055)


def test_what_may_not_be_read_or_written(tmp_path: Path) -> None:
    prefix = as_nobody()
    open_way(tmp_path)
    model = write_tiny(tmp_path / "m.gguf", **SMALL)
    secret = write_tiny(tmp_path / "secret.gguf", **SMALL)
    secret.chmod(0)
    model.chmod(0o444)
    locked = tmp_path / "locked"
    locked.mkdir(0o555)
    out = locked / "out.gguf"
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(0o777)
    cache = {"LOCALMOE_CACHE": str(tmp_path / "cache")}
    localmoe("inspect", secret, prefix=prefix).failed(4, f"error: {secret}: ", "Permission denied").quickly()
    refused = localmoe("quantize", model, out, "Q8_0", prefix=prefix, env=cache)
    refused.failed(4, f"error: {out}: ", "Permission denied")
    assert contents(locked) == {}


def test_chats_that_may_be_read_alone(tmp_path: Path) -> None:
    """A file that may not be written, in a folder that may not be either, also while another program writes to it."""
    prefix = as_nobody()
    open_way(tmp_path)
    path, env = tmp_path / "data" / "sessions.db", {"LOCALMOE_DATA": str(tmp_path / "data")}
    with Store(path) as store:
        Record(store, "/m/model.gguf", "", {}).ask("owls?")
    note = f"note: {path} may not be written: chats are read as they were kept\n"
    path.parent.chmod(0o555)
    path.chmod(0o444)
    before = contents(path.parent)
    for words in ((), ("owl",)):
        found = localmoe("sessions", "list", *words, prefix=prefix, env=env)
        assert (found.code, found.out.split()[3:], found.err) == (0, ["1", "owls?"], note)
    told = localmoe("sessions", "export", prefix=prefix, env=env)
    assert (told.code, told.err) == (0, note)
    assert "owls?" in told.out
    for change in (("rename", 1, "x"), ("delete", 1)):
        localmoe("sessions", *change, prefix=prefix, env=env).failed(4, path, "readonly")
    assert contents(path.parent) == before
    path.parent.chmod(0o755)
    path.chmod(0o644)
    with Store(path) as store:
        record = Record.resumed(store, store.load(1))
        record.piece(record.begin_reply())("about owls")
        path.chmod(0o444)
        told = localmoe("sessions", "export", prefix=prefix, env=env)
    assert (told.code, told.err) == (0, note)
    assert "about owls" in told.out


def test_stdout_closed_early(model: Path) -> None:
    """`localmoe ... | head -c1`: quiet, with a shell's code for it."""
    for command in (
        ("run", "-m", str(model), "-p", "the", "-n", "32000", "-c", "32768", "--ignore-eos"),
        ("tokenize", "-m", str(model), "a " * 60000),
    ):
        child = subprocess.Popen(
            [*LOCALMOE, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()
        )
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.read(1)
        child.stdout.close()
        err = child.stderr.read().decode()
        child.stderr.close()
        assert child.wait(240) == 141, err
        assert "Traceback" not in err
        assert "Exception ignored" not in err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_stdout_that_takes_nothing(model: Path) -> None:
    full = ("sh", "-c", 'exec "$@" > /dev/full', "sh")
    for command in (("inspect", model), ("tokenize", "-m", model, "a"), ("--help",), ("run", "-m", model, "-p", "a")):
        localmoe(*command, prefix=full).failed(4, "error: standard output: No space left")


@pytest.mark.skipif(sys.platform == "win32", reason="a POSIX shell closes them")
@pytest.mark.parametrize("closing", [">&-", "<&-", "2>&-", ">&- 2>&- <&-"])
def test_streams_that_are_closed_from_the_start(model: Path, closing: str) -> None:
    closed = ("sh", "-c", f'exec "$@" {closing}', "sh")
    answer = localmoe("tokenize", "-m", model, "--ids", "ab", prefix=closed)
    assert answer.code == 0
    assert "Traceback" not in answer.err


def test_without_a_terminal(model: Path, tmp_path: Path) -> None:
    """Nothing asks a question or draws where nobody is: chat needs a model, the terminal app a terminal."""
    empty = dict.fromkeys(("LOCALMOE_CACHE", "XDG_CACHE_HOME", "XDG_DATA_HOME", "HOME"), str(tmp_path))
    localmoe("chat", env=empty).failed(2, "no model given", "-m MODEL")
    localmoe("tui", env=empty).failed(2, "no model given", "-m MODEL")
    answer = localmoe("tui", "-m", model, timeout_s=240).failed(2, "terminal")
    assert "\x1b" not in answer.out + answer.err
    localmoe("tokenize", "-m", model).failed(2, "no text")
    localmoe("run", "-m", model).failed(2, "one prompt is needed")


def test_help_of_every_command_names_its_options() -> None:
    wanted = {
        "demo": [], "convert": ["--output", "--type", "--imatrix", "--dry-run"], "franken": ["--output", "--type"],
        "quantize": ["--pure", "--tensor-type", "--allow-requantize"], "inspect": ["--json"],
        "run": ["--model", "--prompt", "--predict", "--temp", "--seed", "--threads", "--ctx-size", "--experts-used",
                "--json"],
        "chat": ["--model", "--system-prompt"], "tui": ["--model"],
        "tokenize": ["--stdin", "--ids", "--no-bos", "--parse-special"],
        "bench": ["--n-prompt", "--n-gen", "--n-depth", "--threads", "--repetitions", "--output", "--profile"],
        "perplexity": ["--model", "--file", "--ctx-size", "--kl-divergence", "--json"],
        "imatrix": ["--model", "--file", "--output"], "experts": ["record", "report", "check", "compare", "ablate"],
        "sessions": ["list", "export", "rename", "delete"],
    }  # fmt: skip
    assert wanted.keys() == COMMANDS.keys()
    for (name, options), answer in zip(wanted.items(), together(*((n, "--help") for n in wanted)), strict=True):
        assert answer.succeeded().out.startswith(f"Usage: localmoe {name}"), answer.out[:80]
        assert [option for option in [*options, "--help"] if option not in answer.out] == []
        assert answer.err == ""


def test_unknown_options_and_commands_are_2_in_one_line() -> None:
    answers = together(*((name, "--no-such-option") for name in COMMANDS), ("no-such-command",), ("--no-such-option",))
    for answer in answers:
        answer.failed(2, "no-such")
        assert answer.err.count("\n") == 1
        assert answer.out == ""
