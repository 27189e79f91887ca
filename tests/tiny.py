"""KB-sized GGUF models with random weights and a small real vocabulary, for tests.

`write_tiny(path, **fields)` writes one and `tiny_weights(**fields)` gives the same weights as float32 arrays by GGUF
name, so that a reference can be computed; both take the fields of `Tiny`. Every tensor draws from its own generator,
seeded by `seed` and its name: changing one field leaves the other tensors' values alone.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType, GGUFWriter

U32, F32, STR, BOOL, ARR = (
    GGUFValueType.UINT32, GGUFValueType.FLOAT32, GGUFValueType.STRING, GGUFValueType.BOOL, GGUFValueType.ARRAY,
)  # fmt: skip
Meta = tuple[Any, GGUFValueType, GGUFValueType | None]

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
WORDS = ("the", "and", "of", "is", "in", "to", "it", "he", "one", "two", "red", "sun", "day", "moe", "expert", "hello")
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Tiny:
    """A tiny model: `n_expert` 0 is dense; `n_vocab` None is the vocabulary's own size (300 without one).

    `type` is a GGML type's name for all matrices but the router, `types` overrides it for names that contain a key
    ({"ffn_down": "Q6_K"}). K-quants need `n_embd` and `n_ff` (and heads x head size) to be multiples of 256.
    `favoured` makes that expert win every token of every layer. `rope_freqs` is written as rope_freqs.weight.
    """

    n_layer: int = 2
    n_embd: int = 64
    n_head: int = 4
    n_head_kv: int = 2
    n_embd_head: int | None = None
    n_ff: int = 96
    n_expert: int = 8
    n_expert_used: int = 2
    n_vocab: int | None = None
    n_ctx_train: int = 512
    rms_eps: float = 1e-5
    rope_freq_base: float = 10000.0
    type: str = "F32"
    types: Mapping[str, str] | tuple[tuple[str, str], ...] = ()
    tied: bool = False
    seed: int = 0
    vocab: str | None = "spm"
    favoured: int | None = None
    rope_freqs: tuple[float, ...] | None = None

    @property
    def head(self) -> int:
        return self.n_embd_head or self.n_embd // self.n_head

    @property
    def vocab_size(self) -> int:
        return self.n_vocab or len(vocabulary(self.vocab)[0]) or 300


def spm_vocabulary() -> tuple[list[str], list[float], list[int]]:
    """Tokens, scores and types of a SentencePiece vocabulary: 3 specials, 256 bytes, then pieces.

    Every piece of n characters is joined from the one of n - 1 characters before it, so pair merges reach all words;
    an earlier piece scores higher.
    """
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    types = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256]
    scores = [0.0] * len(tokens)
    pieces: dict[str, None] = {}
    for word in WORDS:
        for start in ("▁" + word, word):
            pieces.update(dict.fromkeys(start[:n] for n in range(2, len(start) + 1)))
    letters = ["▁", *"etaoinshrdlucmfwypvbgkjqxzTHEAI0123456789.,!?'-\n:"]
    for rank, piece in enumerate([*pieces, *letters]):
        tokens.append(piece)
        types.append(NORMAL)
        scores.append(-1.0 - rank)
    return tokens, scores, types


def byte_characters() -> list[str]:
    """GPT-2's printable character for each byte (Radford et al. 2019, encoder.py)."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    spare = iter(range(256, 512))
    return [chr(byte if byte in printable else next(spare)) for byte in range(256)]


def bpe_vocabulary() -> tuple[list[str], list[str], list[int]]:
    """Tokens, merges and types of a byte-level BPE vocabulary: 256 bytes, merged words, 3 specials at the end."""
    tokens = byte_characters()
    merges: dict[str, None] = {}
    for word in WORDS:
        for start in ("Ġ" + word, word):
            merges.update(dict.fromkeys(f"{start[:n]} {start[n]}" for n in range(1, len(start))))
    tokens += [merge.replace(" ", "") for merge in merges]
    types = [NORMAL] * len(tokens) + [CONTROL] * 3
    return [*tokens, "<|endoftext|>", "<|im_start|>", "<|im_end|>"], list(merges), types


def vocabulary(kind: str | None) -> tuple[list[str], list[Any], list[int]]:
    """Tokens, scores (spm) or merges (bpe), types."""
    table = {"spm": spm_vocabulary, "bpe": bpe_vocabulary, None: lambda: ([], [], [])}
    return table[kind]()


