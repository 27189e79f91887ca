"""`localmoe run` on a model that says a fixed text."""

from __future__ import annotations

import io
import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from localmoe.cli import main
from localmoe.cli.common import SAMPLING_FLAGS, count_experts, parse_bias, sampling_from_flags, say, skipped_share
from localmoe.cli.run import timings_line
from localmoe.engine.generation import Timings
from localmoe.engine.sampling import SamplingParams
from localmoe.errors import UsageError
from tests.cli.fake_model import EXPERTS, LAYERS, FakeModel


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> FakeModel:
    fake = FakeModel()
    fake.loaded = []  # type: ignore[attr-defined]

    def load(path: str, **options: Any) -> FakeModel:
        fake.loaded.append((path, options))  # type: ignore[attr-defined]
        return fake

    monkeypatch.setattr("localmoe.load", load)
    return fake


def test_stdout_holds_the_text_alone(model: FakeModel, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "-m", "m.gguf", "-p", "Hi"]) == 0
    out, err = capfd.readouterr()
    assert out == "Hello there\n"
    assert err == "prompt: 3 tokens, 6.0 tokens/s; generated: 11 tokens, 40.0 tokens/s; ended: by the model (eos)\n"
    assert model.closed


def test_the_line_of_figures_says_why_a_reply_ended() -> None:
    one = Timings(n_prompt=1, n_gen=1, prompt_s=0.5, gen_s=0.5)
    line = "prompt: 1 token, 2.0 tokens/s; generated: 1 token; ended: "  # which came with the prompt
    ends = {"length": "at the length asked for (-n)", "context": "with the context full", "cancelled": "stopped"}
    for reason, said in {**ends, "stop": "at a stop string", None: "at once"}.items():
        assert timings_line(one, reason) == line + said


def test_options_reach_the_model(model: FakeModel) -> None:
    flags = ["-n", "5", "--temp", "0.5", "--top-k", "7", "-s", "9", "-l", "4-inf", "-l", "5+1.5", "-r", "stop"]
    load = ["-t", "3", "-c", "48", "--experts-used", "1", "-ctk", "q8_0", "--cache-type-v", "f32"]
    assert main(["run", "-m", "m.gguf", "-p", "Hi", *flags, *load]) == 0
    [(path, options)] = model.loaded  # type: ignore[attr-defined]
    assert path == "m.gguf"
    assert options == {
        "n_ctx": 48,
        "n_threads": 3,
        "n_expert_used": 1,
        "cache_type_k": "q8_0",
        "cache_type_v": "f32",
        "progress": say,
    }
    [(ids, asked)] = model.asked
    assert ids == [1, ord("H"), ord("i")]
    assert (asked["max_tokens"], asked["temperature"], asked["top_k"], asked["seed"]) == (5, 0.5, 7, 9)
    assert asked["logit_bias"] == {4: -math.inf, 5: 1.5}
    assert asked["stop"] == ("stop",)
    assert asked["min_p"] == 0.05


def test_defaults_ask_for_the_models_own(model: FakeModel) -> None:
    main(["run", "-m", "m.gguf", "-p", "Hi"])
    options = model.loaded[0][1]  # type: ignore[attr-defined]
    assert (options["n_ctx"], options["n_threads"], options["n_expert_used"]) == (None, None, None)
    assert model.asked[0][1]["max_tokens"] == -1


def test_ignore_eos_bans_the_end_tokens(model: FakeModel) -> None:
    main(["run", "-m", "m.gguf", "-p", "Hi", "--ignore-eos"])
    assert model.asked[0][1]["logit_bias"] == {0: -math.inf, 3: -math.inf}


def test_no_bos_and_special_tokens(model: FakeModel) -> None:
    main(["run", "-m", "m.gguf", "-p", "Hi", "--no-bos", "--parse-special"])
    assert model.asked[0][0] == [2, ord("H"), ord("i")]


@pytest.mark.parametrize("flags", [["-"], ["-f", "-"]])
def test_prompt_from_standard_input(model: FakeModel, flags: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("grün\n\n".encode())))
    assert main(["run", "-m", "m.gguf", *flags]) == 0
    assert model.asked[0][0] == [1, *map(ord, "grün\n")]


