"""Whether the models of a recipe fit together, and what of an expert does not count.

As in mergekit-moe's Mixtral output, everything but the feed-forward matrices is the base's: its vocabulary, embedding
and output as they are. An expert whose vocabulary differs (added tokens, padding, tokens with other names) merges all
the same, and a note says what of it is dropped. Refused is what cannot be right: matrices that do not fit, and
models that have less than half a vocabulary in common, since the hidden states of one mean nothing to the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from localmoe.errors import BadInputError
from localmoe.gguf_file import GGUFFile, visible

from .hparams import Warn
from .source import SourceModel, SourceTensor

TOKENS = "tokenizer.ggml.tokens"
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
)
# Keys of the attention alone, which is the base's: that an expert was trained with others is worth a note.
_NOTED: tuple[tuple[str, Any], ...] = (
    ("llama.rope.freq_base", 10000.0),
    ("llama.rope.scaling.type", "none"),
    ("llama.rope.scaling.factor", 1.0),
)


@dataclass(frozen=True)
class Source:
    """An opened model; `gguf` is None for a checkpoint folder."""

    path: Path
    model: SourceModel
    gguf: GGUFFile | None

    @property
    def tensors(self) -> dict[str, SourceTensor]:
        return {tensor.name: tensor for tensor in self.model.tensors}


def check_dense(source: Source) -> None:
    """BadInputError for a mixture of experts."""
    if source.model.n_expert:
        raise BadInputError(
            "is a mixture of experts already, and only dense models can be merged",
            file=source.path, item="llama.expert_count", got=source.model.n_expert, expected="none",
        )  # fmt: skip


def check_fits(base: Source, other: Source, warn: Warn) -> None:
    """BadInputError for the first thing in which `other` does not fit the base; `warn` is told what does not count."""
    if base is other:
        _tokens(base)
        return
    for key, default in _KEYS:
        wanted, got = _key(base, key, default), _key(other, key, default)
        if not np.array_equal(wanted, got):
            raise _difference(base, other, key, got, wanted)
    for key, default in _NOTED:
        wanted, got = _key(base, key, default), _key(other, key, default)
        if wanted != got:
            warn(f"{other.path}: its {key} {visible(str(got), 40)} is not kept: the base's {wanted} counts")
    _compare_vocabularies(base, other, warn)


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


def _compare_vocabularies(base: Source, other: Source, warn: Warn) -> None:
    """Notes on how an expert's tokens differ from the base's; BadInputError where most of them do."""
    wanted = _tokens(base)
    if TOKENS not in other.model.metadata:
        warn(f"{other.path}: has no vocabulary of its own: the base's counts")
        return
    got = _tokens(other)
    shared = min(len(wanted), len(got))
    changed = [i for i in range(shared) if wanted[i] != got[i]]
    if 2 * (shared - len(changed)) < max(len(wanted), len(got)):
        got_text = f"{shared - len(changed)} of {len(got)} tokens are the base's"
        raise _difference(base, other, TOKENS, got_text, f"at least half of {max(len(wanted), len(got))}")
    if changed:
        first = changed[0]
        names = " instead of ".join(visible(repr(tokens[first]), 30) for tokens in (got, wanted))
        warn(
            f"{other.path}: the base's vocabulary counts: {len(changed)} of {shared} tokens differ, "
            f"the first is {first} ({names})"
        )
    if len(got) > shared:
        warn(f"{other.path}: vocabulary cut: it has {_named(got, shared)} that the base lacks")
    elif len(wanted) > shared:
        warn(f"{other.path}: vocabulary padded: it lacks {_named(wanted, shared)} that the base has")


def _named(tokens: list[str], start: int) -> str:
    """How many tokens come from `start` on, and the first few."""
    more = tokens[start:]
    names = ", ".join(visible(repr(token), 30) for token in more[:4]) + (", ..." if len(more) > 4 else "")
    return f"{len(more)} token{'s' if len(more) > 1 else ''} at the end ({names})"


def _tokens(source: Source) -> list[str]:
    """The vocabulary without the padding that only fills up the embedding; BadInputError where there is none."""
    entry = source.model.metadata.get(TOKENS)
    if entry is None or not isinstance(entry.value, list):
        raise BadInputError("the key is missing or of the wrong type", file=source.path, item=TOKENS)
    tokens = list(entry.value)
    while tokens and isinstance(tokens[-1], str) and tokens[-1].startswith("[PAD") and tokens[-1][4:-1].isdigit():
        tokens.pop()
    return tokens
