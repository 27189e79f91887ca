"""The `general.*` keys of a checkpoint: who made it and what it is called.

The rules (model card, config.json, then the folder's name taken apart) are gguf-py's own; it is fed with files that
were read through the checkpoint's walls.
"""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import gguf
import yaml
from gguf import GGUFValueType, GGUFWriter

from localmoe.errors import BadInputError

from .checkpoint import parse_json, read_text
from .hparams import Warn
from .source import MetaValue, SourceTensor
from .yaml_faults import YAML_FAULTS

MAX_CARD_VALUES = 100_000
# generation_config.json -> sampling attribute of gguf.Metadata, with its type; the first name present counts
SAMPLING: dict[str, tuple[type, tuple[str, ...]]] = {
    "sampling_sequence": (str, ("sequence",)),
    "sampling_top_k": (int, ("top_k",)),
    "sampling_top_p": (float, ("top_p",)),
    "sampling_min_p": (float, ("min_p",)),
    "sampling_xtc_probability": (float, ("xtc_probability",)),
    "sampling_xtc_threshold": (float, ("xtc_threshold",)),
    "sampling_temp": (float, ("temperature",)),
    "sampling_penalty_last_n": (int, ("penalty_last_n",)),
    "sampling_penalty_repeat": (float, ("penalty_repeat", "repetition_penalty")),
    "sampling_mirostat": (int, ("mirostat",)),
    "sampling_mirostat_tau": (float, ("mirostat_tau",)),
    "sampling_mirostat_eta": (float, ("mirostat_eta",)),
}


def collected(writer: GGUFWriter) -> dict[str, MetaValue]:
    """The keys a GGUFWriter was given, in order, without `general.architecture`, which it sets by itself.

    Raises ValueError where a text is none: the writer itself would notice only while writing.
    """
    keys: dict[str, MetaValue] = {}
    for name, entry in writer.kv_data[0].items():
        is_array = entry.type == GGUFValueType.ARRAY
        values = entry.value if is_array else [entry.value]
        if is_array or entry.type == GGUFValueType.STRING:
            if not all(isinstance(text, str) for text in values):
                raise ValueError(f"{name} is not text: {repr(entry.value)[:80]}")
            "".join(values).encode("utf-8")  # raises UnicodeEncodeError, a ValueError, for half a surrogate pair
        if values and name != "general.architecture":
            keys[name] = MetaValue(entry.value, entry.type, GGUFValueType.STRING if is_array else None)
    return keys


def general_keys(folder: Path, config: dict[str, Any], tensors: list[SourceTensor], warn: Warn) -> dict[str, MetaValue]:
    """`general.architecture` to `general.languages`, in the order in which llama.cpp's converter writes them.

    A model card or generation_config.json that cannot be used is left out with a warning: they describe, not define.
    """
    n_total, n_shared, n_one_expert, n_expert = count_parameters(tensors)
    card = _model_card(folder, warn)
    for source in (card, {}):
        try:
            metadata = gguf.Metadata.apply_metadata_heuristic(
                gguf.Metadata(), source, config, folder.resolve(), n_total
            )
            _set_sampling(metadata, folder, warn)
            metadata.name = metadata.name or folder.resolve().name
            if metadata.size_label is None and n_total > 0:
                metadata.size_label = gguf.size_label(n_total, n_shared, n_one_expert, n_expert)
            writer = GGUFWriter(path=None, arch="llama")
            writer.add_type(gguf.GGUFType.MODEL)
            metadata.set_gguf_meta_model(writer)
            return {"general.architecture": MetaValue("llama", GGUFValueType.STRING), **collected(writer)}
        except YAML_FAULTS as error:  # what a card holds need not be what gguf-py takes it for
            if not source:
                raise BadInputError(f"its names are unusable: {error}", file=folder / "config.json") from error
            warn(f"README.md: model card left out: {error}")
    raise AssertionError("unreachable")


def _model_card(folder: Path, warn: Warn) -> dict[str, Any]:
    """The YAML front matter of README.md, {} without one."""
    try:
        text = read_text(folder, "README.md")
        lines = (text or "").splitlines()
        if not lines or lines[0] != "---":
            return {}
        front = "\n".join(itertools.takewhile(lambda line: line != "---", lines[1:])) + "\n"
        # `- no` is Norwegian, not False; and tabs are no YAML, though model cards have them.
        card = yaml.safe_load(front.replace("- no\n", '- "no"\n').replace("\t", "  "))
    except (*YAML_FAULTS, BadInputError) as error:
        warn(f"README.md: model card left out: {error}")
        return {}
    if not _fits(card):
        warn(f"README.md: model card left out: it expands to more than {MAX_CARD_VALUES} values")
        return {}
    return card if isinstance(card, dict) else {}


def _fits(card: object) -> bool:
    """Whether a card written out has at most MAX_CARD_VALUES values: aliases of aliases make 2^60 of sixty lines."""
    n_left, heap = MAX_CARD_VALUES, [card]
    while heap and n_left >= len(heap):
        value = heap.pop()
        n_left -= 1
        if isinstance(value, dict):
            heap += itertools.chain(value, value.values())
        elif isinstance(value, list | tuple | set):
            heap += value
    return not heap


def _set_sampling(metadata: gguf.Metadata, folder: Path, warn: Warn) -> None:
    try:
        text = read_text(folder, "generation_config.json")
        config = {} if text is None else parse_json(text, folder / "generation_config.json")
    except BadInputError as error:
        warn(f"sampling defaults left out: {error}")
        return
    for attribute, (kind, names) in SAMPLING.items():
        value = next((config[name] for name in names if name in config), None)
        if value is None:
            continue
        fits = isinstance(value, str if kind is str else (int, kind)) and not isinstance(value, bool)
        if fits and (kind is str or abs(value) < 2**31):
            setattr(metadata, attribute, value)
        else:
            warn(f"generation_config.json: {names[0]} left out: {value!r} is no {kind.__name__}")


def count_parameters(tensors: list[SourceTensor]) -> tuple[int, int, int, int]:
    """Parameters in all, outside the experts, in one expert of every stack, and the number of experts."""
    n_total = n_shared = n_one = n_expert_sum = n_stacks = 0
    for tensor in tensors:
        size = math.prod(tensor.shape)
        n_total += size
        if "_exps." in tensor.name:
            n_one += size // tensor.shape[0]
            n_expert_sum += tensor.shape[0]
            n_stacks += 1
        else:
            n_shared += size
    return n_total, n_shared, n_one, n_expert_sum // n_stacks if n_stacks else 0
