"""Text to token ids and back, for SentencePiece ("llama") and byte-level BPE ("gpt2") vocabularies of a GGUF.

Both directions agree with llama.cpp's, token by token. Special tokens are parsed only when asked for: text that
spells one stays text.
"""

from __future__ import annotations

import codecs
import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from localmoe.errors import BadInputError, UsageError
from localmoe.text.encoders import CHAR_TO_BYTE, SPACE_MARK, bpe_encoder, spm_encoder
from localmoe.text.special import Fragment, partition, special_tokens
from localmoe.text.vocabulary import BYTE, CONTROL, NORMAL, UNKNOWN, USER_DEFINED, Vocabulary, read_vocabulary

if TYPE_CHECKING:
    from localmoe.gguf_file import GGUFFile

__all__ = ["StreamDecoder", "Tokenizer", "load"]


def load(model: str | os.PathLike[str] | GGUFFile) -> Tokenizer:
    """The tokenizer of a GGUF file, given its path or the open file; the vocabulary alone is enough.

    Raises FileError or BadInputError.
    """
    from localmoe.gguf_file import GGUFFile, open_gguf

    if isinstance(model, GGUFFile):
        return Tokenizer(read_vocabulary(model.metadata, str(model.path)), str(model.path))
    with open_gguf(model) as opened:
        return load(opened)


class Tokenizer:
    """A vocabulary with its rules; safe to use from several threads.

    `bos`, `eos`, `unk`, `pad` are ids or None; `eog` holds every token that ends a turn; `add_bos` and `add_eos` tell
    what the model wants around a prompt; `kind` is "spm" or "bpe".
    """

    def __init__(self, vocabulary: Vocabulary, file: str) -> None:
        self.file = file
        self.kind = vocabulary.kind
        self.n_vocab = len(vocabulary.tokens)
        self.bos = vocabulary.roles.get("bos")
        self.eos = vocabulary.roles.get("eos")
        self.unk = vocabulary.roles.get("unknown")
        self.pad = vocabulary.roles.get("pad")
        self.eog = vocabulary.eog
        self.add_bos = vocabulary.add_bos
        self.add_eos = vocabulary.add_eos
        self.add_space_prefix = vocabulary.add_space_prefix
        self._vocabulary = vocabulary
        self._byte_level = vocabulary.pre is not None and vocabulary.pre.byte_level
        self._specials = special_tokens(vocabulary)
        pre = vocabulary.pre
        self._encode = spm_encoder(vocabulary, file) if pre is None else bpe_encoder(vocabulary, pre)
        self._pieces: dict[int, bytes] = {}

    @property
    def own_bos(self) -> int | None:
        """`bos` if the model itself has one: llama.cpp takes token 11 where a byte-level BPE names none."""
        return None if "bos" in self._vocabulary.guessed else self.bos

    @property
    def own_eos(self) -> int | None:
        """`eos` likewise."""
        return None if "eos" in self._vocabulary.guessed else self.eos

    # --- text -> ids ---

    def encode(
        self, text: str, *, add_bos: bool | None = None, parse_special: bool = False, space_prefix: bool | None = True
    ) -> list[int]:
        """Token ids of `text`.

        `add_bos`: None or True put the model's own BOS (and EOS) around the text where the model asks for them, as
        llama.cpp's `add_special` does; False adds nothing. `parse_special` turns the text of control tokens into
        them. Where a SentencePiece vocabulary asks for a space before a text, `space_prefix` False leaves it out, and
        None does where there is one already. Raises UsageError for text with lone surrogates.
        """
        ids = self._fragments_ids(self._partition(text, parse_special), space_prefix if self.kind == "spm" else True)
        return ids if add_bos is False else self.wrap(ids)

    def wrap(self, ids: list[int]) -> list[int]:
        """`ids` with the BOS before and the EOS after it that the model asks for."""
        if self.add_bos:
            ids = [self._required("bos", self.bos), *ids]
        if self.add_eos:
            ids = [*ids, self._required("eos", self.eos)]
        return ids

    def encode_guarded(self, text: str, guards: Mapping[int, str]) -> list[int]:
        """Token ids of `text` with special tokens parsed, except where they would need a guarded character.

        `guards` maps the code points of stand-ins that occur in `text` to the characters they stand for; no control
        token begins or continues at a stand-in. Nothing is added around the text.
        """
        fragments: list[Fragment] = []
        for fragment in self._partition(text, True):
            if isinstance(fragment, int):
                fragments.append(fragment)
            else:  # tokens that are matched in any text may be in what was guarded
                fragments += partition(fragment.translate(guards), self._specials, False)
        return self._fragments_ids(fragments)

    def control_texts(self) -> list[str]:
        """The texts that stand for a control token when special tokens are parsed, longest first."""
        return [special.text for special in self._specials if special.control]

    def id_of(self, text: str) -> int | None:
        """The id of the token with exactly this text in the vocabulary, if there is one."""
        return self._vocabulary.ids.get(text)

    def _partition(self, text: str, parse_special: bool) -> list[Fragment]:
        if not isinstance(text, str):
            raise UsageError("is not text", got=type(text).__name__, expected="a str")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            code = f"U+{ord(text[error.start]):04X} at character {error.start}"
            raise UsageError("the text is not valid Unicode: a lone surrogate", got=code) from None
        return partition(text, self._specials, parse_special)

    def _fragments_ids(self, fragments: list[Fragment], space_prefix: bool | None = True) -> list[int]:
        ids: list[int] = []
        first = True
        for fragment in fragments:
            if isinstance(fragment, int):
                ids.append(fragment)
                first = True
            else:
                wanted = not fragment.startswith(" ") if space_prefix is None else space_prefix
                ids += self._encode(fragment, first and wanted)
                first = False
        return ids

    def _required(self, role: str, i: int | None) -> int:
        if i is None:
            raise BadInputError(
                "the model asks for this token around a prompt and does not name it",
                file=self.file,
                item=f"tokenizer.ggml.{role}_token_id",
            )
        return i

    # --- ids -> text ---

    def token(self, i: int) -> bytes:
        """The bytes a token stands for; a control token's is its own text. Raises UsageError for an unknown id."""
        piece = self._pieces.get(i)
        if piece is None:
            if not 0 <= i < self.n_vocab:
                raise UsageError("no such token", got=i, expected=f"0 to {self.n_vocab - 1}")
            piece = self._pieces[i] = self._piece(i)
        return piece

    def is_control(self, i: int) -> bool:
        """Whether a token is markup (control or unknown) and so not part of a text."""
        if not 0 <= i < self.n_vocab:
            raise UsageError("no such token", got=i, expected=f"0 to {self.n_vocab - 1}")
        return bool(self._vocabulary.attrs[i] & (CONTROL | UNKNOWN))

    def decode(self, ids: Iterable[int], *, special: bool = False) -> str:
        """The text of `ids`: without `special` exactly what was encoded, with it control tokens are shown too.

        The space that SPM puts before a text is taken away again. Bytes that are not UTF-8 become U+FFFD.
        """
        decoder = StreamDecoder(self, special=special, strip_space=True)
        return "".join([*map(decoder.push, ids), decoder.flush()])

    def _piece(self, i: int) -> bytes:
        text, attr = self._vocabulary.tokens[i], int(self._vocabulary.attrs[i])
        if attr & (CONTROL | UNKNOWN | USER_DEFINED):
            return text.encode()
        if attr & NORMAL:
            return _bytes_of(text) if self._byte_level else text.replace(SPACE_MARK, " ").encode()
        return bytes([int(text[3:5], 16)]) if attr & BYTE else b""


