"""Finding and checking a model's tensors (acceptance rows 11, 17, 22)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType as T

from localmoe.errors import BadInputError
from localmoe.gguf_file import open_gguf
from localmoe.kernels.table import KERNELS
from localmoe.model.config import ModelConfig
from localmoe.model.inspect import describe
from localmoe.model.weights import Weights, decodable_types, load_weights, runnable_types
from tests.tiny import tiny_weights, write_tiny

TYPES = {T.F32, T.F16, T.Q8_0}


def load(path: Path, supported: Any = TYPES, **fields: Any) -> Weights:
    file = open_gguf(write_tiny(path / "m.gguf", **fields))
    return load_weights(file, ModelConfig.from_metadata(file), supported)


def refusal(path: Path, **fields: Any) -> str:
    with pytest.raises(BadInputError) as caught:
        load(path, **fields)
    return str(caught.value)


def test_moe_weights_are_views_of_the_right_bytes(tmp_path: Path) -> None:
    weights, truth = load(tmp_path), tiny_weights()
    assert len(weights.layers) == 2
    down = weights.layers[1].ffn_down
    assert (down.name, down.rows, down.cols, down.n_expert, down.row_bytes) == (
        "blk.1.ffn_down_exps.weight",
        64,
        96,
        8,
        384,
    )
    assert down.data.shape == (8 * 64, 384)
    expert_5 = down.data[5 * 64 : 6 * 64].view("<f4")
    assert np.array_equal(expert_5, truth["blk.1.ffn_down_exps.weight"][5])
    assert not down.data.flags.writeable
    router = weights.layers[0].ffn_gate_inp
    assert router is not None
    assert np.array_equal(router.data.view("<f4"), truth["blk.0.ffn_gate_inp.weight"])
    assert np.array_equal(weights.layers[1].attn_norm, truth["blk.1.attn_norm.weight"])
    assert np.array_equal(weights.output_norm, truth["output_norm.weight"])
    assert weights.output.name == "output.weight"
    assert weights.rope_freqs is None


def test_dense_tied_and_quantized(tmp_path: Path) -> None:
    factors = (1.0,) * 4 + (8.0,) * 4
    weights = load(tmp_path, n_expert=0, tied=True, type="Q8_0", rope_freqs=factors)
    layer = weights.layers[0]
    assert layer.ffn_gate_inp is None
    assert (layer.ffn_gate.name, layer.ffn_gate.rows, layer.ffn_gate.cols) == ("blk.0.ffn_gate.weight", 96, 64)
    assert (layer.ffn_gate.type, layer.ffn_gate.row_bytes) == (T.Q8_0, 68)
    assert (layer.attn_k.rows, layer.attn_q.rows) == (32, 64)
    assert weights.output is weights.token_embd
    assert weights.rope_freqs is not None
    assert weights.rope_freqs.tolist() == list(factors)


def test_what_runs_is_what_has_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert {T.F32, T.F16, T.Q8_0, T.Q4_K, T.Q6_K} <= runnable_types() <= decodable_types()
    assert load(tmp_path, None).token_embd.type == T.F32
    monkeypatch.delitem(KERNELS, T.Q8_0)
    assert T.Q8_0 in decodable_types()
    with pytest.raises(BadInputError, match="type not supported in layer 0, got Q8_0, expected one of: F32, F16, Q4_0"):
        load(tmp_path, None, types={"ffn_down": "Q8_0"})
    reasons = describe(tmp_path / "m.gguf")["reasons"]
    assert any("blk.0.ffn_down_exps.weight: type not supported in layer 0, got Q8_0" in reason for reason in reasons)


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("token_embd.weight", ""),
        ("output_norm.weight", ""),
        ("blk.1.attn_v.weight", " in layer 1"),
        ("blk.1.ffn_gate_inp.weight", " in layer 1"),
        ("blk.0.ffn_up_exps.weight", " in layer 0"),
    ],
)
def test_rows_11_and_22_a_missing_tensor_is_named(tmp_path: Path, name: str, where: str) -> None:
    message = refusal(tmp_path, drop_tensors=[name])
    assert message.endswith(f"m.gguf: {name}: the tensor is missing{where}")


def test_row_22_many_missing_tensors_are_counted(tmp_path: Path) -> None:
    message = refusal(tmp_path, drop_tensors=[f"blk.1.{n}.weight" for n in ("attn_q", "attn_k", "ffn_norm")])
    assert "blk.1.attn_q.weight: the tensor is missing in layer 1, and 2 more" in message


def test_row_11_expert_tensor_of_the_wrong_shape(tmp_path: Path) -> None:
    wrong = {"blk.1.ffn_up_exps.weight": np.zeros((8, 95, 64), np.float32)}
    message = refusal(tmp_path, extra_tensors=wrong)
    expected = "the tensor has the wrong shape in layer 1, got [64, 95, 8], expected [64, 96, 8]"
    assert f"blk.1.ffn_up_exps.weight: {expected}" in message


def test_row_17_experts_that_differ_in_number_between_layers(tmp_path: Path) -> None:
    wrong = {
        f"blk.1.{name}.weight": np.zeros(shape, np.float32)
        for name, shape in {"ffn_gate_inp": (4, 64), "ffn_gate_exps": (4, 96, 64), "ffn_up_exps": (4, 96, 64)}.items()
    }
    message = refusal(tmp_path, extra_tensors=wrong)
    assert (
        "blk.1.ffn_gate_inp.weight: the tensor has the wrong shape in layer 1, got [64, 4], expected [64, 8]" in message
    )


def test_transposed_matrix_is_refused(tmp_path: Path) -> None:
    wrong = {"blk.0.attn_k.weight": np.zeros((64, 32), np.float32)}
    assert "blk.0.attn_k.weight: the tensor has the wrong shape" in refusal(tmp_path, extra_tensors=wrong)


def test_type_that_cannot_run_lists_those_that_can(tmp_path: Path) -> None:
    message = refusal(tmp_path, types={"ffn_down": "BF16"})
    wanted = "type not supported in layer 0, got BF16, expected one of: F32, F16, Q8_0"
    assert f"blk.0.ffn_down_exps.weight: {wanted}" in message


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("blk.0.attn_q.bias", "biases are not supported"),
        ("blk.0.attn_qkv.weight", "queries, keys and values in one tensor are not supported"),
        ("blk.0.ffn_down_exps.scale", "scales of weights are not supported"),
        ("blk.0.ffn_down_exps.input_scale", "scales of activations are not supported"),
        ("blk.1.ffn_gate_shexp.weight", "unknown tensor"),
        ("blk.2.attn_norm.weight", "unknown tensor"),
        ("extra\x1b[31m", "unknown tensor"),
    ],
)
def test_a_tensor_that_would_be_ignored_is_refused(tmp_path: Path, name: str, reason: str) -> None:
    message = refusal(tmp_path, extra_tensors={name: np.zeros(64, np.float32)})
    assert f": {reason}: ignoring it could change the result" in message
    assert message.isprintable()


def test_fused_attention_is_named_and_not_its_missing_parts(tmp_path: Path) -> None:
    parts = [f"blk.1.attn_{part}.weight" for part in "qkv"]
    fused = {"blk.1.attn_qkv.weight": np.zeros((128, 64), np.float32)}
    message = refusal(tmp_path, extra_tensors=fused, drop_tensors=parts)
    assert "blk.1.attn_qkv.weight: queries, keys and values in one tensor are not supported" in message
    assert [reason for reason in describe(tmp_path / "m.gguf")["reasons"] if "missing" in reason] == []


def test_impossible_rope_factors_are_refused(tmp_path: Path) -> None:
    message = refusal(tmp_path, rope_freqs=(1.0, 1.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0))
    assert "rope_freqs.weight: impossible value, got 0.0 at index 2, expected numbers > 0" in message
    assert "rope_freqs.weight: the tensor has the wrong shape" in refusal(tmp_path, rope_freqs=(1.0, 1.0))
