"""Tensors at addresses that their type would not choose, without elements, or without axes: the right answer, or 3."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest

import localmoe
from localmoe.cli import main
from localmoe.gguf_file import open_gguf
from tests.checkpoints import Tiny, checkpoint_weights, encode, write_checkpoint, write_safetensors
from tests.tiny import STR, write_tiny


def shift(path: Path, remainder: int) -> None:
    """Pad a safetensors header, as the format allows, until the data begins at this remainder of 8."""
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = raw[8 : 8 + length].rstrip(b" ")
    header += b" " * ((remainder - len(header)) % 8)
    path.write_bytes(struct.pack("<Q", len(header)) + header + raw[8 + length :])


@pytest.mark.parametrize("layout", ["split", "packed"])
@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16", "F64"])
def test_where_the_data_of_a_safetensors_file_begins(tmp_path: Path, dtype: str, layout: str) -> None:
    """At any byte: every output is that of aligned data."""
    folder = write_checkpoint(tmp_path / "m", Tiny(n_embd=256, n_ff=256, n_layer=1, dtype=dtype, layout=layout))
    out = tmp_path / "out.gguf"
    written = {}
    for file_type in ("F32", "F16", "BF16", "Q8_0", "Q4_K_M", "IQ4_XS"):
        for remainder in (0, 1, 2, 3, 4, 7):
            shift(folder / "model.safetensors", remainder)
            assert main(["convert", str(folder), "-o", str(out), "--type", file_type]) == 0
            assert written.setdefault(file_type, out.read_bytes()) == out.read_bytes(), (file_type, remainder)


@pytest.mark.parametrize("type_", ["F32", "F16", "BF16", "Q8_0", "Q4_K", "Q6_K", "IQ4_XS", "Q5_1"])
def test_where_the_tensors_of_a_gguf_begin(tmp_path: Path, type_: str) -> None:
    """At multiples of the file's own alignment: the same logits, and the same file where it is quantized."""
    ids = list(range(3, 40))
    logits, copies = [], []
    for i, (alignment, pad) in enumerate([(32, 0), (8, 1), (8, 10), (8, 19), (4096, 0)]):
        path = tmp_path / f"{i}.gguf"
        more = {"general.description": ("x" * pad, STR, None)}
        write_tiny(
            path, alignment=alignment, extra_metadata=more, type=type_, n_layer=1, n_embd=256, n_ff=256, tied=True
        )
        with localmoe.load(str(path)) as model:
            logits.append(model.eval(ids).logits)
        assert main(["quantize", str(path), str(tmp_path / "copy.gguf"), "COPY"]) == 0
        with open_gguf(tmp_path / "copy.gguf") as copy:
            assert copy.alignment == 32
            copies.append({name: copy.raw(name).tobytes() for name in copy.tensors})
    assert all(np.array_equal(logits[0], other) for other in logits)
    assert all(copies[0] == other for other in copies)


SHAPES = [(), (0,), (1,), (0, 32), (32, 0), (0, 0), (0, 4, 4)]


@pytest.mark.parametrize(
    ("tiny", "names"),
    [
        (Tiny(n_layer=1), ("model.layers.0.block_sparse_moe.experts.3.w2.weight", "model.embed_tokens.weight")),
        (Tiny(n_layer=1, layout="packed"), ("model.layers.0.mlp.experts.down_proj", "model.layers.0.mlp.gate.weight")),
        (Tiny("llama", n_layer=1), ("model.norm.weight", "model.layers.0.self_attn.q_proj.weight", "lm_head.weight")),
    ],
    ids=["split", "packed", "dense"],
)  # fmt: skip
def test_a_tensor_without_elements_or_axes_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], tiny: Tiny, names: tuple[str, ...]
) -> None:
    folder, out = write_checkpoint(tmp_path / "m", tiny), tmp_path / "out.gguf"
    good = {name: encode("F32", x) for name, x in checkpoint_weights(tiny).items()}
    for name in (*names, "model.layers.0.strange.weight"):
        for shape in SHAPES:
            tensors = good | {name: encode("F32", np.ones(shape, np.float32))}
            write_safetensors(folder / "model.safetensors", tensors)
            capsys.readouterr()
            assert main(["convert", str(folder), "-o", str(out), "--type", "Q8_0"]) == 3, (name, shape)
            errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
            assert len(errors) == 1
            assert name in errors[0]
    assert not out.exists()


