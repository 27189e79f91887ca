"""Small vocabularies whose tokens can be worked out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from localmoe.text.encoders import BYTE_TO_CHAR
from localmoe.text.tokenizer import Tokenizer
from localmoe.text.vocabulary import read_vocabulary

VOCAB_DIR = Path(__file__).parents[2].parent / "shared" / "data" / "vocab"

CONTROLS = ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]
MERGES = ["a b", "ab c", "Ġ ab", "l l"]


def bpe_metadata(**changes: Any) -> dict[str, Any]:
    """Bytes are ids 0 to 255, then `ab abc Ġab ll` as 256 to 259, `<think>` (user-defined), three control tokens."""
    tokens = [BYTE_TO_CHAR[byte] for byte in range(256)] + ["ab", "abc", "Ġab", "ll", "<think>", *CONTROLS]
    types = np.array([1] * 260 + [4] + [3] * len(CONTROLS), np.int32)
    metadata = {
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2", "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types, "tokenizer.ggml.merges": MERGES, "tokenizer.ggml.eos_token_id": 262,
        "tokenizer.ggml.bos_token_id": 263,
    }  # fmt: skip
    return _changed(metadata, changes)


def spm_metadata(**changes: Any) -> dict[str, Any]:
    """`<unk> <s> </s>`, 256 byte tokens (3 to 258), then pieces with their scores from 259 on."""
    pieces = {"▁": -1.0, "a": -2.0, "b": -3.0, "ab": -4.0, "▁a": -5.0, "▁ab": -6.0, "▁▁": -7.0, "é": -8.0}
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    metadata = {
        "tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": np.array([0.0] * 259 + list(pieces.values()), np.float32),
        "tokenizer.ggml.token_type": np.array([2, 3, 3] + [6] * 256 + [1] * len(pieces), np.int32),
    }  # fmt: skip
    return _changed(metadata, changes)


def _changed(metadata: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    for key, value in changes.items():
        metadata[f"tokenizer.ggml.{key}"] = value
    return {key: value for key, value in metadata.items() if value is not None}


def make(metadata: dict[str, Any]) -> Tokenizer:
    return Tokenizer(read_vocabulary(metadata, "small.gguf"), "small.gguf")


def write(path: Path, metadata: dict[str, Any]) -> Path:
    """The vocabulary as a GGUF file without tensors."""
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    for key, value in metadata.items():
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, np.ndarray):
            kind = gguf.GGUFValueType.FLOAT32 if value.dtype == np.float32 else gguf.GGUFValueType.INT32
            writer.add_key_value(key, value.tolist(), gguf.GGUFValueType.ARRAY, kind)
        else:
            writer.add_array(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
