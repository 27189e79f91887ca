"""Recipes: what is read, what is ignored, and which field an error names."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from localmoe.converters.franken_recipe import Recipe, RecipeExpert, _Loader, read_recipe
from localmoe.errors import BadInputError, FileError
from tests.slowness import slowness


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with two things that could be models."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "base").mkdir()
    (tmp_path / "other.gguf").touch()
    return tmp_path


def fields(**changes: Any) -> dict[str, Any]:
    """A recipe's fields; None removes one."""
    recipe: dict[str, Any] = {
        "base_model": "models/base",
        "experts": [
            {"source_model": "models/base", "positive_prompts": ["Once"]},
            {"source_model": "other.gguf", "positive_prompts": ["def f():"], "negative_prompts": ["Hi"]},
        ],
    }
    return {key: value for key, value in (recipe | changes).items() if value is not None}


def expert(**changes: Any) -> list[dict[str, Any]]:
    """Two experts, the second one changed."""
    first, second = fields()["experts"]
    return [first, second | changes]


def read(folder: Path, text: str | dict[str, Any], notes: list[str] | None = None) -> Recipe:
    file = folder / "recipe.yml"
    file.write_text(text if isinstance(text, str) else yaml.safe_dump(text), encoding="utf-8")
    return read_recipe(file, (notes if notes is not None else []).append)


def test_what_is_left_out_is_as_in_mergekit(folder: Path) -> None:
    recipe = read(folder, fields())
    assert (recipe.gate_mode, recipe.n_used, recipe.dtype) == ("hidden", 2, None)
    assert recipe.experts == (
        RecipeExpert(folder / "models" / "base", ("Once",), label="Once"),
        RecipeExpert(folder / "other.gguf", ("def f():",), ("Hi",), label="def f():"),
    )


def test_every_field(folder: Path) -> None:
    second = {"noise_scale": 0.5, "residual_scale": 2, "label": "  code\nand  more "}
    recipe = read(
        folder,
        fields(
            gate_mode="hidden_avg", dtype="torch.bfloat16", experts_per_token=1, architecture="Mixtral",
            shared_experts=[], experts=expert(**second),
        ),
    )  # fmt: skip
    assert (recipe.gate_mode, recipe.n_used, recipe.dtype) == ("hidden_avg", 1, "bfloat16")
    changed = recipe.experts[1]
    assert (changed.noise_scale, changed.residual_scale, changed.label) == (0.5, 2.0, "code and more")


def test_paths_start_at_the_recipes_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    assert read(folder, fields()).base == folder / "models" / "base"
    absolute = fields(base_model={"model": {"path": str(folder / "other.gguf")}})
    assert read(folder, absolute).base == folder / "other.gguf"


def test_a_number_that_yaml_reads_as_text(folder: Path) -> None:
    text = yaml.safe_dump(fields(experts=expert())) + ""
    text = text.replace("source_model: other.gguf", "source_model: other.gguf\n  noise_scale: 1e-3")
    assert read(folder, text).experts[1].noise_scale == 0.001


@pytest.mark.parametrize("spelled", ["'1'", "' 1 '", "1.0", "0x1", "!!str 1"])
def test_a_number_of_experts_that_yaml_reads_as_another_kind(folder: Path, spelled: str) -> None:
    """As mergekit-moe takes it."""
    assert read(folder, yaml.safe_dump(fields()) + f"experts_per_token: {spelled}\n").n_used == 1


def test_a_long_prompt_makes_a_short_label(folder: Path) -> None:
    label = read(folder, fields(experts=expert(positive_prompts=["word " * 40]))).experts[1].label
    assert len(label) <= 40
    assert label.endswith("word…")


def test_random_routers_need_no_prompts(folder: Path) -> None:
    bare = [{"source_model": "other.gguf"}, {"source_model": "other.gguf"}]
    for mode in ("random", "uniform_random"):
        recipe = read(folder, fields(gate_mode=mode, experts=bare))
        assert [e.label for e in recipe.experts] == ["other", "other"]


@pytest.mark.parametrize("name", ["", "mixtral", "Mixtral", "MIX", "m"])
def test_architectures_that_mergekit_makes_a_mixtral_of(folder: Path, name: str) -> None:
    assert read(folder, fields(architecture=name)) == read(folder, fields())


