"""The arguments of `localmoe quantize` where some are left out, as llama-quantize takes them."""

from __future__ import annotations

import re
from pathlib import Path

from localmoe.cli.output_path import output_path
from localmoe.errors import UsageError


def place(source: Path, out: str | None, file_type: str | None, threads: str | None) -> tuple[Path, str, int | None]:
    """Target, file type and threads of `IN [OUT] TYPE [THREADS]`, of which all but IN came in order.

    UsageError: no file type, or a number of threads that is none.
    """
    if out is not None and (name := _type_name(out)) is not None:
        if threads is not None:
            raise UsageError("too many arguments", got=repr(threads), expected="IN.gguf TYPE THREADS")
        return source.parent / f"ggml-model-{name}.gguf", name, _threads(file_type)
    if out is None or file_type is None:
        raise UsageError("which file type?", expected="IN.gguf [OUT.gguf] TYPE, as Q4_K_M")
    return output_path(out), file_type, _threads(threads)


def _type_name(text: str) -> str | None:
    """The name of a file type as llama-quantize calls it, None for what is none."""
    from localmoe.converters.mixes import ALIASES, RECIPES
    from localmoe.converters.recipe import COPY

    name = text.upper()
    numbers = {str(int(recipe.file_type)): recipe.name for recipe in RECIPES.values()}
    numbers |= {str(int(RECIPES[of].file_type)): alias for alias, of in ALIASES.items()}  # which it finds first
    return numbers.get(name, name if name in (*RECIPES, *ALIASES, COPY) else None)


def _threads(text: str | None) -> int | None:
    if text is None:
        return None
    if not re.fullmatch(r"[0-9]{1,4}", text, re.ASCII):
        raise UsageError("not a number of threads", got=repr(text), expected="a whole number")
    return int(text) or None
