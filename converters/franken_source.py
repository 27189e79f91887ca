"""A recipe's models: opened, compared, and joined into the one model that is written.

Attention, norms and embeddings come from the base, feed-forward matrices from the experts, as in mergekit-moe's
Mixtral output (mergekit/moe/mixtral.py); there and here noise is added before a down projection is scaled.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType as Type

from localmoe.errors import BadInputError, UsageError
from localmoe.gguf_file import open_gguf, visible
from localmoe.quants.encode import encode
from localmoe.quants.formats import FORMATS

from .checkpoint import read_json
from .convert_rows import convert
from .franken_compare import Source, check_dense, check_fits
from .franken_recipe import Recipe, RecipeExpert
from .gguf_source import gguf_source
from .hparams import ARCHITECTURES, Warn
from .huggingface import load_source
from .recipe import COPY, may_quantize
from .source import Piece, SourceTensor

Array = np.ndarray[Any, np.dtype[Any]]
MERGED = ("llama", "mistral", "mixtral")  # the last is refused as a mixture of experts
# What mergekit-moe makes of dense models of other architectures (mergekit/moe/qwen.py and qwen3.py).
_OTHER_OUTPUTS = {
    "Qwen2ForCausalLM": "Qwen MoE", "qwen2": "Qwen MoE", "Qwen3ForCausalLM": "Qwen3 MoE", "qwen3": "Qwen3 MoE",
}  # fmt: skip
FFN = ("ffn_gate", "ffn_up", "ffn_down")
_CASTS = {"float16": Type.F16, "bfloat16": Type.BF16}


@dataclass(frozen=True)
class Sources:
    """The base and one source an expert (the same object where they are the same file)."""

    base: Source
    experts: tuple[Source, ...]


def open_sources(recipe: Recipe, stack: ExitStack, *, pre: str | None, allow_pickle: bool, warn: Warn) -> Sources:
    """Open every model of the recipe until `stack` closes; BadInputError names how two of them differ."""
    opened: dict[Path, Source] = {}

    def source(path: Path, item: str) -> Source:
        real = path.resolve()
        if real not in opened:
            _check_architecture(path, recipe, item)
            opened[real] = _open(path, stack, pre, allow_pickle, warn, is_base=not opened)
        return opened[real]

    base = source(recipe.base, "base_model")
    experts = (source(expert.source, f"experts[{i}].source_model") for i, expert in enumerate(recipe.experts))
    sources = Sources(base, tuple(experts))
    for other in opened.values():
        check_dense(other)
        check_fits(sources.base, other, warn)
    return sources


def _check_architecture(path: Path, recipe: Recipe, item: str) -> None:
    """BadInputError names a source that is neither Llama nor Mistral, where it is in the recipe, and what it is."""
    name = _architecture(path)
    if name is None or ARCHITECTURES.get(name, name) in MERGED:
        return
    other = _OTHER_OUTPUTS.get(name)
    elsewhere = f"; mergekit-moe makes a {other} of it" if other else ""
    raise BadInputError(
        f"{visible(str(path), 200)} cannot be merged into a Mixtral, which localmoe writes{elsewhere}",
        file=recipe.file, item=item, got=visible(name, 60), expected="a Llama or Mistral model",
    )  # fmt: skip


def _architecture(path: Path) -> str | None:
    """What a checkpoint's config.json or a GGUF says that it is; None where it says nothing that could be shown."""
    if path.is_dir():
        config = read_json(path, "config.json") or {}
        names = config.get("architectures")
        name = names[0] if isinstance(names, list) and names else config.get("model_type")
    else:
        with open_gguf(path) as gguf:
            name = gguf.metadata.get("general.architecture")
    return name if isinstance(name, str) else None


def _open(path: Path, stack: ExitStack, pre: str | None, allow_pickle: bool, warn: Warn, *, is_base: bool) -> Source:
    if path.is_dir():
        model = load_source(
            path, pre=pre, allow_pickle=allow_pickle, tokenizer=is_base, warn=lambda line: warn(f"{path}: {line}")
        )
        return Source(path, model, None)
    gguf = stack.enter_context(open_gguf(path))
    return Source(path, gguf_source(gguf, to_run=True), gguf)


# --- the joined tensors ---


def quantized(sources: Sources) -> bool:
    """Whether any of the matrices that will be used is quantized."""
    return any(FORMATS[t.type].quantized for source in (sources.base, *sources.experts) for t in source.model.tensors)


def join_tensors(
    recipe: Recipe, sources: Sources, router: Array, file_type: str, *, seed: int, allow_requantize: bool
) -> list[SourceTensor]:
    """The merged model's tensors in the base's order: the router (L, E, D) float32 and the stacks where they belong.

    UsageError: weights that are quantized must change, and `allow_requantize` does not permit it.
    """
    tensors: list[SourceTensor] = []
    by_name = [source.tensors for source in sources.experts]
    cast = _CASTS.get(recipe.dtype or "")
    for tensor in sources.base.model.tensors:
        stem = tensor.name.removesuffix(".weight")
        kind = stem.rpartition(".")[2]
        if kind not in FFN:
            tensors.append(_cast_tensor(tensor, cast, sources.base.path))
            continue
        layer = int(stem.split(".")[1])
        parts = [
            _Part(i, expert, source.path, tensors_of[tensor.name])
            for i, (expert, source, tensors_of) in enumerate(zip(recipe.experts, sources.experts, by_name, strict=True))
        ]
        if kind == "ffn_gate":
            name = f"blk.{layer}.ffn_gate_inp.weight"
            tensors.append(SourceTensor(name, router[layer].shape, Type.F32, [partial(_same, router[layer])]))
        tensors.append(_stack(f"{stem}_exps.weight", parts, cast, file_type, seed, allow_requantize))
    return tensors


