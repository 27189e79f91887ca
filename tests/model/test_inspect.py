"""Describing files that run, that cannot run, and that are hostile."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFValueType as V

from localmoe.errors import BadInputError, FileError
from localmoe.model.inspect import describe
from tests.tiny import tiny_weights, write_tiny

VOCABULARIES = Path(__file__).parents[2].parent / "shared" / "data" / "vocab"


def described(path: Path, **fields: Any) -> dict[str, Any]:
    """describe() of a tiny model, after a trip through strict JSON."""
    made = describe(write_tiny(path / "m.gguf", **fields))
    return dict(json.loads(json.dumps(made, allow_nan=False)))


def test_a_model_that_runs(tmp_path: Path) -> None:
    d = described(tmp_path, vocab="bpe", type="Q8_0")
    assert (d["runnable"], d["reasons"], d["warnings"]) == (True, [], [])
    assert (d["architecture"], d["name"], d["gguf_version"], d["parts"]) == ("llama", "tiny", 3, 1)
    assert d["file_bytes"] == (tmp_path / "m.gguf").stat().st_size
    assert d["parameters"]["total"] == sum(w.size for w in tiny_weights(vocab="bpe").values())
    # a token leaves out 6 of 8 experts, of three 64 x 96 matrices each, in both layers
    assert d["parameters"]["total"] - d["parameters"]["active"] == 2 * 6 * 3 * 64 * 96
    assert {name: t["tensors"] for name, t in d["types"].items()} == {"Q8_0": 16, "F32": 7}
    assert d["config"]["n_expert"] == 8
    assert d["vocabulary"]["kind"] == "gpt2"
    assert d["vocabulary"]["special"]["eos"] == {"id": 328, "text": "<|im_end|>"}
    assert d["chat_template"] is True
    # 2 layers x 2 KV heads x (16 + 16) x 2 bytes = 256 bytes a position
    assert d["memory"]["cache_f16"] == {"512": 512 * 256}
    assert d["memory"]["cache_q8_0"] == {}  # 16 values a head do not fill a block of 32
    assert d["memory"]["weights"] == sum(t["bytes"] for t in d["types"].values())


def test_cache_at_the_usual_and_at_the_full_context(tmp_path: Path) -> None:
    d = described(tmp_path, n_ctx_train=32768)
    assert d["memory"]["cache_f16"] == {"4096": 4096 * 256, "32768": 32768 * 256}


def test_a_q8_0_cache_where_heads_fill_its_blocks(tmp_path: Path) -> None:
    d = described(tmp_path, n_embd=64, n_head=2, n_head_kv=2)
    assert d["memory"]["cache_f16"] == {"512": 512 * 2 * 2 * (32 + 32) * 2}
    assert d["memory"]["cache_q8_0"] == {"512": 512 * 2 * 2 * (34 + 34)}


def test_dense_model_has_no_router(tmp_path: Path) -> None:
    d = described(tmp_path, n_expert=0)
    assert (d["router"], d["expert_labels"], d["runnable"]) == (None, [], True)
    assert d["parameters"]["active"] == d["parameters"]["total"]


def test_router_rows_by_hand(tmp_path: Path) -> None:
    rows = np.zeros((3, 64), np.float32)
    rows[0, 0], rows[1, 1], rows[2, :2] = 2.0, 1.0, (30.0, 1.0)
    d = described(tmp_path, n_expert=3, extra_tensors={"blk.1.ffn_gate_inp.weight": rows})
    facts = d["router"]["layers"][1]
    assert (facts["layer"], facts["alike"]) == (1, [[0, 2]])
    assert facts["norm_min"] == 1.0
    assert facts["norm_max"] == pytest.approx(901**0.5)
    # cosines: 0 between rows 0 and 1, 30 / sqrt(901) and 1 / sqrt(901) with row 2
    assert facts["cosine_max"] == pytest.approx(30 / 901**0.5)
    assert facts["cosine_mean"] == pytest.approx(31 / 901**0.5 / 3)
    assert d["router"]["same_in_every_layer"] is False


def test_router_that_is_the_same_in_every_layer_or_has_one_row(tmp_path: Path) -> None:
    rows = np.eye(1, 64, dtype=np.float32)
    both = {f"blk.{i}.ffn_gate_inp.weight": rows for i in range(2)}
    d = described(tmp_path, n_expert=1, n_expert_used=1, extra_tensors=both)
    assert d["router"]["same_in_every_layer"] is True
    assert d["router"]["layers"][0]["cosine_max"] is None


def test_nan_in_a_router_keeps_a_model_from_running(tmp_path: Path) -> None:
    rows = np.ones((8, 64), np.float32)
    rows[1, 3] = np.nan
    d = described(tmp_path, extra_tensors={"blk.0.ffn_gate_inp.weight": rows})
    assert d["reasons"] == ["blk.0.ffn_gate_inp.weight: NaN or infinity in layer 0's router, first at index 67"]


def test_expert_labels_are_shown(tmp_path: Path) -> None:
    labels = ["a story", "code\x1b]0;x\x07", "sums", "talk"]
    metadata = {"localmoe.expert.labels": (labels, V.ARRAY, V.STRING)}
    d = described(tmp_path, n_expert=4, extra_metadata=metadata)
    assert d["expert_labels"] == ["a story", r"code\x1b]0;x\x07", "sums", "talk"]


def test_every_reason_is_listed(tmp_path: Path) -> None:
    extra = {f"blk.0.extra{i}.weight": np.zeros(64, np.float32) for i in range(20)}
    d = described(tmp_path, drop_tensors=["blk.1.attn_q.weight"], extra_tensors=extra, vocab=None)
    assert d["runnable"] is False
    assert d["reasons"][0] == "blk.1.attn_q.weight: the tensor is missing in layer 1"
    assert d["reasons"][1].startswith("blk.0.extra0.weight: unknown tensor")
    assert d["reasons"][8:] == ["and 13 more tensors", "tokenizer.ggml.model: there is no vocabulary"]
    assert d["vocabulary"] is None


def test_unsupported_architecture_still_tells_what_it_can(tmp_path: Path) -> None:
    metadata = {
        "general.architecture": ("qwen2moe", V.STRING, None),
        "qwen2moe.block_count": (24, V.UINT32, None),
        "qwen2moe.expert_count": (60, V.UINT32, None),
        "qwen2moe.rope.freq_base": (float("nan"), V.FLOAT32, None),
    }
    d = described(tmp_path, extra_metadata=metadata)
    wanted = "general.architecture: architecture not supported, got qwen2moe, expected one of: llama"
    assert (d["runnable"], d["reasons"]) == (False, [wanted])
    assert d["config"] == {"n_layer": 24, "n_expert": 60}
    assert d["parameters"]["total"] == sum(w.size for w in tiny_weights().values())


def test_row_34_no_control_character_comes_out(tmp_path: Path) -> None:
    evil = "\x1b[31m\u202e\x00\n"
    metadata = {
        "general.name": (evil + "n" * 1000, V.STRING, None),
        "tokenizer.ggml.pre": (evil, V.STRING, None),
        "tokenizer.ggml.eos_token_id": (10**9, V.UINT32, None),
    }
    tensors = {f"blk.0.{evil}": np.zeros(64, np.float32)}
    d = described(tmp_path, extra_metadata=metadata, extra_tensors=tensors)
    texts = [d["name"], d["vocabulary"]["pre"], *d["reasons"]]
    assert all(map(str.isprintable, texts))
    assert len(d["name"]) < 300
    assert d["vocabulary"]["special"]["eos"] == {"id": 10**9, "text": None}


def test_vocabulary_that_does_not_open_is_a_reason(tmp_path: Path) -> None:
    def check(_: object) -> None:
        raise BadInputError("broken merges", file="x", item="tokenizer.ggml.merges")

    d = describe(write_tiny(tmp_path / "m.gguf"), check)
    assert d["reasons"] == ["tokenizer.ggml.merges: broken merges"]


def test_files_that_are_no_gguf_are_errors(tmp_path: Path) -> None:
    with pytest.raises(FileError):
        describe(tmp_path / "none.gguf")
    (tmp_path / "m.gguf").write_bytes(b"nonsense")
    with pytest.raises(BadInputError):
        describe(tmp_path / "m.gguf")


@pytest.mark.parametrize("name", ["llama-spm", "gpt-2"])
def test_vocabulary_alone_says_why_it_cannot_run(name: str) -> None:
    path = VOCABULARIES / f"ggml-vocab-{name}.gguf"
    if not path.exists():
        pytest.skip("the shared vocabularies are not here")
    d = describe(path)
    assert d["runnable"] is False
    assert d["reasons"][-1] == "the file holds no tensors: it is a vocabulary or metadata alone"
    assert d["vocabulary"]["size"] in (32000, 50257)