def test_prompt_from_a_file(model: FakeModel, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "prompt").write_text("Hey\n")
    assert main(["run", "-m", "m.gguf", "-f", str(tmp_path / "prompt")]) == 0
    assert model.asked[0][0] == [1, *map(ord, "Hey")]
    (tmp_path / "prompt").write_bytes(b"ab\xff")
    capfd.readouterr()
    assert main(["run", "-m", "m.gguf", "-f", str(tmp_path / "prompt")]) == 3
    assert capfd.readouterr().err == f"error: {tmp_path / 'prompt'}: byte 2: not UTF-8\n"
    assert main(["run", "-m", "m.gguf", "-f", str(tmp_path / "none")]) == 4


@pytest.mark.parametrize("flags", [[], ["-p", "a", "-f", "b"], ["-p", "a", "-"], ["other"], ["-p", "", "--no-bos"]])
def test_exactly_one_prompt_is_needed(model: FakeModel, flags: list[str]) -> None:
    assert main(["run", "-m", "m.gguf", *flags]) == 2
    assert not model.asked


def test_json_is_one_object(model: FakeModel, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "-m", "m.gguf", "-p", "Hi", "-n", "4", "--seed", "3", "--json"]) == 0
    report = json.loads(capfd.readouterr().out)
    assert report["prompt"] == "Hi"
    assert report["text"] == "Hell"
    assert report["tokens"] == [*map(ord, "Hell")]
    assert report["stop_reason"] == "length"
    assert report["seed"] == 3
    assert report["timings"]["n_prompt"] == 3
    assert report["timings"]["gen_ts"] == 12.0
    assert report["experts"] == [{"layer": 0, "counts": [1, 1, 1, 5]}, {"layer": 1, "counts": [4, 4, 0, 0]}]


def test_a_drawn_seed_is_told_so_that_it_can_be_used_again(model: FakeModel, capfd: pytest.CaptureFixture[str]) -> None:
    main(["run", "-m", "m.gguf", "-p", "Hi", "--json"])
    assert json.loads(capfd.readouterr().out)["seed"] == model.asked[0][1]["seed"] >= 0


def test_expert_summary(model: FakeModel, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "-m", "m.gguf", "-p", "Hi", "-n", "4", "--expert-summary"]) == 0
    assert capfd.readouterr().err.splitlines()[1:] == [
        "layer   0:   3  62%    0  12%    1  12%    2  12%",
        "layer   1:   0  50%    1  50%",
    ]
    assert model.config.n_layer == LAYERS
    assert model.config.n_expert == EXPERTS


def test_a_dense_model_has_no_expert_summary(model: FakeModel, capfd: pytest.CaptureFixture[str]) -> None:
    model.config.n_expert, model.n_used = 0, 0
    assert main(["run", "-m", "m.gguf", "-p", "Hi", "-n", "4", "--expert-summary", "--json"]) == 0
    out, err = capfd.readouterr()
    assert json.loads(out)["experts"] == []
    assert err.count("\n") == 1


def test_expert_summary_tells_the_prompts_behind_the_router(
    model: FakeModel, capfd: pytest.CaptureFixture[str]
) -> None:
    model.gguf.metadata["localmoe.expert.labels"] = ["tell a story", "def f():\x1b[2J", "2 + 2", "hi"]
    assert main(["run", "-m", "m.gguf", "-p", "Hi", "-n", "4", "--expert-summary"]) == 0
    assert capfd.readouterr().err.splitlines()[3:] == [
        "expert   0: labelled: tell a story",
        "expert   1: labelled: def f():\\x1b[2J",
        "expert   2: labelled: 2 + 2",
        "expert   3: labelled: hi",
    ]


def test_a_prompt_that_does_not_fit_is_said_before(model: FakeModel, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "-m", "m.gguf", "-p", "x" * 63]) == 2
    assert capfd.readouterr() == (
        "",
        "error: the prompt does not fit the context, got 64 tokens, expected below 64 (-c)\n",
    )
    assert not model.asked


def test_an_end_forced_by_the_context_is_said_before(model: FakeModel, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "-m", "m.gguf", "-p", "x" * 59, "-n", "10"]) == 0
    said = "note: prompt 60 + 10 tokens exceed the context of 64: it ends after 4 (see -c)"
    assert capfd.readouterr().err.splitlines()[0] == said
    assert main(["run", "-m", "m.gguf", "-p", "x" * 53, "-n", "10"]) == 0
    assert "note" not in capfd.readouterr().err


