"""Prompts of a recipe as mergekit-moe tokenizes them, on top of transformers 5.24: recorded from a run."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from localmoe.converters.franken_prompts import base_tokenizer, prefix_rule, prompt_ids
from localmoe.converters.franken_recipe import read_recipe
from localmoe.converters.franken_source import open_sources
from tests.checkpoints import spm_model, spm_pieces, write_checkpoint

from .test_franken import quiet, write_recipe

PROMPTS = ("the moe", " the", "</s>the", "</s> the")
# the tokens of PROMPTS after BOS
NEVER = (["the", "\u2581moe"], ["\u2581the"], ["</s>", "the"], ["</s>", "\u2581the"])
WITHOUT_ONE = (["\u2581the", "\u2581moe"], ["\u2581the"], ["</s>", "\u2581the"], ["</s>", "\u2581the"])
ALWAYS = (*WITHOUT_ONE[:1], ["\u2581", "\u2581the"], WITHOUT_ONE[2], ["</s>", "\u2581", "\u2581the"])


def metaspace(scheme: str) -> dict[str, Any]:
    """A tokenizer.json that has nothing but how a space goes before a text."""
    pre = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": scheme, "split": False}
    return {"tokenizer.json": {"model": {"type": "BPE", "vocab": {}, "merges": []}, "pre_tokenizer": pre}}


_PREPEND = {"type": "Prepend", "prepend": "\u2581"}
_REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
PREPENDED = {
    "tokenizer.json": {
        "model": {"type": "BPE", "vocab": {}, "merges": []},
        "normalizer": {"type": "Sequence", "normalizers": [_PREPEND, _REPLACE]},
    }
}


@pytest.mark.parametrize(
    ("family", "config", "texts", "wanted"),
    [
        ("llama", {"tokenizer_class": "LlamaTokenizer"}, {}, NEVER),
        ("llama", {"tokenizer_class": "LlamaTokenizerFast", "legacy": False}, metaspace("always"), NEVER),
        ("llama", {"tokenizer_class": "LlamaTokenizer", "legacy": True}, {}, WITHOUT_ONE),
        ("llama", {"tokenizer_class": "LlamaTokenizer", "legacy": True, "add_prefix_space": False}, {}, NEVER),
        ("llama", {"tokenizer_class": "PreTrainedTokenizerFast"}, {}, ALWAYS),
        ("mistral", {"tokenizer_class": "LlamaTokenizer", "add_prefix_space": False}, {}, ALWAYS),
        ("mistral", {"tokenizer_class": "LlamaTokenizer"}, PREPENDED, ALWAYS),
        ("mistral", {"tokenizer_class": "LlamaTokenizer"}, {}, ALWAYS),
        ("mistral", {"tokenizer_class": "LlamaTokenizer", "legacy": None}, {}, NEVER),
        ("mistral", {"tokenizer_class": "LlamaTokenizer"}, metaspace("always"), WITHOUT_ONE),
        ("mistral", {"tokenizer_class": "LlamaTokenizer"}, metaspace("first"), NEVER),
        ("mistral", {"tokenizer_class": "LlamaTokenizer"}, metaspace("never"), NEVER),
    ],
)  # fmt: skip
def test_the_space_before_a_prompt(
    tmp_path: Path, family: str, config: dict[str, Any], texts: dict[str, Any], wanted: tuple[list[str], ...]
) -> None:
    files = {"tokenizer_config.json": config} | texts
    folder = write_checkpoint(
        tmp_path / "base", family=family, n_vocab=len(spm_pieces()), tokenizer="none", texts=files
    )  # fmt: skip
    (folder / "tokenizer.model").write_bytes(spm_model())
    source = {"source_model": "base"}
    recipe = write_recipe(
        tmp_path, base_model="base", experts=[{**source, "positive_prompts": [p]} for p in PROMPTS]
    )  # fmt: skip
    with ExitStack() as stack:
        base = open_sources(read_recipe(recipe, quiet), stack, pre=None, allow_pickle=False, warn=quiet).base
        tokenizer, rule = base_tokenizer(base), prefix_rule(base)
        found = [prompt_ids(tokenizer, prompt, rule) for prompt in PROMPTS]
    pieces = [piece for piece, _, _ in spm_pieces()]
    assert [[pieces[i] for i in ids] for ids in found] == [["<s>", *tokens] for tokens in wanted]
