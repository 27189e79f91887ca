"""Models whose headers lie, thousands of ways: whoever reads one gets an error of the project's, or a model.

Every case is a small valid file in which bytes or values of the metadata are replaced, from a fixed seed.
"""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path

import pytest

from localmoe.errors import BadInputError, LocalMoeError
from localmoe.gguf_file import open_gguf
from localmoe.model.config import ModelConfig
from localmoe.model.inspect import describe
from localmoe.model.weights import load_weights
from localmoe.text import tokenizer
from localmoe.text.chat_template import ChatTemplate
from tests.tiny import write_tiny

N_CASES = 400
NUMBERS = (0, 1, 2, 255, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
TEXTS = (b"", b"llama", b"gpt2", b"yarn", b"\xff", b"\x1b[31m", b"x" * 300, b"{{ 1 / 0 }}", b"\0")
FIXED = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
STRING, ARRAY = 8, 9
ALIGNMENT = 32


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def value(rng: random.Random) -> bytes:
    """A value of any type with its type in front, some of types that there are not, some longer than they say."""
    kind = rng.choice([*FIXED, STRING, STRING, ARRAY, ARRAY, 13])
    if kind == STRING:
        return struct.pack("<I", kind) + text(rng.choice(TEXTS))
    if kind != ARRAY:
        return struct.pack("<I", kind) + struct.pack("<Q", rng.choice(NUMBERS))[: FIXED.get(kind, 8)]
    element, count = rng.choice([*FIXED, STRING, ARRAY, 99]), rng.choice([0, 1, 3, 300, rng.choice(NUMBERS)])
    held = min(count, 300)
    items = b"".join(text(rng.choice(TEXTS)) for _ in range(held)) if element == STRING else None
    if items is None:
        items = rng.randbytes(held * FIXED.get(element, 4))
    return struct.pack("<IIQ", kind, element, count) + items


class Header:
    """The keys of a valid file apart from each other, its tensors' entries, and their data."""

    def __init__(self, data: bytes) -> None:
        self.n_tensors, n_keys = struct.unpack_from("<QQ", data, 8)
        self.data, self.pos = data, 24
        self.keys: list[tuple[bytes, bytes]] = []
        for _ in range(n_keys):
            start = self.pos
            self._skip(STRING)
            name, at = data[start : self.pos], self.pos
            self.pos += 4
            self._skip(struct.unpack_from("<I", data, at)[0])
            self.keys.append((name, data[at : self.pos]))
        start = self.pos
        for _ in range(self.n_tensors):
            self._skip(STRING)
            self.pos += 4 + 8 * struct.unpack_from("<I", data, self.pos)[0] + 12
        self.entries, self.end = data[start : self.pos], self.pos
        self.body = data[-(-self.pos // ALIGNMENT) * ALIGNMENT :]

    def _skip(self, kind: int) -> None:
        if kind == STRING:
            self.pos += 8 + struct.unpack_from("<Q", self.data, self.pos)[0]
        elif kind == ARRAY:
            element, count = struct.unpack_from("<IQ", self.data, self.pos)
            self.pos += 12
            for _ in range(count):
                self._skip(element)
        else:
            self.pos += FIXED[kind]

    def lying(self, rng: random.Random) -> bytes:
        """One or two values replaced, at times a key left out."""
        keys = list(self.keys)
        for _ in range(rng.choice([1, 1, 2])):
            i = rng.randrange(len(keys))
            name, held = keys[i]
            if rng.random() < 0.1:
                del keys[i]
                continue
            kept = struct.unpack_from("<I", held)[0]
            if kept in FIXED and rng.random() < 0.5:  # the right type, a wrong number
                keys[i] = name, held[:4] + struct.pack("<Q", rng.choice(NUMBERS))[: FIXED[kept]]
            else:
                keys[i] = name, value(rng)
        head = b"GGUF" + struct.pack("<IQQ", 3, self.n_tensors, len(keys))
        head += b"".join(name + held for name, held in keys) + self.entries
        return head + bytes(-len(head) % ALIGNMENT) + self.body

    def damaged(self, rng: random.Random) -> bytes:
        """Some bytes of the header replaced, or the file cut."""
        data = bytearray(self.data)
        for _ in range(rng.choice([1, 2, 8])):
            data[rng.randrange(4, self.end)] = rng.choice([0, 1, 128, 255, rng.randrange(256)])
        return bytes(data[: rng.randrange(len(data))] if rng.random() < 0.2 else data)


@pytest.mark.parametrize("vocab", ["spm", "bpe"])
def test_every_reader_gives_an_error_of_the_projects_or_a_result(tmp_path: Path, vocab: str) -> None:
    source, path, rng = tmp_path / "good.gguf", tmp_path / "lying.gguf", random.Random(vocab)
    header = Header(write_tiny(source, n_layer=1, vocab=vocab).read_bytes())
    refused: list[LocalMoeError] = []
    for _ in range(N_CASES):
        path.write_bytes(header.lying(rng) if rng.random() < 0.7 else header.damaged(rng))
        try:
            json.dumps(describe(path, lambda gguf: tokenizer.load(gguf)), allow_nan=False)
            with open_gguf(path) as gguf:
                load_weights(gguf, ModelConfig.from_metadata(gguf))
                tok = tokenizer.load(gguf)
                tok.decode(tok.encode("the hello <s> é 12"))
                template = ChatTemplate.from_gguf(gguf, tok)
                if template is not None:
                    template.encode(tok, [{"role": "user", "content": "hello"}])
        except LocalMoeError as error:
            refused.append(error)
    assert 0 < len(refused) < N_CASES
    assert {type(error) for error in refused} == {BadInputError}
    assert all(str(error).startswith(f"{path}: ") and str(error).isprintable() for error in refused)