def test_a_context_beyond_the_trained_one_is_said(model: FakeModel, capfd: pytest.CaptureFixture[str]) -> None:
    model.n_ctx = 100
    assert main(["run", "-m", "m.gguf", "-p", "Hi", "-c", "100"]) == 0
    said = "note: a context of 100 is more than the 64 tokens the model was trained on"
    assert capfd.readouterr().err.splitlines()[0] == said


def test_escape_sequences_split_over_tokens_do_not_reach_a_terminal(
    model: FakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    model.reply = "a\x1b]0;owned\x07b\x9b1m\n"
    monkeypatch.setattr("sys.stdout", Terminal())
    assert main(["run", "-m", "m.gguf", "-p", "Hi"]) == 0
    shown = sys.stdout.getvalue()  # type: ignore[attr-defined]
    assert not {"\x1b", "\x07", "\x9b"} & set(shown)
    assert shown.startswith("a")


def test_a_file_gets_the_text_as_it_is(model: FakeModel, capfd: pytest.CaptureFixture[str]) -> None:
    model.reply = "a\x1b[1mb"
    main(["run", "-m", "m.gguf", "-p", "Hi"])
    assert capfd.readouterr().out == "a\x1b[1mb\n"


def test_a_failure_keeps_the_text_so_far(model: FakeModel, capfd: pytest.CaptureFixture[str]) -> None:
    def fail(index: int) -> None:
        if index == 4:
            raise KeyboardInterrupt

    model.on_step = fail
    assert main(["run", "-m", "m.gguf", "-p", "Hi"]) == 130
    assert capfd.readouterr() == ("Hello\n", "error: interrupted\n")
    assert model.closed


def test_every_sampling_parameter_has_a_flag() -> None:
    assert SAMPLING_FLAGS.keys() == SamplingParams.__dataclass_fields__.keys()


@pytest.mark.parametrize(("text", "bias"), [("15043+1", (15043, 1.0)), ("0-2.5", (0, -2.5)), ("7-inf", (7, -math.inf))])
def test_bias_as_llama_cpp_writes_it(text: str, bias: tuple[int, float]) -> None:
    assert parse_bias(text) == bias


@pytest.mark.parametrize("text", ["", "5", "+1", "a+1", "5*1", "5+nan", "5+inf", "9" * 5000 + "+1"])
def test_a_bias_that_is_none(text: str) -> None:
    with pytest.raises(UsageError, match=r"^logit_bias: "):
        sampling_from_flags({"logit_bias": [text]})


def test_dry_breakers_replace_the_defaults() -> None:
    assert sampling_from_flags({"dry_sequence_breakers": ["\\n", "ab"]}).dry_sequence_breakers == ("\n", "ab")
    assert sampling_from_flags({"dry_sequence_breakers": ["none"]}).dry_sequence_breakers == ()
    assert sampling_from_flags({"dry_sequence_breakers": None}).dry_sequence_breakers == ("\n", ":", '"', "*")


def test_experts_left_out_forced_and_skipped_reach_the_model_only_when_given(model: FakeModel) -> None:
    flags = ["--leave-out", "0:1", "--leave-out", "1:2,3", "--force-experts", "*:0", "--expert-threshold", "0.2"]
    assert main(["run", "-m", "m.gguf", "-p", "Hi", *flags]) == 0
    [(_, options)] = model.loaded  # type: ignore[attr-defined]
    assert options["leave_out"] == ["0:1", "1:2,3"]
    assert options["force_experts"] == ["*:0"]
    assert options["expert_threshold"] == 0.2


def test_an_unused_slot_is_no_expert_and_the_skipped_share_is_said() -> None:
    step = SimpleNamespace(token=5, experts=np.array([[2, -1], [0, 1]], np.int32))
    counts = count_experts([step], 2, 3)  # type: ignore[list-item]
    assert counts.tolist() == [[0, 0, 1], [1, 1, 0]]
    assert skipped_share([step]) == 0.25  # type: ignore[list-item]
