"""A checkpoint's vocabulary: which tokenizer files count, the pieces in the embedding's size, and the GGUF keys.

The order of choice is llama.cpp's: tekken.json unless there is a tokenizer.json as well, tokenizer.model
(SentencePiece), a tokenizer.json of SentencePiece's kind (BPE with byte fallback), a byte-level tokenizer.json. After
all of them comes tokenizer.model.v3 (or v2, v1), which is all that some of Mistral's own folders have.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from gguf import GGUFValueType, TokenType

from localmoe.errors import BadInputError

from . import vocab_bpe, vocab_spm, vocab_tekken
from .checkpoint import find_file
from .hparams import Warn
from .source import MetaValue
from .special_tokens import ID_KEYS, special_keys
from .tokenizer_files import TokenizerFiles, Vocabulary

PAD_SCORE = -10000.0
SPM = "tokenizer.model"
SPM_VERSIONS = tuple(f"{SPM}.v{number}" for number in (3, 2, 1))
CODELLAMA_VOCAB, CODELLAMA_EOT = 32016, 32010  # the converter's prefix, suffix and middle have no keys any more
GRANITE_VOCAB = 49152


def has_tokenizer(files: TokenizerFiles) -> bool:
    """Whether the folder holds any of the tokenizer files that are read."""
    names = (vocab_tekken.TEKKEN, SPM, *SPM_VERSIONS)
    return files.tokenizer is not None or any(find_file(files.folder, name) for name in names)


def read_vocabulary(files: TokenizerFiles, n_vocab: int, pre: str | None, warn: Warn) -> Vocabulary:
    """The vocabulary in exactly `n_vocab` pieces, padded or cut with a warning; `pre` overrides the recognition."""
    if files.tokenizer is None and find_file(files.folder, vocab_tekken.TEKKEN) is not None:
        vocabulary = vocab_tekken.from_tekken(files, pre)
    elif find_file(files.folder, SPM) is not None:
        vocabulary = vocab_spm.from_sentencepiece(files, SPM, warn)
    elif files.tokenizer is None and (version := _spm_version(files)) is not None:
        vocabulary = vocab_spm.from_sentencepiece(files, version, warn)
    elif files.tokenizer is None:
        raise BadInputError("no tokenizer: neither tokenizer.model, tokenizer.json nor tekken.json", file=files.folder)
    elif vocab_spm.is_sentencepiece_like(files.tokenizer):
        vocabulary = vocab_spm.from_tokenizer_json(files, pre, warn)
    else:
        vocabulary = vocab_bpe.from_tokenizer_json(files, pre, warn)
    if pre is not None:
        vocabulary = replace(vocabulary, pre=pre)
    return resize(vocabulary, n_vocab, warn)


def _spm_version(files: TokenizerFiles) -> str | None:
    return next((name for name in SPM_VERSIONS if find_file(files.folder, name) is not None), None)


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


def vocabulary_keys(vocabulary: Vocabulary, files: TokenizerFiles, warn: Warn) -> dict[str, MetaValue]:
    """The `tokenizer.*` keys in the order in which llama.cpp's converter writes them."""
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
    keys |= special_keys(files, len(vocabulary.tokens), warn, vocabulary.special_ids)
    n_vocab = len(vocabulary.tokens)
    if n_vocab == CODELLAMA_VOCAB:
        keys[str(ID_KEYS["eot"])] = MetaValue(CODELLAMA_EOT, GGUFValueType.UINT32)
    if n_vocab == GRANITE_VOCAB:
        keys["tokenizer.ggml.add_bos_token"] = MetaValue(False, GGUFValueType.BOOL)
    return keys


def _array(values: list[Any], element: GGUFValueType) -> MetaValue:
    return MetaValue(values, GGUFValueType.ARRAY, element)
