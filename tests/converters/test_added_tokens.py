"""Added tokens as llama.cpp's converter sees them: through transformers' tokenizer, and decoded by it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from localmoe.converters.tokenizer_files import decoded
from localmoe.errors import BadInputError
from tests.checkpoints import added_token, bpe_tokenizer, bpe_vocab

from .test_vocab import keys

FIRST = len(bpe_vocab())


@pytest.mark.parametrize(
    ("token", "text"),
    [
        ("\u0120hi", " hi"),
        ("\u010a", "\n"),
        ("<|x|>", "<|x|>"),
        ("\u00c3\u00a9", "\u00e9"),
        (" hi", " hi"),  # a space is no byte's character
        ("\u65e5", "\u65e5"),
        ("<ni\u00f1o>", "<ni\u00f1o>"),  # bytes of no text, of which llama.cpp's converter makes a U+FFFD
    ],
)
def test_characters_that_all_stand_for_bytes(token: str, text: str) -> None:
    assert decoded(token) == text


def test_an_added_token_that_is_not_normalized_is_decoded(tmp_path: Path) -> None:
    """Where the decoder is byte-level; tokenizer_config.json's flag counts before tokenizer.json's."""
    tokens = ("\u0120a", "\u0120b", "\u0120c")
    added = [added_token(FIRST + i, token, special=False) for i, token in enumerate(tokens)]
    added[1]["normalized"] = True
    tables = {str(entry["id"]): {k: v for k, v in entry.items() if k != "id"} for entry in added}
    tables[str(FIRST + 2)] = tables[str(FIRST + 2)] | {"normalized": True}
    files: dict[str, Any] = {"tokenizer": bpe_tokenizer(added_tokens=added)}
    assert keys(tmp_path, FIRST + 3, **files)["tokens"][FIRST:] == [" a", "\u0120b", " c"]
    configured = keys(tmp_path, FIRST + 3, **files, tokenizer_config={"added_tokens_decoder": tables})
    assert configured["tokens"][FIRST:] == [" a", "\u0120b", "\u0120c"]
    files["tokenizer"]["decoder"] = None
    (tmp_path / "tokenizer_config.json").unlink()
    assert keys(tmp_path, FIRST + 3, **files)["tokens"][FIRST:] == list(tokens)


@pytest.mark.parametrize(
    ("model_type", "named", "tokens"),
    [
        ("llama", {}, ["<|endoftext|>", "<|padding|>"]),
        ("llama", {"pad_token": None, "eos_token": "<e>"}, ["<|endoftext|>", "<e>"]),
        ("mistral", {}, []),  # transformers does not trust the class that such a checkpoint names
    ],
)
def test_a_class_has_names_of_its_own(
    tmp_path: Path, model_type: str, named: dict[str, Any], tokens: list[str]
) -> None:
    """As transformers 5.24 gives them; null in tokenizer_config.json is none."""
    found = keys(
        tmp_path, FIRST + 3, config={"model_type": model_type}, tokenizer=bpe_tokenizer(added_tokens=[]),
        tokenizer_config={"tokenizer_class": "GPTNeoXTokenizerFast", **named},
    )  # fmt: skip
    assert found["tokens"][FIRST : FIRST + len(tokens)] == tokens
    assert found["token_type"][FIRST:] == [3] * len(tokens) + [5] * (3 - len(tokens))


def test_two_added_tokens_of_one_id_are_refused_and_of_one_text_are_one(tmp_path: Path) -> None:
    """As tokenizers, which gives the second of one text the first one's id, and takes an empty one for none."""
    twice = [added_token(FIRST, "<a>"), added_token(FIRST, "<b>")]
    with pytest.raises(BadInputError, match=rf"'<b>': two added tokens share an id, got {FIRST}"):
        keys(tmp_path / "twice", FIRST + 1, tokenizer=bpe_tokenizer(added_tokens=twice))
    added = [added_token(FIRST, "<a>"), added_token(FIRST + 1, ""), added_token(FIRST + 2, "<a>")]
    found = keys(
        tmp_path / "once", FIRST + 3, tokenizer=bpe_tokenizer(added_tokens=added), tokenizer_config={"eos_token": "<a>"}
    )
    assert found["tokens"][FIRST:] == ["<a>", f"[PAD{FIRST + 1}]", f"[PAD{FIRST + 2}]"]
    assert {name: value for name, value in found.items() if name.endswith("_token_id")} == {"eos_token_id": FIRST}


def test_templates_in_a_table_are_named_ones(tmp_path: Path) -> None:
    """As transformers has them once they are read."""
    templates = {"chat_template": {"default": "A", "tool_use": "B"}}
    found = keys(tmp_path, FIRST + 1, tokenizer=bpe_tokenizer(), tokenizer_config=templates)
    assert (found["chat_template"], found["chat_template.tool_use"]) == ("A", "B")
