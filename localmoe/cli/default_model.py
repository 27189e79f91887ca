"""What `localmoe chat` and `localmoe tui` open when no model is named."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from localmoe.cli.demo_model import build_demo, demo_model_path
from localmoe.errors import UsageError

if TYPE_CHECKING:
    from localmoe.tui.options import Buildable


def tiny_model_path() -> Path:
    """The small trained MoE that is part of the package (data/tiny-moe-licences.txt)."""
    return Path(__file__).parents[1] / "data" / "tiny-moe.gguf"


def beginnings() -> dict[Path, Sequence[str]]:
    """Texts to try by the model that was trained on such: a verse, an entry, a gloss, a program."""
    return {tiny_model_path(): ("And God said", "hacker: n.", "a small bird", "def __init__(self")}


def packaged_models() -> list[tuple[str, Path]]:
    """Models that are always there, by a name: the tiny one, and the demo's where it has been built."""
    built = demo_model_path()
    return [*([("demo", built)] if os.path.isfile(built) else []), ("in the package", tiny_model_path())]


def demo_to_build() -> Buildable:
    """The demo model, for the app to offer where it is not there."""
    from localmoe.tui.options import Buildable

    return Buildable(demo_model_path(), "the demo: not built yet, Enter fetches 89 MiB and makes 369 MiB", build_demo)


def given_or_demo_model(path: Path | None) -> Path:
    """The model given, or the demo model, which is offered to be built where it is missing and someone can answer."""
    if path is not None:
        return path
    built = demo_model_path()
    if os.path.isfile(built):
        return built
    if not sys.stdin.isatty():
        raise UsageError("no model given", expected="-m MODEL (`localmoe demo` builds the demo model)")
    if not typer.confirm(f"No model given. Build the demo model ({built})?", default=True, err=True):
        raise UsageError("no model given", expected="-m MODEL")
    build_demo()
    return built
