"""A Hugging Face Llama, Mistral or Mixtral checkpoint as the model that llama.cpp's converter would write."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType

from localmoe.errors import BadInputError, FileError, UsageError

from . import names, pretokenizers
from .card import general_keys
from .checkpoint import CheckpointTensor, listing
from .consolidated import hugging_face
from .hparams import HParams, Warn, model_keys, read_hparams, rope_factors
from .layouts import open_layout
from .source import Piece, SourceModel, SourceTensor, row_runs
from .tokenizer_files import read_files
from .vocab import has_tokenizer, read_vocabulary, vocabulary_keys

Array = np.ndarray[Any, np.dtype[Any]]
Slot = tuple[str, int | None]  # stem and layer of an output tensor
Slots = dict[Slot, dict[int | None, CheckpointTensor]]  # its parts by expert; None where it is one tensor

GGML_TYPES = {
    "F32": GGMLQuantizationType.F32,
    "F16": GGMLQuantizationType.F16,
    "BF16": GGMLQuantizationType.BF16,
    "F64": GGMLQuantizationType.F32,
}
# Float32 in every GGUF, whatever the rest is.
ALWAYS_F32 = ("attn_norm", "ffn_norm", "output_norm", "ffn_gate_inp")
# What a checkpoint is besides its weights; none of it may be written over.
TEXT_FILES = (
    "config.json",
    "params.json",
    "tekken.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer.model.v1",
    "tokenizer.model.v2",
    "tokenizer.model.v3",
    "tokenizer_config.json",
    "generation_config.json",
)
EXPERT_STEMS = ("ffn_gate_exps", "ffn_down_exps", "ffn_up_exps")  # the order in which the converter writes them


def load_source(
    folder: Path,
    *,
    pre: str | None = None,
    allow_pickle: bool = False,
    tokenizer: bool = True,
    warn: Warn = logging.getLogger(__name__).warning,
) -> SourceModel:
    """The checkpoint in `folder`, validated; its weights are read only when pieces are called.

    `pre` overrides the recognised pre-tokenizer; `allow_pickle` reads the tensors of pickled files, and runs nothing
    that they hold; without `tokenizer`, a folder that has none gives a model without a vocabulary. `warn` is told, in a
    line each, what was padded, cut or left out.
    Raises BadInputError, FileError, or UsageError for a `pre` that llama.cpp does not know.
    """
    if pre is not None and pre not in pretokenizers.KNOWN:
        raise UsageError("unknown pre-tokenizer", item="--pre", got=pre, expected=" ".join(sorted(pretokenizers.KNOWN)))
    if not folder.is_dir():
        raise FileError("no such folder", file=folder)
    layout = open_layout(folder, allow_pickle, warn)
    config = layout.config
    hparams = read_hparams(config, layout.config_file, warn)
    checkpoint = layout.files[0]
    if layout.native:
        checkpoint = hugging_face(layout.files, _single_shapes(hparams), hparams.num_local_experts, folder)
    slots = _place(checkpoint, folder)
    hparams = _with_embedding_rows(hparams, slots, warn)
    _check(slots, hparams, folder)
    tensors = [_source_tensor(slot, parts, hparams, layout.native) for slot, parts in slots.items()]
    factors = rope_factors(hparams)
    if factors is not None:
        tensors.insert(0, _computed("rope_freqs.weight", factors))
    files = read_files(folder, config)
    metadata = general_keys(folder, config, tensors, warn) | model_keys(hparams)
    if tokenizer or has_tokenizer(files):
        vocabulary = read_vocabulary(files, hparams.vocab_size, pre, warn)
        metadata |= vocabulary_keys(vocabulary, files, warn)
    shards = sorted({tensor.file for file in layout.files for tensor in file.values()})
    return SourceModel(
        metadata=metadata,
        tensors=tensors,
        n_expert=hparams.num_local_experts,
        n_layer=hparams.num_hidden_layers,
        label=str(folder),
        files=(*shards, *(folder / name for name in TEXT_FILES)),
    )


def _place(checkpoint: dict[str, CheckpointTensor], folder: Path) -> Slots:
    """Sort the checkpoint's tensors into slots, in the order in which llama.cpp's converter writes them.

    A layer's expert stacks come where the last tensor of any of them is, as gate, down, up. Raises BadInputError for
    tensors that the family does not have, and for two that fill the same place.
    """
    slots: Slots = {}
    unknown: list[str] = []
    for name, tensor in checkpoint.items():
        if name.endswith(names.IGNORED):
            continue
        place = names.place(name)
        if place is None:
            unknown.append(name)
            continue
        for stem in names.SPLIT.get(place.stem, (place.stem,)):
            parts = slots.setdefault((stem, place.layer), {})
            if place.expert in parts:
                other = parts[place.expert].name
                raise BadInputError("fills the same place as another", file=tensor.file, item=name, got=other)
            parts[place.expert] = tensor
            if stem in EXPERT_STEMS:
                stacks = [(kind, place.layer) for kind in EXPERT_STEMS if (kind, place.layer) in slots]
                slots |= {slot: slots.pop(slot) for slot in stacks}
    other_form = names.foreign(checkpoint)
    if other_form is not None:
        raise BadInputError(other_form[1], file=folder, item=other_form[0])
    if unknown:
        raise BadInputError("holds tensors that the architecture does not have", file=folder, item=listing(unknown))
    return slots


def _with_embedding_rows(hparams: HParams, slots: Slots, warn: Warn) -> HParams:
    """The hyperparameters with the vocabulary's size taken from the embedding where config.json disagrees."""
    embedding = slots.get(("token_embd", None), {}).get(None)
    if embedding is None or embedding.shape[1:] != (hparams.hidden_size,):  # which is refused as that
        return hparams
    rows = embedding.shape[0]
    if rows in (0, hparams.vocab_size):
        return hparams
    warn(f"config.json says vocab_size {hparams.vocab_size}, but the embedding has {rows} rows, which count")
    return replace(hparams, vocab_size=rows)


