"""Text without special tokens -> ids: SentencePiece's and byte-level BPE's ways, both exact to llama.cpp."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Set
from itertools import chain

from localmoe.errors import BadInputError
from localmoe.text.merge import merge
from localmoe.text.pretokenizers import PreTokenizer, split
from localmoe.text.vocabulary import CONTROL, UNKNOWN, Vocabulary

Encode = Callable[[str, bool], list[int]]
"""(text, whether it starts the text or follows a special token) -> ids."""

SPACE_MARK = "\u2581"
_CACHED_LENGTH = 64  # a longer word is unlikely to come again
_CACHED_WORDS = 1 << 16

_SPM_CHUNKS = re.compile(f"{SPACE_MARK}+[^{SPACE_MARK}]*|[^{SPACE_MARK}]+")


def _byte_alphabet() -> dict[int, str]:
    """GPT-2's printable stand-in for every byte: itself where it is printable in Latin-1, else U+0100 and on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (byte for byte in range(256) if byte not in printable)
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}


BYTE_TO_CHAR = _byte_alphabet()
CHAR_TO_BYTE = {char: byte for byte, char in BYTE_TO_CHAR.items()}


def _plain_ids(vocabulary: Vocabulary) -> tuple[dict[str, int], set[str]]:
    """Ids that text may turn into, and the control and unknown tokens, which text must never spell."""
    ids, forbidden = dict(vocabulary.ids), {vocabulary.tokens[i] for i in vocabulary.having(CONTROL | UNKNOWN)}
    for token in forbidden:
        del ids[token]
    return ids, forbidden


class _Merger:
    """Merges that may pass through a token that text must never spell, as llama.cpp's do, and never end in one."""

    def __init__(self, ranks: Mapping[str, float], separator: str, forbidden: Set[str]) -> None:
        self._ranks = ranks
        self._separator = separator
        self._forbidden = forbidden
        self._without: dict[str, float] | None = None

    def symbols(self, text: str) -> list[str]:
        merged = merge(list(text), self._ranks, self._separator)
        if self._forbidden.isdisjoint(merged):
            return merged
        if self._without is None:
            separator, forbidden = self._separator, self._forbidden
            self._without = {
                pair: rank
                for pair, rank in self._ranks.items()
                if (pair[0] + pair[1:].replace(separator, "", 1) if separator else pair) not in forbidden
            }
        return merge(list(text), self._without, self._separator)


class _Words:
    """A bounded memory of the ids of words; the encoders differ only in what a word is."""

    def __init__(self, encode: Callable[[str], list[int]]) -> None:
        self.encode = encode
        self.known: dict[str, list[int]] = {}

    def ids(self, words: list[str]) -> list[int]:
        if len(self.known) > _CACHED_WORDS:
            self.known = {}
        known = self.known
        return list(chain.from_iterable([known.get(word) or self._learn(word) for word in words]))

    def _learn(self, word: str) -> list[int]:
        ids = self.encode(word)
        if len(word) <= _CACHED_LENGTH:
            self.known[word] = ids
        return ids


# --- SentencePiece ---------------------------------------------------------------------------------------------------


def spm_encoder(vocabulary: Vocabulary, file: str) -> Encode:
    """Merge characters by the score of the token they make; what makes none becomes byte tokens."""
    ids, forbidden = _plain_ids(vocabulary)
    costs = {token: -vocabulary.scores[i] for token, i in vocabulary.ids.items()}
    merger = _Merger(costs, "", forbidden)
    # Where no token has a space mark after another character, no merge crosses from a word to the next.
    whole_words = not any(SPACE_MARK in token.lstrip(SPACE_MARK) for token in costs)

    def byte_ids(symbol: str) -> list[int]:
        out = []
        for byte in symbol.encode():
            # byte tokens are of type byte; in files without types they are ordinary ones
            i = vocabulary.ids.get(f"<0x{byte:02X}>", ids.get(chr(byte)) if byte < 128 else None)
            if i is None:
                i = vocabulary.roles.get("unknown")
            if i is None:
                raise BadInputError("the vocabulary has no token", file=file, item=f"byte 0x{byte:02X}")
            out.append(i)
        return out

    def word_ids(word: str) -> list[int]:
        out: list[int] = []
        for symbol in merger.symbols(word):
            i = ids.get(symbol)
            if i is None:
                out += byte_ids(symbol)
            else:
                out.append(i)
        return out

    words = _Words(word_ids)

    def encode(text: str, first: bool) -> list[int]:
        prefix = SPACE_MARK if first and vocabulary.add_space_prefix else ""
        text = prefix + text.replace(" ", SPACE_MARK)
        return words.ids(_SPM_CHUNKS.findall(text) if whole_words else [text])

    return encode


# --- byte-level BPE --------------------------------------------------------------------------------------------------


def bpe_encoder(vocabulary: Vocabulary, pre: PreTokenizer) -> Encode:
    """Split into words, write their bytes as characters, and merge pairs by rank."""
    ids, forbidden = _plain_ids(vocabulary)
    merger = _Merger(vocabulary.merges, " ", forbidden)

    def unknown_ids(symbol: str) -> list[int]:
        """A symbol that is no token: its bytes' tokens, and nothing for a byte that has none (so does llama.cpp)."""
        texts = [chr(byte) for byte in symbol.encode() if byte < 128]
        if not pre.byte_level:
            texts = [f"<0x{byte:02X}>" for byte in symbol.encode()]
        found = (vocabulary.ids.get(text) for text in texts)
        return [i for i in found if i is not None]

    def word_ids(word: str) -> list[int]:
        text = word.encode().decode("latin-1").translate(BYTE_TO_CHAR) if pre.byte_level else word
        if pre.ignore_merges or (pre.newline_runs and not word.strip("\n")):
            i = ids.get(text)
            if i is not None:
                return [i]
        out: list[int] = []
        for symbol in merger.symbols(text):
            i = ids.get(symbol)
            if i is None:
                out += unknown_ids(symbol)
            else:
                out.append(i)
        return out

    words = _Words(word_ids)

    def encode(text: str, first: bool) -> list[int]:
        del first
        return words.ids(split(pre, text if pre.byte_level else text.replace(" ", SPACE_MARK)))

    return encode