def _bytes_of(text: str) -> bytes:
    """The bytes that a byte-level token's characters stand for; others are shown as llama.cpp shows them."""
    try:
        return bytes([CHAR_TO_BYTE[char] for char in text])
    except KeyError:
        known = {char: bytes([byte]) for char, byte in CHAR_TO_BYTE.items()}
        return b"".join(known.get(char) or f"[UNK_BYTE_0x{char.encode().hex()}{text}]".encode() for char in text)


class StreamDecoder:
    """Text from one token after another, never half a character.

    Bytes that may still become a character are held back; U+FFFD comes only once they cannot. `special` shows
    control tokens; `strip_space` takes away the space an SPM vocabulary puts before a text.
    """

    def __init__(self, tokenizer: Tokenizer, *, special: bool = False, strip_space: bool = False) -> None:
        self._tokenizer = tokenizer
        self._special = special
        self._strip = strip_space and tokenizer.add_space_prefix
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, i: int) -> str:
        """The text that token `i` completes, "" while a character is still open."""
        piece = self._tokenizer.token(i)
        if not self._special and self._tokenizer.is_control(i):
            return ""
        if self._strip:
            self._strip = False
            piece = piece.removeprefix(b" ")
        return self._utf8.decode(piece)

    def flush(self) -> str:
        """What is left at the end: U+FFFD for an unfinished character."""
        return self._utf8.decode(b"", final=True)
