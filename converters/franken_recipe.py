"""mergekit-moe's recipe: a YAML file that names a base model, experts and the prompts that their router rows come from.

The fields are those of mergekit 0.1.5's `MoEMergeConfig` and `Expert` (mergekit/moe/config.py), and `label` and `name`,
which only localmoe knows: mergekit ignores fields that it does not know, and so does this reader, but it says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from localmoe.errors import BadInputError, FileError

from .yaml_faults import YAML_FAULTS

MAX_RECIPE_BYTES = 1 << 20
MAX_BITS = 64  # of a whole number: Python will not spell some of thousands of digits
MAX_EXPERTS = 1024
LABEL_LENGTH = 40

RUN_MODES = ("hidden", "hidden_avg")  # need the base model to be run
PROMPT_MODES = (*RUN_MODES, "cheap_embed")
RANDOM_MODES = ("random", "uniform_random")
_ALIASES = {"hidden_last": "hidden"}  # mergekit takes both names
DTYPES = ("float32", "float16", "bfloat16")
OUTPUTS = ("Mixtral", "DeepSeek MoE", "Qwen MoE", "Qwen3 MoE")  # mergekit/moe/__init__.py
_FIELDS = ("base_model", "experts", "gate_mode", "dtype", "experts_per_token", "shared_experts", "architecture", "name")
_EXPERT_FIELDS = ("source_model", "positive_prompts", "negative_prompts", "noise_scale", "residual_scale", "label")

Warn = Callable[[str], None]


@dataclass(frozen=True)
class RecipeExpert:
    """One expert: where its feed-forward weights come from, and what makes its router row.

    `noise_scale` is the standard deviation of the noise added to every weight, `residual_scale` the factor on the down
    projection (1: none). `label` names the expert in the app.
    """

    source: Path
    positive: tuple[str, ...] = ()
    negative: tuple[str, ...] = ()
    noise_scale: float = 0.0
    residual_scale: float = 1.0
    label: str = ""


@dataclass(frozen=True)
class Recipe:
    """A checked recipe; `dtype` is what unquantized weights are rounded to first, None for as they are.

    `name`, "" for one made from the base model's, becomes `general.name`.
    """

    file: Path
    base: Path
    experts: tuple[RecipeExpert, ...]
    gate_mode: str = "hidden"
    n_used: int = 2
    dtype: str | None = None
    name: str = ""


class _Loader(yaml.SafeLoader):
    """YAML's safe subset, without keys that appear twice in one table and without endless numbers."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} appears twice", node.start_mark)
            if isinstance(key, yaml.ScalarNode):
                seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        number: int = super().construct_yaml_int(node)
        if number.bit_length() > MAX_BITS:
            reason = f"a number of more than {MAX_BITS} bits"
            raise yaml.constructor.ConstructorError(None, None, reason, node.start_mark)
        return number


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


def read_recipe(file: Path, warn: Warn, sources: Mapping[str, Path] | None = None) -> Recipe:
    """Read and check a recipe; relative paths start at its folder.

    `sources` gives paths for names that are none, `warn` is told about fields that are ignored. BadInputError names
    the field that is wrong; FileError: the recipe cannot be read.
    """
    return parse_recipe(_read_text(file), file, warn, sources)


def parse_recipe(text: str, file: Path, warn: Warn, sources: Mapping[str, Path] | None = None) -> Recipe:
    """The recipe in `text`, which `file` holds."""
    try:
        table = yaml.load(text, _Loader)
    except YAML_FAULTS as error:
        raise BadInputError(f"is not valid YAML: {' '.join(str(error).split())}", file=file) from None
    reader = _Reader(file, warn, dict(sources or {}))
    return _recipe(reader, reader.table(table, "", _FIELDS))


def _read_text(file: Path) -> str:
    try:
        with file.open("rb") as opened:
            data = opened.read(MAX_RECIPE_BYTES + 1)
    except OSError as error:
        raise FileError(f"cannot be read: {error.strerror}", file=file) from None
    if len(data) > MAX_RECIPE_BYTES:
        raise BadInputError("is too large for a recipe", file=file, expected=f"at most {MAX_RECIPE_BYTES} bytes")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInputError("is not UTF-8", file=file, item=f"byte {error.start}") from None


