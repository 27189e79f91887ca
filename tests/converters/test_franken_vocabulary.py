"""frankenMoEs of models whose vocabularies differ: the base's counts, as in mergekit-moe, and a note says so."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFValueType

from localmoe.converters.franken import build
from localmoe.converters.franken_recipe import read_recipe
from localmoe.errors import BadInputError
from localmoe.gguf_file import open_gguf
from tests.franken_sources import ADDED, write_sources
from tests.tiny import tiny_weights, vocabulary, write_tiny

from .test_franken import DENSE, config_of, make, models, quiet, write_recipe

RECORDED = Path(__file__).parent / "data" / "mergekit.json"  # by tests/parity/franken_parity.py --record


def noted(folder: Path, **recipe: Any) -> list[str]:
    """Build out.gguf from a.gguf and b.gguf, and return the notes."""
    said: list[str] = []
    build(read_recipe(write_recipe(folder, **recipe), quiet), folder / "out.gguf", "F32", notify=said.append)
    return said


@pytest.mark.parametrize("base", ["plain", "more"])
def test_the_tensors_are_mergekits(tmp_path: Path, base: str) -> None:
    """Sources with added tokens, padding and no tokenizer: every tensor is the one that mergekit-moe's output has."""
    said: list[str] = []
    build(read_recipe(write_sources(tmp_path, base), quiet), tmp_path / "out.gguf", "F32", notify=said.append)
    wanted = json.loads(RECORDED.read_text())[base]
    with open_gguf(tmp_path / "out.gguf") as out:
        assert set(out.tensors) == set(wanted)
        for name in out.tensors:
            if isinstance(wanted[name], str):
                assert hashlib.sha256(out.raw(name)).hexdigest() == wanted[name], name
            else:  # the router, which is no copy
                np.testing.assert_allclose(out.raw(name).view(np.float32), wanted[name], atol=3e-7)
    assert f"{tmp_path / 'none'}: has no vocabulary of its own: the base's counts" in said
    added = f"2 tokens at the end ('{ADDED[0]}', '{ADDED[1]}')"
    other = {
        "plain": f"more: vocabulary cut: it has {added} that the base lacks",
        "more": f"plain: vocabulary padded: it lacks {added} that the base has",
    }
    assert f"{tmp_path}/{other[base]}" in said


def test_a_base_needs_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="none: no tokenizer"):
        build(read_recipe(write_sources(tmp_path, "none"), quiet), tmp_path / "out.gguf", "F32", notify=quiet)


def with_tokens(path: Path, tokens: list[str], **fields: Any) -> None:
    """A tiny model whose vocabulary is `tokens`."""
    _, scores, types = vocabulary("spm")
    more = len(tokens) - len(scores)
    array = GGUFValueType.ARRAY
    extra = {
        "tokenizer.ggml.tokens": (tokens, array, GGUFValueType.STRING),
        "tokenizer.ggml.scores": ([*scores, *[-1000.0] * more], array, GGUFValueType.FLOAT32),
        "tokenizer.ggml.token_type": ([*types, *[4] * more], array, GGUFValueType.INT32),
    }
    write_tiny(path, **(DENSE | {"n_vocab": len(tokens)} | fields), extra_metadata=extra)


def test_added_tokens_of_an_expert_are_dropped_with_a_note(tmp_path: Path) -> None:
    own = vocabulary("spm")[0]
    write_tiny(tmp_path / "a.gguf", **DENSE)
    with_tokens(tmp_path / "b.gguf", [*own, *ADDED], seed=7)
    said = noted(tmp_path)
    assert any("b.gguf: vocabulary cut: it has 2 tokens at the end ('<|user|>', '<|bot|>')" in line for line in said)
    a, b = tiny_weights(**DENSE), tiny_weights(**DENSE | {"seed": 7, "n_vocab": len(own) + 2})
    with open_gguf(tmp_path / "out.gguf") as out:
        assert out.metadata["tokenizer.ggml.tokens"] == own
        for name in ("token_embd.weight", "output.weight"):
            assert np.array_equal(out.raw(name).view(np.float32), a[name].ravel())
        stack = np.stack([w["blk.1.ffn_up.weight"] for w in (a, b, a)])
        assert np.array_equal(out.raw("blk.1.ffn_up_exps.weight").view(np.float32), stack.ravel())


def test_a_base_with_added_tokens_keeps_them(tmp_path: Path) -> None:
    own = vocabulary("spm")[0]
    with_tokens(tmp_path / "a.gguf", [*own, *ADDED])
    write_tiny(tmp_path / "b.gguf", **DENSE, seed=7)
    assert any("b.gguf: vocabulary padded: it lacks 2 tokens at the end" in line for line in noted(tmp_path))
    with open_gguf(tmp_path / "out.gguf") as out:
        assert out.metadata["tokenizer.ggml.tokens"] == [*own, *ADDED]
        assert out.tensors["output.weight"].shape == (len(own) + 2, 64)


def test_tokens_with_other_names_are_counted(tmp_path: Path) -> None:
    own = vocabulary("spm")[0]
    write_tiny(tmp_path / "a.gguf", **DENSE)
    with_tokens(tmp_path / "b.gguf", [*own[:300], "other", *own[301:]])
    line = f"b.gguf: the base's vocabulary counts: 1 of {len(own)} tokens differ, the first is 300 ('other' instead of"
    assert any(line in said for said in noted(tmp_path))


def test_rope_that_differs_is_noted(tmp_path: Path) -> None:
    """Rotary angles belong to the attention, which is the base's."""
    write_tiny(tmp_path / "a.gguf", **DENSE)
    write_tiny(tmp_path / "b.gguf", **DENSE, rope_freq_base=5e5)
    said = noted(tmp_path)
    assert any("its llama.rope.freq_base 500000.0 is not kept: the base's 10000.0 counts" in line for line in said)
    with open_gguf(tmp_path / "out.gguf") as out:
        assert out.metadata["llama.rope.freq_base"] == 10000.0


def test_an_expert_without_a_vocabulary_is_noted(tmp_path: Path) -> None:
    models(tmp_path)
    write_tiny(tmp_path / "b.gguf", **DENSE, n_vocab=len(vocabulary("spm")[0]), vocab=None)
    assert any("b.gguf: has no vocabulary of its own" in line for line in noted(tmp_path))
    (tmp_path / "b.gguf").rename(tmp_path / "a.gguf")
    write_tiny(tmp_path / "b.gguf", **DENSE)
    with pytest.raises(BadInputError, match=r"a\.gguf: tokenizer\.ggml\.tokens: the key is missing"):
        make(tmp_path)


def test_padding_is_no_difference(tmp_path: Path) -> None:
    write_tiny(tmp_path / "a.gguf", **DENSE)
    write_tiny(tmp_path / "b.gguf", **DENSE, n_vocab=len(vocabulary("spm")[0]) + 8)
    assert not [line for line in noted(tmp_path, gate_mode="random") if "vocabulary" in line]
    assert config_of(tmp_path / "out.gguf").n_vocab == len(vocabulary("spm")[0])
