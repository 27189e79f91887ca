"""Byte-level BPE vocabularies from tokenizer.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gguf import TokenType

from localmoe.errors import BadInputError

from .hparams import Warn
from .pretokenizers import recognise
from .tokenizer_files import (
    TokenizerFiles,
    Vocabulary,
    added_tokens,
    added_tokens_json,
    added_type,
    check_texts,
    decoded,
    fill_gaps,
    named_tokens,
    unnormalized_tokens,
)


def from_tokenizer_json(files: TokenizerFiles, pre: str | None, warn: Warn) -> Vocabulary:
    """A byte-level tokenizer.json as a "gpt2" vocabulary; `pre` overrides the recognised pre-tokenizer."""
    file = files.folder / "tokenizer.json"
    assert files.tokenizer is not None
    vocab, merges = read_bpe_model(files.tokenizer, file)
    by_id = {token_id: token for token, token_id in vocab.items()}
    ids, types = dict(vocab), dict[int, TokenType]()
    added = added_tokens(files)
    plain = unnormalized_tokens(files) if _decodes_bytes(files.tokenizer.get("decoder")) else set()
    for token_id, (token, special) in added.items():
        if vocab.get(token, token_id) != token_id:
            warn(f"tokenizer.json: added token {token!r} has id {vocab[token]} in the vocabulary, not {token_id}")
            token_id = vocab[token]
        by_id[token_id], types[token_id] = added_type(decoded(token) if token in plain else token, special)
        ids[token] = token_id
    named, listed = named_tokens(files)
    for token in dict.fromkeys([*_older_tokens(files), *named, *listed]):
        if token not in ids or token in named:
            token_id = ids.setdefault(token, max(by_id, default=-1) + 1)
            text = decoded(token) if token in plain else token
            by_id[token_id], types[token_id] = added_type(text, token in (*named, *listed))
    texts, missing = fill_gaps(by_id, file)
    check_texts(texts, file)
    types |= dict.fromkeys(missing, TokenType.UNUSED)
    if pre is None:
        pre = recognise(files.tokenizer, file)
    return Vocabulary(
        "gpt2",
        pre,
        texts,
        [int(types.get(i, TokenType.NORMAL)) for i in range(len(texts))],
        merges=[f"{_spaceless(left)} {_spaceless(right)}" for left, right in merges],
    )


def _decodes_bytes(decoder: object) -> bool:
    """Whether tokenizer.json's decoder reads a token's characters as bytes."""
    return isinstance(decoder, dict) and decoder.get("type") == "ByteLevel"


def _older_tokens(files: TokenizerFiles) -> list[str]:
    """added_tokens.json's tokens by id: the file counts where tokenizer_config.json has no `added_tokens_decoder`."""
    newer = "added_tokens_decoder" in (files.tokenizer_config or {})
    table = {} if newer else added_tokens_json(files)
    return sorted(table, key=table.__getitem__)


def _spaceless(part: str) -> str:
    """A space within half a merge is spelled as GPT-2's byte table does: the halves are joined by a space."""
    return part.replace(" ", "\u0120")


def read_bpe_model(tokenizer: dict[str, Any], file: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """(token -> id, merges in order) of tokenizer.json's model, every merge made of tokens and making one.

    Raises BadInputError for another kind of model and for ids or merges that do not fit.
    """
    model = tokenizer.get("model")
    if not isinstance(model, dict) or model.get("type") != "BPE":
        got = model.get("type") if isinstance(model, dict) else model
        raise BadInputError("tokenizer model is not read", file=file, item="model.type", got=got, expected="BPE")
    for key in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise BadInputError("is not supported", file=file, item=f"model.{key}", got=repr(model[key]))
    vocab = model.get("vocab")
    if not isinstance(vocab, dict) or not all(type(i) is int and 0 <= i < 2**31 for i in vocab.values()):
        raise BadInputError("is not a table of tokens to ids", file=file, item="model.vocab")
    if len(set(vocab.values())) != len(vocab):
        raise BadInputError("two tokens share an id", file=file, item="model.vocab")
    merges = model.get("merges")
    if not isinstance(merges, list):
        raise BadInputError("is not a list", file=file, item="model.merges")
    return vocab, [_merge(entry, i, vocab, file) for i, entry in enumerate(merges)]


def _merge(entry: object, i: int, vocab: dict[str, int], file: Path) -> tuple[str, str]:
    """One merge, written as "a b" or, since tokenizers 0.20, as ["a", "b"]."""
    parts = entry.split(" ") if isinstance(entry, str) else entry
    if not isinstance(parts, list) or len(parts) != 2 or not all(isinstance(part, str) for part in parts):
        raise BadInputError("merge is not a pair of tokens", file=file, item=f"model.merges[{i}]", got=repr(entry)[:80])
    left, right = parts
    for token in (left, right, left + right):
        if token not in vocab:
            raise BadInputError(
                "merge names a token that is not in the vocabulary",
                file=file,
                item=f"model.merges[{i}]",
                got=repr(token)[:80],
            )
    return left, right
