"""Rows 16, 23 and 24 through the command line: weights that are NaN, do not divide, or are quantized."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from localmoe.gguf_file import open_gguf
from tests.acceptance.command import contents, together
from tests.checkpoints import Tiny, checkpoint_weights, encode, write_checkpoint, write_safetensors
from tests.tiny import tiny_weights, write_tiny

SMALL = {"n_layer": 1, "n_embd": 32, "n_head": 4, "n_head_kv": 2, "n_ff": 32, "n_expert": 2}


def test_row_16_nan_and_inf_are_named_and_nothing_is_replaced(tmp_path: Path) -> None:
    """By tensor and first index, in an expert stack, a matrix and a vector; from GGUF and from a checkpoint."""
    weights = tiny_weights(**SMALL)
    stack, norm = "blk.0.ffn_down_exps.weight", "blk.0.attn_norm.weight"
    weights[stack][1, 2, 3] = np.nan
    weights[stack][1, 5, 6] = np.inf
    in_stack = write_tiny(tmp_path / "stack.gguf", extra_tensors={stack: weights[stack]}, **SMALL)
    weights[norm][7] = -np.inf
    in_norm = write_tiny(tmp_path / "norm.gguf", extra_tensors={norm: weights[norm]}, **SMALL)
    tiny = Tiny(n_layer=1, dtype="BF16")
    folder = write_checkpoint(tmp_path / "m", tiny)
    tensors = checkpoint_weights(tiny)
    name = "model.layers.0.block_sparse_moe.experts.2.w1.weight"
    tensors[name][4, 5] = np.nan
    write_safetensors(folder / "model.safetensors", {n: encode("BF16", x) for n, x in tensors.items()})
    out = tmp_path / "out.gguf"
    out.write_bytes(b"older output")
    before = contents(tmp_path)
    index = (1 * 32 + 2) * 32 + 3
    quantized, copied, converted, plain = together(
        ("quantize", in_stack, out, "Q8_0"), ("quantize", in_norm, out, "F16"), ("convert", folder, "-o", out),
        ("convert", folder, "-o", out, "--type", "BF16"),
    )  # fmt: skip
    quantized.failed(3, f"error: {in_stack}: {stack}: ", f"at index {index}")
    copied.failed(3, f"error: {in_norm}: {norm}: ", "at index 7")
    for answer in (converted, plain):  # w1 of expert 2, row 4, column 5 of experts of 64 x 32
        answer.failed(3, folder, "blk.0.ffn_gate_exps.weight", f"at index {(2 * 64 + 4) * 32 + 5}")
    assert contents(tmp_path) == before


def test_row_23_rows_that_do_not_divide_fall_back_and_say_so(tmp_path: Path) -> None:
    model = write_tiny(tmp_path / "m.gguf", **{**SMALL, "n_ff": 48})
    folder = write_checkpoint(tmp_path / "m", Tiny(n_layer=1, n_ff=48))
    outs = [tmp_path / "a.gguf", tmp_path / "b.gguf"]
    answers = together(("quantize", model, outs[0], "Q4_K_M"), ("convert", folder, "-o", outs[1]))
    for out, answer in zip(outs, answers, strict=True):
        notes = answer.succeeded().err
        with open_gguf(out) as written:
            down = written.tensors["blk.0.ffn_down_exps.weight"]
            up = written.tensors["blk.0.ffn_up_exps.weight"]
        assert (
            f"blk.0.ffn_down_exps.weight: rows of 48 do not divide into blocks of 256 (Q6_K): {down.type.name}" in notes
        )
        assert down.type.name == "F16"
        assert f"blk.0.ffn_up_exps.weight: rows of 32 do not divide into blocks of 256 (Q4_K): {up.type.name}" in notes
        assert up.type.name == "Q5_0"


def test_row_24_requantizing_needs_its_flag(tmp_path: Path) -> None:
    model, out = write_tiny(tmp_path / "m.gguf", type="Q8_0", **SMALL), tmp_path / "out.gguf"
    out.write_bytes(b"older output")
    before = contents(tmp_path)
    for answer in together(("quantize", model, out, "Q4_0"), ("convert", model, "-o", out, "--type", "Q4_0")):
        answer.failed(2, f"error: {model}: ", "weight: ", "got Q8_0", "--allow-requantize").quickly()
    assert contents(tmp_path) == before
    again = tmp_path / "again.gguf"
    allowed = together(
        ("quantize", model, out, "Q4_0", "--allow-requantize"),
        ("convert", model, "-o", again, "--type", "Q4_0", "--allow-requantize"),
    )
    for answer in allowed:
        answer.succeeded()
    assert out.read_bytes() == again.read_bytes() != b"older output"
