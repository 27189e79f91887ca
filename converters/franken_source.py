"""A recipe's models: opened, compared, and joined into the one model that is written.

Attention, norms and embeddings come from the base, feed-forward matrices from the experts, as in mergekit-moe's
Mixtral output (mergekit/moe/mixtral.py); there and here noise is added before a down projection is scaled.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType as Type

from localmoe.errors import BadInputError, UsageError
from localmoe.gguf_file import GGUFFile, open_gguf, visible
from localmoe.quants.encode import encode
from localmoe.quants.formats import FORMATS

from .convert_rows import convert
from .franken_recipe import Recipe, RecipeExpert
from .gguf_source import gguf_source
from .huggingface import load_source
from .recipe import COPY, may_quantize
from .source import Piece, SourceModel, SourceTensor

Array = np.ndarray[Any, np.dtype[Any]]
Warn = Callable[[str], None]
FFN = ("ffn_gate", "ffn_up", "ffn_down")
# The keys in which a base and its experts must agree, each with what a missing one means.
_KEYS: tuple[tuple[str, Any], ...] = (
    ("llama.block_count", None),
    ("llama.embedding_length", None),
    ("llama.feed_forward_length", None),
    ("llama.attention.head_count", None),
    ("llama.attention.head_count_kv", "llama.attention.head_count"),
    ("llama.attention.key_length", None),
    ("llama.attention.value_length", None),
    ("llama.rope.dimension_count", None),
    ("llama.rope.freq_base", 10000.0),
    ("llama.rope.scaling.type", "none"),
    ("llama.rope.scaling.factor", 1.0),
)
_CASTS = {"float16": Type.F16, "bfloat16": Type.BF16}


@dataclass(frozen=True)
class Source:
    """An opened model; `gguf` is None for a checkpoint folder."""

    path: Path
    model: SourceModel
    gguf: GGUFFile | None

    @property
    def tensors(self) -> dict[str, SourceTensor]:
        return {tensor.name: tensor for tensor in self.model.tensors}


@dataclass(frozen=True)
class Sources:
    """The base and one source an expert (the same object where they are the same file)."""

    base: Source
    experts: tuple[Source, ...]


def open_sources(recipe: Recipe, stack: ExitStack, *, pre: str | None, warn: Warn) -> Sources:
    """Open every model of the recipe until `stack` closes; BadInputError names how two of them differ."""
    opened: dict[Path, Source] = {}

    def source(path: Path) -> Source:
        real = path.resolve()
        if real not in opened:
            opened[real] = _open(path, stack, pre, warn)
        return opened[real]

    sources = Sources(source(recipe.base), tuple(source(expert.source) for expert in recipe.experts))
    for other in opened.values():
        _check_dense(other)
        _check_same(sources.base, other)
    return sources


def _open(path: Path, stack: ExitStack, pre: str | None, warn: Warn) -> Source:
    if path.is_dir():
        return Source(path, load_source(path, pre=pre, warn=lambda line: warn(f"{path}: {line}")), None)
    gguf = stack.enter_context(open_gguf(path))
    return Source(path, gguf_source(gguf), gguf)


def _check_dense(source: Source) -> None:
    """BadInputError unless it is a dense Llama or Mistral with all its feed-forward matrices."""
    arch = source.model.metadata["general.architecture"].value
    if arch != "llama":
        got = visible(str(arch), 40)
        raise BadInputError(
            "cannot be merged",
            file=source.path,
            item="general.architecture",
            got=got,
            expected="llama (Llama, Mistral)",
        )
    if source.model.n_expert:
        raise BadInputError(
            "is a mixture of experts already, and only dense models can be merged",
            file=source.path, item="llama.expert_count", got=source.model.n_expert, expected="none",
        )  # fmt: skip


def _check_same(base: Source, other: Source) -> None:
    """BadInputError for the first key, or token, in which `other` is not like the base."""
    if base is other:
        return
    for key, default in _KEYS:
        wanted, got = _key(base, key, default), _key(other, key, default)
        if not np.array_equal(wanted, got):
            raise _difference(base, other, key, got, wanted)
    wanted, got = (_vocabulary(source, "tokenizer.ggml.model", str) for source in (base, other))
    if wanted != got:
        raise _difference(base, other, "tokenizer.ggml.model", got, wanted)
    _check_vocabulary(base, other)


def _key(source: Source, key: str, default: Any) -> Any:
    """A key's value with llama.cpp's defaults."""
    meta = source.model.metadata
    if key not in meta and key.endswith(("key_length", "value_length", "dimension_count")):
        heads = np.max(meta["llama.attention.head_count"].value)
        return meta["llama.embedding_length"].value // int(heads)
    if key not in meta and isinstance(default, str) and default in meta:
        return meta[default].value
    return meta[key].value if key in meta else default


def _difference(base: Source, other: Source, item: str, got: object, wanted: object) -> BadInputError:
    shown = [visible(str(value), 60) for value in (got, f"{wanted}, from {base.path}")]
    return BadInputError("cannot be merged with the base", file=other.path, item=item, got=shown[0], expected=shown[1])


def _check_vocabulary(base: Source, other: Source) -> None:
    wanted, got = _tokens(base), _tokens(other)
    if wanted == got:
        return
    shared = min(len(wanted), len(got))
    if wanted[:shared] == got[:shared]:
        longer = wanted if len(wanted) > shared else got
        whose = "the base has" if longer is wanted else "it has"
        names = ", ".join(visible(repr(token), 30) for token in longer[shared : shared + 4])
        reason = f"cannot be merged with the base: {whose} {len(longer) - shared} more tokens at the end ({names}"
        reason += ", ...)" if len(longer) - shared > 4 else ")"
        raise BadInputError(
            reason,
            file=other.path,
            item="tokenizer.ggml.tokens",
            got=len(got),
            expected=f"{len(wanted)}, from {base.path}",
        )
    first = next(i for i in range(shared) if wanted[i] != got[i])
    item = f"tokenizer.ggml.tokens[{first}]"
    raise _difference(base, other, item, repr(got[first]), repr(wanted[first]))


def _vocabulary(source: Source, key: str, kind: type) -> Any:
    """A key of the vocabulary; BadInputError where there is none."""
    entry = source.model.metadata.get(key)
    if entry is None or not isinstance(entry.value, kind):
        raise BadInputError("the key is missing or of the wrong type", file=source.path, item=key)
    return entry.value


def _tokens(source: Source) -> list[str]:
    """The vocabulary without the padding that only fills up the embedding."""
    tokens = list(_vocabulary(source, "tokenizer.ggml.tokens", list))
    while tokens and tokens[-1].startswith("[PAD") and tokens[-1][4:-1].isdigit():
        tokens.pop()
    return tokens


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
        parts = [replace(part, tensor=_cast_tensor(part.tensor, cast, part.path)) for part in parts]
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
    if part.expert.noise_scale:
        noise = np.random.default_rng(key).standard_normal(rows.shape, np.float32)
        rows += noise * np.float32(part.expert.noise_scale)
    if part.scale != 1:
        rows *= np.float32(part.scale)
    if cast is not None:
        rows = _as_float(_as(rows, Type.F32, cast, part.tensor, part.path), part.tensor, part.path, cast)
    if not np.isfinite(rows).all():  # an encoder might hide it
        raise BadInputError("NaN or infinity", file=part.path, item=visible(part.tensor.name))
    return encode(target, rows) if FORMATS[target].quantized else _as(rows, Type.F32, target, part.tensor, part.path)


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
