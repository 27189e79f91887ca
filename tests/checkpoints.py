"""Tiny Hugging Face checkpoints: config, tokenizer and safetensors files, written without torch or transformers.

`write_checkpoint(folder, **fields)` writes one; `checkpoint_weights(**fields)` gives the values that its tensors hold
before they are rounded to their dtype. Both take the fields of `Tiny`. The values are exact binary fractions of a
frozen generator, so that digests of what becomes of them can be recorded. CASES are those with recorded digests.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

SPACE = "\u2581"
SPECIALS = ("<unk>", "<s>", "</s>")
WORDS = ("the", "he", "in", "and", "moe", "expert", "token", "ing", "er", "on", "10")


@dataclass(frozen=True)
class Tiny:
    """A tiny checkpoint: `family` llama, mistral or mixtral; `layout` of the experts split (transformers 4) or packed.

    `dtype` is that of all tensors, `dtypes` overrides it for names that contain a key. `config` overrides keys of
    config.json (None removes one), written as transformers `version` does. `tokenizer` is bpe, spm or none; `texts`
    are further files, JSON where they are not strings.
    """

    family: str = "mixtral"
    layout: str = "split"
    version: int = 4
    n_layer: int = 2
    n_embd: int = 32
    n_ff: int = 64
    n_head: int = 4
    n_head_kv: int = 2
    head_dim: int | None = None
    n_expert: int = 4
    n_used: int = 2
    n_vocab: int | None = None
    tied: bool = False
    dtype: str = "F32"
    dtypes: Mapping[str, str] = field(default_factory=dict)
    shards: int = 1
    config: Mapping[str, Any] = field(default_factory=dict)
    tokenizer: str = "bpe"
    texts: Mapping[str, Any] = field(default_factory=dict)


def write_checkpoint(folder: Path, tiny: Tiny | None = None, **fields: Any) -> Path:
    """Write the checkpoint into `folder`, which is made, and return it."""
    tiny = replace(tiny or Tiny(), **fields)
    folder.mkdir(parents=True, exist_ok=True)
    texts: dict[str, Any] = {"config.json": config_json(tiny)}
    if tiny.tokenizer == "bpe":
        texts["tokenizer.json"] = bpe_tokenizer()
        texts["tokenizer_config.json"] = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|end|>"}
    elif tiny.tokenizer == "spm":
        (folder / "tokenizer.model").write_bytes(spm_model())
        texts["tokenizer_config.json"] = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True}
    texts |= tiny.texts
    for name, text in texts.items():
        (folder / name).write_bytes((text if isinstance(text, str) else json.dumps(text)).encode())
    tensors = {name: encode(dtype_of(name, tiny), x) for name, x in checkpoint_weights(tiny).items()}
    write_shards(folder, tensors, tiny.shards)
    return folder


def config_json(tiny: Tiny) -> dict[str, Any]:
    """config.json as transformers 4 or 5 writes it."""
    config: dict[str, Any] = {
        "architectures": [f"{tiny.family.capitalize()}ForCausalLM"],
        "model_type": tiny.family,
        "vocab_size": vocab_size(tiny),
        "hidden_size": tiny.n_embd,
        "intermediate_size": tiny.n_ff,
        "num_hidden_layers": tiny.n_layer,
        "num_attention_heads": tiny.n_head,
        "num_key_value_heads": tiny.n_head_kv,
        "max_position_embeddings": 256,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": tiny.tied,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    if tiny.family == "mixtral":
        config |= {"num_local_experts": tiny.n_expert, "num_experts_per_tok": tiny.n_used}
    if tiny.head_dim is not None:
        config["head_dim"] = tiny.head_dim
    if tiny.version == 4:
        config |= {"rope_theta": 10000.0, "torch_dtype": "float32", "transformers_version": "4.40.0"}
    else:
        config["rope_parameters"] = {"rope_theta": 10000.0, "rope_type": "default"}
        config |= {"dtype": "float32", "transformers_version": "5.23.0"}
    config |= tiny.config
    return {key: value for key, value in config.items() if value is not None}


def vocab_size(tiny: Tiny) -> int:
    """The embedding's rows: the tokenizer's size unless the field says otherwise."""
    if tiny.n_vocab is not None:
        return tiny.n_vocab
    return len(bpe_vocab()) + 1 if tiny.tokenizer == "bpe" else len(spm_pieces())


def checkpoint_weights(tiny: Tiny) -> dict[str, np.ndarray]:
    """name -> float32 values in the checkpoint's layout; both layouts hold the same numbers."""
    d, f, hd = tiny.n_embd, tiny.n_ff, tiny.head_dim or tiny.n_embd // tiny.n_head
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab_size(tiny), d), "model.norm.weight": (d,)}
    if not tiny.tied:
        shapes["lm_head.weight"] = (vocab_size(tiny), d)
    for i in range(tiny.n_layer):
        layer = f"model.layers.{i}"
        shapes |= {
            f"{layer}.input_layernorm.weight": (d,),
            f"{layer}.post_attention_layernorm.weight": (d,),
            f"{layer}.self_attn.q_proj.weight": (tiny.n_head * hd, d),
            f"{layer}.self_attn.k_proj.weight": (tiny.n_head_kv * hd, d),
            f"{layer}.self_attn.v_proj.weight": (tiny.n_head_kv * hd, d),
            f"{layer}.self_attn.o_proj.weight": (d, tiny.n_head * hd),
        }
        if tiny.family != "mixtral":
            shapes |= {f"{layer}.mlp.{k}_proj.weight": (f, d) for k in ("gate", "up")}
            shapes[f"{layer}.mlp.down_proj.weight"] = (d, f)
            continue
        moe = f"{layer}.block_sparse_moe"
        shapes[f"{moe}.gate.weight"] = (tiny.n_expert, d)
        for e in range(tiny.n_expert):
            shapes |= {f"{moe}.experts.{e}.{w}.weight": (d, f) if w == "w2" else (f, d) for w in ("w1", "w2", "w3")}
    weights = {name: _values(name, shape) for name, shape in shapes.items()}
    return packed(weights, tiny) if tiny.layout == "packed" else weights


