"""Router rows from prompts, as mergekit-moe makes them (mergekit/moe/router.py of mergekit 0.1.5).

A prompt's tokens are those of `franken_prompts`.
`hidden`: the residual stream that enters each layer at the last token, averaged over the prompts; the negative
prompts' average is taken away; each row is divided by its length. `hidden_avg`: averaged over the tokens instead.
mergekit runs an expert's prompts as one batch, padded on the left with BOS, and its average counts the padding, whose
attention is masked out entirely: what stays of it is the base model without attention, which is computed here too.
mergekit loads the base model in bfloat16, and where prompts nearly cancel its rounding shows in a row: so it is run
with bfloat16 weights and every result rounded here too.
`cheap_embed`: the sum of all prompts' embeddings, divided by its length before and after the negative prompts' is
taken away, the same in every layer.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from gguf import GGMLQuantizationType as Type

from localmoe.errors import BadInputError, LocalMoeError
from localmoe.output_file import scratch
from localmoe.progress import Progress
from localmoe.quants.decode import decode
from localmoe.quants.formats import FORMATS

from .convert_rows import convert
from .franken_compare import Source
from .franken_prompts import base_tokenizer, prefix_rule, prompt_ids
from .franken_recipe import RANDOM_MODES, Recipe
from .pipeline import write_into
from .source import SourceTensor

if TYPE_CHECKING:
    from localmoe.engine.api import Model

Array = np.ndarray[Any, np.dtype[Any]]
Prompts = Sequence[list[int]]  # token ids
States = Callable[[Prompts], Array]  # prompts -> (L, D)
_SMALLEST = 1e-8  # a shorter row is not stretched to length 1


def router_rows(
    recipe: Recipe, base: Source, out: Path, *, seed: int, n_threads: int | None, progress: Progress
) -> Array:
    """The router (L, E, D) float32. A checkpoint is written as a GGUF beside `out` for as long as it runs.

    `seed` decides the random modes. BadInputError: a prompt has no tokens, the base cannot run; MemoryLimitError.
    """
    n_layer, width = base.model.n_layer, int(base.model.metadata["llama.embedding_length"].value)
    shape = (n_layer, len(recipe.experts), width)
    if recipe.gate_mode in RANDOM_MODES:
        rng = np.random.default_rng((seed, 0x726F7574))
        if recipe.gate_mode == "random":
            return rng.standard_normal(shape, np.float32)
        return rng.uniform(-(width**-0.5), width**-0.5, shape).astype(np.float32)
    positive, negative = _tokens(recipe, base)
    if recipe.gate_mode == "cheap_embed":
        return _rows(positive, negative, lambda prompts: _embedded(base, prompts, n_layer))
    longest = max(len(ids) for prompts in (*positive, *negative) for ids in prompts)
    with _running(base, out, longest, n_threads, progress) as model:
        return _rows(positive, negative, _hidden_states(model, average=recipe.gate_mode == "hidden_avg"))


def _tokens(recipe: Recipe, base: Source) -> tuple[list[Prompts], list[Prompts]]:
    """Every expert's positive and negative prompts as token ids."""
    tokenizer, rule = base_tokenizer(base), prefix_rule(base)
    sides: tuple[list[Prompts], list[Prompts]] = ([], [])
    for i, expert in enumerate(recipe.experts):
        for side, field, prompts in zip(
            sides, ("positive_prompts", "negative_prompts"), (expert.positive, expert.negative), strict=True
        ):
            side.append([prompt_ids(tokenizer, prompt, rule) for prompt in prompts])
            empty = next((j for j, ids in enumerate(side[-1]) if not ids), None)
            if empty is not None:
                raise BadInputError("the prompt has no tokens", file=recipe.file, item=f"experts[{i}].{field}[{empty}]")
    return sides


def _rows(positive: Sequence[Prompts], negative: Sequence[Prompts], states: States) -> Array:
    """Positive minus negative states of every expert, divided by their length: (L, E, D)."""
    rows = []
    for wanted, unwanted in zip(positive, negative, strict=True):
        row = states(wanted)
        rows.append(_unit(row - states(unwanted) if unwanted else row))
    return np.stack(rows, axis=1).astype(np.float32)


def _unit(rows: Array) -> Array:
    lengths: Array = np.linalg.norm(rows, axis=-1, keepdims=True)
    unit: Array = rows / np.maximum(lengths, _SMALLEST)
    return unit