def _recipe(reader: _Reader, table: dict[str, Any]) -> Recipe:
    mode = reader.text(table, "", "gate_mode", "hidden")
    mode = _ALIASES.get(mode, mode)
    if mode not in (*PROMPT_MODES, *RANDOM_MODES):
        raise reader.error(
            "unknown gate mode", "gate_mode", _shown(mode), f"one of {', '.join((*PROMPT_MODES, *RANDOM_MODES))}"
        )
    _check_architecture(reader, table)
    dtype = reader.text(table, "", "dtype", "").removeprefix("torch.") or None
    if dtype is not None and dtype not in DTYPES:
        raise reader.error("unknown dtype", "dtype", _shown(dtype), f"one of {', '.join(DTYPES)}")
    base = reader.source(table, "", "base_model")
    experts = _experts(reader, table.get("experts"), mode)
    n_used = table.get("experts_per_token")
    n_used = 2 if n_used is None else _whole(n_used)
    if not isinstance(n_used, int) or isinstance(n_used, bool) or not 1 <= n_used <= len(experts):
        raise reader.error(
            "is not a usable number of experts", "experts_per_token", _shown(n_used), f"1 to {len(experts)}"
        )
    name = _shortened(reader.text(table, "", "name", ""))
    return Recipe(reader.file, base, experts, mode, n_used, dtype, name)


def _check_architecture(reader: _Reader, table: dict[str, Any]) -> None:
    """Refuse what mergekit-moe would not make a Mixtral of, in its terms (`select_output_arch` in scripts/moe.py)."""
    wanted = reader.text(table, "", "architecture", "")
    matching = [name for name in OUTPUTS if name.lower().startswith(wanted.lower())]
    if not matching:
        raise reader.error("mergekit-moe makes no such architecture", "architecture", _shown(wanted), "mixtral")
    if OUTPUTS[0] not in matching:
        reason = f"asks for a {matching[0]}, and localmoe writes a Mixtral: leave it out, or build it with mergekit-moe"
        raise reader.error(reason, "architecture", _shown(wanted), "mixtral")
    if table.get("shared_experts"):
        reason = "a Mixtral has no shared experts, and localmoe writes no other kind: make experts of them"
        raise reader.error(reason, "shared_experts")


def _experts(reader: _Reader, value: Any, mode: str) -> tuple[RecipeExpert, ...]:
    if not isinstance(value, list) or not 2 <= len(value) <= MAX_EXPERTS:
        got = f"{len(value)} of them" if isinstance(value, list) else _kind(value)
        raise reader.error("is not a list of experts", "experts", got, f"2 to {MAX_EXPERTS}")
    experts = tuple(_expert(reader, item, f"experts[{i}]", mode) for i, item in enumerate(value))
    if mode in PROMPT_MODES and len({(expert.positive, expert.negative) for expert in experts}) == 1:
        raise reader.error("all experts have the same prompts, so the router could not tell them apart", "experts")
    return experts


def _expert(reader: _Reader, value: Any, where: str, mode: str) -> RecipeExpert:
    table = reader.table(value, where, _EXPERT_FIELDS)
    source = reader.source(table, where, "source_model")
    positive = reader.prompts(table, where, "positive_prompts")
    if mode in PROMPT_MODES and not positive:
        raise reader.error("needs at least one prompt", f"{where}.positive_prompts", expected=f"prompts for {mode}")
    noise = reader.number(table, where, "noise_scale", 0.0)
    if noise < 0:
        raise reader.error("is negative", f"{where}.noise_scale", noise, "0 or more")
    label = reader.text(table, where, "label", "") or (positive[0] if positive else source.stem)
    return RecipeExpert(
        source=source,
        positive=positive,
        negative=reader.prompts(table, where, "negative_prompts"),
        noise_scale=noise,
        residual_scale=reader.number(table, where, "residual_scale", 1.0),
        label=_shortened(label),
    )


