"""Vocabularies that are broken: refused with the key named, never guessed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from localmoe.errors import BadInputError
from localmoe.text.vocabulary import read_vocabulary
from tests.text.small import bpe_metadata, make, spm_metadata

BROKEN: list[tuple[str, dict[str, Any], str]] = [
    ("bpe", {"model": None}, "model: is missing"),
    ("bpe", {"model": "t5"}, "model: this kind of tokenizer is not supported, got t5"),
    ("bpe", {"model": 7}, "model: is of the wrong type"),
    ("bpe", {"pre": "my-own"}, "pre: unknown pre-tokenizer, got my-own, expected one of .*llama-bpe"),
    ("bpe", {"tokens": None}, "tokens: is missing"),
    ("bpe", {"tokens": np.zeros(3)}, "tokens: is of the wrong type"),
    ("bpe", {"tokens": ["a", "b", "a"], "token_type": None}, "tokens: token 0 is there again as 2"),
    ("bpe", {"merges": None}, "merges: is missing"),
    ("bpe", {"merges": ["a b", "ab"]}, "merges: merge 1 is not two symbols"),
    ("bpe", {"merges": ["a "]}, "merges: merge 0 is not two symbols"),
    ("bpe", {"token_type": np.zeros(3, np.int32)}, "token_type: is shorter"),
    ("bpe", {"token_type": np.zeros(264, np.float32)}, "token_type: is of the wrong type"),
    ("bpe", {"eos_token_id": 264}, "eos_token_id: the token is not in the vocabulary, got 264"),
    ("bpe", {"bos_token_id": "x"}, "bos_token_id: is of the wrong type"),
    ("bpe", {"bos_token_id": True}, "bos_token_id: is of the wrong type"),
    ("bpe", {"add_bos_token": 1}, "add_bos_token: is of the wrong type"),
    ("spm", {"scores": None}, "scores: is missing"),
    ("spm", {"scores": np.zeros(5, np.float32)}, "scores: is shorter"),
    ("spm", {"scores": np.full(267, np.nan, np.float32)}, "scores: the score of token 0 is not a finite"),
    ("spm", {"token_type": np.full(267, 6, np.int32)}, "tokens: token 0 is of type byte"),
]


@pytest.mark.parametrize(("kind", "changes", "message"), BROKEN)
def test_broken_vocabularies_are_refused(kind: str, changes: dict[str, Any], message: str) -> None:
    metadata = (bpe_metadata if kind == "bpe" else spm_metadata)(**changes)
    with pytest.raises(BadInputError, match=f"small.gguf: tokenizer.ggml.{message}"):
        read_vocabulary(metadata, "small.gguf")


def test_a_missing_pre_tokenizer_is_llama_cpps_default() -> None:
    assert make(bpe_metadata(pre=None)).encode("123") == make(bpe_metadata(pre="default")).encode("123")


def test_of_equal_merges_the_first_counts() -> None:
    vocabulary = read_vocabulary(bpe_metadata(merges=["a b", "b c", "a b"]), "x")
    assert vocabulary.merges == {"a b": 0, "b c": 1}


@pytest.mark.parametrize(
    "others", [("<|return|>", "<|call|>"), ("<|return|>", "<|calls|>"), ("<|flush|>", "<|call|>")], ids=str
)
def test_end_is_no_end_where_harmony_tokens_are(others: tuple[str, str]) -> None:
    tokens = [*bpe_metadata()["tokenizer.ggml.tokens"][:-3], "<|end|>", *others]
    tok = make(bpe_metadata(tokens=tokens, eos_token_id=262))
    assert tok.eog == {262, 263}
    assert not tok.is_control(261)
