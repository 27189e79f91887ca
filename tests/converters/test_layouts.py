"""Every layout that the same weights are published in becomes the same GGUF."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from localmoe.converters.huggingface import load_source
from localmoe.converters.pipeline import write_model
from localmoe.errors import BadInputError
from localmoe.gguf_file import open_gguf
from tests.checkpoints import (
    Tiny,
    added_token,
    bpe_tokenizer,
    bpe_vocab,
    checkpoint_weights,
    encode,
    vocab_size,
    write_checkpoint,
    write_safetensors,
)
from tests.pickles import write_torch

MIXTRAL = Tiny(dtype="F16", tokenizer="spm", n_expert=4)
MISTRAL = Tiny("mistral", dtype="F16", tokenizer="spm")
N_BPE = len(bpe_vocab()) + 1
Weights = dict[str, np.ndarray]

RENAMES = (
    ("model.embed_tokens", "tok_embeddings"), ("model.norm", "norm"), ("lm_head", "output"),
    ("model.layers.", "layers."), ("input_layernorm", "attention_norm"), ("post_attention_layernorm", "ffn_norm"),
    ("self_attn.q_proj", "attention.wq"), ("self_attn.k_proj", "attention.wk"), ("self_attn.v_proj", "attention.wv"),
    ("self_attn.o_proj", "attention.wo"), ("mlp.gate_proj", "feed_forward.w1"), ("mlp.down_proj", "feed_forward.w2"),
    ("mlp.up_proj", "feed_forward.w3"), ("block_sparse_moe.gate", "feed_forward.gate"),
    ("block_sparse_moe.experts", "feed_forward.experts"),
)  # fmt: skip


def pairs(x: np.ndarray, n_head: int) -> np.ndarray:
    """Rotary rows from Hugging Face's two halves of a head to neighbouring pairs, as Mistral keeps them."""
    return x.reshape(n_head, 2, -1, x.shape[1]).swapaxes(1, 2).reshape(x.shape)


def native(tiny: Tiny) -> Weights:
    """The checkpoint's weights as Mistral names and orders them."""
    out = {}
    for name, x in checkpoint_weights(tiny).items():
        if "q_proj" in name or "k_proj" in name:
            x = pairs(x, tiny.n_head if "q_proj" in name else tiny.n_head_kv)
        for old, new in RENAMES:
            name = name.replace(old, new)
        out[name] = x.astype(np.float16)
    return out


def first_release(weights: Weights, n_expert: int) -> Weights:
    """Experts as the first release of Mixtral had them: a matrix a layer, w2 transposed."""
    out = {}
    for name, x in weights.items():
        found = re.fullmatch(r"(layers\.\d+)\.feed_forward\.experts\.0\.(w[123])\.weight", name)
        if ".experts." not in name:
            out[name.replace("feed_forward.gate", "block_sparse_moe.gate")] = x
        elif found:
            parts = [weights[name.replace("experts.0", f"experts.{e}")] for e in range(n_expert)]
            out[f"{found[1]}.block_sparse_moe.{found[2]}"] = np.concatenate(
                [part.T if found[2] == "w2" else part for part in parts]
            )
    return out


def params_json(tiny: Tiny, **changes: Any) -> dict[str, Any]:
    params: dict[str, Any] = {
        "dim": tiny.n_embd, "n_layers": tiny.n_layer, "head_dim": tiny.n_embd // tiny.n_head, "hidden_dim": tiny.n_ff,
        "n_heads": tiny.n_head, "n_kv_heads": tiny.n_head_kv, "norm_eps": 1e-5, "vocab_size": vocab_size(tiny),
        "rope_theta": 10000.0, "max_seq_len": 256,
    }  # fmt: skip
    if tiny.family == "mixtral":
        params["moe"] = {"num_experts": tiny.n_expert, "num_experts_per_tok": tiny.n_used}
    return {key: value for key, value in (params | changes).items() if value is not None}