def _expected_shapes(hparams: HParams) -> dict[Slot, tuple[int, ...]]:
    """The shape of every slot's matrix (of one expert, for a stack) in NumPy order."""
    h = hparams
    d, f, q, kv = h.hidden_size, h.intermediate_size, h.num_attention_heads, h.num_key_value_heads
    layer: dict[str, tuple[int, ...]] = {
        "attn_norm": (d,),
        "attn_q": (q * h.head_dim, d),
        "attn_k": (kv * h.head_dim, d),
        "attn_v": (kv * h.head_dim, d),
        "attn_output": (d, q * h.head_dim),
        "ffn_norm": (d,),
    }
    suffix = "_exps" if h.num_local_experts else ""
    layer |= {f"ffn_gate{suffix}": (f, d), f"ffn_up{suffix}": (f, d), f"ffn_down{suffix}": (d, f)}
    if h.num_local_experts:
        layer["ffn_gate_inp"] = (h.num_local_experts, d)
    shapes: dict[Slot, tuple[int, ...]] = {
        ("token_embd", None): (h.vocab_size, d),
        ("output_norm", None): (d,),
        ("output", None): (h.vocab_size, d),
    }
    return shapes | {(stem, i): shape for i in range(h.num_hidden_layers) for stem, shape in layer.items()}


def _single_shapes(hparams: HParams) -> dict[str, tuple[int, ...]]:
    """The shape of every matrix by its name in a checkpoint that has one tensor an expert."""
    experts = range(hparams.num_local_experts)
    return {
        names.checkpoint_name(stem, layer, expert): shape
        for (stem, layer), shape in _expected_shapes(hparams).items()
        for expert in (experts if stem in EXPERT_STEMS else (None,))
    }


def _check(slots: Slots, hparams: HParams, folder: Path) -> None:
    """Raise BadInputError unless exactly the tensors are there that `hparams` describes, in the right shapes."""
    shapes = _expected_shapes(hparams)
    missing = [slot for slot in shapes if slot not in slots]
    if hparams.tie_word_embeddings:
        missing = [slot for slot in missing if slot != ("output", None)]
    if missing:
        wanted = [names.checkpoint_name(stem, layer) for stem, layer in missing]
        tied = "the tensor, or tie_word_embeddings true in config.json" if missing == [("output", None)] else None
        raise BadInputError("tensors are missing", file=folder, item=listing(wanted), expected=tied)
    extra = [tensor.name for slot, parts in slots.items() if slot not in shapes for tensor in parts.values()]
    if extra:
        raise BadInputError("holds tensors that config.json does not describe", file=folder, item=listing(extra))
    for slot, parts in slots.items():
        stem, layer = slot
        shape = shapes[slot]
        if stem in EXPERT_STEMS:
            shape = _check_stack(stem, layer, parts, shape, hparams.num_local_experts, folder)
        for tensor in parts.values():
            if tensor.shape != shape:
                raise BadInputError(
                    "wrong shape", file=tensor.file, item=tensor.name, got=list(tensor.shape), expected=list(shape)
                )


def _check_stack(
    stem: str,
    layer: int | None,
    parts: dict[int | None, CheckpointTensor],
    shape: tuple[int, ...],
    n_expert: int,
    folder: Path,
) -> tuple[int, ...]:
    """The shape that each part of an expert stack must have; raises unless it has exactly `n_expert` experts."""
    if None in parts:
        if len(parts) > 1:
            raise BadInputError("packed experts beside single ones", file=folder, item=f"layer {layer}")
        rows = 2 * shape[0] if parts[None].name.endswith(names.PACKED_GATE_UP) else shape[0]
        return n_expert, rows, shape[1]
    if sorted(parts, key=str) != sorted(range(n_expert), key=str):
        absent = [names.checkpoint_name(stem, layer, e) for e in range(n_expert) if e not in parts]
        raise BadInputError(
            "number of experts differs from num_local_experts",
            file=folder,
            item=f"layer {layer}" + (f": missing {listing(absent)}" if absent else ""),
            got=len(parts),
            expected=n_expert,
        )
    return shape


