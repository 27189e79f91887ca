"""Sources that are neither Llama nor Mistral: refused, with their place in the recipe and what they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from localmoe.cli import main
from tests.checkpoints import Tiny, write_checkpoint
from tests.tiny import STR, U32, write_tiny

DENSE = Tiny("llama", n_layer=1, tokenizer="spm")

# config.json's architectures and model_type, what the refusal calls it, and what it says of mergekit-moe
FOLDERS = [
    ("Qwen2ForCausalLM", "qwen2", "mergekit-moe makes a Qwen MoE of it, got Qwen2ForCausalLM"),
    ("Qwen3ForCausalLM", "qwen3", "mergekit-moe makes a Qwen3 MoE of it, got Qwen3ForCausalLM"),
    (None, "qwen2", "mergekit-moe makes a Qwen MoE of it, got qwen2"),
    ("PhiForCausalLM", "phi", "which localmoe writes, got PhiForCausalLM"),
    ("Phi3ForCausalLM", "phi3", "which localmoe writes, got Phi3ForCausalLM"),
    ("GemmaForCausalLM", "gemma", "which localmoe writes, got GemmaForCausalLM"),
    ("DeepseekForCausalLM", "deepseek", "which localmoe writes, got DeepseekForCausalLM"),
    ("Qwen2MoeForCausalLM", "qwen2_moe", "which localmoe writes, got Qwen2MoeForCausalLM"),
    ("x" * 500 + "\x1b[2J", "x", f"which localmoe writes, got {'x' * 40}"),
]


def merge(folder: Path, base: Path, expert: Path, **fields: Any) -> int:
    recipe: dict[str, Any] = {"base_model": str(base), "gate_mode": "random"} | fields
    recipe["experts"] = [{"source_model": str(path)} for path in (base, expert)]
    (folder / "recipe.yml").write_text(yaml.safe_dump(recipe))
    return main(["franken", str(folder / "recipe.yml"), "-o", str(folder / "out.gguf"), "--type", "F16"])


def check(folder: Path, source: Path, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """As the base and as an expert: 3, one line, no output."""
    good = write_checkpoint(folder / "good", DENSE)
    for item, pair in (("base_model", (source, good)), ("experts[1].source_model", (good, source))):
        assert merge(folder, *pair) == 3
        error = capsys.readouterr().err
        assert error.startswith(f"error: {folder / 'recipe.yml'}: {item}: {source} cannot be merged into a Mixtral")
        assert said in error
        assert error.rstrip().isprintable()
        assert not (folder / "out.gguf").exists()


@pytest.mark.parametrize(("architecture", "kind", "said"), FOLDERS, ids=[f"{a or ''} {k}"[:24] for a, k, _ in FOLDERS])
def test_folders(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], architecture: str | None, kind: str, said: str
) -> None:
    """Before a tensor is looked at: other architectures have others."""
    config = {"architectures": [architecture] if architecture else None, "model_type": kind}
    source = write_checkpoint(tmp_path / "source", DENSE, config=config)
    (source / "model.safetensors").unlink()
    check(tmp_path, source, said, capsys)


@pytest.mark.parametrize(("architecture", "said"), [("qwen2", "makes a Qwen MoE of it, got qwen2"), ("gemma", "gemma")])
def test_ggufs(tmp_path: Path, capsys: pytest.CaptureFixture[str], architecture: str, said: str) -> None:
    more = {"general.architecture": (architecture, STR, None), f"{architecture}.block_count": (1, U32, None)}
    source = write_tiny(tmp_path / "source.gguf", n_layer=1, n_expert=0, extra_metadata=more)
    check(tmp_path, source, said, capsys)


@pytest.mark.parametrize("config", [{}, {"architectures": ["MistralForCausalLM"]}, {"architectures": None}])
def test_what_is_merged(tmp_path: Path, config: dict[str, Any]) -> None:
    """Llama and Mistral, told by the architecture or by the type alone."""
    base, expert = (write_checkpoint(tmp_path / name, DENSE, config=config) for name in ("base", "expert"))
    assert merge(tmp_path, base, expert, architecture="mixtral") == 0