def make_native(folder: Path, tiny: Tiny, **changes: Any) -> Path:
    """A folder with tokenizer and params.json, and no weights yet."""
    write_checkpoint(folder, tiny)
    for name in ("config.json", "model.safetensors"):
        (folder / name).unlink()
    (folder / "params.json").write_text(json.dumps(params_json(tiny, **changes)))
    return folder


def safetensors(folder: Path, weights: Weights, name: str = "consolidated.safetensors") -> None:
    write_safetensors(folder / name, {key: encode("F16", x) for key, x in weights.items()})


def sharded(folder: Path, weights: Weights) -> None:
    """Numbered shards and their index, as Mistral's largest models."""
    index = {}
    for i in range(3):
        name = f"consolidated-{i + 1:05d}-of-00003.safetensors"
        part = {key: x for n, (key, x) in enumerate(weights.items()) if n % 3 == i}
        index |= dict.fromkeys(part, name)
        safetensors(folder, part, name)
    (folder / "consolidated.safetensors.index.json").write_text(json.dumps({"weight_map": index}))


def one_pickle(folder: Path, weights: Weights) -> None:
    write_torch(folder / "consolidated.00.pth", weights)


def pickles_by_tensor(folder: Path, weights: Weights) -> None:
    """Different tensors in each file, as Mixtral's first `consolidated.0N.pt`."""
    for i in range(3):
        part = {name: x for n, (name, x) in enumerate(weights.items()) if n % 3 == i}
        write_torch(folder / f"consolidated.{i:02d}.pt", part)


def pickles_by_slice(folder: Path, weights: Weights) -> None:
    """Half of every matrix in each file, norms in both: rows of w1, w3, q, k, v and output, columns of w2 and wo."""
    for i in range(2):
        part = {}
        for name, x in weights.items():
            axis = 1 if re.search(r"w2|wo\.|tok_embeddings", name) else 0
            whole = x.ndim == 1 or "gate" in name
            part[name] = x if whole else np.ascontiguousarray(np.split(x, 2, axis)[i])
        write_torch(folder / f"consolidated.{i:02d}.pth", part)


LAYOUTS: dict[str, tuple[Tiny, Callable[[Path, Weights], None], bool]] = {
    "mixtral": (MIXTRAL, safetensors, False),
    "mixtral, sharded": (MIXTRAL, sharded, False),
    "mixtral, one pickle": (MIXTRAL, one_pickle, False),
    "mixtral, several files": (MIXTRAL, pickles_by_tensor, False),
    "mixtral, sliced": (MIXTRAL, pickles_by_slice, False),
    "mixtral, first release": (MIXTRAL, safetensors, True),
    "mixtral, first release in several files": (MIXTRAL, pickles_by_tensor, True),
    "mistral": (MISTRAL, safetensors, False),
    "mistral, sliced": (MISTRAL, pickles_by_slice, False),
}


