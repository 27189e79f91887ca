"""`localmoe inspect`: lines for a person, one object for a program, the right exit code."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFValueType as V

from localmoe.cli import main
from localmoe.cli.inspect import count_text
from tests.tiny import tiny_weights, write_tiny


def test_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    router = tiny_weights(n_expert=4)["blk.1.ffn_gate_inp.weight"]
    router[2] = router[0]
    path = write_tiny(
        tmp_path / "m.gguf",
        n_expert=4,
        extra_tensors={"blk.1.ffn_gate_inp.weight": router},
        extra_metadata={
            "general.name": ("\x1b[31m[red]", V.STRING, None),
            "localmoe.expert.labels": (["a", "b", "c", "d"], V.ARRAY, V.STRING),
        },
    )
    assert main(["inspect", str(path)]) == 0
    out = capsys.readouterr().out
    lines = {label.strip(): text.strip() for label, _, text in (line.partition(": ") for line in out.splitlines())}
    assert lines["name"] == r"\x1b[31m[red]"
    assert lines["experts"] == "4 a layer, 2 used a token"
    assert lines["heads"] == "4, 2 for keys and values, of size 16"
    assert lines["runs"] == "yes"
    assert "nearly the same row for experts, layer 1: 0 and 2" in out
    assert "in the file; not what an expert is good at:" in out
    assert "\x1b" not in out


def test_a_model_that_cannot_run_says_why_and_is_still_inspected(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    extra = {"blk.0.attn_q.bias": np.zeros(64, np.float32)}
    assert main(["inspect", str(write_tiny(tmp_path / "m.gguf", extra_tensors=extra))]) == 0
    out = capsys.readouterr().out
    assert "runs:           no\nbecause:        blk.0.attn_q.bias: biases are not supported" in out


def test_json_is_one_object(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "--json", str(write_tiny(tmp_path / "m.gguf"))]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["runnable"] is True
    assert captured.err == ""


def test_unreadable_files_give_one_line_and_their_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing, broken = tmp_path / "none.gguf", tmp_path / "m.gguf"
    broken.write_bytes(b"GGUF\x01\0\0\0" + b"\0" * 16)
    assert main(["inspect", str(missing)]) == 4
    assert main(["inspect", str(broken)]) == 3
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        f"error: {missing}: cannot be opened: No such file or directory",
        f"error: {broken}: GGUF version not supported, got 1, expected 2 or 3",
    ]


def test_count_text() -> None:
    assert [count_text(n) for n in (999, 1500, 21_000_000, 46_702_792_704)] == ["999", "1.5 K", "21.0 M", "46.7 B"]
