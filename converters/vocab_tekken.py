"""Vocabularies from tekken.json, the tokenizer file of Mistral's own checkpoints since 2024: byte-level BPE by rank.

Ids are special tokens first, then byte strings by rank, of which the first 256 are the bytes. There are no merges: any
two tokens that join to one are a pair, as in tiktoken. Sources: mistral-common's tekken.py for the file; llama.cpp's
gguf-py/gguf/vocab.py (MistralVocab) for the pairs and their order.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gguf import TokenType

from localmoe.errors import BadInputError
from localmoe.text.encoders import BYTE_TO_CHAR

from .checkpoint import read_json
from .pretokenizers import recognise_pattern
from .tokenizer_files import TokenizerFiles, Vocabulary, check_texts

TEKKEN = "tekken.json"
# The special tokens of a file that lists none (mistral-common's DEPRECATED_SPECIAL_TOKENS).
_UNLISTED = (
    "<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]", "[PREFIX]", "[MIDDLE]", "[SUFFIX]",
    "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]",
)  # fmt: skip
_SPECIAL_IDS = {"bos": "<s>", "eos": "</s>", "unk": "<unk>", "pad": "<pad>"}
_MOST_TOKENS = 1 << 20


def from_tekken(files: TokenizerFiles, pre: str | None) -> Vocabulary:
    """tekken.json as a "gpt2" vocabulary; `pre` overrides the recognised pre-tokenizer."""
    file = files.folder / TEKKEN
    table = read_json(files.folder, TEKKEN)
    config = table.get("config") if table else None
    if not isinstance(table, dict) or not isinstance(config, dict):
        raise BadInputError("is not a table", file=file, item="config")
    n, n_special = (_count(config, key, file) for key in ("default_vocab_size", "default_num_special_tokens"))
    specials = _specials(table.get("special_tokens"), n_special, file)
    pieces = _pieces(table.get("vocab"), n - n_special, file)
    tokens = specials + [_text(piece) for piece in pieces]
    check_texts(tokens, file)
    ids = {kind: specials.index(text) for kind, text in _SPECIAL_IDS.items() if text in specials}
    for kind in ("bos", "eos"):
        if kind not in ids:
            raise BadInputError("the token is missing", file=file, item="special_tokens", expected=_SPECIAL_IDS[kind])
    return Vocabulary(
        "gpt2",
        pre or recognise_pattern(config.get("pattern"), file),
        tokens,
        [int(TokenType.CONTROL)] * n_special + [int(TokenType.NORMAL)] * len(pieces),
        scores=[0.0] * len(tokens),
        merges=_merges(pieces, file),
        special_ids={"pad": ids["eos"]} | ids,
    )


def _count(config: dict[str, Any], key: str, file: Path) -> int:
    value = config.get(key)
    if type(value) is not int or not 0 <= value <= _MOST_TOKENS:
        raise BadInputError("is not a number of tokens", file=file, item=f"config.{key}", got=repr(value)[:80])
    return value


def _specials(listed: object, n: int, file: Path) -> list[str]:
    """`n` special tokens in order, `<SPECIAL_i>` where the file names none."""
    if listed is None:
        listed = [{"rank": i, "token_str": text} for i, text in enumerate(_UNLISTED[:n])]
    if not isinstance(listed, list):
        raise BadInputError("is not a list", file=file, item="special_tokens")
    texts: list[str] = []
    for i, entry in enumerate(listed):
        text = entry.get("token_str") if isinstance(entry, dict) else None
        if not isinstance(entry, dict) or entry.get("rank") != i or not isinstance(text, str):
            raise BadInputError("is not a special token", file=file, item=f"special_tokens[{i}]", got=repr(entry)[:80])
        texts.append(text)
    texts += [f"<SPECIAL_{i}>" for i in range(len(texts), n)]
    if len(texts) != n or len(set(texts)) != n:
        raise BadInputError("are too many, or twice the same", file=file, item="special_tokens", got=len(texts))
    return texts


def _pieces(listed: object, n: int, file: Path) -> list[bytes]:
    """The first `n` byte strings by rank."""
    if not isinstance(listed, list) or not 256 <= n <= len(listed):
        got = len(listed) if isinstance(listed, list) else type(listed).__name__
        raise BadInputError("is not a list of the vocabulary's size", file=file, item="vocab", got=got, expected=n)
    pieces = [_piece(entry, i, file) for i, entry in enumerate(listed[:n])]
    if len(set(pieces)) != n:
        raise BadInputError("two tokens are the same", file=file, item="vocab")
    return pieces


def _piece(entry: object, rank: int, file: Path) -> bytes:
    piece = b""
    if isinstance(entry, dict) and entry.get("rank") == rank and isinstance(entry.get("token_bytes"), str):
        try:
            piece = base64.b64decode(entry["token_bytes"], validate=True)
        except (binascii.Error, ValueError):
            piece = b""
    if not piece or (rank < 256 and piece != bytes([rank])):
        raise BadInputError("is not the token of its rank", file=file, item=f"vocab[{rank}]", got=repr(entry)[:80])
    return piece


def _merges(pieces: Sequence[bytes], file: Path) -> list[str]:
    """Every pair of tokens that joins to one: by that one's rank, then by the left one's, then by the right one's."""
    ranks = {piece: rank for rank, piece in enumerate(pieces)}
    merges = []
    for rank in range(256, len(pieces)):
        piece = pieces[rank]
        pairs = [(ranks.get(piece[:at], -1), ranks.get(piece[at:], -1)) for at in range(1, len(piece))]
        found = sorted(pair for pair in pairs if min(pair) >= 0)
        if not found:
            raise BadInputError("no two tokens join to it", file=file, item=f"vocab[{rank}]", got=repr(piece)[:80])
        merges += [f"{_text(pieces[left])} {_text(pieces[right])}" for left, right in found]
    return merges


def _text(piece: bytes) -> str:
    return "".join(BYTE_TO_CHAR[byte] for byte in piece)