def written(folder: Path, out: Path, **options: Any) -> Iterator[tuple[Any, ...]]:
    write_model(load_source(folder, **options, warn=lambda line: None), out, "F16", notify=lambda line: None)
    with open_gguf(out) as file:
        yield from sorted((name, t.shape, t.type, bytes(file.raw(name))) for name, t in file.tensors.items())
        skipped = ("general.",)
        yield from sorted((key, str(value)) for key, value in file.metadata.items() if not key.startswith(skipped))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_mistrals_own_files_give_the_hugging_face_checkpoints_gguf(tmp_path: Path, layout: str) -> None:
    """Every tensor and key but the model's name."""
    tiny, write, stacked = LAYOUTS[layout]
    folder = make_native(tmp_path / "native", tiny)
    weights = native(tiny)
    write(folder, first_release(weights, tiny.n_expert) if stacked else weights)
    same = write_checkpoint(tmp_path / "hf", tiny)
    ours = list(written(folder, tmp_path / "a.gguf", allow_pickle=True))
    theirs = list(written(same, tmp_path / "b.gguf"))
    assert ours == theirs or {row for row in ours if row not in theirs} <= {
        ("llama.attention.key_length", str(tiny.n_embd // tiny.n_head)),  # params.json states head_dim
        ("llama.attention.value_length", str(tiny.n_embd // tiny.n_head)),
    }


@pytest.mark.parametrize(
    ("write", "gone"),
    [
        (sharded, ("consolidated-00002-of-00003.safetensors",)),
        (pickles_by_tensor, ("consolidated.00.pt", "consolidated.01.pt")),
        (pickles_by_slice, ("consolidated.00.pth",)),
    ],
)
@pytest.mark.parametrize("index", [True, False])
def test_mistrals_own_files_that_are_missing_are_named(
    tmp_path: Path, write: Callable[[Path, Weights], None], gone: tuple[str, ...], index: bool
) -> None:
    folder = make_native(tmp_path / "m", MIXTRAL)
    write(folder, native(MIXTRAL))
    for name in (*gone, *(["consolidated.safetensors.index.json"] if not index else [])):
        (folder / name).unlink(missing_ok=True)
    with pytest.raises(BadInputError, match=rf"{re.escape(', '.join(gone))}: shards are missing"):
        load_source(folder, allow_pickle=True)


def test_pytorch_model_bin_with_an_index(tmp_path: Path) -> None:
    same = write_checkpoint(tmp_path / "hf", MIXTRAL)
    folder = write_checkpoint(tmp_path / "bin", MIXTRAL)
    (folder / "model.safetensors").unlink()
    weights = {name: x.astype(np.float16) for name, x in checkpoint_weights(MIXTRAL).items()}
    shards = {f"pytorch_model-0000{i + 1}-of-00002.bin": list(weights)[i::2] for i in range(2)}
    for shard, held in shards.items():
        write_torch(folder / shard, {name: weights[name] for name in held})
    index = {"weight_map": {name: shard for shard, held in shards.items() for name in held}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    with pytest.raises(BadInputError, match=r"pytorch_model-00001.*holds only pickled weights, .*--allow-pickle"):
        load_source(folder)
    assert list(written(folder, tmp_path / "a.gguf", allow_pickle=True)) == list(written(same, tmp_path / "b.gguf"))
    (folder / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(BadInputError, match="shards are missing"):
        load_source(folder, allow_pickle=True)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"dim": None}, "params.json: dim: keys are missing"),
        ({"moe": {"num_experts": 4}}, "params.json: moe: is not a table with"),
        ({"quantization": {"qformat_weight": "fp8_e4m3"}}, "params.json: quantization: is not supported"),
        ({"yarn": {"factor": 2}}, "params.json: yarn: is not supported"),
        ({"hidden_dim": 80}, "wrong shape"),
        ({"n_layers": 3}, "tensors are missing"),
        ({"moe": {"num_experts": 5, "num_experts_per_tok": 2}}, "number of experts differs"),
    ],
)
def test_what_params_json_must_say(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    folder = make_native(tmp_path / "m", MIXTRAL, **changes)
    safetensors(folder, native(MIXTRAL))
    with pytest.raises(BadInputError, match=reason):
        load_source(folder)


def test_parts_that_do_not_fit(tmp_path: Path) -> None:
    folder = make_native(tmp_path / "m", MISTRAL)
    pickles_by_slice(folder, native(MISTRAL))
    with pytest.raises(BadInputError, match=r"consolidated\.00\.pth, consolidated\.01\.pth: holds only pickled"):
        load_source(folder)
    (folder / "consolidated.02.pth").write_bytes((folder / "consolidated.01.pth").read_bytes())
    with pytest.raises(BadInputError, match=r"its parts do not make the whole|differ|wrong shape"):
        load_source(folder, allow_pickle=True)


def test_folders_that_are_no_checkpoints(tmp_path: Path) -> None:
    def refused(reason: str) -> None:
        with pytest.raises(BadInputError, match=reason):
            load_source(tmp_path, allow_pickle=True)

    refused(r"no config\.json")
    (tmp_path / "consolidated.safetensors").touch()
    refused(r"Mistral's own weights .* need params\.json")
    (tmp_path / "consolidated.safetensors").unlink()
    (tmp_path / "model.ckpt").touch()
    refused(r"model\.ckpt: holds only pickled weights, and not in a layout")
    (tmp_path / "adapter_config.json").touch()
    refused("is a LoRA adapter, not a model")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("self_attn.q_proj.qweight", "GPTQ or AWQ weights are not read"),
        ("self_attn.q_proj.weight_scale_inv", "FP8 weights are not read"),
        ("self_attn.q_proj.lora_A.weight", "is a LoRA adapter: merge it"),
        ("mlp.up_proj.weight.absmax", "bitsandbytes weights are not read"),
    ],
)
def test_forms_that_are_not_read_are_named(tmp_path: Path, name: str, reason: str) -> None:
    folder = write_checkpoint(tmp_path / "m", Tiny("mistral"))
    extra = {f"model.layers.0.{name}": encode("F32", np.zeros((2, 2)))}
    write_safetensors(folder / "model-extra.safetensors", extra)
    with pytest.raises(BadInputError, match=rf"model\.layers\.0\.{re.escape(name)}: {reason}"):
        load_source(folder)


def test_a_merged_lora_with_added_tokens(tmp_path: Path) -> None:
    """As a fine-tune leaves it: the adapter's config beside the weights, tokens added, the embedding grown beyond them.

    Converted as the same checkpoint without the adapter's files; the added tokens have their text, and what the
    embedding has besides is unused, with a note.
    """
    added = [added_token(N_BPE, "<|im_start|>"), added_token(N_BPE + 1, "<tool>", special=False)]
    grown = Tiny(n_vocab=N_BPE + 6)
    texts = {"tokenizer.json": bpe_tokenizer(added_tokens=[*bpe_tokenizer()["added_tokens"], *added])}
    plain = write_checkpoint(tmp_path / "plain", grown, texts=texts)
    folder = write_checkpoint(tmp_path / "merged", grown, texts=texts)
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 8}')
    assert list(written(folder, tmp_path / "a.gguf")) == list(written(plain, tmp_path / "b.gguf"))
    notes: list[str] = []
    found = load_source(folder, warn=notes.append).metadata
    tokens, types = found["tokenizer.ggml.tokens"].value, list(found["tokenizer.ggml.token_type"].value)
    assert tokens[N_BPE:] == ["<|im_start|>", "<tool>", *(f"[PAD{N_BPE + i}]" for i in range(2, 6))]
    assert types[N_BPE:] == [3, 4, 5, 5, 5, 5]
    assert notes == [f"vocabulary padded: the tokenizer has {N_BPE + 2} tokens, the embedding {N_BPE + 6} rows"]


