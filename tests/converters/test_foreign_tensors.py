"""Models that localmoe does not run are rewritten as llama-quantize does; only a merge refuses them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFValueType as V

from localmoe.cli import main
from localmoe.gguf_file import open_gguf
from tests.tiny import Meta, tiny_weights, write_tiny

SIZES: dict[str, Any] = {"n_embd": 256, "n_ff": 256, "n_layer": 2, "n_expert": 4}
COUNTING = np.arange(512)


def values(*shape: int) -> np.ndarray:
    return np.random.default_rng(shape).standard_normal(shape).astype(np.float32)


def fused() -> dict[str, np.ndarray]:
    weights = tiny_weights(**SIZES)
    return {
        f"blk.{layer}.attn_qkv.weight": np.concatenate([weights[f"blk.{layer}.attn_{part}.weight"] for part in "qkv"])
        for layer in (0, 1)
    }


PARTS = [f"blk.{layer}.attn_{part}.weight" for layer in (0, 1) for part in "qkv"]
TENSORS: dict[str, tuple[dict[str, np.ndarray], list[str], str]] = {
    "biases": (
        {"blk.0.attn_q.bias": values(256), "blk.1.attn_output.bias": values(256),
         "blk.1.ffn_up_exps.bias": values(4, 256)},
        [], "ba03abb25466f945",
    ),
    "fused": (fused(), PARTS, "71b09131f215e638"),
    "scales": ({"blk.0.attn_q.scale": values(1), "blk.1.ffn_up_exps.input_scale": values(4)}, [], "82e058b91ded4add"),
    "shared": (
        {f"blk.0.ffn_{part}_shexp.weight": values(256, 256) for part in ("gate", "up", "down")}, [], "0b8d5e24c64335ec",
    ),
    "integers": (
        {"blk.0.ids": COUNTING.astype(np.int32).reshape(2, 256), "a": COUNTING.astype(np.int64), "b": np.int8([-1, 2]),
         "blk.0.ffn_gate_tid2eid.weight": COUNTING.astype(np.int32).reshape(256, 2), "c": np.int16([-1, 2])},
        [], "22939f68e9a29712",
    ),
    "doubles": (
        {"blk.0.foo": values(33).astype(np.float64), "blk.0.attn_norm.weight": np.ones(256)},
        [], "2fc92133fae7cce0",
    ),
}  # fmt: skip


def write(path: Path, kind: str) -> Path:
    tensors, dropped, _ = TENSORS[kind]
    return write_tiny(path, extra_tensors=tensors, drop_tensors=dropped, **SIZES)


@pytest.mark.parametrize("kind", TENSORS)
def test_tensors_that_do_not_run_are_quantized_as_llama_quantize_does(tmp_path: Path, kind: str) -> None:
    """SHA-256 of what llama-quantize 11434 writes."""
    source, out = write(tmp_path / "in.gguf", kind), tmp_path / "out.gguf"
    assert main(["quantize", str(source), str(out), "Q4_K_M"]) == 0
    assert hashlib.sha256(out.read_bytes()).hexdigest()[:16] == TENSORS[kind][2]


@pytest.mark.parametrize("kind", TENSORS)
def test_copies_hold_every_byte(tmp_path: Path, kind: str) -> None:
    source, out = write(tmp_path / "in.gguf", kind), tmp_path / "out.gguf"
    assert main(["quantize", str(source), str(out), "COPY"]) == 0
    with open_gguf(source) as before, open_gguf(out) as after:
        assert list(after.tensors) == list(before.tensors)
        for name, tensor in before.tensors.items():
            assert (after.tensors[name].type, after.tensors[name].shape) == (tensor.type, tensor.shape)
            assert after.raw(name).tobytes() == before.raw(name).tobytes()


@pytest.mark.parametrize(
    "keys",
    [
        {"llama.attention.causal": (False, V.BOOL, None)},
        {"llama.rope.scaling.type": ("longrope", V.STRING, None)},
        {"llama.expert_weights_scale": (2.5, V.FLOAT32, None)},
        {"llama.nextn_predict_layers": (1, V.UINT32, None)},
    ],
)
def test_another_computation_does_not_keep_a_file_from_being_quantized(
    tmp_path: Path, keys: dict[str, Meta], capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = write_tiny(tmp_path / "in.gguf", extra_metadata=keys), tmp_path / "out.gguf"
    assert main(["quantize", str(source), str(out), "Q8_0"]) == 0
    capsys.readouterr()
    assert main(["run", "-m", str(out), "-p", "x"]) == 3
    assert f"out.gguf: {next(iter(keys))}: " in capsys.readouterr().err


def test_numbers_that_cannot_be_decoded_are_not_quantized(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    numbers = {"blk.0.foo.weight": COUNTING.astype(np.int32).reshape(2, 256)}
    source, out = write_tiny(tmp_path / "in.gguf", extra_tensors=numbers), tmp_path / "out.gguf"
    assert main(["quantize", str(source), str(out), "Q8_0"]) == 3
    assert "in.gguf: blk.0.foo.weight: type is not supported, got I32" in capsys.readouterr().err
    assert not out.exists()


def test_doubles_are_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_tiny(tmp_path / "in.gguf", extra_tensors={"foo": np.array([1.0, 2.0, np.nan])})
    assert main(["quantize", str(source), str(tmp_path / "out.gguf"), "COPY"]) == 3
    assert "foo: NaN or infinity at index 2" in capsys.readouterr().err


def test_a_merge_takes_no_tensor_that_it_would_drop(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bias = {"blk.0.attn_q.bias": values(64)}
    base = write_tiny(tmp_path / "base.gguf", n_expert=0, extra_tensors=bias)
    experts = "".join(f"\n  - source_model: {base}\n    positive_prompts: [{text}]" for text in ("the", "red"))
    (tmp_path / "r.yml").write_text(f"base_model: {base}\ngate_mode: random\nexperts:{experts}\n")
    assert main(["franken", str(tmp_path / "r.yml"), "-o", str(tmp_path / "out.gguf")]) == 3
    assert "blk.0.attn_q.bias: biases are not supported" in capsys.readouterr().err
