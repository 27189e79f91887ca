"""A checkpoint's tokenizer files as read, the vocabulary made of them, and what all kinds of vocabulary share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import TokenType

from localmoe.errors import BadInputError
from localmoe.text.encoders import CHAR_TO_BYTE

from .checkpoint import read_json

STANDARD_KINDS = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
_END = "<|endoftext|>"
# What transformers names where tokenizer_config.json does not, by the tokenizer's class without "Fast"
_CLASS_TOKENS: dict[str, dict[str, str]] = {
    "GPT2Tokenizer": {"bos_token": _END, "eos_token": _END, "unk_token": _END},
    "GPTNeoXTokenizer": {"bos_token": _END, "eos_token": _END, "unk_token": _END, "pad_token": "<|padding|>"},
    "Qwen2Tokenizer": {"eos_token": _END, "unk_token": _END, "pad_token": _END},
    "CohereTokenizer": {
        "bos_token": "<BOS_TOKEN>", "eos_token": "<|END_OF_TURN_TOKEN|>", "unk_token": "<UNK>", "sep_token": "<SEP>",
        "pad_token": "<PAD>", "cls_token": "<CLS>", "mask_token": "<MASK_TOKEN>",
    },
}  # fmt: skip


@dataclass(frozen=True)
class Vocabulary:
    """Pieces by id. `model` is tokenizer.ggml.model; byte-level BPE has merges, "llama" scores.

    `special_ids` by kind (bos, eos, unk, pad) are there where the vocabulary's file says which tokens these are.
    """

    model: str
    pre: str
    tokens: list[str]
    types: list[int]
    scores: list[float] | None = None
    merges: list[str] | None = None
    space_prefix: bool | None = None
    special_ids: Mapping[str, int] | None = None


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


def decoded(token: str) -> str:
    """The text that a byte-level decoder makes of a token, where its characters all stand for bytes of one."""
    try:
        return bytes(CHAR_TO_BYTE[character] for character in token).decode()
    except (KeyError, UnicodeDecodeError):
        return token


def unnormalized_tokens(files: TokenizerFiles) -> set[str]:
    """The added tokens that are looked for in text as it is; tokenizer_config.json's flags come first."""
    decoder = (files.tokenizer_config or {}).get("added_tokens_decoder") or {}
    entries = [*((files.tokenizer or {}).get("added_tokens") or []), *decoder.values()]
    normalized = {entry["content"]: bool(entry.get("normalized")) for entry in entries}
    return {token for token, flag in normalized.items() if not flag}


def listed_tokens(files: TokenizerFiles) -> list[tuple[int, str, bool]]:
    """(id, content, special) of tokenizer.json's added tokens, in its order; [] without the file.

    As tokenizers reads them: an empty one is none, and the second of two of one text has the first one's id.
    BadInputError: two texts of one id.
    """
    entries = (files.tokenizer or {}).get("added_tokens") or []
    file = files.folder / "tokenizer.json"
    if not isinstance(entries, list):
        raise BadInputError("is not a list", file=file, item="added_tokens")
    found: dict[int, tuple[int, str, bool]] = {}
    ids: dict[str, int] = {}
    for entry in entries:
        token_id, token, special = _added_entry(entry, entry.get("id") if isinstance(entry, dict) else None, file)
        token_id = ids.setdefault(token, token_id)
        if token_id in found and found[token_id][1] != token:
            raise BadInputError("two added tokens share an id", file=file, item=repr(token)[:80], got=token_id)
        if token:
            found[token_id] = (token_id, token, special)
    return list(found.values())


def configured_tokens(files: TokenizerFiles) -> list[tuple[int, str, bool]]:
    """(id, content, special) of tokenizer_config.json's `added_tokens_decoder`; [] without it."""
    decoder = (files.tokenizer_config or {}).get("added_tokens_decoder") or {}
    file = files.folder / "tokenizer_config.json"
    if not isinstance(decoder, dict):
        raise BadInputError("is not a table", file=file, item="added_tokens_decoder")
    ids = {key: int(key) if key.isdecimal() and len(key) < 10 else None for key in decoder}
    found = [_added_entry(entry, ids[key], file) for key, entry in decoder.items()]
    return [entry for entry in found if entry[1]]


def added_tokens_json(files: TokenizerFiles) -> dict[str, int]:
    """token -> id of added_tokens.json, {} without it."""
    table = read_json(files.folder, "added_tokens.json") or {}
    for token, token_id in table.items():
        if isinstance(token_id, bool) or not isinstance(token_id, int) or token_id < 0:
            raise BadInputError(
                "has no usable id", file=files.folder / "added_tokens.json", item=repr(token), got=token_id
            )
    return table


def named_tokens(files: TokenizerFiles) -> tuple[list[str], list[str]]:
    """The texts that are special by a name (bos_token, ...), and those of a list of further special tokens.

    transformers marks the first as special whatever their flags say, and adds to the vocabulary what it lacks of both.
    special_tokens_map.json counts where tokenizer_config.json has no `added_tokens_decoder`; the tokenizer's class has
    names for what neither mentions.
    """
    table = _CLASS_TOKENS.get(tokenizer_class(files), {}) | (files.tokenizer_config or {})
    if "added_tokens_decoder" not in table:
        table |= read_json(files.folder, "special_tokens_map.json") or {}
    further = table.get("extra_special_tokens") or table.get("additional_special_tokens") or []
    names = [f"{kind}_token" for kind in STANDARD_KINDS]
    entries = [table.get(name) for name in names]
    entries += [entry for name, entry in table.items() if name.endswith("_token") and name not in names]
    if isinstance(further, dict):
        entries, further = [*entries, *further.values()], []
    named = [text for text in map(token_text, entries) if text]
    listed = [text for text in map(token_text, further if isinstance(further, list) else []) if text]
    return named, listed


def tokenizer_class(files: TokenizerFiles) -> str:
    """The class, without "Fast", that transformers takes the tokenizer to be; it trusts a Llama's files alone."""
    kind = (files.tokenizer_config or {}).get("tokenizer_class")
    trusted = files.config.get("model_type") == "llama" and isinstance(kind, str)
    return str(kind).removesuffix("Fast") if trusted else ""


def token_text(entry: object) -> str | None:
    """The text of a token that is given as one or as a table with `content`."""
    text = entry.get("content") if isinstance(entry, dict) else entry
    return text if isinstance(text, str) else None


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