def test_unknown_fields_are_ignored_as_mergekit_does_but_named(folder: Path) -> None:
    notes: list[str] = []
    read(folder, fields(merge_method="x", experts=expert(positive_promts=["a"])), notes)
    assert [note.split(": ")[1] for note in notes] == ["merge_method", "experts[1].positive_promts"]


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"gate_mode": "magic"}, "gate_mode: unknown gate mode, got 'magic'"),
    ({"gate_mode": 3}, "gate_mode: is not text"),
    ({"dtype": "int64"}, "dtype: unknown dtype"),
    ({"architecture": "qwen"}, "architecture: asks for a Qwen MoE, and localmoe writes a Mixtral: leave it out"),
    ({"architecture": "Qwen3 MoE"}, "architecture: asks for a Qwen3 MoE"),
    ({"architecture": "DEEP"}, "architecture: asks for a DeepSeek MoE"),
    ({"architecture": "mixtral moe"}, "architecture: mergekit-moe makes no such architecture, got 'mixtral moe'"),
    ({"architecture": ["mixtral"]}, "architecture: is not text"),
    ({"shared_experts": [{"source_model": "other.gguf"}]}, "shared_experts: a Mixtral has no shared experts"),
    ({"experts_per_token": 3}, "experts_per_token: is not a usable number of experts, got 3, expected 1 to 2"),
    ({"experts_per_token": 0}, "experts_per_token"),
    ({"experts_per_token": True}, "experts_per_token"),
    ({"experts_per_token": 1.5}, "experts_per_token: is not a usable number of experts, got 1.5"),
    ({"experts_per_token": "two"}, "experts_per_token: is not a usable number of experts, got 'two'"),
    ({"experts_per_token": float("inf")}, "experts_per_token: is not a usable number of experts, got inf"),
    ({"base_model": None}, "base_model: is not the path of a model"),
    ({"base_model": {"model": "other.gguf", "lora": "x"}}, "base_model.lora: LoRA"),
    ({"experts": None}, "experts: is not a list of experts, got nothing"),
    ({"experts": expert()[:1]}, "experts: is not a list of experts, got 1 of them"),
    ({"experts": [1, 2]}, r"experts\[0\]: is not a table"),
    ({"experts": [expert()[0]] * 2}, "experts: all experts have the same prompts"),
    ({"experts": expert(positive_prompts=None)}, r"experts\[1\].positive_prompts: needs at least one prompt"),
    ({"experts": expert(positive_prompts="Hi")}, r"experts\[1\].positive_prompts: is not a list"),
    ({"experts": expert(positive_prompts=["a", 12])}, r"experts\[1\].positive_prompts\[1\]: is not text \(quote it\)"),
    ({"experts": expert(noise_scale=-1)}, r"experts\[1\].noise_scale: is negative"),
    ({"experts": expert(noise_scale=float("inf"))}, r"experts\[1\].noise_scale: is not a finite number"),
    ({"experts": expert(residual_scale="big")}, r"experts\[1\].residual_scale: is not a number"),
    ({"experts": expert(label=7)}, r"experts\[1\].label: is not text"),
    ({"name": "a\ud800"}, r"name: is not valid Unicode: a lone surrogate, got U\+D800 at character 1"),
    ({"experts": expert(label="\udc80")}, r"experts\[1\].label: is not valid Unicode"),
    (
        {"experts": expert(positive_prompts=["a", "\udfff"])},
        r"experts\[1\].positive_prompts\[1\]: is not valid Unicode",
    ),
]


@pytest.mark.parametrize(("change", "message"), WRONG, ids=[message[:40] for _, message in WRONG])
def test_errors_name_the_field(folder: Path, change: dict[str, Any], message: str) -> None:
    recipe = fields() | change
    with pytest.raises(BadInputError, match=message) as raised:
        read(folder, {key: value for key, value in recipe.items() if value is not None})
    assert raised.value.file == str(folder / "recipe.yml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "not valid YAML"),
        ("base_model: a\nbase_model: b\n", "'base_model' appears twice"),
        ("base_model: !!python/object/apply:os.system ['true']", "not valid YAML"),
        ("[" * 5000, "not valid YAML"),
        *(
            (f"gate_mode: !!{text}", "not valid YAML")
            for text in ("int ''", "bool x", "timestamp x", "map [a]", "set [a]")
        ),
        ('name: "\\UFFFFFFFF"', "not valid YAML"),
        ("experts_per_token: 0x" + "f" * 5000, "a number of more than 64 bits"),
        ("experts: [{noise_scale: " + "9" * 400 + "}]", "a number of more than 64 bits"),
        ("- a\n", "recipe: is not a table"),
        ("", "recipe: is not a table"),
    ],
)
def test_what_is_no_recipe(folder: Path, text: str, message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        read(folder, text)


@pytest.mark.parametrize("field", ["gate_mode", "base_model", "dtype", "experts", "name"])
def test_aliases_that_double_are_not_spelled_out(folder: Path, field: str) -> None:
    """A list of two lists of two lists ...: 2^60 values, in a message as much as one."""
    lists = "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 60))
    with pytest.raises(BadInputError) as error:
        read(folder, f"a0: &a0 [x, x]\n{lists}{field}: *a59\n")
    assert len(str(error.value)) < 400


def test_many_fields_take_no_time() -> None:
    """Each key is looked up among those before it."""
    text = "tag:yaml.org,2002:str"
    fields = [(yaml.ScalarNode(text, str(n)), yaml.ScalarNode(text, "")) for n in range(30_000)]
    began = time.thread_time()
    table = _Loader("").construct_mapping(yaml.MappingNode("tag:yaml.org,2002:map", fields))
    assert len(table) == 30_000
    assert time.thread_time() - began < 5 * slowness()


def test_bytes_that_are_no_text(folder: Path) -> None:
    (folder / "recipe.yml").write_bytes(b"base_model: \xff")
    with pytest.raises(BadInputError, match="byte 12: is not UTF-8"):
        read_recipe(folder / "recipe.yml", print)


def test_missing_files(folder: Path) -> None:
    with pytest.raises(FileError, match=r"nothing is downloaded\): .*recipe.yml: base_model"):
        read(folder, fields(base_model="mistralai/Mistral-7B-v0.1"))
    with pytest.raises(FileError, match=r"name too long: .*recipe.yml: base_model"):
        read(folder, fields(base_model="x" * 300))
    with pytest.raises(FileError, match="No such file"):
        read_recipe(folder / "absent.yml", print)
