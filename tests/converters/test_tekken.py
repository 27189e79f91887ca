"""tekken.json: ids by rank, pairs of tokens for merges, special tokens, refusals. Expected values are by hand."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from localmoe.converters.huggingface import load_source
from localmoe.converters.pipeline import write_model
from localmoe.converters.source import SourceModel
from localmoe.converters.tokenizer_files import Vocabulary, read_files
from localmoe.converters.vocab import read_vocabulary
from localmoe.errors import BadInputError
from localmoe.text.tokenizer import load
from tests.checkpoints import Tiny, write_checkpoint

PATTERN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIALS = 24
WORDS = (b"he", b"ll", b"hell", b"hello", b" hello", b"ab", b"bc", b"abc", "é".encode(), b"  ")
PIECES = [bytes([byte]) for byte in range(256)] + list(WORDS) + [b"beyond the size"]
SIZE = SPECIALS + 256 + len(WORDS)


def tekken(**changes: Any) -> dict[str, Any]:
    """A tekken.json whose vocabulary is cut before its last token, as Mistral's are."""
    config = {"pattern": PATTERN, "default_vocab_size": SIZE, "default_num_special_tokens": SPECIALS, "version": "v3"}
    vocab = [
        {"rank": i, "token_bytes": base64.b64encode(piece).decode(), "token_str": piece.decode("utf-8", "replace")}
        for i, piece in enumerate(PIECES)
    ]
    return {"config": config, "vocab": vocab} | changes


def read(folder: Path, table: dict[str, Any], pre: str | None = None, n_vocab: int = SIZE) -> Vocabulary:
    (folder / "tekken.json").write_text(json.dumps(table))
    return read_vocabulary(read_files(folder, {}), n_vocab, pre, pytest.fail)


def test_ids_types_and_pairs(tmp_path: Path) -> None:
    """`abc` joins from a and bc, or from ab and c; a is before ab."""
    found = read(tmp_path, tekken())
    assert (found.model, found.pre) == ("gpt2", "tekken")
    assert found.tokens[:4] == ["<unk>", "<s>", "</s>", "[INST]"]
    assert found.tokens[19:SPECIALS] == ["[TOOL_CONTENT]", *(f"<SPECIAL_{i}>" for i in range(20, SPECIALS))]
    assert found.tokens[SPECIALS : SPECIALS + 2] == ["Ā", "ā"]
    assert found.tokens[-6:] == ["Ġhello", "ab", "bc", "abc", "Ã©", "ĠĠ"]
    assert found.types == [3] * SPECIALS + [1] * (SIZE - SPECIALS)
    assert found.merges == [
        "h e", "l l", "he ll", "hell o", "Ġ hello", "a b", "b c", "a bc", "ab c", "Ã ©", "Ġ Ġ",
    ]  # fmt: skip
    assert found.special_ids == {"bos": 1, "eos": 2, "unk": 0, "pad": 11}


def test_special_tokens_of_the_file(tmp_path: Path) -> None:
    listed = [{"rank": i, "token_str": text, "is_control": True} for i, text in enumerate(("</s>", "<s>", "[THINK]"))]
    found = read(tmp_path, tekken(special_tokens=listed))
    assert found.tokens[:5] == ["</s>", "<s>", "[THINK]", "<SPECIAL_3>", "<SPECIAL_4>"]
    assert found.special_ids == {"bos": 1, "eos": 0, "pad": 0}