@dataclass(frozen=True)
class _Block:
    """Rows of a checkpoint tensor: a contiguous 2-D `view` of it; the rows of `n_head` heads are reordered."""

    view: Array
    tensor: CheckpointTensor
    n_head: int = 0

    def read(self, target: GGMLQuantizationType) -> Array:
        """A copy of the rows (rows, columns) as `target`, which is the dtype's own type or F32."""
        rows = _by_rows(np.asarray(self.view))
        if self.n_head:
            # Half-split rotary to interleaved pairs: row (half, i) of a head becomes row (i, half).
            pairs = rows.reshape(self.n_head, 2, -1, rows.shape[-1])
            rows = pairs.swapaxes(1, 2).reshape(rows.shape)
        if GGML_TYPES[self.tensor.dtype] == target and self.tensor.dtype != "F64":
            rows = np.array(rows)
        elif self.tensor.dtype == "BF16":
            rows = (rows.astype(np.uint32) << 16).view(np.float32)
        else:
            with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite, and is refused as that
                rows = rows.astype(np.float32)
        self.tensor.release(self.view)
        return rows


def _by_rows(matrix: Array) -> Array:
    """The matrix, its rows one after the other in memory: a transposed one is copied."""
    if matrix.ndim != 2 or matrix.flags.c_contiguous or not matrix.T.flags.aligned:
        return matrix
    from localmoe.quants.transpose import transpose  # compiled: a folder that is refused needs no compiler

    bits = matrix.T.view(f"<u{matrix.itemsize}")
    out = np.empty(matrix.shape, bits.dtype)
    transpose(bits, out)
    return out.view(matrix.dtype)


def _source_tensor(
    slot: Slot, parts: dict[int | None, CheckpointTensor], hparams: HParams, paired: bool
) -> SourceTensor:
    """One output tensor over the checkpoint's tensors; stacks whose experts differ in dtype become F32.

    `paired`: rotary rows of q and k are in GGUF's order already.
    """
    stem, layer = slot
    dtypes = {tensor.dtype for tensor in parts.values()}
    for tensor in parts.values():
        tensor.data()  # raises for a dtype that is not read
    kind = GGML_TYPES[dtypes.pop()] if len(dtypes) == 1 and stem not in ALWAYS_F32 else GGMLQuantizationType.F32
    heads = {"attn_q": hparams.num_attention_heads, "attn_k": hparams.num_key_value_heads}
    n_head = 0 if paired else heads.get(stem, 0)
    blocks = list(_matrices(stem, parts, hparams))
    shape = blocks[0].view.shape if stem not in EXPERT_STEMS else (len(blocks), *blocks[0].view.shape)
    if len(blocks[0].view.shape) == 1:
        blocks = [replace(block, view=block.view.reshape(1, -1)) for block in blocks]
    pieces = [partial(cut.read, kind) for block in blocks for cut in _cut(replace(block, n_head=n_head))]
    return SourceTensor(names.gguf_name(stem, layer), shape, kind, pieces)


def _matrices(stem: str, parts: dict[int | None, CheckpointTensor], hparams: HParams) -> Iterator[_Block]:
    """The matrices that make the tensor, in order: itself, or one an expert."""
    if None not in parts:
        for expert in range(hparams.num_local_experts):
            yield _Block(parts[expert].data(), parts[expert])
        return
    tensor = parts[None]
    if stem not in EXPERT_STEMS:
        yield _Block(tensor.data(), tensor)
        return
    f = hparams.intermediate_size
    rows = {"ffn_gate_exps": slice(0, f), "ffn_up_exps": slice(f, 2 * f)}.get(stem, slice(None))
    for matrix in tensor.data():
        yield _Block(matrix[rows], tensor)


def _cut(block: _Block) -> Iterator[_Block]:
    """Cut a matrix into pieces of bounded size, between heads where their rows are reordered."""
    n_rows, n_cols = block.view.shape
    unit = n_rows // block.n_head if block.n_head else 1
    for start, stop in row_runs(n_rows // unit, unit * n_cols * 4):
        yield replace(block, view=block.view[start * unit : stop * unit], n_head=stop - start if block.n_head else 0)


def _computed(name: str, values: Array) -> SourceTensor:
    """A vector that is not in the checkpoint."""
    pieces: Sequence[Piece] = [partial(np.reshape, values, (1, -1))]
    return SourceTensor(name, values.shape, GGMLQuantizationType.F32, pieces)
