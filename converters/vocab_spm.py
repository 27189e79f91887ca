"""SentencePiece vocabularies: tokenizer.model, and the tokenizer.json that was made from one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gguf import TokenType

from localmoe.errors import BadInputError

from .checkpoint import find_file, read_bounded
from .hparams import Warn
from .tokenizer_files import (
    TokenizerFiles,
    Vocabulary,
    added_tokens,
    added_tokens_json,
    added_type,
    check_texts,
    configured_tokens,
    fill_gaps,
)
from .vocab_bpe import read_bpe_model

ADDED_SCORE = -1000.0
GAP_SCORE = -10000.0
_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")

# SentencePieceProcessor's question -> type; what answers to none is a normal piece, user-defined ones too.
_SPM_TYPES = (
    ("IsUnknown", TokenType.UNKNOWN),
    ("IsControl", TokenType.CONTROL),
    ("IsUnused", TokenType.UNUSED),
    ("IsByte", TokenType.BYTE),
)


def from_sentencepiece(files: TokenizerFiles, name: str, warn: Warn) -> Vocabulary:
    """The SentencePiece model `name` with added_tokens.json and tokenizer_config.json's added tokens laid over it."""
    from sentencepiece import SentencePieceProcessor

    file = files.folder / name
    path = find_file(files.folder, name)
    assert path is not None
    try:
        processor = SentencePieceProcessor(model_proto=read_bounded(path, file))
    except (RuntimeError, ValueError, OSError) as error:
        raise BadInputError("is not a SentencePiece model", file=file, got=str(error).splitlines()[0][:120]) from error
    n = processor.GetPieceSize()
    tokens = {i: processor.IdToPiece(i) for i in range(n)}
    scores = {i: processor.GetScore(i) for i in range(n)}
    types = {
        i: next((kind for ask, kind in _SPM_TYPES if getattr(processor, ask)(i)), TokenType.NORMAL) for i in range(n)
    }
    for token, token_id in added_tokens_json(files).items():
        tokens[token_id], scores[token_id], types[token_id] = token, ADDED_SCORE, TokenType.USER_DEFINED
    for token_id, token, special in configured_tokens(files):
        text, kind = added_type(token, special)
        if token_id < n and tokens[token_id] != token:
            warn(f"tokenizer_config.json replaces token {token_id}: {tokens[token_id]!r} -> {token!r}")
        tokens[token_id], scores[token_id], types[token_id] = text, ADDED_SCORE, kind
    texts, missing = fill_gaps(tokens, file)
    check_texts(texts, file)
    for i in missing:
        scores[i], types[i] = GAP_SCORE, TokenType.UNUSED
    ids = range(len(texts))
    return Vocabulary("llama", "default", texts, [int(types[i]) for i in ids], scores=[scores[i] for i in ids])


def is_sentencepiece_like(tokenizer: dict[str, Any]) -> bool:
    """Whether a tokenizer.json is BPE with byte fallback and a decoder of several steps, as Llama 2's."""
    model, decoder = tokenizer.get("model"), tokenizer.get("decoder")
    return (
        isinstance(model, dict)
        and model.get("type") == "BPE"
        and bool(model.get("byte_fallback"))
        and isinstance(decoder, dict)
        and decoder.get("type") == "Sequence"
    )


def from_tokenizer_json(files: TokenizerFiles, pre: str | None, warn: Warn) -> Vocabulary:
    """A SentencePiece-like tokenizer.json as a "llama" vocabulary.

    A piece's score is minus the rank of the first merge that makes it: runtimes that merge the pair of the highest
    score then do what tokenizer.json's merges do. (llama.cpp's converter gives every piece -1000, and its result
    merges from left to right.)
    """
    file = files.folder / "tokenizer.json"
    assert files.tokenizer is not None
    vocab, merges = read_bpe_model(files.tokenizer, file)
    added = added_tokens(files)
    special = _special_contents(files) | {token for token, is_special in added.values() if is_special}
    tokens = {token_id: token for token, token_id in vocab.items()}
    ranks: dict[str, int] = {}
    for rank, (left, right) in enumerate(merges):
        ranks.setdefault(left + right, rank)
    scores = {i: -float(ranks[token]) if token in ranks else ADDED_SCORE for i, token in tokens.items()}
    types = {i: _piece_type(token, special) for i, token in tokens.items()}
    for token_id, (token, is_special) in added.items():
        if token_id not in tokens:
            kind = TokenType.CONTROL if is_special else TokenType.USER_DEFINED
            tokens[token_id], scores[token_id], types[token_id] = token, ADDED_SCORE, kind
    texts, missing = fill_gaps(tokens, file)
    check_texts(texts, file)
    for i in missing:
        scores[i], types[i] = GAP_SCORE, TokenType.UNUSED
    ids = range(len(texts))
    prefix = _space_prefix(files.tokenizer, pre, file, warn)
    return Vocabulary(
        "llama", "default", texts, [int(types[i]) for i in ids], scores=[scores[i] for i in ids], space_prefix=prefix
    )


def _special_contents(files: TokenizerFiles) -> set[str]:
    """The texts that tokenizer_config.json names as bos, eos and so on."""
    found = set()
    for key, value in (files.tokenizer_config or {}).items():
        text = value.get("content") if isinstance(value, dict) else value
        if key.endswith("_token") and isinstance(text, str):
            found.add(text)
    return found


def _piece_type(token: str, special: set[str]) -> TokenType:
    if _BYTE.fullmatch(token):
        return TokenType.BYTE
    return TokenType.CONTROL if token in special else TokenType.NORMAL


def _space_prefix(tokenizer: dict[str, Any], pre: str | None, file: Path, warn: Warn) -> bool | None:
    """False when text gets no space in front, None when it does (the runtime's default).

    Raises BadInputError for a normalizer or pre-tokenizer that is not SentencePiece's, unless `pre` was given.
    """
    kinds = list(_component_kinds(tokenizer.get("normalizer"), "normalizers"))
    kinds += list(_component_kinds(tokenizer.get("pre_tokenizer"), "pretokenizers"))
    foreign = [kind for kind in kinds if kind not in ("Prepend", "Replace", "Metaspace", "Metaspace without prefix")]
    if foreign and pre is None:
        raise BadInputError(
            "text is prepared in a way that a SentencePiece vocabulary cannot express; --pre default overrides",
            file=file,
            got=", ".join(foreign),
        )
    if foreign:
        warn(f"tokenizer.json: {', '.join(foreign)} left out")
    return None if "Prepend" in kinds or "Metaspace" in kinds else False


def _component_kinds(node: object, children: str) -> Iterator[str]:
    """The types of a normalizer or pre_tokenizer section, sequences taken apart."""
    if node is None:
        return
    if not isinstance(node, dict):
        yield str(node)
    elif node.get("type") == "Sequence" and isinstance(node.get(children), list):
        for child in node[children]:
            yield from _component_kinds(child, children)
    elif node.get("type") == "Metaspace":
        never = node.get("prepend_scheme", "always") == "never" or node.get("add_prefix_space") is False
        yield "Metaspace without prefix" if never else "Metaspace"
    else:
        yield str(node.get("type"))
