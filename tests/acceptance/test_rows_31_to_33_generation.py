"""Rows 31 to 33 through the command line: NaN inside a model, a context that overflows, and equal seeds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.acceptance.command import localmoe, together
from tests.tiny import tiny_weights, write_tiny

SMALL = {"n_layer": 2, "n_embd": 32, "n_head": 2, "n_head_kv": 1, "n_ff": 32, "n_expert": 4, "n_ctx_train": 64}
DAMAGED = {
    "router": "blk.1.ffn_gate_inp.weight",
    "one expert": "blk.1.ffn_down_exps.weight",
    "output": "output.weight",
    "embedding": "token_embd.weight",
    "norm": "blk.0.attn_norm.weight",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("model") / "m.gguf", **SMALL)


def test_row_31_numbers_that_are_none_end_in_an_error(tmp_path: Path) -> None:
    """In the router, in experts, in the logits: `run` says so, on the prompt and on single tokens."""
    lines, models = [], []
    for (part, name), value in [*((item, np.nan) for item in DAMAGED.items()), (("gates", DAMAGED["router"]), np.inf)]:
        weights = tiny_weights(**SMALL)
        weights[name][...] = value
        models.append(write_tiny(tmp_path / f"{part}.gguf", extra_tensors={name: weights[name]}, **SMALL))
        lines.append(("run", "-m", models[-1], "-p", "the moe", "-n", "4", "--temp", "0"))
    for damaged, answer in zip(models, together(*lines), strict=True):
        answer.failed(3, f"error: {damaged}: ", "not finite")
        assert answer.out.strip() == ""


def test_row_32_a_prompt_that_does_not_fit_is_refused(model: Path) -> None:
    """Before anything is generated, and it is not cut."""
    answer = localmoe("run", "-m", model, "-p", "the moe " * 40, "-c", "16", "-n", "4").failed(2, "tokens", "below 16")
    assert answer.out == ""


def test_row_32_an_end_forced_by_the_context_is_said_before(model: Path) -> None:
    arguments = ("run", "-m", model, "-p", "the", "-n", "50", "--ignore-eos", "--temp", "0", "-c", "16", "--json")
    answer = localmoe(*arguments).succeeded()
    report = json.loads(answer.out)
    assert report["stop_reason"] == "context"
    n_prompt = len(report["prompt_tokens"])
    assert f"note: prompt {n_prompt} + 50 tokens exceed the context of 16: it ends after {16 - n_prompt}" in answer.err
    assert n_prompt + len(report["tokens"]) in (16, 17)


def test_row_32_a_context_beyond_the_trained_one_is_said(model: Path) -> None:
    answer = localmoe("run", "-m", model, "-p", "the", "-n", "1", "-c", "100").succeeded()
    assert "note: a context of 100 is more than the 64 tokens" in answer.err


def test_row_32_a_chat_that_fills_its_context_says_so(model: Path) -> None:
    """The message that does not fit is taken back, and the next one is answered."""
    lines = "the\n" + "the moe expert " * 30 + "\n/reset\nhe\n"
    answer = localmoe("chat", "-m", model, "-c", "48", "-n", "4", "--temp", "0", stdin=lines.encode()).succeeded()
    assert "does not fit in the context" in answer.err
    assert "taken back" in answer.err
    assert answer.out.count("\n") == 2


def test_row_33_equal_seeds_give_equal_tokens_for_any_number_of_threads(model: Path) -> None:
    command = ("run", "-m", model, "-p", "the expert is one of", "-n", "40", "--ignore-eos", "-s", "7", "--temp", "1.3")
    one, two, again, other = together(
        (*command, "-t", "1"), (*command, "-t", "2"), (*command, "-t", "2"), (*command, "-t", "1", "-s", "8")
    )
    assert one.succeeded().out == two.succeeded().out == again.succeeded().out
    assert len(one.out) > 40
    assert other.succeeded().out != one.out
