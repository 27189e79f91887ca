"""A frankenMoE from a recipe, straight to a quantized GGUF: dense models' feed-forward matrices behind one router."""

from __future__ import annotations

import json
from collections.abc import Collection
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGUFValueType, LlamaFileType

from localmoe.engine.compiling import compiling_said
from localmoe.experts.labels import LABELS_KEY
from localmoe.gguf_file import visible
from localmoe.output_file import Notify, unheard
from localmoe.progress import Progress, Silent

from .card import count_parameters
from .checkpoint import listing
from .franken_recipe import RUN_MODES, Recipe
from .franken_router import router_rows
from .franken_source import Sources, join_tensors, open_sources, quantized
from .imatrix import Imatrix
from .pipeline import WriteReport, write_model
from .recipe import COPY, Options, find_recipe
from .source import MetaValue, SourceModel, SourceTensor
from .split import Split

DEFAULT_TYPE = "Q4_K_M"
PROMPTS_KEY = "localmoe.expert.prompts"
SOURCES_KEY = "localmoe.expert.sources"
GATE_MODE_KEY = "localmoe.router.gate_mode"

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Franken:
    """What was built, or with dry_run would be: `router` (L, E, D) float32 is None after a dry run."""

    recipe: Recipe
    written: WriteReport
    router: Array | None


def build(
    recipe: Recipe,
    out: Path,
    file_type: str | None = None,
    *,
    seed: int = 0,
    pre: str | None = None,
    allow_pickle: bool = False,
    options: Options | None = None,
    imatrix: Imatrix | None = None,
    split: Split | None = None,
    allow_requantize: bool = False,
    dry_run: bool = False,
    progress: Progress | None = None,
    n_threads: int | None = None,
    notify: Notify = print,
) -> Franken:
    """Write the recipe's model to `out`, all or nothing.

    `file_type` None: Q4_K_M, or where a source is quantized already, every tensor as it is (experts that get noise then
    become Q8_0). `options` and `imatrix` as `write_model` takes them, `pre` and `allow_pickle` as `load_source`
    does. `seed` decides noise and random routers. `notify`
    is told notes, a line each. BadInputError: sources that cannot be merged; UsageError: weights would be quantized
    again without `allow_requantize`, `out` is a source.
    """
    progress = progress or Silent()
    with ExitStack() as stack:
        sources = open_sources(recipe, stack, pre=pre, allow_pickle=allow_pickle, warn=notify)
        chosen = file_type or (COPY if quantized(sources) else DEFAULT_TYPE)
        chosen = COPY if chosen.upper() == COPY else find_recipe(chosen).name
        shape = (sources.base.model.n_layer, len(recipe.experts), _width(sources))
        plan = _joined(recipe, sources, np.zeros(shape, np.float32), chosen, seed, allow_requantize)
        if recipe.dtype and quantized(sources):
            notify(f"dtype {recipe.dtype} is for unquantized weights alone: quantized ones stay as they are")
        # everything that can be refused is refused before the base model runs
        report = write_model(
            plan, out, chosen, options=options, imatrix=imatrix, split=split, allow_requantize=allow_requantize,
            dry_run=True, notify=unheard,
        )  # fmt: skip
        for line in _summary(report.notices):
            notify(line)
        if dry_run:
            return Franken(recipe, report, None)
        if recipe.gate_mode in RUN_MODES:
            notify("running the prompts through the base model")
        with compiling_said(notify):
            router = router_rows(recipe, sources.base, out, seed=seed, n_threads=n_threads, progress=progress)
        model = _joined(recipe, sources, router, chosen, seed, allow_requantize)
        report = write_model(
            model, out, chosen, options=options, imatrix=imatrix, split=split, allow_requantize=allow_requantize,
            progress=progress, n_threads=n_threads, notify=_but(report.notices, notify),
        )  # fmt: skip
    return Franken(recipe, report, router)


def _but(said: Collection[str], notify: Notify) -> Notify:
    """`notify` for all lines but those that were summed up."""

    def rest(line: str) -> None:
        if line not in said:
            notify(line)

    return rest


def _summary(notices: tuple[str, ...]) -> list[str]:
    """`NAME: REASON` lines with one line a reason."""
    names: dict[str, list[str]] = {}
    for notice in notices:
        name, _, reason = notice.partition(": ")
        names.setdefault(reason, []).append(name)
    return [f"{reason} ({listing(which, 2)})" for reason, which in names.items()]


def _width(sources: Sources) -> int:
    return int(sources.base.model.metadata["llama.embedding_length"].value)


def _joined(
    recipe: Recipe, sources: Sources, router: Array, file_type: str, seed: int, allow_requantize: bool
) -> SourceModel:
    """The merged model, its weights unread."""
    tensors = join_tensors(recipe, sources, router, file_type, seed=seed, allow_requantize=allow_requantize)
    base = sources.base.model
    return replace(
        base,
        metadata=_metadata(recipe, base, tensors),
        tensors=tensors,
        n_expert=len(recipe.experts),
        files=(*dict.fromkeys(f for s in (sources.base, *sources.experts) for f in s.model.files), recipe.file),
    )


def _metadata(recipe: Recipe, base: SourceModel, tensors: list[SourceTensor]) -> dict[str, MetaValue]:
    """The base's keys with the experts' counts after its own numbers, and who the experts are at the end."""
    n_expert = len(recipe.experts)
    counts = {
        "llama.expert_count": MetaValue(n_expert, GGUFValueType.UINT32),
        "llama.expert_used_count": MetaValue(recipe.n_used, GGUFValueType.UINT32),
    }
    meta: dict[str, MetaValue] = {}
    for key, value in base.metadata.items():
        meta[key] = value
        if key == "llama.attention.layer_norm_rms_epsilon":
            meta |= counts
    meta |= counts
    name = meta["general.name"].value if "general.name" in meta else recipe.base.stem
    meta["general.name"] = MetaValue(recipe.name or f"{name} frankenMoE {n_expert}x", GGUFValueType.STRING)
    label = gguf.size_label(*count_parameters(tensors))
    meta["general.size_label"] = MetaValue(label, GGUFValueType.STRING)
    if "general.file_type" in meta:  # counts where types are kept; the writer sets it otherwise
        meta["general.file_type"] = _file_type(meta["general.file_type"], tensors)
    experts = recipe.experts
    meta[LABELS_KEY] = _texts([expert.label for expert in experts])
    if any(expert.positive for expert in experts):
        prompts = [{"positive": expert.positive, "negative": expert.negative} for expert in experts]
        meta[PROMPTS_KEY] = _texts([json.dumps(entry, ensure_ascii=False) for entry in prompts])
    meta[SOURCES_KEY] = _texts([visible(expert.source.name, 100) for expert in experts])
    meta[GATE_MODE_KEY] = MetaValue(recipe.gate_mode, GGUFValueType.STRING)
    return meta


def _file_type(value: MetaValue, tensors: list[SourceTensor]) -> MetaValue:
    """The base's file type, or Q8_0 where the experts became that."""
    stacks = {tensor.type.name for tensor in tensors if "_exps." in tensor.name}
    return MetaValue(int(LlamaFileType.MOSTLY_Q8_0), value.type) if stacks == {"Q8_0"} else value


def _texts(values: list[str]) -> MetaValue:
    # YAML can spell half a surrogate pair, which is no text
    return MetaValue([v.encode("utf-8", "replace").decode() for v in values], GGUFValueType.ARRAY, GGUFValueType.STRING)
