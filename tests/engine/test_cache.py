"""Contexts longer than a block of attention, and every type of KV cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import localmoe
from localmoe.errors import UsageError
from localmoe.kernels.shapes import BLOCK
from tests.naive_model import naive_model, nmse
from tests.tiny import tiny_weights, write_tiny

# dense: a near-tie in routing would make rounding look like an error
MODELS: dict[str, dict[str, Any]] = {
    "8 heads a KV head": {"n_head": 16, "n_head_kv": 2, "n_embd_head": 32, "n_expert": 0},
    "3 heads a KV head": {"n_head": 3, "n_head_kv": 1, "n_embd_head": 64, "n_expert": 0},
    "as many KV heads": {"n_head": 2, "n_head_kv": 2, "n_embd_head": 96, "n_expert": 0},
}
TYPES = [("f16", "f16"), ("q8_0", "q8_0"), ("f16", "q8_0"), ("q8_0", "f32")]
IDS = np.random.default_rng(0).integers(3, 250, 2 * BLOCK + 90).tolist()
N_CTX = len(IDS) + 8


def open_model(path: Path, type_k: str, type_v: str, n_threads: int = 2) -> localmoe.Model:
    return localmoe.load(str(path), n_ctx=N_CTX, cache_type_k=type_k, cache_type_v=type_v, n_threads=n_threads)


def tail_one_by_one(model: localmoe.Model, n: int) -> np.ndarray:
    """Logits of the last n tokens, decoded after the others were read as a prompt."""
    session = model.session()
    session.reset()
    session.prefill(IDS[:-n])
    return np.array([session.decode(token).logits[0].copy() for token in IDS[-n:]])


@pytest.mark.parametrize("name", MODELS)
def test_a_long_context_equals_the_naive_models(tmp_path: Path, name: str) -> None:
    with open_model(write_tiny(tmp_path / "m.gguf", **MODELS[name]), "f32", "f32") as model:
        got, one = model.eval(IDS).logits, tail_one_by_one(model, 5)
        wanted = naive_model(tiny_weights(**MODELS[name]), model.config, IDS).logits
    assert nmse(got, wanted) < 1e-10
    assert nmse(one, wanted[-5:]) < 1e-10


@pytest.mark.parametrize("types", TYPES, ids="-".join)
@pytest.mark.parametrize("name", MODELS)
def test_a_cache_of_any_type_reads_and_decodes_alike(tmp_path: Path, name: str, types: tuple[str, str]) -> None:
    """And costs no more than its type rounds: against float64 of the same weights."""
    with open_model(write_tiny(tmp_path / "m.gguf", **MODELS[name]), *types) as model:
        got, one = model.eval(IDS).logits, tail_one_by_one(model, 40)
        wanted = naive_model(tiny_weights(**MODELS[name]), model.config, IDS).logits
    assert nmse(one, got[-40:]) < 1e-6
    assert nmse(got, wanted) < (1e-5 if "q8_0" not in types else 1e-2)


@pytest.mark.parametrize("types", [("f32", "f32"), ("f16", "f16"), ("q8_0", "q8_0")], ids="-".join)
def test_any_number_of_threads_gives_the_same_logits(tmp_path: Path, types: tuple[str, str]) -> None:
    path = write_tiny(tmp_path / "m.gguf", **MODELS["8 heads a KV head"])
    results = []
    for n_threads in (1, 2, 5):
        with open_model(path, *types, n_threads) as model:
            results.append(np.concatenate([model.eval(IDS).logits, tail_one_by_one(model, 3)]))
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


def test_a_short_prompt_after_a_long_one_sees_nothing_of_it(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "m.gguf", **MODELS["as many KV heads"])
    with open_model(path, "f16", "f16") as model:
        first = model.eval(IDS[:30]).logits.copy()
        model.eval(IDS)
        np.testing.assert_array_equal(model.eval(IDS[:30]).logits, first)


@pytest.mark.parametrize("name", ["cache_type_k", "cache_type_v"])
def test_q8_0_needs_heads_of_whole_groups(tmp_path: Path, name: str) -> None:
    path = write_tiny(tmp_path / "m.gguf", n_embd_head=40)
    with pytest.raises(UsageError, match=f"{name}: .*heads of 40"):
        localmoe.load(str(path), **{name: "q8_0"})


def test_an_unknown_type_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="q5_1"):
        localmoe.load(str(write_tiny(tmp_path / "m.gguf")), cache_type_v="q5_1")
