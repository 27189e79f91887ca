"""Row 34 through the command line, on a real pseudo-terminal: nothing from a file or a model controls the terminal."""

from __future__ import annotations

import sys
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFValueType

from tests.acceptance.command import localmoe, on_a_terminal
from tests.tiny import ARR, CHATML, STR, bpe_vocabulary, byte_characters, tiny_weights, write_tiny

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there are no pseudo-terminals")

EVIL = "x\x1b]0;owned\x07\x9b2J\u202ey\rz"
HARMLESS = {"Cf", "Cc", "Cs", "Zl", "Zp"}
SMALL = {"n_layer": 1, "n_embd": 32, "n_head": 2, "n_head_kv": 1, "n_ff": 32, "n_expert": 2}
# Tokens that follow each other: sequences split over tokens and over the bytes of one character.
CYCLE = [b"\x1b", b"[31m", b"\x1b]", b"0;owned", b"\x07", b"\xc2", b"\x9b", b"2J", b"\xe2\x80", b"\xae", b"\r", b"ok"]


def check(shown: str) -> None:
    """Nothing but newlines (a terminal makes each CR LF) is left that is no character."""
    text = shown.replace("\r\n", "\n")
    found = sorted({c for c in text if unicodedata.category(c) in HARMLESS and c != "\n"})
    assert not found, f"{found} in {text!r}"


def evil_model(path: Path) -> Path:
    """A model that says CYCLE over and over after any prompt that ends in `ok`, and has escapes in every name."""
    tokens, _, types = bpe_vocabulary()
    characters = byte_characters()
    spelled = ["".join(characters[byte] for byte in piece) for piece in CYCLE]
    added = [token for token in spelled if token not in tokens]
    all_tokens = [*tokens, *added, EVIL]
    ids = [all_tokens.index(token) for token in spelled]
    metadata: dict[str, Any] = {
        "general.name": (EVIL, STR, None),
        f"general.{EVIL}": (EVIL, STR, None),
        "localmoe.expert.labels": ([EVIL, "b"], ARR, STR),
        "tokenizer.ggml.tokens": (all_tokens, ARR, STR),
        "tokenizer.ggml.token_type": ([*types, *[1] * len(added), 4], ARR, GGUFValueType.INT32),
        "tokenizer.chat_template": (CHATML + "ok", STR, None),
    }
    fields = {**SMALL, "vocab": "bpe", "n_vocab": len(all_tokens)}
    weights = tiny_weights(**fields)
    for name in ("blk.0.attn_output.weight", "blk.0.ffn_down_exps.weight", "output.weight"):
        weights[name][...] = 0.0  # what a token leads to depends on its own embedding alone
    for here, after in zip(ids, [*ids[1:], ids[0]], strict=True):
        weights["output.weight"][after] = weights["token_embd.weight"][here]
    return write_tiny(path, extra_metadata=metadata, extra_tensors=weights, **fields)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return evil_model(tmp_path_factory.mktemp("evil") / f"m{EVIL}.gguf")


GENERATE = ("--temp", "0", "-n", "26")


def test_the_model_says_escape_sequences(model: Path) -> None:
    """Or the tests below would show nothing: a file gets the text as it is."""
    answer = localmoe("run", "-m", model, "-p", "ok", *GENERATE).succeeded()
    assert "\x1b[31m\x1b]0;owned\x07\x9b2J\u202e" in answer.out


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "-m", "{model}", "-p", "ok", *GENERATE, "--expert-summary"),
        ("run", "-m", "{model}", "-p", "ok", *GENERATE, "--json"),
        ("tokenize", "-m", "{model}", "\x1b[31m\x9b\u202e", "--parse-special"),
        ("tokenize", "-m", "{model}", f"a{EVIL}"),
        ("inspect", "{model}"),
        ("inspect", "{model}", "--json"),
        ("bench", "-m", "{model}", "-p", "2", "-n", "1", "-r", "1"),
    ],
)
def test_none_reach_the_terminal(model: Path, arguments: tuple[str, ...]) -> None:
    code, shown = on_a_terminal(*(str(model) if part == "{model}" else part for part in arguments))
    assert code == 0, shown
    assert len(shown) > 1
    if arguments[0] != "bench":  # its progress clears its own line
        check(shown)


def test_newlines_and_tabs_stay_what_they_are(tmp_path: Path) -> None:
    """They belong to text: a terminal shows lines, not `\\n`."""
    tokens, _, _ = bpe_vocabulary()
    newline = tokens.index(byte_characters()[ord("\n")])
    model = write_tiny(tmp_path / "m.gguf", vocab="bpe", **SMALL)
    _, shown = on_a_terminal("run", "-m", model, "-p", "the", "-n", "3", "--temp", "0", "-l", f"{newline}+1000")
    assert shown.startswith("\r\n" * 4 + "prompt: ")


def test_none_reach_the_terminal_in_a_chat(model: Path, tmp_path: Path) -> None:
    kept = {"LOCALMOE_DATA": str(tmp_path)}
    code, shown = on_a_terminal("chat", "-m", model, *GENERATE, typed=b"hello\n/stats\n/quit\n", env=kept)
    assert code == 0, shown
    assert "owned" in shown
    check(shown)


def test_none_reach_the_terminal_from_what_is_written(model: Path, tmp_path: Path) -> None:
    """Names of tensors and of the files that are read and written."""
    for command in (
        ("quantize", model, tmp_path / f"o{EVIL}.gguf", "Q8_0", "--dry-run"),
        ("quantize", model, tmp_path / "o.gguf", "Q8_0", "-t", "1"),
        ("convert", model, "-o", tmp_path / f"p{EVIL}.gguf", "--type", "Q8_0"),
    ):
        code, shown = on_a_terminal(*command)
        assert code == 0, shown
        check(without_progress(shown))


def without_progress(shown: str) -> str:
    """A progress bar returns to the start of its line and clears the rest: its own control characters."""
    return shown.replace("\r\x1b[K", "").replace("\x1b[K", "").replace("\r", "\n").replace("\n\n", "\r\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ("inspect", f"none{EVIL}"),
        ("run", "-m", "{model}", "-p", "ok", f"--{EVIL}"),
        ("run", "-m", "{model}", "-p", "ok", EVIL),
        ("run", "-m", "{model}", "-p", "ok", "-l", EVIL),
        (EVIL,),
        ("quantize", "{model}", "out.gguf", EVIL),
        ("quantize", "{model}", f"none{EVIL}/out", "Q8_0"),
        ("tokenize", "-m", f"none{EVIL}", "a"),
    ],
)
def test_none_reach_the_terminal_in_errors(model: Path, arguments: tuple[str, ...]) -> None:
    code, shown = on_a_terminal(*(str(model) if part == "{model}" else part for part in arguments))
    assert code in (2, 4), shown
    assert shown.count("\n") == 1
    assert shown.startswith("error: ")
    check(shown)


def test_names_of_tensors_in_errors(tmp_path: Path) -> None:
    name = f"t{EVIL}"
    model = write_tiny(tmp_path / "m.gguf", extra_tensors={name: np.full((2, 32), np.nan, np.float32)}, **SMALL)
    code, shown = on_a_terminal("quantize", model, tmp_path / "out.gguf", "Q8_0")
    assert code == 3
    check(shown)
    assert "error: " in shown
