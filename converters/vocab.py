"""A checkpoint's vocabulary: which tokenizer files count, the pieces in the embedding's size, and the GGUF keys.

The order of choice is llama.cpp's: tokenizer.model (SentencePiece), a tokenizer.json of SentencePiece's kind
(BPE with byte fallback), a byte-level tokenizer.json.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gguf import GGUFValueType, TokenType

from localmoe.errors import BadInputError

from .checkpoint import find_file, read_json
from .hparams import Warn
from .source import MetaValue

PAD_SCORE = -10000.0
CODELLAMA_VOCAB, CODELLAMA_FILL = 32016, {"prefix": 32007, "suffix": 32008, "middle": 32009, "eot": 32010}
GRANITE_VOCAB = 49152


@dataclass(frozen=True)
class Vocabulary:
    """Pieces by id. `model` is tokenizer.ggml.model; byte-level BPE has merges and no scores, "llama" the reverse."""

    model: str
    pre: str
    tokens: list[str]
    types: list[int]
    scores: list[float] | None = None
    merges: list[str] | None = None
    space_prefix: bool | None = None


@dataclass(frozen=True)
class TokenizerFiles:
    """The tokenizer's JSON files, {} or None where they are missing, and the folder that errors name."""

    folder: Path
    config: dict[str, Any]
    tokenizer_config: dict[str, Any] | None
    tokenizer: dict[str, Any] | None


def read_files(folder: Path, config: dict[str, Any]) -> TokenizerFiles:
    """Read tokenizer_config.json and tokenizer.json of a checkpoint whose config.json holds `config`."""
    return TokenizerFiles(
        folder, config, read_json(folder, "tokenizer_config.json"), read_json(folder, "tokenizer.json")
    )


def read_vocabulary(files: TokenizerFiles, n_vocab: int, pre: str | None, warn: Warn) -> Vocabulary:
    """The vocabulary in exactly `n_vocab` pieces, padded or cut with a warning; `pre` overrides the recognition."""
    from . import vocab_bpe, vocab_spm

    if find_file(files.folder, "tokenizer.model") is not None:
        vocabulary = vocab_spm.from_sentencepiece(files, warn)
    elif files.tokenizer is None:
        raise BadInputError("no tokenizer: neither tokenizer.model nor tokenizer.json", file=files.folder)
    elif vocab_spm.is_sentencepiece_like(files.tokenizer):
        vocabulary = vocab_spm.from_tokenizer_json(files, pre, warn)
    else:
        vocabulary = vocab_bpe.from_tokenizer_json(files, pre, warn)
    if pre is not None:
        vocabulary = replace(vocabulary, pre=pre)
    return resize(vocabulary, n_vocab, warn)


def resize(vocabulary: Vocabulary, n_vocab: int, warn: Warn) -> Vocabulary:
    """The vocabulary cut or padded to `n_vocab` pieces; padding is `[PADn]`, unused, as llama.cpp's converter pads."""
    n = len(vocabulary.tokens)
    if n > n_vocab:
        warn(f"vocabulary cut: the tokenizer has {n} tokens, the embedding {n_vocab} rows")
    elif n < n_vocab:
        warn(f"vocabulary padded: the tokenizer has {n} tokens, the embedding {n_vocab} rows")
    padding = range(n, n_vocab)
    scores = vocabulary.scores
    return replace(
        vocabulary,
        tokens=vocabulary.tokens[:n_vocab] + [f"[PAD{i}]" for i in padding],
        types=vocabulary.types[:n_vocab] + [int(TokenType.UNUSED)] * len(padding),
        scores=None if scores is None else scores[:n_vocab] + [PAD_SCORE] * len(padding),
    )


def fill_gaps(by_id: dict[int, str], file: Path) -> tuple[list[str], list[int]]:
    """The pieces 0..max(id) and the ids that are missing, which become `[PADn]`; BadInputError for absurd ids."""
    top = max(by_id, default=-1)
    if top < 0:
        raise BadInputError("vocabulary is empty", file=file)
    if top >= 2 * len(by_id) + 65536:
        raise BadInputError("token id is far beyond the vocabulary", file=file, item=repr(by_id[top]), got=top)
    missing = [i for i in range(top + 1) if i not in by_id]
    return [by_id.get(i, f"[PAD{i}]") for i in range(top + 1)], missing


def looks_special(token: str) -> bool:
    """Whether an added token that is not marked special is one by its looks, by llama.cpp's converter's rules."""
    return (
        token in ("<pad>", "<mask>", "<2mass>", "[@BOS@]")
        or (token.startswith("<|") and token.endswith("|>"))
        or (token.startswith("<｜") and token.endswith("｜>"))
        or (token.startswith("<unused") and token.endswith(">"))
    )


