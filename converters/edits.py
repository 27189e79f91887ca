"""What `--override-kv` and `--prune-layers` change of a GGUF before it is written, as llama-quantize does.

Sources: llama.cpp's common/common.cpp (string_parse_kv_override) and src/llama-quant.cpp (remap_layer).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from gguf import GGUFValueType

from localmoe.errors import BadInputError, UsageError
from localmoe.gguf_file import GGUFFile, visible

from .source import MetaValue, SourceModel

_OPTION = "--override-kv"
_FORM = "KEY=int:N, KEY=float:X, KEY=bool:true or KEY=str:TEXT"
_MAX_BYTES = 127  # of a key or a text, in llama.cpp's fixed fields
_LAYER = re.compile(r"blk\.(\d+)\.")
_OF_THE_FILE = ("general.alignment", "split.no", "split.count", "split.tensors.count")
_KINDS = {
    "int": (GGUFValueType.UINT32, "a whole number from 0 to 4294967295"),
    "float": (GGUFValueType.FLOAT32, "a number"),
    "bool": (GGUFValueType.BOOL, "true or false"),
    "str": (GGUFValueType.STRING, f"at most {_MAX_BYTES} bytes"),
}
_KIND_OF = {
    GGUFValueType.FLOAT32: "float", GGUFValueType.FLOAT64: "float", GGUFValueType.BOOL: "bool",
    GGUFValueType.STRING: "str", GGUFValueType.ARRAY: "a list",
}  # fmt: skip


def parse_overrides(texts: Iterable[str]) -> dict[str, MetaValue]:
    """Keys and values of `KEY=TYPE:VALUE`; UsageError for what is none, or two of one key."""
    keys: dict[str, MetaValue] = {}
    for text in texts:
        key, equals, typed = text.partition("=")
        kind, colon, value = typed.partition(":")
        if (
            not (key and equals and colon and kind in _KINDS)
            or len(key.encode("utf-8", "surrogateescape")) > _MAX_BYTES
        ):
            raise UsageError("not a key and a value", item=_OPTION, got=visible(repr(text), 80), expected=_FORM)
        if key in keys:
            raise UsageError("one value a key", item=_OPTION, got=f"a second one of {visible(key)}")
        if key in _OF_THE_FILE:
            raise UsageError("describes the file and not the model", item=_OPTION, got=key)
        type_, expected = _KINDS[kind]
        parsed = _value(kind, value)
        if parsed is None:
            raise UsageError(
                f"{visible(key)} is no {kind}", item=_OPTION, got=visible(repr(value), 80), expected=expected
            )
        keys[key] = MetaValue(parsed, type_)
    return keys


def _value(kind: str, text: str) -> int | float | bool | str | None:
    """The value that a text spells, None if it spells none."""
    if kind == "int":
        return int(text) if re.fullmatch(r"\+?[0-9]{1,10}", text, re.ASCII) and int(text) < 1 << 32 else None
    if kind == "bool":
        return {"true": True, "false": False}.get(text)
    if kind == "str":
        return text if len(text.encode("utf-8", "surrogateescape")) <= _MAX_BYTES else None
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) and abs(number) < 3.4028235e38 else None


def override(gguf: GGUFFile, keys: Mapping[str, MetaValue]) -> None:
    """Set an open file's keys to other values, in memory; UsageError where a key's are of another type."""
    for key, entry in keys.items():
        if key in gguf.metadata:
            wanted, given = (_KIND_OF.get(type_, "int") for type_ in (gguf.metadata_types[key][0], entry.type))
            if wanted != given:
                raise UsageError(
                    f"{visible(key)} is of another type in {visible(str(gguf.path))}", item=_OPTION, got=given,
                    expected=wanted,
                )  # fmt: skip
        gguf.metadata[key] = entry.value
        gguf.metadata_types[key] = (entry.type, None)


def parse_layers(text: str) -> frozenset[int]:
    """The layers of `L0,L1,L2`; UsageError for what is none."""
    parts = [part.strip() for part in text.split(",")]
    if not all(re.fullmatch(r"[0-9]{1,9}", part, re.ASCII) for part in parts):
        raise UsageError("not layers", item="--prune-layers", got=visible(repr(text), 80), expected="numbers, as 3,4,5")
    return frozenset(map(int, parts))


def prune(model: SourceModel, layers: frozenset[int]) -> SourceModel:
    """The model without some layers, those behind them moved up; its types are still chosen as of all layers.

    UsageError: a layer that is not there, or all of them. BadInputError: numbers of layers with gaps.
    """
    there = sorted({int(found[1]) for tensor in model.tensors if (found := _LAYER.search(tensor.name))})
    if unknown := sorted(layers - set(there)):
        raise UsageError(
            "no such layer", file=model.label, item="--prune-layers", got=unknown[0], expected=_range(there)
        )
    kept = [layer for layer in there if layer not in layers]
    if not kept:
        raise UsageError("would leave no layer", file=model.label, item="--prune-layers")
    if there != list(range(len(there))):
        raise BadInputError("layers are missing", file=model.label, got=f"{len(there)}", expected=f"{there[-1] + 1}")
    moved = {layer: i for i, layer in enumerate(kept)}
    tensors = []
    for tensor in model.tensors:
        found = _LAYER.search(tensor.name)
        if found is None:
            tensors.append(tensor)
        elif (layer := moved.get(int(found[1]))) is not None:
            name = f"{tensor.name[: found.start(1)]}{layer}{tensor.name[found.end(1) :]}"
            tensors.append(replace(tensor, name=name, measured_as=tensor.measured_as or tensor.name))
    arch = model.metadata["general.architecture"].value
    count = {f"{arch}.block_count": MetaValue(len(kept), GGUFValueType.UINT32)}
    return replace(model, tensors=tensors, last_keys=count)


def _range(layers: Sequence[int]) -> str:
    return f"{layers[0]} to {layers[-1]}" if layers else "a model with layers"