def packed(weights: dict[str, np.ndarray], tiny: Tiny) -> dict[str, np.ndarray]:
    """The same weights in the layout of transformers 5 and mergekit."""
    out = {name: x for name, x in weights.items() if ".block_sparse_moe." not in name}
    for i in range(tiny.n_layer if tiny.family == "mixtral" else 0):
        old, new = f"model.layers.{i}.block_sparse_moe", f"model.layers.{i}.mlp"
        w1, w2, w3 = (
            np.stack([weights[f"{old}.experts.{e}.{w}.weight"] for e in range(tiny.n_expert)])
            for w in ("w1", "w2", "w3")
        )
        out[f"{new}.gate.weight"] = weights[f"{old}.gate.weight"]
        out[f"{new}.experts.gate_up_proj"] = np.concatenate([w1, w3], axis=1)
        out[f"{new}.experts.down_proj"] = w2
    return out


def _values(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """float32 in -0.25..0.25, around 1 for norms, from a generator that NumPy has frozen."""
    random = np.random.RandomState(zlib.crc32(name.encode()))
    values = (random.random_sample(shape) - 0.5) / 2
    return (values + (1 if len(shape) == 1 else 0)).astype(np.float32)


def dtype_of(name: str, tiny: Tiny) -> str:
    """The dtype of one tensor."""
    return next((dtype for part, dtype in tiny.dtypes.items() if part in name), tiny.dtype)


Encoded = tuple[str, tuple[int, ...], bytes]


def encode(dtype: str, x: np.ndarray) -> Encoded:
    """(dtype, shape, bytes) of a float32 array; BF16 is truncated."""
    if dtype == "BF16":
        return dtype, x.shape, (np.ascontiguousarray(x).view(np.uint32) >> 16).astype("<u2").tobytes()
    return dtype, x.shape, x.astype({"F32": "<f4", "F16": "<f2", "F64": "<f8"}[dtype]).tobytes()


def write_shards(folder: Path, tensors: dict[str, Encoded], n: int) -> None:
    """model.safetensors, or `n` shards with their index."""
    if n == 1:
        write_safetensors(folder / "model.safetensors", tensors)
        return
    names = list(tensors)
    weight_map = {}
    for i in range(n):
        file = f"model-{i + 1:05d}-of-{n:05d}.safetensors"
        part = names[i * len(names) // n : (i + 1) * len(names) // n]
        weight_map |= dict.fromkeys(part, file)
        write_safetensors(folder / file, {name: tensors[name] for name in part})
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def write_safetensors(path: Path, tensors: Mapping[str, Encoded]) -> None:
    """A valid safetensors file."""
    header, data = {}, b""
    for name, (dtype, shape, raw) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    write_raw_safetensors(path, json.dumps(header), data)


def write_raw_safetensors(path: Path, header: str, data: bytes, n_header: int | None = None) -> None:
    """A safetensors file with any header text and header length."""
    raw = header.encode()
    path.write_bytes(struct.pack("<Q", len(raw) if n_header is None else n_header) + raw + data)


def byte_characters() -> list[str]:
    """GPT-2's character for each byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    return [chr(b) if b in printable else chr(256 + others.index(b)) for b in range(256)]


def _merged(words: Iterable[str]) -> list[tuple[str, str]]:
    """Merges that build each word from its left."""
    merges: dict[tuple[str, str], None] = {}
    for word in words:
        for i in range(1, len(word)):
            merges[word[:i], word[i]] = None
    return list(merges)


def bpe_vocab() -> dict[str, int]:
    """token -> id of the byte-level vocabulary, without its special token."""
    tokens = dict.fromkeys([*byte_characters(), *(a + b for a, b in _merged(WORDS))])
    return {token: i for i, token in enumerate(tokens)}


def bpe_tokenizer(**fields: Any) -> dict[str, Any]:
    """A byte-level tokenizer.json with GPT-2's pre-tokenizer; `fields` replace its sections."""
    vocab = bpe_vocab()
    tokenizer = {
        "version": "1.0",
        "added_tokens": [added_token(len(vocab), "<|end|>")],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "vocab": vocab, "merges": [" ".join(pair) for pair in _merged(WORDS)]},
    }
    return tokenizer | fields


def added_token(token_id: int, content: str, special: bool = True) -> dict[str, Any]:
    """An entry of added_tokens."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": token_id, "content": content, **flags, "special": special}


def spm_pieces() -> list[tuple[str, float, int]]:
    """(piece, score, type) of the SentencePiece vocabulary: specials, bytes, words by merge rank, characters."""
    pieces = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3)]
    pieces += [(f"<0x{b:02X}>", 0.0, 6) for b in range(256)]
    words = dict.fromkeys(a + b for a, b in _merged((*(SPACE + word for word in WORDS), *WORDS)))
    pieces += [(word, -float(i), 1) for i, word in enumerate(words)]
    characters = dict.fromkeys(SPACE + "etaoinshrdlucmfwypvbgkxjqz.,10")
    return pieces + [(c, -float(len(words) + i), 1) for i, c in enumerate(characters)]


def spm_model() -> bytes:
    """The vocabulary as a SentencePiece ModelProto (sentencepiece_model.proto: pieces 1, trainer 2, normalizer 3)."""
    out = b""
    for piece, score, kind in spm_pieces():
        body = _proto_bytes(1, piece.encode()) + b"\x15" + struct.pack("<f", score) + b"\x18" + _varint(kind)
        out += _proto_bytes(1, body)
    trainer = b"\x18\x02" + b"\x98\x02\x01"  # model_type (3) = BPE, byte_fallback (35) = true
    normalizer = _proto_bytes(1, b"identity") + b"\x18\x01" + b"\x20\x00" + b"\x28\x01"
    return out + _proto_bytes(2, trainer) + _proto_bytes(3, normalizer)


def _varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def _proto_bytes(number: int, value: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(value)) + value


ROPE_LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
CHAT = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
_TEMPLATE = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "<|end|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
    "special_tokens": {"<|end|>": {"id": "<|end|>", "ids": [len(bpe_vocab())], "tokens": ["<|end|>"]}},
}
_CARD = "---\nlicense: apache-2.0\nlanguage:\n- en\ntags: [moe]\nbase_model: mistralai/Mistral-7B-v0.1\n---\nText.\n"

# Folder name -> checkpoint; data/convert.json holds what llama.cpp's converter makes of each.
CASES: dict[str, Tiny] = {
    "tiny-mixtral-8": Tiny(n_expert=8, config={"sliding_window": None}),
    "tiny-mixtral-5-bf16": Tiny(n_expert=5, dtype="BF16", version=5, shards=3, n_layer=11, n_embd=16, n_head=2),
    "tiny-mixtral-4-tied": Tiny(n_used=1, tied=True, dtype="F16", version=5, n_ff=48),
    "tiny-mixtral-mixed": Tiny(dtype="BF16", dtypes={"experts.1.": "F32", "layernorm": "F32", "q_proj": "F16"}),
    "Tiny-Mixtral-4x1B-Instruct-v0.1": Tiny(
        tokenizer="spm",
        texts={
            "README.md": _CARD,
            "generation_config.json": {"temperature": 0.7, "top_k": 30, "eos_token_id": [2, 5]},
            "tokenizer_config.json": {
                "tokenizer_class": "LlamaTokenizer",
                "add_bos_token": True,
                "chat_template": CHAT,
            },
        },
    ),
    "tiny-llama-linear": Tiny(
        "llama", config={"rope_scaling": {"type": "linear", "factor": 2.0}}, tokenizer="spm", n_vocab=400, tied=True
    ),
    "tiny-llama-llama3": Tiny(
        "llama",
        version=5,
        dtype="BF16",
        config={"rope_parameters": {**ROPE_LLAMA3, "rope_theta": 500000.0, "original_max_position_embeddings": 64}},
        texts={"tokenizer.json": bpe_tokenizer(post_processor=_TEMPLATE), "chat_template.jinja": CHAT},
    ),
    "tiny-llama-yarn": Tiny(
        "llama", config={"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "beta_fast": 32.0}}, dtype="F16"
    ),
    "tiny-mistral": Tiny("mistral", head_dim=12, n_embd=48, shards=2, config={"rms_norm_eps": None}),
}