def tiny_weights(**fields: Any) -> dict[str, np.ndarray]:
    """The float32 weights of `Tiny(**fields)` by GGUF name, in the file's order, shapes in NumPy's order."""
    return _weights(Tiny(**fields))


def _weights(tiny: Tiny) -> dict[str, np.ndarray]:
    d, f, e = tiny.n_embd, tiny.n_ff, tiny.n_expert
    q, kv = tiny.n_head * tiny.head, tiny.n_head_kv * tiny.head
    # standard deviations: queries and router logits spread enough for attention and routing to be decided
    shapes: dict[str, tuple[tuple[int, ...], float]] = {
        "token_embd": ((tiny.vocab_size, d), 0.35 if tiny.tied else 1.0)
    }
    for i in range(tiny.n_layer):
        layer: dict[str, tuple[tuple[int, ...], float]] = {
            "attn_norm": ((d,), 0.1),
            "attn_q": ((q, d), 1.5 * d**-0.5),
            "attn_k": ((kv, d), d**-0.5),
            "attn_v": ((kv, d), d**-0.5),
            "attn_output": ((d, q), q**-0.5),
            "ffn_norm": ((d,), 0.1),
        }
        if e:
            layer["ffn_gate_inp"] = ((e, d), 2.0 * d**-0.5)
        stack, suffix = ((e,), "_exps") if e else ((), "")
        layer["ffn_gate" + suffix] = ((*stack, f, d), d**-0.5)
        layer["ffn_up" + suffix] = ((*stack, f, d), d**-0.5)
        layer["ffn_down" + suffix] = ((*stack, d, f), 2.0 * f**-0.5)
        shapes.update({f"blk.{i}.{name}": value for name, value in layer.items()})
    shapes["output_norm"] = ((d,), 0.1)
    if not tiny.tied:
        shapes["output"] = ((tiny.vocab_size, d), 2.0 * d**-0.5)
    weights = {f"{name}.weight": _draw(tiny, name, shape, scale) for name, (shape, scale) in shapes.items()}
    if tiny.rope_freqs is not None:
        weights["rope_freqs.weight"] = np.array(tiny.rope_freqs, np.float32)
    if tiny.favoured is not None:
        _favour(weights, tiny.favoured)
    return weights


def _draw(tiny: Tiny, name: str, shape: tuple[int, ...], scale: float) -> np.ndarray:
    rng = np.random.default_rng([tiny.seed, zlib.crc32(name.encode())])
    values = (rng.standard_normal(shape) * scale).astype(np.float32)
    return values + np.float32(1.0) if name.endswith("norm") else values


def _favour(weights: dict[str, np.ndarray], expert: int) -> None:
    """Keep channel 0 of the hidden state at 4 and let that expert's router rows look at it: logit lead > 10."""
    weights["token_embd.weight"][:, 0] = 4.0
    for name, array in weights.items():
        if "attn_output" in name or "ffn_down" in name:
            array[..., 0, :] = 0.0
        if "ffn_gate_inp" in name:
            array[expert, 0] += 20.0


def tiny_metadata(tiny: Tiny) -> dict[str, Meta]:
    """Keys in llama.cpp's order: value, type, element type."""
    numbers: dict[str, tuple[Any, GGUFValueType]] = {
        "block_count": (tiny.n_layer, U32),
        "context_length": (tiny.n_ctx_train, U32),
        "embedding_length": (tiny.n_embd, U32),
        "feed_forward_length": (tiny.n_ff, U32),
        "attention.head_count": (tiny.n_head, U32),
        "attention.head_count_kv": (tiny.n_head_kv, U32),
        "rope.freq_base": (tiny.rope_freq_base, F32),
        "attention.layer_norm_rms_epsilon": (tiny.rms_eps, F32),
        "vocab_size": (tiny.vocab_size, U32),
        "rope.dimension_count": (tiny.head, U32),
    }
    if tiny.n_expert:
        numbers |= {"expert_count": (tiny.n_expert, U32), "expert_used_count": (tiny.n_expert_used, U32)}
    if tiny.n_embd_head:
        numbers |= {"attention.key_length": (tiny.head, U32), "attention.value_length": (tiny.head, U32)}
    out: dict[str, Meta] = {"general.architecture": ("llama", STR, None), "general.name": ("tiny", STR, None)}
    out |= {f"llama.{key}": (value, kind, None) for key, (value, kind) in numbers.items()}
    return out | _vocabulary_metadata(tiny)


