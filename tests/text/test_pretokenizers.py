"""Words of each kind of pre-tokenizer, worked out from its expressions."""

from __future__ import annotations

import random

import pytest

from localmoe.text.pretokenizers import PRE_TOKENIZERS, split

CASES = [
    ("gpt-2", "I'll  see 123x\n\n y", ["I", "'ll", " ", " see", " 123", "x", "\n\n", " y"]),
    ("llama-bpe", "I'LL 12345 x!!\n\ny", ["I", "'LL", " ", "123", "45", " x", "!!\n\n", "y"]),
    ("qwen2", "12 ab  c\r\n d", ["1", "2", " ab", " ", " c", "\r\n", " d"]),
    ("smollm", "a 12", ["a", " ", "1", "2"]),
    ("tekken", "HelloWorld ABc", ["Hello", "World", " ABc"]),
    ("gpt-4o", "HelloWorld's ABC'LL/", ["Hello", "World's", " ABC'LL", "/"]),
    ("deepseek-v3", "1234 日本 a!", ["123", "4", " ", "日本", " a", "!"]),
    ("falcon", "ab-12345", ["ab", "-", "123", "45"]),
    ("kimi-k2", "日本ab's1234", ["日本", "ab's", "123", "4"]),
    ("tiny_aya", "1234567", ["1", "234", "567"]),
    ("superbpe", "x1234567", ["x", "1", "234", "567"]),
    ("deepseek-llm", "a  \nb  ", ["a", "  ", "\n", "b", "  "]),
    ("gemma4", "a b\n\nc", ["a b", "\n\n", "c"]),
    ("bloom", "a b, c", ["a", " b", ",", " c"]),
]


@pytest.mark.parametrize(("name", "text", "words"), CASES)
def test_words(name: str, text: str, words: list[str]) -> None:
    assert split(PRE_TOKENIZERS[name], text) == words


@pytest.mark.parametrize("name", sorted(PRE_TOKENIZERS))
def test_words_joined_are_the_text(name: str) -> None:
    rng = random.Random(name)
    for _ in range(20):
        text = "".join(rng.choices("aB1 \n\r\t'.é日٣\u3000\u0301👍\0_", k=rng.randint(0, 40)))
        words = split(PRE_TOKENIZERS[name], text)
        assert "".join(words) == text
        assert all(words)
