"""Dense checkpoints whose vocabularies differ, and a recipe of them: what mergekit-moe merges is recorded."""

from __future__ import annotations

from pathlib import Path

import yaml

from tests.checkpoints import added_token, bpe_tokenizer, bpe_vocab, write_checkpoint

ADDED = ("<|user|>", "<|bot|>")
PROMPTS = ("the moe", "in the expert", "token 10")


def write_sources(folder: Path, base: str = "plain") -> Path:
    """plain; more: two added tokens and five rows of padding; none: no tokenizer at all. Returns the recipe's file.

    The recipe merges all three behind `base`, in float32, its router by cheap_embed.
    """
    tokenizer = bpe_tokenizer()
    tokenizer["added_tokens"] += [added_token(len(bpe_vocab()) + 1 + i, name) for i, name in enumerate(ADDED)]
    rows = len(bpe_vocab()) + 1
    dense = {"family": "llama"}
    write_checkpoint(folder / "plain", **dense, dtypes={"mlp": "F16"})
    write_checkpoint(folder / "more", **dense, n_vocab=rows + 7, texts={"tokenizer.json": tokenizer}, dtype="BF16")
    write_checkpoint(folder / "none", **dense, tokenizer="none", n_vocab=rows)
    experts = [
        {"source_model": str(folder / name), "positive_prompts": [prompt]}
        for name, prompt in zip(("plain", "more", "none"), PROMPTS, strict=True)
    ]
    recipe = {"base_model": str(folder / base), "gate_mode": "cheap_embed", "dtype": "float32", "experts": experts}
    (folder / "recipe.yml").write_text(yaml.safe_dump(recipe))
    return folder / "recipe.yml"