def added_type(token: str, special: bool) -> tuple[str, TokenType]:
    """An added token's text and type: user-defined ones are stored with spaces in place of SentencePiece's mark."""
    if special or looks_special(token):
        return token, TokenType.CONTROL
    return token.replace("\u2581", " "), TokenType.USER_DEFINED


def listed_tokens(files: TokenizerFiles) -> list[tuple[int, str, bool]]:
    """(id, content, special) of tokenizer.json's added tokens, in its order; [] without the file."""
    entries = (files.tokenizer or {}).get("added_tokens") or []
    file = files.folder / "tokenizer.json"
    if not isinstance(entries, list):
        raise BadInputError("is not a list", file=file, item="added_tokens")
    return [_added_entry(entry, entry.get("id") if isinstance(entry, dict) else None, file) for entry in entries]


def configured_tokens(files: TokenizerFiles) -> list[tuple[int, str, bool]]:
    """(id, content, special) of tokenizer_config.json's `added_tokens_decoder`; [] without it."""
    decoder = (files.tokenizer_config or {}).get("added_tokens_decoder") or {}
    file = files.folder / "tokenizer_config.json"
    if not isinstance(decoder, dict):
        raise BadInputError("is not a table", file=file, item="added_tokens_decoder")
    ids = {key: int(key) if key.isdecimal() and len(key) < 10 else None for key in decoder}
    return [_added_entry(entry, ids[key], file) for key, entry in decoder.items()]


def added_tokens(files: TokenizerFiles) -> dict[int, tuple[str, bool]]:
    """id -> (content, special) from both files; tokenizer_config.json's flags count where both have a token."""
    entries = listed_tokens(files) + configured_tokens(files)
    return {token_id: (token, special) for token_id, token, special in entries}


def _added_entry(entry: object, token_id: object, file: Path) -> tuple[int, str, bool]:
    content = entry.get("content") if isinstance(entry, dict) else None
    if not isinstance(content, str) or isinstance(token_id, bool) or not isinstance(token_id, int) or token_id < 0:
        raise BadInputError("added token has no id or content", file=file, item=str(entry)[:80])
    assert isinstance(entry, dict)
    return token_id, content, bool(entry.get("special"))


def check_texts(tokens: Sequence[str], file: Path) -> None:
    """Raise BadInputError for a text that is no Unicode (JSON can spell half a surrogate pair)."""
    for i, token in enumerate(tokens):
        try:
            token.encode("utf-8")
        except UnicodeEncodeError as error:
            raise BadInputError("text is not valid Unicode", file=file, item=f"number {i}", got=ascii(token)) from error


def vocabulary_keys(vocabulary: Vocabulary, files: TokenizerFiles, warn: Warn) -> dict[str, MetaValue]:
    """The `tokenizer.*` keys in the order in which llama.cpp's converter writes them."""
    from .special_tokens import special_keys

    keys: dict[str, MetaValue] = {}
    prefix = (files.tokenizer_config or {}).get("add_prefix_space")
    prefix = prefix if isinstance(prefix, bool) else vocabulary.space_prefix
    if prefix is not None:
        keys["tokenizer.ggml.add_space_prefix"] = MetaValue(prefix, GGUFValueType.BOOL)
    keys["tokenizer.ggml.model"] = MetaValue(vocabulary.model, GGUFValueType.STRING)
    keys["tokenizer.ggml.pre"] = MetaValue(vocabulary.pre, GGUFValueType.STRING)
    keys["tokenizer.ggml.tokens"] = _array(vocabulary.tokens, GGUFValueType.STRING)
    if vocabulary.scores is not None:
        keys["tokenizer.ggml.scores"] = _array(vocabulary.scores, GGUFValueType.FLOAT32)
    keys["tokenizer.ggml.token_type"] = _array(vocabulary.types, GGUFValueType.INT32)
    if vocabulary.merges:
        keys["tokenizer.ggml.merges"] = _array(vocabulary.merges, GGUFValueType.STRING)
    keys |= special_keys(files, len(vocabulary.tokens), warn)
    n_vocab = len(vocabulary.tokens)
    if n_vocab == CODELLAMA_VOCAB:
        for kind, token_id in CODELLAMA_FILL.items():
            keys[f"tokenizer.ggml.{kind}_token_id"] = MetaValue(token_id, GGUFValueType.UINT32)
    if n_vocab == GRANITE_VOCAB:
        keys["tokenizer.ggml.add_bos_token"] = MetaValue(False, GGUFValueType.BOOL)
    return keys


def _array(values: list[Any], element: GGUFValueType) -> MetaValue:
    return MetaValue(values, GGUFValueType.ARRAY, element)
