"""A recipe's prompts as token ids: what mergekit-moe's call of transformers' tokenizer gives.

It puts the text of the BOS token in front of a prompt and asks for no special tokens beside it, so a prompt never
starts the text, and whether a SentencePiece vocabulary's space still goes before it is up to the tokenizer's files.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from gguf import GGUFValueType

from .checkpoint import read_json
from .franken_compare import Source
from .source import MetaValue
from .tokenizer_files import read_files, tokenizer_class

if TYPE_CHECKING:
    from localmoe.text.tokenizer import Tokenizer

_SPACE_PREFIX = "tokenizer.ggml.add_space_prefix"
_NUMBERS = {GGUFValueType.INT32: np.int32, GGUFValueType.FLOAT32: np.float32}  # of a vocabulary's arrays


class Prefix(Enum):
    """When a space goes before a prompt: as the vocabulary has it, always, unless it has one, where a text starts."""

    VOCABULARYS = "vocabulary's"
    ALWAYS = "always"
    WITHOUT_ONE = "without one"
    FIRST = "first"
    NEVER = "never"


def base_tokenizer(base: Source) -> Tokenizer:
    """The base model's tokenizer; that of a checkpoint puts a space before a text where `prompt_ids` says so."""
    from localmoe.text.tokenizer import Tokenizer
    from localmoe.text.vocabulary import read_vocabulary

    metadata = {key: _as_read(entry) for key, entry in base.model.metadata.items()}
    if base.gguf is None and metadata.get("tokenizer.ggml.model") == "llama":
        metadata[_SPACE_PREFIX] = True
    return Tokenizer(read_vocabulary(metadata, str(base.path)), str(base.path))


def _as_read(entry: MetaValue) -> Any:
    """A metadata value as reading it from a file would give it: numeric arrays are NumPy's."""
    if entry.type != GGUFValueType.ARRAY or entry.element == GGUFValueType.STRING:
        return entry.value
    return np.asarray(entry.value, _NUMBERS.get(entry.element))


def prefix_rule(base: Source) -> Prefix:
    """What transformers makes of the base's tokenizer files; a GGUF has none, and its vocabulary says it all."""
    config = None if base.gguf is not None else read_json(base.path, "config.json")
    return Prefix.VOCABULARYS if config is None else _rule(base.path, config)


def _rule(folder: Path, config: dict[str, Any]) -> Prefix:
    files = read_files(folder, config)
    settings = files.tokenizer_config or {}
    if tokenizer_class(files) == "LlamaTokenizer":  # it makes its own of the vocabulary
        old = settings.get("legacy") and settings.get("add_prefix_space") is not False
        return Prefix.WITHOUT_ONE if old else Prefix.FIRST
    if files.tokenizer is None:
        return Prefix.ALWAYS if settings.get("legacy", True) else Prefix.FIRST
    step = next(_steps(files.tokenizer.get("pre_tokenizer"), "pretokenizers", "Metaspace"), None)
    if step is not None:
        schemes = {"first": Prefix.FIRST, "never": Prefix.NEVER}
        return schemes.get(str(step.get("prepend_scheme")), Prefix.WITHOUT_ONE)
    prepends = any(_steps(files.tokenizer.get("normalizer"), "normalizers", "Prepend"))
    return Prefix.ALWAYS if prepends else Prefix.NEVER


def _steps(node: object, children: str, kind: str) -> Iterator[dict[str, Any]]:
    """The steps of one type in a normalizer or pre_tokenizer section, sequences taken apart."""
    if not isinstance(node, dict):
        return
    if node.get("type") == "Sequence" and isinstance(node.get(children), list):
        for child in node[children]:
            yield from _steps(child, children, kind)
    elif node.get("type") == kind:
        yield node


def prompt_ids(tokenizer: Tokenizer, prompt: str, rule: Prefix = Prefix.VOCABULARYS) -> list[int]:
    """A prompt's tokens: BOS, where the vocabulary has one, and the prompt's own, special tokens parsed."""
    bos = tokenizer.own_bos
    in_front = {Prefix.WITHOUT_ONE: None, Prefix.NEVER: False, Prefix.FIRST: None if bos is None else False}
    ids = tokenizer.encode(prompt, add_bos=False, parse_special=True, space_prefix=in_front.get(rule, True))
    return ids if bos is None else [bos, *ids]