def _hidden_states(model: Model, *, average: bool) -> States:
    """The states of prompts by running them: of the last tokens, or of all with the padding mergekit counts."""
    known: dict[tuple[int, ...], Array] = {}

    def run(ids: list[int]) -> Array:
        key = tuple(ids)
        if key not in known:
            hidden = model.hidden_states(ids, bfloat16=True)[:-1].astype(np.float64)
            known[key] = hidden.sum(axis=1) if average else hidden[:, -1]
        return known[key]

    def states(prompts: Prompts) -> Array:
        total: Array = np.sum([run(ids) for ids in prompts], axis=0)
        if not average:
            return np.divide(total, len(prompts))
        longest = max(len(ids) for ids in prompts)
        n_pads = sum(longest - len(ids) for ids in prompts)
        if n_pads:
            total = total + n_pads * padding_states(model)
        return total / (longest * len(prompts))

    return states


def padding_states(model: Model) -> Array:
    """What enters each layer (L, D) at a padding token: the padding's embedding through feed-forward blocks alone.

    The padding is the BOS token, or the EOS token where there is none. Rounded as the engine rounds other tokens.
    """
    pad = model.tokenizer.own_bos if model.tokenizer.own_bos is not None else model.tokenizer.eos
    assert pad is not None  # some prompt has tokens, and mergekit has no other token to pad with
    x = _bfloat16(_matrix(model, "token_embd.weight")[pad])
    states = []
    for layer in range(model.config.n_layer):
        states.append(x)
        norm = _bfloat16(_matrix(model, f"blk.{layer}.ffn_norm.weight").reshape(-1))
        h = _bfloat16(_bfloat16(x / np.sqrt(np.mean(x * x) + model.config.rms_eps)) * norm)
        gate = _bfloat16(_matrix(model, f"blk.{layer}.ffn_gate.weight") @ h)
        up = _bfloat16(_matrix(model, f"blk.{layer}.ffn_up.weight") @ h)
        hidden = _bfloat16(_bfloat16(gate / (1 + np.exp(-gate))) * up)
        x = _bfloat16(x + _bfloat16(_matrix(model, f"blk.{layer}.ffn_down.weight") @ hidden))
    return np.stack(states)


def _bfloat16(x: Array) -> Array:
    """float64 values that are the nearest bfloat16 ones, ties to even."""
    bits = x.astype(np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    return rounded.astype(np.uint32).view(np.float32).astype(np.float64)


def _matrix(model: Model, name: str) -> Array:
    """A tensor of the running model as float32 (rows, columns)."""
    info = model.gguf.tensors[name]
    raw = model.gguf.raw(name).reshape(-1, FORMATS[info.type].row_bytes(info.shape[-1]))
    return decode(info.type, raw)


def _embedded(base: Source, prompts: Prompts, n_layer: int) -> Array:
    """The unit vector along the sum of the prompts' embeddings, for every layer: (L, D)."""
    ids = np.concatenate([np.asarray(prompt) for prompt in prompts])
    total = _embeddings(base.tensors["token_embd.weight"], ids).sum(axis=0, dtype=np.float64)
    return np.tile(_unit(total), (n_layer, 1))


def _embeddings(tensor: SourceTensor, ids: Array) -> Array:
    """Rows `ids` of the embedding (N, D) float32; one piece of it at a time is in memory."""
    out = np.empty((len(ids), tensor.n_columns), np.float32)
    start = 0
    for piece in tensor.pieces:
        rows = piece()
        chosen = np.flatnonzero((ids >= start) & (ids < start + len(rows)))
        if len(chosen):
            picked = np.ascontiguousarray(rows[ids[chosen] - start])
            done = convert(picked, tensor.type, Type.F32, tensor.n_columns)
            out[chosen] = np.frombuffer(done.data, np.float32).reshape(-1, tensor.n_columns)
        start += len(rows)
    return out


@contextlib.contextmanager
def _running(base: Source, out: Path, n_ctx: int, n_threads: int | None, progress: Progress) -> Iterator[Model]:
    """The base model opened for inference: what is not quantized through a temporary GGUF in bfloat16."""
    import localmoe

    exact: dict[str, Any] = {"n_threads": n_threads, "cache_type_k": "f32", "cache_type_v": "f32"}
    kinds = {tensor.type for tensor in base.model.tensors if len(tensor.shape) > 1}
    if base.gguf is not None and (kinds == {Type.BF16} or not kinds <= {Type.F32, Type.F16, Type.BF16}):
        with localmoe.load(str(base.path), n_ctx=n_ctx, **exact) as model:
            yield model
        return
    with scratch(out.resolve()) as file:
        write_into(file, base.model, "BF16", progress=progress, n_threads=n_threads)
        try:
            opened = localmoe.load(str(file.path), n_ctx=n_ctx, **exact)
        except LocalMoeError as error:  # about a file that has no name of its own
            raise type(error)(str(error).removeprefix(f"{file.path}: "), file=base.path) from None
        with opened as model:
            yield model