def _same(rows: Array) -> Array:
    return rows


@dataclass(frozen=True)
class _Part:
    """One expert's matrix in a stack."""

    index: int
    expert: RecipeExpert
    path: Path
    tensor: SourceTensor

    @property
    def scale(self) -> float:
        return self.expert.residual_scale if "ffn_down" in self.tensor.name else 1.0

    @property
    def changed(self) -> bool:
        return self.expert.noise_scale > 0 or self.scale != 1


def _stack(
    name: str, parts: Sequence[_Part], cast: Type | None, file_type: str, seed: int, allow_requantize: bool
) -> SourceTensor:
    """One stack: copied where the experts share a type and nothing changes, else through float32."""
    kinds = {part.tensor.type for part in parts}
    shape = (len(parts), *parts[0].tensor.shape)
    if cast is not None and not any(FORMATS[kind].quantized for kind in kinds):
        parts = [p if p.changed else replace(p, tensor=_cast_tensor(p.tensor, cast, p.path)) for p in parts]
        kinds = {cast}
    if len(kinds) == 1 and not any(part.changed for part in parts):
        return SourceTensor(name, shape, kinds.pop(), [piece for part in parts for piece in part.tensor.pieces])
    held = [part for part in parts if FORMATS[part.tensor.type].quantized]
    if held and not allow_requantize:
        raise _requantizing(next((part for part in held if part.changed), held[0]), kinds)
    target = Type.F32
    if file_type == COPY and any(FORMATS[kind].quantized for kind in kinds):
        target = Type.Q8_0 if shape[-1] % FORMATS[Type.Q8_0].block_size == 0 else Type.F16
    return SourceTensor(name, shape, target, [p for part in parts for p in _changed_pieces(part, target, cast, seed)])


def _requantizing(part: _Part, kinds: set[Type]) -> UsageError:
    why = "would be quantized again after " + ("noise and scale" if part.changed else "it was joined with another type")
    types = " and ".join(sorted(kind.name for kind in kinds))
    return UsageError(
        f"is quantized, and {why}, which loses quality: --allow-requantize does it anyway",
        file=part.path, item=part.tensor.name, got=types, expected="F32, F16 or BF16",
    )  # fmt: skip


def _changed_pieces(part: _Part, target: Type, cast: Type | None, seed: int) -> list[Piece]:
    pieces: list[Piece] = []
    for i, piece in enumerate(part.tensor.pieces):
        key = (seed, part.index, zlib.crc32(part.tensor.name.encode()), i)
        pieces.append(partial(_change, piece, part, target, cast, key))
    return pieces


def _change(piece: Piece, part: _Part, target: Type, cast: Type | None, key: tuple[int, ...]) -> Array:
    """A piece with its expert's noise and scale, as `target`. The noise depends on `key` alone."""
    rows = _as_float(piece(), part.tensor, part.path)
    if part.changed:
        rows = rows.copy()
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused below
        if part.expert.noise_scale:
            noise = np.random.default_rng(key).standard_normal(rows.shape, np.float32)
            rows += noise * np.float32(part.expert.noise_scale)
        if part.scale != 1:
            rows *= np.float32(part.scale)
    if part.changed and not FORMATS[part.tensor.type].quantized:  # mergekit changes weights in their own type
        rows = _through(rows, part.tensor.type, part)
    if cast is not None:
        rows = _through(rows, cast, part)
    if not np.isfinite(rows).all():  # an encoder might hide it
        raise BadInputError("NaN or infinity", file=part.path, item=visible(part.tensor.name))
    return encode(target, rows) if FORMATS[target].quantized else _as(rows, Type.F32, target, part.tensor, part.path)


def _through(rows: Array, kind: Type, part: _Part) -> Array:
    """float32 rows rounded to another float type."""
    return _as_float(_as(rows, Type.F32, kind, part.tensor, part.path), part.tensor, part.path, kind)


def _as_float(rows: Array, tensor: SourceTensor, path: Path, kind: Type | None = None) -> Array:
    return _as(rows, tensor.type if kind is None else kind, Type.F32, tensor, path)


def _as(rows: Array, kind: Type, target: Type, tensor: SourceTensor, path: Path) -> Array:
    """Rows of `kind` as the float type `target`, checked to be finite."""
    if kind == target == Type.F32:
        return rows
    done = convert(rows, kind, target, tensor.n_columns)
    if done.bad is not None:
        reason = f"too large for {target.name}" if done.finite_source else "NaN or infinity"
        raise BadInputError(f"{reason} at index {done.bad} of a piece", file=path, item=visible(tensor.name))
    view = {Type.F32: np.float32, Type.F16: np.float16, Type.BF16: np.uint16}[target]
    return np.frombuffer(done.data, view).reshape(-1, tensor.n_columns)


def _cast_tensor(tensor: SourceTensor, cast: Type | None, path: Path) -> SourceTensor:
    """An unquantized tensor rounded to `cast`; vectors are float32 again afterwards."""
    if cast is None or FORMATS[tensor.type].quantized or tensor.type == cast or tensor.name == "rope_freqs.weight":
        return tensor
    kind = cast if may_quantize(tensor) else Type.F32
    return replace(tensor, type=kind, pieces=[partial(_rounded, p, tensor, cast, kind, path) for p in tensor.pieces])


def _rounded(piece: Piece, tensor: SourceTensor, cast: Type, kind: Type, path: Path) -> Array:
    rows = _as(piece(), tensor.type, cast, tensor, path)
    return rows if kind == cast else _as_float(rows, tensor, path, cast)
