"""Which of the layouts that checkpoints are published in a folder has, and its files opened.

Hugging Face's (config.json; model*.safetensors, or pytorch_model*.bin) comes first: folders that hold Mistral's own
files (params.json, consolidated*) beside it hold the same weights twice. Pickled files are read only when asked for.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localmoe.errors import BadInputError, FileError

from .checkpoint import (
    SAFETENSORS,
    CheckpointTensor,
    Files,
    check_numbering,
    find_file,
    listing,
    open_checkpoint,
    read_json,
    read_safetensors,
)
from .consolidated import PARAMS, as_config
from .hparams import Warn
from .pickled import read_pickled

PICKLED = Files("pytorch_model.bin.index.json", "pytorch_model", ".bin", read_pickled)
MISTRALS = Files("consolidated.safetensors.index.json", "consolidated", ".safetensors", read_safetensors)
_MISTRALS_SUFFIXES = (".safetensors", ".safetensors.index.json", ".pth", ".pt")
_PICKLES = (".bin", ".pth", ".pt", ".ckpt")


@dataclass(frozen=True)
class Layout:
    """A folder's config.json, or what stands for it, the file it is from, and the tensors of each file.

    `native` are Mistral's own names and order of rotary rows.
    """

    config: dict[str, Any]
    config_file: Path
    files: list[dict[str, CheckpointTensor]]
    native: bool = False


def open_layout(folder: Path, allow_pickle: bool, warn: Warn) -> Layout:
    """Open a checkpoint folder; BadInputError where it is none, or is pickled and that is not allowed."""
    names = _names(folder)
    config = read_json(folder, "config.json")
    if config is not None and isinstance(config.get("text_config"), dict):
        config |= config["text_config"]
    hugging_face = [kind for kind in (SAFETENSORS, PICKLED) if any(map(kind.has, names)) or kind.index in names]
    own = [name for name in names if name.startswith(MISTRALS.prefix) and name.endswith(_MISTRALS_SUFFIXES)]
    if config is not None and hugging_face:
        if hugging_face[0] is PICKLED:
            _allow([name for name in names if PICKLED.has(name)], folder, allow_pickle)
        return Layout(config, folder / "config.json", [open_checkpoint(folder, hugging_face[0])])
    if PARAMS in names and own:
        return _open_native(folder, own, allow_pickle, warn)
    raise _nothing(folder, names, config is not None)


def _names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError as error:
        raise FileError(f"cannot be read: {error.strerror}", file=folder) from error


def _open_native(folder: Path, names: list[str], allow_pickle: bool, warn: Warn) -> Layout:
    files = _native_files(folder, names, allow_pickle)
    params = read_json(folder, PARAMS)
    assert params is not None
    has_output = any("output.weight" in file for file in files)
    return Layout(as_config(params, folder / PARAMS, has_output, warn), folder / PARAMS, files, native=True)


def _native_files(folder: Path, names: list[str], allow_pickle: bool) -> list[dict[str, CheckpointTensor]]:
    """The tensors of each file; those of an index together."""
    if MISTRALS.index in names:
        return [open_checkpoint(folder, MISTRALS)]
    safe = [name for name in names if name.endswith(MISTRALS.suffix)]
    if not safe:
        _allow(names, folder, allow_pickle)
    check_numbering(folder, safe or names)
    files = []
    for name in safe or names:
        path = find_file(folder, name)
        if path is None:
            raise BadInputError("is a link to nothing", file=folder / name)
        files.append((read_safetensors if safe else read_pickled)(path, folder / name))
    return files


def _allow(names: list[str], folder: Path, allowed: bool) -> None:
    if not allowed:
        reason = (
            "holds only pickled weights, a format that can run code when it is read; --allow-pickle reads their "
            "tensors without running anything"
        )
        raise BadInputError(reason, file=folder, item=listing(names))


def _nothing(folder: Path, names: list[str], has_config: bool) -> BadInputError:
    """Why a folder is no checkpoint."""
    if "adapter_config.json" in names:
        return BadInputError("is a LoRA adapter, not a model: merge it into its base model first", file=folder)
    pickles = [name for name in names if name.endswith(_PICKLES) and name != "training_args.bin"]
    if pickles and not any(name.endswith(".safetensors") for name in names):
        reason = "holds only pickled weights, and not in a layout that --allow-pickle could read"
        expected = "pytorch_model*.bin and config.json, or consolidated* and params.json"
        return BadInputError(reason, file=folder, item=listing(pickles), expected=expected)
    if any(name.startswith(MISTRALS.prefix) for name in names):
        return BadInputError(f"Mistral's own weights (consolidated*) need {PARAMS} beside them", file=folder)
    if not has_config:
        return BadInputError("no config.json in the folder", file=folder)
    return BadInputError("no model*.safetensors in the folder", file=folder)
