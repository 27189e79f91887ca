"""The `tokenizer.ggml.*` keys of a GGUF, checked, with the meaning llama.cpp gives to what they leave out."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from localmoe.errors import BadInputError
from localmoe.gguf_cursor import visible
from localmoe.text.pretokenizers import PRE_TOKENIZERS, PreTokenizer

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE, LSTRIP, RSTRIP = (1 << n for n in range(8))

# tokenizer.ggml.token_type -> attribute; other numbers mean nothing
_TYPES = {1: NORMAL, 2: UNKNOWN, 3: CONTROL, 4: USER_DEFINED, 5: UNUSED, 6: BYTE}
_KINDS = {"llama": "spm", "gpt2": "bpe", "gemma4": "bpe"}
_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")

# where no key names them: llama.cpp's, which are those of LLaMA and Falcon
_DEFAULTS = {"spm": {"bos": 1, "eos": 2, "unknown": 0}, "bpe": {"bos": 11, "eos": 11}}
_NO_DEFAULT_BOS = ("chatglm-bpe", "glm4", "glm5")

# Tokens that a conversion may have left as ordinary text although they are markup, by their role; where no key names
# the role's token, the first of these that exists takes it (llama.cpp, "auto-detect special tokens by text").
_END_OF_TURN = (
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>", "<EOT>", "_<EOT>",
    "[EOT]", "<｜end▁of▁sentence｜>", "<end_of_utterance>",
)  # fmt: skip
_BY_TEXT = {
    "eot": _END_OF_TURN,
    "eom": ("<|eom_id|>",),
    "fim_pre": (
        "<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<｜fim▁begin｜>", "<PRE>", "▁<PRE>", "<|code_prefix|>",
        "<|prefix|>",
    ),
    "fim_suf": (
        "<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<｜fim▁hole｜>", "<SUF>", "▁<SUF>", "<|code_suffix|>",
        "<|suffix|>",
    ),
    "fim_mid": (
        "<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<｜fim▁end｜>", "<MID>", "▁<MID>", "<|code_middle|>",
        "<|middle|>",
    ),
    "fim_pad": ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
    "fim_rep": ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
    "fim_sep": ("<|file_sep|>",),
}  # fmt: skip
_END_OF_GENERATION = (
    *_END_OF_TURN, "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "</s>", "<|eom_id|>", "[EOS]", "<eos>",
    "<turn|>", "<|tool_response>", "[e~[",
)  # fmt: skip
_ALWAYS_SHOWN = ("<|channel|>", "<|message|>", "<|start|>", "<|constrain|>")

# role -> key under tokenizer.ggml., the later one wins
_ID_KEYS = (
    ("bos", "bos_token_id"), ("eos", "eos_token_id"), ("eot", "eot_token_id"), ("eom", "eom_token_id"),
    ("unknown", "unknown_token_id"), ("pad", "padding_token_id"), ("fim_pre", "fim_pre_token_id"),
    ("fim_suf", "fim_suf_token_id"), ("fim_mid", "fim_mid_token_id"), ("fim_pad", "fim_pad_token_id"),
    ("fim_rep", "fim_rep_token_id"), ("fim_sep", "fim_sep_token_id"), ("fim_pre", "prefix_token_id"),
    ("fim_suf", "suffix_token_id"), ("fim_mid", "middle_token_id"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """A checked vocabulary: `tokens[id]`, its attribute bits `attrs[id]`, and for SPM its `scores[id]`.

    `guessed` are the roles that no key names and llama.cpp has another model's token for.
    """

    kind: str
    pre: PreTokenizer | None
    tokens: list[str]
    ids: dict[str, int]
    attrs: npt.NDArray[np.uint8]
    scores: list[float]
    merges: dict[str, int]
    roles: dict[str, int]
    guessed: frozenset[str]
    eog: frozenset[int]
    add_bos: bool
    add_eos: bool
    add_space_prefix: bool

    def having(self, attrs: int) -> list[int]:
        """Ids of the tokens that have any of these attribute bits."""
        return [int(i) for i in np.flatnonzero(self.attrs & attrs)]


class _Keys:
    """Typed access to the keys of one file, with errors that name file and key."""

    def __init__(self, metadata: Mapping[str, Any], file: str) -> None:
        self.metadata = metadata
        self.file = file

    def error(self, key: str, reason: str, got: object = None, expected: object = None) -> BadInputError:
        shown = None if got is None else visible(str(got), 80)
        return BadInputError(reason, file=self.file, item=f"tokenizer.ggml.{key}", got=shown, expected=expected)

    def has(self, key: str) -> bool:
        return self.metadata.get(f"tokenizer.ggml.{key}") is not None

    def get(self, key: str, wanted: type | tuple[type, ...], what: str) -> Any:
        value = self.metadata.get(f"tokenizer.ggml.{key}")
        if value is None:
            return None
        if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
            raise self.error(key, "is of the wrong type", type(value).__name__, what)
        return value

    def strings(self, key: str) -> list[str]:
        value = self.get(key, (list, np.ndarray), "an array of strings")
        if value is None:
            raise self.error(key, "is missing")
        if isinstance(value, np.ndarray):
            if value.size:
                raise self.error(key, "is of the wrong type", f"an array of {value.dtype}", "an array of strings")
            return []
        return list(value)

    def numbers(self, key: str, n: int, kinds: str) -> npt.NDArray[Any] | None:
        value = self.get(key, np.ndarray, "an array of numbers")
        if value is None:
            return None
        if value.dtype.name not in kinds.split():
            raise self.error(key, "is of the wrong type", f"an array of {value.dtype}", f"an array of {kinds}")
        if len(value) < n:
            raise self.error(key, "is shorter than the list of tokens", len(value), n)
        return np.asarray(value[:n])


def read_vocabulary(metadata: Mapping[str, Any], file: str) -> Vocabulary:
    """Read and check the vocabulary of a model.

    Raises BadInputError, naming file and key, for missing or mistyped keys, ids out of range, duplicate tokens,
    broken merges, and models or pre-tokenizers that are not known.
    """
    keys = _Keys(metadata, file)
    kind, pre = _kind(keys)
    tokens = [token or f"[EMPTY_{i}]" for i, token in enumerate(keys.strings("tokens"))]
    if not tokens:
        raise keys.error("tokens", "is empty")
    ids = dict(zip(tokens, range(len(tokens)), strict=True))
    if len(ids) < len(tokens):
        first = next(i for i, token in enumerate(tokens) if ids[token] != i)
        raise keys.error("tokens", f"token {first} is there again as {ids[tokens[first]]}", tokens[first])
    attrs = _attributes(keys, tokens)
    roles = _roles(keys, kind, len(tokens))
    eog = _end_of_generation(ids, attrs, roles)
    _strip_attributes(metadata, ids, attrs)
    add_bos = keys.get("add_bos_token", bool, "a bool")
    add_eos = keys.get("add_eos_token", bool, "a bool")
    add_space = keys.get("add_space_prefix", bool, "a bool")
    return Vocabulary(
        kind=kind,
        pre=pre,
        tokens=tokens,
        ids=ids,
        attrs=attrs,
        scores=_scores(keys, len(tokens)) if kind == "spm" else [],
        merges=_merges(keys, pre) if pre is not None else {},
        roles=roles,
        guessed=frozenset(role for role in _DEFAULTS["bpe"] if kind == "bpe" and not keys.has(f"{role}_token_id")),
        eog=eog,
        add_bos=(pre is None or pre.add_bos) if add_bos is None or (pre is not None and pre.newline_runs) else add_bos,
        add_eos=bool(add_eos),
        add_space_prefix=(kind == "spm") if add_space is None else add_space,
    )


def _kind(keys: _Keys) -> tuple[str, PreTokenizer | None]:
    model = keys.get("model", str, "a string")
    if model is None:
        raise keys.error("model", "is missing", expected=" or ".join(_KINDS))
    if model not in _KINDS:
        raise keys.error("model", "this kind of tokenizer is not supported", model, " or ".join(_KINDS))
    if _KINDS[model] == "spm":
        return "spm", None
    name = "gemma4" if model == "gemma4" else keys.get("pre", str, "a string")
    name = name or "default"  # as llama.cpp takes a file from before there was such a key
    if name not in PRE_TOKENIZERS:
        raise keys.error("pre", "unknown pre-tokenizer", name, "one of " + ", ".join(sorted(PRE_TOKENIZERS)))
    return "bpe", PRE_TOKENIZERS[name]


def _attributes(keys: _Keys, tokens: list[str]) -> npt.NDArray[np.uint8]:
    types = keys.numbers("token_type", len(tokens), "int32")
    if types is None:
        return np.full(len(tokens), NORMAL, np.uint8)
    attrs = np.zeros(len(tokens), np.uint8)
    for number, attr in _TYPES.items():
        attrs[types == number] = attr
    for i in np.flatnonzero(attrs == BYTE):
        if not _BYTE_TOKEN.fullmatch(tokens[i]):
            raise keys.error("tokens", f"token {i} is of type byte", tokens[i], "<0x00> to <0xFF>")
    return attrs


def _scores(keys: _Keys, n: int) -> list[float]:
    scores = keys.numbers("scores", n, "float32 int32")
    if scores is None:
        raise keys.error("scores", "is missing")
    scores = scores.astype(np.float32)
    bad = np.flatnonzero(~np.isfinite(scores))
    if bad.size:
        raise keys.error("scores", f"the score of token {bad[0]} is not a finite number", scores[bad[0]])
    return [float(score) for score in scores]


def _merges(keys: _Keys, pre: PreTokenizer) -> dict[str, int]:
    """Rank of each merge by its text, two symbols with one space between; of equal ones the first counts."""
    if not pre.need_merges and "tokenizer.ggml.merges" not in keys.metadata:
        return {}
    merges = keys.strings("merges")
    for i, pair in enumerate(merges):
        at = pair.find(" ", 1)
        if at < 0 or at == len(pair) - 1:
            raise keys.error("merges", f"merge {i} is not two symbols with a space between", repr(pair))
    ranks = dict(zip(merges, range(len(merges)), strict=True))
    if len(ranks) < len(merges):
        ranks = {pair: i for i, pair in reversed(list(enumerate(merges)))}
    return ranks


def _roles(keys: _Keys, kind: str, n: int) -> dict[str, int]:
    roles = {role: i for role, i in _DEFAULTS[kind].items() if i < n}
    if kind == "bpe" and keys.metadata.get("tokenizer.ggml.pre") in _NO_DEFAULT_BOS:
        del roles["bos"]
    for role, key in _ID_KEYS:
        value = keys.get(key, int, "a token id")
        if value is None:
            continue
        if 0 <= value < n:
            roles[role] = value
        elif role != "pad":  # files exist whose padding token is one past the end; nothing here needs it
            raise keys.error(key, "the token is not in the vocabulary", value, f"0 to {n - 1}")
    return roles


def _present(ids: dict[str, int], texts: Iterable[str]) -> list[int]:
    return [ids[text] for text in texts if text in ids]


def _end_of_generation(ids: dict[str, int], attrs: npt.NDArray[np.uint8], roles: dict[str, int]) -> frozenset[int]:
    """All tokens that end a turn; turns tokens that are markup by their text into control tokens in `attrs`.

    Fills the roles that no key names. The rules and exceptions are llama.cpp's.
    """
    for role, texts in _BY_TEXT.items():
        found = _present(ids, texts)
        if role not in roles and found:
            roles[role] = found[0]
            attrs[found[0]] |= CONTROL
    ending = {roles[role] for role in ("fim_pad", "fim_rep", "fim_sep") if role in roles}
    for i in _present(ids, _END_OF_GENERATION):
        ending.add(i)
        attrs[i] |= CONTROL
    for i in _present(ids, _ALWAYS_SHOWN):
        attrs[i] = USER_DEFINED
    ending.update(roles[role] for role in ("eos", "eot", "eom") if role in roles)
    texts_ending = {text for text in (*_END_OF_GENERATION, "<|plamo:eos|>") if ids.get(text) in ending}
    if all(texts_ending & some for some in ({"<|end|>"}, {"<|call|>", "<|calls|>"}, {"<|return|>", "<|flush|>"})):
        ending.discard(ids["<|end|>"])  # with these there, it ends a message inside a turn
        attrs[ids["<|end|>"]] = USER_DEFINED
    if "</s>" in texts_ending and texts_ending & {"<|tool_response>", "<|plamo:eos|>"}:
        ending.discard(ids["</s>"])
        attrs[ids["</s>"]] = NORMAL
    return frozenset(ending)


def _strip_attributes(metadata: Mapping[str, Any], ids: dict[str, int], attrs: npt.NDArray[np.uint8]) -> None:
    """Special tokens that swallow the white space beside them: no key says so, llama.cpp goes by names."""
    name = str(metadata.get("general.name", "")).lower()
    pre = str(metadata.get("tokenizer.ggml.pre", ""))
    if any(part in pre for part in ("jina-v2-de", "jina-v2-es", "jina-v2-code")):
        swallowing = ["<mask>"]
    elif "phi-3" in name or "phi3" in name:
        attrs[(attrs & (CONTROL | USER_DEFINED | UNKNOWN)) != 0] |= RSTRIP
        for i in _present(ids, ["</s>"]):
            attrs[i] |= RSTRIP
        for i in _present(ids, ["<unk>", "<s>", "<|endoftext|>"]):
            attrs[i] &= 0xFF ^ RSTRIP
        return
    else:
        swallowing = ["[MASK]"] if "modern-bert" in name else []
    for i in _present(ids, swallowing):
        attrs[i] |= LSTRIP
