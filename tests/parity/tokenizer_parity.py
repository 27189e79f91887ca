"""Compare the tokenizer with llama.cpp's on random Unicode, every pre-tokenizer, and both directions.

    python tests/parity/tokenizer_parity.py [VOCAB.gguf ...] [--cases N] [--seed S] [--pre]

Without vocabularies, those of ../shared/data/vocab. Where llama-cpp-python is not installed the script starts itself
again with the Python named by LLAMA_PYTHON, which then also sees this environment's packages. With `--pre` each
byte-level vocabulary is also tried under every other pre-tokenizer's name, in a copy that differs in that key alone.
Prints one line a vocabulary; exits 1 on a difference.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import os
import random
import sys
import sysconfig
import tempfile
import unicodedata
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
if importlib.util.find_spec("llama_cpp") is None:
    packages = os.pathsep.join((str(ROOT), sysconfig.get_paths()["purelib"]))
    command = [os.environ["LLAMA_PYTHON"], *sys.argv]
    os.execve(command[0], command, {**os.environ, "PYTHONPATH": packages})

import llama_cpp

from localmoe.gguf_file import open_gguf
from localmoe.text import tokenizer
from localmoe.text.pretokenizers import PRE_TOKENIZERS

SCRIPTS = [
    (0x20, 0x7F), (0, 0x20), (0x80, 0x250), (0x300, 0x370), (0x370, 0x600), (0x600, 0x700), (0x900, 0xE80),
    (0x1100, 0x1200), (0x2000, 0x2070), (0x2190, 0x2C00), (0x3000, 0x3100), (0x4E00, 0xA000), (0xAC00, 0xD7A4),
    (0xE000, 0xE010), (0xFB00, 0x10000), (0x10400, 0x10500), (0x1D400, 0x1D800), (0x1F1E6, 0x1F200),
    (0x1F300, 0x1FB00), (0x20000, 0x20100), (0x2EBF0, 0x2EC00), (0xE0000, 0xE0200),
]  # fmt: skip
SNIPPETS = [
    " ", "  ", "   ", "\n", "\r\n", "\n\n", "\t", "\x0b", "\x0c", "\x85", "\xa0", "\u3000", "\u2009",
    "\0",
    "'s", "'LL",
    "'Re", "'", "\u2019t", "1", "12", "123", "1234567", "٣٤", "½", "Ⅷ", "🏳️‍🌈", "👩‍👩‍👧‍👦",
    "🇨🇭", "e\u0301", "ß", "İ", "K",
    "the", " The", "hello world", " x_y", "def f(x):", "==", "...", " !", " ,", "</s>", "<s>", "<|im_end|>", "<unk>",
    "<|endoftext|>", "▁", "▁▁", "日本語", "안녕", "ไทย", "हिन्दी", "العربية", "AbC", "abC", "ABc", "éÉ",
    "ǅ", "ʰ", "_", "-",
    "<0x0A>", "$", "€", "/", "//", "IMGIMGABZ", "<sentinel:3>", "\ufeff", "\ufffd",
]  # fmt: skip


def random_text(rng: random.Random, extra: list[str]) -> str:
    """A few to a few dozen snippets, runs and characters of one or several scripts."""
    parts = []
    for _ in range(rng.choice([1, 2, 3, 5, 8, 13, 30])):
        choice = rng.random()
        if choice < 0.45:
            parts.append(rng.choice(SNIPPETS))
        elif choice < 0.55:
            parts.append(rng.choice(SNIPPETS) * rng.randint(1, 20))
        elif choice < 0.9:
            low, high = rng.choice(SCRIPTS)
            parts.append("".join(chr(rng.randrange(low, high)) for _ in range(rng.randint(1, 8))))
        elif choice < 0.95 and extra:
            parts.append(rng.choice(extra))
        else:
            code = rng.randrange(0x110000)
            parts.append(chr(code) if not 0xD800 <= code < 0xE000 else " ")
    return "".join(parts)


class Llama:
    """llama.cpp's tokenizer of one vocabulary."""

    def __init__(self, path: Path) -> None:
        params = llama_cpp.llama_model_default_params()
        params.vocab_only = True
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
        if not self.model:
            raise SystemExit(f"llama.cpp does not load {path}")
        self.vocab = llama_cpp.llama_model_get_vocab(self.model)

    def encode(self, text: str, add_special: bool, parse_special: bool) -> list[int]:
        data = text.encode()
        room = len(data) + 16
        ids = (llama_cpp.llama_token * room)()
        n = llama_cpp.llama_tokenize(self.vocab, data, len(data), ids, room, add_special, parse_special)
        return list(ids[:n])

    def piece(self, i: int) -> bytes:
        room = ctypes.create_string_buffer(1024)
        n = llama_cpp.llama_token_to_piece(self.vocab, i, room, 1024, 0, True)
        return room.raw[:n]

    def decode(self, ids: list[int]) -> bytes:
        array = (llama_cpp.llama_token * len(ids))(*ids)
        room = ctypes.create_string_buffer(1 << 16)
        n = llama_cpp.llama_detokenize(self.vocab, array, len(ids), room, 1 << 16, False, True)
        return room.raw[:n]

    def close(self) -> None:
        llama_cpp.llama_model_free(self.model)