def convert(folder: Path) -> SourceModel:
    """A checkpoint that has tekken.json and no other tokenizer, with two rows more than tokens."""
    write_checkpoint(folder, Tiny("mistral", tokenizer="spm", n_vocab=SIZE + 2))
    for name in ("tokenizer.model", "tokenizer_config.json"):
        (folder / name).unlink()
    (folder / "tekken.json").write_text(json.dumps(tekken()))
    (folder / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    return load_source(folder, warn=lambda line: None)


def test_a_checkpoint_and_what_the_runtime_reads(tmp_path: Path) -> None:
    model = convert(tmp_path / "c")
    keys = {key: entry.value for key, entry in model.metadata.items() if key.startswith("tokenizer.")}
    assert len(keys["tokenizer.ggml.tokens"]) == SIZE + 2
    assert keys["tokenizer.ggml.tokens"][-1] == f"[PAD{SIZE + 1}]"
    ids = {kind: keys[f"tokenizer.ggml.{kind}_token_id"] for kind in ("bos", "eos", "unknown", "padding")}
    assert ids == {"bos": 1, "eos": 2, "unknown": 0, "padding": 11}
    assert keys["tokenizer.ggml.add_bos_token"]
    assert not keys["tokenizer.ggml.add_eos_token"]
    assert keys["tokenizer.chat_template"] == "{{ messages[0]['content'] }}"
    write_model(model, tmp_path / "c.gguf", "F16", notify=lambda line: None)
    tokenizer = load(tmp_path / "c.gguf")
    word, first = SPECIALS + 256, SPECIALS
    assert tokenizer.encode("hello hello", add_bos=True) == [1, word + 3, word + 4]
    assert tokenizer.encode("abc12", add_bos=False) == [word + 7, first + ord("1"), first + ord("2")]
    assert tokenizer.encode("é[INST]", add_bos=False, parse_special=True) == [word + 8, 3]
    assert tokenizer.decode([word + 3, word + 8]) == "helloé"


def test_a_tokenizer_json_beside_it_counts(tmp_path: Path) -> None:
    """By llama.cpp's rule: Hugging Face's files are complete, tekken.json is one of Mistral's own."""
    folder = write_checkpoint(tmp_path / "c", Tiny("mistral", tokenizer="bpe"))
    (folder / "tekken.json").write_text(json.dumps(tekken()))
    assert load_source(folder, warn=lambda line: None).metadata["tokenizer.ggml.pre"].value != "tekken"


def changed(at: int, **fields: Any) -> list[dict[str, Any]]:
    vocab: list[dict[str, Any]] = tekken()["vocab"]
    vocab[at] |= fields
    return vocab


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"config": None}, "config: is not a table"),
        ({"config": {"default_vocab_size": -1}}, r"config\.default_vocab_size: is not a number of tokens, got -1"),
        ({"vocab": []}, "vocab: is not a list of the vocabulary's size, got 0, expected 266"),
        ({"vocab": changed(7, rank=8)}, r"vocab\[7\]: is not the token of its rank"),
        ({"vocab": changed(7, token_bytes="CA==")}, r"vocab\[7\]: is not the token of its rank"),
        ({"vocab": changed(260, token_bytes="*")}, r"vocab\[260\]: is not the token of its rank"),
        ({"vocab": changed(260, token_bytes="aGU=")}, "vocab: two tokens are the same"),
        ({"vocab": changed(258, token_bytes="eHl6")}, r"vocab\[258\]: no two tokens join to it, got b'xyz'"),
        ({"special_tokens": [{"rank": 1, "token_str": "<s>"}]}, r"special_tokens\[0\]: is not a special token"),
        ({"special_tokens": [{"rank": i, "token_str": "<s>"} for i in (0, 1)]}, "special_tokens: .*twice the same"),
        ({"special_tokens": [{"rank": 0, "token_str": "<s>"}]}, "special_tokens: the token is missing, expected </s>"),
        ({"special_tokens": {}}, "special_tokens: is not a list"),
    ],
)
def test_what_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInputError, match=rf"tekken\.json: {message}"):
        read(tmp_path, tekken(**changes))


def test_an_unknown_pattern_is_not_guessed(tmp_path: Path) -> None:
    table = tekken()
    table["config"]["pattern"] = r"\w+|\W+"
    with pytest.raises(BadInputError, match=r"config\.pattern: pre-tokenizer is not one .* --pre"):
        read(tmp_path, table)
    assert read(tmp_path, table, pre="tekken").pre == "tekken"