def test_a_buffer_without_elements_does_no_harm(tmp_path: Path) -> None:
    """inv_freq, which older checkpoints hold, counts for nothing whatever its shape."""
    tiny = Tiny(n_layer=1)
    folder, out = write_checkpoint(tmp_path / "m", tiny), tmp_path / "out.gguf"
    good = {name: encode("F32", x) for name, x in checkpoint_weights(tiny).items()}
    assert main(["convert", str(folder), "-o", str(out), "--type", "Q8_0"]) == 0
    plain = out.read_bytes()
    for shape in SHAPES:
        buffer = {"model.layers.0.self_attn.rotary_emb.inv_freq": encode("F32", np.ones(shape, np.float32))}
        write_safetensors(folder / "model.safetensors", good | buffer)
        assert main(["convert", str(folder), "-o", str(out), "--type", "Q8_0"]) == 0
        assert out.read_bytes() == plain


SIZES = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "num_local_experts", "num_experts_per_tok", "vocab_size",
)  # fmt: skip


@pytest.mark.parametrize("key", SIZES)
def test_a_model_of_size_zero_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], key: str) -> None:
    folder = write_checkpoint(tmp_path / "m", Tiny(n_layer=1))
    config = json.loads((folder / "config.json").read_text())
    for value in (0, -1):
        (folder / "config.json").write_text(json.dumps(config | {key: value}))
        capsys.readouterr()
        assert main(["convert", str(folder), "-o", str(tmp_path / "out.gguf")]) == 3
        assert f"error: {folder / 'config.json'}: {key}" in capsys.readouterr().err


def test_one_expert_takes_no_axis_where_ggml_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """llama-quantize lists a stack of one expert as a matrix, its router as a vector; such a file is the same model."""
    source, out = write_tiny(tmp_path / "a.gguf", n_expert=1, n_expert_used=1, n_layer=1), tmp_path / "b.gguf"
    assert main(["quantize", str(source), str(out), "COPY"]) == 0
    with open_gguf(source) as before, open_gguf(out) as after:
        assert before.tensors["blk.0.ffn_gate_exps.weight"].shape == (1, 96, 64)
        assert after.tensors["blk.0.ffn_gate_exps.weight"].shape == (96, 64)
        assert after.tensors["blk.0.ffn_gate_inp.weight"].shape == (64,)
    with localmoe.load(str(source)) as before, localmoe.load(str(out)) as after:
        assert np.array_equal(before.eval([3, 4, 5]).logits, after.eval([3, 4, 5]).logits)
    capsys.readouterr()
    assert main(["inspect", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["router"]["layers"]
    assert main(["quantize", str(out), str(tmp_path / "c.gguf"), "Q8_0"]) == 0


def test_a_checkpoint_of_one_expert(tmp_path: Path) -> None:
    """The converter writes all axes, llama-quantize after it does not."""
    folder = write_checkpoint(tmp_path / "m", Tiny(n_expert=1, n_used=1, n_embd=256, n_ff=256, n_layer=1))
    for file_type, shape in (("F16", (1, 256, 256)), ("Q4_K_M", (256, 256))):
        assert main(["convert", str(folder), "-o", str(tmp_path / "out.gguf"), "--type", file_type]) == 0
        with open_gguf(tmp_path / "out.gguf") as gguf:
            assert gguf.tensors["blk.0.ffn_up_exps.weight"].shape == shape