def compare(path: Path, cases: int, seed: int) -> int:
    """Number of differences between both tokenizers on one file; the first few are printed."""
    mine, theirs = tokenizer.load(path), Llama(path)
    rng = random.Random(seed)
    tidies = mine_tidies(path)
    specials = [mine.token(i).decode() for i in range(mine.n_vocab) if mine.is_control(i)][:200]
    differences = 0
    for _ in range(cases):
        text = random_text(rng, specials)
        add, parse = rng.random() < 0.3, rng.random() < 0.4
        got, wanted = mine.encode(text, add_bos=add, parse_special=parse), theirs.encode(text, add, parse)
        bad = got != wanted
        if not bad and not tidies:
            bad = mine.decode(got, special=True) != theirs.decode(wanted).decode("utf-8", "replace")
        if not bad and not parse and theirs.decode(wanted) == text.encode():  # a vocabulary may lack some bytes
            bad = mine.decode(got) != text
        if bad:
            differences += 1
            if differences <= 3:
                print(f"  {text!r}\n    got {got[:40]}\n    not {wanted[:40]}", file=sys.stderr)
    differences += sum(mine.token(i) != theirs.piece(i) for i in range(mine.n_vocab))
    ends = {i for i in range(mine.n_vocab) if llama_cpp.llama_vocab_is_eog(theirs.vocab, i)}
    if ends != mine.eog:
        differences += 1
        print(f"  end-of-generation tokens: {sorted(mine.eog)}, llama.cpp: {sorted(ends)}", file=sys.stderr)
    theirs.close()
    return differences


def mine_tidies(path: Path) -> bool:
    """Whether llama.cpp would tidy spaces while detokenizing: that is not the inverse of tokenizing."""
    with open_gguf(path) as gguf:
        pre = PRE_TOKENIZERS.get(gguf.metadata.get("tokenizer.ggml.pre", "default"))
        return gguf.metadata["tokenizer.ggml.model"] != "llama" and (pre is None or pre.clean_spaces)


def renamed(path: Path, folder: Path) -> Iterator[tuple[str, Path]]:
    """Copies of a byte-level vocabulary under every name of a pre-tokenizer."""
    import gguf

    with open_gguf(path) as source:
        if source.metadata["tokenizer.ggml.model"] != "gpt2":
            return
        for name in PRE_TOKENIZERS:
            copy = folder / f"{name}.gguf"
            writer = gguf.GGUFWriter(copy, "llama")
            for key, value in source.metadata.items():
                kind, element = source.metadata_types[key]
                if key in ("general.architecture", "tokenizer.ggml.pre"):
                    continue
                listed = list(value) if element is not None else value
                writer.add_key_value(key, [v.item() if hasattr(v, "item") else v for v in listed]
                                     if element is not None else listed, kind, element)  # fmt: skip
            writer.add_tokenizer_pre(name)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.close()
            yield name, copy
            copy.unlink()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("vocab", nargs="*", type=Path)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--pre", action="store_true")
    args = parser.parse_args()
    vocabularies = args.vocab or sorted((ROOT.parent / "shared" / "data" / "vocab").glob("*.gguf"))
    if not vocabularies:
        print("skipped: no vocabulary was named, and ../shared/data/vocab is not there")
    silent = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(silent, ctypes.c_void_p(0))
    print(f"Unicode {unicodedata.unidata_version} in Python, llama-cpp-python {llama_cpp.__version__}")
    total = 0
    for path in vocabularies:
        total += (n := compare(path, args.cases, args.seed))
        print(f"{path.name}: {args.cases} texts, {n} differences", flush=True)
        if args.pre:
            with tempfile.TemporaryDirectory() as folder:
                for name, copy in renamed(path, Path(folder)):
                    total += (n := compare(copy, args.cases // 5, args.seed))
                    print(f"{path.name} as {name}: {args.cases // 5} texts, {n} differences", flush=True)
    return 1 if total else 0


if __name__ == "__main__":
    sys.exit(main())
