"""Shapes that no released model has: odd widths and heads, any ratio of heads, any number of experts, every batch.

Random shapes of these ranges were compared with transformers and llama.cpp; here the ones that reach an edge of a
kernel, a buffer or a batch are kept, against tests/naive_model.py in float64.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFValueType

import localmoe
from localmoe.engine.api import Model
from localmoe.gguf_file import open_gguf
from localmoe.model.config import ModelConfig
from tests.naive_model import naive_model, nmse
from tests.tiny import tiny_weights, write_tiny

F32, TEXT, U32 = GGUFValueType.FLOAT32, GGUFValueType.STRING, GGUFValueType.UINT32
YARN = {
    "llama.rope.scaling.type": ("yarn", TEXT, None),
    "llama.rope.scaling.factor": (8.0, F32, None),
    "llama.rope.scaling.original_context_length": (64, U32, None),
    "llama.rope.scaling.attn_factor": (1 / (0.1 * math.log(8) + 1), F32, None),  # the reference has no magnitude
}


def shape(
    n_embd: int, n_ff: int, heads: tuple[int, int, int], experts: tuple[int, int], n_layer: int = 1, **more: Any
) -> dict[str, Any]:
    """Fields of Tiny: heads, KV heads and a head's size; experts and those used."""
    sizes = dict(zip(("n_head", "n_head_kv", "n_embd_head", "n_expert", "n_expert_used"), heads + experts, strict=True))
    return {"n_layer": n_layer, "n_embd": n_embd, "n_ff": n_ff, **sizes, **more}


SHAPES: dict[str, dict[str, Any]] = {
    "odd widths, 9 heads of 34 share one": shape(33, 31, (9, 1, 34), (7, 6), n_layer=2),
    "heads of 2, all of 60 experts": shape(50, 47, (3, 3, 2), (60, 60)),
    "9 heads of 130 a KV head, one expert": shape(96, 90, (18, 2, 130), (1, 1)),
    "dense, heads of 6, wide vocabulary": shape(100, 300, (14, 2, 6), (0, 0), n_layer=2, n_vocab=2003),
    "128 experts, top-8, tied": shape(64, 32, (7, 1, 40), (128, 8), tied=True),
    "YaRN beyond its context, heads of 256": shape(32, 32, (2, 1, 256), (3, 3), extra_metadata=YARN),
}
N_TOKEN = 131


def tokens(fields: dict[str, Any]) -> list[int]:
    return np.random.default_rng(4).integers(0, fields.get("n_vocab", 300), N_TOKEN).tolist()


def in_pieces(model: Model, ids: list[int], sizes: tuple[int, ...]) -> np.ndarray:
    """Logits (T, V) of `ids` run in batches of these sizes, in turn, each after what came before."""
    session = model.session()
    session.reset()
    rows: list[np.ndarray] = []
    while session.n_past < len(ids):
        size = sizes[len(rows) % len(sizes)]
        batch = ids[session.n_past : session.n_past + size]
        rows.append(np.concatenate([part.logits for part in session.run_all(batch)]))
    return np.concatenate(rows)


@pytest.mark.parametrize("name", SHAPES)
def test_logits_and_routing_equal_the_reference(tmp_path: Path, name: str) -> None:
    fields = SHAPES[name]
    path, ids = write_tiny(tmp_path / "m.gguf", **fields), tokens(fields)
    with open_gguf(path) as gguf:
        config = ModelConfig.from_metadata(gguf)
    weights = tiny_weights(**{k: v for k, v in fields.items() if k != "extra_metadata"})
    wanted = naive_model(weights, config, ids)
    with localmoe.load(path, n_ctx=N_TOKEN, n_threads=3, cache_type_k="f32", cache_type_v="f32") as model:
        whole = model.eval(ids)
        assert nmse(whole.logits, wanted.logits) <= 1e-10
        if config.n_expert:
            assert (whole.experts == wanted.experts).all()
        assert nmse(model.hidden_states(ids), wanted.hidden) <= 1e-10
        for sizes in ((1, 2), (7, 1, 64)):
            assert nmse(in_pieces(model, ids, sizes), whole.logits) <= 1e-10


@pytest.mark.parametrize("name", SHAPES)
def test_a_float16_cache_gives_the_same_for_any_threads_and_batches(tmp_path: Path, name: str) -> None:
    fields = SHAPES[name]
    path, ids = write_tiny(tmp_path / "m.gguf", **fields), tokens(fields)
    logits = []
    for n_threads in (1, 2, 5):
        with localmoe.load(path, n_ctx=N_TOKEN, n_threads=n_threads) as model:
            logits.append(model.eval(ids).logits)
            if n_threads == 2:
                assert nmse(in_pieces(model, ids, (5, 9, 1)), logits[0]) <= 1e-5
    assert all(np.array_equal(other, logits[0]) for other in logits[1:])