@pytest.mark.parametrize(
    ("dtype", "reason"),
    [("F8_E4M3", "FP8 weights are not read"), ("F8_E5M2", "FP8 weights are not read"), ("I8", "dtype is not read")],
)
@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "model.layers.1.block_sparse_moe.experts.2.w1.weight"])
def test_dtypes_that_are_not_read_are_named(tmp_path: Path, dtype: str, reason: str, name: str) -> None:
    """Also where nothing else says that the checkpoint is quantized."""
    tiny = Tiny()
    folder = write_checkpoint(tmp_path / "m", tiny)
    tensors = {key: encode("F32", x) for key, x in checkpoint_weights(tiny).items()}
    shape = tensors[name][1]
    tensors[name] = (dtype, shape, bytes(int(np.prod(shape))))
    write_safetensors(folder / "model.safetensors", tensors)
    with pytest.raises(BadInputError, match=rf"{re.escape(name)}: {reason}, got {dtype}, expected F32, F16, BF16, F64"):
        load_source(folder)


@pytest.mark.parametrize("method", ["awq", "gptq", "fp8", "bitsandbytes", "compressed-tensors", "mxfp4"])
def test_quantization_methods_are_named(tmp_path: Path, method: str) -> None:
    folder = write_checkpoint(tmp_path / "m", config={"quantization_config": {"quant_method": method, "bits": 4}})
    with pytest.raises(BadInputError, match=f"quantization_config: quantized checkpoints are not read, got {method}"):
        load_source(folder)
