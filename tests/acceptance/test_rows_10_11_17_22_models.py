"""Rows 10, 11, 17 and 22 through the command line: sound files that hold an impossible or incomplete model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFValueType

from tests.acceptance.command import Answer, contents, localmoe, together
from tests.checkpoints import Tiny, checkpoint_weights, dtype_of, encode, write_checkpoint, write_safetensors
from tests.tiny import tiny_weights, write_tiny

U32 = GGUFValueType.UINT32
SMALL = {"n_layer": 2, "n_embd": 32, "n_head": 4, "n_head_kv": 2, "n_ff": 32, "n_expert": 4}
EXPERTS = tiny_weights(**SMALL)


def stated(key: str, value: int) -> dict[str, Any]:
    """Options of write_tiny that state one key."""
    return {"extra_metadata": {f"llama.{key}": (value, U32, None)}}


def changed(name: str, change: Callable[[np.ndarray], np.ndarray]) -> dict[str, Any]:
    """Options of write_tiny that change one tensor."""
    return {"extra_tensors": {name: np.ascontiguousarray(change(EXPERTS[name]))}}


GATE, UP, DOWN = (f"blk.1.ffn_{part}_exps.weight" for part in ("gate", "up", "down"))
MODELS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "row 10 no expert used": (stated("expert_used_count", 0), ("llama.expert_used_count", "got 0", "1 to 4")),
    "row 10 9 of 4 experts": (stated("expert_used_count", 9), ("llama.expert_used_count", "got 9", "1 to 4")),
    "row 10 10^9 layers": (stated("block_count", 10**9), ("llama.block_count", "got 1000000000")),
    "row 10 10^9 experts": (stated("expert_count", 10**9), ("llama.expert_count", "got 1000000000")),
    "row 10 10^9 wide": (stated("embedding_length", 10**9), ("llama.embedding_length", "got 1000000000")),
    "row 10 heads": (stated("attention.head_count", 5), ("llama.attention.head_count",)),
    "row 10 kv heads": (stated("attention.head_count_kv", 3), ("llama.attention.head_count_kv", "got 3")),
    "row 11 missing": ({"drop_tensors": [UP]}, (UP, "missing")),
    "row 11 fewer experts": (changed(UP, lambda x: x[:3]), (UP, "4")),
    "row 11 transposed": (changed(DOWN, lambda x: np.concatenate([x, x], 1)), (DOWN,)),
    "row 11 router": (changed("blk.1.ffn_gate_inp.weight", lambda x: x[:3]), ("blk.1.ffn_gate_inp.weight",)),
    "row 17 wider": (changed(GATE, lambda x: np.concatenate([x, x], 1)), (GATE,)),
    "row 17 more experts": (changed(GATE, lambda x: np.concatenate([x, x], 0)), (GATE,)),
    "row 22 attention": ({"drop_tensors": ["blk.0.attn_k.weight"]}, ("blk.0.attn_k.weight", "missing")),
    "row 22 norm": ({"drop_tensors": ["output_norm.weight"]}, ("output_norm.weight", "missing")),
    "row 22 embedding": ({"drop_tensors": ["token_embd.weight"]}, ("token_embd.weight", "missing")),
}  # fmt: skip
EVERY_COMMAND = ("row 11 missing",)
QUANTIZED = ("row 10 9 of 4 experts", "row 17 wider", "row 22 attention")
Refusals = tuple[dict[str, list[Answer]], bool]


def commands(case: str, model: Path, out: Path) -> list[tuple[object, ...]]:
    """The command lines that meet a case's model."""
    lines: list[tuple[object, ...]] = [("run", "-m", model, "-p", "a")]
    if case in EVERY_COMMAND + QUANTIZED:
        lines.append(("quantize", model, out, "Q8_0"))
    if case in EVERY_COMMAND:
        lines += [("convert", model, "-o", out), ("chat", "-m", model), ("bench", "-m", model)]
    return lines