def _vocabulary_metadata(tiny: Tiny) -> dict[str, Meta]:
    if tiny.vocab is None:
        return {}
    tokens, ranks, types = vocabulary(tiny.vocab)
    padding = tiny.vocab_size - len(tokens)
    if padding < 0:
        raise ValueError(f"n_vocab {tiny.vocab_size} is smaller than the {tiny.vocab} vocabulary's {len(tokens)}")
    names = {"spm": ("llama", "default"), "bpe": ("gpt2", "gpt-2")}[tiny.vocab]
    out: dict[str, Meta] = {
        "tokenizer.ggml.model": (names[0], STR, None),
        "tokenizer.ggml.pre": (names[1], STR, None),
        "tokenizer.ggml.tokens": ([*tokens, *(f"[PAD{n}]" for n in range(padding))], ARR, STR),
        "tokenizer.ggml.token_type": ([*types, *[UNUSED] * padding], ARR, GGUFValueType.INT32),
    }
    if tiny.vocab == "spm":
        out["tokenizer.ggml.scores"] = ([*ranks, *[-10000.0] * padding], ARR, F32)
        specials = {"bos": "<s>", "eos": "</s>", "unknown": "<unk>"}
    else:
        out["tokenizer.ggml.merges"] = (ranks, ARR, STR)
        specials = {"bos": "<|endoftext|>", "eos": "<|im_end|>"}
        out["tokenizer.chat_template"] = (CHATML, STR, None)
    out |= {f"tokenizer.ggml.{name}_token_id": (tokens.index(text), U32, None) for name, text in specials.items()}
    out["tokenizer.ggml.add_bos_token"] = (tiny.vocab == "spm", BOOL, None)
    return out


def encode_tiny(values: np.ndarray, kind: GGMLQuantizationType) -> np.ndarray:
    """float32 values as the stored array of a type, by ggml's own encoder; last axis in bytes if quantized."""
    plain = {GGMLQuantizationType.F32: np.float32, GGMLQuantizationType.F16: np.float16}
    if kind in plain:
        return values.astype(plain[kind])
    if kind == GGMLQuantizationType.BF16:
        return gguf.quants.quantize(values, kind)
    import libgguf

    rows = np.ascontiguousarray(values.reshape(-1, values.shape[-1]))
    return np.asarray(libgguf.quantize_rows(rows, kind)).reshape(*values.shape[:-1], -1)


def write_tiny(
    path: Path | str,
    *,
    extra_metadata: Mapping[str, Meta] | None = None,
    drop_metadata: Collection[str] = (),
    extra_tensors: Mapping[str, np.ndarray] | None = None,
    drop_tensors: Collection[str] = (),
    split_max_tensors: int = 0,
    alignment: int | None = None,
    **fields: Any,
) -> Path:
    """Write `Tiny(**fields)` and return its path (with `split_max_tensors`, the first part's).

    `extra_metadata` adds or replaces keys ({"llama.rope.freq_base": (1e6, GGUFValueType.FLOAT32, None)}),
    `extra_tensors` adds or replaces weights (other numbers than float32 are stored as they are); both `drop_`s leave
    things out.
    `alignment` is that of the tensors' data.
    """
    path = Path(path)
    tiny = replace(Tiny(), **fields)
    metadata = tiny_metadata(tiny) | dict(extra_metadata or {})
    weights = _weights(tiny) | dict(extra_tensors or {})
    architecture = str(metadata["general.architecture"][0])
    writer = GGUFWriter(path, architecture, split_max_tensors=split_max_tensors)
    if alignment is not None:
        writer.add_custom_alignment(alignment)
    for key, (value, kind, element) in metadata.items():
        if key not in drop_metadata and key != "general.architecture":
            writer.add_key_value(key, value, kind, element)
    for name, values in weights.items():
        if name not in drop_tensors:
            kind = _type_of(tiny, name, values)
            stored = encode_tiny(values, kind) if values.dtype == np.float32 else values
            writer.add_tensor(name, stored, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    if not split_max_tensors:
        return path
    return next(iter(sorted(path.parent.glob(f"{path.stem}-00001-of-*.gguf"))), path)


def _type_of(tiny: Tiny, name: str, values: np.ndarray) -> GGMLQuantizationType:
    if values.dtype != np.float32:
        return GGMLQuantizationType[f"{values.dtype.kind.upper()}{8 * values.dtype.itemsize}"]
    if values.ndim == 1 or "ffn_gate_inp" in name:
        return GGMLQuantizationType.F32
    chosen = next((kind for part, kind in dict(tiny.types).items() if part in name), tiny.type)
    return GGMLQuantizationType[chosen]
