"""The general.* keys: what a model card may do, and that it never stops a conversion."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from localmoe.converters.card import general_keys
from localmoe.converters.huggingface import load_source
from tests.checkpoints import write_checkpoint


def keys(folder: Path, card: str, **config: Any) -> tuple[dict[str, Any], list[str]]:
    """The keys of a folder with a model card, and the notes."""
    folder.mkdir(exist_ok=True)
    (folder / "README.md").write_text(card, encoding="utf-8")
    notes: list[str] = []
    found = general_keys(folder, config, [], notes.append)
    return {name.removeprefix("general."): value.value for name, value in found.items()}, notes


def test_a_card_names_licence_languages_and_base_models(tmp_path: Path) -> None:
    """And `- no` is Norwegian."""
    card = "---\nlicense: mit\nlanguage:\n- en\n- no\nbase_model: mistralai/Mistral-7B-v0.1\n---\n# Title\n"
    found, notes = keys(tmp_path / "Fine-8x7B-Chat-v2", card)
    assert (found["license"], found["languages"]) == ("mit", ["en", "no"])
    assert (found["base_model.count"], found["base_model.0.repo_url"]) == (
        1,
        "https://huggingface.co/mistralai/Mistral-7B-v0.1",
    )
    assert (found["basename"], found["size_label"], found["finetune"], found["version"]) == (
        "Fine",
        "8x7B",
        "Chat",
        "v2",
    )
    assert notes == []


@pytest.mark.parametrize(
    "front",
    [
        "a: [",
        "license: {a: 1}",
        "language: [1, 2]",
        "tags: [[x]]",
        'license: "\\ud800"',
        "base_model: 7",
        "[" * 5000,
        "date: 2024-13-45",
        "a: !!int ''",
        "a: !!bool x",
        "a: !!timestamp x",
    ],
)
def test_an_unusable_card_is_left_out_with_a_note(tmp_path: Path, front: str) -> None:
    """The conversion goes on: a card describes the model, and decides nothing."""
    found, _ = keys(tmp_path / "name", f"---\n{front}\n---\n")
    assert found["name"] == "Name"
    assert not {"license", "languages", "tags"} & set(found)


def test_a_card_of_aliases_is_not_written_out(tmp_path: Path) -> None:
    """Eleven lines that stand for 9^12 words, and one that holds itself."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    for front in ("\n".join([*lines, "tags: *a11"]), "tags: &a [*a]"):
        found, notes = keys(tmp_path / "name", f"---\n{front}\n---\n")
        assert "tags" not in found
        assert notes == ["README.md: model card left out: it expands to more than 100000 values"]


def test_sampling_defaults_of_the_wrong_kind_are_left_out(tmp_path: Path) -> None:
    """generation_config.json's numbers must be numbers."""
    text = {"temperature": "hot", "top_k": 2**40, "top_p": 0.5, "min_p": True}
    notes: list[str] = []
    folder = write_checkpoint(tmp_path / "m", texts={"generation_config.json": text})
    metadata = load_source(folder, warn=notes.append).metadata
    assert {name for name in metadata if ".sampling." in name} == {"general.sampling.top_p"}
    assert [note.split()[1] for note in notes] == ["top_k", "min_p", "temperature"]


@pytest.mark.parametrize("text", ["{", "[1]", '{"top_k": 1, "top_k": 2}'])
def test_a_broken_generation_config_is_left_out(tmp_path: Path, text: str) -> None:
    """With a note."""
    notes: list[str] = []
    load_source(write_checkpoint(tmp_path / "m", texts={"generation_config.json": text}), warn=notes.append)
    assert "sampling defaults left out" in notes[0]