@pytest.fixture(scope="module")
def refusals(tmp_path_factory: pytest.TempPathFactory) -> Refusals:
    """What the commands answered to each case, and whether all files stayed as they were."""
    folder = tmp_path_factory.mktemp("models")
    models = {case: write_tiny(folder / f"{case}.gguf", **SMALL, **options) for case, (options, _) in MODELS.items()}
    out = folder / "out.gguf"
    out.write_bytes(b"older output")
    before = contents(folder)
    lines = [(case, line) for case, model in models.items() for line in commands(case, model, out)]
    answers: dict[str, list[Answer]] = {case: [] for case in MODELS}
    for (case, _), answer in zip(lines, together(*(line for _, line in lines)), strict=True):
        answers[case].append(answer)
    return answers, contents(folder) == before


@pytest.mark.parametrize("case", MODELS)
def test_it_is_refused(refusals: Refusals, case: str) -> None:
    for answer in refusals[0][case]:
        answer.failed(3, f"{case}.gguf: ", *MODELS[case][1]).quickly()
        assert answer.out == ""


def test_nothing_is_left_behind(refusals: Refusals) -> None:
    assert refusals[1]


def test_row_11_and_22_inspect_says_why_it_would_not_run(tmp_path: Path) -> None:
    """It describes a model that cannot run, and tells scripts so."""
    model = write_tiny(tmp_path / "m.gguf", **SMALL, drop_tensors=[UP, "blk.0.attn_k.weight"])
    text, described = together(("inspect", model), ("inspect", model, "--json"))
    assert "runs:           no" in text.succeeded().quickly().out
    assert "blk.0.attn_k.weight: the tensor is missing in layer 0, and 1 more" in text.out
    report = json.loads(described.succeeded().out)
    assert report["runnable"] is False
    assert "blk.0.attn_k.weight" in report["reasons"][0]


def checkpoint(folder: Path, change: Callable[[dict[str, np.ndarray]], None]) -> Path:
    """A Mixtral checkpoint whose weights `change` edits."""
    tiny = Tiny()
    write_checkpoint(folder, tiny)
    weights = checkpoint_weights(tiny)
    change(weights)
    write_safetensors(folder / "model.safetensors", {n: encode(dtype_of(n, tiny), x) for n, x in weights.items()})
    return folder


LAYER_1 = "model.layers.1.block_sparse_moe"
CHECKPOINTS: dict[str, tuple[Callable[[dict[str, Any]], Any], tuple[str, ...]]] = {
    "row 11 expert missing": (lambda w: w.pop(f"{LAYER_1}.experts.2.w3.weight"), ("experts.2.w3",)),
    "row 17 expert of another shape": (
        lambda w: w.update({f"{LAYER_1}.experts.2.w3.weight": np.zeros((65, 32), np.float32)}), ("experts.2.w3",),
    ),
    "row 17 experts of another number": (
        lambda w: w.update({f"{LAYER_1}.experts.4.{x}.weight": w[f"{LAYER_1}.experts.0.{x}.weight"]
                            for x in ("w1", "w2", "w3")}), ("layer 1", "number of experts", "got 5", "expected 4"),
    ),
    "row 22 attention missing": (lambda w: w.pop("model.layers.0.self_attn.k_proj.weight"), ("k_proj",)),
}  # fmt: skip


def test_convert_refuses_checkpoints(tmp_path: Path) -> None:
    folders = {case: checkpoint(tmp_path / case, change) for case, (change, _) in CHECKPOINTS.items()}
    out = tmp_path / "out.gguf"
    out.write_bytes(b"older output")
    before = contents(tmp_path)
    answers = together(*(("convert", folder, "-o", out, "--type", "F16") for folder in folders.values()))
    for case, answer in zip(CHECKPOINTS, answers, strict=True):
        answer.failed(3, folders[case], *CHECKPOINTS[case][1]).quickly()
    assert contents(tmp_path) == before


def test_row_10_a_checkpoint_that_uses_more_experts_than_it_has(tmp_path: Path) -> None:
    config = {"num_experts_per_tok": 9}
    folder = write_checkpoint(tmp_path / "m", Tiny(config=config))
    answer = localmoe("convert", folder, "-o", tmp_path / "out.gguf", "--type", "F16")
    answer.failed(3, folder / "config.json", "num_experts_per_tok", "got 9").quickly()
    assert not (tmp_path / "out.gguf").exists()