def _whole(value: Any) -> Any:
    """A whole number that is spelled as text or with a point, as mergekit takes it; anything else as it is."""
    if isinstance(value, str) and value.strip().isdecimal() and len(value) < 20:
        return int(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _shortened(text: str) -> str:
    """One line of at most LABEL_LENGTH characters."""
    line = " ".join(text.split())
    return line if len(line) <= LABEL_LENGTH else line[: LABEL_LENGTH - 1].rstrip() + "…"


def _shown(value: Any) -> str:
    """A value as the recipe might spell it, for messages; of lists and tables, which may nest without end, the kind."""
    return repr(value)[:80] if isinstance(value, str | int | float) else f"a {_kind(value)}"


def _kind(value: Any) -> str:
    return "nothing" if value is None else type(value).__name__


@dataclass(frozen=True)
class _Reader:
    """Typed access to the recipe's tables; `where` is the path of the table in the file, "" for the outermost."""

    file: Path
    warn: Warn
    sources: dict[str, Path]

    def error(self, reason: str, item: str, got: object = None, expected: object = None) -> BadInputError:
        return BadInputError(reason, file=self.file, item=item, got=got, expected=expected)

    def table(self, value: Any, where: str, fields: tuple[str, ...]) -> dict[str, Any]:
        """The table `value`, after saying which of its fields are ignored."""
        if not isinstance(value, dict):
            raise self.error("is not a table of fields", where or "recipe", _kind(value), fields[0] + ": ...")
        for name in value:
            if name not in fields:
                self.warn(f"{self.file}: {where}{'.' if where else ''}{name}: ignored, as mergekit-moe does")
        return {str(name): item for name, item in value.items()}

    def text(self, table: dict[str, Any], where: str, name: str, default: str) -> str:
        value = table.get(name)
        if value is None:
            return default
        if not isinstance(value, str):
            raise self.error("is not text (quote it)", _path(where, name), _shown(value))
        return self.unicode(value, _path(where, name))

    def unicode(self, value: str, item: str) -> str:
        """The text, unless it is none: YAML can spell half a surrogate pair."""
        try:
            value.encode()
        except UnicodeEncodeError as error:
            got = f"U+{ord(value[error.start]):04X} at character {error.start}"
            raise self.error("is not valid Unicode: a lone surrogate", item, got) from None
        return value

    def number(self, table: dict[str, Any], where: str, name: str, default: float) -> float:
        value = table.get(name)
        if value is None:
            return default
        if isinstance(value, str):  # YAML 1.1 reads 1e-3 as text
            try:
                value = float(value)
            except ValueError:
                raise self.error("is not a number", _path(where, name), _shown(value)) from None
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self.error("is not a finite number", _path(where, name), _shown(value))
        return float(value)

    def prompts(self, table: dict[str, Any], where: str, name: str) -> tuple[str, ...]:
        value = table.get(name)
        if value is None:
            return ()
        if not isinstance(value, list):
            raise self.error("is not a list of prompts", _path(where, name), _kind(value))
        for i, prompt in enumerate(value):
            if not isinstance(prompt, str):
                raise self.error("is not text (quote it)", f"{_path(where, name)}[{i}]", _shown(prompt))
            self.unicode(prompt, f"{_path(where, name)}[{i}]")
        return tuple(value)

    def source(self, table: dict[str, Any], where: str, name: str) -> Path:
        """The path of a model: text, or mergekit's table with `model: {path: ...}`."""
        value, item = table.get(name), _path(where, name)
        if isinstance(value, dict):
            if value.get("lora"):
                raise self.error("LoRA adapters are not merged: merge it into its model first", f"{item}.lora")
            value = value.get("model")
            value = value.get("path") if isinstance(value, dict) else value
        if not isinstance(value, str) or not value or "\0" in value:
            raise self.error("is not the path of a model", item, _kind(value), "a checkpoint folder or a GGUF file")
        path = self.sources.get(value, self.file.parent / value)
        try:
            found = path.exists()
        except OSError as error:
            raise FileError(f"cannot be looked up: {error.strerror}: {self.file}: {item}", file=path) from None
        if not found:
            raise FileError(
                f"no such checkpoint folder or GGUF file (nothing is downloaded): {self.file}: {item}", file=path
            )
        return path


def _path(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name
